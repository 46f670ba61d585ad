"""A folder of `test_data_set_*`: the ONNX model zoo's layout, `input_0.pb`, ... and `output_0.pb`, ..., each
a serialised TensorProto. Inputs go by the tensor's name where it is an input's, else by number."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prunecli.arrays import Array
from prunecli.data.axes import Axes
from prunecli.data.columns import InputColumn, cast, check_dtype, fits
from prunecli.data.dataset import Chunk, Dataset
from prunecli.data.options import DataOptions, source
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

_MAX_BYTES = 1 << 31


def _sets(path: Path) -> list[Path]:
    found = [path] if path.name.startswith("test_data_set") else list(path.glob("test_data_set*"))
    return sorted((p for p in found if p.is_dir()), key=lambda p: _number(p.name))


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0


def _is_zoo(asked: DataOptions) -> bool:
    return asked.path.is_dir() and bool(_sets(asked.path))


@source("zoo", "a folder of test_data_set_* with input_0.pb and output_0.pb", _is_zoo)
def read_zoo(asked: DataOptions, specs: Sequence[InputSpec], axes: Axes) -> Dataset:
    """Each set is one run, as it is; its outputs become the reference."""
    sets = _sets(asked.path)[: asked.limit]
    return Dataset(specs, [_chunk(path, specs, axes) for path in sets], asked.text, axes=axes)


def _chunk(path: Path, specs: Sequence[InputSpec], axes: Axes) -> Chunk:
    inputs = [read_tensor(file) for file in _numbered(path, "input")]
    if len(inputs) != len(specs):
        raise PruneError(
            f"{path.name} has {len(inputs)} input files, the model takes {len(specs)}",
            f"the model's inputs are {', '.join(s.describe() for s in specs)}",
        )
    named = dict(inputs)
    by_name = set(named) == {s.name for s in specs}
    arrays = [named[s.name] if by_name else inputs[k][1] for k, s in enumerate(specs)]
    for spec, array in zip(specs, arrays, strict=True):
        _check(path, array, spec)
    outputs = [read_tensor(file) for file in _numbered(path, "output")]
    reference = {name or f"output_{k}": array for k, (name, array) in enumerate(outputs)}
    columns = {s.name: InputColumn.of(f"{path.name}/{s.name}", a) for s, a in zip(specs, arrays, strict=True)}
    return Chunk(columns, np.arange(_rows(specs, arrays, axes)), whole=True, reference=reference or None)


def _check(path: Path, array: Array, spec: InputSpec) -> None:
    name = f"{path.name}/{spec.name}"
    check_dtype(name, array.dtype if array.dtype.kind != "O" else np.dtype(np.str_), spec)
    if spec.shape and not fits(array.shape, spec.shape):
        raise PruneError(f"{name} has the shape {array.shape}, the model's input is {spec.describe()}",
                         "this test data is for another version of the model")  # fmt: skip
    if array.dtype.kind != "O":
        cast(name, array, spec)


def _rows(specs: Sequence[InputSpec], arrays: Sequence[Array], axes: Axes) -> int:
    """How many samples one set holds: the inputs' common batch, else 1."""
    sizes = {a.shape[axes.get(s.name, 0)] for s, a in zip(specs, arrays, strict=True) if a.ndim}
    return max(sizes.pop(), 1) if len(sizes) == 1 else 1


def _numbered(path: Path, kind: str) -> list[Path]:
    return sorted(path.glob(f"{kind}_*.pb"), key=lambda p: _number(p.stem))


def read_tensor(path: Path) -> tuple[str, Array]:
    """(name, values) of one .pb file.

    Raises:
        PruneError: too large, not a TensorProto, data elsewhere, or fewer bytes than it claims.
    """
    import onnx
    from onnx import numpy_helper

    where = f"{path.parent.name}/{path.name}"
    if path.stat().st_size > _MAX_BYTES:
        raise PruneError(f"{where} is over 2 GB", "protobuf files cannot be that large")
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf raises its own kinds, by implementation
        raise PruneError(f"{where} is not a serialised TensorProto", "sequences and maps are not read") from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise PruneError(f"{where} keeps its data in another file", "test data must hold its values itself")
    try:
        if min(tensor.dims, default=1) < 0 or math.prod(tensor.dims) > 8 * path.stat().st_size:
            raise ValueError("it claims more values than the file has bytes")
        return tensor.name, np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # onnx raises many kinds on inconsistent tensors
        raise PruneError(f"{where} is damaged: {' '.join(str(error).split())[:160]}", "write it again") from error
