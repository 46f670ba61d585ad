"""What selection compares, and what it answers with: sources of scores, and cuts through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.errors import PruneError
from prunecli.select.keep import Mask
from prunecli.select.keys import Array, KeyFormat, key_chunks, key_format

EVERY = 1 << 62
"""More ties than there can be."""


def _nothing() -> None:
    """What releasing memory means for an array that is simply held."""


@dataclass(frozen=True)
class Source:
    """The scores of one tensor's units, loaded when needed.

    `load` returns floats, whose magnitudes are the scores, in storage order of the units. A unit is `width` weights;
    units of unequal size give `sizes` instead, in the same order.
    """

    name: str
    size: int
    dtype: Any
    load: Callable[[], Array]
    release: Callable[[], None] = _nothing
    width: int = 1
    sizes: Array | None = None
    shape: tuple[int, ...] = ()
    """Of the stored tensor, where a scope asks for it."""

    @property
    def form(self) -> KeyFormat:
        return key_format(self.dtype)

    @property
    def weights(self) -> int:
        """Weights in all its units."""
        return self.size * self.width if self.sizes is None else int(self.sizes.sum())


@dataclass(frozen=True)
class Cut:
    """Which units of one source go: those with a key below `key`, and its ties but for the first `ties_kept`.

    `dropped` counts the weights (not units) that go; `nonzero` the units whose key was not zero before.
    """

    key: int
    ties_kept: int = EVERY
    dropped: int = 0
    nonzero: int = 0

    def masks(self, array: Array) -> Iterator[Mask]:
        """True where a unit goes, in cache-sized pieces in storage order, each overwritten by the next."""
        kept, mask = 0, np.empty(0, np.bool_)
        for keys in key_chunks(array):
            mask = mask if mask.size == keys.size else np.empty(keys.size, np.bool_)
            ties = int(np.count_nonzero(keys == self.key)) if kept <= self.ties_kept < EVERY else 0
            if kept < self.ties_kept and kept + ties > self.ties_kept:  # the first tie to go is here
                np.less(keys, self.key, out=mask)
                mask[np.flatnonzero(keys == self.key)[self.ties_kept - kept :]] = True
            else:
                (np.less if kept + ties <= self.ties_kept else np.less_equal)(keys, self.key, out=mask)
            kept += ties
            yield mask


def not_finite(name: str, array: Array) -> PruneError:
    """The refusal of a tensor with NaN or infinity, saying how many and where the first one is."""
    flat = np.asarray(array).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(flat.astype(np.float32) if flat.dtype.itemsize < 4 else flat))
    if not bad.size:
        return PruneError(f"the scores of {name} are not finite", "leave it out with --exclude")
    what = "NaN" if np.isnan(float(flat[bad[0]])) else "infinity"
    return PruneError(
        f"weight {name} holds {bad.size} NaN or infinite values (first: {what} at flat index {bad[0]})",
        "repair the model, or leave this weight out with --exclude",
    )
