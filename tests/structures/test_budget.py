"""Choosing units under a budget: exact counts, limits, multiples, and costs hit as closely as units allow; trades of
steps between groups: within the budget, never worse than before, and no better by one more trade."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.arrays import Array
from prunecli.structures.budget import (
    NEAR,
    UnitPool,
    WidthProblem,
    bundle,
    by_cost,
    by_ratio,
    exchange,
    interleaved,
)
from prunecli.structures.widths import multiples

SLACK = 0.05
SIZES = st.lists(st.integers(2, 30), min_size=1, max_size=6)


def pools_of(sizes: list[int], limit: float = 1.0, multiple: int = 1) -> list[UnitPool]:
    starts = np.cumsum([0, *sizes])
    limits = [min(n - 1, int(limit * n)) for n in sizes]
    return [
        UnitPool(int(first), [width for width in multiples(n, multiple) if width >= n - most])
        for first, n, most in zip(starts[:-1], sizes, limits, strict=True)
    ]


def gone(pools: list[UnitPool], mask: Array) -> list[int]:
    return [int(mask[p.first : p.first + p.count].sum()) for p in pools]


@given(SIZES, st.floats(0, 0.99), st.integers(0, 99))
def test_ratio_is_exact_in_every_pool(sizes: list[int], ratio: float, seed: int) -> None:
    scores = np.random.default_rng(seed).random(sum(sizes))
    pools = pools_of(sizes)
    bundles = bundle(pools, scores)
    mask = bundles.mask(by_ratio(pools, bundles, ratio, False), sum(sizes))
    assert gone(pools, mask) == [min(int(np.floor(ratio * n + 0.5)), n - 1) for n in sizes]
    for pool in pools:
        own, cut = (a[pool.first : pool.first + pool.count] for a in (scores, mask))
        assert not cut.any() or own[cut].max() <= own[~cut].min()


@given(SIZES, st.floats(0, 0.99), st.integers(0, 99), st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 1))
def test_multiples_and_limits_hold(sizes: list[int], ratio: float, seed: int, multiple: int, limit: float) -> None:
    scores = np.random.default_rng(seed).random(sum(sizes))
    pools = pools_of(sizes, limit, multiple)
    bundles = bundle(pools, scores)
    for everywhere in (False, True):
        counts = gone(pools, bundles.mask(by_ratio(pools, bundles, ratio, everywhere), sum(sizes)))
        for pool, count in zip(pools, counts, strict=True):
            assert count <= pool.count - pool.widths[-1] <= limit * pool.count
            assert count == 0 or (pool.count - count) % multiple == 0
        assert sum(counts) <= int(np.floor(ratio * sum(sizes) + 0.5)) + (0 if everywhere else len(sizes))


@given(st.integers(2, 20))
def test_of_equal_scores_the_later_unit_goes_first(count: int) -> None:
    pools = pools_of([count])
    bundles = bundle(pools, np.ones(count))
    assert bundles.units.tolist() == list(range(count - 1, 0, -1))


@settings(max_examples=60)
@given(SIZES, st.floats(0.05, 0.95), st.integers(0, 99), st.booleans())
def test_costs_end_at_most_at_the_target_and_close_to_it(
    sizes: list[int], target: float, seed: int, in_step: bool
) -> None:
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    price = rng.random(total) + 0.1
    whole = float(price.sum())
    pools = pools_of(sizes)
    bundles = bundle(pools, rng.random(total))

    def cost(mask: Array) -> float:
        return float(price[~mask].sum())

    if cost(bundles.mask(np.arange(len(bundles)), total)) > target * whole:
        return
    order = interleaved(pools, bundles) if in_step else np.argsort(bundles.score, kind="stable")
    chosen = by_cost(bundles, order, cost, target * whole, total)
    mask = bundles.mask(chosen, total)
    assert cost(mask) <= target * whole
    assert all(count < n for count, n in zip(gone(pools, mask), sizes, strict=True))
    if len(chosen):  # giving back any last unit of a pool would pass the target, so it is within one unit of it
        assert target * whole - cost(mask) < price.max()


def test_interleaving_shrinks_pools_in_step() -> None:
    pools = pools_of([4, 8])
    bundles = bundle(pools, np.arange(12.0))
    order = interleaved(pools, bundles)
    counts = gone(pools, bundles.mask(order[:6], 12))
    assert counts == [2, 4]


def problem_of(sizes: list[int], seed: int, share: float) -> WidthProblem:
    """Layers in a chain: what remains of each is the product of its kept inputs and outputs; damage is convex; the
    time of some layers does not follow their work."""
    rng = np.random.default_rng(seed)
    damage = [np.append(0.0, np.cumsum(np.cumsum(rng.random(n - 1)))) * rng.random() for n in sizes]
    weight, slow = rng.random(len(sizes) + 1) + 0.1, rng.random(len(sizes) + 1)

    def kept(state: Array) -> Array:
        left = np.array([1 - index / n for index, n in zip(state, sizes, strict=True)])
        return np.append(1.0, left) * np.append(left, 1.0)

    least = np.zeros(len(sizes), np.int64)
    whole = float(weight.sum())
    return WidthProblem(
        damage,
        least,
        lambda s: float(kept(s) @ weight),
        lambda s: float(kept(s) @ (weight * slow)),
        share * whole,
        SLACK,
    )


def greedy(problem: WidthProblem) -> Array | None:
    """Something within the target, cut evenly; None where nothing is."""
    state = problem.least.copy()
    while problem.cost(state) > problem.target:
        free = [p for p in range(len(state)) if state[p] < len(problem.damage[p]) - 1]
        if not free:
            return None
        state[min(free, key=lambda p: state[p] / len(problem.damage[p]))] += 1
    return state


@settings(max_examples=60)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=4), st.integers(0, 999), st.floats(0.2, 0.95))
def test_trades_end_within_the_budget_and_are_never_worse(sizes: list[int], seed: int, share: float) -> None:
    problem = problem_of(sizes, seed, share)
    start = greedy(problem)
    if start is None:
        return
    found = exchange(problem, start)
    assert problem.cost(found) <= problem.target
    assert problem.short(found) <= problem.short(start)
    if problem.short(found) == problem.short(start):
        assert problem.total(found) <= problem.total(start) * (1 + SLACK)
    assert (found >= problem.least).all() and all(i < len(d) for i, d in zip(found, problem.damage, strict=True))
    assert (exchange(problem, start) == found).all()


@settings(max_examples=60)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=4), st.integers(0, 999), st.floats(0.2, 0.95))
def test_of_few_choices_none_is_nearer(sizes: list[int], seed: int, share: float) -> None:
    problem = problem_of(sizes, seed, share)
    if (start := greedy(problem)) is None:
        return
    states = [np.array(each) for each in product(*(range(n) for n in sizes))]
    nearest = min(problem.short(state) for state in states if problem.cost(state) <= problem.target)
    assert problem.short(exchange(problem, start)) == nearest


@settings(max_examples=60)
@given(st.lists(st.integers(2, 5), min_size=2, max_size=3), st.integers(0, 999), st.floats(0.3, 0.9))
def test_no_single_step_would_improve_what_trades_find(sizes: list[int], seed: int, share: float) -> None:
    """Of two choices that meet the budget equally well the one found damages less, but for what counts as none."""
    problem = problem_of(sizes, seed, share)
    start = greedy(problem)
    if start is None:
        return
    found = exchange(problem, start)
    for pool in range(len(sizes)):
        for index in (found[pool] - 1, found[pool] + 1):
            if not 0 <= index < len(problem.damage[pool]):
                continue
            other = found.copy()
            other[pool] = index
            if problem.cost(other) <= problem.target and problem.short(other) <= problem.short(found):
                assert problem.total(other) * (1 + SLACK) >= problem.total(found)


def test_of_choices_that_damage_alike_the_fastest_is_taken() -> None:
    """Both pools save the same, at nearly the same damage; only the second saves time."""
    damage = [np.array([0.0, 1.0]), np.array([0.0, 1.0 + SLACK / 2])]
    nothing = np.zeros(2, np.int64)
    problem = WidthProblem(damage, nothing, lambda s: 2.0 - s.sum(), lambda s: 2.0 - s[1], 1.0, SLACK)
    assert exchange(problem, np.array([1, 0])).tolist() == [0, 1]
    slower = WidthProblem([damage[0], damage[1] * 2], nothing, problem.cost, problem.time, 1.0, SLACK)
    assert exchange(slower, np.array([1, 0])).tolist() == [1, 0]


def test_what_is_gone_stays_gone() -> None:
    problem = WidthProblem([np.array([0.0, 9.0]), np.array([0.0, 1.0])], np.array([1, 0]), lambda s: 2.0 - s.sum(),
                           lambda s: 0.0, 1.0, SLACK)  # fmt: skip
    assert exchange(problem, np.array([1, 0])).tolist() == [1, 0]


def test_the_budget_is_met_within_a_hundredth_where_steps_allow() -> None:
    """The least damage lies far below the target; a step of each pool meets it."""
    cost = np.array([[10.0, 9.5], [8.0, 7.9]])
    problem = WidthProblem([np.array([0.0, 0.1]), np.array([0.0, 5.0])], np.zeros(2, np.int64),
                           lambda s: float(cost[s[0], s[1]]), lambda s: float(cost[s[0], s[1]]), 9.5, SLACK)  # fmt: skip
    found = exchange(problem, np.array([1, 0]))
    assert found.tolist() == [0, 1] and problem.cost(found) >= (1 - NEAR) * problem.target
