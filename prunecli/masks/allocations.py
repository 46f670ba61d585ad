"""Allocations: from layers and a target to how many weights of each layer go.

    uniform   round(S n_l) of every layer
    erk       densities by the layers' shapes
    loss      where it is measured to hurt least: a knapsack over curves of losses
    predicted the same over curves that a graph neural network predicts from the file (`predicted/`)

Where all weights compete by their scores (scopes `global` and `lamp`) the allocation follows from the ranking.
To add one: a function of (layers, sparsity) with a decorator, and its row in the table of its test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunecli.arrays import Array
from prunecli.registry import Registry

DENSEST, SPAREST = 1.0, 0.01
_GRID = 200
_MOST = 700.0
"""Of the logarithm of a loss: what is extrapolated further has no exponential."""


@dataclass(frozen=True)
class LossCurve:
    """What a layer loses: at `densities` (fractions that remain, ascending or not) `losses`."""

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


@dataclass(frozen=True)
class LayerSize:
    """A layer as allocations see it. `weights`: that may go; `losses`: where they were measured."""

    shape: tuple[int, ...]
    weights: int
    losses: LossCurve | None = None


Losses = Literal["measured", "predicted"]
Amounts = Callable[[Sequence[LayerSize], float], list[int]]


@dataclass(frozen=True)
class AllocationRule:
    """`amounts`: (layers, sparsity) -> weights to drop per layer. `losses`: where those that it reads come from, None
    if it reads none."""

    name: str
    help: str
    amounts: Amounts
    losses: Losses | None = None


ALLOCATIONS: Registry[AllocationRule] = Registry("allocation")


def allocation(name: str, help: str, losses: Losses | None = None) -> Callable[[Amounts], Amounts]:
    """Register a function (layers, sparsity) -> weights to drop per layer."""

    def register(amounts: Amounts) -> Amounts:
        ALLOCATIONS.add(AllocationRule(name, help, amounts, losses=losses))
        return amounts

    return register


def budget_of(weights: int, sparsity: float) -> int:
    """round(sparsity * weights), to even at halves, as Python rounds."""
    return round(sparsity * weights)


@allocation("uniform", "every layer loses the same fraction")
def uniform(layers: Sequence[LayerSize], sparsity: float) -> list[int]:
    """round(S n_l) of every layer."""
    return [budget_of(layer.weights, sparsity) for layer in layers]


@allocation("erk", "small layers stay denser, by their shapes")
def erk(layers: Sequence[LayerSize], sparsity: float) -> list[int]:
    """Erdos-Renyi-kernel densities (Evci et al., Rigging the lottery, ICML 2020), round(S n) in all.

    Density d_l = min(1, e * sum(shape_l) / prod(shape_l)), with e such that sum(d_l * n_l) is what is to be
    kept; what a layer that is already dense cannot take goes to the others. Counts are rounded by largest
    remainder, the earlier layer first among equals.
    """
    counts = [layer.weights for layer in layers]
    keep = sum(counts) - budget_of(sum(counts), sparsity)
    shares = [sum(layer.shape) / max(1, math.prod(layer.shape)) * layer.weights for layer in layers]
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


@allocation("loss", "where it is measured to hurt the outputs least", losses="measured")
@allocation("predicted", "where it hurts the outputs least as a graph neural network predicts it", losses="predicted")
def by_loss(layers: Sequence[LayerSize], sparsity: float) -> list[int]:
    """round(S n) in all, with the least sum of losses E_l(s_l) over sparsities s_l with sum n_l s_l = S n (as SPDY and
    OBC pose it). Losses fall steeply and smoothly with density, so curves through a few measured points, straight in
    log density and log loss, made convex, are enough; weights go where each costs least."""
    sizes = np.array([layer.weights for layer in layers])
    budget = budget_of(int(sizes.sum()), sparsity)
    if budget in (0, int(sizes.sum())):
        return [int(size) if budget else 0 for size in sizes]
    densities = np.unique(np.concatenate([np.geomspace(SPAREST, DENSEST, _GRID), np.linspace(SPAREST, DENSEST, _GRID)]))
    sparsities = 1 - densities[::-1]
    slopes, amounts, owners = [], [], []
    for number, layer in enumerate(layers):
        assert layer.losses is not None
        x, y = sparsities * layer.weights, layer.losses.at(densities[::-1])
        corners = lower_hull(x, y)
        slopes.append(np.diff(y[corners]) / np.diff(x[corners]))
        amounts.append(np.diff(x[corners]))
        owners.append(np.full(len(corners) - 1, number))
    order = np.argsort(np.concatenate(slopes), kind="stable")  # along each hull slopes rise: the cheapest first
    amount, owner = np.concatenate(amounts)[order], np.concatenate(owners)[order]
    taken = np.clip(budget - (np.cumsum(amount) - amount), 0, amount)
    drops = np.bincount(owner, taken, len(layers))
    return _exactly([min(int(n), int(d)) for d, n in zip(drops, sizes, strict=True)], sizes, budget)


def lower_hull(x: Array, y: Array) -> list[int]:
    """Corners of the lower convex hull of the points (x, y), x rising."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1 and _is_above(x, y, corners[-2], b=corners[-1], c=i):
            corners.pop()
        corners.append(i)
    return corners


def _is_above(x: Array, y: Array, a: int, b: int, c: int) -> bool:
    """Whether point b does not lie below the line from a to c."""
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
