"""Columns: arrays whose first axis counts samples, read when needed, never bigger than allowed."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.errors import PruneError

Array = np.ndarray[Any, Any]


@dataclass
class InputColumn:
    """`shape` and `dtype` are known at once; `read()` is called when values are first needed, and may
    return a memory map. `name` is what the user calls it, for messages. `pick(index)`: the rows at `index`, for
    a source that reads them one by one; `read()` is then for who needs everything."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], Array]
    pick: Callable[[Array], Array] | None = None

    @classmethod
    def of(cls, name: str, array: Array) -> InputColumn:
        return cls(name, array.shape, array.dtype, lambda: array)

    def samples_first(self, axis: int) -> InputColumn:
        """The same values with the samples, which lie on an axis, on the first one."""
        if not axis:
            return self
        shape = (self.shape[axis], *self.shape[:axis], *self.shape[axis + 1 :])
        return InputColumn(self.name, shape, self.dtype, lambda: np.moveaxis(self.array(), axis, 0))

    @functools.cached_property
    def _array(self) -> Array:
        return self.read()

    def array(self) -> Array:
        """Everything; a memory map where the source allows it."""
        return self._array

    def rows(self, index: Array) -> Array:
        """The rows at `index` (integers), in that order; contiguous ranges are read as slices."""
        if self.pick is not None:
            return self.pick(index)
        array = self._array
        if len(index) and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
            return np.asarray(array[int(index[0]) : int(index[-1]) + 1])
        return np.asarray(array[index])


def memory_budget() -> int:
    """Bytes that one data source may hold in memory: half of the machine's, 4 GiB where that is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def free_memory() -> int:
    """Bytes that this machine can still give without swapping; `memory_budget` where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) << 10
    except (OSError, StopIteration, ValueError, IndexError):
        return memory_budget()


def check_budget(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """Refuse to hold an array of that size in memory.

    Raises:
        PruneError: it exceeds `memory_budget()`.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > memory_budget():
        raise PruneError(
            f"{name} would take {size / 1e9:.1f} GB of memory",
            "use --limit, or save it uncompressed (np.savez)",
        )
