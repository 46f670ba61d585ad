"""Exact Optimal Brain Surgeon, row by row: what the output of a layer loses with every weight that goes.

    error(W) = sum_rows (w - w0)^T G (w - w0)        G = X X^T / R, damped

Removing weight j of a row and letting the others make up for it costs w_j^2 / [G^-1]_jj and changes the row by
-w_j / [G^-1]_jj times column j of G^-1 (Hassibi and Stork 1993). Rows do not meet in this error, so each goes its own
way, least loss first (ExactOBS, Frantar and Alistarh 2022). G^-1 after t removals is the first one less t outer
products, which are applied in blocks, many rows at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.recover.columns import Columns
from prunecli.recover.threads import one_blas_thread, suited

Array = np.ndarray[Any, Any]
_BLOCK = 32  # removals between two updates of the inverses
_BYTES = 32 << 20  # of the inverses that one worker holds
_EXACT = 320  # columns up to which float64 is used throughout; beyond, float32 ranks as well in half the time


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
    blocks = np.zeros((batch, groups * height, size), kind)
    blocks[:, :rows] = weights[..., columns.order]
    blocks = blocks.reshape(batch * groups, height, size)
    with suited(size):
        inverses = np.linalg.inv(grams[:, columns.order[:, None], columns.order]).astype(kind)
    each = max(1, min(-(-len(blocks) // workers), _BYTES // (inverses[0].nbytes + 1)))

    def work(start: int) -> Array:
        mine = np.arange(start, min(start + each, len(blocks)))
        return _Removal(blocks[mine], inverses[mine // groups], columns).run()

    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        losses = np.concatenate(list(pool.map(work, range(0, len(blocks), each))))
    out = np.empty((batch, rows, size))
    out[..., columns.order] = np.repeat(losses.reshape(batch, groups, size), height, axis=1)[:, :rows]
    return out


@dataclass
class _Removal:
    """Some groups of rows on their way. `weights` (groups, height, K) and `inverses` (groups, K, K), which lack what is
    still `pending`; `place` (groups, K): where each column, of those that are still there, stood at first."""

    weights: Array
    inverses: Array
    columns: Columns
    waiting: int = 0

    def __post_init__(self) -> None:
        groups, _, size = self.weights.shape
        self.all = np.arange(groups)
        self.pending = np.zeros((groups, _BLOCK, size), self.inverses.dtype)
        self.place = np.broadcast_to(np.arange(size), (groups, size))
        self.removed = np.zeros((groups, size), np.bool_)
        self.single = bool((self.columns.widths == 1).all())
        self.scorer = _Single(self) if self.single else _Blocks(self)
        self.closed = np.zeros((groups, self.columns.units), np.bool_)
        self.windows = _Windows(self.columns, groups) if self.columns.windows is not None else None
        if self.windows is not None:
            self.closed |= self.windows.full(self.place)

    def run(self) -> Array:
        """(groups, K): the running greatest loss per weight of the unit, by column."""
        columns, groups = self.columns, len(self.weights)
        out = np.full((groups, columns.units), np.inf)
        highest = np.zeros(groups)
        for _ in range(columns.units if self.windows is None else self.windows.total):
            scores = np.where(self.closed, np.inf, self.scorer.scores())
            chosen = scores.argmin(axis=1)
            highest = np.maximum(highest, scores[self.all, chosen])
            unit = self.place[self.all, chosen] if self.single else chosen
            out[self.all, unit] = highest
            self.closed[self.all, chosen] = True
            if self.windows is not None:
                self.closed |= self.windows.take(unit, self.place)
            self._remove(chosen)
        above = np.where(np.isfinite(out), out, (highest * 2 + 1)[:, None])
        return np.repeat(above, columns.widths, axis=1)

    def _remove(self, chosen: Array) -> None:
        if self.single:
            self._remove_columns(chosen, np.ones(len(chosen), np.bool_))
            return
        starts, widths = self.columns.starts[chosen], self.columns.widths[chosen]
        for place in range(int(widths.max())):
            lives = place < widths
            self._remove_columns(np.where(lives, starts + place, starts), lives)

    def _remove_columns(self, at: Array, lives: Array) -> None:
        """One column of every group (of those that `lives`), and what the others do about it."""
        column = self.inverses[self.all, at]
        if self.waiting:
            seen = self.pending[:, : self.waiting]
            column = column - np.matmul(seen[self.all, :, at][:, None], seen)[:, 0]
        pivot = np.maximum(column[self.all, at], np.finfo(column.dtype).tiny)
        line = np.where(lives[:, None], column / np.sqrt(pivot)[:, None], 0)
        factor = self.weights[self.all, :, at] / pivot[:, None]
        self.weights -= np.where(lives[:, None], factor, 0)[..., None] * column[:, None]
        self.weights[self.all[lives], :, at[lives]] = 0
        self.removed[self.all[lives], at[lives]] = True
        self.scorer.update(line)
        self.pending[:, self.waiting] = line
        self.waiting += 1
        if self.waiting == _BLOCK:
            self._settle()

    def _settle(self) -> None:
        """Apply what is pending, and forget columns that are gone once they are a fifth of all."""
        self.inverses -= np.matmul(self.pending.swapaxes(1, 2), self.pending)
        self.waiting = 0
        groups, size = self.removed.shape
        if not self.single or self.removed[0].sum() * 5 < size:  # of single columns, all groups lose equally many
            return
        kept = (np.flatnonzero(~self.removed) % size).reshape(groups, -1)
        self.inverses = np.stack([one[np.ix_(k, k)] for one, k in zip(self.inverses, kept, strict=True)])
        self.weights = np.take_along_axis(self.weights, kept[:, None], axis=2)
        self.pending = np.zeros((groups, _BLOCK, kept.shape[1]), self.pending.dtype)
        self.place = np.take_along_axis(self.place, kept, axis=1)
        self.closed = np.take_along_axis(self.closed, kept, axis=1)
        self.removed = np.take_along_axis(self.removed, kept, axis=1)
        assert isinstance(self.scorer, _Single)
        self.scorer.keep(kept)


class _Windows:
    """How many columns of each N:M window may still go, per group."""

    def __init__(self, columns: Columns, groups: int) -> None:
        assert columns.windows is not None and columns.drop is not None
        self.window = columns.windows
        self.left = np.broadcast_to(columns.drop, (groups, len(columns.drop))).copy()
        self.all = np.arange(groups)
        self.total = int(columns.drop.sum())

    def full(self, place: Array) -> Array:
        """True where a column's window has lost all it may."""
        closed: Array = self.left[self.all[:, None], self.window[place]] == 0
        return closed

    def take(self, column: Array, place: Array) -> Array:
        """One column of each group goes; what is closed from now on."""
        self.left[self.all, self.window[column]] -= 1
        return self.full(place)


