"""Scopes: which units compete with each other, and so how sparsity spreads over the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunecli.masks.lamp import lowest_lamp
from prunecli.masks.stream import CutPoint, ScoreSource, lowest
from prunecli.registry import Registry
from prunecli.types import Progress, no_progress

Cutter = Callable[[Sequence[ScoreSource], float, Progress], list[CutPoint]]


@dataclass(frozen=True)
class Scope:
    """A named scope. `cuts` says what goes from every source; it is None if the pools lie inside tensors."""

    name: str
    help: str
    cuts: Cutter | None


SCOPES: Registry[Scope] = Registry("scope")


def scope(name: str, help: str) -> Callable[[Cutter], Cutter]:
    """Register a function (sources, sparsity, progress) -> one Cut per source."""

    def register(cuts: Cutter) -> Cutter:
        SCOPES.add(Scope(name, help, cuts))
        return cuts

    return register


def budget_of(weights: int, sparsity: float) -> int:
    """round(sparsity * weights), to even at halves, as Python rounds."""
    return round(sparsity * weights)


def _total(sources: Sequence[ScoreSource]) -> int:
    return sum(source.weights for source in sources)


@scope("layer", "every weight tensor loses the same fraction")
def layer(sources: Sequence[ScoreSource], sparsity: float, progress: Progress = no_progress) -> list[CutPoint]:
    """round(S * n) weights of each tensor go."""
    return [
        lowest([source], budget_of(source.weights, sparsity))[0]
        for source in progress(sources, "choosing", len(sources))
    ]


SCOPES.add(Scope("row", "every row (neuron, filter) loses the same fraction", None))


@scope("global", "all weights of the model compete")
def whole_model(sources: Sequence[ScoreSource], sparsity: float, progress: Progress = no_progress) -> list[CutPoint]:
    """round(S * n) weights of the whole model go: the lowest scores, wherever they are."""
    return lowest(sources, budget_of(_total(sources), sparsity), progress)


@scope("lamp", "all compete by LAMP: w^2 over the sum of the squares not below it in its tensor")
def lamp(sources: Sequence[ScoreSource], sparsity: float, progress: Progress = no_progress) -> list[CutPoint]:
    """round(S * n) weights of the whole model go: the lowest LAMP scores (Lee et al., ICLR 2021)."""
    return lowest_lamp(sources, budget_of(_total(sources), sparsity), progress)


@scope("erk", "layer densities follow sum(shape) / prod(shape), so that small layers stay denser")
def erk(sources: Sequence[ScoreSource], sparsity: float, progress: Progress = no_progress) -> list[CutPoint]:
    """Erdos-Renyi-kernel densities (Evci et al., Rigging the lottery, ICML 2020), round(S * n) in all."""
    budgets = erk_budgets([(source.shape, source.weights) for source in sources], sparsity)
    pairs = list(zip(sources, budgets, strict=True))
    return [lowest([source], budget)[0] for source, budget in progress(pairs, "choosing", len(pairs))]


def erk_budgets(tensors: Sequence[tuple[tuple[int, ...], int]], sparsity: float) -> list[int]:
    """Weights to drop per tensor of (shape, weights), with an exact total of round(S * n).

    Density d_l = min(1, e * sum(shape_l) / prod(shape_l)), with e such that sum(d_l * n_l) is what is to be
    kept; what a tensor that is already dense cannot take goes to the others. Counts are rounded by largest
    remainder, the earlier tensor first among equals.
    """
    counts = [weights for _, weights in tensors]
    keep = sum(counts) - budget_of(sum(counts), sparsity)
    shares = [sum(shape) / max(1, math.prod(shape)) * count for shape, count in tensors]
    wanted = _fill(shares, counts, keep)
    kept = [min(count, int(want)) for want, count in zip(wanted, counts, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: (kept[i] - wanted[i], i))
    while (short := keep - sum(kept)) > 0:
        for i in [i for i in by_remainder if kept[i] < counts[i]][:short]:
            kept[i] += 1
    return [count - left for count, left in zip(counts, kept, strict=True)]


def _fill(shares: list[float], limits: list[int], amount: int) -> list[float]:
    """Divide an amount in proportion to the shares, none above its limit."""
    full: set[int] = set()
    while True:
        rest = amount - sum(limits[i] for i in full)
        scale = rest / (sum(share for i, share in enumerate(shares) if i not in full) or 1.0)
        over = {i for i, share in enumerate(shares) if i not in full and share * scale > limits[i]}
        if not over:
            return [float(limits[i]) if i in full else share * scale for i, share in enumerate(shares)]
        full |= over
