"""Optimal Brain Surgeon, SparseGPT and least squares against plain, slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prunecli.reconstruct.fit as fitting
from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.masks.patterns import parse_pattern
from prunecli.reconstruct import obs
from prunecli.reconstruct.admm import admm
from prunecli.reconstruct.fit import (
    METHODS,
    RIDGES,
    FitTask,
    Fitted,
    best_ridge,
    check,
    damping,
    fit,
    masked_least_squares,
    scores,
    small_least_squares,
)
from prunecli.reconstruct.obs import Surgeon, columns_of, removal_losses
from prunecli.reconstruct.sparsegpt import Quota, factor, solved, sparsegpt


def problem(seed: int, rows: int = 6, size: int = 24, samples: int = 200) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, samples)) + 0.8 * rng.standard_normal((1, samples))  # correlated
    return rng.standard_normal((rows, size)), x @ x.T / samples + 1e-3 * np.eye(size)


def loss(change: Array, gram: Array) -> float:
    return float(np.einsum("ij,jk,ik->", change, gram, change))


def test_matrices_of_one_weight_do_not_meet() -> None:
    many = [problem(seed, 3, 12) for seed in range(5)]
    columns = columns_of(parse_pattern("2x2"), 3, 2, 6)
    together = removal_losses(np.stack([w for w, _ in many]), np.stack([g for _, g in many]), columns, 2)
    for (weights, gram), found in zip(many, together, strict=True):
        np.testing.assert_allclose(found, removal_losses(weights[None], gram[None], columns)[0], rtol=1e-9)


def greedy(
    weights: Array, gram: Array, units: list[list[int]], windows: list[int] | None = None, drop: list[int] | None = None
) -> Array:
    """One row group (height, K): remove the unit whose loss is least, solve anew for the rest, and again. Every loss is
    found by solving the least-squares problem without that unit."""
    size, alive = gram.shape[0], list(range(len(units)))
    kept, current, at = np.ones(size, bool), weights.copy(), np.full(len(units), np.nan)
    highest, gone = 0.0, [0] * (max(windows) + 1 if windows else 0)

    def without(unit: int) -> tuple[float, Array]:
        keep = kept.copy()
        keep[units[unit]] = False
        k = np.flatnonzero(keep)
        new = np.zeros_like(weights)
        new[:, k] = np.linalg.solve(gram[np.ix_(k, k)], (weights @ gram)[:, k].T).T
        return loss(new - weights, gram) - loss(current - weights, gram), new

    while alive:
        open_ = [u for u in alive if windows is None or gone[windows[units[u][0]]] < (drop or [])[windows[units[u][0]]]]
        if not open_:
            break
        costs = {u: without(u) for u in open_}
        best = min(open_, key=lambda u: costs[u][0] / len(units[u]))
        highest = max(highest, costs[best][0] / len(units[best]))
        at[best], current = highest, costs[best][1]
        kept[units[best]] = False
        alive.remove(best)
        if windows is not None:
            gone[windows[units[best][0]]] += 1
    return at


PATTERNS = [
    # pattern, rows, taps, cols
    ("element", 5, 1, 17),
    ("element", 2, 4, 18),
    ("2:4", 4, 3, 8),
    ("1:4", 3, 2, 6),
    ("1x3", 4, 2, 7),
    ("4x1", 6, 1, 12),
    ("2x2", 5, 2, 5),
    ("column", 5, 3, 6),
]


@pytest.mark.parametrize("size", [24, obs._EXACT + 2])
@pytest.mark.parametrize(("large", "spread"), [(-70, -130), (60, 110), (0, 120), (40, -120)])
@pytest.mark.parametrize("pattern", ["element", "2:4", "1x2"])
def test_scale_is_not_rounded(size: int, large: int, spread: int, pattern: str) -> None:
    """Powers of two come out of the losses as they go in, however far from 1: float32 alone would overflow."""
    weights, gram = problem(5, 2, size)
    columns = columns_of(parse_pattern(pattern), 2, 1, size)
    plain = removal_losses(weights[None], gram[None], columns)
    scaled = removal_losses(weights[None] * 2.0**large, gram[None] * 2.0**spread, columns)
    np.testing.assert_array_equal(scaled, plain * 2.0 ** (2 * large + spread))


@pytest.mark.parametrize("seed", range(3))
def test_weights_stay_small_where_pivots_are_rounding(seed: int) -> None:
    """64 columns of which all but 4 follow from the others: once those are gone, single precision has nothing left of a
    pivot but rounding, of either sign; dividing by that, weights grew to infinity."""
    x = np.random.default_rng(seed).standard_normal((4, 64))
    inverse = np.linalg.inv(x.T @ x / 4 + 1e-7 * np.eye(64)).astype(np.float32)
    surgeon = Surgeon(np.ones((1, 1, 64), np.float32), inverse[None], None, floor=1e-6)
    for _ in range(62):
        surgeon.remove(surgeon.units[[0], surgeon.losses().argmin(axis=1)])
        assert np.abs(surgeon.current()).max() < 100


@pytest.mark.parametrize("case", PATTERNS, ids=str)
@pytest.mark.parametrize("workers", [1, 2])
def test_removal_losses_are_those_of_solving_every_time(case: tuple[Any, ...], workers: int) -> None:
    """float64 throughout: inverse updates lose some digits to the condition of G, about 1e4 here."""
    text, rows, taps, cols = case
    weights, gram = problem(1, rows, taps * cols, 4 * taps * cols)
    columns = columns_of(parse_pattern(text), rows, taps, cols)
    [found] = removal_losses(weights[None], gram[None], columns, workers)
    height = columns.rows or rows
    units = [[int(c) for c in columns.order[a:b]] for a, b in zip(columns.starts, columns.starts[1:], strict=False)]
    windows = None if columns.windows is None else [int(w) for w in columns.windows]
    for start in range(0, rows, height):
        wanted = greedy(
            weights[start : start + height],
            gram,
            units,
            windows,
            None if columns.drop is None else [int(d) for d in columns.drop],
        )
        for unit, members in enumerate(units):
            for row in range(start, min(start + height, rows)):
                if not np.isnan(wanted[unit]):
                    np.testing.assert_allclose(found[row, members], wanted[unit], rtol=1e-5, atol=1e-9)
                else:  # kept by its window: above all that went
                    assert (found[row, members] > np.nanmax(wanted)).all()


def test_large_layers_rank_in_float32_as_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to near ties: float32 has seven digits, and the removals add up some hundred terms."""
    weights, gram = problem(2, 3, 360, 1500)
    columns = columns_of(parse_pattern("element"), 3, 1, 360)
    [short] = removal_losses(weights[None], gram[None], columns)
    monkeypatch.setattr(obs, "_EXACT", 1000)
    [long] = removal_losses(weights[None], gram[None], columns)
    assert (short != long).any()
    for few, exact in zip(short, long, strict=True):
        assert len(set(np.argsort(few)[:250]) & set(np.argsort(exact)[:250])) >= 248


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-3)])
def test_solved_is_the_target_times_the_inverse(dtype: Any, tolerance: float) -> None:
    """To the rounding of the type times the condition of G, about a hundred."""
    rng = np.random.default_rng(3)
    data, target = rng.standard_normal((7, 40)), rng.standard_normal((5, 7))
    gram, order = (data @ data.T / 40 + 0.05 * np.eye(7)).astype(dtype), rng.permutation(7)
    found = solved(target, factor(gram, order), order)
    np.testing.assert_allclose(found, np.linalg.solve(gram.astype(np.float64), target.T).T, atol=tolerance)


