"""Whether tensors hold what they claim to, checked without allocating what they claim."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.external_data import DataFolder, locate
from prunecli.model.protos import tensors
from prunecli.model.tensors import byte_count

MAX_ELEMENTS = 1 << 48
"""More than any file system holds; keeps all later arithmetic far from overflow."""
DAMAGED = "the model is damaged; export or download it again"
_INTEGERS = ("INT32", "INT16", "INT8", "INT4", "INT2", "UINT16", "UINT8", "UINT4", "UINT2", "BOOL")
_SMALL_FLOATS = ("FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
_TINY_FLOATS = ("FLOAT8E8M0", "FLOAT6E2M3", "FLOAT6E3M2", "FLOAT4E2M1")
FIELDS = {
    "FLOAT": ("float_data", 1),
    "COMPLEX64": ("float_data", 2),
    "DOUBLE": ("double_data", 1),
    "COMPLEX128": ("double_data", 2),
    "INT64": ("int64_data", 1),
    "UINT32": ("uint64_data", 1),
    "UINT64": ("uint64_data", 1),
    "STRING": ("string_data", 1),
    **dict.fromkeys(_INTEGERS + _SMALL_FLOATS + _TINY_FLOATS, ("int32_data", 1)),
}
"""Field and entries per element for each element type (TensorProto in onnx.proto)."""


def check_tensors(model: onnx.ModelProto, path: Path, allow_outside: bool) -> DataFolder:
    """Check every tensor; external ones are then marked with the absolute path and offset of their bytes.

    Raises:
        PruneError: unknown type, negative or absurd dimensions, a byte count that does not fit the shape, or
            external data that is missing, too short or outside the model's folder.
    """
    folder = DataFolder(path, allow_outside)
    for tensor in tensors(model):
        check_tensor(tensor, path)
    locate(model, folder)
    return folder


def check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """Type, dimensions and, for inline data, its amount."""
    where = f"{path}: tensor '{tensor.name}'"
    known = {dtype.value for dtype in ir.DataType} - {ir.DataType.UNDEFINED.value}
    if tensor.data_type not in known:
        raise PruneError(f"{where} has the unknown element type {tensor.data_type}", DAMAGED)
    if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > MAX_ELEMENTS or len(tensor.dims) > 64:
        raise PruneError(f"{where} has the impossible shape {list(tensor.dims)[:8]}", DAMAGED)
    if tensor.HasField("segment"):
        raise PruneError(f"{where} is stored in segments, which no runtime reads", DAMAGED)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        _check_amount(tensor, where)
    elif tensor.data_type == ir.DataType.STRING:
        raise PruneError(f"{where} holds strings in an external file", DAMAGED)


def _check_amount(tensor: onnx.TensorProto, where: str) -> None:
    dtype, dims = ir.DataType(tensor.data_type), tuple(tensor.dims)
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        found, needed, unit = len(tensor.raw_data), byte_count(dtype, dims), "bytes"
    else:
        name, per_element = FIELDS[dtype.name]
        found, unit = len(getattr(tensor, name)), "values"
        needed = math.prod(dims) * per_element
        if dtype.name.endswith(("INT2", "INT4", "E2M1")):  # packed into the low byte of each int32
            needed = byte_count(dtype, dims)
    if found != needed:
        raise PruneError(f"{where} of shape {list(dims)} needs {needed} {unit} and has {found}", DAMAGED)
