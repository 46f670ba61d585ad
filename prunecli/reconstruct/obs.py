"""Optimal Brain Surgeon: what leaving out a unit of inputs costs least squares, the rest refitted, and doing so.

    error(W) = sum over rows of (w - w0)^T G (w - w0)

Without the columns u of a unit the best W for the others errs by w_u^T ([G^-1]_uu)^-1 w_u per row more, [G^-1] the
inverse over the columns that are left. Removing column j changes a row by -w_j / [G^-1]_jj times column j of G^-1
(Hassibi and Stork 1993). G^-1 after t removals is the first one less t outer products (Frantar and Alistarh 2022),
which are applied in blocks, to many problems at once (`Surgeon`).

Rows do not meet in this error, so in exact OBS each loses its weights by itself, least loss first (`removal_losses`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.lanes import in_order, one_blas_thread
from prunecli.masks.patterns import Pattern, Windows

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
        """(problems, left) by how much the error grows without each of the `units`, at most the largest number,
        infinite for those gone."""
        found = self._pivots.losses(self, slice(None))
        if not np.isfinite(found).all():
            worst = np.finfo(found.dtype).max
            found = np.nan_to_num(found, nan=worst, posinf=worst)
        return np.where(self.gone, np.inf, found)

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


_BYTES = 32 << 20  # of the inverses that one worker holds
_EXACT = 320  # columns up to which float64 is used throughout; beyond, float32 ranks as well in half the time
_FLOOR = 1e-6


def removal_losses(weights: Array, grams: Array, columns: Columns, workers: int = 1) -> Array:
    """The loss at which each weight goes when all go one after another, least first.

    Args:
        weights: (batch, rows, K), K in the plain order (taps outermost).
        grams: (batch, K, K), positive definite.
        columns: units and windows. Of N:M windows only so many go as the pattern says.
        workers: threads.

    Returns:
        (batch, rows, K) float64: the greatest loss up to the removal, divided by the weights of the unit, so that
        cutting at any level cuts what a removal in order would have cut. What N:M windows keep has more than all others
        of its row.
    """
    batch, rows, size = weights.shape
    height = columns.rows or rows
    groups = -(-rows // height)
    kind = np.float64 if size <= _EXACT else np.float32
    large, spread = _power(np.abs(weights).max(initial=0)), _power(np.trace(grams, axis1=1, axis2=2).max() / size)
    blocks = np.zeros((batch, groups * height, size), kind)
    blocks[:, :rows] = weights[..., columns.order] / large
    blocks = blocks.reshape(batch * groups, height, size)
    with suited(size):
        inverses = np.linalg.inv(grams[:, columns.order[:, None], columns.order] / spread).astype(kind)
    each = max(1, min(-(-len(blocks) // workers), _BYTES // (inverses[0].nbytes + 1)))

    def work(start: int) -> Array:
        mine = np.arange(start, min(start + each, len(blocks)))
        return _removal(blocks[mine], inverses[mine // groups], columns)

    with one_blas_thread():
        losses = np.concatenate(list(in_order(work, range(0, len(blocks), each), workers)))
    out = np.empty((batch, rows, size))
    out[..., columns.order] = np.repeat(losses.reshape(batch, groups, size), height, axis=1)[:, :rows]
    return out * spread * large * large


def _power(size: float) -> float:
    """The power of two next to a positive number, by which values are scaled without rounding; 1 for others."""
    return 2.0 ** round(np.log2(size)) if 0 < size < np.inf else 1.0


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _removal(weights: Array, inverses: Array, columns: Columns) -> Array:
    """Of groups of rows (groups, height, K), (groups, K): the running greatest loss per weight of the unit; what
    overflows goes last."""
    places, widths = np.arange(columns.widths.max()), columns.widths
    members = np.minimum(columns.starts[:-1, None] + places, columns.starts[1:, None] - 1)
    surgeon = Surgeon(
        weights, inverses, members if len(places) > 1 else None, real=places < widths[:, None], floor=_FLOOR
    )
    out, every, highest = (
        np.full((len(weights), columns.units), np.inf),
        np.arange(len(weights)),
        np.zeros(len(weights)),
    )
    windows = _Windows(columns, len(weights)) if columns.windows is not None else None
    for _ in range(columns.units if windows is None else windows.total):
        losses = surgeon.losses() / widths if len(places) > 1 else surgeon.losses()
        if windows is not None:
            losses = np.where(windows.full(surgeon.units), np.inf, losses)
        chosen = losses.argmin(axis=1)
        unit = surgeon.units[every, chosen]
        highest = np.maximum(highest, losses[every, chosen])
        out[every, unit] = highest
        surgeon.remove(unit)
        if windows is not None:
            windows.take(unit)
    above = np.where(np.isfinite(out), out, (highest * 2 + 1)[:, None])
    return np.repeat(above, columns.widths, axis=1)


class _Windows:
    """How many columns of each N:M window may still go, per group."""

    def __init__(self, columns: Columns, groups: int) -> None:
        assert columns.windows is not None and columns.drop is not None
        self.window = columns.windows
        self.left = np.broadcast_to(columns.drop, (groups, len(columns.drop))).copy()
        self.all = np.arange(groups)
        self.total = int(columns.drop.sum())

    def full(self, columns: Array) -> Array:
        """True where a column's window has lost all it may; (groups, any)."""
        closed: Array = self.left[self.all[:, None], self.window[columns]] == 0
        return closed

    def take(self, column: Array) -> None:
        """One column of each group goes."""
        self.left[self.all, self.window[column]] -= 1


