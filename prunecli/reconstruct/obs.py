"""Exact Optimal Brain Surgeon, row by row: what the output of a layer loses with every weight that goes.

    error(W) = sum_rows (w - w0)^T G (w - w0)        G = X X^T / R, damped

Rows do not meet in this error, so each goes its own way, least loss first (ExactOBS, Frantar and Alistarh 2022), many
at once; `surgeon.py` has the arithmetic.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from prunecli.masks.patterns import Pattern, Windows
from prunecli.reconstruct.surgeon import Surgeon

Array = np.ndarray[Any, Any]
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

    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        losses = np.concatenate(list(pool.map(work, range(0, len(blocks), each))))
    out = np.empty((batch, rows, size))
    out[..., columns.order] = np.repeat(losses.reshape(batch, groups, size), height, axis=1)[:, :rows]
    return out * spread * large * large


def _power(size: float) -> float:
    """The power of two next to a positive number, by which values are scaled without rounding; 1 for others."""
    return 2.0 ** round(np.log2(size)) if 0 < size < np.inf else 1.0


def _removal(weights: Array, inverses: Array, columns: Columns) -> Array:
    """Of groups of rows (groups, height, K), (groups, K): the running greatest loss per weight of the unit."""
    places, widths = np.arange(columns.widths.max()), columns.widths
    members = np.minimum(columns.starts[:-1, None] + places, columns.starts[1:, None] - 1)
    surgeon = Surgeon(weights, inverses, members if len(places) > 1 else None, places < widths[:, None], _FLOOR)
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
        return Columns(np.arange(size), np.arange(size + 1), 1, windows, np.maximum(widths - pattern.keep, 0))
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


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looking for the libraries takes milliseconds


def one_blas_thread() -> AbstractContextManager[object]:
    """A context in which BLAS runs on the calling thread alone."""
    found: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return found


def suited(size: int) -> AbstractContextManager[object]:
    """A context for factors and products of matrices of `size` columns: threads pay for large ones only."""
    return nullcontext() if size > 1024 else one_blas_thread()
