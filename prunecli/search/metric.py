"""What trials are compared by: the user's metric, with its noise, and a finer measure of damage that steers the search.

Accuracy moves in steps of one sample, and its differences are mostly noise. The change of the outputs is smooth and
needs no labels. So damage decides which layers to cut, and the metric decides how far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from prunecli.arrays import Array
from prunecli.data import Batch, Classes
from prunecli.data.columns import is_float
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import MEASURES, LogitMoments, Mixture, are_scores, cosines, mixture_of, same_place
from prunecli.evaluation.passes import ReadingOptions
from prunecli.evaluation.quality import METRICS, Merit, compute_metrics
from prunecli.evaluation.reading import Collector, Predictions, Reading, choose_reading, float_outputs
from prunecli.evaluation.sample_metrics import BLOCKS, LabelFacts, MetricCollector, SampleMetric, find_metrics
from prunecli.structures.blocks import log_scores

Outputs = Mapping[str, Any]
Records = dict[str, Array]
"""Per sample or prediction, what the metric is computed from."""
FIDELITY = ("top1_agreement", "cosine")
"""Measures of fidelity that are means over samples: of extremes nothing can be promised for new data."""
PER_SAMPLE = {"accuracy", "top5", "log_loss", "mae"}
TINY = float(np.finfo(np.float32).tiny)
SURE = 2.0
"""Standard errors above which a difference is more than noise."""


@dataclass(frozen=True)
class Drop:
    """How much worse a model is than the original; positive is worse. `variance`: of the difference on one sample,
    so the variance of the drop on n samples is variance / n."""

    value: float
    variance: float
    samples: int

    def error(self, *others: int) -> float:
        """Return the standard error of the drop; given sizes of other sets, that of its difference from their drops."""
        return math.sqrt(self.variance * sum(1 / n for n in (self.samples, *others)))


@dataclass(frozen=True)
class TrialMetric:
    """The metric that trials are compared by, with what it needs of the original.

    Attributes:
        reading: how `output` answers the labels. Without it and `sample_metric` the metric is fidelity to the original.
        scales: by output, its mean square over the data, by which its squared error is divided.
        reference: the original's predictions, where the data has labels.
        sample_metric: a metric that scores samples itself; `own`: its records of the original; `known`: facts of all
            labels.
        mixtures: outputs whose elements differ in kind.
    """

    name: str
    output: str
    reading: Reading | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    reference: Predictions | None = None
    sample_metric: SampleMetric | None = None
    own: Records = field(default_factory=dict)
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    known: LabelFacts = field(default_factory=LabelFacts)

    @property
    def identity(self) -> str:
        """A text that differs between metrics; it covers the content of a user function's file."""
        return self.name if self.sample_metric is None else self.sample_metric.identity

    @property
    def merit(self) -> Merit:
        if self.sample_metric is not None:
            return self.sample_metric
        return METRICS[self.name] if self.name in METRICS else Merit(True, self.name == "top1_agreement", (0, 1))

    @property
    def higher(self) -> bool:
        return self.merit.higher

    @property
    def counted(self) -> bool:
        """Whether the metric counts samples that are right, so that it moves in steps."""
        return self.merit.fraction

    @property
    def from_zero(self) -> bool:
        """Whether 0 is the worst value."""
        return self.name in FIDELITY or self.merit.fraction

    def wanted(self, outputs: Outputs) -> Outputs:
        """The outputs that the metric reads."""
        return outputs if self.sample_metric is not None else {self.output: outputs[self.output]}

    @property
    def change(self) -> Literal["drop", "rise"]:
        return "drop" if self.higher else "rise"

    def records(self, pairs: Iterable[tuple[Batch, Outputs, Outputs]]) -> Records:
        """Return the records of (batch, outputs of the trial, outputs of the original)."""
        if self.sample_metric is not None:
            collector = MetricCollector({self.name: self.sample_metric}, self.output, self.known)
            labels = []
            for batch, out, _ in pairs:
                collector.add(batch, _trimmed(batch, out))
                labels += [] if batch.labels is None else [batch.labels]
            return self.sample_metric.parts(collector.found[self.name], np.concatenate(labels) if labels else None)
        if self.reading is None:
            mixture = self.mixtures.get(self.output)
            rows = [agreement(self.name, batch.trim(name, ref[name]), batch.trim(name, out[name]), mixture=mixture)
                    for batch, out, ref in pairs for name in [self.output]]  # fmt: skip
            return {"fidelity": np.concatenate(rows)}
        found = predictions(self.reading, ((batch, out) for batch, out, _ in pairs))
        kept = {"predicted": found.predicted, "in_top": found.in_top, "log_prob": found.log_prob}
        return {name: value for name, value in kept.items() if value is not None}

    def of(self, records: Records) -> Predictions:
        """Return the predictions that the records were made of."""
        assert self.reference is not None
        invalid = 0 if records["predicted"].dtype.kind != "f" else int((~np.isfinite(records["predicted"])).sum())
        return replace(self.reference, predicted=records["predicted"], in_top=records.get("in_top"),
                       log_prob=records.get("log_prob"), invalid=invalid)  # fmt: skip

    def value(self, records: Records) -> float:
        """Return the metric of a model from its records."""
        if self.sample_metric is not None:
            return float(records["each"].mean() if "each" in records else records["parts"][0])
        if self.reading is None:
            return float(records["fidelity"].mean())
        return _metric(self.name, self.of(records))

    @property
    def baseline(self) -> float:
        """The metric of the original."""
        if self.sample_metric is not None:
            return self.value(self.own)
        return 1.0 if self.reference is None else _metric(self.name, self.reference)

    def drop(self, records: Records) -> Drop:
        """Return the drop against the original on the same samples; infinite where the metric is not a number."""
        if self.sample_metric is not None:
            return _sample_metric_drop(self.sample_metric, self.own, records)
        if self.reading is None:
            return _mean_drop(1 - records["fidelity"], self.counted)
        assert self.reference is not None
        trial, base = self.of(records), self.reference
        sign = 1 if self.higher else -1
        if self.name in PER_SAMPLE:
            return _mean_drop(sign * (_each(self.name, base) - _each(self.name, trial)), self.counted)
        return _jackknife(
            lambda p, q: sign * (_metric(self.name, q) - _metric(self.name, p)), trial, base, counted=self.counted
        )

    def damage(self, reference: Outputs, outputs: Outputs, count: int) -> Array:
        """Return, per sample, the distance of the outputs from the original's: the mean over outputs of the
        Kullback-Leibler divergence of class scores, for others of |a - b|^2 over the mean |a|^2; infinite where not
        finite."""
        rows = [
            _damage(reference[n], outputs[n], self.scales[n], count=count, mixture=self.mixtures.get(n))
            for n in self.scales
        ]
        return np.asarray(np.mean(rows, axis=0))


