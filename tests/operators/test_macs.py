"""Multiply-accumulates: each operator against numbers worked out by hand, and nested ones by their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.model import concrete_shapes, count_macs, load
from prunecli.operators import MICROSOFT as MS
from prunecli.operators import OPERATORS
from tests.model.build import floats, info, loaded, node, proto
from tests.tiny import MODELS, SHARED

# operator, shapes of its inputs (None: absent), attributes, multiply-accumulates
CASES: list[tuple[str, list[tuple[int, ...] | None], dict[str, Any], int | None]] = [
    ("Conv", [(2, 4, 8, 8), (6, 4, 3, 3)], {}, 2 * 6 * 6 * 6 * 4 * 9),
    ("Conv", [(2, 4, 8, 8), (8, 2, 3, 3), (8,)],
     {"group": 2, "pads": [1] * 4, "strides": [2, 2]}, 2 * 8 * 4 * 4 * 2 * 9),
    ("Conv", [(1, 4, 9), (4, 1, 3)], {"group": 4, "dilations": [2]}, 4 * 5 * 3),
    ("DeformConv", [(1, 4, 8, 8), (6, 4, 3, 3), (1, 18, 6, 6)], {}, 6 * 36 * 4 * 9),
    (f"{MS}:FusedConv", [(1, 4, 8, 8), (6, 4, 3, 3)], {"activation": "Relu"}, 6 * 36 * 4 * 9),
    ("ConvTranspose", [(2, 4, 8, 8), (4, 3, 2, 2)], {"strides": [2, 2], "group": 2}, 2 * 4 * 64 * 3 * 4),
    ("Gemm", [(5, 3), (3, 4), (4,)], {}, 5 * 3 * 4),
    ("Gemm", [(3, 5), (4, 3)], {"transA": 1, "transB": 1}, 5 * 3 * 4),
    (f"{MS}:FusedGemm", [(5, 3), (3, 4)], {"activation": "Relu"}, 5 * 3 * 4),
    ("MatMul", [(2, 7, 5, 3), (3, 4)], {}, 14 * 5 * 3 * 4),
    ("MatMul", [(2, 1, 5, 3), (7, 3, 4)], {}, 14 * 5 * 3 * 4),
    ("MatMul", [(3,), (3,)], {}, 3),
    (f"{MS}:FusedMatMul", [(2, 3, 5), (2, 4, 3)], {"transA": 1, "transB": 1}, 2 * 5 * 3 * 4),
    (f"{MS}:FusedMatMul", [(5, 2, 3), (2, 3, 4)], {"transBatchA": 1}, 2 * 5 * 3 * 4),
    (f"{MS}:MoE", [(2, 7, 6), (14, 4), (4, 10, 6), None, (4, 6, 5)], {"k": 2, "swiglu_fusion": 1}, 14 * 2 * 5 * 6 * 3),
    (f"{MS}:QMoE", [(2, 7, 6), (14, 4), (4, 20, 3), None, None, (4, 6, 5)], {"k": 2, "swiglu_fusion": 1}, 14 * 2 * 10 * 6 * 3),
    (f"{MS}:QMoE", [(2, 7, 6), (14, 4), (4, 5, 6), None, None, (4, 6, 5)], {"expert_weight_bits": 8}, 14 * 5 * 6 * 2),
    (f"{MS}:FusedMatMul", [(3, 2, 5), (4, 2, 3)], {"transBatchA": 1, "transA": 1, "transBatchB": 1, "transB": 1}, 2 * 5 * 3 * 4),
    (f"{MS}:TransposeMatMul", [(5, 3), (3, 4)], {}, 5 * 3 * 4),
    ("Einsum", [(2, 5, 3), (3, 4)], {"equation": "bsi,io->bso"}, 2 * 5 * 3 * 4),
    ("Einsum", [(2, 5, 3)], {"equation": "bsi->bis"}, 0),
    ("Einsum", [(2, 7, 5, 3), (2, 7, 3, 4)], {"equation": "...ij,...jk->...ik"}, 14 * 5 * 3 * 4),
    ("Einsum", [(2, 1, 5, 3), (2, 7, 3, 4)], {"equation": "...ij,...jk->...ik"}, 14 * 5 * 3 * 4),
    ("CausalConvWithState", [(2, 4, 9), (4, 1, 3)], {}, 2 * 4 * 9 * 3),
    ("Einsum", [(2, 5), (5, 3), (3, 4)], {"equation": "ab,bc,cd->ad"}, None),
    ("LSTM", [(7, 2, 3), (1, 20, 3), (1, 20, 5)], {"hidden_size": 5}, 7 * 2 * 4 * 5 * (3 + 5)),
    ("GRU", [(7, 2, 3), (2, 15, 3), (2, 15, 5)],
     {"hidden_size": 5, "direction": "bidirectional"}, 7 * 2 * 2 * 15 * 8),
    ("RNN", [(2, 7, 3), (1, 5, 3), (1, 5, 5)], {"hidden_size": 5, "layout": 1}, 7 * 2 * 5 * 8),
    (f"{MS}:Attention", [(2, 7, 6), (6, 18), (18,)], {"num_heads": 2}, 2 * 7 * (6 * 18 + 7 * 12)),
    (f"{MS}:Attention", [(2, 7, 6), (6, 18), (18,), None, (2, 2, 2, 3, 3)],
     {"num_heads": 2}, 2 * 7 * (6 * 18 + 10 * 12)),
    (f"{MS}:Attention", [(2, 7, 6), (6, 20), (20,)],
     {"num_heads": 2, "qkv_hidden_sizes": [6, 6, 8]}, 2 * 7 * (120 + 7 * 14)),
    (f"{MS}:MultiHeadAttention", [(2, 7, 6), (2, 9, 6), (2, 9, 8)], {"num_heads": 2}, 2 * 7 * 9 * 14),
    (f"{MS}:MultiHeadAttention", [(2, 7, 2, 3, 4)], {"num_heads": 2}, 2 * 7 * 7 * 16),
    (f"{MS}:GroupQueryAttention", [(2, 7, 8), (2, 7, 4), (2, 7, 4)],
     {"num_heads": 4, "kv_num_heads": 2}, 2 * 7 * 7 * 16),
    ("Attention", [(2, 4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 6)], {}, 2 * 4 * 7 * 9 * (8 + 6)),
    ("Attention", [(2, 7, 32), (2, 9, 32), (2, 9, 24)],
     {"q_num_heads": 4, "kv_num_heads": 4}, 2 * 7 * 9 * (32 + 24)),
    ("Relu", [(2, 3)], {}, 0),
]  # fmt: skip


def one(op: str, shapes: list[tuple[int, ...] | None], attributes: dict[str, Any], folder: Path) -> Any:
    domain, _, op_type = op.rpartition(":")
    names = ["" if shape is None else f"i{i}" for i, shape in enumerate(shapes)]
    inputs = {name: shape for name, shape in zip(names, shapes, strict=True) if shape is not None}
    outputs = ["y", "state"] if op.endswith("WithState") else ["y"]
    made = node(op_type, names, outputs, domain=domain, **attributes)
    model = loaded(
        proto([made], inputs, opset=onnx.defs.onnx_opset_version(), domains=[domain] if domain else []), folder
    )
    return count_macs(model, concrete_shapes(model))


@pytest.mark.parametrize(("op", "shapes", "attributes", "expected"), CASES, ids=[f"{c[0]}-{c[1][0]}" for c in CASES])
def test_each_operator(
    op: str,
    shapes: list[tuple[int, ...] | None],
    attributes: dict[str, Any],
    expected: int | None,
    tmp_path: Path,
) -> None:
    assert one(op, shapes, attributes, tmp_path).total == expected


U8, I8, F32 = np.uint8, np.int8, np.float32
SCALE: list[tuple[tuple[int, ...], Any]] = [((), F32), ((), U8)]
QUANTISED: list[tuple[str, list[tuple[tuple[int, ...], Any]], dict[str, Any], int]] = [
    ("ConvInteger", [((1, 4, 8, 8), U8), ((6, 4, 3, 3), U8)], {}, 6 * 36 * 36),
    ("QLinearConv", [((1, 4, 8, 8), U8), *SCALE, ((6, 4, 3, 3), U8), *SCALE, *SCALE], {}, 6 * 36 * 36),
    ("MatMulInteger", [((5, 3), U8), ((3, 4), I8)], {}, 60),
    ("QLinearMatMul", [((5, 3), U8), *SCALE, ((3, 4), U8), *SCALE, *SCALE], {}, 60),
    (f"{MS}:QGemm", [((5, 3), U8), *SCALE, ((3, 4), U8), *SCALE], {}, 60),
    (f"{MS}:DynamicQuantizeMatMul", [((5, 3), F32), ((3, 4), U8), ((), F32)], {}, 60),
    (f"{MS}:MatMulIntegerToFloat", [((5, 3), U8), ((3, 4), U8), ((), F32), ((), F32)], {}, 60),
    (f"{MS}:MatMulNBits", [((5, 32), F32), ((4, 1, 16), U8), ((4,), F32)], {"K": 32, "N": 4}, 5 * 32 * 4),
    (f"{MS}:QAttention", [((2, 7, 6), U8), ((6, 18), U8), ((18,), F32)], {}, 2 * 7 * (6 * 18 + 7 * 12)),
    (f"{MS}:DynamicQuantizeLSTM", [((7, 2, 3), F32), ((1, 3, 20), U8), ((1, 5, 20), U8)], {}, 7 * 2 * 20 * 8),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "attributes", "expected"), QUANTISED, ids=[c[0] for c in QUANTISED])
def test_quantised_operators(op: str, inputs: Any, attributes: dict[str, Any], expected: int, tmp_path: Path) -> None:
    domain, _, op_type = op.rpartition(":")
    weights = {f"i{i}": np.ones(shape, dtype) for i, (shape, dtype) in enumerate(inputs)}
    made = node(op_type, list(weights), ["y"], domain=domain, **attributes)
    model = loaded(proto([made], {}, weights=weights, domains=[MS]), tmp_path)
    assert count_macs(model, concrete_shapes(model)).total == expected


def test_every_formula_has_a_case() -> None:
    tested = {tuple(op.rpartition(":")[::2]) for op, *_ in [*CASES, *QUANTISED]}
    assert {key for key, operator in OPERATORS.items() if operator.macs} <= tested


def test_an_unknown_shape_makes_node_and_total_unknown(tmp_path: Path) -> None:
    nodes = [
        node("NonZero", ["x"], ["n"]),
        node("Cast", ["n"], ["f"], to=1),
        node("MatMul", ["w", "f"], ["y"]),
        node("MatMul", ["w", "w"], ["z"]),
    ]
    model = loaded(proto(nodes, {"x": (2, 3)}, ["y", "z"], {"w": floats(2, 2)}), tmp_path)
    counted = count_macs(model, concrete_shapes(model))
    assert sorted(counted.nodes.values(), key=str) == [8, None]
    assert counted.total is None


def test_functions_count_per_call_with_the_calls_shapes(tmp_path: Path) -> None:
    function = helper.make_function(
        "my",
        "Dense",
        ["a", "k"],
        ["o"],
        [node("Gemm", ["a", "k"], ["o"])],
        [helper.make_opsetid("", 17)],
        ["transB"],
    )
    function.node[0].attribute.add(name="transB", ref_attr_name="transB", type=onnx.AttributeProto.INT)
    nodes = [
        node("Dense", ["x", "w"], ["h"], domain="my"),
        node("Dense", ["h", "v"], ["y"], domain="my", transB=1),
    ]
    weights = {"w": floats(3, 4), "v": floats(5, 4)}
    model = loaded(proto(nodes, weights=weights, functions=[function], domains=["my"]), tmp_path)
    counted = count_macs(model, concrete_shapes(model))
    ((gemm, count),) = counted.nodes.items()
    assert count == 2 * 3 * 4 + 2 * 4 * 5
    assert gemm.graph is next(iter(model.ir.functions.values())).graph


def branch(n: int) -> onnx.GraphProto:
    stored = numpy_helper.from_array(floats(3, n), f"w{n}")
    nodes = [node("MatMul", ["x", f"w{n}"], [f"m{n}"]), node("ReduceSum", [f"m{n}"], [f"o{n}"], keepdims=0)]
    return helper.make_graph(nodes, f"b{n}", [], [info(f"o{n}", None)], [stored])


def test_branches_and_loops(tmp_path: Path) -> None:
    step = helper.make_graph(
        [node("MatMul", ["h", "w"], ["h2"]), node("Identity", ["c"], ["c2"])],
        "step",
        [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("h", None)],
        [info("c2", None), info("h2", None)],
    )
    five = node("Constant", [], ["m"], value=numpy_helper.from_array(np.array(5)))
    nodes = [
        node("If", ["cond"], ["a"], then_branch=branch(4), else_branch=branch(6)),
        five,
        node("Loop", ["m", "", "x"], ["b"], body=step),
    ]
    model = proto(nodes, {"x": (2, 3), "cond": ()}, ["a", "b"], {"w": floats(3, 3)})
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    result = loaded(model, tmp_path)
    assert count_macs(result, concrete_shapes(result)).total == 2 * 3 * 6 + 5 * 2 * 3 * 3


KNOWN = {
    # 3x3 convolutions of the CIFAR ResNets at 32x32 and the classifier, counted layer by layer
    "resnet20-cifar10.onnx": 27 * 16 * 1024 + 6 * 144 * 16 * 1024 + (144 * 32 + 5 * 288 * 32) * 256
    + (288 * 64 + 5 * 576 * 64) * 64 + 640,
    "resnet56-cifar10.onnx": 27 * 16 * 1024 + 18 * 144 * 16 * 1024 + (144 * 32 + 17 * 288 * 32) * 256
    + (288 * 64 + 17 * 576 * 64) * 64 + 640,
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_published_networks(name: str) -> None:
    path = SHARED / "models" / "real" / name
    if not path.exists():
        pytest.skip("no shared models: set PRUNE_SHARED")
    model = load(path)
    assert count_macs(model, concrete_shapes(model)).total == KNOWN[name]


PAIRS = [(p, p.with_name(p.name.replace(".onnx", ".dynamo.onnx"))) for p in MODELS]


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] in MODELS], ids=lambda p: p[0].name)
def test_two_exports_of_one_network_cost_the_same(pair: tuple[Path, Path]) -> None:
    totals = set()
    for path in pair:
        model = load(path)
        totals.add(count_macs(model, concrete_shapes(model)).total)
    assert len(totals) == 1
    assert None not in totals
