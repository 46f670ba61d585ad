"""Columns: arrays whose first axis counts samples, read when needed; how they become what a model's input takes."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec, numpy_dtype


@dataclass
class InputColumn:
    """An array whose first axis counts samples. `shape` and `dtype` are known at once; `read()` is called for values,
    and may return a memory map. `name` is what the user calls it, for messages. `pick(index)`: the rows at `index`, for
    a source that reads them one by one; `read()` is then for who needs everything. `made`: how the values came about,
    where they are not simply what a file holds; readers of reports are told."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], Array]
    pick: Callable[[Array], Array] | None = None
    made: str = ""

    @classmethod
    def of(cls, name: str, array: Array) -> InputColumn:
        return cls(name, array.shape, array.dtype, read=lambda: array)

    def samples_first(self, axis: int) -> InputColumn:
        """The same values with the samples, which lie on an axis, on the first one."""
        if not axis:
            return self
        shape = (self.shape[axis], *self.shape[:axis], *self.shape[axis + 1 :])
        return InputColumn(
            self.name, shape, self.dtype, read=lambda: np.moveaxis(self.array(), axis, 0), made=self.made
        )

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
    """Return the bytes that are free without swapping; `memory_budget` where the system does not tell."""
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


_NUMERIC, _TEXT = "biuf", "UT"


def is_float(dtype: Any) -> bool:
    """Floating point of any width, ml_dtypes' bfloat16 and 8-bit floats included."""
    return np.dtype(dtype).kind == "f" or "float" in np.dtype(dtype).name


def check_dtype(name: str, dtype: Any, spec: InputSpec) -> None:
    """Refuse what could never feed `spec`, before any value is read. Text is str, never bytes.

    Raises:
        PruneError: objects, times, complex numbers, structures; text for numbers or numbers for text.
    """
    text = np.dtype(dtype).kind in _TEXT
    if np.dtype(dtype).kind == "O":
        raise PruneError(f"{name} holds Python objects", "save plain numbers; pickles are never read")
    if not text and np.dtype(dtype).kind not in _NUMERIC and not is_float(dtype):
        raise PruneError(f"{name} has the type {dtype}, the model's {spec.describe()}", "save plain numbers")
    if not spec.is_tensor:
        raise PruneError(f"the input {spec.describe()} is not a tensor", "only tensors can be fed from data")
    if text != (spec.dtype == "str"):
        has, wants = ("text", spec.dtype) if text else (str(dtype), "text")
        raise PruneError(f"{name} is {has}, the model's input {spec.name} wants {wants}", "convert it to that type")


def check_sample_shape(name: str, shape: tuple[int, ...], spec: InputSpec, axis: int = 0) -> None:
    """Refuse a sample (an array without its first axis) that does not fit `spec` without its first dimension; `axis`:
    where the samples lie in the array that was given.

    Raises:
        PruneError: naming both shapes, with the transposition that would help, if one would.
    """
    wanted = spec.shape[1:]
    if not spec.shape or fits(shape, wanted):
        return
    raise PruneError(
        f"{name} holds samples of shape {shape}, the model's input is {spec.describe()}",
        f"the samples lie on axis {axis} of the array" if axis else _shape_hint(shape, wanted),
    )


def fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    """Whether the sizes agree wherever `wanted` is fixed."""
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or want == size for size, want in zip(shape, wanted, strict=True)
    )


def _shape_hint(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> str:
    if len(shape) == 3 and fits((shape[2], shape[0], shape[1]), wanted):
        return "the channels seem to be last: save array.transpose(0, 3, 1, 2)"
    if len(shape) == 3 and fits((shape[1], shape[2], shape[0]), wanted):
        return "the channels seem to be first: save array.transpose(0, 2, 3, 1)"
    sizes = [want for want in wanted if isinstance(want, int)]
    if len(sizes) == len(wanted) and np.prod(shape, dtype=np.int64) == np.prod(sizes, dtype=np.int64):
        return f"the sizes multiply to the same: save array.reshape(-1, {', '.join(map(str, sizes))})"
    return "the first axis of the data counts the samples; the others must be as the model's"


def cast(name: str, array: Array, spec: InputSpec) -> Array:
    """`array` in the element type of `spec`.

    Between floats, and from integers to floats, values may round. Everything else must be exact: fractions or
    out-of-range values for an integer input, values other than 0 and 1 for a boolean one, are refused.

    Raises:
        PruneError: NaN or infinity, or a cast that would change values; it names the input.
    """
    target = numpy_dtype(spec.dtype)
    if spec.dtype == "str":
        return array.astype(object)
    if is_float(array.dtype) and not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinite"
        raise PruneError(f"{name} has {bad} values", "remove those samples, or replace the values")
    if array.dtype == target:
        return array
    if is_float(target):
        with np.errstate(over="ignore"):
            result = array.astype(target)
        _require(bool(np.isfinite(result).all()), name, array, spec=spec, what="values too large")
        return result
    return _to_whole(name, array, spec, target=target)


def _to_whole(name: str, array: Array, spec: InputSpec, target: Any) -> Array:
    if target == np.bool_:
        _require(bool(((array == 0) | (array == 1)).all()), name, array, spec=spec, what="values other than 0 and 1")
        return array.astype(np.bool_)
    if is_float(array.dtype):
        _require(bool((array == np.trunc(array)).all()), name, array, spec=spec, what="fractions")
    if array.size:
        info = np.iinfo(target)
        low, high = int(array.min()), int(array.max())  # Python integers compare exactly with any range
        _require(info.min <= low and high <= info.max, name, array, spec=spec, what=f"values from {low} to {high}")
    return array.astype(target)


def _require(condition: bool, name: str, array: Array, spec: InputSpec, what: str) -> None:
    if not condition:
        raise PruneError(
            f"{name} ({array.dtype}) has {what}, the model's input {spec.name} is {spec.dtype}",
            "convert the data first",
        )