def choose_metric(
    wanted: str | None, asked: ReadingOptions, labels: Array | None, batches: Sequence[Batch],
    reference: Sequence[Outputs], classes: Classes | None = None, heads: Mapping[str, bool] | None = None,
) -> TrialMetric:  # fmt: skip
    """Return the metric for a metric of `prune evaluate`. None: accuracy or r2 with labels, else top-1 agreement where
    outputs are class scores, else cosine. `labels`: all labels, also of samples outside `batches`, since their meaning
    must not depend on the part. `classes`: the labels that class numbers stand for. `heads`: from `heads_of`.

    Raises:
        PruneError: the metric is unknown, needs labels, or says nothing about new data; or the labels are of other
            classes, or the outputs of the original are not numbers.
    """
    floats = _per_sample(float_outputs(reference[0]), batches, reference)
    if not floats:
        raise PruneError("the model has no floating-point output", "export it with its scores as an output")
    scales = {name: _scale([r[name] for r in reference]) for name in floats}
    first = {name: batches[0].trim(name, reference[0][name]).astype(np.float64) for name in floats}
    mixtures = {name: made for name in floats if (made := mixture_of(first[name])) is not None}
    merits = find_metrics([wanted]) if wanted is not None and wanted not in MEASURES else {}
    for name, metric in merits.items():
        if isinstance(metric, SampleMetric):
            found = TrialMetric(name, asked.output_name or floats[0], scales=scales, sample_metric=metric,
                                known=LabelFacts.of(labels), mixtures=mixtures)  # fmt: skip
            return _with_own(found, zip(batches, reference, reference, strict=True))
    if labels is None or wanted in MEASURES:
        output = asked.output_name or floats[0]
        _check_output(output, floats)
        scores = are_scores(output, first[output])
        if scores is None and output in (heads or {}):
            moments = LogitMoments((heads or {})[output])
            for batch, outputs in zip(batches, reference, strict=True):
                moments.add(batch.trim(output, outputs[output]).astype(np.float64))
            scores = moments.of_logits
        chosen = wanted or ("top1_agreement" if scores else "cosine")
        _check_fidelity(chosen)
        found = TrialMetric(chosen, output, scales=scales, mixtures=mixtures)
        _check_numbers(found, batches, reference)
        return found
    reading = choose_reading(
        labels, _trimmed(batches[0], reference[0]), asked.task, output_name=asked.output_name, classes=classes
    )
    base = predictions(reading, zip(batches, reference, strict=True))
    chosen = wanted or ("r2" if reading.regression else "accuracy")
    _check_metric(chosen, base)
    return TrialMetric(chosen, reading.output, base.reading, scales=scales, reference=base, mixtures=mixtures)


