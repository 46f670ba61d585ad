"""Backward elimination of inputs from least-squares problems, the rest refitted each time (Optimal Brain Surgeon with
units for weights; Hassibi and Stork 1993, Frantar and Alistarh 2022).

A layer computes Y = X B0 from inputs with the Gram matrix G = X^T X. Without the inputs of unit u, the best B for the
others errs by

    sum over outputs of b_u^T ([G^-1]_uu)^-1 b_u

more, b_u the unit's rows of the present B and [G^-1] the inverse over the inputs that are left. After each removal
B and G^-1 are brought up to date, so of two equal inputs one goes for nothing and the other then counts for both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Reader:
    """A layer that reads the units. `gram` (d, d) and `matrix` B (d, m), float64. `rows` (n, p): the rows of the units
    in `units` (n,), each of them once. `weight`: of its errors in the sum over readers."""

    gram: Array
    matrix: Array
    units: Array
    rows: Array
    weight: float = 1.0

    def energy(self) -> float:
        """sum Y^2."""
        return float((self.matrix * (self.gram @ self.matrix)).sum())


@dataclass(frozen=True)
class Elimination:
    """`order`: units, the first to go first (one stays). `errors[k]`: weighted error once k of them are gone.
    `snapshots[k]`: B of each reader then, for the k asked for."""

    order: list[int]
    errors: Array
    snapshots: dict[int, list[Array]]


_WORST = float(np.finfo(float).max)
"""What cannot be told goes last, and yet before what is gone already."""
DAMPING = 1e-4
"""Of the mean of G's diagonal, added to it: equal and dead inputs make G singular."""


class _State:
    """One reader on the way: B and the inverse of G over what is left."""

    def __init__(self, reader: Reader, count: int) -> None:
        size = len(reader.gram)
        mean = float(np.trace(reader.gram)) / max(size, 1)
        damped = reader.gram + np.eye(size) * (DAMPING * mean if mean > 0 else 1.0)
        self.inverse, self.matrix, self.weight = np.linalg.inv(damped), reader.matrix.copy(), reader.weight
        self.rows = np.full((count, reader.rows.shape[1]), -1)
        self.rows[reader.units] = reader.rows
        self.reads = self.rows[:, 0] >= 0

    def increases(self, alive: Array) -> Array:
        """The weighted error that each unit's removal adds; infinite for those gone."""
        out = np.where(alive, 0.0, np.inf)
        mine = np.flatnonzero(alive & self.reads)
        if len(mine):
            rows = self.rows[mine]
            blocks, own = self.inverse[rows[:, :, None], rows[:, None, :]], self.matrix[rows]
            out[mine] = self.weight * (own * np.linalg.solve(blocks, own)).sum(axis=(1, 2))
        return out

    def remove(self, unit: int) -> None:
        if not self.reads[unit]:
            return
        rows = self.rows[unit]
        across = self.inverse[:, rows]
        gain = np.linalg.solve(across[rows], np.concatenate([self.matrix[rows], across.T], axis=1))
        width = self.matrix.shape[1]
        self.matrix -= across @ gain[:, :width]
        self.inverse -= across @ gain[:, width:]
        self.matrix[rows] = 0
        self.inverse[rows, :] = 0
        self.inverse[:, rows] = 0
        self.inverse[rows, rows] = 1.0


def eliminate(readers: Sequence[Reader], count: int, most: int, snapshots: Collection[int] = ()) -> Elimination:
    """Remove up to `most` of `count` units, the least missed first; equal ones: the later goes first."""
    states = [_State(reader, count) for reader in readers]
    alive, order, errors = np.ones(count, bool), list[int](), [0.0]
    kept = {0: [state.matrix.copy() for state in states]} if 0 in snapshots else {}
    for gone in range(1, min(most, count) + 1):
        increase = np.sum([state.increases(alive) for state in states], axis=0)
        increase = np.where(alive, np.nan_to_num(increase, nan=_WORST, posinf=_WORST), np.inf)
        unit = count - 1 - int(np.argmin(increase[::-1]))
        for state in states:
            state.remove(unit)
        alive[unit] = False
        order.append(unit)
        errors.append(errors[-1] + max(float(increase[unit]), 0.0))
        if gone in snapshots:
            kept[gone] = [state.matrix.copy() for state in states]
    return Elimination(order, np.array(errors), kept)


def convex(values: Array) -> Array:
    """The largest convex function of the position that is nowhere above `values` (its lower hull)."""
    hull: list[int] = []
    for x in range(len(values)):
        while len(hull) > 1 and _above(values, hull[-2], hull[-1], x):
            hull.pop()
        hull.append(x)
    return np.interp(np.arange(len(values)), hull, values[hull])


def _above(values: Array, a: int, b: int, c: int) -> bool:
    return bool((values[b] - values[a]) * (c - a) >= (values[c] - values[a]) * (b - a))
