"""Sparsity over layers: exact totals, and never worse than what is tried at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.zeros.allocate import ALLOCATIONS, LossCurve, allocate, by_loss

SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (10, 64)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
DENSITIES = (0.5, 0.3, 0.1, 0.05)


def curves(scales: tuple[float, ...]) -> list[LossCurve]:
    return [
        LossCurve(n, DENSITIES, [scale * (1 / d - 1) ** 2 for d in DENSITIES])
        for n, scale in zip(SIZES, scales, strict=True)
    ]


@pytest.mark.parametrize("mode", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.0, 0.013, 0.5, 0.8, 0.95, 0.999, 1.0])
def test_totals(mode: str, sparsity: float) -> None:
    drops = allocate(mode, SHAPES, SIZES, curves((1, 2, 3, 4)), sparsity)
    assert all(0 <= drop <= size for drop, size in zip(drops, SIZES, strict=True))
    if mode == "uniform":
        assert drops == [round(sparsity * size) for size in SIZES]
    else:
        assert sum(drops) == round(sparsity * sum(SIZES))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_no_exchange_between_two_layers_helps(scales: list[float], sparsity: float, seed: int) -> None:
    """At the optimum of convex curves. The grid of densities is of about a percent, so a step of a few percent of a layer
    may gain no more than a twentieth."""
    found = curves(tuple(scales))
    drops = np.array(by_loss(found, sparsity))

    def total(counts: np.ndarray) -> float:
        return sum(
            float(curve.at(np.array([max(1 - n / curve.size, 0.01)]))[0])
            for curve, n in zip(found, counts, strict=True)
        )

    rng = np.random.default_rng(seed)
    for _ in range(10):
        giver, taker = rng.permutation(4)[:2]
        step = int(0.05 * min(SIZES[giver], SIZES[taker]))
        other = drops.copy()
        other[giver] -= step
        other[taker] += step
        if other.min() >= 0 and all(n <= 0.985 * size for n, size in zip(other, SIZES, strict=True)):
            assert total(drops) <= total(other) * 1.05


def test_the_layer_that_hurts_keeps_more() -> None:
    low, high = by_loss(
        [LossCurve(1000, DENSITIES, [0.1, 0.3, 1, 3]), LossCurve(1000, DENSITIES, [10, 30, 100, 300])], 0.5
    )
    assert low > high + 200


def test_curves() -> None:
    """Straight in the logarithms, also beyond what was measured; nothing is lost where nothing goes; noise that says
    that less is better is smoothed away."""
    curve = LossCurve(10, (0.4, 0.1), (1.0, 4.0))
    np.testing.assert_allclose(curve.at(np.array([1.0, 0.8, 0.4, 0.2, 0.1, 0.05])), [0, 0.5, 1, 2, 4, 8])
    noisy = LossCurve(10, (0.4, 0.2, 0.1), (1.0, 0.5, 4.0)).at(np.array([0.4, 0.2, 0.1]))
    assert (np.diff(noisy) >= 0).all()
    assert (LossCurve(10, (0.4, 0.1), (0.0, 0.0)).at(np.array([0.4, 0.05])) < 1e-100).all()  # a dead layer
