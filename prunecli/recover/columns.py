"""How a matrix (rows, K) is divided for closed-form pruning: groups of rows that share a mask, units of columns.

A pattern of `select` says what goes together in (rows, taps, cols); here K = taps x cols is put into an order in which
the columns of every unit, and of every N:M window, are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.select.patterns import Pattern, Windows

Array = np.ndarray[Any, Any]


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
