"""What a model predicted, kept small: per prediction its class, whether the truth was among the best five,
and the probability of the truth; never the scores of all classes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prunecli.errors import PruneError
from prunecli.evaluation.reading import IGNORED, Reading, Scale

Array = np.ndarray[Any, Any]

TOP = 5


@dataclass(frozen=True)
class Predictions:
    """One entry per prediction (several per sample where labels are per position).

    truth, predicted: class numbers or text, or float64 for regression, then (samples, values). sample: which
    sample each entry belongs to. in_top: truth among the five best scores, None with at most five classes.
    log_prob: natural logarithm of the probability given to the truth, None where the model gives none.
    invalid: predictions from scores with NaN; they count as wrong.
    """

    reading: Reading
    truth: Array
    predicted: Array
    sample: Array
    in_top: Array | None = None
    log_prob: Array | None = None
    invalid: int = 0

    @property
    def samples(self) -> int:
        return len(np.unique(self.sample))

    @property
    def judged(self) -> tuple[Array, Array]:
        """Truth and predictions as scikit-learn takes them: of several labels per sample, rows that say for each label
        whether it is there. A score that is no number counts as wrong."""
        if not self.reading.several:
            return self.truth, self.predicted
        predicted = np.where(self.predicted < 0, 1 - self.truth, self.predicted)
        return self.truth.reshape(-1, self.reading.several), predicted.reshape(-1, self.reading.several)

    def goodness(self) -> Array:
        """Per sample that counts, higher is better: the fraction of right classes, or minus the mean absolute error."""
        if self.reading.regression:
            return np.asarray(-np.abs(self.truth - self.predicted).mean(axis=1))
        right = np.bincount(self.sample, weights=self.truth == self.predicted)
        count = np.bincount(self.sample)
        return np.asarray(right[count > 0] / count[count > 0])


@dataclass
class Collector:
    """Takes a model's outputs batch by batch; `result()` when all have passed."""

    reading: Reading
    _parts: list[dict[str, Array]] = field(default_factory=list)
    _samples: int = 0
    _invalid: int = 0

    def add(self, labels: Array, outputs: dict[str, Any]) -> None:
        """One batch: labels, and the trimmed outputs."""
        out, truth = outputs[self.reading.output], self.reading.truth(labels)
        rows = np.arange(self._samples, self._samples + len(labels))
        self._samples += len(labels)
        if self.reading.regression:
            self._parts.append(
                {"truth": truth.reshape(len(labels), -1), "sample": rows,
                 "predicted": _as_float(out).reshape(len(labels), -1)}
            )  # fmt: skip
            self._invalid += int((~np.isfinite(_as_float(out))).sum())
            return
        truth = truth.reshape(len(labels), -1)
        sample = np.repeat(rows, truth.shape[1])
        truth = truth.reshape(-1)
        keep = np.ones(len(truth), bool) if truth.dtype.kind == "U" else truth != IGNORED
        part = self._read(out, truth, keep)
        self._parts.append({"truth": truth[keep], "sample": sample[keep], **part})

    def _read(self, out: Array, truth: Array, keep: Array) -> dict[str, Array]:
        if self.reading.kind == "classes":
            flat = out.reshape(-1)
            return {"predicted": (flat.astype(np.str_) if flat.dtype.kind in "OU" else flat)[keep]}
        if self.reading.kind == "binary":
            return {"score": _as_float(out).reshape(-1)[keep]}
        scores = np.moveaxis(_as_float(out), self.reading.axis, -1).reshape(-1, self.reading.classes)[keep]
        broken: Array = np.logical_not(np.isfinite(scores).all(axis=1))
        self._invalid += int(broken.sum())
        return _read_scores(np.where(broken[:, None], 0.0, scores), truth[keep], broken)

    def result(self) -> Predictions:
        """All that was added.

        Raises:
            PruneError: no label counts.
        """
        parts = {key: np.concatenate([p[key] for p in self._parts]) for key in self._parts[0]}
        if not len(parts["truth"]):
            raise PruneError(f"every label is {IGNORED}, which says not to count it", "check the labels")
        if "score" in parts:
            return self._binary(parts)
        scale: Scale = "" if "plain" not in parts else self._scale(bool(parts["plain"].all()))
        return Predictions(
            replace(self.reading, scale=scale),
            parts["truth"],
            parts["predicted"],
            parts["sample"],
            parts.get("in_top"),
            _safe_log(parts["prob"]) if scale == "probabilities" else parts.get("soft"),
            self._invalid,
        )

    def _scale(self, plain: bool) -> Scale:
        return self.reading.scale or ("probabilities" if plain else "logits")

    def _binary(self, parts: dict[str, Array]) -> Predictions:
        """Scores that all lie in [0, 1] are probabilities, cut at 0.5; others are logits, cut at 0. Unless the reading
        knows."""
        score, truth = parts["score"], parts["truth"]
        broken = ~np.isfinite(score)
        good = score[~broken]
        scale = self._scale(bool(((good >= 0) & (good <= 1)).all()))
        cut = 0.5 if scale == "probabilities" else 0.0
        predicted = np.where(broken, -1, score > cut)
        if scale == "probabilities":
            log_prob = _safe_log(np.where(truth == 1, score, 1 - score))
        else:
            lost = np.isnan(score)
            known = np.where(lost, 0.0, score)
            log_prob = np.where(lost, np.nan, -np.logaddexp(0, np.where(truth == 1, -known, known)))
        reading = replace(self.reading, scale=scale)
        return Predictions(reading, truth, predicted, parts["sample"], None, log_prob, int(broken.sum()))


def _as_float(array: Array) -> Array:
    return array.astype(np.float64)


def _safe_log(prob: Array) -> Array:
    """log of probabilities kept off 0 and 1 by the float64 resolution, as scikit-learn's log_loss does."""
    eps = np.finfo(np.float64).eps
    return np.asarray(np.log(np.clip(prob, eps, 1 - eps)))


def _read_scores(scores: Array, truth: Array, broken: Array) -> dict[str, Array]:
    """Per row: the best class (the first of equals), the truth's probability read both ways, and top five.

    `prob`: the score itself; `soft`: log of its softmax; `plain`: whether the row looks like probabilities.
    In `in_top`, of equal scores the higher class number ranks first, as in sklearn's top_k_accuracy_score.
    """
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    best = scores.max(axis=1, keepdims=True)
    soft = (own - best)[:, 0] - np.log(np.exp(scores - best).sum(axis=1))
    total = scores.sum(axis=1)
    plain = (scores.min(axis=1) >= 0) & (scores.max(axis=1) <= 1) & (np.abs(total - 1) < 1e-3)
    predicted = np.where(broken, -1, scores.argmax(axis=1))
    part = {"predicted": predicted, "prob": own[:, 0], "soft": soft, "plain": plain | broken}
    if scores.shape[1] > TOP:
        ahead = (scores > own).sum(axis=1) + ((scores == own) & (np.arange(scores.shape[1]) > truth[:, None])).sum(
            axis=1
        )
        part["in_top"] = (ahead < TOP) & ~broken
    return part
