"""Closed forms for one linear layer: from sums over the data to new weights and a new offset.

The sums are of X' = [X, 1] (rows are positions) and of what X B + b should be, Y:

    G = X'^T X'    C = X'^T Y    q = sum Y^2 per output    n rows

`bias` meets the mean of every output, `bn` mean and variance (what re-estimating a BatchNormalization does, folded or
not), `lstsq` is least squares with a ridge towards the weights as they are:

    B = B0 + (G + r d I)^-1 (C - G B0),  d the mean of G's diagonal; the offset goes without a ridge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean of the Gram matrix's diagonal, of which held-out data choose one."""


@dataclass
class Sums:
    """Per group of the layer: `gram` (g, d + 1, d + 1), `cross` (g, d + 1, m), `square` (g, m), float64."""

    gram: Array
    cross: Array
    square: Array
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, width: int, outputs: int) -> Sums:
        return cls(
            np.zeros((groups, width + 1, width + 1)), np.zeros((groups, width + 1, outputs)), np.zeros((groups, outputs))
        )

    def add(self, x: Array, y: Array) -> None:
        """x (g, rows, d) and y (g, rows, m), float32; products in float32, sums in float64."""
        width = x.shape[2]
        self.gram[:, :width, :width] += x.transpose(0, 2, 1) @ x
        self.gram[:, :width, width] += x.sum(axis=1, dtype=np.float64)
        self.gram[:, width, :width] = self.gram[:, :width, width]
        self.gram[:, width, width] += x.shape[1]
        self.cross[:, :width] += x.transpose(0, 2, 1) @ y
        self.cross[:, width] += y.sum(axis=1, dtype=np.float64)
        self.square += np.square(y, dtype=np.float64).sum(axis=1)
        self.count += x.shape[1]

    def error(self, matrix: Array) -> float:
        """sum (X' B - Y)^2 for B with its offset in the last row, (g, d + 1, m)."""
        fitted = (matrix * (self.gram @ matrix - 2 * self.cross)).sum(axis=1)
        return max(float((fitted + self.square).sum()), 0.0)

    def spread(self) -> float:
        """sum (Y - mean Y)^2."""
        return max(float((self.square - np.square(self.cross[:, -1]) / max(self.count, 1)).sum()), 0.0)

    def finite(self) -> bool:
        return bool(np.isfinite(self.gram).all() and np.isfinite(self.cross).all() and np.isfinite(self.square).all())


@dataclass(frozen=True)
class Fit:
    """`matrix`: B with the offset in the last row. `label`: what it is, for the report."""

    method: str
    matrix: Array
    ridge: float | None = None


Former = Callable[[Sums, Array, bool], Iterator[Fit]]
FORMERS: dict[str, Former] = {}


def former(name: str) -> Callable[[Former], Former]:
    """Register: `function(sums, present, free)` yields candidates; `present` as `Fit.matrix`, `free`: the layer has a
    place for an offset."""

    def add(function: Former) -> Former:
        FORMERS[name] = function
        return function

    return add


def _moments(sums: Sums, matrix: Array) -> tuple[Array, Array, Array, Array]:
    """Mean and variance of X B (without offset), and of Y: (g, m) each."""
    n, weights = max(sums.count, 1), matrix[:, :-1]
    mean = (sums.gram[:, -1:, :-1] @ weights)[:, 0] / n
    square = (weights * (sums.gram[:, :-1, :-1] @ weights)).sum(axis=1) / n
    wanted = sums.cross[:, -1] / n
    return mean, np.maximum(square - mean**2, 0), wanted, np.maximum(sums.square / n - wanted**2, 0)


@former("bias")
def bias(sums: Sums, present: Array, free: bool) -> Iterator[Fit]:
    """b = mean Y - mean X B: what the removed inputs added on average is added as a constant."""
    if free:
        mean, _, wanted, _ = _moments(sums, present)
        out = present.copy()
        out[:, -1] = wanted - mean
        yield Fit("bias", out)


@former("bn")
def bn(sums: Sums, present: Array, free: bool) -> Iterator[Fit]:
    """B scaled per output so that mean and variance are those of Y."""
    if free:
        mean, variance, wanted, spread = _moments(sums, present)
        alive = variance > 1e-12 * np.maximum(spread, np.finfo(float).tiny)
        factor = np.where(alive, np.sqrt(spread / np.where(alive, variance, 1.0)), 1.0)
        out = present * factor[:, None]
        out[:, -1] = wanted - factor * mean
        yield Fit("bn", out)


@former("lstsq")
def lstsq(sums: Sums, present: Array, free: bool) -> Iterator[Fit]:
    """Least squares at each of RIDGES."""
    width = present.shape[1] - 1
    used = width + 1 if free else width
    gram = sums.gram[:, :used, :used]
    wanted = (sums.cross - sums.gram @ present)[:, :used]
    diagonal = np.einsum("gii->gi", sums.gram[:, :width, :width]).mean(axis=1)
    for ridge in RIDGES:
        change = np.zeros_like(present)
        for g in range(len(present)):
            change[g, :used] = _solve(gram[g], wanted[g], ridge * diagonal[g], width)
        if np.isfinite(change).all():
            yield Fit("lstsq", present + change, ridge)


def _solve(gram: Array, wanted: Array, ridge: float, width: int) -> Array:
    """(G + ridge I)^-1 C by Cholesky; zeros where the inputs are dead."""
    from scipy import linalg

    if ridge <= 0:
        return np.full(wanted.shape, 0.0)
    damped = gram.copy()
    damped[np.arange(width), np.arange(width)] += ridge
    try:
        return np.asarray(linalg.cho_solve(linalg.cho_factor(damped, lower=True, check_finite=False), wanted))
    except linalg.LinAlgError:
        return np.full(wanted.shape, np.nan)


def choose(method: str, fitted: Sums, held: Sums | None, present: Array, free: bool) -> tuple[Fit, float, float]:
    """The fit that errs least on held-out data, with its error and that of the weights as they are.

    Args:
        method: `bias`, `bn`, `lstsq`, or `auto` for any of them; what is there already always competes.
        held: sums over data that the fits do not see; None: the fitting data judge, at the middle ridge.
    """
    judge = fitted if held is None else held
    names = list(FORMERS) if method == "auto" else [method]
    candidates = [Fit("none", present)]
    for name in names:
        found = list(FORMERS[name](fitted, present, free))
        candidates += found if held is not None else found[len(found) // 2 : len(found) // 2 + 1]
    errors = [judge.error(fit.matrix) for fit in candidates]
    best = int(np.argmin(errors))
    return candidates[best], errors[best], errors[0]
