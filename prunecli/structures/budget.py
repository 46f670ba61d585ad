"""Choosing units under a budget: rank them, cut the lowest, and hit the target by the exact cost of what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Cost = Callable[[Mask], float]
"""What remains when the masked units are gone; never larger for more units."""


@dataclass(frozen=True)
class UnitPool:
    """Units `first .. first + count - 1`, which stay in the order of their scores.

    limit: most units that may go. multiple: the count that stays is a multiple of it (where that leaves more
    than nothing), so units go in bundles.
    """

    first: int
    count: int
    limit: int
    multiple: int = 1


@dataclass(frozen=True)
class Bundles:
    """What goes at once: bundle b is `units[start[b]:start[b + 1]]` with the score `score[b]` and belongs to pool
    `pool[b]`; a pool's bundles are listed lowest first, with scores that never fall."""

    units: Array
    start: Array
    score: Array
    pool: Array

    def __len__(self) -> int:
        return len(self.score)

    def mask(self, chosen: Array, total: int) -> Mask:
        """The units of the chosen bundles."""
        out = np.zeros(total, bool)
        for bundle in np.asarray(chosen).tolist():
            out[self.units[self.start[bundle] : self.start[bundle + 1]]] = True
        return out

    @property
    def sizes(self) -> Array:
        return np.diff(self.start)


def bundle(pools: Sequence[UnitPool], scores: Array) -> Bundles:
    """Bundles of every pool, by score; equal scores: the later unit goes first, as in all selection here."""
    units: list[Array] = []
    score: list[float] = []
    owner: list[int] = []
    for number, pool in enumerate(pools):
        own = scores[pool.first : pool.first + pool.count]
        order = pool.first + np.lexsort((-np.arange(pool.count), own))
        highest, at = -np.inf, 0
        while (size := _next(pool, at)) and at + size <= pool.limit:
            part = order[at : at + size]
            highest = max(highest, float(scores[part].mean()))
            units.append(part)
            score.append(highest)
            owner.append(number)
            at += size
    start = np.cumsum([0, *(len(part) for part in units)])
    flat = np.concatenate(units) if units else np.zeros(0, np.int64)
    return Bundles(flat, start, np.array(score, float), np.array(owner, np.int64))


def _next(pool: UnitPool, gone: int) -> int:
    """Units of the next bundle: so many that a multiple stays."""
    left = pool.count - gone
    return left % pool.multiple or pool.multiple


def by_ratio(pools: Sequence[UnitPool], bundles: Bundles, ratio: float, everywhere: bool) -> Array:
    """Bundles for a fraction of the units: of each pool, or of all together, lowest scores first.

    Exactly round(ratio * units) go where bundles are single units and no limit stands against it; never more.
    """
    if everywhere:
        return _first_that_fit(bundles, np.argsort(bundles.score, kind="stable"), ratio, sum(p.count for p in pools))
    return np.concatenate([
        _first_that_fit(bundles, np.flatnonzero(bundles.pool == number), ratio, pool.count)
        for number, pool in enumerate(pools)
    ]) if pools else np.zeros(0, np.int64)  # fmt: skip


def _first_that_fit(bundles: Bundles, order: Array, ratio: float, count: int) -> Array:
    quota = int(np.floor(ratio * count + 0.5))
    return order[np.cumsum(bundles.sizes[order]) <= quota]


def by_cost(bundles: Bundles, order: Array, cost: Cost, target: float, total: int) -> Array:
    """Bundles whose removal costs at most the target, and as little below it as exchanging the last ones gets.

    The shortest prefix of `order` that meets the target overshoots by its last bundle; where that is a large one,
    smaller ones from further on take its place. What the budget does not need is given back.

    Args:
        order: bundles from the first to go to the last; those of a pool in their own order.
        cost: exact; called some log2(len(order)) + 3 * TRIES times.
    """

    def left(chosen: list[int]) -> float:
        return cost(bundles.mask(np.array(chosen, np.int64), total))

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(order[:middle].tolist()) <= target else (middle + 1, high)
    ranked = order.tolist()
    ways = [ranked[:low]]
    ways += [way for skipped in range(max(low - SKIPS, 0), low)
             if (way := _without(bundles, ranked, skipped, left, target)) is not None]  # fmt: skip
    ways = [_give_back(bundles, way, left, target) for way in ways]
    return np.array(max(ways, key=left), np.int64)


SKIPS = 3
"""How many of the last bundles of the prefix are left out by turns, for a closer fit."""
TRIES = 32
"""How many bundles around the end of the prefix are looked at for a closer fit."""


def _without(
    bundles: Bundles, ranked: list[int], skipped: int, left: Callable[[list[int]], float], target: float
) -> list[int] | None:
    """The prefix without one bundle and its pool's later ones, filled up from the bundles after it; None if that
    does not suffice."""
    chosen, closed = ranked[:skipped], {int(bundles.pool[ranked[skipped]])}
    for candidate in ranked[skipped + 1 : skipped + 1 + TRIES]:
        if int(bundles.pool[candidate]) not in closed:
            chosen = [*chosen, candidate]
            if left(chosen) <= target:
                return chosen
    return None


def _give_back(bundles: Bundles, chosen: list[int], left: Callable[[list[int]], float], target: float) -> list[int]:
    """Return what the budget does not need: from the most important down, the last bundle of its pool only."""
    kept = chosen
    for candidate in chosen[-2 : -TRIES - 2 : -1]:
        later = kept[kept.index(candidate) + 1 :]
        if all(bundles.pool[b] != bundles.pool[candidate] for b in later):
            fewer = [b for b in kept if b != candidate]
            kept = fewer if left(fewer) <= target else kept
    return kept


def interleaved(pools: Sequence[UnitPool], bundles: Bundles) -> Array:
    """An order in which all pools shrink in step: by the fraction of the pool that is gone after each bundle."""
    gone = np.zeros(len(bundles))
    for number, pool in enumerate(pools):
        mine = np.flatnonzero(bundles.pool == number)
        gone[mine] = np.cumsum(bundles.sizes[mine]) / pool.count
    return np.lexsort((bundles.score, gone))
