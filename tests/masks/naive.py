"""The selection rules again, as slow and plain as possible, for the real ones to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunecli.masks.decide import Target


def drop_lowest(scores: Sequence[float], sizes: Sequence[int], budget: int) -> list[bool]:
    """Lowest first, of equals the later first, until one does not fit."""
    drop = [False] * len(scores)
    for i in sorted(range(len(scores)), key=lambda i: (scores[i], -i)):
        if sizes[i] > budget:
            break
        budget -= sizes[i]
        drop[i] = True
    return drop


def conv_target(array: np.ndarray, name: str = "w", groups: int = 1) -> Target:
    """A Conv weight (M, C/g, kh, kw): batch = groups, taps = kh * kw."""
    m, c, kh, kw = array.shape
    split = (groups, m // groups, c, kh * kw)
    return Target(
        name,
        array.shape,
        array.dtype,
        lambda: array,
        lambda a: a.reshape(split).transpose(0, 1, 3, 2),
        lambda a: a.transpose(0, 1, 3, 2).reshape(array.shape),
    )


def matmul_target(array: np.ndarray, name: str = "w") -> Target:
    """A MatMul weight (K, N): rows = N, cols = K."""
    return Target(
        name,
        array.shape,
        array.dtype,
        lambda: array,
        lambda a: a.T[None, :, None, :],
        lambda a: a[0, :, 0, :].T,
    )


def dense_target(array: np.ndarray, name: str = "w") -> Target:
    """A Gemm weight with transB (N, K)."""
    return Target(name, array.shape, array.dtype, lambda: array, lambda a: a[None, :, None, :], lambda a: a[0, :, 0, :])


def storage_place(target: Target) -> np.ndarray:
    """The flat storage index of every element, in the canonical shape."""
    places = np.arange(target.size).reshape(target.shape)
    return target.canonical(places)


def tiles_of(target: Target, tile: tuple[int, int, int, int]) -> list[np.ndarray]:
    """The storage indices of every unit, units in storage order of their first weight."""
    places = storage_place(target)
    units = []
    for b in range(0, places.shape[0], tile[0]):
        for r in range(0, places.shape[1], tile[1]):
            for t in range(0, places.shape[2], tile[2]):
                for c in range(0, places.shape[3], tile[3]):
                    box = places[b : b + tile[0], r : r + tile[1], t : t + tile[2], c : c + tile[3]]
                    units.append(np.sort(box.ravel()))
    return sorted(units, key=lambda unit: unit[0])
