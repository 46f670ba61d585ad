"""Categories of one-hot inputs are no channels, and are cut only where that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.structures.prunable import analyse

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(20, 16)).astype(np.float32)
NUMBERS = np.arange(20)

# how ids (batch, 12) become "oh" (batch, 12, 20) -> nodes, initializers, kind of the 20 positions
WAYS = {
    "table": ([("Gather", ["table", "ids"], {})], {"table": np.eye(20, dtype=np.float32)}, "vocabulary"),
    "permuted table": ([("Gather", ["table", "ids"], {})], {"table": 2 * np.eye(20, dtype=np.float32)[::-1]}, "vocabulary"),
    "comparison": ([("Equal", ["column", "all"], {}), ("Cast", ["Equal_out"], {"to": 1})], {"all": NUMBERS}, "vocabulary"),
    "comparison, turned": ([("Equal", ["all", "column"], {}), ("Cast", ["Equal_out"], {"to": 1})], {"all": NUMBERS[None, ::-1]}, "vocabulary"),
    "embedding": ([("Gather", ["table", "ids"], {})], {"table": RNG.normal(size=(30, 20)).astype(np.float32)}, "channel"),
    "thresholds": ([("Greater", ["column", "all"], {}), ("Cast", ["Greater_out"], {"to": 1})], {"all": NUMBERS}, "channel"),
}  # fmt: skip


def net(path: Path, way: str) -> Path:
    """Categories, a layer of 16 units, the mean over places, and 5 outputs."""
    steps, more, _ = WAYS[way]
    nodes = [helper.make_node("Unsqueeze", ["ids", "last"], ["column"])]
    for number, (op, inputs, attributes) in enumerate(steps):
        out = "oh" if number == len(steps) - 1 else f"{op}_out"
        nodes.append(helper.make_node(op, inputs, [out], **attributes))
    nodes += [
        helper.make_node("MatMul", ["oh", "w"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("ReduceMean", ["r", "places"], ["m"], keepdims=0), helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]  # fmt: skip
    stored = {"w": FLOATS, "v": FLOATS[:16, :5], "last": np.array([-1]), "places": np.array([1]), **more}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in stored.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_categories_stay_unless_they_are_asked_for(way: str, tmp_path: Path) -> None:
    path, kind = net(tmp_path / "m.onnx", way), WAYS[way][2]
    sizes = {granularity: sorted(group.count for group in analyse(path, granularity).groups)
             for granularity in ("channel,head", "all", "channel,vocabulary", "vocabulary")}  # fmt: skip
    channels = [16] if kind == "vocabulary" else [16, 20]
    assert sizes["channel,head"] == sizes["all"] == channels
    assert sizes["channel,vocabulary"] == [16, 20] and sizes["vocabulary"] == ([20] if kind == "vocabulary" else [])
    if kind == "vocabulary":
        assert any("--granularity vocabulary cuts them" in axis.reason for axis in analyse(path).frozen)


def test_categories_that_are_cut_are_proved(tmp_path: Path) -> None:
    import prunecli

    done = prunecli.structured(
        net(tmp_path / "m.onnx", "comparison"), ratio=0.5, granularity="vocabulary", output=tmp_path / "s.onnx",
        timing=False, round_to=1,
    ).to_json()  # fmt: skip
    shapes = {each.name: tuple(each.dims) for each in onnx.load(tmp_path / "s.onnx").graph.initializer}
    assert shapes["w"] == (10, 16) and done["verification"]["kind"] == "exact"
