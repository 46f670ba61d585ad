"""Elimination against least squares solved anew for every set of inputs that is left."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.arrays import Array
from prunecli.structures.elimination import RIDGE, UnitReader, convex, eliminate

UNITS, PER_UNIT = 6, 2


def inputs(seed: int = 0) -> Array:
    """(rows, inputs), correlated."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((400, UNITS * PER_UNIT)) @ rng.standard_normal((UNITS * PER_UNIT, UNITS * PER_UNIT))


def reader(x: Array, outputs: int = 3, weight: float = 1.0, seed: int = 1) -> UnitReader:
    matrix = np.random.default_rng(seed).standard_normal((x.shape[1], outputs))
    rows = np.arange(UNITS * PER_UNIT).reshape(PER_UNIT, UNITS).T  # a unit's rows lie apart
    return UnitReader(x.T @ x, matrix, np.arange(UNITS), rows, weight)


def solved(given: UnitReader, gone: list[int]) -> tuple[Array, float]:
    """B without the rows of some units, and its error, from the damped problem as elimination sees it."""
    size = len(given.gram)
    damped = given.gram + np.eye(size) * RIDGE * np.trace(given.gram) / size
    keep = np.setdiff1d(np.arange(size), given.rows[gone])
    best = np.zeros_like(given.matrix)
    best[keep] = np.linalg.solve(damped[np.ix_(keep, keep)], (damped @ given.matrix)[keep])
    change = best - given.matrix
    return best, given.weight * float((change * (damped @ change)).sum())


def test_losses_beyond_all_numbers_are_told_in_silence() -> None:
    """As behind a generator whose values explode."""
    x = inputs() * np.where(np.arange(UNITS * PER_UNIT) % UNITS == 2, 1e140, 1)
    size = x.shape[1]
    huge = UnitReader(x.T @ x, np.full((size, 3), 1e20), np.arange(size), np.arange(size)[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = eliminate([huge], size, size - 1)
    assert len(set(found.order)) == size - 1


@pytest.mark.parametrize("count", [1, 2])
def test_errors_and_weights_are_those_of_least_squares(count: int) -> None:
    readers = [reader(inputs(n), weight=n + 1.0, seed=n) for n in range(count)]
    found = eliminate(readers, UNITS, UNITS - 1, range(UNITS))
    for gone in range(UNITS):
        answers = [solved(one, found.order[:gone]) for one in readers]
        np.testing.assert_allclose(found.errors[gone], sum(error for _, error in answers), rtol=1e-6, atol=1e-6)
        for got, (wanted, _) in zip(found.snapshots[gone], answers, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)  # float64, conditioned by the damping


def test_each_step_takes_the_unit_that_adds_least() -> None:
    given = reader(inputs())
    order = eliminate([given], UNITS, UNITS - 1).order
    for gone in range(UNITS - 1):
        left = [u for u in range(UNITS) if u not in order[:gone]]
        costs = {u: solved(given, [*order[:gone], u])[1] for u in left}
        assert min(costs, key=costs.__getitem__) == order[gone]


def test_of_two_equal_units_one_goes_for_nothing_and_the_other_counts_for_both() -> None:
    x = inputs()
    x[:, [4, 4 + UNITS]] = x[:, [1, 1 + UNITS]]
    given = reader(x)
    found = eliminate([given], UNITS, 3, [1])
    assert found.order[0] in (1, 4)
    assert found.errors[1] < 0.02 * found.errors[2]  # what the damping makes of an error of zero
    kept, gone = (1, 4) if found.order[0] == 4 else (4, 1)
    both = given.matrix[given.rows[kept]] + given.matrix[given.rows[gone]]
    np.testing.assert_allclose(found.snapshots[1][0][given.rows[kept]], both, rtol=0.02, atol=0.02)


def test_dead_units_go_first() -> None:
    x = inputs()
    x[:, [2, 2 + UNITS]] = 0
    found = eliminate([reader(x)], UNITS, UNITS - 1)
    assert found.order[0] == 2 and np.isfinite(found.errors).all()


def test_units_that_nothing_reads_cost_nothing() -> None:
    given = reader(inputs())
    some = UnitReader(given.gram, given.matrix, np.arange(UNITS), given.rows)
    found = eliminate([some], UNITS + 2, 2)
    assert set(found.order) == {UNITS, UNITS + 1} and found.errors[-1] == 0


def test_all_inputs_dead() -> None:
    given = reader(np.zeros((4, UNITS * PER_UNIT)))
    given.matrix[:] = 1
    assert eliminate([given], UNITS, 2).order == [UNITS - 1, UNITS - 2]  # of equal ones the later goes


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=30))
def test_the_hull_is_convex_below_and_the_largest_such(values: list[float]) -> None:
    given_values = np.array(values)
    hull = convex(given_values)
    tolerance = 1e-9 * max(values) + 1e-12
    assert (hull <= given_values + tolerance).all() and (np.diff(hull, 2) >= -tolerance).all()
    corners = np.flatnonzero(np.abs(np.diff(hull, 2)) > 1e-6) + 1
    assert np.allclose(hull[corners], given_values[corners], atol=1e-5)
    assert hull[0] == values[0] and hull[-1] == values[-1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_unit_goes_twice_where_errors_cannot_be_told() -> None:
    broken = reader(inputs())
    broken.matrix[:] = np.inf
    order = eliminate([broken], UNITS, UNITS - 1).order
    assert len(set(order)) == UNITS - 1


def test_a_gram_matrix_of_rounding_errors_is_survived() -> None:
    """One sample, its mean taken off, leaves nothing but rounding, which need not be positive."""
    noise = np.random.default_rng(0).standard_normal((2, UNITS * PER_UNIT, UNITS * PER_UNIT)) * 1e-8
    given = reader(inputs())
    given.gram = noise[0] + noise[0].T
    assert np.linalg.eigvalsh(given.gram).min() < 0
    found = eliminate([given], UNITS, UNITS - 1, [UNITS - 1])
    assert np.isfinite(found.errors).all() and np.isfinite(found.snapshots[UNITS - 1][0]).all()
    assert np.abs(found.snapshots[UNITS - 1][0]).max() < 1e3


def test_what_is_not_finite_goes_nowhere() -> None:
    given = reader(inputs())
    given.gram[0, 0] = np.nan
    assert len(eliminate([given], UNITS, UNITS - 1).order) == UNITS - 1


def test_products_whose_rounding_exceeds_the_damping_are_survived() -> None:
    """Many units of few causes with large means: G, whose products are in float32, is not symmetric to the bit."""
    rng, count = np.random.default_rng(0), 96
    x = (5 + 0.1 * rng.standard_normal((500, 20)) @ rng.standard_normal((20, count)) / 20).astype(np.float32)
    noise = rng.standard_normal((count, count)) * 2e-6
    given = UnitReader(
        np.cov(x.T) + noise, rng.standard_normal((count, 3)), np.arange(count), np.arange(count)[:, None], 1.0
    )
    found = eliminate([given], count, count - 1, [count - 1])
    assert np.isfinite(found.errors).all() and np.abs(found.snapshots[count - 1][0]).max() < 1e3
