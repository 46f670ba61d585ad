"""LAMP: layer-adaptive magnitude pruning (Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the
magnitude-based pruning, ICLR 2021), without sorting whole tensors.

With a tensor's scores sorted ascending, a_1 <= a_2 <= ...:

    lamp_i = a_i^2 / sum(a_j^2 for j >= i)

The units of lowest LAMP go, all tensors together. Within a tensor LAMP grows with the score, so what goes
is again a cut per tensor, found as in `stream`: a sample brackets it, one pass per tensor collects the keys
in the bracket and adds up the squares beyond it, and the LAMP of those collected is then exact (up to the
rounding of float64 sums).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.float_keys import values_of
from prunecli.masks.stream import EVERY, Bracket, Census, CutPoint, ScoreSource, lowest, sampled, survey
from prunecli.types import Progress, no_progress


@dataclass(frozen=True)
class Ranked:
    """The collected units of one source in the order in which they would go: keys, LAMP, weights."""

    census: Census
    bracket: Bracket
    keys: Array
    lamp: Array
    sizes: Array


def lowest_lamp(sources: Sequence[ScoreSource], budget: int, progress: Progress = no_progress) -> list[CutPoint]:
    """The cuts that drop the units of lowest LAMP, over all sources, while they fit the budget.

    Ties go as everywhere: the later source first, and in a source the later unit first.

    Args:
        sources: non-negative scores.
        budget: weights that may be dropped.

    Raises:
        PruneError: a score is NaN or infinite, or its square is.
    """
    total = sum(source.weights for source in sources)
    budget = min(budget, total)
    if not 0 < budget < total:
        return lowest(sources, budget, progress)
    samples, widening = sampled(sources, progress), 1
    while True:
        brackets = _brackets(sources, samples, budget / total, widening=widening)
        pairs = list(zip(sources, brackets, strict=True))
        found = [
            _ranked(survey(source, bracket, source.form, squares=True), bracket)
            for source, bracket in progress(pairs, "scoring", len(pairs))
        ]
        below = sum(one.census.below for one in found)
        if budget <= below and all(bracket.first == 1 for bracket in brackets):
            return lowest(sources, budget, progress)  # it ends among the zeros, whose LAMP is zero
        counts = _merge(found, budget - below)
        if counts is not None:
            return [_cut(one, count) for one, count in zip(found, counts, strict=True)]
        widening *= 8


def _brackets(sources: Sequence[ScoreSource], samples: list[Array], share: float, widening: int) -> list[Bracket]:
    """Where each source's cut must lie if the samples' LAMP quantile is right within its error."""
    scores, masses = [], []
    for source, sample in zip(sources, samples, strict=True):
        squares = np.square(values_of(sample, source.form))
        scores.append(_lamp(squares, 0.0))
        masses.append(np.full(sample.size, source.weights / max(sample.size, 1)))
    merged, mass = np.concatenate(scores), np.concatenate(masses)
    effective = mass.sum() ** 2 / np.dot(mass, mass)
    margin = widening * (4 * np.sqrt(share * (1 - share) / effective) + 4 / effective)
    order = np.argsort(merged, kind="stable")
    running = np.cumsum(mass[order]) / mass.sum()
    low, high = np.searchsorted(running, [share - margin, share + margin])
    bounds = (merged[order[low]] if low > 0 else -1.0, merged[order[high]] if high < order.size else 2.0)
    return [
        _bracket_of(source, sample, score, bounds=bounds, widening=widening)
        for source, sample, score in zip(sources, samples, scores, strict=True)
    ]


def _bracket_of(source: ScoreSource, sample: Array, lamp: Array, bounds: tuple[float, float], widening: int) -> Bracket:
    """The sample's keys between two LAMP values, and room for the error of its own ranks."""
    if source.size == sample.size or not sample.size:
        return Bracket(1, source.form.limit)
    low, high = int(np.searchsorted(lamp, bounds[0])), int(np.searchsorted(lamp, bounds[1], "right"))
    slack = widening * (2 * int(np.sqrt(sample.size)) + 4)
    low, high = low - slack, high + slack
    first = max(1, int(sample[low])) if low > 0 else 1
    return Bracket(first, max(first, int(sample[high]) + 1) if high < sample.size else source.form.limit)


def _lamp(squares: Array, beyond: float) -> Array:
    """LAMP of ascending squares, with the sum of those beyond them. Zeros score zero."""
    sums = np.cumsum(squares[::-1])[::-1] + beyond
    with np.errstate(invalid="ignore"):  # infinite in the sample: the survey will refuse it by name
        return np.divide(squares, sums, out=np.zeros_like(squares), where=squares > 0)


def _ranked(census: Census, bracket: Bracket) -> Ranked:
    sizes = np.broadcast_to(census.size, census.inside.shape)
    order = (census.inside.size - 1 - np.argsort(census.inside[::-1], kind="stable")).astype(np.intp)
    keys = census.inside[order]
    lamp = _lamp(np.square(values_of(keys, census.source.form)), census.above_squares)
    if not np.isfinite(lamp).all() or not np.isfinite(census.above_squares):
        raise PruneError(f"the squares of {census.source.name} overflow", "use --scope global for this model")
    return Ranked(census, bracket, keys, lamp=lamp, sizes=sizes[order])


def _merge(found: list[Ranked], budget: int) -> list[int] | None:
    """How many collected units go from each source; None if the brackets missed the cut."""
    backwards = found[::-1]
    lamp = np.concatenate([one.lamp for one in backwards])
    sizes = np.concatenate([one.sizes for one in backwards])
    owner = np.repeat(np.arange(len(found))[::-1], [one.keys.size for one in backwards])
    order = np.argsort(lamp, kind="stable")
    spent = np.cumsum(sizes[order])
    if not spent.size or not 0 < budget <= spent[-1]:
        return None
    edge = lamp[order[np.searchsorted(spent, budget)]]
    if not all(_covers(one, edge) for one in found):
        return None
    gone = order[: int(np.searchsorted(spent, budget, "right"))]
    return [int(count) for count in np.bincount(owner[gone], minlength=len(found))]


def _covers(one: Ranked, edge: float) -> bool:
    """Whether no unit outside the bracket is on the wrong side of the LAMP at which the budget ends."""
    zeros_only = one.bracket.first == 1
    low = zeros_only or (one.lamp.size > 0 and edge >= one.lamp[0])
    high = one.bracket.end == one.census.source.form.limit or (one.lamp.size > 0 and edge <= one.lamp[-1])
    return low and high


def _cut(one: Ranked, gone: int) -> CutPoint:
    dropped = one.census.below + int(one.sizes[:gone].sum())
    if not gone:
        return CutPoint(one.bracket.first, EVERY, dropped, nonzero=one.census.nonzero)
    key = one.keys[gone - 1]
    kept = int(np.count_nonzero(one.keys[gone:] == key))
    return CutPoint(int(key), kept, dropped, nonzero=one.census.nonzero)
