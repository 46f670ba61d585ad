"""Corruptions of the inputs, at severities scaled by the data's own spread. `@corruption` registers one.

The kinds for images come from Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations, ICLR 2019; the severities here are relative to the standard deviation, since
inputs arrive already normalised.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from prunecli.arrays import Array
from prunecli.data import Batch, Dataset
from prunecli.data.columns import is_float
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import MEASURES, FidelityCollector
from prunecli.evaluation.passes import MODEL, Runner, predict
from prunecli.evaluation.quality import METRICS, compute_metrics, primary
from prunecli.evaluation.reading import Reading
from prunecli.inputs import InputSpec
from prunecli.types import Json, Progress, no_progress

Kind = Literal["image", "table"]

STATISTICS_SAMPLES = 512
SAMPLES = 1000
"""Robustness is measured on at most this many samples: it takes a dozen passes per model."""


@dataclass(frozen=True)
class InputSpread:
    """Statistics of one input over the data, along `axis` (channels, or features): each broadcasts against a
    batch."""

    kind: Kind
    axis: int
    mean: Array
    std: Array
    low: Array
    high: Array


class Corrupt(Protocol):
    """Returns inputs (N, ...) with a corruption of that severity."""

    def __call__(self, x: Array, severity: float, rng: np.random.Generator, spread: InputSpread) -> Array: ...


@dataclass(frozen=True)
class Corruption:
    """`apply(x, severity, rng, spread)` returns a corrupted float64 copy; severities from mild to strong."""

    name: str
    kind: Kind
    severities: tuple[float, ...]
    unit: str
    apply: Corrupt


CORRUPTIONS: dict[str, Corruption] = {}


def corruption(name: str, kind: Kind, severities: Sequence[float], unit: str) -> Callable[[Corrupt], Corrupt]:
    """Register a corruption of images or of tables (anything else with a last axis of features)."""

    def add(apply: Corrupt) -> Corrupt:
        CORRUPTIONS[name] = Corruption(name, kind, tuple(severities), unit=unit, apply=apply)
        return apply

    return add


@corruption("feature_noise", "table", (0.1, 0.25, 0.5), unit="standard deviations")
@corruption("gaussian_noise", "image", (0.1, 0.25, 0.5), unit="standard deviations")
def gaussian_noise(x: Array, severity: float, rng: np.random.Generator, spread: InputSpread) -> Array:
    """x + severity * std * n, n standard normal, std per channel or feature."""
    return np.asarray(x + severity * spread.std * rng.standard_normal(x.shape))


@corruption("salt_and_pepper", "image", (0.01, 0.05, 0.1), unit="fraction of pixels")
def salt_and_pepper(x: Array, severity: float, rng: np.random.Generator, spread: InputSpread) -> Array:
    """That fraction of the pixels becomes the channel's lowest or highest value in the data; all channels of
    a pixel together."""
    shape = tuple(1 if axis == spread.axis else size for axis, size in enumerate(x.shape))
    hit, salt = rng.random(shape) < severity, rng.random(shape) < 0.5
    return np.where(hit, np.where(salt, spread.high, spread.low), x)


@corruption("blur", "image", (0.5, 1.0, 2.0), unit="pixels (sigma)")
def blur(x: Array, severity: float, rng: np.random.Generator, spread: InputSpread) -> Array:
    """Convolution with a Gaussian of that standard deviation, cut off at three; border pixels repeat outwards."""
    from scipy.ndimage import gaussian_filter1d

    for axis in (a for a in range(1, x.ndim) if a != spread.axis):
        x = np.asarray(gaussian_filter1d(x, severity, axis, mode="nearest", radius=int(np.ceil(3 * severity))))
    return x


@corruption("contrast", "image", (0.25, 0.5, 0.75), unit="fraction removed")
def contrast(x: Array, severity: float, rng: np.random.Generator, spread: InputSpread) -> Array:
    """mean + (1 - severity) (x - mean), with the mean of each image and channel."""
    axes = tuple(a for a in range(1, x.ndim) if a != spread.axis)
    mean = x.mean(axis=axes, keepdims=True)
    return np.asarray(mean + (1 - severity) * (x - mean))


@corruption("feature_outliers", "table", (0.01, 0.05, 0.1), unit="fraction of values")
def feature_outliers(x: Array, severity: float, rng: np.random.Generator, spread: InputSpread) -> Array:
    """That fraction of the values becomes its feature's mean plus or minus five standard deviations."""
    hit, sign = rng.random(x.shape) < severity, np.where(rng.random(x.shape) < 0.5, -5.0, 5.0)
    return np.where(hit, spread.mean + sign * spread.std, x)


