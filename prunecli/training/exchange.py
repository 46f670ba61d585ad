"""Masks that move during training: the smallest weights are pruned, and the pruned weights of the largest gradients
restored, at the same number of zeros and in the same pattern (RigL, Evci et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.masks.patterns import Tiles, Tiling, Windows, parse_pattern
from prunecli.training.parameters import Parameter, Parameters

UNTIL = 0.75
"""Fraction of the steps after which no mask moves: weights that come back later could not learn."""
TIMES = 20
"""Most exchanges of a run."""
SMALLEST = 1e-4
"""Initial size of a restored weight, relative to the mean size of the others: not zero, so that the count of zeros is
exact."""


@dataclass(frozen=True)
class MovingMasks:
    """The masks that move, and how far: `fraction` of the kept weights at first, decreasing along a half cosine."""

    fraction: float
    pattern: str
    names: frozenset[str]

    def share(self, done: float) -> float:
        """Return the fraction to exchange after the share `done` of the run."""
        return 0.5 * self.fraction * (1 + math.cos(math.pi * min(done / UNTIL, 1.0)))

    def exchange(self, parameters: Parameters, slopes: Array, done: float) -> Array:
        """Move the masks in place.

        Args:
            slopes: the gradient of every element, of the pruned ones too.
        Returns:
            Which elements changed sides, as a mask over the flat buffers.
        """
        before = parameters.keep.copy()
        for item in parameters.items:
            if item.name in self.names:
                self._move(parameters, item, slopes[item.start : item.stop], share=self.share(done))
        return np.asarray(before != parameters.keep)

    def _move(self, parameters: Parameters, item: Parameter, slopes: Array, share: float) -> None:
        shape, layout = item.weight.shape, item.weight.layout
        values, keep = parameters.value(item), parameters.keep[item.start : item.stop].reshape(shape)
        canonical = [layout.canonical(array) for array in (values, slopes.reshape(shape), keep)]
        goes, comes = moved(
            np.abs(canonical[0]), np.abs(canonical[1]), canonical[2] != 0, pattern=self.pattern, share=share
        )
        goes, comes = np.asarray(layout.restore(goes)), np.asarray(layout.restore(comes))
        typical = float(np.abs(values[keep != 0]).mean()) if keep.any() else 0.0
        values[goes], keep[goes] = 0.0, 0.0
        values[comes] = np.where(slopes.reshape(shape)[comes] > 0, -1, 1) * np.float32(SMALLEST * typical)
        keep[comes] = 1.0


def moved(sizes: Array, slopes: Array, keep: Array, pattern: str, share: float) -> tuple[Array, Array]:
    """Return the weights to prune and those to restore: equally many, so that the number of zeros and the pattern do
    not change.

    Args:
        sizes, slopes: absolute weights and gradients, (batch, rows, taps, columns).
        keep: weights that are not pruned.
        share: largest fraction of the kept units to exchange.
    """
    form = parse_pattern(pattern)
    if isinstance(form, Windows):
        return _in_windows(sizes, slopes, keep, form=form, share=share)
    return _in_tiles(sizes, slopes, keep, form=form, share=share)


def _in_windows(sizes: Array, slopes: Array, keep: Array, form: Windows, share: float) -> tuple[Array, Array]:
    """Exchange the smallest kept weight for the pruned one of the largest gradient, in the windows with the largest
    gain over loss."""
    whole = keep.shape[3] - keep.shape[3] % form.window
    cut = (*keep.shape[:3], whole // form.window, form.window)
    w, g, on = (array[..., :whole].reshape(cut) for array in (sizes, slopes, keep))
    weakest, steepest = np.where(on, w, np.inf).argmin(-1)[..., None], np.where(on, -1.0, g).argmax(-1)[..., None]
    gain = np.take_along_axis(g, steepest, -1) / (np.take_along_axis(w, weakest, -1) + 1e-12)
    gain[on.sum(-1, keepdims=True) != form.keep] = 0.0
    count = min(math.floor(share * gain.size), int((gain > 0).sum()))
    chosen = np.zeros(gain.size, bool)
    chosen[np.argsort(-gain.reshape(-1), kind="stable")[:count]] = True
    both = []
    for place in (weakest, steepest):
        mask = np.zeros(keep.shape, bool)
        inside = np.zeros(cut, bool)
        np.put_along_axis(inside, place, chosen.reshape(gain.shape), -1)
        mask[..., :whole] = inside.reshape(*keep.shape[:3], whole)
        both.append(mask)
    return both[0], both[1]


def _in_tiles(sizes: Array, slopes: Array, keep: Array, form: Tiles, share: float) -> tuple[Array, Array]:
    """Exchange the tiles of the smallest mean weight for the empty ones of the largest mean gradient, all of one
    size."""
    batch, rows, taps, columns = keep.shape
    tiling = Tiling((batch, rows, taps, columns), form.tile((batch, rows, taps, columns)), (0, 1, 2, 3))
    full = tiling.sizes() == math.prod(tiling.tile)
    filled = _sums(keep.astype(np.float64), tiling)
    on, off = full & (filled == tiling.sizes()), full & (filled == 0)
    count = math.floor(share * min(int(on.sum()), int(off.sum())))
    both = []
    for scores, where in ((_sums(sizes, tiling), on), (-_sums(slopes, tiling), off)):
        chosen = np.zeros(where.size, bool)
        chosen[np.argsort(np.where(where, scores, np.inf).reshape(-1), kind="stable")[:count]] = True
        both.append(tiling.expand(chosen))
    return both[0], both[1]


def _sums(values: Array, tiling: Tiling) -> Array:
    """The sum over every tile, in the shape of the grid."""
    found = values.astype(np.float64)
    for axis, (size, tile) in enumerate(zip(tiling.shape, tiling.tile, strict=True)):
        if tile > 1:
            found = np.add.reduceat(found, np.arange(0, size, tile), axis=axis)
    return found


def movable(parameters: Parameters, names: Collection[str]) -> frozenset[str]:
    """Return those of the named parameters that are partly pruned."""
    found = set()
    for item in parameters.items:
        kept = int(parameters.keep[item.start : item.stop].sum())
        if item.name in names and 0 < kept < item.weight.size:
            found.add(item.name)
    return frozenset(found)
