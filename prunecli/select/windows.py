"""N:M: in every window of M neighbours along the reduction axis, N are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from prunecli.select.keep import Mask, keep_slots, keep_top
from prunecli.select.keys import Array, magnitude_keys
from prunecli.select.tiles import storage_axes

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
    for rows, cols in _slabs(outer, whole, inner, window):
        _drop_windows(lines[rows, cols], drop[rows, cols], keep, window)
    rest = view.shape[3] - whole
    if rest > keep:
        _drop_windows(lines[:, whole:], drop[:, whole:], keep, rest)
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