@dataclass(frozen=True)
class Columns:
    """One way of dividing K columns.

    Attributes:
        order: (K,) the columns (taps outermost) in the order in which units are neighbours.
        starts: (U + 1,) where each unit begins in that order; the last entry is K.
        rows: how many rows share one mask; 0 for all of them.
        windows: (K,) the N:M window of each column in that order, or None.
        drop: (windows,) how many columns of each window go.
    """

    order: Array
    starts: Array
    rows: int = 1
    windows: Array | None = None
    drop: Array | None = None

    @property
    def units(self) -> int:
        return len(self.starts) - 1

    @property
    def widths(self) -> Array:
        return np.diff(self.starts)

    @property
    def unit_of(self) -> Array:
        """(K,) the unit of each column, in the order."""
        return np.repeat(np.arange(self.units), self.widths)


def columns_of(pattern: Pattern, rows: int, taps: int, cols: int) -> Columns:
    """The division of a matrix with K = taps x cols columns, taps outermost, by a pattern other than `row`."""
    size = taps * cols
    if isinstance(pattern, Windows):
        ends = _starts(taps, cols, pattern.window)
        widths = np.diff(ends)
        windows = np.repeat(np.arange(len(widths)), widths)
        return Columns(
            np.arange(size), np.arange(size + 1), 1, windows=windows, drop=np.maximum(widths - pattern.keep, 0)
        )
    _, height, depth, width = pattern.tile((1, rows, taps, cols))
    if depth == 1:
        return Columns(np.arange(size), _starts(taps, cols, width), height)
    order = np.arange(size).reshape(taps, cols).T.reshape(-1)  # all taps of an input together
    return Columns(order, np.arange(0, size + 1, taps), height)


def _starts(taps: int, cols: int, width: int) -> Array:
    """Boundaries of stretches of `width` columns that do not cross from one tap to the next."""
    inside = np.arange(0, cols, width)
    starts = (np.arange(taps)[:, None] * cols + inside).reshape(-1)
    return np.append(starts, taps * cols)


def suited(size: int) -> AbstractContextManager[object]:
    """A context for factors and products of matrices of `size` columns: threads pay for large ones only."""
    return nullcontext() if size > 1024 else one_blas_thread()
