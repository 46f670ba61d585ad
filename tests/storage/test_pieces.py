"""Tensors in pieces, tensors together, and chains that wait: the same bits, and what onnxruntime runs is the same."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from prunecli.arrays import Array
from prunecli.model import load
from prunecli.model.constants import holders
from prunecli.packing import plan as pack_write
from prunecli.packing.pack import pack, unpack
from prunecli.storage import fit, fitting
from prunecli.storage.chain import Op, streams
from prunecli.storage.encodings import EncodedTensor
from tests.model.build import refused, save_proto
from tests.storage.sparse import optimised, run, sparse

SIZE = 96


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is large."""
    monkeypatch.setattr(fitting, "PIECE", 1024)
    monkeypatch.setattr(fitting, "SHARED_UP_TO", 0)
    monkeypatch.setattr("prunecli.packing.plan.SHARED_UP_TO", 0)
    monkeypatch.setattr(pack_write, "SPREAD_FROM", 0)


def products(weights: dict[str, Array], opset: int = 17) -> onnx.ModelProto:
    """y = x w0 w1 ..., all square."""
    values = ["x", *(f"z{n}" for n in range(len(weights) - 1)), "y"]
    nodes = [helper.make_node("MatMul", [values[n], name], [values[n + 1]]) for n, name in enumerate(weights)]
    size = len(next(iter(weights.values())))
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])] for name in "xy"]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", *ends, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def square(kind: str, seed: int = 0, size: int = SIZE) -> Array:
    return sparse(kind, shape=(size, size), seed=seed)


def check(weights: dict[str, Array], folder: Path, opset: int = 17, **options: Any) -> onnx.ModelProto:
    """Pack, and see that nothing but the size changes; the packed model."""
    path, packed = save_proto(products(weights, opset), folder), folder / "p.onnx"
    pack(path, output=packed, **options)
    assert optimised(packed, folder) == ["MatMul"] * len(weights)
    size = len(next(iter(weights.values())))
    x = {"x": np.random.default_rng(1).standard_normal((3, size)).astype(np.float32)}
    for optimise in (True, False):
        assert run(packed, x, optimise)[0].tobytes() == run(path, x)[0].tobytes()
    unpack(packed, output=folder / "d.onnx")
    found = {h.name: h.tensor.numpy().tobytes() for h in holders(load(folder / "d.onnx").ir)}
    assert found == {name: array.tobytes() for name, array in weights.items()}
    assert {n.op_type for n in onnx.load(folder / "d.onnx").graph.node} == {"MatMul"}
    return onnx.load(packed)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("kind", ["50%", "95%", "2:4", "1:8", "4x1", "1x*", "odd"])
def test_pieces_decode_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    array = square(kind)
    encoded = fit(EncodedTensor(array, ir.DataType.FLOAT))
    assert encoded is not None
    assert encoded.chain.type == "Concat"
    assert len(encoded.chain.inputs) == SIZE // 8  # 1024 elements are 10 rows; windows and blocks need a power of two
    if kind != "odd":
        check({"w": array}, tmp_path)


@pytest.mark.usefixtures("cut")
def test_chains_take_turns(tmp_path: Path) -> None:
    """Each pass puts one branch in place, which the next one finds: that is what keeps memory low."""
    model = check({f"w{n}": square("50%", n) for n in range(4)}, tmp_path)
    assert sum(node.op_type == "If" for node in model.graph.node) == fitting.PASSES - 1
    assert passes(tmp_path / "p.onnx") == fitting.PASSES


@pytest.mark.usefixtures("cut")
def test_turns_and_pieces_are_standard_onnx(tmp_path: Path) -> None:
    weights = {f"w{n}": square("97%", n, 64) for n in range(2)}
    check(weights, tmp_path)
    x = np.eye(64, dtype=np.float32)
    found = ReferenceEvaluator(str(tmp_path / "p.onnx")).run(None, {"x": x})[0]
    assert np.allclose(found, weights["w0"] @ weights["w1"], rtol=1e-5, atol=1e-6)  # sums of some 64 products


def passes(path: Path) -> int:
    """Folding passes that do something, as onnxruntime tells them."""
    told = subprocess.run([sys.executable, "-c", TELL, str(path)], capture_output=True, text=True, check=True)
    return told.stderr.count("ConstantFolding modified: 1")


