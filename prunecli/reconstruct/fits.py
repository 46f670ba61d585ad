"""Closed forms for one linear layer, from sums over data (`calibration.grams`) to new weights and a new offset.

bias    b = E[y] - W E[x]: what the removed inputs added on average is added as a constant
bn      W and b scaled and moved per output so that its mean and variance are those wanted: what re-estimating a
        BatchNormalization does, whether it is folded or not
lstsq   W = W0 + (C - W0 G) (G + r d I)^-1, b = E[y] - W E[x]: least squares with a ridge towards the weights as they
        are; G, C of the centred data, d the mean of G's diagonal
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.calibration.grams import Equations

Array = np.ndarray[Any, Any]
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean of G's diagonal, of which held-out data choose one."""
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Fit:
    """`weights` (batch, rows, K) and `constant` (batch, rows), float64."""

    method: str
    weights: Array
    constant: Array
    ridge: float | None = None

    def error(self, sums: Equations) -> float:
        """Mean over positions of the summed |W x + b - y|^2."""
        n, total = max(sums.count, 1), 0.0
        for one, (weights, constant) in enumerate(zip(self.weights, self.constant, strict=True)):
            x, y = sums.x[one] / n, sums.y[one] / n
            plain = sums.problem(one, intercept=False)
            both = np.einsum("ij,ij->", weights @ plain.gram - 2 * plain.cross, weights) + plain.squares.sum()
            total += float(both + (constant * (2 * (weights @ x - y) + constant)).sum())
        return max(total, 0.0)


Former = Callable[[Equations, Fit, bool], Iterator[Fit]]
FORMERS: dict[str, Former] = {}


def former(name: str) -> Callable[[Former], Former]:
    """Register: `function(sums, present, free)` yields candidates. `free`: the layer has a place for an offset."""

    def add(function: Former) -> Former:
        FORMERS[name] = function
        return function

    return add


@former("bias")
def bias(sums: Equations, present: Fit, free: bool) -> Iterator[Fit]:
    """The mean of every output."""
    if free:
        mean = np.einsum("gmk,gk->gm", present.weights, sums.x)
        yield Fit("bias", present.weights, (sums.y - mean) / max(sums.count, 1))


@former("bn")
def bn(sums: Equations, present: Fit, free: bool) -> Iterator[Fit]:
    """Mean and variance of every output. What does not vary keeps its scale."""
    if not free:
        return
    weights, constant = np.empty_like(present.weights), np.empty_like(present.constant)
    for one, old in enumerate(present.weights):
        problem = sums.problem(one, intercept=True)
        variance = np.einsum("ij,ij->i", old @ problem.gram, old)
        alive = (variance > 1e-10 * problem.squares) & (problem.squares > _TINY)
        factor = np.where(alive, np.sqrt(problem.squares / np.where(alive, variance, 1.0)), 1.0)
        weights[one] = old * factor[:, None]
        constant[one] = problem.y - weights[one] @ problem.x
    yield Fit("bn", weights, constant)


@former("lstsq")
def lstsq(sums: Equations, present: Fit, free: bool) -> Iterator[Fit]:
    """Least squares at each of RIDGES."""
    for ridge in RIDGES:
        weights, constant = present.weights.copy(), present.constant.copy()
        for one in range(len(weights)):
            problem = sums.problem(one, intercept=free)
            wanted = problem.cross - weights[one] @ problem.gram
            weights[one] += _solved(problem.gram, wanted, ridge)
            if free:
                constant[one] = problem.y - weights[one] @ problem.x
        if np.isfinite(weights).all():
            yield Fit("lstsq", weights, constant, ridge)


def _solved(gram: Array, wanted: Array, ridge: float) -> Array:
    """wanted (G + ridge d I)^-1; nothing where all inputs are dead."""
    from scipy import linalg

    mean = float(np.trace(gram)) / max(len(gram), 1)
    if mean <= _TINY:
        return np.zeros_like(wanted)
    damped = gram + np.eye(len(gram)) * (ridge * mean)
    try:
        factor = linalg.cho_factor(damped, lower=True, check_finite=False)
    except linalg.LinAlgError:
        return np.full_like(wanted, np.nan)
    return np.asarray(linalg.cho_solve(factor, wanted.T, check_finite=False)).T


def choose(
    method: str, fitted: Equations, held: Equations | None, present: Fit, free: bool
) -> tuple[Fit, float, float]:
    """(the fit that errs least, its error, that of the weights as they are). What is there already always competes.

    Args:
        method: a name of FORMERS, or `auto` for any of them.
        held: sums over data that the fits do not see, which judge; None: the fitting data do, of `lstsq` at the middle
            ridge alone.
    """
    candidates = [present]
    for name in FORMERS if method == "auto" else [method]:
        found = list(FORMERS[name](fitted, present, free))
        candidates += found if held is not None else found[len(found) // 2 : len(found) // 2 + 1]
    errors = [fit.error(fitted if held is None else held) for fit in candidates]
    best = int(np.argmin(errors))
    return candidates[best], errors[best], errors[0]