class _Single:
    """Losses of units of one column: sum over rows of w_j^2 / [G^-1]_jj."""

    def __init__(self, removal: _Removal) -> None:
        self.removal = removal
        self.diagonal = removal.inverses.diagonal(axis1=1, axis2=2).copy()
        self.floor = self.diagonal * 1e-6 + np.finfo(self.diagonal.dtype).tiny

    def keep(self, kept: Array) -> None:
        self.diagonal = np.take_along_axis(self.diagonal, kept, axis=1)
        self.floor = np.take_along_axis(self.floor, kept, axis=1)

    def scores(self) -> Array:
        squares = np.square(self.removal.weights).sum(axis=1)
        losses: Array = squares / np.maximum(self.diagonal, self.floor)
        return losses

    def update(self, line: Array) -> None:
        self.diagonal -= np.square(line)


class _Blocks:
    """Losses of units of several columns: sum over rows of w_b^T ([G^-1]_bb)^-1 w_b, per weight. Units that are
    narrower than the widest are filled up with columns of their own that hold nothing."""

    def __init__(self, removal: _Removal) -> None:
        self.removal = removal
        starts, widths = removal.columns.starts, removal.columns.widths
        places = np.arange(widths.max())
        self.real = places < widths[:, None]
        self.members = np.minimum(starts[:-1, None] + places, starts[1:, None] - 1)
        self.widths = widths
        blocks = removal.inverses[:, self.members[:, :, None], self.members[:, None, :]]
        self.blocks = self._filled(blocks).astype(np.float64)
        self.floor = 1e-6 * np.einsum("guii->gui", blocks)

    def _filled(self, blocks: Array) -> Array:
        both = self.real[:, :, None] & self.real[:, None, :]
        return np.where(both, blocks, np.eye(blocks.shape[-1]))

    def scores(self) -> Array:
        held = np.where(self.real, self.removal.weights[..., self.members], 0).astype(np.float64)
        safe = self.blocks + (self.floor[..., None] * np.eye(self.members.shape[1]))
        solved = np.linalg.solve(safe, held.transpose(0, 2, 3, 1))
        losses = np.einsum("ghuc,guch->gu", held, solved)
        each: Array = np.maximum(losses, 0) / self.widths
        return each

    def update(self, line: Array) -> None:
        part = np.where(self.real, line[:, self.members], 0).astype(np.float64)
        self.blocks -= part[..., :, None] * part[..., None, :]
