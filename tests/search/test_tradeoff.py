"""The path of least damage: against every choice there is, and its arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.search.tradeoff import DamageCurve, best_path, spread

FRACTIONS = [0.0, 0.25, 0.5, 0.75, 1.0]


def curve(name: str, damages: list[float], size: float) -> DamageCurve:
    return DamageCurve.of(name, FRACTIONS[: len(damages)], damages, lambda f: size * (1 - f))


def quadratic(name: str, weight: float, size: float) -> DamageCurve:
    return curve(name, [weight * f * f for f in FRACTIONS], size)


@pytest.mark.slow
def test_it_is_as_good_as_the_best_of_all_choices() -> None:
    """Where damages add up and are convex: no mixture of grid points is smaller at the same damage."""
    curves = [quadratic("a", 1.0, 10), quadratic("b", 5.0, 10), quadratic("c", 2.0, 40)]
    path = best_path(curves)
    grid = [np.linspace(0, 1, 15)] * 3
    for position in (0.05, 0.3, 1.0, 3.0):
        allocation = path.at(position)
        mine = sum(c.cost(allocation[c.layer]) for c in curves)
        spent = sum(c.at(allocation[c.layer]) for c in curves)
        rivals = [sum(c.cost(f) for c, f in zip(curves, some, strict=True)) for some in itertools.product(*grid)
                  if sum(c.at(f) for c, f in zip(curves, some, strict=True)) <= spent]  # fmt: skip
        assert mine <= min(rivals) + 0.6  # the hull has FINE points between two levels: at most a step of 1/32 of 40


def test_what_costs_nothing_goes_first_and_what_saves_nothing_never() -> None:
    free, dear = curve("free", [0, 0, 0, 0, 0], 10), curve("dear", [0, 1, 2, 3, 4], 10)
    useless = curve("useless", [0, 1, 2, 3, 4], 0)
    path = best_path([free, dear, useless])
    assert path.at(1e-9)["free"] == 1.0 and path.at(1e-9)["dear"] < 0.01
    assert path.at(1e9)["useless"] == 0.0


def test_noise_is_no_gain_and_broken_levels_are_left_out() -> None:
    noisy = curve("a", [0, 0.5, 0.4, 0.6, float("inf")], 10)
    assert list(noisy.damages) == [0, 0.5, 0.5, 0.6, float("inf")]
    assert best_path([noisy]).at(1e9)["a"] == 0.75


@given(st.lists(st.lists(st.floats(0, 10), min_size=5, max_size=5), min_size=1, max_size=4),
       st.lists(st.floats(0.5, 50), min_size=4, max_size=4))  # fmt: skip
def test_further_along_is_never_larger_and_a_setting_is_found_again(
    damages: list[list[float]], sizes: list[float]
) -> None:
    curves = [curve(f"k{i}", [0.0, *d[1:]], s) for i, (d, s) in enumerate(zip(damages, sizes, strict=False))]
    path = best_path(curves)
    before = float("inf")
    for position in (0.0, 1e-6, 0.1, 1.0, 5.0, 1e3):
        allocation = path.at(position)
        cost = sum(c.cost(allocation.get(c.layer, 0.0)) for c in curves)
        assert cost <= before + 1e-9
        before = cost
        assert all(0 <= f <= 1 for f in allocation.values())
        reached = min(position, path.most)
        assert path.position(allocation) == pytest.approx(reached, abs=1e-6 + 1e-6 * path.most)


def test_positions_are_spread_between_two() -> None:
    assert spread(0.01, 100, 3) == pytest.approx([0.1, 1, 10])
