"""Sparsity over layers: exact totals, and never worse than what is tried at random."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prunecli.masks.allocations import ALLOCATIONS, LayerSize, LossCurve, budget_of, by_loss, erk
from prunecli.masks.scopes import SCOPES
from prunecli.options.declare import declared_of
from prunecli.zeros.options import GradientOptions, MagnitudeOptions, OneshotOptions

SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (10, 64)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
DENSITIES = (0.5, 0.3, 0.1, 0.05)


def layers(scales: tuple[float, ...]) -> list[LayerSize]:
    return [
        LayerSize(shape, size, LossCurve(DENSITIES, [scale * (1 / d - 1) ** 2 for d in DENSITIES]))
        for shape, size, scale in zip(SHAPES, SIZES, scales, strict=True)
    ]


@pytest.mark.parametrize("mode", [entry.name for entry in ALLOCATIONS])
@pytest.mark.parametrize("sparsity", [0.0, 0.013, 0.5, 0.8, 0.95, 0.999, 1.0])
def test_totals(mode: str, sparsity: float) -> None:
    drops = ALLOCATIONS.get(mode).amounts(layers((1, 2, 3, 4)), sparsity)
    assert all(0 <= drop <= size for drop, size in zip(drops, SIZES, strict=True))
    if mode == "uniform":
        assert drops == [round(sparsity * size) for size in SIZES]
    else:
        assert sum(drops) == round(sparsity * sum(SIZES))


def least_loss(first: LayerSize, second: LayerSize, drop: int) -> int:
    """What goes from the first of two layers where the sum of the losses is least, of all ways to divide `drop`."""
    ways = np.arange(max(0, drop - second.weights + 25), min(drop, first.weights - 100) + 1)
    assert first.losses is not None and second.losses is not None
    total = first.losses.at(1 - ways / first.weights) + second.losses.at(1 - (drop - ways) / second.weights)
    return int(ways[np.argmin(total)])


# allocation -> of two layers and a number of weights to drop, how many go from the first
RULES = {
    "uniform": lambda first, second, drop: drop * first.weights / (first.weights + second.weights),
    # densities 200 / 10000 and 125 / 2500 times e: 200 e and 125 e weights are kept
    "erk": lambda first, second, drop: first.weights - (first.weights + second.weights - drop) * 200 / 325,
    "loss": least_loss,
    "predicted": least_loss,
}


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
@pytest.mark.parametrize("name", [entry.name for entry in ALLOCATIONS])
def test_every_rule_divides_as_it_says(name: str, sparsity: float) -> None:
    """Losses are interpolated on a grid of about a percent of a layer."""
    assert name in RULES, (
        f"RULES has no rule of the allocation {name}: how many weights go from the first of two layers"
    )
    first, second = (
        LayerSize(shape, math.prod(shape), LossCurve(DENSITIES, [scale * (1 / d - 1) ** 2 for d in DENSITIES]))
        for shape, scale in (((100, 100), 1.0), ((100, 25), 10.0))
    )
    drop = round(sparsity * (first.weights + second.weights))
    found = ALLOCATIONS.get(name).amounts([first, second], sparsity)
    assert sum(found) == drop
    assert found[0] == pytest.approx(RULES[name](first, second, drop), abs=100 if RULES[name] is least_loss else 1)


def test_what_there_is_can_be_chosen() -> None:
    """The choices are written out, so that the help needs no numpy; they must not lag behind the registries."""
    known = {(options, one.field): set(one.choices) for options in (MagnitudeOptions, GradientOptions, OneshotOptions)
             for one in declared_of(options)}  # fmt: skip
    unmeasured = {entry.name for entry in ALLOCATIONS if entry.losses != "measured"}
    for options in (MagnitudeOptions, GradientOptions):
        assert known[options, "allocate"] == unmeasured
        assert known[options, "scope"] == {entry.name for entry in SCOPES}
    assert known[OneshotOptions, "allocate"] == {entry.name for entry in ALLOCATIONS}


@settings(max_examples=60)
@example([1.0, 297.0, 15.0, 1.0], 0.609375, 0)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_no_exchange_between_two_layers_helps(scales: list[float], sparsity: float, seed: int) -> None:
    """At the optimum of convex curves. The grid of densities is of about two percent where layers are sparse, and a loss
    changes by twice that and more, so a step of a few percent of a layer may gain no more than a tenth."""
    found = layers(tuple(scales))
    drops = np.array(by_loss(found, sparsity))

    def total(counts: np.ndarray) -> float:
        return sum(
            float(layer.losses.at(np.array([max(1 - n / layer.weights, 0.01)]))[0])
            for layer, n in zip(found, counts, strict=True)
            if layer.losses is not None
        )

    rng = np.random.default_rng(seed)
    for _ in range(10):
        giver, taker = rng.permutation(4)[:2]
        step = int(0.05 * min(SIZES[giver], SIZES[taker]))
        other = drops.copy()
        other[giver] -= step
        other[taker] += step
        if other.min() >= 0 and all(n <= 0.985 * size for n, size in zip(other, SIZES, strict=True)):
            assert total(drops) <= total(other) * 1.1


def test_the_layer_that_hurts_keeps_more() -> None:
    curves = [LossCurve(DENSITIES, [0.1, 0.3, 1, 3]), LossCurve(DENSITIES, [10, 30, 100, 300])]
    low, high = by_loss([LayerSize((1000,), 1000, curve) for curve in curves], 0.5)
    assert low > high + 200


def test_curves() -> None:
    """Straight in the logarithms, also beyond what was measured; nothing is lost where nothing goes; noise that says
    that less is better is smoothed away."""
    curve = LossCurve((0.4, 0.1), (1.0, 4.0))
    np.testing.assert_allclose(curve.at(np.array([1.0, 0.8, 0.4, 0.2, 0.1, 0.05])), [0, 0.5, 1, 2, 4, 8])
    noisy = LossCurve((0.4, 0.2, 0.1), (1.0, 0.5, 4.0)).at(np.array([0.4, 0.2, 0.1]))
    assert (np.diff(noisy) >= 0).all()
    assert (LossCurve((0.4, 0.1), (0.0, 0.0)).at(np.array([0.4, 0.05])) < 1e-100).all()  # a dead layer


ANY_SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)), max_size=8)


@given(ANY_SHAPES, st.floats(0, 1))
def test_erk_drops_exactly_what_is_asked(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    tensors = [(shape, math.prod(shape)) for shape in shapes]
    budgets = erk([LayerSize(*one) for one in tensors], sparsity)
    total = sum(count for _, count in tensors)
    assert sum(budgets) == budget_of(total, sparsity)
    assert all(0 <= budget <= count for budget, (_, count) in zip(budgets, tensors, strict=True))


def test_erk_densities_follow_the_paper() -> None:
    """LeNet-300-100 at 80 %: the output layer would be denser than 1, so it is kept whole and e is solved
    again for the others: kept_l = e * sum(shape_l)."""
    shapes = [(300, 784), (100, 300), (10, 100)]
    counts = [math.prod(shape) for shape in shapes]
    keep = sum(counts) - budget_of(sum(counts), 0.8)
    e = (keep - 1000) / (1084 + 400)
    kept = [e * 1084, e * 400, 1000]
    assert kept[0] < counts[0] and kept[1] < counts[1]
    found = erk([LayerSize(*one) for one in zip(shapes, counts, strict=True)], 0.8)
    assert all(abs(count - want - budget) <= 1 for count, want, budget in zip(counts, kept, found, strict=True))


@pytest.mark.parametrize(("n", "s", "want"), [(5, 0.5, 2), (7, 0.5, 4), (10, 0.25, 2), (3, 0.0, 0), (3, 1.0, 3)])
def test_halves_round_to_even(n: int, s: float, want: int) -> None:
    assert budget_of(n, s) == want
