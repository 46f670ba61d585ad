"""Output shapes of the common onnxruntime (`com.microsoft`) operators, which ONNX itself does not know.

Source: onnxruntime's ContribOperators.md. Each function maps (node, input shapes) to output shapes;
None for an output whose shape is not needed or not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Shape = tuple[int, ...]
ShapeRule = Callable[[ir.Node, list[Any]], list[Shape | None]]
CONTRIB_SHAPES: dict[tuple[str, str], ShapeRule] = {}
DOMAIN = "com.microsoft"


def shapes_of(*ops: str) -> Callable[[ShapeRule], ShapeRule]:
    def add(function: ShapeRule) -> ShapeRule:
        for op in ops:
            CONTRIB_SHAPES[DOMAIN, op] = function
        return function

    return add


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


@shapes_of("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization",
           "SkipSimplifiedLayerNormalization", "GroupNorm", "BiasSplitGelu")  # fmt: skip
def _like_first(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    if node.op_type == "BiasSplitGelu":
        return [(*shapes[0][:-1], shapes[0][-1] // 2)]
    return [shapes[0], None, None, shapes[0]] if node.op_type.startswith("Skip") else [shapes[0]]


@shapes_of("SimplifiedLayerNormalization")
def _rms(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [shapes[0]]


CONTRIB_SHAPES["", "SimplifiedLayerNormalization"] = _rms  # onnxruntime registers it under both domains


OUTPUT_TYPE_OF = {"MatMulIntegerToFloat": 2, "DequantizeLinear": 1, "QuantizeLinear": 2}
"""Input that has the element type of the output, where it is not the first."""


@shapes_of("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "DequantizeLinear", "QuantizeLinear")
def _pointwise(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [shapes[0]]


@shapes_of("QLinearAdd", "QLinearMul")
def _qlinear_binary(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [np.broadcast_shapes(shapes[0], shapes[3])]


@shapes_of("QLinearGlobalAveragePool")
def _qlinear_pool(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:2], *(1,) * (len(shapes[0]) - 2))]


@shapes_of("QGemm")
def _qgemm(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    a, b = shapes[0], shapes[3]
    return [(a[1 if _int(node, "transA") else 0], b[0 if _int(node, "transB") else 1])]


@shapes_of("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
def _integer_matmul(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2]), shapes[0][-2], shapes[1][-1])]


@shapes_of("MatMulNBits")
def _matmul_nbits(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:-1], _int(node, "N"))]


@shapes_of("FusedMatMul")
def _fused_matmul(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    a, b = list(shapes[0]), list(shapes[1])
    if _int(node, "transA"):
        a[-2:] = a[:-3:-1]
    if _int(node, "transB"):
        b[-2:] = b[:-3:-1]
    if _int(node, "transBatchA") or _int(node, "transBatchB"):
        return [None]
    return [(*np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])), a[-2], b[-1])]


@shapes_of("Attention")
def _attention(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    sizes = node.attributes.get("qkv_hidden_sizes")
    width = int(sizes.as_ints()[2]) if sizes is not None else shapes[1][1] // 3
    return [(*shapes[0][:2], width)]


@shapes_of("MultiHeadAttention")
def _multi_head(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    query, value = shapes[0], shapes[2] if len(shapes) > 2 else None
    if len(query) == 5:  # packed (batch, sequence, heads, 3, head size)
        return [(query[0], query[1], query[2] * query[4])]
    if value is None:
        return [query]
    width = value[2] if len(value) == 3 else value[1] * value[3]
    return [(query[0], query[1], width)]


@shapes_of("GroupQueryAttention")
def _group_query(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    heads, groups = _int(node, "num_heads"), _int(node, "kv_num_heads")
    width = shapes[0][2]
    if len(shapes) < 2 or shapes[1] is None:  # packed QKV
        width = width * heads // (heads + 2 * groups)
    return [(*shapes[0][:2], width)]


@dataclass(frozen=True)
class Same:
    """A contrib operator whose output shape is that of the standard `op_type` on some of its inputs."""

    op_type: str
    inputs: tuple[int, ...]
    attributes: frozenset[str]


_CONV = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
SAME_AS: dict[tuple[str, str], Same] = {
    (DOMAIN, "FusedConv"): Same("Conv", (0, 1, 2), _CONV),
    (DOMAIN, "FusedGemm"): Same("Gemm", (0, 1, 2), frozenset({"alpha", "beta", "transA", "transB"})),
}
