"""Measure the distribution of |w|, weight by weight, and check whether weights follow an N:M pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.inspection.tensorrt import doubts
from prunecli.model import Weight
from prunecli.types import Progress, no_progress

FRACTIONS = (0.5, 0.7, 0.9)
PICTURE_BINS = 24
STEPS = 16
_CHUNK = 1 << 22
# Cells of the fine histogram: cell 0 holds zeros, cell k the values above edge k - 1 up to edge k; edge k is
# the float32 with the bits k << 14: steps of 1/512 of the value or finer.
_SHIFT = 14
_CELLS = (0x7F800000 >> _SHIFT) + 1


@dataclass(frozen=True)
class WeightSpread:
    """The distribution of |w| of one weight, exact to 0.2 %.

    largest: the largest value. quantiles: for each of FRACTIONS, the value below which that fraction lies. picture:
    counts in PICTURE_BINS equal bins from 0 to `largest`.
    """

    largest: float
    quantiles: tuple[float, ...]
    picture: tuple[int, ...]


@dataclass(frozen=True)
class Threshold:
    """A value for `prune magnitude --threshold`. `below`: the number of prunable weights that are zero afterwards;
    `sparsity`: their fraction; `wanted`: the fraction for which the value was chosen."""

    value: float
    below: int
    sparsity: float
    wanted: float | None = None


@dataclass
class Distribution:
    """The distribution of |w| over all prunable weights. `spreads`: by weight; `hints`: the thresholds that reach
    FRACTIONS; `steps`: the upper edges of the bins of a histogram, as thresholds."""

    spreads: dict[str, WeightSpread] = field(default_factory=dict)
    hints: list[Threshold] = field(default_factory=list)
    steps: list[Threshold] = field(default_factory=list)


def distribution(weights: Sequence[Weight], progress: Progress = no_progress) -> Distribution:
    """Measure the distribution in two passes: a fine histogram finds thresholds, then weights below each are counted.

    Raises:
        PruneError: a weight holds NaN or infinity.
    """
    result = Distribution()
    if not weights:
        return result
    total = np.zeros(_CELLS, np.int64)
    for weight in progress(weights, "measuring weights", len(weights)):
        cells = _cells(weight)
        result.spreads[weight.name] = _spread(cells)
        total += cells
    wanted = [_above(value) for value in _quantiles(total, FRACTIONS)]
    steps = _nice_steps(*_quantiles(total, (0.99, 1.0)))
    counts = _below(weights, [*wanted, *steps], progress)
    size = sum(weight.size for weight in weights)
    found = [Threshold(value, n, n / size) for value, n in zip([*wanted, *steps], counts.tolist(), strict=True)]
    result.hints = [
        Threshold(t.value, t.below, t.sparsity, wanted=f) for t, f in zip(found[: len(wanted)], FRACTIONS, strict=True)
    ]
    result.steps = found[len(wanted) :]
    return result


def _chunks(weight: Weight) -> Iterator[Array]:
    """Yield |w| in pieces, and release the mapping at the end."""
    flat = weight.array().reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield np.abs(flat[start : start + _CHUNK])
    weight.release()


def _cells(weight: Weight) -> Array:
    cells = np.zeros(_CELLS, np.int64)
    for chunk in _chunks(weight):
        if not np.isfinite(chunk.max()):
            raise PruneError(f"weight '{weight.name}' holds NaN or infinity", "repair or exclude it first")
        with np.errstate(over="ignore"):
            bits = chunk.astype(np.float32).view(np.uint32)
        cells += np.bincount((bits + np.uint32((1 << _SHIFT) - 1)) >> _SHIFT, minlength=_CELLS)
    return cells


def _edges(cells: Array) -> Array:
    """Return the upper edge of each cell of the histogram: the largest value in it."""
    values = (cells.astype(np.uint32) << np.uint32(_SHIFT)).view(np.float32)
    return np.minimum(values, np.finfo(np.float32).max).astype(np.float64)


def _quantiles(cells: Array, fractions: Sequence[float]) -> tuple[float, ...]:
    """Return, for each fraction, the smallest edge of a cell below which at least that fraction of the values lies."""
    cumulative = np.cumsum(cells)
    wanted = np.ceil(np.asarray(fractions) * cumulative[-1])
    return tuple(float(v) for v in _edges(np.searchsorted(cumulative, wanted)))


def _spread(cells: Array) -> WeightSpread:
    used = np.flatnonzero(cells)
    edges, largest = _edges(used), float(_edges(used[-1:])[0])
    width = largest / PICTURE_BINS or 1.0
    place = np.minimum((edges / width).astype(np.int64), PICTURE_BINS - 1)
    picture = np.bincount(place, weights=cells[used], minlength=PICTURE_BINS)
    return WeightSpread(largest, _quantiles(cells, FRACTIONS), tuple(int(n) for n in picture))


def _above(value: float) -> float:
    """Return the next larger number of four significant digits, for the user to type; 0 for 0."""
    if value == 0:
        return 0.0
    step = 10.0 ** (np.floor(np.log10(value)) - 3)
    return float(f"{(np.floor(value / step) + 1) * step:.4g}")


def _nice_steps(usual: float, largest: float) -> list[float]:
    """Return up to STEPS equally spaced edges that cover `usual`, then the largest value; the spacing is 1, 2 or 5
    times a power of ten."""
    raw = usual / STEPS
    if raw <= 0:
        return []
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    edges = [float(f"{step * (i + 1):.6g}") for i in range(int(np.ceil(usual / step)))]
    return [*edges, _above(largest)] if largest >= edges[-1] else edges


def _below(weights: Sequence[Weight], thresholds: Sequence[float], progress: Progress) -> Array:
    counts = np.zeros(len(thresholds), np.int64)
    for weight in progress(weights, "counting below thresholds", len(weights)):
        for chunk in _chunks(weight):
            zero = chunk == 0
            counts += [int(np.count_nonzero((chunk < chunk.dtype.type(t)) | zero)) for t in thresholds]
    return counts


@dataclass(frozen=True)
class PatternFit:
    """Whether a weight follows an N:M pattern along its reduction axis.

    windows: the fraction of windows that follow it; None if the axis does not divide by M, with the reason in `detail`.
    doubts: reasons for which TensorRT would not use the 2:4 pattern of the weight.
    """

    satisfied: bool
    windows: float | None
    detail: str = ""
    doubts: tuple[str, ...] = ()


def pattern_fit(weight: Weight, n: int, m: int) -> PatternFit:
    """Count the windows of M consecutive inputs (per output and kernel position) with at most N non-zeros."""
    cols = weight.layout.canonical_shape[3]
    if cols % m:
        return PatternFit(False, None, f"{cols} inputs do not divide by {m}")
    rows = weight.layout.canonical(weight.array())
    with np.errstate(invalid="ignore"):  # as in prunecli.model.sizes.count_nonzero
        nonzero = np.count_nonzero(rows.reshape(*rows.shape[:3], -1, m), axis=-1)
    good = int(np.count_nonzero(nonzero <= n))
    weight.release()
    follows = good == nonzero.size
    return PatternFit(follows, good / nonzero.size, doubts=doubts(weight) if follows and (n, m) == (2, 4) else ())
