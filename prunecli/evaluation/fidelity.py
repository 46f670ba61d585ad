"""Fidelity: how close one model's outputs are to another's on the same inputs, without any labels.

`@measure` registers one; each sees batches and keeps only sums, so data of any size streams through.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from prunecli.data.columns import is_float
from prunecli.errors import PruneError

Array = np.ndarray[Any, Any]


class Measure(ABC):
    """`add` takes the reference and the other output of one batch, float64 and of equal shape."""

    @abstractmethod
    def add(self, reference: Array, other: Array) -> None: ...

    @abstractmethod
    def value(self) -> float | None:
        """None where the measure has no meaning for this output; NaN if an output held NaN."""


M = TypeVar("M", bound=type[Measure])
MEASURES: dict[str, type[Measure]] = {}
BOXES = 8
"""Rows of four numbers that must all look like boxes to be taken for such: scores of four classes may, by chance."""
BETTER_HIGH = {"top1_agreement": True, "cosine": True, "max_abs": False, "max_rel": False, "snr_db": True}
SPANS = {
    "top1_agreement": (0, 1), "cosine": (-1, 1), "max_abs": (0, math.inf), "max_rel": (0, math.inf),
    "snr_db": (-math.inf, math.inf),
}  # fmt: skip
"""The least and the most that each can be."""


def measure(name: str) -> Callable[[M], M]:
    def add(cls: M) -> M:
        MEASURES[name] = cls
        return cls

    return add


def same_place(reference: Array, other: Array) -> Array:
    """Per position, whether both have their largest value at the same place, along the last axis (axis 1 for images, of
    rank 4 and more). Without a sample axis, or with one class, there is no position."""
    axis = 1 if reference.ndim >= 4 else reference.ndim - 1
    if reference.ndim < 2 or reference.shape[axis] < 2:
        return np.zeros(0, bool)
    return np.asarray((reference.argmax(axis) == other.argmax(axis)) & ~np.isnan(other).any(axis))


def cosines(reference: Array, other: Array) -> Array:
    """Per sample <a, b> / (|a| |b|), each sample's output as one vector; equal vectors give exactly 1, two zero vectors
    too, a zero vector and another 0."""
    rows = len(reference) if reference.ndim else 1
    a, b = reference.reshape(rows, -1), other.reshape(rows, -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    equal = (a == b).all(axis=1)  # exactly 1, which rounding would miss, also for two zero vectors
    return np.clip(np.where(equal, 1.0, np.divide(dots, norms, out=np.zeros_like(dots), where=norms != 0)), -1, 1)


def are_boxes(output: Array) -> bool:
    """Whether rows of four numbers are corners in order, or a centre and a size, throughout, and not probabilities."""
    if output.ndim < 2 or output.shape[-1] != 4:
        return False
    corners = (output[..., 2:] >= output[..., :2]).all()
    return bool((corners or (output >= 0).all()) and (np.abs(output.sum(axis=-1) - 1) > 1e-3).all())


def is_single(output: Array) -> bool:
    """Whether an output is one number per sample."""
    return output.ndim == 0 or output.size == len(output)


class Mean(Measure):
    """The mean of a measure over its parts; None for boxes, whose values are no directions and no scores."""

    def __init__(self) -> None:
        self.total, self.count, self.boxes = 0.0, 0, 0.0

    def see(self, reference: Array, parts: Array) -> None:
        self.total += float(parts.sum())
        self.count += parts.size
        self.boxes += reference.size / 4 if are_boxes(reference) else -math.inf  # one batch of none decides

    def value(self) -> float | None:
        return self.total / self.count if self.count and self.boxes < BOXES else None


@measure("top1_agreement")
class Top1Agreement(Mean):
    """Mean of `same_place`: no meaning without class scores."""

    def add(self, reference: Array, other: Array) -> None:
        self.see(reference, same_place(reference, other))


@measure("cosine")
class Cosine(Mean):
    """Mean of `cosines`: of one number per sample that would be its sign, so it has no meaning there."""

    def add(self, reference: Array, other: Array) -> None:
        self.see(reference, np.zeros(0) if is_single(reference) else cosines(reference, other))


@measure("max_abs")
class MaxAbs(Measure):
    """The largest absolute difference of two corresponding values."""

    def __init__(self) -> None:
        self.largest: float | None = None

    def add(self, reference: Array, other: Array) -> None:
        if reference.size:
            self.largest = _nan_max(self.largest, float(np.abs(_difference(reference, other)).max()))

    def value(self) -> float | None:
        return self.largest


@measure("max_rel")
class MaxRel(Measure):
    """The largest absolute difference over the largest magnitude of the reference; 0 if both are all zero."""

    def __init__(self) -> None:
        self.difference: float | None = None
        self.magnitude = 0.0

    def add(self, reference: Array, other: Array) -> None:
        if reference.size:
            largest = float(np.abs(_difference(reference, other)).max())
            self.difference = _nan_max(self.difference, largest)
            self.magnitude = max(self.magnitude, float(np.abs(reference).max()))

    def value(self) -> float | None:
        if not self.difference:
            return self.difference
        return self.difference / self.magnitude if self.magnitude else math.inf


@measure("snr_db")
class Snr(Measure):
    """10 log10(sum of squares of the reference / sum of squares of the difference), in decibels; infinite for
    equal outputs (null in JSON)."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.seen = False

    def add(self, reference: Array, other: Array) -> None:
        self.seen |= bool(reference.size)
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(_difference(reference, other)).sum())

    def value(self) -> float | None:
        if not self.seen or math.isnan(self.noise):
            return math.nan if self.seen else None
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


