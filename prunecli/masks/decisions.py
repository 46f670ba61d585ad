"""What becomes of one weight: decisions that are recomputed from the weight whenever they are needed.

No decision holds a mask, so that a model of any size can be decided on at once and written tensor by tensor.
All give the same answer for the same array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from prunecli.masks.keys import Array, key_chunks, key_format, magnitude_keys, words
from prunecli.masks.patterns import Mask, Tiling, drop_within, keep_top, storage_axes, window_drop
from prunecli.masks.scopes import budget_of
from prunecli.masks.stream import CutPoint, not_finite
from prunecli.masks.units import Target, Units

_SLAB = 1 << 18


class Decision(Protocol):
    """Which elements of one weight become zero."""

    def drop(self, array: Array) -> Mask:
        """True where an element of the stored array becomes zero."""
        ...

    def apply(self, array: Array) -> Array:
        """A copy of the stored array in which those elements are (positive) zero, all others bit for bit
        as they were."""
        ...


def zeroed(array: Array, drop: Mask) -> Array:
    """`numpy.where(drop, 0, array)` in the array's own type."""
    keep = np.logical_not(drop).reshape(-1)
    out = np.empty(array.shape, array.dtype)
    _times(words(array), keep, out.reshape(-1).view(key_format(array.dtype).word))
    return out


def _times(bits: Array, keep: Mask, out: Array) -> None:
    """Integer multiplication by 0 or 1: several times as fast as a masked copy."""
    step = 1 << 16
    for start in range(0, bits.size, step):
        part = slice(start, start + step)
        np.multiply(bits[part], keep[part], out=out[part])


@dataclass(frozen=True)
class ByBits:
    """Single weights by magnitude: the cut is replayed on the stored bits."""

    cut: CutPoint

    def drop(self, array: Array) -> Mask:
        mask, start = np.empty(array.size, np.bool_), 0
        for piece in self.cut.masks(array):
            mask[start : start + piece.size] = piece
            start += piece.size
        return mask.reshape(array.shape)

    def apply(self, array: Array) -> Array:
        bits, out = words(array), np.empty(array.shape, array.dtype)
        result, start = out.reshape(-1).view(bits.dtype), 0
        for piece in self.cut.masks(array):
            part = slice(start, start + piece.size)
            np.multiply(bits[part], np.logical_not(piece, out=piece), out=result[part])
            start += piece.size
        return out


@dataclass(frozen=True)
class ByUnits:
    """Tiles, or elements by another criterion: scored anew, then cut."""

    target: Target
    units: Units
    cut: CutPoint

    def drop(self, array: Array) -> Mask:
        return self.units.dropped(self.target, array, self.cut)

    def apply(self, array: Array) -> Array:
        return zeroed(array, self.drop(array))


@dataclass(frozen=True)
class InWindows:
    """N:M, over the scores of single weights."""

    target: Target
    units: Units
    keep: int
    window: int

    def drop(self, array: Array) -> Mask:
        if self.units.by_bits:
            check_finite(self.target.name, array)
            scores = self.target.canonical(array)
        else:
            scores = self.units.scores(self.target, array, self.units.tiling(self.target, array))
        return self.target.restore(window_drop(scores, self.keep, self.window))

    def apply(self, array: Array) -> Array:
        return zeroed(array, self.drop(array))


@dataclass(frozen=True)
class InRows:
    """Every row is a pool: round(S * n) of its n weights go."""

    target: Target
    units: Units
    sparsity: float

    def drop(self, array: Array) -> Mask:
        view = self.target.canonical(array)
        if self.units.by_bits:
            check_finite(self.target.name, array)
            return self.target.restore(row_drop(view, self.sparsity))
        tiling = self.units.tiling(self.target, array)
        scores = self.units.scores(self.target, array, tiling)
        return self.target.restore(tiling.expand(tiling.flat(_drop_in_rows(tiling, scores, self.sparsity))))

    def apply(self, array: Array) -> Array:
        return zeroed(array, self.drop(array))


@dataclass(frozen=True)
class Rewritten:
    """Chosen elements are zero, and the others have new `values`: what closed-form fitting makes of a weight.

    values: of the stored shape and type, zero where `packed` (numpy.packbits of the flat mask) has a 1.
    """

    values: Array
    packed: Array

    @classmethod
    def of(cls, values: Array, drop: Mask, dtype: np.dtype[Any]) -> Rewritten:
        """`values` rounded to `dtype`. One that would become zero by rounding alone keeps the least size there is, so
        that exactly what `drop` names is zero."""
        rounded = np.where(drop, 0, values).astype(dtype)
        lost = (rounded == 0) & ~drop & (values != 0)
        if lost.any():
            least = np.array(1, key_format(dtype).word).view(dtype)
            rounded[lost] = np.where(values[lost] < 0, -least, least)
        return cls(rounded, np.packbits(drop.reshape(-1)))

    def drop(self, array: Array) -> Mask:
        return np.unpackbits(self.packed, count=array.size).view(np.bool_).reshape(array.shape)

    def apply(self, array: Array) -> Array:
        return self.values


def check_finite(name: str, array: Array) -> None:
    """Raises PruneError if a value is NaN or infinite."""
    limit = key_format(array.dtype).limit
    if any(keys.max() >= limit for keys in key_chunks(array)):
        raise not_finite(name, array)


def row_drop(view: Array, sparsity: float) -> Mask:
    """True for the round(S * n) smallest magnitudes of each row of (batch, rows, taps, cols)."""
    inner = [axis for axis in storage_axes(view) if axis > 1]
    lines = view.transpose(0, 1, *inner)
    if lines.shape[1] == 1:  # grouped convolutions with one output each: many batches of one row
        lines = lines.swapaxes(0, 1)
    drop, width = np.empty(lines.shape, np.bool_), math.prod(lines.shape[2:])
    quota = width - budget_of(width, sparsity)
    step = max(1, _SLAB // max(1, width))
    for batch in range(lines.shape[0]):
        for start in range(0, lines.shape[1], step):
            part = lines[batch, start : start + step]
            keys = magnitude_keys(np.ascontiguousarray(part)).reshape(len(part), width)
            drop[batch, start : start + step] = ~keep_top(keys, quota).reshape(part.shape)
    if view.shape[1] == 1:
        drop = drop.swapaxes(0, 1)
    return drop.transpose(np.argsort([0, 1, *inner]))


def _drop_in_rows(tiling: Tiling, scores: Array, sparsity: float) -> Mask:
    """The same for tiles: pools are rows of the grid, budgets are in weights."""
    inner = [axis for axis in tiling.order if axis > 1]
    ordered = scores.transpose(0, 1, *inner)
    sizes = np.broadcast_to(tiling.sizes(), tiling.grid).transpose(0, 1, *inner)
    pools = ordered.shape[0] * ordered.shape[1]
    sizes = sizes.reshape(pools, -1)
    budgets = np.array([budget_of(int(total), sparsity) for total in sizes.sum(axis=1)], np.int64)
    drop = drop_within(ordered.reshape(pools, -1), sizes, budgets)
    return drop.reshape(ordered.shape).transpose(np.argsort([0, 1, *inner]))