def channel_axis(shape: Sequence[int | str | None]) -> int | None:
    """The channel axis of an image-like input (rank 4 with 1, 3 or 4 channels first or last), else None."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in (1, 3, 4)), None)


def is_image(value: Array) -> bool:
    """Whether an input is like images: floating-point, with four axes."""
    return value.ndim == 4 and np.issubdtype(value.dtype, np.floating)


def spreads(data: Dataset, batch_size: int) -> dict[str, InputSpread]:
    """Statistics of every floating-point input with a feature axis, over the first samples."""
    batches = list(data.take(STATISTICS_SAMPLES).batches(batch_size))
    found = {}
    for spec in data.specs:
        if data.axes.get(spec.name):
            continue  # a state, not what is observed
        values = [b.feed[spec.name][: b.count] for b in batches]
        if _can_corrupt(spec, values[0]) and len({v.shape[1:] for v in values}) == 1:
            found[spec.name] = _spread(np.concatenate(values).astype(np.float64))
    return found


def _can_corrupt(spec: InputSpec, value: Array) -> bool:
    return spec.is_float and is_float(value.dtype) and value.ndim >= 2


def _spread(values: Array) -> InputSpread:
    image = channel_axis(values.shape)
    axis = values.ndim - 1 if image is None else image
    axes = tuple(a for a in range(values.ndim) if a != axis)
    figures = (f(values, axis=axes, keepdims=True) for f in (np.mean, np.std, np.min, np.max))
    return InputSpread("table" if image is None else "image", axis, *figures)


def settings(found: Mapping[str, InputSpread]) -> list[tuple[Corruption, float]]:
    """Every (corruption, severity) that applies to one of the inputs."""
    kinds = {spread.kind for spread in found.values()}
    return [(c, s) for c in CORRUPTIONS.values() if c.kind in kinds for s in c.severities]


def corrupted(
    batches: Iterator[Batch], chosen: Corruption, severity: float, found: Mapping[str, InputSpread], seed: int
) -> Iterator[Batch]:
    """The same batches with corrupted inputs; one seed means one noise, whichever model sees it."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{chosen.name}:{severity}".encode())])
    for batch in batches:
        feed = dict(batch.feed)
        for name, spread in found.items():
            if spread.kind == chosen.kind:
                value = feed[name]
                changed = chosen.apply(value.astype(np.float64), severity, rng, spread=spread)
                feed[name] = changed.astype(value.dtype)
        yield replace(batch, feed=feed)


AGREEMENT: tuple[str, ...] = ("top1_agreement", "cosine")
"""Measured without labels: the first that has a meaning for the output."""


@dataclass(frozen=True)
class StressRow:
    """Quality under one corruption, by role. `loss`: how much worse it is than on clean data; negative: better."""

    corruption: str
    severity: float
    unit: str
    values: Mapping[str, float]
    loss: Mapping[str, float]


@dataclass(frozen=True)
class Stress:
    """`metric`: what the values are; "top1_agreement" and "cosine" are with the model's own clean outputs."""

    metric: str
    samples: int
    clean: Mapping[str, float]
    rows: list[StressRow]

    @property
    def change(self) -> str:
        """What the contract calls a loss of this metric: drop, or rise for errors."""
        return METRICS[self.metric].change if self.metric in METRICS else "drop"

    @property
    def span(self) -> tuple[float, float]:
        """The least and the most that the metric can be."""
        return (METRICS.get(self.metric) or MEASURES[self.metric]).span

    def to_json(self) -> Json:
        rows = [
            {"corruption": r.corruption, "severity": r.severity, "unit": r.unit, **r.values,
             **{self.change if role == MODEL else f"{role}_{self.change}": x for role, x in r.loss.items()}}
            for r in self.rows
        ]  # fmt: skip
        return {"metric": self.metric, "samples": self.samples, "clean": dict(self.clean), "rows": rows}

    def worst(self, name: str = "") -> float:
        """The model's largest loss over all corruptions, or over all severities of one."""
        return max(r.loss[MODEL] for r in self.rows if name in ("", r.corruption))


def measure_stress(
    runners: Mapping[str, Runner],
    data: Dataset,
    reading: Reading | None,
    *,
    batch_size: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Stress:
    """Every registered corruption that suits the inputs, at each severity, on the first 1000 samples. All models see
    the same corrupted inputs. Without labels (`reading` None): agreement with the model's own clean outputs.

    Raises:
        PruneError: no input is a floating-point tensor with a feature axis, or there is no agreement to measure.
    """
    data = data.take(SAMPLES)
    found = spreads(data, batch_size)
    if not found:
        inputs = ", ".join(s.describe() for s in data.specs)
        hint = "robustness needs images or tables of floats; leave it out"
        raise PruneError(f"no input can be corrupted: {inputs}", hint)

    def scores(runner: Runner, batches: Iterator[Batch]) -> Mapping[str, float | None]:
        if reading is None:
            return _agreement(runner, data.batches(batch_size), batches)
        return compute_metrics(predict(runner, batches, reading))

    if reading is None:
        names, sign, clean = AGREEMENT, 1, dict.fromkeys(runners, 1.0)
    else:
        names, sign = (primary(reading),), METRICS[primary(reading)].sign
        clean = {role: float(scores(each, data.batches(batch_size))[names[0]] or 0) for role, each in runners.items()}
    tried = [
        (chosen, severity, {
            role: scores(runner, corrupted(data.batches(batch_size), chosen, severity, found=found, seed=seed))
            for role, runner in runners.items()
        })
        for chosen, severity in progress(settings(found), "corrupting inputs", len(settings(found)))
    ]  # fmt: skip
    name = _defined(names, [each for _, _, by_role in tried for each in by_role.values()])
    rows = []
    for chosen, severity, by_role in tried:
        values = {role: float(each[name] or 0.0) for role, each in by_role.items()}
        loss = {role: sign * (clean[role] - value) for role, value in values.items()}
        rows.append(StressRow(chosen.name, severity, chosen.unit, values=values, loss=loss))
    return Stress(name, len(data), clean, rows=rows)


def _defined(names: Sequence[str], scores: Sequence[Mapping[str, float | None]]) -> str:
    """The first of the names that has a meaning everywhere."""
    for name in names:
        if all(each[name] is not None for each in scores):
            return name
    raise PruneError("the output is one number per sample, or boxes: there is no agreement to measure",
                     "give labels, or choose another output with --output-name")  # fmt: skip


def _agreement(runner: Runner, clean: Iterator[Batch], noisy: Iterator[Batch]) -> Mapping[str, float | None]:
    collector = FidelityCollector(heads=runner.heads)
    for a, b in zip(clean, noisy, strict=True):
        collector.add(runner.run(a), runner.run(b), a.count)
    result = collector.result("clean")
    if result is None:
        raise PruneError("the model has no numeric output to compare", "give labels")
    return result.short()