def naive_sparsegpt(weights: Array, gram: Array, keep_each: int, window: int) -> Array:
    """N:M by the paper's algorithm, a column at a time, with the inverse itself made smaller at each step."""
    work, inverse = weights.copy(), np.linalg.inv(gram)
    drop = np.zeros(work.shape, bool)
    for j in range(work.shape[1]):
        if j % window == 0:
            stop = min(j + window, work.shape[1])
            inner, diagonal = inverse.copy(), []
            for k in range(j, stop):
                diagonal.append(inner[k, k])
                inner = inner - np.outer(inner[:, k], inner[k]) / inner[k, k]
            cost = work[:, j:stop] ** 2 / np.array(diagonal)
            for row in range(len(work)):
                drop[row, j + np.argsort(cost[row])[: max(stop - j - keep_each, 0)]] = True
        error = np.where(drop[:, j], work[:, j], 0) / inverse[j, j]
        work -= error[:, None] * inverse[j][None] * (np.arange(work.shape[1]) >= j)
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1
    return np.where(drop, 0, work)


@pytest.mark.parametrize(("keep", "window"), [(2, 4), (1, 4), (1, 3)])
def test_sparsegpt_is_the_papers(keep: int, window: int) -> None:
    weights, gram = problem(3, 5, 20)
    columns = columns_of(parse_pattern(f"{keep}:{window}"), 5, 1, 20)
    found, drop = sparsegpt(weights, factor(gram, columns.order), columns, Quota(0), np.zeros(weights.shape, bool))
    np.testing.assert_allclose(found, naive_sparsegpt(weights, gram, keep, window), atol=1e-9)
    assert ((found == 0) == drop).all()


