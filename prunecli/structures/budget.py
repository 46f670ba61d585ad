"""Choosing units under a budget: rank them, cut the lowest, and hit the target by the exact cost of what is left.

Where units go in steps of several, ranking leaves much on the table: `exchange` then trades steps between pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

import numpy as np

from prunecli.arrays import Array, Mask

Cost = Callable[[Mask], float]
"""The amount that remains without the masked units; never larger for more units."""


@dataclass(frozen=True)
class UnitPool:
    """Units `first .. first + widths[0] - 1`, which stay in the order of their scores.

    widths: numbers of them that may stay, from all of them down to the least, so units go in bundles.
    """

    first: int
    widths: Sequence[int]

    @property
    def count(self) -> int:
        return self.widths[0]

    @property
    def units(self) -> slice:
        return slice(self.first, self.first + self.count)

    def order(self, scores: Array) -> Array:
        """Its units in the order of removal: the lowest score first, of equal scores the later one."""
        return self.first + np.lexsort((-np.arange(self.count), scores[self.units]))


@dataclass(frozen=True)
class Bundles:
    """Units that are removed together: bundle b is `units[start[b]:start[b + 1]]` with the score `score[b]`, from pool
    `pool[b]`. The bundles of a pool are in the order of removal, with scores that never fall."""

    units: Array
    start: Array
    score: Array
    pool: Array

    def __len__(self) -> int:
        return len(self.score)

    def mask(self, chosen: Array, total: int) -> Mask:
        """Return the mask of the units in the chosen bundles."""
        out = np.zeros(total, bool)
        for bundle in np.asarray(chosen).tolist():
            out[self.units[self.start[bundle] : self.start[bundle + 1]]] = True
        return out

    @property
    def sizes(self) -> Array:
        return np.diff(self.start)


def bundle(pools: Sequence[UnitPool], scores: Array) -> Bundles:
    """Return the bundles of every pool, by score."""
    units: list[Array] = []
    score: list[float] = []
    owner: list[int] = []
    for number, pool in enumerate(pools):
        order, highest = pool.order(scores), -np.inf
        for before, after in pairwise(pool.widths):
            part = order[pool.count - before : pool.count - after]
            highest = max(highest, float(scores[part].mean()))
            units.append(part)
            score.append(highest)
            owner.append(number)
    start = np.cumsum([0, *(len(part) for part in units)])
    flat = np.concatenate(units) if units else np.zeros(0, np.int64)
    return Bundles(flat, start, np.array(score, float), pool=np.array(owner, np.int64))


def by_ratio(pools: Sequence[UnitPool], bundles: Bundles, ratio: float, everywhere: bool) -> Array:
    """Return bundles that hold a fraction of the units: of each pool, or of all together, lowest scores first.

    With bundles of single units and no limits, exactly round(ratio * units) are removed; never more.
    """
    if everywhere:
        return _first_that_fit(
            bundles, np.argsort(bundles.score, kind="stable"), ratio, count=sum(p.count for p in pools)
        )
    return np.concatenate([
        _first_that_fit(bundles, np.flatnonzero(bundles.pool == number), ratio, count=pool.count)
        for number, pool in enumerate(pools)
    ]) if pools else np.zeros(0, np.int64)  # fmt: skip


def _first_that_fit(bundles: Bundles, order: Array, ratio: float, count: int) -> Array:
    quota = int(np.floor(ratio * count + 0.5))
    return order[np.cumsum(bundles.sizes[order]) <= quota]


def by_cost(bundles: Bundles, order: Array, cost: Cost, target: float, total: int) -> Array:
    """Return bundles whose removal lowers the cost to the target or a little below.

    The shortest prefix of `order` that meets the target overshoots by its last bundle. If that one is large, smaller
    ones from later in the order replace it. Bundles that the budget does not need are dropped from the choice.

    Args:
        order: bundles in the order of removal; those of a pool in their own order.
        cost: exact; called about log2(len(order)) + 3 * TRIES times.
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
             if (way := _without(bundles, ranked, skipped, left=left, target=target)) is not None]  # fmt: skip
    ways = [_give_back(bundles, way, left, target=target) for way in ways]
    return np.array(max(ways, key=left), np.int64)


SKIPS = 3
"""Number of bundles at the end of the prefix that are left out in turn for a closer fit."""
TRIES = 32
"""Number of bundles around the end of the prefix that are tried for a closer fit."""


