"""Closed forms of one layer against what they promise, computed from the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest

from prunecli.arrays import Array
from prunecli.calibration.grams import Equations
from prunecli.reconstruct.refit import FORMERS, Fit, choose

INPUTS, OUTPUTS, ROWS = 5, 3, 400


def samples(seed: int = 0, rows: int = ROWS) -> tuple[Array, Array]:
    """X (1, K, R) with means, and what an affine map of it gives, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, INPUTS, rows)) + np.arange(INPUTS)[None, :, None]
    matrix = np.random.default_rng(9).standard_normal((OUTPUTS, INPUTS))
    y = matrix @ x[0] + 2 + 0.1 * rng.standard_normal((OUTPUTS, rows))
    return x.astype(np.float32), y[None].astype(np.float32)


def sums(x: Array, y: Array) -> Equations:
    return Equations.of(x, y)


def present(scale: float = 0.3) -> Fit:
    rng = np.random.default_rng(5)
    return Fit("none", scale * rng.standard_normal((1, OUTPUTS, INPUTS)), np.zeros((1, OUTPUTS)))


def output(fit: Fit, x: Array) -> Array:
    return fit.weights @ x + fit.constant[:, :, None]


def test_the_error_is_that_of_the_samples() -> None:
    x, y = samples()
    fit = Fit("none", present().weights, np.ones((1, OUTPUTS)))
    wanted = np.square(output(fit, x) - y).sum() / ROWS
    assert fit.error(sums(x, y)) == pytest.approx(wanted, rel=1e-5)  # float32 products


def means(x: Array, y: Array, fit: Fit) -> None:
    np.testing.assert_allclose(output(fit, x).mean(axis=2), y.mean(axis=2), rtol=1e-4)


def variances(x: Array, y: Array, fit: Fit) -> None:
    means(x, y, fit)
    np.testing.assert_allclose(output(fit, x).var(axis=2), y.var(axis=2), rtol=1e-3)


def residuals(x: Array, y: Array, fit: Fit) -> None:
    """What is left over is the noise, and (nearly) orthogonal to the inputs."""
    left = output(fit, x) - y
    assert left.var() < 1.1 * 0.1**2


PROMISES = {"bias": means, "bn": variances, "lstsq": residuals}


def test_every_form_has_a_promise() -> None:
    assert set(FORMERS) == set(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_promises(name: str) -> None:
    x, y = samples()
    fit = next(iter(FORMERS[name](sums(x, y), present(), True)))
    PROMISES[name](x, y, fit)
    with pytest.raises(AssertionError):  # and a wrong one does not keep them
        PROMISES[name](x, y, Fit(name, 1.2 * fit.weights, fit.constant + 0.2))


@pytest.mark.parametrize("name", FORMERS)
def test_without_a_place_for_an_offset_none_is_asked_for(name: str) -> None:
    x, y = samples()
    assert all((fit.constant == 0).all() for fit in FORMERS[name](sums(x, y), present(), False))


@pytest.mark.parametrize("name", FORMERS)
@pytest.mark.parametrize("case", ["dead", "one", "equal", "constant"])
def test_degenerate_data_leave_finite_weights(name: str, case: str) -> None:
    x, y = samples(rows=1 if case == "one" else 50)
    if case == "dead":
        x[:] = 0
    if case == "equal":
        x[:, 1] = x[:, 0]
    if case == "constant":
        x[:], y[:] = 1, 3
    for fit in FORMERS[name](sums(x, y), present(), True):
        assert np.isfinite(fit.weights).all() and np.isfinite(fit.constant).all()
        if case == "dead" and name != "bn":
            np.testing.assert_allclose(fit.weights, present().weights)


def test_groups_are_fitted_each_on_its_own() -> None:
    """To the rounding of float32 sums, which are in another order for several groups, times the condition of inputs whose
    means are four times their deviations."""
    (x0, y0), (x1, y1) = samples(0), samples(1)
    both = sums(np.concatenate([x0, x1]), np.concatenate([y0, 3 * y1]))
    old = Fit("none", np.repeat(present().weights, 2, axis=0), np.zeros((2, OUTPUTS)))
    together = next(iter(FORMERS["lstsq"](both, old, True)))
    for one, (x, y) in enumerate([(x0, y0), (x1, 3 * y1)]):
        alone = next(iter(FORMERS["lstsq"](sums(x, y), present(), True)))
        np.testing.assert_allclose(together.weights[one], alone.weights[0], rtol=1e-3, atol=1e-4)
        assert (
            abs(together.weights[one] - alone.weights[0]).max()
            < 1e-3 * abs(together.weights[0] - together.weights[1]).max()
        )


def test_held_out_data_choose() -> None:
    """Twelve rows for five inputs and noise: little is worth fitting, and held-out data see it."""
    rng = np.random.default_rng(3)
    x, y = samples(rows=12)
    noise = rng.standard_normal(y.shape).astype(np.float32)
    held_x, _ = samples(7)
    held = sums(held_x, rng.standard_normal((1, OUTPUTS, ROWS)).astype(np.float32))
    small = Fit("none", np.zeros((1, OUTPUTS, INPUTS)), np.zeros((1, OUTPUTS)))
    fit, after, before = choose("auto", sums(x, noise), held, small, True)
    assert fit.method == "none" and after == before
    fit, after, before = choose("auto", sums(x, y), sums(*samples(8)), small, True)
    assert fit.method == "lstsq" and after < 0.1 * before
    assert choose("bias", sums(x, y), None, small, True)[0].method == "bias"
