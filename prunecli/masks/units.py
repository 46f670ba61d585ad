"""Units of a weight, scored: what selection compares, and back from a cut to the elements that go."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.masks.criteria import Block, Criterion
from prunecli.masks.keys import Array
from prunecli.masks.patterns import Mask, Shape4, Tiles, Tiling, gather, storage_axes
from prunecli.masks.stream import CutPoint, ScoreSource, not_finite


def _nothing() -> None:
    """Nothing to let go of."""


@dataclass(frozen=True)
class Target:
    """One weight as selection sees it.

    load: the stored array, C-contiguous; release: let go of its memory.
    canonical: that array as (batch, rows, taps, cols), a view if possible; restore: back to the stored shape.
    evidence: by name, arrays that broadcast to the canonical shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    load: Callable[[], Array]
    canonical: Callable[[Array], Array]
    restore: Callable[[Array], Array]
    release: Callable[[], None] = _nothing
    evidence: Mapping[str, Callable[[], Array]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Units:
    """How every weight is divided and scored: the same criterion and pattern for all."""

    pattern: Tiles
    criterion: Criterion
    seed: int = 0

    @property
    def by_bits(self) -> bool:
        """Whether the stored bits are the scores: single weights ranked by magnitude."""
        return self.pattern.single and self.criterion.by_magnitude

    def source(self, target: Target) -> ScoreSource:
        """The scores of one weight's units, for the search for a cut."""
        if self.by_bits:
            return ScoreSource(target.name, target.size, target.dtype, target.load, target.release, shape=target.shape)
        tiling = self.tiling(target, target.load())
        target.release()
        return ScoreSource(
            target.name,
            tiling.units,
            np.float64,
            lambda: self.keys(target, target.load()),
            target.release,
            width=tiling.width or 1,
            sizes=None if tiling.width else tiling.flat(tiling.sizes()),
            shape=target.shape,
        )

    def tiling(self, target: Target, array: Array) -> Tiling:
        view = target.canonical(array)
        batch, rows, taps, cols = view.shape
        shape: Shape4 = (batch, rows, taps, cols)
        return Tiling(shape, self.pattern.tile(shape), storage_axes(view))

    def keys(self, target: Target, array: Array) -> Array:
        """Scores in unit order, as a Source loads them."""
        tiling = self.tiling(target, array)
        return tiling.flat(self.scores(target, array, tiling))

    def scores(self, target: Target, array: Array, tiling: Tiling) -> Array:
        """One score per tile, in the shape of the grid.

        Raises:
            PruneError: a weight is NaN or infinite, and so the score.
        """
        view = target.canonical(array)
        evidence = {name: np.broadcast_to(target.evidence[name](), view.shape) for name in self.criterion.needs}
        rng = np.random.default_rng([self.seed, zlib.crc32(target.name.encode())])
        grid = np.empty(tiling.grid, np.float64)
        for piece in tiling.pieces():
            weights = gather(view, piece)
            block = Block(weights, {name: gather(part, piece) for name, part in evidence.items()}, rng)
            scores = self.criterion.score(block)
            if not (np.isfinite(scores).all() and np.isfinite(weights).all()):
                raise not_finite(target.name, array)
            grid[piece.where] = scores.reshape(grid[piece.where].shape)
        if (grid < 0).any():
            raise ValueError(f"criterion {self.criterion.name} gave a negative score")
        return grid

    def dropped(self, target: Target, array: Array, cut: CutPoint) -> Mask:
        """The cut as one flag per element of the stored array."""
        if self.by_bits:
            return _joined(cut, array).reshape(array.shape)
        tiling = self.tiling(target, array)
        return target.restore(tiling.expand(_joined(cut, self.keys(target, array))))


def _joined(cut: CutPoint, array: Array) -> Mask:
    mask, start = np.empty(array.size, np.bool_), 0
    for piece in cut.masks(array):
        mask[start : start + piece.size] = piece
        start += piece.size
    return mask
