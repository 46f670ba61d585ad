"""Choosing units under a budget: exact counts, limits, multiples, and costs hit as closely as units allow."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.structures.budget import UnitPool, bundle, by_cost, by_ratio, interleaved

Array = np.ndarray[Any, Any]
SIZES = st.lists(st.integers(2, 30), min_size=1, max_size=6)


def pools_of(sizes: list[int], limit: float = 1.0, multiple: int = 1) -> list[UnitPool]:
    starts = np.cumsum([0, *sizes])
    return [UnitPool(int(a), n, min(n - 1, int(limit * n)), multiple) for a, n in zip(starts[:-1], sizes, strict=True)]


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
            assert count <= pool.limit
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
