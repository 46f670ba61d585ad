"""Tensors that live in files, and what is known about element types."""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Element types whose values this program reads, scores and zeroes."""

QUANTISED = frozenset(
    {
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT2,
        ir.DataType.UINT2,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
        ir.DataType.FLOAT4E2M1,
        ir.DataType.FLOAT6E2M3,
        ir.DataType.FLOAT6E3M2,
    }
)
"""Element types that hold quantised weights; passed through untouched."""


def byte_count(dtype: ir.DataType, dims: tuple[int, ...]) -> int:
    """Bytes of a tensor by the ONNX packing rules; sub-byte types are packed and rounded up."""
    return (math.prod(dims) * dtype.bitwidth + 7) // 8


class MappedTensor(ir.ExternalTensor):
    """A tensor whose bytes are a range of a file that validation has already resolved and measured.

    Unlike its base class it maps only its own range, so that `release` returns just these pages, never
    fails while a view is alive, and does not refuse files that a model cache has hard-linked. `owner` is what keeps a
    temporary folder from going.
    """

    def __init__(
        self, path: Path, offset: int, dtype: ir.DataType, shape: ir.Shape, name: str, owner: object = None
    ) -> None:
        dims, self.owner = shape.numpy(), owner
        super().__init__(str(path), offset, byte_count(dtype, dims), dtype, shape=shape, name=name)
        self._view: np.ndarray[Any, Any] | None = None

    @property
    def span(self) -> tuple[int, int]:
        """Offset and length in bytes."""
        return int(self.offset or 0), int(self.length or 0)

    def _bytes(self) -> np.ndarray[Any, Any]:
        offset, length = self.span
        if length == 0:
            return np.empty(0, np.uint8)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        with Path(self.location).open("rb") as file:
            mapping = mmap.mmap(file.fileno(), offset - start + length, access=mmap.ACCESS_READ, offset=start)
        return np.frombuffer(mapping, np.uint8, length, offset - start)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values, read-only; pages enter memory when touched."""
        if self._view is None:
            dims = self.shape.numpy()
            raw = self._bytes()
            if self.dtype.bitwidth < 8:
                return np.asarray(ir.PackedTensor(raw, self.dtype, shape=self.shape).numpy())
            self._view = raw.view(self.dtype.numpy().newbyteorder("<")).reshape(dims)
        return self._view

    def tobytes(self) -> bytes:
        return self._bytes().tobytes()

    def release(self) -> None:
        """Let go of the mapping; the pages leave memory once no view of them is alive."""
        self._view = None


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor with its values in memory, and all else that it says."""
    return ir.Tensor(
        np.array(tensor.numpy()),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
