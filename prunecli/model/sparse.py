"""Sparse tensors become dense ones while loading: neither onnx-ir nor the rest of the program knows them.

A SparseTensorProto holds the values and either their linear indices (nnz) or coordinates (nnz, rank), sorted.
Source: onnx.proto, SparseTensorProto.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from prunecli.errors import PruneError, some
from prunecli.model.protos import attributes_of, bodies
from prunecli.model.validate import DAMAGED, check_tensor

ALWAYS_FINE = 64 << 20
"""Bytes a dense form may take whatever the sparse one has."""
MAX_GROWTH = 1000
"""Beyond that, dense bytes per stored byte: a few bytes must not allocate gigabytes."""


def densify(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    """Replace sparse initializers and the `sparse_value` of Constant nodes; their names, and the bytes each took.

    Raises:
        PruneError: inconsistent indices, or a dense form out of all proportion.
    """
    found: dict[str, int] = {}
    for body in bodies(model):
        if isinstance(body, onnx.GraphProto) and body.sparse_initializer:
            for sparse in body.sparse_initializer:
                body.initializer.append(_dense(sparse, path))
                found[sparse.values.name] = _stored(sparse)
            del body.sparse_initializer[:]
        found |= _constants(attributes_of(body), path)
    return found


def note(names: Iterable[str]) -> str:
    return f"sparse tensors were made dense: {some(list(names))}"


def _stored(sparse: onnx.SparseTensorProto) -> int:
    return len(sparse.values.SerializeToString()) + len(sparse.indices.SerializeToString())


def _constants(attributes: Iterable[onnx.AttributeProto], path: Path) -> dict[str, int]:
    found = {}
    for attribute in attributes:
        if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
            attribute.t.CopyFrom(_dense(attribute.sparse_tensor, path))
            found[attribute.sparse_tensor.values.name or "a Constant"] = _stored(attribute.sparse_tensor)
            attribute.ClearField("sparse_tensor")
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    return found


def sparsify(model: onnx.ModelProto, names: frozenset[str]) -> None:
    """Store these initializers of the main graph as sparse_initializer: linear int64 indices and the values.

    The checker accepts no other type of index.
    """
    for tensor in [t for t in model.graph.initializer if t.name in names]:
        dense = numpy_helper.to_array(tensor).reshape(-1)
        places = np.flatnonzero(dense.view(f"u{dense.dtype.itemsize}")).astype(np.int64)
        values = numpy_helper.from_array(dense[places], tensor.name)
        sparse = model.graph.sparse_initializer.add(dims=tensor.dims)
        sparse.values.CopyFrom(values)
        sparse.indices.CopyFrom(numpy_helper.from_array(places, f"{tensor.name}/indices"))
        model.graph.initializer.remove(tensor)


def _dense(sparse: onnx.SparseTensorProto, path: Path) -> onnx.TensorProto:
    where = f"{path}: sparse tensor '{sparse.values.name}'"
    dims = tuple(sparse.dims)
    claimed = onnx.TensorProto(data_type=sparse.values.data_type, dims=dims, name=sparse.values.name)
    claimed.data_location = onnx.TensorProto.EXTERNAL  # only type and shape are to be checked
    check_tensor(claimed, path)
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise PruneError(f"{where} is stored in an external file", "store it in the model, or dense")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    size = math.prod(dims) * values.dtype.itemsize
    if size > ALWAYS_FINE and size > MAX_GROWTH * (values.nbytes + indices.nbytes):
        raise PruneError(f"{where} would take {size} bytes when dense", "store it dense, or remove it")
    dense = np.zeros(math.prod(dims), values.dtype)
    dense[_linear(indices, dims, values, where=where)] = values
    return numpy_helper.from_array(dense.reshape(dims), sparse.values.name)


def _linear(indices: np.ndarray, dims: tuple[int, ...], values: np.ndarray, where: str) -> np.ndarray:
    """Row-major positions of the values, all inside `dims`."""
    fits = indices.dtype == np.int64 and values.ndim == 1 and indices.shape[:1] == values.shape
    bounds = np.array([math.prod(dims)] if indices.ndim == 1 else dims, np.int64)
    fits = fits and (indices.ndim == 1 or indices.shape[1:] == (len(dims),))
    rows = indices.reshape(len(values), -1) if fits else indices
    if not fits or (rows < 0).any() or (rows >= bounds).any():
        raise PruneError(f"{where} has indices that do not fit its shape {list(dims)}", DAMAGED)
    return rows[:, 0] if indices.ndim == 1 else np.ravel_multi_index(tuple(rows.T), dims)
