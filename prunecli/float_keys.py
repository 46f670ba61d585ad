"""Floats as integers that sort the same way, so that selection is exact and fast for every float format.

The bit pattern of |w| of an IEEE float, read as an unsigned integer, grows with |w|: its sign bit cleared is
its key. NaN keys lie above that of infinity. Keys of different formats are compared by widening them to the
key of the equal float64, which is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunecli.arrays import Array

CHUNK_BYTES = 1 << 19
"""Work is done in pieces of this size, which stay in a core's own cache between the steps."""


@dataclass(frozen=True)
class KeyFormat:
    """How an element type becomes keys: `word & mask` as `word`; keys from `limit` on are not finite."""

    name: str
    word: np.dtype[Any]
    mask: int
    limit: int


_FORMATS = {
    form.name: form
    for form in (
        KeyFormat("float16", np.dtype(np.uint16), 0x7FFF, limit=0x7C00),
        KeyFormat("bfloat16", np.dtype(np.uint16), 0x7FFF, limit=0x7F80),
        KeyFormat("float32", np.dtype(np.uint32), 0x7FFF_FFFF, limit=0x7F80_0000),
        KeyFormat("float64", np.dtype(np.uint64), 0x7FFF_FFFF_FFFF_FFFF, limit=0x7FF0 << 48),
    )
}


def key_format(dtype: Any) -> KeyFormat:
    """The format of float16, bfloat16, float32 or float64. Raises TypeError."""
    name = np.dtype(dtype).name
    if name not in _FORMATS:
        raise TypeError(f"no order is defined for elements of type {name}")
    return _FORMATS[name]


def words(array: Array) -> Array:
    """The array's memory as a flat array of unsigned integers; a view if it is C-contiguous."""
    flat: Array = np.ascontiguousarray(array).reshape(-1).view(key_format(array.dtype).word)
    return flat


def magnitude_keys(array: Array) -> Array:
    """The keys of |array|, in the array's shape."""
    form = key_format(array.dtype)
    keys: Array = np.bitwise_and(array.view(form.word), form.word.type(form.mask))
    return keys


def key_of(value: float, dtype: Any) -> int:
    """The key below which numpy finds `abs(array) < value`, for a Python number from 0 up.

    numpy rounds the number to the array's own type first, for bfloat16 to float32; what is too large becomes
    infinity.
    """
    form = key_format(dtype)
    with np.errstate(over="ignore"):
        cell = np.asarray([value], np.float64).astype(np.float32 if form.name == "bfloat16" else dtype)
    if form.name == "bfloat16":
        return narrow(int(cell.astype(np.float64).view(np.uint64)[0]), form, _FORMATS["float64"])
    return int(magnitude_keys(cell)[0])


def values_of(keys: Array, form: KeyFormat) -> npt.NDArray[np.float64]:
    """The magnitudes that the keys of a float format stand for, exactly, as float64."""
    if form.name == "bfloat16":
        return (keys.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return keys.view(form.name).astype(np.float64)


def widen(keys: Array, form: KeyFormat, common: KeyFormat) -> Array:
    """Keys of `form` as keys of `common`: unchanged if they agree, else `common` is float64."""
    return keys if form == common else values_of(keys, form).view(np.uint64)


def narrow(key: int, form: KeyFormat, common: KeyFormat) -> int:
    """The smallest key of `form` that is not below `key` of `common`."""
    if form == common:
        return key
    low, high = 0, form.limit
    while low < high:
        middle = (low + high) // 2
        if int(widen(np.array([middle], form.word), form, common)[0]) < key:
            low = middle + 1
        else:
            high = middle
    return low


def common_format(forms: list[KeyFormat]) -> KeyFormat:
    """The format in which keys of all these can be compared."""
    return forms[0] if len(set(forms)) == 1 else _FORMATS["float64"]


def key_chunks(array: Array) -> Iterator[Array]:
    """The keys of an array in storage order, in cache-sized pieces. Each piece is overwritten by the next."""
    form, bits = key_format(array.dtype), words(array)
    step = CHUNK_BYTES // form.word.itemsize
    buffer = np.empty(min(step, bits.size), form.word)
    mask = form.word.type(form.mask)
    for start in range(0, bits.size, step):
        piece = bits[start : start + step]
        yield np.bitwise_and(piece, mask, out=buffer[: piece.size])


def count_nonzero(array: Array) -> int:
    """Elements that are not zero; negative zero is zero, NaN is not."""
    if array.dtype.name in _FORMATS:  # numpy itself takes many times as long for float16
        return census(array)[0]
    with np.errstate(invalid="ignore"):  # small floats are cast to booleans, NaN with a warning
        return int(np.count_nonzero(array))


def census(array: Array) -> tuple[int, bool]:
    """How many elements are not zero, and whether all are finite."""
    if array.dtype.name not in _FORMATS:
        return count_nonzero(array), bool(np.isfinite(array).all())
    nonzero, largest = 0, 0
    for keys in key_chunks(array):
        nonzero += int(np.count_nonzero(keys))
        largest = max(largest, int(keys.max(initial=0)))
    return nonzero, largest < key_format(array.dtype).limit
