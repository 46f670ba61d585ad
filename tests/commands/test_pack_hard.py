"""Packing where two things meet: equal bytes of different tensors, narrow values at the edges of their type, graphs
that only call functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunecli.arrays import Array
from prunecli.model import find_weights, load
from prunecli.packing.pack import pack, unpack
from prunecli.packing.proof import _ends_chain
from prunecli.storage.fitting import PIECE
from tests.model.build import info, node, save_proto
from tests.storage.sparse import optimised, run, sparse


def products(weights: dict[str, Array]) -> onnx.ModelProto:
    """y_w = x_w w for each, in its own type."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(w.dtype) for name, w in weights.items()}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node("MatMul", [f"x_{name}", name], [f"y_{name}"]) for name in weights], "g",
        [value(f"x_{name}", kinds[name], ["n", w.shape[0]]) for name, w in weights.items()],
        [value(f"y_{name}", kinds[name], ["n", w.shape[1]]) for name, w in weights.items()],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stored(path: Path) -> dict[str, Array]:
    return {w.name: w.array() for w in find_weights(load(path)).all()}


def feed(weights: dict[str, Array]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {f"x_{name}": rng.standard_normal((2, w.shape[0])).astype(w.dtype) for name, w in weights.items()}


def as_others(kind: str) -> tuple[dict[str, Array], str]:
    """Two tensors of the same bytes whose streams differ, and the values that make them differ."""
    if kind == "shape":  # other scales
        first = sparse("60%", shape=(64, 128))
        return {"a": first, "b": first.reshape(128, 64)}, "int8"
    ones = np.zeros(64 * 64, np.float32)
    ones[np.random.default_rng(3).choice(ones.size, 200, replace=False)] = 1  # other distances, as many of them
    return {"a": ones.reshape(64, 64), "b": ones.view(np.float16).reshape(64, 128)}, "exact"


@pytest.mark.parametrize("kind", ["shape", "type"])
def test_equal_bytes_of_other_tensors_are_stored_apart(kind: str, tmp_path: Path) -> None:
    weights, values = as_others(kind)
    found = pack(save_proto(products(weights), tmp_path), output=tmp_path / "p.onnx", values=values)
    assert len({row.name for row in found.rows if row.reason == ""}) == 2
    for name, array in stored(tmp_path / "p.onnx").items():  # int8: half a step of 1/127 of a row's largest
        tolerance = np.abs(weights[name]).max(axis=1, keepdims=True) / 127 * (values == "int8") * 0.51
        assert (np.abs(array - weights[name]) <= tolerance).all()


def test_scales_of_one_large_row(tmp_path: Path) -> None:
    """The row is not cut: each piece would have a scale of its own."""
    row = sparse("80%", shape=(1, 2 * PIECE + 32))
    found = pack(save_proto(products({"w": row}), tmp_path), output=tmp_path / "p.onnx", values="int8")
    assert found.rows[0].detail == "int8"
    steps = stored(tmp_path / "p.onnx")["w"] / (np.abs(row).max() / 127)
    assert np.abs(steps - np.rint(steps)).max() < 1e-4  # multiples of one scale, up to float32 rounding of 127 steps


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_values_stay_finite_as_int8(dtype: Any, tmp_path: Path) -> None:
    array = sparse("80%", dtype, (64, 64))
    array[0, :2] = np.finfo(dtype).max, -np.finfo(dtype).max
    pack(save_proto(products({"w": array}), tmp_path), output=tmp_path / "p.onnx", values="int8", verify=False)
    found = stored(tmp_path / "p.onnx")["w"]
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(array[0, 0], rel=1e-3)


def test_float16_as_int8_folds_to_what_is_read(tmp_path: Path) -> None:
    """onnxruntime has no float16 product: it would keep the scaling in the graph, and in float32."""
    weights = {"w": sparse("80%", np.float16, (64, 128))}
    found = pack(save_proto(products(weights), tmp_path), output=tmp_path / "p.onnx", values="int8")
    assert found.rows[0].detail == "int8"
    assert "Mul" not in optimised(tmp_path / "p.onnx", tmp_path)
    unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    x = feed(weights)
    assert run(tmp_path / "p.onnx", x)[0].tobytes() == run(tmp_path / "d.onnx", x)[0].tobytes()


def test_dense_tensors_become_narrower(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}
    path = save_proto(products(weights), tmp_path)
    found = pack(path, output=tmp_path / "p.onnx", values="float16")
    assert found.after.file_bytes < 0.6 * path.stat().st_size
    assert (found.rows[0].encoding, found.rows[0].detail, found.rows[0].reason) == ("dense", "float16", "")


def test_a_graph_that_only_calls_functions(tmp_path: Path) -> None:
    inner = helper.make_function("my", "F", ["x", "w"], ["y"], [node("MatMul", ["x", "w"], ["y"])],
                                 [helper.make_opsetid("", 17)])  # fmt: skip
    weights = {"w": sparse("80%", shape=(64, 64))}
    graph = helper.make_graph([node("F", ["x", "w"], ["y"], domain="my")], "g", [info("x", ["n", 64])],
                              [info("y", ["n", 64])], [numpy_helper.from_array(weights["w"], "w")])  # fmt: skip
    made = helper.make_model(graph, functions=[inner], opset_imports=[helper.make_opsetid("my", 1)], ir_version=8)
    path = save_proto(made, tmp_path)
    assert pack(path, output=tmp_path / "p.onnx").verification.kind == "exact"
    x = {"x": feed(weights)["x_w"]}
    assert run(tmp_path / "p.onnx", x)[0].tobytes() == run(path, x)[0].tobytes()


def test_plain_zeros_leave_nan_as_it_is(tmp_path: Path) -> None:
    array = sparse("80%", shape=(64, 64))
    array.view(np.uint32)[0, :3] = 0x7FA00001, 0x80000000, 0xFFC12345  # a signalling NaN, -0, a NaN
    pack(save_proto(products({"w": array}), tmp_path), output=tmp_path / "p.onnx", plain_zeros=True, verify=False)
    assert stored(tmp_path / "p.onnx")["w"].view(np.uint32)[0, :3].tolist() == [0x7FA00001, 0, 0xFFC12345]


LAST = [
    ("prunecli.pack/w", "w", True),
    ("_inlfunc_F_prunecli.constant/w/c", "w", True),  # how onnxruntime names the nodes of an inlined function
    ("_inlfunc_F_token_1_prunecli.pack/w", "w", True),
    ("prunecli.pack/w2", "w", False),
    ("prunecli.constant/w2/c", "w", False),
]


@pytest.mark.parametrize(("node_name", "tensor", "found"), LAST)
def test_what_is_left_of_a_chain_is_known_by_name(node_name: str, tensor: str, found: bool) -> None:
    assert _ends_chain(node_name, tensor) is found


def test_outputs_left_out_at_the_end(tmp_path: Path) -> None:
    """An LSTM of which only the sequence is used; what is written of the others is an empty name, or nothing."""
    weights = {"w": sparse("80%", shape=(1, 128, 64)), "r": sparse("80%", shape=(1, 128, 32))}
    graph = helper.make_graph([node("LSTM", ["x", "w", "r", ""], ["y", "", ""], hidden_size=32)], "g",
                              [info("x", ["s", "n", 64])], [info("y", ["s", 1, "n", 32])],
                              [numpy_helper.from_array(w, name) for name, w in weights.items()])  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = save_proto(made, tmp_path)
    assert pack(path, output=tmp_path / "p.onnx").verification.samples == 4
    unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    assert stored(tmp_path / "d.onnx").keys() == stored(path).keys()


def test_a_tensor_whose_chain_cannot_have_its_name_stays_dense(tmp_path: Path) -> None:
    weights = {name: sparse("90%", shape=(64, 64), seed=seed) for seed, name in enumerate(("a", "b"))}
    model = products(weights)
    model.graph.node[1].name = "prunecli.pack/a"
    path = save_proto(model, tmp_path)
    found = pack(path, output=tmp_path / "p.onnx")
    assert {row.name: row.reason for row in found.rows if row.reason} == {
        "a": "a node has the name that its chain would have"
    }
    np.testing.assert_array_equal(run(path, feed(weights))[0], run(tmp_path / "p.onnx", feed(weights))[0])
    assert np.array_equal(stored(tmp_path / "p.onnx")["a"], weights["a"])
