"""Granularities as tiles: a tensor read as (batch, rows, taps, cols) is cut into boxes, each box is a unit.

An element is a tile of (1, 1, 1, 1), a block (1, R, 1, C), a row (1, 1, taps, cols), a column
(1, rows, taps, 1). Tiles at the far edges may be smaller. Units are numbered in storage order of their first
weight, whatever the order in which the axes are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prunecli.select.keep import Mask
from prunecli.select.keys import Array

Shape4 = tuple[int, int, int, int]
Axes = tuple[int, ...]

_SLAB = 1 << 18  # elements scored at a time
_NARROW = 64  # units up to this width are gathered with the units side by side in memory


def storage_axes(view: Array) -> Axes:
    """The axes of a view of a C-contiguous array, outermost in memory first."""
    return tuple(sorted(range(view.ndim), key=lambda axis: (-abs(view.strides[axis]), axis)))


class Piece(NamedTuple):
    """A run of equal tiles: `where` they are among the tiles, and `box`, what they cover of the tensor."""

    where: tuple[slice, ...]
    box: tuple[slice, ...]
    tile: tuple[int, ...]


@dataclass(frozen=True)
class Tiling:
    """The tiles of one tensor: its canonical shape, the size of a tile, and the storage order of the axes."""

    shape: Shape4
    tile: Shape4
    order: Axes

    @property
    def grid(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(-(-size // tile) for size, tile in zip(self.shape, self.tile, strict=True))

    @property
    def units(self) -> int:
        return math.prod(self.grid)

    @property
    def width(self) -> int | None:
        """Weights per unit, None if the edges make some smaller."""
        even = all(size % tile == 0 for size, tile in zip(self.shape, self.tile, strict=True))
        return math.prod(self.tile) if even else None

    def sizes(self) -> Array:
        """Weights per unit, in the shape of the grid."""
        total = np.ones((1, 1, 1, 1), np.int64)
        for axis, (size, tile, count) in enumerate(zip(self.shape, self.tile, self.grid, strict=True)):
            along = np.full(count, tile)
            along[count - 1 :] = size - tile * (count - 1)
            total = total * along.reshape([-1 if a == axis else 1 for a in range(4)])
        return total

    def flat(self, grid: Array) -> Array:
        """Values of the grid's shape in the order of the units."""
        return np.broadcast_to(grid, self.grid).transpose(self.order).reshape(-1)

    def expand(self, flat: Mask) -> Mask:
        """One flag per unit, in their order, to one per weight, in the canonical shape."""
        mask = flat.reshape([self.grid[axis] for axis in self.order]).transpose(np.argsort(self.order))
        for axis, (size, tile) in enumerate(zip(self.shape, self.tile, strict=True)):
            if tile > 1:
                mask = np.repeat(mask, min(tile, size), axis=axis)[(slice(None),) * axis + (slice(size),)]
        return mask

    def pieces(self) -> Iterator[Piece]:
        """Cut into runs of equal tiles that are small enough to be scored at once."""
        axis = next((axis for axis in self.order if self.grid[axis] > 1), self.order[0])
        across = math.prod(self.shape) // max(self.shape[axis], 1) * self.tile[axis]
        step = max(1, _SLAB // max(across, 1))
        runs = [list(self._runs(a, step if a == axis else self.grid[a])) for a in range(4)]
        for parts in itertools.product(*runs):
            yield Piece(*(tuple(part[i] for part in parts) for i in range(3)))  # type: ignore[arg-type]

    def _runs(self, axis: int, step: int) -> Iterator[tuple[slice, slice, int]]:
        size, tile = self.shape[axis], self.tile[axis]
        whole = size // tile
        for start in range(0, whole, step):
            stop = min(start + step, whole)
            yield slice(start, stop), slice(start * tile, stop * tile), tile
        if size % tile:
            yield slice(whole, whole + 1), slice(whole * tile, size), size % tile


def gather(view: Array, piece: Piece) -> Array:
    """The weights under a piece as float64 (units, width); units in row-major order of the grid."""
    part = view[piece.box]
    counts = [size // tile for size, tile in zip(part.shape, piece.tile, strict=True)]
    split = part.reshape([n for pair in zip(counts, piece.tile, strict=True) for n in pair])
    units, width = math.prod(counts), math.prod(piece.tile)
    inner = min((abs(part.strides[axis]), axis) for axis in range(4) if part.shape[axis] > 1 or part.size <= 1)[1]
    beside = counts[inner] > piece.tile[inner]  # neighbours in memory belong to different units: leave them there
    if width <= _NARROW or beside:  # sums over a short last axis are slow, over a first axis fast
        return split.transpose(1, 3, 5, 7, 0, 2, 4, 6).astype(np.float64, order="C").reshape(width, units).T
    return split.transpose(0, 2, 4, 6, 1, 3, 5, 7).astype(np.float64, order="C").reshape(units, width)