TELL = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 1
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_small_tensors_share_a_chain(opset: int, tmp_path: Path) -> None:
    """What is stored beside the information is little, whatever the number of tensors; equal ones are stored once."""
    weights = {f"w{n}": square("50%", n, 32) for n in range(20)}
    weights["w7"] = weights["w3"].copy()
    model = check(weights, tmp_path, opset)
    assert [node.op_type for node in model.graph.node].count("ScatterElements") == 1
    information = 19 * (32 * 32 // 8) + 4 * sum(int(np.count_nonzero(w)) for n, w in weights.items() if n != "w7")
    rest = len(model.SerializeToString()) - information
    assert rest < 5000 + 130 * 20  # tables and metadata, and fitting.SHARED_OVERHEAD each


@given(st.lists(st.integers(1, 5), max_size=3), st.integers(1, 4000))
def test_pieces_cover_a_tensor_once(leading: list[int], last: int) -> None:
    shape = (*leading, last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "PIECE", 256)
        axis, edges = fitting.cuts(shape)
    assert edges[0] == 0
    assert edges[-1] == shape[axis]
    assert all(a < b for a, b in pairwise(edges))
    assert math.prod(shape[:axis]) == 1  # so that each piece lies in one place


@given(st.lists(st.integers(1, fitting.SHARED_UP_TO), max_size=30))
def test_neighbours_stand_together(sizes: list[int]) -> None:
    found = fitting.bundles(sizes)
    assert [n for each in found for n in each] == list(range(len(sizes)))
    assert all(sum(sizes[n] for n in each) <= fitting.TOGETHER for each in found)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=20), st.integers(1, 8))
def test_passes_are_in_order_and_no_more_than_given(sizes: list[int], count: int) -> None:
    def numbers(op: Op) -> list[int]:
        return [i.number for node in op.inputs if isinstance(node, Op) for i in node.inputs if hasattr(i, "number")]

    chain = fit(EncodedTensor(square("50%", size=16), ir.DataType.FLOAT, shares=True))
    assert chain is not None
    spread = fitting.spread([(chain.chain, size) for size in sizes], count)
    assert len(spread) == len(sizes)
    assert all(len(streams(op)) == 2 for op in spread)
    assert all(0 < n < count for op in spread for n in numbers(op))


def change(kind: str, number: int, alter: Callable[[onnx.NodeProto], None]) -> Callable[[onnx.ModelProto], None]:
    def changed(model: onnx.ModelProto) -> None:
        alter([node for node in model.graph.node if node.op_type == kind][number])

    return changed


def other_branch(node: onnx.NodeProto) -> None:
    node.attribute[0].g.node[0].op_type = "Size"


def own(node: onnx.NodeProto) -> None:
    node.input[1] = node.input[0]


def far(model: onnx.ModelProto) -> None:
    """Vectors that are split are said to be of 2^40 elements."""
    sizes = next(node.input[1] for node in model.graph.node if node.op_type == "Split")
    tensor = next(t for t in model.graph.initializer if t.name == sizes)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 1 << 40), tensor.name))


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("alter", [change("If", 1, other_branch), change("Expand", 0, own)], ids=["branch", "turn"])
def test_other_turns_are_left_as_they_are(alter: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    pack(save_proto(products({"w": square("50%")}), tmp_path), output=tmp_path / "p.onnx", verify=False)
    model = onnx.load(tmp_path / "p.onnx")
    alter(model)
    onnx.save(model, tmp_path / "bad.onnx")
    assert not load(tmp_path / "bad.onnx").packed


def test_impossible_parts_are_refused(tmp_path: Path) -> None:
    weights = {f"w{n}": square("50%", n, 32) for n in range(3)}
    pack(save_proto(products(weights), tmp_path), output=tmp_path / "p.onnx", verify=False)
    model = onnx.load(tmp_path / "p.onnx")
    far(model)
    refused(save_proto(model, tmp_path, "bad.onnx"), "impossible sizes")


def test_what_folds_nowhere_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FOLDED_UP_TO", SIZE * SIZE * 4 - 1)
    assert fit(EncodedTensor(square("50%"), ir.DataType.FLOAT)) is None


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_loads")
def test_memory_at_load_is_less_than_twice_that_of_the_dense_file(tmp_path: Path) -> None:
    """Six matrices of 2 M elements; without turns and pieces it takes about four times as much."""
    weights = {f"w{n}": square("50%", n, 1448) for n in range(6)}
    found = pack(save_proto(products(weights), tmp_path), output=tmp_path / "p.onnx")
    assert found.loads is not None
    before, after = (load.peak_bytes for load in found.loads)
    if before is None or after is None:
        pytest.skip("this system does not tell the most memory in use")
    assert after < 2.2 * before  # the allocator's own leftovers differ from run to run