def _trimmed(batch: Batch, outputs: Outputs) -> dict[str, Any]:
    return {n: batch.trim(n, v) if isinstance(v, np.ndarray) else v for n, v in outputs.items()}


def _with_own(found: TrialMetric, own: Iterable[tuple[Batch, Outputs, Outputs]]) -> TrialMetric:
    """Return the metric with the records of the original.

    Raises:
        PruneError: the metric of the original is not a number.
    """
    found = replace(found, own=found.records(own))
    if not math.isfinite(found.baseline):
        raise PruneError(f"--metric {found.name} of the original is {found.baseline}", "check the data and the labels")
    return found


def _per_sample(names: Sequence[str], batches: Sequence[Batch], reference: Sequence[Outputs]) -> Sequence[str]:
    """Return the outputs with one row per sample, or all if none has. The sizes of others (detected boxes) may change
    with the weights."""

    def has_rows(batch: Batch, name: str, output: Array) -> bool:
        axis = batch.axes.get(name, 0)
        return batch.unbatched or (output.ndim > axis and output.shape[axis] == batch.count + batch.padded)

    pairs = list(zip(batches, reference, strict=True))
    return [n for n in names if all(has_rows(batch, n, outputs[n]) for batch, outputs in pairs)] or names


def _check_numbers(found: TrialMetric, batches: Sequence[Batch], reference: Sequence[Outputs]) -> None:
    """Raise PruneError where the original does not agree with itself: an output is not a number."""
    own = found.records(zip(batches, reference, reference, strict=True))["fidelity"]
    if (own < 1).any():
        raise PruneError(f"the output {found.output} of the original is not a number on {int((own < 1).sum()):,} of"
                         f" {len(own):,} samples", "check the data, or choose another with --output-name")  # fmt: skip


def _check_output(output: str, floats: Sequence[str]) -> None:
    if output not in floats:
        raise PruneError(f"--output-name {output} is no floating-point output", f"choose from {', '.join(floats)}")


def _check_fidelity(name: str) -> None:
    if name in FIDELITY:
        return
    if name in MEASURES:
        raise PruneError(f"--metric {name} is no mean over samples: nothing follows from it for new data",
                         f"use {' or '.join(FIDELITY)}")  # fmt: skip
    raise PruneError(f"--metric {name} needs labels", f"give labels, or use {' or '.join(FIDELITY)}")


def _check_metric(name: str, base: Predictions) -> None:
    known = compute_metrics(base)
    if name not in known or not math.isfinite(known[name]):
        raise PruneError(f"--metric {name} has no meaning for this model and data", f"it has {', '.join(known)}")


def predictions(reading: Reading, pairs: Iterable[tuple[Batch, Outputs]]) -> Predictions:
    """Return the predictions for (batch, outputs as the session returned them)."""
    collector = Collector(reading)
    for batch, outputs in pairs:
        assert batch.labels is not None
        collector.add(batch.labels, {reading.output: batch.trim(reading.output, outputs[reading.output])})
    return collector.result()


def agreement(metric: str, reference: Array, other: Array, mixture: Mixture | None = None) -> Array:
    """Return the fidelity measure of each sample; for a mixture, the smallest cosine over its parts."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    with np.errstate(all="ignore"):
        if metric == "cosine" and mixture is not None:
            parts = np.min([cosines(x, y) for x, y in mixture.parts(a, b)], axis=0)
        else:
            parts = cosines(a, b) if metric == "cosine" else same_place(a, b)
    if not parts.size:
        raise PruneError(f"--metric {metric} has no meaning for this output", "use --metric cosine")
    rows = parts.reshape(len(a), -1).mean(axis=1)
    return np.where(np.isnan(rows), -1.0, rows)


def _metric(name: str, found: Predictions) -> float:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without predictions
        value = METRICS[name].compute(found, "weighted")
    return math.nan if value is None else float(value)


def _each(name: str, p: Predictions) -> Array:
    """Return the term of each prediction; the metric is their mean."""
    if name == "accuracy":
        return np.asarray(p.truth == p.predicted, np.float64)
    if name == "top5":
        assert p.in_top is not None
        return p.in_top.astype(np.float64)
    if name == "log_loss":
        assert p.log_prob is not None
        return np.asarray(-p.log_prob)
    return np.asarray(np.abs(p.truth - p.predicted).mean(axis=1))


def _mean_drop(each: Array, counted: bool) -> Drop:
    """Return the mean as a drop. If `counted`, the variance assumes one more changed sample than was seen: zero changes
    here do not rule out changes on other samples."""
    count = len(each)
    if not np.isfinite(each).all():
        return Drop(math.inf, math.inf, count)
    mean = float(each.mean())
    return Drop(mean, max(float(np.square(each).sum() + counted) / count - mean * mean, 0.0), count)


def _jackknife(figure: Any, trial: Predictions, base: Predictions, counted: bool) -> Drop:
    """Return the drop of a metric that is no mean; its variance is the jackknife's over blocks of samples."""
    whole, count = figure(trial, base), base.samples
    blocks = min(BLOCKS, count)
    owner = np.random.default_rng(0).permutation(count) % blocks
    ranks = np.unique(base.sample, return_inverse=True)[1]
    kept = [owner[ranks] != block for block in range(blocks)] if math.isfinite(whole) else []
    return _from_blocks(whole, [figure(_some(trial, keep), _some(base, keep)) for keep in kept], count, counted=counted)


