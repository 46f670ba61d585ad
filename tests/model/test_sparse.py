"""Sparse tensors are made dense while loading, within limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunecli.model import find_weights, save
from tests.model.build import floats, loaded, node, proto, refused, run, save_proto


def coo(dims: tuple[int, ...], indices: np.ndarray, values: np.ndarray) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        dims=dims, values=numpy_helper.from_array(values, "w"), indices=numpy_helper.from_array(indices, "i")
    )


COO = [("linear", np.array([1, 7])), ("coordinates", np.array([[0, 1], [1, 3]]))]


@pytest.mark.parametrize(("name", "indices"), COO, ids=[c[0] for c in COO])
def test_sparse_initializers_become_dense(name: str, indices: np.ndarray, tmp_path: Path) -> None:
    model = proto([node("MatMul", ["x", "w"], ["y"])])
    model.graph.sparse_initializer.append(coo((3, 4), indices, np.array([5, 6], np.float32)))
    result = loaded(model, tmp_path)
    dense = find_weights(result).prunable[0].array()
    assert dense[0, 1] == 5
    assert dense[1, 3] == 6
    assert np.count_nonzero(dense) == 2
    assert result.notes == ["sparse tensors were made dense: w"]
    save(result, tmp_path / "out.onnx")
    x = floats(2, 3)
    before, after = (run(path, {"x": x})[0] for path in (tmp_path / "m.onnx", tmp_path / "out.onnx"))
    assert np.array_equal(before, after)


def test_sparse_constants_become_dense(tmp_path: Path) -> None:
    sparse = coo((3, 4), np.array([1, 7]), np.array([5, 6], np.float32))
    model = proto([node("Constant", [], ["w"], sparse_value=sparse), node("MatMul", ["x", "w"], ["y"])])
    assert np.count_nonzero(find_weights(loaded(model, tmp_path)).prunable[0].array()) == 2


BAD_SPARSE: list[tuple[str, tuple[int, ...], np.ndarray, int, str]] = [
    ("out of range", (3, 4), np.array([1, 12]), 2, "indices that do not fit"),
    ("negative", (3, 4), np.array([-1, 2]), 2, "indices that do not fit"),
    ("coordinate out of range", (3, 4), np.array([[0, 4], [1, 1]]), 2, "indices that do not fit"),
    ("rank", (3, 4), np.array([[0, 1, 1], [1, 1, 1]]), 2, "indices that do not fit"),
    ("count", (3, 4), np.array([1]), 2, "indices that do not fit"),
    ("type", (3, 4), np.array([1, 2], np.int32), 2, "indices that do not fit"),
    ("bomb", (1 << 20, 1 << 14), np.array([1, 2]), 2, "would take 68719476736 bytes"),
    ("outside", (3, 4), np.array([1, 7]), -2, "is stored in an external file"),
    ("absurd", (1 << 40, 1 << 40), np.array([1, 2]), 2, "impossible shape"),
]


@pytest.mark.parametrize(("name", "dims", "indices", "count", "words"), BAD_SPARSE, ids=[b[0] for b in BAD_SPARSE])
def test_bad_sparse_tensors(
    name: str, dims: tuple[int, ...], indices: np.ndarray, count: int, words: str, tmp_path: Path
) -> None:
    model = proto([node("MatMul", ["x", "w"], ["y"])])
    sparse = coo(dims, indices, np.ones(abs(count), np.float32))
    if count < 0:
        sparse.values.data_location = onnx.TensorProto.EXTERNAL
        sparse.values.external_data.add(key="location", value="m.data")
        (tmp_path / "m.data").write_bytes(sparse.values.raw_data)
        sparse.values.ClearField("raw_data")
    model.graph.sparse_initializer.append(sparse)
    refused(save_proto(model, tmp_path), words)
