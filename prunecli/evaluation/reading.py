"""How a model's outputs are compared with labels: which output, classes or numbers, along which axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from prunecli.arrays import Array
from prunecli.data import Classes
from prunecli.data.columns import is_float
from prunecli.errors import PruneError, advice

Task = Literal["auto", "classification", "regression"]
Kind = Literal["scores", "classes", "binary", "numbers"]
Scale = Literal["", "probabilities", "logits"]

IGNORED = -100
"""A class label that says "do not count this one" (padding, unknown), as PyTorch's losses use it."""
SIGNS = ("-1", "1")
"""The two classes of margin losses."""


@dataclass(frozen=True)
class Reading:
    """How to read `output`.

    kind: "scores": one score per class along `axis`; "classes": the predicted class itself, `text` or a number;
    "binary": one score for class 1 of {0, 1}; "numbers": regression. `classes`: how many ("scores"). `names`: the
    labels that classes 0, 1, ... stand for, where these are not the labels themselves. `one_hot`: the labels are
    indicator rows. `several`: labels per sample, each present (1) or absent (0); 0: not of that kind, nor where some
    are ignored: such are per position. `titles`: names of integer labels, for reports. `scale`: what scores are; "":
    told from the scores themselves. A pruned model's are what those of its original are, wherever they lie.
    """

    output: str
    kind: Kind
    axis: int = -1
    classes: int = 2
    names: tuple[str, ...] | None = None
    one_hot: bool = False
    several: int = 0
    text: bool = False
    titles: Mapping[int, str] = field(default_factory=dict)
    scale: Scale = ""

    @property
    def regression(self) -> bool:
        return self.kind == "numbers"

    def truth(self, labels: Array) -> Array:
        """Labels as class numbers (or text, if the model answers in text); as float64 for regression."""
        if self.one_hot:
            return np.asarray(labels.argmax(axis=-1))
        if self.regression:
            return labels.astype(np.float64)
        if self.names is not None:
            number = {str(IGNORED): IGNORED, **{name: k for k, name in enumerate(self.names)}}
            found, inverse = np.unique(_as_text(labels), return_inverse=True)
            known = [number[name] if name in number else number[str(int(name))] for name in found.tolist()]
            return np.array(known, np.int64)[inverse].reshape(labels.shape)
        return _as_text(labels) if self.text else labels.astype(np.int64)


class UnansweredLabelsError(PruneError):
    """No output of the model fits the labels."""


def choose_reading(
    labels: Array,
    outputs: Mapping[str, Array],
    task: Task | None = None,
    output_name: str | None = None,
    classes: Classes | None = None,
) -> Reading:
    """Return how to read the first output that fits the labels.

    Args:
        labels: all of them, (N,), (N, 1) or with more axes for a label per position.
        outputs: those of one batch, rows trimmed; text and sequences may be among them.
        task: insist on classes or on numbers; None: as auto, where the user cannot say so.
        output_name: insist on that output.
        classes: what the labels' numbers stand for, where the data says so.

    Raises:
        UnansweredLabelsError: no output fits.
        PruneError: a label is no class of the output, or the data has other classes.
    """
    if output_name is not None and output_name not in outputs:
        raise PruneError(f"the model has no output named {output_name}", f"it has {', '.join(outputs)}")
    names = [output_name] if output_name is not None else list(outputs)
    for name in names:
        value = outputs[name]
        reading = _fit(labels, name, value, task=task) if isinstance(value, np.ndarray) and value.ndim else None
        if reading is not None:
            _check_range(labels, reading)
            return reading if classes is None else _named(reading, classes)
    shapes = ", ".join(f"{n}: {_shape_text(outputs[n])}" for n in names)
    what = "" if task in (None, "auto") else f" for {task}"
    broken = labels.dtype.kind == "f" and bool((labels % 1 != 0).any())
    raise UnansweredLabelsError(
        f"labels {'with fractions, ' * broken}of shape {labels.shape} ({labels.dtype}) fit no output of the model{what}"
        f" ({shapes})",
        advice(
            ("choose one with --output-name", output_name is None and len(outputs) > 1),
            ("say what the labels mean with --task", task == "auto"),
            ("say what they mean with --metric (map, miou, wer, ...)", task is not None),
            (
                "check the labels: classes are whole numbers, other targets have an output's shape (without labels, as"
                " of images in one folder without sub-folders, models are compared with --baseline)",
                True,
            ),
        ),
    )


def _shape_text(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return "a list"
    return f"{value.dtype} (N{''.join(f', {size}' for size in value.shape[1:])})"


def _fit(labels: Array, name: str, out: Array, task: Task | None) -> Reading | None:
    spot = labels.shape[1:] if labels.shape[1:] != (1,) else ()
    same = out.shape[1:] in (spot, (*spot, 1), (1, *spot), labels.shape[1:])
    if not is_float(out.dtype):
        text = out.dtype.kind in "OU"
        answers = same and task != "regression" and _answers(labels, out, text)
        return Reading(name, "classes", text=text) if answers else None
    if task != "regression":
        reading = _fit_classes(labels, name, out, spot=spot, same=same)
        if reading is not None:
            return reading
    if same and task != "classification" and labels.dtype.kind != "U":
        return Reading(name, "numbers")
    return None


def _answers(labels: Array, out: Array, text: bool) -> bool:
    """Return whether the classes of an output are of the labels' kind. Numeric labels may be written as text."""
    if text == (labels.dtype.kind == "U"):
        return True
    if not text:
        return _whole_numbers(labels)
    return labels.dtype.kind in "iu" and bool(np.isin(out.astype(np.str_), _as_text(labels)).any())


def _whole_numbers(labels: Array) -> bool:
    """Return whether labels are text and all of it whole numbers."""
    try:
        return labels.dtype.kind == "U" and bool(labels.size) and labels.astype(np.int64) is not None
    except (ValueError, OverflowError):
        return False


def _as_text(labels: Array) -> Array:
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64).astype(np.str_)