def _without(
    bundles: Bundles, ranked: list[int], skipped: int, left: Callable[[list[int]], float], target: float
) -> list[int] | None:
    """Return the prefix without one bundle and the later ones of its pool, filled up from the bundles after it; None if
    that does not reach the target."""
    chosen, closed = ranked[:skipped], {int(bundles.pool[ranked[skipped]])}
    for candidate in ranked[skipped + 1 : skipped + 1 + TRIES]:
        if int(bundles.pool[candidate]) not in closed:
            chosen = [*chosen, candidate]
            if left(chosen) <= target:
                return chosen
    return None


def _give_back(bundles: Bundles, chosen: list[int], left: Callable[[list[int]], float], target: float) -> list[int]:
    """Return the choice without bundles that the budget does not need, from the most important down; of a pool only its
    last bundle may stay after all."""
    kept = chosen
    for candidate in chosen[-2 : -TRIES - 2 : -1]:
        later = kept[kept.index(candidate) + 1 :]
        if all(bundles.pool[b] != bundles.pool[candidate] for b in later):
            fewer = [b for b in kept if b != candidate]
            kept = fewer if left(fewer) <= target else kept
    return kept


def interleaved(pools: Sequence[UnitPool], bundles: Bundles) -> Array:
    """Return an order in which all pools shrink by equal fractions."""
    gone = np.zeros(len(bundles))
    for number, pool in enumerate(pools):
        mine = np.flatnonzero(bundles.pool == number)
        gone[mine] = np.cumsum(bundles.sizes[mine]) / pool.count
    return np.lexsort((bundles.score, gone))


PARTNERS = 16
"""Most pools that a step of another pool is traded with."""
REACH = 2
"""Most steps that a pool is moved at once."""
FEW_CHOICES = 2048
"""Number of choices up to which all are tried if trades end too far from the target: networks of a few narrow layers
have no more."""
NEAR = 0.01
"""Relative distance below the target at which a cost meets it."""


@dataclass(frozen=True)
class BlockPools:
    """`pools`: those that are residual blocks, removed at index 1. `within`: (blocks, pools), the pools removed with
    each block, which then have no damage of their own. `damage`: of a mask over blocks, together."""

    pools: Array
    within: Array
    damage: Callable[[Array], float]


@dataclass(frozen=True)
class WidthProblem:
    """Choose an index into the widths of every pool. `damage[p][i]`: without the units that are removed at width i of
    pool p, never falling. `least`: the index that each pool has reached before. `cost`: what remains of the budgeted
    amount, never rising with any index. `time`: of a run, approximately. `target`: of the cost. `slack`: relative
    difference of damage below which two choices are equal, because it is not known better. `blocks`: pools that include
    others."""

    damage: Sequence[Array]
    least: Array
    cost: Callable[[Array], float]
    time: Callable[[Array], float]
    target: float
    slack: float
    blocks: BlockPools | None = None

    def total(self, state: Array) -> float:
        own = np.array([damage[index] for damage, index in zip(self.damage, state, strict=True)])
        if self.blocks is None or not (gone := state[self.blocks.pools] > 0).any():
            return float(sum(own))
        own[self.blocks.pools] = 0.0
        own[self.blocks.within[gone].any(axis=0)] = 0.0
        return float(sum(own)) + self.blocks.damage(gone)

    def short(self, state: Array) -> float:
        """Return by how much more than NEAR the cost is below the target, as a fraction of the target."""
        return max(0.0, 1 - NEAR - self.cost(state) / self.target)


Key = Callable[[Array], tuple[float, ...]]


def exchange(problem: WidthProblem, start: Array) -> Array:
    """Return the choice that meets the target most closely with the least damage that trades of steps between pairs of
    pools reach (with few choices: the best of all); among choices within the slack, the fastest.

    Args:
        start: a choice within the target.
    """
    nearest = _trade(problem, start, lambda state: (problem.short(state), problem.total(state)))
    nearest = _nearest_of_all(problem, nearest) if problem.short(nearest) else nearest
    short, most = problem.short(nearest), problem.total(nearest) * (1 + problem.slack)

    def faster(state: Array) -> tuple[float, ...]:
        total = problem.total(state)
        if total > most or problem.short(state) > short:  # so is nothing that is traded for it
            return (np.inf,)
        return (problem.time(state), total)

    return _trade(problem, nearest, faster)