def _sample_metric_drop(metric: SampleMetric, own: Records, records: Records) -> Drop:
    """Return the drop from the records of the original and of a trial. A function whose numbers are all in [0, 1] may
    count samples, so it is treated as `counted` (see `_mean_drop`)."""
    if "each" in own and "each" in records:
        steps = metric.fraction or bool(np.isin(own["each"], (0, 1)).all())
        return _mean_drop(metric.sign * (own["each"] - records["each"]), steps)
    lost = metric.sign * (own["parts"] - records["parts"])
    steps = metric.fraction or all(bool(((each["parts"] >= 0) & (each["parts"] <= 1)).all()) for each in (own, records))
    return _from_blocks(float(lost[0]), lost[1:].tolist(), int(own["samples"]), counted=steps)


def _from_blocks(whole: float, without: Sequence[float], count: int, counted: bool) -> Drop:
    """Return the jackknife drop: `whole` on all samples, `without` on all but one block each."""
    if not math.isfinite(whole):
        return Drop(math.inf, math.inf, count)
    blocks = len(without)
    pseudo = [blocks * whole - (blocks - 1) * value for value in without if math.isfinite(value)]
    spread = float(np.var(pseudo, ddof=1)) if len(pseudo) > 1 else 1.0
    return Drop(whole, spread / blocks * count + counted / count, count)


def _some(p: Predictions, keep: Array) -> Predictions:
    def part(values: Array | None) -> Array | None:
        return None if values is None else values[keep]

    return replace(p, truth=p.truth[keep], predicted=p.predicted[keep], sample=p.sample[keep], in_top=part(p.in_top),
                   log_prob=part(p.log_prob))  # fmt: skip


def _scale(values: Sequence[Array]) -> float:
    """Return the mean square of the finite elements of an output, at least TINY."""
    total = sum(float(np.square(v[np.isfinite(v)], dtype=np.float64).sum()) for v in values)
    return max(total / max(sum(v.size for v in values), 1), TINY)


def _damage(reference: Array, output: Array, scale: float, count: int, mixture: Mixture | None) -> Array:
    if not is_float(output.dtype) or not reference.size:
        return np.zeros(count)
    if reference.shape != output.shape:
        raise PruneError(
            f"an output of the model changes its size with the weights: {reference.shape} to {output.shape}",
            "export the model with what it is computed from as an output, one row per sample",
        )
    known = np.isfinite(reference)  # elements that are not numbers in the original cannot be compared
    a, b = (np.where(known, x, 0).astype(np.float64) for x in (reference, output))
    if a.ndim == 0 or len(a) != count:  # no row per sample: what the run changed, for each of its samples
        a, b = np.broadcast_to(a.reshape(1, -1), (count, a.size)), np.broadcast_to(b.reshape(1, -1), (count, b.size))
        rows = np.square(a - b).mean(axis=1) / scale
    elif known.all() and np.isfinite(b).all() and (scores := log_scores(a, b)) is not None:
        p, q = scores
        rows = (np.exp(p) * (p - q)).sum(axis=-1).reshape(count, -1).mean(axis=1)
    elif mixture is not None:  # each part by its own spread, so that scores count beside boxes
        rows = np.mean([np.square(x - y).reshape(count, -1).mean(axis=1) / max(float(np.square(x).mean()), TINY)
                        for x, y in mixture.parts(a, b)], axis=0)  # fmt: skip
    else:
        rows = np.square(a - b).reshape(count, -1).mean(axis=1) / scale
    return np.where(np.isfinite(rows), np.maximum(rows, 0.0), np.inf)