@pytest.mark.parametrize("text", ["element", "4x1", "1x4", "2x3", "column"])
@pytest.mark.parametrize("by_row", [False, True])
def test_sparsegpt_keeps_its_quota(text: str, by_row: bool) -> None:
    if by_row and text == "column":
        pytest.skip("no two columns lie in one row")
    weights, gram = problem(4, 12, 9 * 40)
    columns = columns_of(parse_pattern(text), 12, 9, 40)
    found, drop = sparsegpt(
        weights, factor(gram, columns.order), columns, Quota(weights.size // 2, by_row), np.zeros(weights.shape, bool)
    )
    unit = (columns.rows or 12) * int(columns.widths.max())
    pools = 12 // (columns.rows or 12) if by_row else 1
    assert weights.size // 2 - unit * pools < drop.sum() <= weights.size // 2
    if by_row:
        assert drop.sum(axis=1).max() - drop.sum(axis=1).min() <= columns.widths.max()
    grouped = drop[:, columns.order].reshape(12 // (columns.rows or 12), columns.rows or 12, -1)
    assert (grouped == grouped[:, :1]).all()  # rows that share a mask do
    assert loss(found - weights, gram) < loss(np.where(drop, 0, weights) - weights, gram)


def test_factor() -> None:
    _, gram = problem(5)
    order = np.random.default_rng(0).permutation(len(gram))
    before = gram.copy()
    upper = factor(gram, order, 0.5)
    wanted = np.linalg.inv(gram[np.ix_(order, order)] + 0.5 * np.eye(len(gram)))
    np.testing.assert_allclose(upper.T @ upper, wanted, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(gram, before)
    assert (np.tril(upper, -1) == 0).all()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_least_squares_is_the_least(seed: int, share: float) -> None:
    """No change of a kept weight lowers the error: the gradient on the mask is zero, to the digits of a solution."""
    weights, gram = problem(seed, 4, 15)
    keep = np.random.default_rng(seed).random(weights.shape) > share
    cross = np.random.default_rng(seed + 1).standard_normal(weights.shape)
    found = masked_least_squares(gram, cross, keep, weights)
    assert (found[~keep] == 0).all()
    np.testing.assert_allclose(np.where(keep, found @ gram - cross, 0), 0, atol=1e-8)


def test_conjugate_gradients_agree_with_the_direct_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, gram = problem(6, 8, 60)
    keep = np.random.default_rng(0).random(weights.shape) > 0.4
    keep[3] = False
    direct = masked_least_squares(gram, weights @ gram, keep, weights)
    monkeypatch.setattr(fitting, "DIRECT", 0.0)
    np.testing.assert_allclose(masked_least_squares(gram, weights @ gram, keep, weights), direct, atol=1e-3)


def task_of(weights: Array, x: Array, y: Array, offset: Array | None = None) -> FitTask:
    """As the pipeline makes it, with a constant that may change."""
    count = x.shape[1]
    mx, my = x.mean(axis=1), y.mean(axis=1)
    gram, cross = x @ x.T / count - np.outer(mx, mx), y @ x.T / count - np.outer(my, mx)
    variance = (y**2).mean(axis=1) - my**2
    return FitTask(
        weights, gram, cross, mx, my, variance, count, np.zeros(len(y)) if offset is None else offset, True, 1
    )


def case(seed: int, samples: int = 500) -> tuple[FitTask, Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((16, samples)) + rng.standard_normal((1, samples)) + 2
    weights, offset = rng.standard_normal((5, 16)), rng.standard_normal(5)
    y = weights @ x + offset[:, None]
    return task_of(weights, x, y, offset), x, y


@pytest.mark.parametrize("method", [m.name for m in METHODS])
@pytest.mark.parametrize("recover", ["none", "bias", "bn", "lstsq"])
def test_every_method_with_every_recovery(method: str, recover: Any) -> None:
    """What the error says is what the outputs say, and each recovery keeps its word."""
    task, x, y = case(7)
    chosen_method, pattern = METHODS.get(method), parse_pattern("element")
    amount = task.weights.size // 2
    if chosen_method.criterion is None:
        chosen: Any = Quota(amount)
    else:
        found = (
            np.abs(task.weights) * scores(chosen_method.evidence, [task], pattern, 1)[0]
            if method == "wanda"
            else scores(chosen_method.evidence, [task], pattern, 1)[0]
        )
        chosen = found <= np.sort(found.reshape(-1))[amount - 1]
    best: Fitted = fit(chosen_method, recover, task, pattern, chosen)
    assert best.drop.sum() == amount and (best.weights[best.drop] == 0).all()
    got = best.weights @ x + (task.offset + best.shift)[:, None]
    measured = ((got - y) ** 2).mean(axis=1).sum() / y.var(axis=1).sum()
    assert task.error(best.weights, best.shift) == pytest.approx(measured, rel=1e-6)
    if recover == "none":
        assert not best.shift.any()
        if method == "wanda":
            assert (best.weights == np.where(best.drop, 0, task.weights)).all()
    else:
        np.testing.assert_allclose(got.mean(axis=1), y.mean(axis=1), atol=1e-9)
    if recover == "bn":
        np.testing.assert_allclose(got.var(axis=1), y.var(axis=1), rtol=1e-9)
    if recover == "lstsq":
        plain = fit(chosen_method, "none", task, pattern, best.drop if not isinstance(chosen, Quota) else chosen)
        assert task.error(best.weights, best.shift) < task.error(plain.weights, plain.shift)


def test_what_is_zero_stays_zero() -> None:
    task, _, _ = case(8)
    task.weights[:, ::3] = 0
    for method in METHODS:
        chosen: Any = Quota(20) if method.criterion is None else np.zeros(task.weights.shape, bool)
        assert (fit(method, "lstsq", task, parse_pattern("element"), chosen).weights[:, ::3] == 0).all()


def lowest(amount: int) -> Any:
    """The projection of `admm` that drops so many weights of all."""

    def project(found: Array) -> Array:
        drop = np.zeros(found.size, bool)
        drop[np.argsort(found.reshape(-1), kind="stable")[:amount]] = True
        return drop.reshape(found.shape)

    return project


@pytest.mark.parametrize("size", [24, 400], ids=["float64", "float32"])
def test_admm_errs_as_little_as_exact_elimination(size: int) -> None:
    weights, gram = problem(3, 12, size, 2 * size)
    amount = int(0.7 * weights.size)
    exact = removal_losses(weights[None], gram[None], columns_of(parse_pattern("element"), 12, 1, size))[0]
    masks = {
        "admm": admm(weights[None], gram[None], lowest(amount))[0],
        "obs": lowest(amount)(exact),
        "magnitude": lowest(amount)(np.abs(weights)),
    }
    errors = {name: loss(masked_least_squares(gram, weights @ gram, ~drop, weights) - weights, gram)
              for name, drop in masks.items()}  # fmt: skip
    assert {int(drop.sum()) for drop in masks.values()} == {amount}
    assert errors["admm"] < 1.05 * errors["obs"] < 0.9 * errors["magnitude"]


def test_admm_takes_what_is_zero_first() -> None:
    weights, gram = problem(4, 6, 24)
    weights[:, ::3] = 0
    assert admm(weights[None], gram[None], lowest(60))[0][:, ::3].all()


def test_many_small_matrices_are_solved_at_once() -> None:
    many = [problem(seed, 3, 9) for seed in range(4)]
    keep = np.random.default_rng(0).random((4, 3, 9)) > 0.5
    grams, cross = np.stack([g for _, g in many]), np.stack([w @ g for w, g in many])
    found = small_least_squares(grams, cross, keep)
    for number, (weights, gram) in enumerate(many):
        for row in range(3):
            at = np.flatnonzero(keep[number, row])
            wanted = np.zeros(9)
            wanted[at] = np.linalg.solve(gram[np.ix_(at, at)], (weights @ gram)[row, at])
            np.testing.assert_allclose(found[number, row], wanted, atol=1e-10)


@pytest.mark.parametrize(("samples", "least", "most"), [(4000, 0, 0.1), (40, 0.4, 10)], ids=["many", "few"])
def test_held_out_samples_choose_the_ridge(samples: int, least: float, most: float) -> None:
    """Of fewer samples than inputs the error on the fitted ones says nothing, and much is to be added."""
    rng = np.random.default_rng(5)
    mix, weights = rng.standard_normal((64, 64)), rng.standard_normal((32, 64))
    parts = [mix @ rng.standard_normal((64, count)) for count in (samples, 4000)]
    tasks = [task_of(weights, x, weights @ x, np.zeros(32)) for x in parts]
    found = best_ridge([tasks[0]], [tasks[1]], "lstsq", parse_pattern("element"), 0.4)
    assert least <= found.ridge <= most and found.ridge in RIDGES
    assert (found.held > 1.5 * found.fitted) == (samples == 40)


def test_ridges_that_all_interpolate_do_not_end_the_search() -> None:
    """30 samples of 100 inputs, which differ from those that the aim was made of, are met exactly whatever the small
    ridge: from 0.001 to 0.01 other samples gain 0.3 %, with 1.5 they gain 12 %."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((8, 100)) / 20
    pairs = [rng.standard_normal((2, 100, count)) for count in (30, 4000)]
    tasks = [task_of(weights, x + noise, weights @ x, np.zeros(8)) for x, noise in pairs]
    found = best_ridge([tasks[0]], [tasks[1]], "lstsq", parse_pattern("element"), 0.8)
    assert found.ridge >= 1.5 and found.held < 1.02  # 1.13 with the smallest


def test_two_equal_inputs_one_goes_free() -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((8, 400))
    x[5] = x[2]
    weights = rng.standard_normal((3, 8))
    weights[:, 2] = weights[:, 5] = 3.0  # by size the last to go
    task = task_of(weights, x, weights @ x)
    found = scores(METHODS.get("obs").evidence, [task], parse_pattern("column"), 1)[0]
    first = int(found[0].argmin())
    assert first in (2, 5)
    drop = np.zeros(weights.shape, bool)
    drop[:, first] = True
    best = fit(METHODS.get("obs"), "lstsq", task, parse_pattern("column"), drop)
    assert task.error(best.weights, best.shift) < 1e-5  # damping leaves a thousandth of the size


@pytest.mark.parametrize("method", [m.name for m in METHODS])
def test_a_dead_input_and_one_sample_are_no_trouble(method: str) -> None:
    rng = np.random.default_rng(10)
    x = rng.standard_normal((8, 1))
    x[3] = 0
    weights = rng.standard_normal((3, 8))
    task = task_of(weights, x, weights @ x)
    chosen_method = METHODS.get(method)
    chosen: Any = Quota(12)
    if chosen_method.criterion is not None:
        found = scores(chosen_method.evidence, [task], parse_pattern("element"), 1)[0]
        assert np.isfinite(found).all()
        chosen = np.argsort(np.argsort(found.reshape(-1))).reshape(found.shape) < 12
    best = fit(chosen_method, "lstsq", task, parse_pattern("element"), chosen)
    assert np.isfinite(best.weights).all() and np.abs(best.weights).max() < 10 * np.abs(weights).max()


def test_damping_grows_as_data_get_few() -> None:
    gram = np.eye(100)
    assert damping(gram, 10**6) < damping(gram, 1000) < damping(gram, 10)
    assert damping(np.zeros((4, 4)), 10) > 0


def test_sparsegpt_refuses_whole_rows() -> None:
    with pytest.raises(PruneError, match="leaves nothing"):
        check(METHODS.get("sparsegpt"), parse_pattern("row"))
