"""Keep the best of a pool: exact counts and one tie rule.

The tie rule of the whole program: among units of equal score, the one that comes earlier in storage order
is kept. Selection never drops more than asked because scores are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunecli.select.keys import Array

Mask = npt.NDArray[np.bool_]


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
    order = np.argsort(scores[:, ::-1], axis=1, kind="stable")
    order = scores.shape[1] - 1 - order
    spent = np.cumsum(np.take_along_axis(np.broadcast_to(sizes, scores.shape), order, axis=1), axis=1)
    drop = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(drop, order, spent <= np.asarray(budgets)[:, None], axis=1)
    return drop