def _nearest_of_all(problem: WidthProblem, found: Array) -> Array:
    """Return the choice closest to the target, and of such the one of least damage, where all pools but the one of most
    widths have few choices together: the cost determines its index. Otherwise return what was found."""
    indices = [range(int(low), len(own)) for low, own in zip(problem.least, problem.damage, strict=True)]
    last = max(range(len(indices)), key=lambda pool: len(indices[pool]))
    if prod(len(own) for pool, own in enumerate(indices) if pool != last) > FEW_CHOICES:
        return found
    states = []
    for each in product(*(own if pool != last else [-1] for pool, own in enumerate(indices))):
        state = _fitted(problem, np.array(each), last, low=indices[last].start)
        states += [] if state is None else [state]
    short = [problem.short(state) for state in states]
    best = min(short)
    return min((state for state, own in zip(states, short, strict=True) if own == best), key=problem.total)


def _trade(problem: WidthProblem, state: Array, key: Key) -> Array:
    """Apply moves that improve the key until none does."""
    best, improved = key(state), True
    while improved:
        improved, few = False, _partners(problem, state)
        for pool in range(len(state)):
            for other in _moves(problem, state, pool, partners=few):
                if (found := key(other)) < best:
                    state, best, improved = other, found, True
                    break
    return state


def _moves(problem: WidthProblem, state: Array, pool: int, partners: Sequence[int]) -> Iterator[Array]:
    """Yield states in which one pool moves a few steps, and another one moves back as far as the target allows, or on
    as far as it requires."""
    for index in range(state[pool] - REACH, state[pool] + REACH + 1):
        if index == state[pool] or not problem.least[pool] <= index < len(problem.damage[pool]):
            continue
        moved = state.copy()
        moved[pool] = index
        if fits := problem.cost(moved) <= problem.target:
            yield moved
        for partner in partners:
            low = int(problem.least[partner]) if fits else int(state[partner]) + 1
            if partner != pool and (found := _fitted(problem, moved, partner, low=low)) is not None:
                yield found
        if problem.blocks is not None and pool in problem.blocks.pools:
            yield _filled(problem, moved, pool)


def _filled(problem: WidthProblem, state: Array, pool: int) -> Array:
    """Return the state in which pools other than a block, which weighs as much as several, move back one after the
    other as far as the target allows, the most damaged first; or move on as far as it requires, the least damaged
    first."""
    assert problem.blocks is not None
    fits = problem.cost(state) <= problem.target
    harm = [float(own[index]) for own, index in zip(problem.damage, state, strict=True)]
    for other in sorted(range(len(state)), key=lambda number: -harm[number] if fits else harm[number]):
        if other == pool or other in problem.blocks.pools:
            continue
        moved = state.copy()
        moved[other] = problem.least[other] if fits else len(problem.damage[other]) - 1
        if (problem.cost(moved) <= problem.target) == fits:
            state = moved
            continue
        found = _fitted(problem, state, other, low=int(problem.least[other] if fits else state[other] + 1))
        state = state if found is None else found
        if not fits:
            break
    return state


def _fitted(problem: WidthProblem, state: Array, pool: int, low: int) -> Array | None:
    """Return the state with the lowest index of one pool, from `low` on, that meets the target; None if that is the
    present state or no index does."""
    high, state = len(problem.damage[pool]), state.copy()
    present = int(state[pool])
    end = high
    while low < high:
        state[pool] = middle = (low + high) // 2
        low, high = (low, middle) if problem.cost(state) <= problem.target else (middle + 1, high)
    state[pool] = low
    return None if low in (end, present) else state


def _partners(problem: WidthProblem, state: Array) -> list[int]:
    """Return the pools whose next step damages least per cost, and those whose last step damaged most."""

    def price(pool: int, index: int) -> float:
        own, step = problem.damage[pool], np.zeros(len(state), np.int64)
        if not problem.least[pool] <= index < len(own) - 1:
            return np.nan
        step[pool] = index - state[pool]
        saved = problem.cost(state + step) - problem.cost(state + step + np.eye(len(state), dtype=np.int64)[pool])
        return float((own[index + 1] - own[index]) / max(saved, 1e-12 * problem.target))

    further = np.array([price(pool, state[pool]) for pool in range(len(state))])
    back = np.array([price(pool, state[pool] - 1) for pool in range(len(state))])
    ways = (np.argsort(further, kind="stable"), np.argsort(-back, kind="stable"))
    known = (np.count_nonzero(~np.isnan(further)), np.count_nonzero(~np.isnan(back)))
    return list(dict.fromkeys(
        int(pool) for order, count in zip(ways, known, strict=True) for pool in order[: min(count, PARTNERS)]
    ))  # fmt: skip
