"""How the values of two models are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.masks.keys import CHUNK_BYTES

Array = np.ndarray[Any, Any]

RUN_UP_TO = 512 << 20
"""Bytes of model files up to which two sessions and a reference are held in memory."""


def release_tensor(tensor: ir.TensorProtocol) -> None:
    """Let go of mapped external data; views of it stay valid."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()


def pieces_of(array: Array, itemsize: int = 0) -> Iterator[Array]:
    """Cache-sized stretches, of as many elements as one of `itemsize` has."""
    flat, step = array.reshape(-1), CHUNK_BYTES // (itemsize or array.itemsize)
    return (flat[start : start + step] for start in range(0, flat.size, step))


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays of one shape and type hold the same bytes; in pieces, so that nothing is copied."""
    one, other = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (left, right))
    return one.size == other.size and all(map(np.array_equal, pieces_of(one), pieces_of(other)))


def same_outputs(left: Any, right: Any) -> bool:
    """Whether two results of a run are the same to the bit: arrays, sequences or maps of them, or nothing."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        alike = left.dtype == right.dtype and left.shape == right.shape
        if not alike or left.dtype == object:
            return alike and bool(left.tolist() == right.tolist())
        return same_bits(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_outputs(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_outputs, left, right))
    return type(left) is type(right) and bool(left == right)
