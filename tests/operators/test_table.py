"""The table of operators: what each asks of its inputs, the shapes of its outputs, and the facts by name.

Roles, multiply-accumulates, contractions and sums have tables of cases of their own in this folder and in
tests/calibration/test_moments.py; every table fails for an entry without a case.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from prunecli.model import concrete_shapes, load
from prunecli.operators import MICROSOFT as MS
from prunecli.operators import NO_DEMAND, OPERATORS, Demand, Operator, demand_of, named, operator_of, register
from prunecli.operators.operator import UNKNOWN, DemandReading, amend, like_first, same_size

ML = "ai.onnx.ml"
FOUR = Demand((2, 3, 8, 9), True)
ANY4 = (None, 3, None, None)


def made(op: str, inputs: int, attributes: dict[str, Any]) -> ir.Node:
    domain, _, op_type = op.rpartition(":")
    return ir.node(op_type, [ir.Value(name=f"i{k}") for k in range(inputs)], attributes, domain=domain)


def key(op: str) -> tuple[str, str]:
    domain, _, op_type = op.rpartition(":")
    return domain, op_type


Shapes = list[tuple[int, ...] | None]
# operator, shapes of its constant inputs (None: computed), attributes, what is asked of the output, and of input 0
DEMANDS: list[tuple[str, Shapes, dict[str, Any], Demand, Demand]] = [
    ("Conv", [None, (8, 3, 3, 3)], {}, NO_DEMAND, Demand(ANY4, True)),
    ("Conv", [None, (8, 3, 3)], {"group": 2}, NO_DEMAND, Demand((None, 6, None), True)),
    ("Conv", [None, (8, 3)], {}, NO_DEMAND, NO_DEMAND),
    ("ConvInteger", [None, (8, 3, 3, 3)], {}, NO_DEMAND, Demand(ANY4, True)),
    (f"{MS}:FusedConv", [None, (8, 3, 3, 3)], {}, NO_DEMAND, Demand(ANY4, True)),
    ("QLinearConv", [None, (), (), (8, 3, 3, 3)], {}, NO_DEMAND, Demand(ANY4, True)),
    ("ConvTranspose", [None, (3, 5, 2, 2)], {}, NO_DEMAND, Demand(ANY4, True)),
    ("Gemm", [None, (6, 4)], {}, NO_DEMAND, Demand((None, 6), True)),
    ("Gemm", [None, (4, 6)], {"transA": 1, "transB": 1}, NO_DEMAND, Demand((6, None), True)),
    (f"{MS}:FusedGemm", [None, (6, 4)], {}, NO_DEMAND, Demand((None, 6), True)),
    ("MatMul", [None, (6, 4)], {}, NO_DEMAND, Demand((None, 6))),
    ("MatMul", [None, (6,)], {}, NO_DEMAND, Demand((None, 6))),
    ("MatMulInteger", [None, (2, 6, 4)], {}, NO_DEMAND, Demand((None, 6))),
    (f"{MS}:DynamicQuantizeMatMul", [None, (6, 4)], {}, NO_DEMAND, Demand((None, 6))),
    (f"{MS}:MatMulIntegerToFloat", [None, (6, 4)], {}, NO_DEMAND, Demand((None, 6))),
    ("LSTM", [None, (1, 8, 5)], {}, NO_DEMAND, Demand((None, None, 5), True)),
    ("GRU", [None, (1, 6, 5)], {}, NO_DEMAND, Demand((None, None, 5), True)),
    ("RNN", [None, (1, 2, 5)], {}, NO_DEMAND, Demand((None, None, 5), True)),
    (f"{MS}:Attention", [None, (6, 18)], {}, NO_DEMAND, Demand((None, None, 6), True)),
    (f"{MS}:QAttention", [None, (6, 18)], {}, NO_DEMAND, Demand((None, None, 6), True)),
    ("BatchNormalization", [None, (3,)], {}, Demand((None,) * 4, True), Demand(ANY4, True)),
    ("BatchNormalization", [None, (3,)], {}, NO_DEMAND, NO_DEMAND),
    ("InstanceNormalization", [None, (3,)], {}, Demand((None,) * 3, True), Demand((None, 3, None), True)),
    ("LayerNormalization", [None, (6,)], {}, NO_DEMAND, Demand((6,))),
    ("RMSNormalization", [None, (6,)], {}, NO_DEMAND, Demand((6,))),
    ("SimplifiedLayerNormalization", [None, (6,)], {}, NO_DEMAND, Demand((6,))),
    (f"{MS}:SimplifiedLayerNormalization", [None, (6,)], {}, NO_DEMAND, Demand((6,))),
    (f"{MS}:LayerNormalization", [None, (6,)], {}, NO_DEMAND, Demand((6,))),
    (f"{MS}:SkipLayerNormalization", [None, None, (6,)], {}, NO_DEMAND, Demand((6,))),
    (f"{MS}:SkipSimplifiedLayerNormalization", [None, None, (6,)], {}, NO_DEMAND, Demand((6,))),
    *((op, [None, (3, 1, 8)], {}, Demand((9,)), Demand((3, None, 9)))
      for op in ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where")),
    ("Add", [None, None], {}, FOUR, NO_DEMAND),
    *((op, [None], {"kernel_shape": [2, 2]}, NO_DEMAND, Demand((None,) * 4, True))
      for op in ("AveragePool", "LpPool", "MaxPool")),
    *((op, [None], {}, FOUR, Demand((2, 3, None, None), True))
      for op in ("GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize", "Upsample")),
    ("Resize", [None], {}, Demand((3,)), NO_DEMAND),
    ("Transpose", [None], {"perm": [0, 3, 1, 2]}, FOUR, Demand((2, 8, 9, 3), True)),
    ("Transpose", [None], {}, FOUR, Demand((9, 8, 3, 2), True)),
    ("Transpose", [None], {"perm": [1, 0]}, NO_DEMAND, Demand((None, None), True)),
    ("Unsqueeze", [None], {"axes": [1, -1]}, FOUR, Demand((2, 8), True)),
    ("Pad", [None], {"pads": [0, 0, 1, 2, 0, 0, 3, 4]}, FOUR, Demand((2, 3, 4, 3), True)),
    (f"{ML}:Scaler", [None], {"offset": [1.0, 2.0]}, NO_DEMAND, Demand((2,))),
    (f"{ML}:Scaler", [None], {"scale": [1.0]}, NO_DEMAND, NO_DEMAND),
    (f"{ML}:Imputer", [None], {"imputed_value_floats": [1.0, 2.0, 3.0]}, NO_DEMAND, Demand((3,))),
    *((f"{domain}:{op}".lstrip(":"), [None], {}, FOUR, FOUR)
      for (domain, op), entry in OPERATORS.items() if entry.demand is same_size),
]  # fmt: skip


@pytest.mark.parametrize(("op", "shapes", "attributes", "after", "expected"), DEMANDS, ids=[c[0] for c in DEMANDS])
def test_what_is_asked_of_the_first_input(
    op: str, shapes: Shapes, attributes: dict[str, Any], after: Demand, expected: Demand
) -> None:
    node = made(op, len(shapes), attributes)
    assert demand_of(DemandReading(node, 0, after, shapes, [None] * len(shapes))) == expected


# operator, shapes of its inputs, attributes, shapes of its outputs
X, WIDE = (2, 7, 6), (2, 3, 8, 9)
SHAPES: list[tuple[str, Shapes, dict[str, Any], Shapes]] = [
    (f"{MS}:FusedMatMul", [(2, 5, 3), (2, 4, 3)], {"transB": 1}, [(2, 5, 4)]),
    (f"{MS}:FusedMatMul", [(3,), (3, 4)], {}, [None]),
    (f"{MS}:TransposeMatMul", [(3, 5), (3, 4)], {"transA": 1}, [(5, 4)]),
    (f"{MS}:DynamicQuantizeMatMul", [X, (6, 4)], {}, [(2, 7, 4)]),
    (f"{MS}:MatMulIntegerToFloat", [X, (6, 4)], {}, [(2, 7, 4)]),
    (f"{MS}:GatherBlockQuantized", [(9, 16), (2, 3), (9, 2)], {"block_size": 16}, [(2, 3, 32)]),
    (f"{MS}:GatherBlockQuantized", [(9, 32), (2, 3), (9, 2)], {"block_size": 16, "bits": 8}, [(2, 3, 32)]),
    (f"{MS}:MatMulNBits", [X, (4, 1, 16)], {"N": 4, "K": 6}, [(2, 7, 4)]),
    (f"{MS}:MoE", [X, (14, 4), (4, 5, 6), (4, 5), (4, 6, 5)], {"k": 2}, [X]),
    (f"{MS}:QMoE", [X, (14, 4), (4, 5, 3), (4, 5), None, (4, 6, 3)], {"k": 2}, [X]),
    (f"{MS}:QGemm", [(5, 3), (), (), (4, 3)], {"transB": 1}, [(5, 4)]),
    (f"{MS}:DynamicQuantizeLSTM", [(7, 2, 3), (1, 3, 20)], {}, [(7, 1, 2, 5)]),
    (f"{MS}:Attention", [X, (6, 20)], {"num_heads": 2, "qkv_hidden_sizes": [6, 6, 8]}, [(2, 7, 8), (2, 2, 2, 7, 4)]),
    (f"{MS}:Attention", [X, (6, 18), (18,), None, (2, 2, 2, 3, 3)], {"num_heads": 2}, [X, (2, 2, 2, 10, 3)]),
    (f"{MS}:QAttention", [X, (6, 12)], {"num_heads": 2}, [(2, 7, 4)]),
    (f"{MS}:MultiHeadAttention", [X, (2, 9, 6), (2, 9, 8)], {"num_heads": 2},
     [(2, 7, 8), (2, 2, 9, 3), (2, 2, 9, 4), (2, 2, 7, 9)]),
    (f"{MS}:MultiHeadAttention", [(2, 7, 2, 3, 4)], {"num_heads": 2},
     [(2, 7, 8), (2, 2, 7, 4), (2, 2, 7, 4), (2, 2, 7, 7)]),
    (f"{MS}:GroupQueryAttention", [(2, 7, 16)], {"num_heads": 4, "kv_num_heads": 2},
     [(2, 7, 8), (2, 2, 7, 2), (2, 2, 7, 2), (2, 4, 7, 7)]),
    (f"{MS}:LayerNormalization", [X, (6,)], {}, [X, (2, 7, 1), (2, 7, 1)]),
    (f"{MS}:SimplifiedLayerNormalization", [X, (6,)], {"axis": 1}, [X, (2, 1, 1), (2, 1, 1)]),
    ("SimplifiedLayerNormalization", [X, (6,)], {}, [X, (2, 7, 1), (2, 7, 1)]),
    (f"{MS}:SkipLayerNormalization", [X, X, (6,)], {}, [X, (2, 7, 1), (2, 7, 1), X]),
    (f"{MS}:SkipSimplifiedLayerNormalization", [X, X, (6,)], {}, [X, (2, 7, 1), (2, 7, 1), X]),
    (f"{MS}:EmbedLayerNormalization", [(2, 7), None, (99, 6)], {}, [X, (2,), X]),
    (f"{MS}:BiasSplitGelu", [X, (6,)], {}, [(2, 7, 3)]),
    (f"{MS}:QLinearAdd", [X, (), (), (6,)], {}, [X]),
    (f"{MS}:QLinearMul", [(6,), (), (), X], {}, [X]),
    (f"{MS}:GridSample", [WIDE, (2, 4, 5, 2)], {}, [(2, 3, 4, 5)]),
    (f"{MS}:QLinearGlobalAveragePool", [WIDE], {}, [(2, 3, 1, 1)]),
    (f"{ML}:Scaler", [(4, 3)], {}, [(4, 3)]),
    (f"{ML}:Imputer", [(4, 3)], {}, [(4, 3)]),
    (f"{ML}:FeatureVectorizer", [(4, 3), (4, 2)], {"inputdimensions": [3, 2]}, [(4, 5)]),
    (f"{ML}:FeatureVectorizer", [(3,), (2,)], {"inputdimensions": [3, 2]}, [(1, 5)]),
    (f"{ML}:LinearRegressor", [(4, 3)], {"targets": 2}, [(4, 2)]),
    (f"{ML}:SVMRegressor", [(4, 3)], {}, [(4, 1)]),
    *((f"{domain}:{op}".lstrip(":"), [WIDE, (3,)], {}, [WIDE])
      for (domain, op), entry in OPERATORS.items() if entry.shapes is like_first),
]  # fmt: skip


@pytest.mark.parametrize(("op", "shapes", "attributes", "expected"), SHAPES, ids=[c[0] for c in SHAPES])
def test_the_shapes_of_the_outputs(op: str, shapes: Shapes, attributes: dict[str, Any], expected: Shapes) -> None:
    rule = OPERATORS[key(op)].shapes
    assert rule is not None
    assert list(rule(made(op, len(shapes), attributes), list(shapes))) == expected


QUANTISED = {
    "ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    f"{MS}:DequantizeLinear", f"{MS}:DynamicQuantizeLSTM", f"{MS}:DynamicQuantizeMatMul", f"{MS}:GatherBlockQuantized",
    f"{MS}:MatMulBnb4", f"{MS}:MatMulFpQ4", f"{MS}:MatMulIntegerToFloat", f"{MS}:MatMulNBits", f"{MS}:QAttention",
    f"{MS}:QEmbedLayerNormalization", f"{MS}:QGemm", f"{MS}:QLinearConv", f"{MS}:QLinearConvTranspose", f"{MS}:QMoE",
}  # fmt: skip
NOT_ON_CPU = {
    f"{MS}:{op}"
    for op in ("BiasAdd", "BiasSplitGelu", "GroupNorm", "NhwcConv", "NhwcFusedConv", "PackedAttention",
               "PackedMultiHeadAttention", "SkipGroupNorm")
}  # fmt: skip
FIRST = {
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitwiseNot", "Cast", "CastLike", "Ceil",
    "Celu", "Clip", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    *(f"{MS}:{op}" for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")),
}  # fmt: skip
ALL = {
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "SwiGLU", "Where",
    "Xor",
}  # fmt: skip
RECTIFIERS = {
    "Clip", "Elu", "Erf", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Softplus", "Swish",
    "Tanh", f"{MS}:BiasGelu", f"{MS}:FastGelu", f"{MS}:Gelu",
}  # fmt: skip
SCALED_AND_SHIFTED = {
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", f"{MS}:GroupNorm",
    f"{MS}:LayerNormalization", f"{MS}:SkipGroupNorm",
}  # fmt: skip
# a field, its value, and the operators that have it
FACTS: list[tuple[str, Any, set[str]]] = [
    ("quantised", True, QUANTISED),
    ("on_cpu", False, NOT_ON_CPU),
    ("kernel", "sliding", {"Conv", f"{MS}:FusedConv"}),
    ("kernel", "transposed", {"ConvTranspose"}),
    ("bias", 2, {"Conv", f"{MS}:FusedConv", "ConvTranspose", "Gemm"}),
    ("bias", 3, {"LSTM", "GRU", "RNN"}),
    ("bias", 6, {f"{MS}:QGemm"}),
    ("bias", 8, {"QLinearConv"}),
    ("blocked", True, {"Conv"}),
    ("elementwise", "first", FIRST),
    ("elementwise", "all", ALL),
    ("moves", "axes", {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}),
    ("moves", "elements", {"Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Slice", "SpaceToDepth", "Split", "Tile"}),
    ("of_shape", True, {"Shape", "Size"}),
    ("activation", "rectifier", RECTIFIERS),
    ("activation", "gate", {"HardSigmoid", "Sigmoid", "Softmax"}),
    ("scaled_by", (1,), {"RMSNormalization", "SimplifiedLayerNormalization", f"{MS}:SimplifiedLayerNormalization"}),
    ("scaled_by", (1, 2), SCALED_AND_SHIFTED),
    ("scaled_by", (2,), {f"{MS}:SkipSimplifiedLayerNormalization"}),
    ("scaled_by", (2, 3), {f"{MS}:SkipLayerNormalization"}),
    ("type_of", 1, {f"{MS}:DequantizeLinear"}),
    ("type_of", 2, {f"{MS}:{op}" for op in ("EmbedLayerNormalization", "GatherBlockQuantized", "MatMulIntegerToFloat",
                                            "QAttention", "QuantizeLinear")}),
    ("type_of", None, {f"{ML}:{op}" for op in ("FeatureVectorizer", "LinearRegressor", "Normalizer", "Scaler",
                                               "SVMRegressor")}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "ops"), FACTS, ids=[f"{c[0]}={c[1]}" for c in FACTS])
def test_facts_by_name(field: str, value: Any, ops: set[str]) -> None:
    having = {k for k, entry in OPERATORS.items() if getattr(entry, field) == value}
    assert having == {key(op) for op in ops}


@pytest.mark.parametrize(
    ("op", "attributes", "rows"),
    [("Conv", {}, 0), ("Gemm", {}, 1), ("Gemm", {"transB": 1}, 0), ("MatMul", {}, -1)],
)
def test_where_the_channels_of_the_output_lie(op: str, attributes: dict[str, Any], rows: int) -> None:
    rule = OPERATORS["", op].rows
    assert rule is not None and rule(made(op, 2, attributes)) == rows
    assert set(named(lambda operator: operator.rows)) == {"Conv", "Gemm", "MatMul"}


@pytest.mark.parametrize(("op", "standard"), [("FusedConv", "Conv"), ("FusedGemm", "Gemm")])
def test_fused_operators_have_the_attributes_of_the_standard_one(op: str, standard: str) -> None:
    import onnx

    found = OPERATORS[MS, op].standard
    assert found is not None and found.op_type == standard
    assert found.attributes == set(onnx.defs.get_schema(standard).attributes)
    assert set(named(lambda operator: operator.standard)) == {"FusedConv", "FusedGemm"}


TABLED = {"demand": DEMANDS, "shapes": SHAPES}


@pytest.mark.parametrize("field", TABLED)
def test_every_entry_has_a_case(field: str) -> None:
    tested = {key(case[0]) for case in TABLED[field]}
    assert {k for k, entry in OPERATORS.items() if getattr(entry, field)} == tested


def test_every_fact_has_a_table() -> None:
    elsewhere = {"role", "macs", "contraction", "sums"}
    here = {"rows", "standard", *TABLED, *(fact[0] for fact in FACTS)}
    assert {field.name for field in fields(Operator)} == elsewhere | here


def test_an_operator_is_described_once() -> None:
    with pytest.raises(ValueError, match=":Conv is described twice"):
        register(Operator(), "Conv")
    assert UNKNOWN not in OPERATORS.values()
    assert operator_of(made("my.domain:Conv", 1, {})) is UNKNOWN


def test_more_can_be_said_of_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(OPERATORS)
    try:
        amend("Gemm", "", blocked=True)
        assert OPERATORS["", "Gemm"].blocked and OPERATORS["", "Gemm"].role is before["", "Gemm"].role
        amend("Other", "my.domain", shapes=like_first)
        assert operator_of(made("my.domain:Other", 1, {})).shapes is like_first
    finally:
        OPERATORS.clear()
        OPERATORS.update(before)


def test_a_malformed_node_asks_nothing() -> None:
    reading = DemandReading(made("Pad", 1, {"pads": "text"}), 0, FOUR, [None], [np.zeros(1)])
    assert demand_of(reading) == NO_DEMAND


@pytest.mark.parametrize("key", [key for key, entry in OPERATORS.items() if entry.elementwise == "first"], ids=str)
def test_what_works_element_by_element_says_how_large_its_input_is(key: tuple[str, str]) -> None:
    """Else a size of the output says nothing of what is before it, and a model of open sizes may be refused."""
    assert OPERATORS[key].demand is same_size


@pytest.mark.parametrize("op", ["Relu", "Celu", "Sin", "Swish", "ThresholdedRelu"])
def test_open_channels_are_told_by_what_reads_behind(tmp_path: Path, op: str) -> None:
    made = f"g (float[n, c, h, w] x) => (float[n, 8, h2, w2] y) {{ a = {op} (x)  y = Conv (a, k) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 24]> {made}')
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "k"))
    onnx.save(proto, tmp_path / "m.onnx")
    assert concrete_shapes(load(tmp_path / "m.onnx")).inputs["x"][1] == 3
