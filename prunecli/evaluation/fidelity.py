"""Fidelity: how close one model's outputs are to another's on the same inputs, without any labels.

Only sums are kept of the batches, so data of any size streams through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.data.columns import is_float
from prunecli.errors import PruneError

Array = np.ndarray[Any, Any]

BOXES = 8
"""Rows of four numbers that must all look like boxes to be taken for such: scores of four classes may, by chance."""


@dataclass(frozen=True)
class FidelityMeasure:
    """A measure. `higher`: whether more is better. `span`: its least and its largest value."""

    higher: bool
    span: tuple[float, float]


MEASURES = {
    "top1_agreement": FidelityMeasure(True, (0, 1)),
    "cosine": FidelityMeasure(True, (-1, 1)),
    "max_abs": FidelityMeasure(False, (0, math.inf)),
    "max_rel": FidelityMeasure(False, (0, math.inf)),
    "snr_db": FidelityMeasure(True, (-math.inf, math.inf)),
}
"""By name, in the order of reports; what each is, `FidelitySums.values` says."""


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


@dataclass
class FidelitySums:
    """The sums over all batches that the measures of one output are computed from."""

    same: float = 0.0
    places: int = 0
    alike: float = 0.0
    vectors: int = 0
    boxes: float = 0.0
    values_seen: int = 0
    largest: float = 0.0
    magnitude: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, other: Array) -> None:
        """The reference and the other output of one batch, float64 and of equal shape."""
        same = same_place(reference, other)
        self.same, self.places = self.same + float(same.sum()), self.places + same.size
        if not is_single(reference):  # whose cosine would be its sign
            alike = cosines(reference, other)
            self.alike, self.vectors = self.alike + float(alike.sum()), self.vectors + alike.size
        self.boxes += reference.size / 4 if are_boxes(reference) else -math.inf  # one batch of none decides
        if reference.size:
            difference = np.where(reference == other, 0.0, reference - other)  # equal infinities differ by 0
            self.values_seen += reference.size
            self.largest = float(np.maximum(self.largest, np.abs(difference).max()))  # NaN stays
            self.magnitude = max(self.magnitude, float(np.abs(reference).max()))
            self.signal += float(np.square(reference).sum())
            self.noise += float(np.square(difference).sum())

    def values(self) -> dict[str, float | None]:
        """Every measure by name; None where it has no meaning for this output, NaN if an output held NaN.

        top1_agreement: mean of `same_place`. cosine: mean of `cosines`. Boxes have neither: their values are no scores
        and no directions. max_abs: the largest absolute difference of two corresponding values. max_rel: that over the
        largest magnitude of the reference; 0 if both are all zero. snr_db: 10 log10(sum of squares of the reference /
        sum of squares of the difference); infinite for equal outputs.
        """
        means = self.boxes < BOXES
        seen = self.values_seen > 0
        relative = self.largest / self.magnitude if self.magnitude else math.inf
        with np.errstate(all="ignore"):
            ratio = 10 * float(np.log10(np.float64(self.signal) / self.noise)) if self.noise else math.inf
        return {
            "top1_agreement": self.same / self.places if self.places and means else None,
            "cosine": self.alike / self.vectors if self.vectors and means else None,
            "max_abs": self.largest if seen else None,
            "max_rel": (relative if self.largest else 0.0) if seen else None,
            "snr_db": ratio if seen else None,
        }


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
        for name, measure in MEASURES.items():
            values = [m[name] for m in self.outputs.values() if m.get(name) is not None]
            known = [v for v in values if v is not None]
            nan = any(math.isnan(v) for v in known)
            pick = min if measure.higher else max
            found[name] = None if not known else math.nan if nan else pick(known)
        return found


@dataclass
class FidelityCollector:
    """Takes the outputs of both models batch by batch."""

    main: str | None = None
    _sums: dict[str, FidelitySums] = field(default_factory=dict)
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
            with np.errstate(all="ignore"):
                self._sums.setdefault(name, FidelitySums()).add(a.astype(np.float64), b.astype(np.float64))

    def _compare_other(self, name: str, a: Any, b: Any) -> None:
        """Count the texts that differ; values that are missing or of another kind are not compared."""
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape):
            self._skipped[name], self._alike = f"not compared: {name} is not a tensor in both models", False
            return
        count, size = self._other.get(name, (0, 0))
        self._other[name] = count, size = count + int((a.astype(np.str_) != b.astype(np.str_)).sum()), size + a.size
        self._alike &= not count
        self._skipped[name] = f"{name} is text, of which {count} of {size} values differ"

    def result(self, reference: str, inputs: str = "") -> Fidelity | None:
        """None if no output could be compared."""
        if not self._sums:
            return None
        outputs = {name: sums.values() for name, sums in self._sums.items()}
        main = self.main if self.main in outputs else next(iter(outputs))
        return Fidelity(
            outputs, main, self._samples, reference, inputs=inputs, skipped=[*self._skipped.values()], alike=self._alike
        )


def _tensors(name: str, reference: Any, other: Any) -> list[tuple[str, Any, Any]]:
    """Return (name, tensor, tensor) of an output; of two sequences of one length, one for each element."""
    if isinstance(reference, list) and isinstance(other, list) and len(reference) == len(other):
        places = enumerate(zip(reference, other, strict=True))
        return [pair for place, (a, b) in places for pair in _tensors(f"{name}[{place}]", a, b)]
    return [(name, reference, other)]


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind in "biuf" or is_float(value.dtype))