def _difference(reference: Array, other: Array) -> Array:
    """Equal values differ by 0, infinities too."""
    return np.where(reference == other, 0.0, reference - other)


def _nan_max(old: float | None, new: float) -> float:
    if old is None or math.isnan(new):
        return new
    return old if math.isnan(old) else max(old, new)


@dataclass(frozen=True)
class Fidelity:
    """Measures per output, in the order of the reference's outputs. `main` is the output that the short names
    (`cosine`, `snr_db`, ...) speak of. `reference`: what the outputs were compared with."""

    outputs: Mapping[str, Mapping[str, float | None]]
    main: str
    samples: int
    reference: str
    inputs: str = ""
    skipped: Sequence[str] = ()
    alike: bool = True
    """Whether every output that is not of numbers is the same in both."""

    def short(self) -> dict[str, float | None]:
        return dict(self.outputs[self.main])

    def worst(self) -> dict[str, float | None]:
        """Each measure at its worst over the outputs; NaN is the worst of all."""
        found: dict[str, float | None] = {}
        for name in MEASURES:
            values = [m[name] for m in self.outputs.values() if m.get(name) is not None]
            known = [v for v in values if v is not None]
            nan = any(math.isnan(v) for v in known)
            pick = min if BETTER_HIGH[name] else max
            found[name] = None if not known else math.nan if nan else pick(known)
        return found


@dataclass
class FidelityCollector:
    """Takes the outputs of both models batch by batch."""

    names: Sequence[str] = tuple(MEASURES)
    main: str | None = None
    _measures: dict[str, dict[str, Measure]] = field(default_factory=dict)
    _skipped: dict[str, str] = field(default_factory=dict)
    _samples: int = 0
    _other: dict[str, tuple[int, int]] = field(default_factory=dict)
    _alike: bool = True

    def add(self, reference: Mapping[str, Any], other: Mapping[str, Any], count: int) -> None:
        """One batch of `count` samples.

        Raises:
            PruneError: an output has different shapes in the two models.
        """
        self._samples += count
        pairs = [pair for name, value in reference.items() for pair in _tensors(name, value, other.get(name))]
        for name, a, b in pairs:
            if not (_numeric(a) and _numeric(b)):
                self._compare_other(name, a, b)
                continue
            if a.shape != b.shape:
                raise PruneError(
                    f"the output {name} is {a.shape} in one model and {b.shape} in the other",
                    "only models whose outputs have the same shapes can be compared",
                )
            measures = self._measures.setdefault(name, {n: MEASURES[n]() for n in self.names})
            with np.errstate(all="ignore"):
                for each in measures.values():
                    each.add(a.astype(np.float64), b.astype(np.float64))

    def _compare_other(self, name: str, a: Any, b: Any) -> None:
        """Text is equal or not; of what is missing or of another kind nothing is known."""
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape):
            self._skipped[name], self._alike = f"not compared: {name} is not a tensor in both models", False
            return
        count, size = self._other.get(name, (0, 0))
        self._other[name] = count, size = count + int((a.astype(np.str_) != b.astype(np.str_)).sum()), size + a.size
        self._alike &= not count
        self._skipped[name] = f"{name} is text, of which {count} of {size} values differ"

    def result(self, reference: str, inputs: str = "") -> Fidelity | None:
        """None if no output could be compared."""
        if not self._measures:
            return None
        outputs = {n: {k: m.value() for k, m in each.items()} for n, each in self._measures.items()}
        main = self.main if self.main in outputs else next(iter(outputs))
        return Fidelity(
            outputs, main, self._samples, reference, inputs=inputs, skipped=[*self._skipped.values()], alike=self._alike
        )


def _tensors(name: str, reference: Any, other: Any) -> list[tuple[str, Any, Any]]:
    """(name, tensor, tensor) of an output: of a sequence one for each place, if both are as long."""
    if isinstance(reference, list) and isinstance(other, list) and len(reference) == len(other):
        places = enumerate(zip(reference, other, strict=True))
        return [pair for place, (a, b) in places for pair in _tensors(f"{name}[{place}]", a, b)]
    return [(name, reference, other)]


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind in "biuf" or is_float(value.dtype))
