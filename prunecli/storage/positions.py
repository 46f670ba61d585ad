"""Where the elements (or blocks) that are not zero lie: streams of bits or of gaps, made in bounded memory.

"Zero" means all bits zero: negative zeros and NaN are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PIECE = 1 << 22
"""Elements looked at together."""
LARGEST_GAP = 255


def words(array: Array) -> Array:
    """The bit patterns of the elements, as unsigned integers of the same shape."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@dataclass(frozen=True)
class Rows:
    """An array of rows, of which those with any bit set are kept; elements are rows of one. `values`: (rows,) or
    (rows, width)."""

    values: Array

    def kept(self) -> Iterator[tuple[int, Array]]:
        """(start, mask) of each piece; starts are multiples of 8."""
        width = self.values[0].size if len(self.values) else 1
        step = max(8, PIECE // max(width, 1) // 8 * 8)
        for start in range(0, len(self.values), step):
            part = words(self.values[start : start + step])
            yield start, np.asarray(part.any(axis=1) if part.ndim == 2 else part != 0)

    @cached_property
    def count(self) -> int:
        """Rows that are kept."""
        return sum(int(np.count_nonzero(mask)) for _, mask in self.kept())

    @cached_property
    def entries(self) -> int:
        """Gaps needed: one per kept row, and one more for each time that a gap exceeds 255; at least one."""
        return max(1, sum(len(steps) for _, steps in self._gaps()))

    def _gaps(self) -> Iterator[tuple[Array, Array]]:
        """(positions, distances from the one before) of each piece, fillers included."""
        last = 0
        for start, mask in self.kept():
            places = np.flatnonzero(mask) + start
            if places.size:
                far = np.diff(places, prepend=last)
                fillers = np.maximum(far - 1, 0) // LARGEST_GAP
                ends = np.cumsum(fillers + 1) - 1
                steps = np.full(int(ends[-1]) + 1, LARGEST_GAP)
                steps[ends] = far - fillers * LARGEST_GAP
                yield last + np.cumsum(steps), steps
                last = int(places[-1])

    def gaps(self) -> Array:
        """uint8: the position of entry i is the sum of the first i + 1."""
        found = [steps.astype(np.uint8) for _, steps in self._gaps()]
        return np.concatenate(found) if found else np.zeros(1, np.uint8)

    def at_gaps(self) -> Array:
        """The rows at the entries of `gaps`; fillers lie on zeros."""
        found = [self.values[places] for places, _ in self._gaps()]
        return np.concatenate(found) if found else self.values[:1]

    def bits(self) -> Array:
        """uint8, ceil(rows / 8): the lowest bit is the first row."""
        return np.concatenate([np.packbits(mask, bitorder="little") for _, mask in self.kept()])

    def at_bits(self) -> Array:
        """The kept rows."""
        return np.concatenate([self.values[start : start + len(mask)][mask] for start, mask in self.kept()])
