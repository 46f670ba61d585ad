"""Rounding to a grid of integers against plain, slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunecli.arrays import Array
from prunecli.reconstruct import sparsegpt
from prunecli.reconstruct.rounding import INTEGERS, IntegerGrid, descended, fitted_grid, rounded

KINDS = [("int8", 0), ("uint8", 0), ("int4", 0), ("uint4", 8), ("uint4", 5)]


def problem(seed: int, rows: int = 5, size: int = 16) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, 200)) + 0.8 * rng.standard_normal((1, 200))  # correlated
    return rng.standard_normal((rows, size)), x @ x.T / 200 + 1e-3 * np.eye(size)


def loss(change: Array, gram: Array) -> float:
    return float(np.einsum("ij,jk,ik->", change, gram, change))


def grid_of(weights: Array, gram: Array, kind: str, block: int, **how: Any) -> IntegerGrid:
    return fitted_grid(weights, gram.diagonal(), INTEGERS[kind], block, **how)


@pytest.mark.parametrize(("kind", "block"), KINDS)
def test_values_are_those_of_stored_integers_and_float32_scales(kind: str, block: int) -> None:
    weights, gram = problem(0)
    grid = grid_of(weights, gram, kind, block)
    q = grid.integers(weights)
    assert q.min() >= INTEGERS[kind].least and q.max() <= INTEGERS[kind].greatest
    assert (grid.scale == grid.scale.astype(np.float32)).all() and (grid.zero == np.rint(grid.zero)).all()
    assert np.abs(grid.values(q) - weights).max() < 4 * grid.scale.max()
    columns = np.stack([grid.nearest(j, weights[:, j]) for j in range(weights.shape[1])], axis=1)
    np.testing.assert_array_equal(columns, grid.values(q))
    np.testing.assert_array_equal(
        grid.integers(np.zeros_like(weights)), np.broadcast_to(grid.zero.repeat(block or 16, 1)[:, :16], q.shape)
    )


def test_a_grid_that_clips_an_outlier_errs_less() -> None:
    weights = np.r_[np.random.default_rng(0).standard_normal(500), 9.0][None]
    grid = fitted_grid(weights, np.ones(501), INTEGERS["int4"])
    whole = IntegerGrid(INTEGERS["int4"], np.array([[9 / 7]]), np.zeros((1, 1)), 501)
    errors = [np.square(one.values(one.integers(weights)) - weights).sum() for one in (grid, whole)]
    assert grid.scale[0, 0] < 0.8 * 9 / 7 and errors[0] < 0.8 * errors[1]


def test_columns_that_count_more_are_not_clipped_for_others() -> None:
    weights = np.r_[np.full(30, 0.1), 9.0][None]
    found = fitted_grid(weights, np.r_[np.zeros(30), 1.0], INTEGERS["int4"])
    assert found.values(found.integers(weights))[0, -1] == pytest.approx(9.0, rel=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_scales_do_not_fall_below_what_a_bias_needs(shared: bool) -> None:
    weights, gram = problem(1)
    least = np.array([9.0, 0, 0, 0, 0])
    grid = grid_of(weights, gram, "int8", 0, shared=shared, least=least)
    assert grid.scale[0, 0] == 9 and (len(np.unique(grid.scale)) == 1) == shared


def greedy(weights: Array, gram: Array, grid: IntegerGrid, zero: Array) -> Array:
    """Column after column to the nearest; after each, the rest solves least squares with those fixed."""
    out, size = weights.copy(), weights.shape[1]
    for j in range(size):
        out[:, j] = np.where(zero[:, j], 0, grid.nearest(j, out[:, j]))
        done, rest = np.arange(j + 1), np.arange(j + 1, size)
        if rest.size:
            moved = (out[:, done] - weights[:, done]) @ gram[np.ix_(done, rest)]
            out[:, rest] = weights[:, rest] - np.linalg.solve(gram[np.ix_(rest, rest)], moved.T).T
    return out


@pytest.mark.parametrize(("kind", "block"), KINDS)
def test_the_sweep_solves_least_squares_after_each_column(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsegpt, "BLOCK", 7)
    monkeypatch.setattr(sparsegpt, "FEW", 3)
    weights, gram = problem(2)
    zero = np.random.default_rng(0).random(weights.shape) < 0.3
    grid, work = grid_of(weights, gram, kind, block), weights.copy(order="F")
    sparsegpt.sweep(
        work,
        sparsegpt.factor(gram, np.arange(16)),
        np.arange(1, 17),
        lambda j, w: np.where(zero[:, j], 0, grid.nearest(j, w)),
    )
    np.testing.assert_allclose(work, greedy(weights, gram, grid, zero), atol=1e-9)


@pytest.mark.parametrize(("kind", "block"), KINDS)
def test_rounding_makes_up_for_itself(kind: str, block: int) -> None:
    for seed in range(4):
        weights, gram = problem(seed)
        grid, zero = grid_of(weights, gram, kind, block), np.zeros(weights.shape, bool)
        zero[:, 3] = True
        found, nearest = rounded(weights, gram, grid, zero), grid.values(grid.integers(weights)) * ~zero
        np.testing.assert_array_equal(found, grid.values(grid.integers(found)))
        assert (found[:, 3] == 0).all() and loss(found - weights, gram) < 0.9 * loss(nearest - weights, gram)
        again = descended(nearest, weights, gram, grid, zero)
        assert loss(again - weights, gram) < loss(nearest - weights, gram) and (again[:, 3] == 0).all()
