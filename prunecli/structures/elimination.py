"""Backward elimination of inputs from least-squares problems, the rest refitted each time (Optimal Brain Surgeon with
units for weights; Hassibi and Stork 1993, Frantar and Alistarh 2022).

A layer computes Y = X B0 from inputs with the Gram matrix G = X^T X. After each removal B and G^-1 are brought up to
date (`reconstruct/obs.py`), so of two equal inputs one goes for nothing and the other then counts for both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.masks.allocations import lower_hull
from prunecli.reconstruct.obs import Surgeon, suited

RIDGE = 1e-4
"""Ridge where no data choose one."""


@dataclass
class UnitReader:
    """A layer that reads the units. `gram` (d, d) and `matrix` B (d, m), float64. `rows` (n, p): the rows of the units
    in `units` (n,), each of them once. `weight`: of its errors in the sum over readers. `ridge`: of the mean of G's
    diagonal, added to it: equal and dead inputs make G singular."""

    gram: Array
    matrix: Array
    units: Array
    rows: Array
    weight: float = 1.0
    ridge: float = RIDGE

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
"""Score of units whose loss is not finite: removed last, but before units that are gone already."""
_TINY, _HUGE = float(np.finfo(float).tiny), 1e200
"""Damage above `_HUGE` counts as that, so that differences stay finite."""


class _State:
    """The state of one reader during the elimination."""

    def __init__(self, reader: UnitReader, count: int) -> None:
        wide = reader.rows.shape[1] > 1
        members = reader.rows if wide else None
        self.surgeon = Surgeon(reader.matrix.T[None].copy(), _inverse(reader.gram, reader.ridge)[None], members)
        self.weight, self.own = reader.weight, np.full(count, -1)
        self.own[reader.units] = np.arange(len(reader.units)) if wide else reader.rows[:, 0]

    @property
    def matrix(self) -> Array:
        """The present B."""
        matrix: Array = self.surgeon.current()[0].T
        return matrix

    def increases(self, alive: Array) -> Array:
        """The weighted error that each unit's removal adds; infinite for removed units."""
        out = np.where(alive, 0.0, np.inf)
        mine = np.flatnonzero(alive & (self.own >= 0))
        if len(mine):
            out[mine] = self.weight * self.surgeon.losses_of(self.own[mine])[0]
        return out

    def remove(self, unit: int) -> None:
        if self.own[unit] >= 0:
            self.surgeon.remove(self.own[[unit]])


def _inverse(gram: Array, ridge: float) -> Array:
    """Return the inverse of G with `ridge` added to its diagonal; more where G is so small that rounding made it
    indefinite.

    Products in float32 are not exactly symmetric. Where means are large relative to deviations, the asymmetry exceeds
    the ridge and grows with every removal, so G and its transpose are averaged.
    """
    if not np.isfinite(gram).all():
        return np.full_like(gram, np.nan)
    gram = (gram + gram.T) / 2
    size = len(gram)
    mean = float(np.trace(gram)) / max(size, 1)
    added = ridge * mean if mean > 0 else 1.0
    while True:
        damped = gram + np.eye(size) * added
        try:
            np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            added *= 10
        else:
            return np.linalg.inv(damped)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def eliminate(readers: Sequence[UnitReader], count: int, most: int, snapshots: Collection[int] = ()) -> Elimination:
    """Remove up to `most` of `count` units, in the order of least added error; of equal ones the later first. A unit
    whose loss overflows is removed last."""
    with suited(max((len(reader.gram) for reader in readers), default=0)):
        return _eliminated(readers, count, most, snapshots=snapshots)


def _eliminated(readers: Sequence[UnitReader], count: int, most: int, snapshots: Collection[int]) -> Elimination:
    states = [_State(reader, count) for reader in readers]
    alive, order, errors = np.ones(count, bool), list[int](), [0.0]
    kept = {0: [state.matrix for state in states]} if 0 in snapshots else {}
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
            kept[gone] = [state.matrix for state in states]
    return Elimination(order, np.array(errors), kept)


def convex(values: Array) -> Array:
    """Return the largest convex function of the position that is nowhere above `values` (its lower hull)."""
    places = np.arange(len(values))
    corners = lower_hull(places, values)
    return np.interp(places, corners, values[corners])


@dataclass(frozen=True)
class UnitCurve:
    """`order`: units of the group in the order of removal. `damage[k]`: of the outputs without the first k."""

    count: int
    order: list[int]
    damage: Array

    def scores(self) -> Array:
        """Return one score per unit, larger for those removed later; infinite for units that stay."""
        out, damage = np.full(self.count, np.inf), np.minimum(self.damage, _HUGE)
        steps = np.maximum(np.diff(convex(damage)), 0)
        out[self.order] = steps + np.arange(len(steps)) * (1e-9 * max(float(damage.max()), _TINY))
        return out
