"""Types of arrays, whatever their shape, their positions, and the digest of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def without(array: Array, removed: Mapping[int, Array]) -> Array:
    """Return the array without the removed positions of each axis."""
    for axis, positions in removed.items():
        array = np.delete(array, positions, axis)
    return array


def evenly_spread(size: int, count: int) -> Array:
    """Indices of at most `count` of so many, ascending."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(int))


def content_digest(arrays: Mapping[str, Any], head: str = "") -> str:
    """SHA-256, in hexadecimal, of `head` and of every array: its name, type, shape and content."""
    found = hashlib.sha256(head.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"\n{name} {array.dtype.str} {np.shape(arrays[name])}\n".encode())
        if array.dtype.hasobject:
            found.update(repr(array.tolist()).encode())
        else:
            found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()
