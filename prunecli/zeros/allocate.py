"""How much of each layer goes: the same everywhere, by shape, or where it is measured to hurt least.

By measurement it is a knapsack: minimise the sum of the layers' losses E_l(s_l) over sparsities s_l with
sum n_l s_l = S n (as SPDY and OBC pose it). Losses fall steeply and smoothly with density, so curves through a few
measured points, straight in log density and log loss, made convex, are enough; weights go where each costs least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.masks.scopes import budget_of, erk_budgets

Array = np.ndarray[Any, Any]
DENSEST, SPAREST = 1.0, 0.01
_GRID = 200
_MOST = 700.0
"""Of the logarithm of a loss: what is extrapolated further has no exponential."""


@dataclass(frozen=True)
class LossCurve:
    """What a layer of `size` weights loses: at `densities` (fractions that remain, ascending or not) `losses`."""

    size: int
    densities: Sequence[float]
    losses: Sequence[float]

    def at(self, densities: Array) -> Array:
        """Losses at densities in (0, 1]: interpolated in the logarithms, extended with the slope of the ends, zero at
        1."""
        order = np.argsort(self.densities)
        x = np.log(np.asarray(self.densities, np.float64)[order])
        y = np.log(np.maximum(np.asarray(self.losses, np.float64)[order], 1e-300))
        y = np.minimum.accumulate(y)  # less that remains is never better: what says so is noise
        wanted = np.log(densities)
        found = np.interp(wanted, x, y)
        if len(x) > 1:
            for side, outside in ((0, wanted < x[0]), (-1, wanted > x[-1])):
                near = 1 if side == 0 else -2
                slope = (y[near] - y[side]) / (x[near] - x[side])
                found = np.where(outside, y[side] + slope * (wanted - x[side]), found)
        loss: Array = np.where(densities >= DENSEST, 0.0, np.exp(np.minimum(found, _MOST)))
        return loss


def uniform(sizes: Sequence[int], sparsity: float) -> list[int]:
    """round(S n_l) of every layer."""
    return [budget_of(size, sparsity) for size in sizes]


def erk(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], sparsity: float) -> list[int]:
    """Erdos-Renyi-kernel densities, round(S n) in all."""
    return erk_budgets(list(zip(shapes, sizes, strict=True)), sparsity)


def by_loss(curves: Sequence[LossCurve], sparsity: float) -> list[int]:
    """Weights to drop per layer, round(S n) in all, with the least sum of losses."""
    sizes = np.array([curve.size for curve in curves])
    budget = budget_of(int(sizes.sum()), sparsity)
    if budget in (0, int(sizes.sum())):
        return [int(size) if budget else 0 for size in sizes]
    densities = np.unique(np.concatenate([np.geomspace(SPAREST, DENSEST, _GRID), np.linspace(SPAREST, DENSEST, _GRID)]))
    sparsities = 1 - densities[::-1]
    slopes, amounts, layers = [], [], []
    for number, curve in enumerate(curves):
        x, y = _hull(sparsities * curve.size, curve.at(densities[::-1]))
        slopes.append(np.diff(y) / np.diff(x))
        amounts.append(np.diff(x))
        layers.append(np.full(len(x) - 1, number))
    order = np.argsort(np.concatenate(slopes), kind="stable")  # along each hull slopes rise: the cheapest first
    amount, layer = np.concatenate(amounts)[order], np.concatenate(layers)[order]
    taken = np.clip(budget - (np.cumsum(amount) - amount), 0, amount)
    drops = np.bincount(layer, taken, len(curves))
    return _exactly([min(int(n), int(d)) for d, n in zip(drops, sizes, strict=True)], sizes, budget)


def _hull(sparsities: Array, losses: Array) -> tuple[Array, Array]:
    """The lower convex hull of a curve, sparsities ascending."""
    kept: list[int] = []
    for i in range(len(sparsities)):
        while len(kept) > 1 and _above(sparsities, losses, kept[-2], kept[-1], i):
            kept.pop()
        kept.append(i)
    return sparsities[kept], losses[kept]


def _above(x: Array, y: Array, a: int, b: int, c: int) -> bool:
    return bool((y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a]))


def _exactly(drops: list[int], sizes: Array, budget: int) -> list[int]:
    """Make the counts add up to the budget, each layer changed in proportion to its room, the earlier first."""
    while (missing := budget - sum(drops)) != 0:
        room = [int(n) - d if missing > 0 else d for n, d in zip(sizes, drops, strict=True)]
        total = sum(room)
        for i, free in enumerate(room):
            step = min(-(-abs(missing) * free // total), free, abs(budget - sum(drops)))
            drops[i] += step if missing > 0 else -step
    return drops


def allocate(
    mode: str, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], curves: Sequence[LossCurve], sparsity: float
) -> list[int]:
    """Weights to drop per layer. `curves` are only read by `loss`."""
    if mode == "uniform":
        return uniform(sizes, sparsity)
    return erk(shapes, sizes, sparsity) if mode == "erk" else by_loss(curves, sparsity)


ALLOCATIONS: Mapping[str, str] = {
    "uniform": "every layer loses the same fraction",
    "erk": "small layers stay denser, by their shapes",
    "loss": "where it is measured to hurt the outputs least",
}