def _names(labels: Array, classes: int) -> tuple[str, ...] | None:
    """Return the labels that classes 0, 1, ... stand for: text in alphabetical order, numbers in ascending order, -1
    and 1 for two classes. None where the labels are the class numbers."""
    numeric = labels.dtype.kind != "U" or _whole_numbers(labels)
    if not numeric:
        return tuple(np.unique(labels).tolist())
    found = set(np.unique(labels).astype(np.int64).tolist()) - {IGNORED}
    signs = classes == 2 and -1 in found and found <= {-1, 1}
    ranked = labels.dtype.kind == "U" and len(found) == classes and not found <= set(range(classes))
    return SIGNS if signs else tuple(map(str, sorted(found))) if ranked else None


def _fit_classes(labels: Array, name: str, out: Array, spot: tuple[int, ...], same: bool) -> Reading | None:
    if out.shape == (len(out), *labels.shape[1:]) and _is_one_hot(labels):
        return Reading(name, "scores", -1, classes=out.shape[-1], one_hot=True)
    if labels.dtype.kind == "f" and not (labels == np.trunc(labels)).all():
        return None
    if out.ndim == len(spot) + 2 and out.shape[1:-1] == spot and out.shape[-1] > 1:
        return Reading(name, "scores", -1, classes=out.shape[-1], names=_names(labels, out.shape[-1]))
    if spot and out.ndim == len(spot) + 2 and out.shape[2:] == spot and out.shape[1] > 1:
        return Reading(name, "scores", 1, classes=out.shape[1], names=_names(labels, out.shape[1]))
    names = _names(labels, 2)
    numbers = labels.astype(np.int64) if names is None else labels
    two = len(names) == 2 if names else bool(np.isin(numbers, (0, 1, IGNORED)).all())
    several = labels.shape[1] if len(spot) == 1 and names in (None, SIGNS) and not (labels == IGNORED).any() else 0
    return Reading(name, "binary", names=names, several=several) if same and two else None


def _is_one_hot(labels: Array) -> bool:
    if labels.ndim < 2 or labels.shape[-1] < 2 or labels.dtype.kind == "U":
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=-1) == 1).all())


def _check_range(labels: Array, reading: Reading) -> None:
    """Refuse labels that are no class number of the output."""
    if reading.kind != "scores" or reading.one_hot:
        return
    last = reading.classes - 1
    labels = labels.astype(np.int64) if reading.names is None else labels
    if reading.names is not None:
        if len(reading.names) != reading.classes:
            raise PruneError(
                f"the labels have {len(reading.names)} names, {reading.output} has {reading.classes} classes",
                "write the labels as class numbers, since the order of the names is not known",
            )
        return
    counted = labels[labels != IGNORED]
    low, high = int(counted.min(initial=0)), int(counted.max(initial=0))
    if low < 0 or high > last:
        shifted = counted.min(initial=1) >= 1 and high == reading.classes
        raise PruneError(
            f"the labels hold the class {low if low < 0 else high}, {reading.output} has 0 to {last}",
            "the labels seem to start at 1: subtract 1" if shifted else "check the labels, or --output-name",
        )


def _named(reading: Reading, classes: Classes) -> Reading:
    """Add the names of the classes; refuse data with another number of classes than the model."""
    if classes.complete and reading.kind in ("scores", "binary") and reading.classes != len(classes.names):
        raise PruneError(
            f"the data has {len(classes.names)} classes, {reading.output} has {reading.classes}",
            "say which is which: --classes FILE with the names of the model's classes, or --classes numbers",
        )
    return replace(reading, titles=classes.names)


def float_outputs(outputs: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of non-empty floating-point outputs."""
    return [n for n, v in outputs.items() if isinstance(v, np.ndarray) and is_float(v.dtype) and v.size]


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
    def for_sklearn(self) -> tuple[Array, Array]:
        """Truth and predictions as scikit-learn takes them; with several labels per sample, one indicator per label.
        NaN scores count as wrong."""
        if not self.reading.several:
            return self.truth, self.predicted
        predicted = np.where(self.predicted < 0, 1 - self.truth, self.predicted)
        return self.truth.reshape(-1, self.reading.several), predicted.reshape(-1, self.reading.several)

    def goodness(self) -> Array:
        """Per counted sample, higher is better: the fraction of correct classes, or minus the mean absolute error."""
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
        """Return the predictions of all batches.

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
            sample=parts["sample"],
            in_top=parts.get("in_top"),
            log_prob=_safe_log(parts["prob"]) if scale == "probabilities" else parts.get("soft"),
            invalid=self._invalid,
        )

    def _scale(self, plain: bool) -> Scale:
        return self.reading.scale or ("probabilities" if plain else "logits")

    def _binary(self, parts: dict[str, Array]) -> Predictions:
        """Return predictions of binary scores. Where the reading does not state the scale, scores that all lie in [0,
        1] are probabilities, with the threshold 0.5; others are logits, with the threshold 0."""
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
        return Predictions(
            reading, truth, predicted, sample=parts["sample"], log_prob=log_prob, invalid=int(broken.sum())
        )


def _as_float(array: Array) -> Array:
    return array.astype(np.float64)


def _safe_log(prob: Array) -> Array:
    """Return the log of probabilities, clipped by the float64 resolution as in scikit-learn's log_loss."""
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
