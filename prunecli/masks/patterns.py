"""Patterns: what is dropped together. Written `element`, `row`, `column`, `RxC` or `N:M`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from prunecli.arrays import Array, Mask
from prunecli.errors import PruneError
from prunecli.float_keys import magnitude_keys
from prunecli.registry import Registry


@dataclass(frozen=True)
class Tiles:
    """Units are boxes of the tensor as (batch, rows, taps, cols); `tile` sizes them from its shape."""

    text: str
    tile: Callable[[Shape4], Shape4]
    rows_compete: bool
    """Whether several units lie in one row, so that `--scope row` makes sense."""

    @property
    def single(self) -> bool:
        """Whether every unit is one weight."""
        return self.text == "element"


@dataclass(frozen=True)
class Windows:
    """Of every `window` neighbours along the reduction axis, `keep` are kept."""

    text: str
    keep: int
    window: int


Pattern = Tiles | Windows


@dataclass(frozen=True)
class PatternForm:
    """A way of writing patterns: `syntax` must match all of the text; `build` gets the numbers in it."""

    name: str
    help: str
    syntax: str
    build: Callable[..., Pattern]


PATTERNS: Registry[PatternForm] = Registry("pattern")
Builder = TypeVar("Builder", bound=Callable[..., Pattern])


def pattern_form(name: str, help: str, syntax: str | None = None) -> Callable[[Builder], Builder]:
    """Register the builder of a pattern; `syntax` is a regular expression whose groups are its integers."""

    def register(build: Builder) -> Builder:
        PATTERNS.add(PatternForm(name, help, syntax or name, build=build))
        return build

    return register


def parse_pattern(text: str) -> Pattern:
    """Read a pattern.

    Raises:
        PruneError: it is none of the known forms, or its numbers make no sense.
    """
    for form in PATTERNS:
        match = re.fullmatch(form.syntax, text.strip().lower())
        if match:
            return form.build(*(int(number) for number in match.groups()))
    raise PruneError(
        f"{text!r} is not a pattern", f"write {', '.join(form.name for form in PATTERNS)}, such as 2:4 or 4x1"
    )


@pattern_form("element", "single weights")
def element() -> Tiles:
    return Tiles("element", lambda shape: (1, 1, 1, 1), rows_compete=True)


@pattern_form("N:M", "keeps the N largest of every M along the reduction axis", r"(\d{1,9}):(\d{1,9})")
def n_of_m(keep: int, window: int) -> Pattern:
    if not 0 < keep < window:
        raise PruneError(f"the pattern {keep}:{window} does not keep some and drop some", "write N:M with 0 < N < M")
    return Windows(f"{keep}:{window}", keep, window)


@pattern_form("RxC", "blocks of R outputs by C inputs", r"(\d{1,9})x(\d{1,9})")
def block(rows: int, cols: int) -> Pattern:
    if rows < 1 or cols < 1:
        raise PruneError(f"a block of {rows}x{cols} holds nothing", "write RxC with both at least 1")
    if rows == cols == 1:
        return element()

    def tile(shape: Shape4) -> Shape4:
        return 1, max(1, min(rows, shape[1])), 1, max(1, min(cols, shape[3]))

    return Tiles(f"{rows}x{cols}", tile, rows_compete=True)


@pattern_form("row", "all weights of one output (neuron, filter)")
def row() -> Pattern:
    return Tiles("row", lambda shape: (1, 1, max(1, shape[2]), max(1, shape[3])), rows_compete=False)


@pattern_form("column", "all weights of one input")
def column() -> Pattern:
    return Tiles("column", lambda shape: (1, max(1, shape[1]), max(1, shape[2]), 1), rows_compete=False)


def keep_top(scores: Array, quota: int) -> Mask:
    """True for the `quota` highest scores of every pool; of equal scores the earlier are kept.

    Args:
        scores: (..., n); each vector along the last axis is a pool of its own.
        quota: how many to keep in each pool, 0 <= quota <= n.

    Returns:
        A mask of the shape of `scores` with exactly `quota` True in every pool.

    Raises:
        ValueError: the quota is out of range, or a score is NaN.
    """
    size = scores.shape[-1]
    if not 0 <= quota <= size:
        raise ValueError(f"cannot keep {quota} of {size}")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    if quota in (0, size):
        return np.full(scores.shape, quota == size)
    edge = np.partition(scores, size - quota, axis=-1)[..., size - quota, None]  # the lowest score kept
    keep: Mask = scores >= edge
    surplus = np.count_nonzero(keep, axis=-1) > quota
    if surplus.any():
        keep[surplus] = _first_ties(scores[surplus], edge[surplus], quota)
    return keep


def _first_ties(scores: Array, edge: Array, quota: int) -> Mask:
    """All above the edge, and as many of those at the edge, from the front, as the quota has room for."""
    above, ties = scores > edge, scores == edge
    room = quota - np.count_nonzero(above, axis=-1)[..., None]
    keep: Mask = above | (ties & (np.cumsum(ties, axis=-1) <= room))
    return keep


def keep_slots(slots: Sequence[Array], quota: int) -> list[Mask]:
    """`keep_top` for very many very small pools: pool i is (slots[0][i], slots[1][i], ...).

    Compares every pair of slots, all pools at once: a slot is kept if fewer than `quota` others beat it. A
    slot beats a later one at equal score. Cost grows with the square of the number of slots.

    Args:
        slots: M arrays of one shape (N:M windows: the M positions of every window), without NaN.
        quota: how many slots of each pool to keep.

    Returns:
        M masks of that shape.
    """
    count = np.dtype(np.uint8 if len(slots) < 256 else np.int32)
    beaten = [np.full(slot.shape, len(slots) - 1 - i, count) for i, slot in enumerate(slots)]
    wins = np.empty(slots[0].shape, np.bool_)
    for later in range(1, len(slots)):
        for earlier in range(later):
            np.greater_equal(slots[earlier], slots[later], out=wins)
            beaten[earlier] -= wins.view(np.uint8)
            beaten[later] += wins.view(np.uint8)
    return [np.less(times, quota) for times in beaten]


def drop_within(scores: Array, sizes: Array, budgets: Array) -> Mask:
    """Drop the lowest units of every pool, in order, while they fit its budget.

    The order is ascending score, later units first among equals; it stops at the first unit that does not
    fit, so that no unit is dropped before a less important one.

    Args:
        scores: (pools, n), without NaN.
        sizes: (pools, n) or broadcastable: weights per unit.
        budgets: (pools,): weights that may go from each pool.

    Returns:
        (pools, n), True where a unit is dropped.
    """
    sizes, budgets = np.asarray(sizes), np.asarray(budgets)
    if sizes.size and sizes.min() == sizes.max():  # a quota for each pool, which needs no order of all units
        drop, size = np.empty(scores.shape, np.bool_), scores.shape[1]
        quotas = size - np.clip(budgets // sizes.flat[0], 0, size)
        for quota in np.unique(quotas):
            pools = quotas == quota
            drop[pools] = ~keep_top(scores[pools], int(quota))
        return drop
    order = np.argsort(scores[:, ::-1], axis=1, kind="stable")
    order = scores.shape[1] - 1 - order
    spent = np.cumsum(np.take_along_axis(np.broadcast_to(sizes, scores.shape), order, axis=1), axis=1)
    drop = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(drop, order, spent <= budgets[:, None], axis=1)
    return drop


_SLAB = 1 << 17  # elements worked on at a time
_PAIRWISE = 16  # windows up to this size are ranked by comparing pairs, larger ones by partition


def window_drop(view: Array, keep: int, window: int) -> Mask:
    """True where a weight is not among the `keep` largest magnitudes of its window.

    Args:
        view: (batch, rows, taps, cols); windows of `window` neighbours run along cols. The last one of each
            line may be shorter: of its r weights min(keep, r) are kept.

    Returns:
        A mask of that shape. Of equal magnitudes the earlier are kept.
    """
    order = storage_axes(view)
    ordered = np.ascontiguousarray(view.transpose(order))
    place = order.index(3)
    outer, inner = math.prod(ordered.shape[:place]), math.prod(ordered.shape[place + 1 :])
    lines = ordered.reshape(outer, view.shape[3], inner)
    drop = np.zeros(lines.shape, np.bool_)
    whole = view.shape[3] - view.shape[3] % window
    for rows, cols in _slabs(outer, whole, inner, window=window):
        _drop_windows(lines[rows, cols], drop[rows, cols], keep, window=window)
    rest = view.shape[3] - whole
    if rest > keep:
        _drop_windows(lines[:, whole:], drop[:, whole:], keep, window=rest)
    return drop.reshape(ordered.shape).transpose(np.argsort(order))


def _slabs(outer: int, cols: int, inner: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Parts of (outer, cols, inner) of about _SLAB elements, in whole windows."""
    lines = max(1, _SLAB // max(1, cols * inner))
    width = cols if lines > 1 else window * max(1, _SLAB // (window * max(1, inner)))
    for row in range(0, outer, lines):
        for col in range(0, cols, max(width, 1)):
            yield slice(row, row + lines), slice(col, min(col + width, cols))


def _drop_windows(lines: Array, drop: Mask, keep: int, window: int) -> None:
    """Fill `drop`, both (outer, cols, inner) with cols a multiple of `window`."""
    outer, cols, inner = lines.shape
    keys = magnitude_keys(lines.reshape(outer, cols // window, window, inner))
    target = drop.reshape(keys.shape)
    if window <= _PAIRWISE:
        slots = [np.ascontiguousarray(keys[:, :, i]) for i in range(window)]
        for i, kept in enumerate(keep_slots(slots, keep)):
            np.logical_not(kept, out=target[:, :, i])
    else:
        target[...] = ~keep_top(keys.swapaxes(2, 3), keep).swapaxes(2, 3)


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
        return split.transpose((1, 3, 5, 7, 0, 2, 4, 6)).astype(np.float64, order="C").reshape(width, units).T
    return split.transpose((0, 2, 4, 6, 1, 3, 5, 7)).astype(np.float64, order="C").reshape(units, width)
