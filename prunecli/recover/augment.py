"""Random changes of image-like training inputs (N, C, H, W), drawn from a generator; and mixup of whole samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prunecli.evaluation.robustness import channel_axis

Array = np.ndarray[Any, Any]
Augment = Callable[[Array, np.random.Generator], Array]
AUGMENTS: dict[str, Augment] = {}


def augment(name: str) -> Callable[[Augment], Augment]:
    """Register a change: `change(images, rng)` returns images of the same shape and type."""

    def add(function: Augment) -> Augment:
        AUGMENTS[name] = function
        return function

    return add


@augment("flip")
def flip(images: Array, rng: np.random.Generator) -> Array:
    """Mirror left and right, each image with probability one half."""
    chosen = rng.random(len(images)) < 0.5
    out = images.copy()
    out[chosen] = images[chosen][..., ::-1]
    return out


@augment("shift")
def shift(images: Array, rng: np.random.Generator) -> Array:
    """Move each image by up to an eighth of its sides; what enters is zero (the mean of normalised images)."""
    n, _, height, width = images.shape
    reach = (max(height // 8, 1), max(width // 8, 1))
    padded = np.pad(images, ((0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2))
    top = rng.integers(0, 2 * reach[0] + 1, n)
    left = rng.integers(0, 2 * reach[1] + 1, n)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    return np.ascontiguousarray(windows[np.arange(n), :, top, left])


@augment("cutout")
def cutout(images: Array, rng: np.random.Generator) -> Array:
    """Zero one square of a quarter of the shorter side, at a random centre (DeVries and Taylor 2017)."""
    n, _, height, width = images.shape
    side = max(min(height, width) // 4, 1)
    rows, columns = rng.integers(0, height, n), rng.integers(0, width, n)
    inside = (np.abs(np.arange(height)[None, :, None] - rows[:, None, None]) <= side // 2) & (
        np.abs(np.arange(width)[None, None, :] - columns[:, None, None]) <= side // 2
    )
    return np.where(inside[:, None], np.zeros((), images.dtype), images)


def apply_augments(feed: dict[str, Array], names: Sequence[str], rng: np.random.Generator) -> dict[str, Array]:
    """The feed with its image-like inputs (floating-point, four axes) changed. Channels are the last axis where only
    that has 1, 3 or 4 entries, else the first after the batch."""
    out = dict(feed)
    for name in names:
        for key, value in feed.items():
            if value.ndim == 4 and np.issubdtype(value.dtype, np.floating):
                channels = channel_axis(value.shape) or 1
                changed = AUGMENTS[name](np.moveaxis(out[key], channels, 1), rng)
                out[key] = np.ascontiguousarray(np.moveaxis(changed, 1, channels))
    return out


def mixup(arrays: dict[str, Array], alpha: float, rng: np.random.Generator) -> dict[str, Array]:
    """Each sample x_i becomes m x_i + (1 - m) x_j, m ~ Beta(alpha, alpha), j a permutation, the same for every
    array, so labels given as distributions mix alike (Zhang et al. 2018)."""
    count = len(next(iter(arrays.values())))
    other = rng.permutation(count)
    share = np.float32(rng.beta(alpha, alpha))
    return {name: (share * a + (1 - share) * a[other]).astype(a.dtype) for name, a in arrays.items()}
