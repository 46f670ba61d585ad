"""Optimal Brain Surgeon: what leaving out a unit of inputs costs least squares, the rest refitted, and doing so.

    error(W) = sum over rows of (w - w0)^T G (w - w0)

Without the columns u of a unit the best W for the others errs by w_u^T ([G^-1]_uu)^-1 w_u per row more, [G^-1] the
inverse over the columns that are left. Removing column j changes a row by -w_j / [G^-1]_jj times column j of G^-1
(Hassibi and Stork 1993). G^-1 after t removals is the first one less t outer products (Frantar and Alistarh 2022),
which are applied in blocks, to many problems at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_BLOCK = 32  # removals between two updates of the inverses
_ROUNDING = 8.0  # times the precision, of a column's first pivot: below that the pivot is rounding, and may be negative


class Surgeon:
    """Some problems on their way, which share the division of their columns into units.

    Args:
        weights: (problems, rows, K), inverses: (problems, K, K), of one dtype; both are changed.
        members: (units, width) columns of each unit, no column in two of them; None: every column is a unit.
        real: (units, width) False where a unit has fewer columns; the place then holds any of its columns.
        floor: of the pivots, in parts of the first ones, for inverses that are not exact enough to do without.
    """

    def __init__(
        self, weights: Array, inverses: Array, members: Array | None, real: Array | None = None, floor: float = 0.0
    ) -> None:
        groups, _, size = weights.shape
        self.weights, self.inverses = weights, inverses
        first = inverses.diagonal(axis1=1, axis2=2)
        self.least = np.maximum(_ROUNDING * np.finfo(inverses.dtype).eps * first, np.finfo(inverses.dtype).tiny)
        self.all, self.size, self.single = np.arange(groups), size, members is None
        self.members = np.arange(size)[:, None] if members is None else members
        self.real = np.ones(self.members.shape, np.bool_) if real is None else real
        self.pending, self.waiting = np.zeros((groups, _BLOCK, size), inverses.dtype), 0
        self.place = self.at = np.broadcast_to(np.arange(size), (groups, size))  # of a column, at first and now
        self.removed = np.zeros((groups, size), np.bool_)
        self.gone = self.removed if self.single else np.zeros((groups, len(self.members)), np.bool_)
        self._pivots: _Single | _Blocks = _Single(self, floor) if self.single else _Blocks(self, floor)

    @property
    def units(self) -> Array:
        """(problems, left) which units `losses` tells of."""
        return self.place if self.single else np.broadcast_to(np.arange(len(self.members)), self.gone.shape)

    def losses(self) -> Array:
        """(problems, left) by how much the error grows without each of the `units`; infinite for those gone."""
        return np.where(self.gone, np.inf, self._pivots.losses(self, slice(None)))

    def losses_of(self, units: Array) -> Array:
        """(problems, len(units)) the same of some units that are there in all problems."""
        return self._pivots.losses(self, units)

    def remove(self, unit: Array) -> None:
        """One unit of each problem, (problems,)."""
        for columns, lives in zip(self.members[unit].T, self.real[unit].T, strict=True):
            if lives.any():
                self._remove(self.at[self.all, columns], lives)
        if not self.single:
            self.gone[self.all, unit] = True

    def current(self) -> Array:
        """(problems, rows, K) the weights as they are now, zero in what is gone."""
        out = np.zeros((*self.weights.shape[:2], self.size), self.weights.dtype)
        np.put_along_axis(out, self.place[:, None], np.where(self.removed[:, None], 0, self.weights), axis=2)
        return out

    def _remove(self, at: Array, lives: Array) -> None:
        """One column of every problem (of those that `lives`), and what the others do about it."""
        column = self.inverses[self.all, at]
        if self.waiting:
            seen = self.pending[:, : self.waiting]
            column = column - np.matmul(seen[self.all, :, at][:, None], seen)[:, 0]
        pivot = np.maximum(column[self.all, at], self.least[self.all, at])
        line = np.where(lives[:, None], column / np.sqrt(pivot)[:, None], 0)
        factor = self.weights[self.all, :, at] / pivot[:, None]
        self.weights -= np.where(lives[:, None], factor, 0)[..., None] * column[:, None]
        self.weights[self.all[lives], :, at[lives]] = 0
        self.removed[self.all[lives], at[lives]] = True
        self._pivots.update(line)
        self.pending[:, self.waiting] = line
        self.waiting += 1
        if self.waiting == _BLOCK:
            self._settle()

    def _settle(self) -> None:
        """Apply what is pending, and forget columns that are gone once they are a fifth of all."""
        self.inverses -= np.matmul(self.pending.swapaxes(1, 2), self.pending)
        self.waiting = 0
        groups, size = self.removed.shape
        if not self.single or self.removed[0].sum() * 5 < size:  # of single columns, all problems lose equally many
            return
        kept = (np.flatnonzero(~self.removed) % size).reshape(groups, -1)
        self.inverses = np.stack([one[np.ix_(k, k)] for one, k in zip(self.inverses, kept, strict=True)])
        self.weights = np.take_along_axis(self.weights, kept[:, None], axis=2)
        self.pending = np.zeros((groups, _BLOCK, kept.shape[1]), self.pending.dtype)
        self.place = np.take_along_axis(self.place, kept, axis=1)
        self.least = np.take_along_axis(self.least, kept, axis=1)
        self.removed = self.gone = np.take_along_axis(self.removed, kept, axis=1)
        self.at = np.zeros((groups, self.size), np.int64)
        np.put_along_axis(self.at, self.place, np.arange(kept.shape[1])[None], axis=1)
        if isinstance(self._pivots, _Single):
            self._pivots.keep(kept)


class _Single:
    """[G^-1]_jj, of units of one column."""

    def __init__(self, surgeon: Surgeon, floor: float) -> None:
        self.diagonal = surgeon.inverses.diagonal(axis1=1, axis2=2).copy()
        self.floor = self.diagonal * floor + np.finfo(self.diagonal.dtype).tiny

    def keep(self, kept: Array) -> None:
        self.diagonal = np.take_along_axis(self.diagonal, kept, axis=1)
        self.floor = np.take_along_axis(self.floor, kept, axis=1)

    def losses(self, surgeon: Surgeon, among: slice | Array) -> Array:
        squares = np.square(surgeon.weights).sum(axis=1)
        losses: Array = squares / np.maximum(self.diagonal, self.floor)
        return losses if isinstance(among, slice) else np.take_along_axis(losses, surgeon.at[:, among], axis=1)

    def update(self, line: Array) -> None:
        self.diagonal -= np.square(line)


class _Blocks:
    """[G^-1]_uu, of units of several columns; those that have fewer than the widest are filled up with columns of
    their own that hold nothing."""

    def __init__(self, surgeon: Surgeon, floor: float) -> None:
        self.members, self.real = surgeon.members, surgeon.real
        blocks = surgeon.inverses[:, self.members[:, :, None], self.members[:, None, :]]
        both = self.real[:, :, None] & self.real[:, None, :]
        self.blocks = np.where(both, blocks, np.eye(blocks.shape[-1])).astype(np.float64)
        self.floor = floor * np.einsum("guii->gui", blocks)

    def losses(self, surgeon: Surgeon, among: slice | Array) -> Array:
        held = np.where(self.real[among], surgeon.weights[..., self.members[among]], 0).astype(np.float64)
        safe = self.blocks[:, among] + self.floor[:, among, :, None] * np.eye(self.members.shape[1])
        solved = np.linalg.solve(safe, held.transpose(0, 2, 3, 1))
        losses: Array = np.maximum(np.einsum("ghuc,guch->gu", held, solved), 0)
        return losses

    def update(self, line: Array) -> None:
        part = np.where(self.real, line[:, self.members], 0).astype(np.float64)
        self.blocks -= part[..., :, None] * part[..., None, :]
