"""Output shapes of operators of which ONNX itself infers none: the common ones of onnxruntime (`com.microsoft`), some
of scikit-learn's (`ai.onnx.ml`).

Source: onnxruntime's ContribOperators.md. Each function maps (node, input shapes) to output shapes;
None for an output whose shape is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.model.attrs import matrix_axes

Shape = tuple[int, ...]
ShapeRule = Callable[[ir.Node, list[Any]], list[Shape | None]]
CONTRIB_SHAPES: dict[tuple[str, str], ShapeRule] = {}
DOMAIN = "com.microsoft"


def shapes_of(*ops: str, domain: str = DOMAIN) -> Callable[[ShapeRule], ShapeRule]:
    def add(function: ShapeRule) -> ShapeRule:
        for op in ops:
            CONTRIB_SHAPES[domain, op] = function
        return function

    return add


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


def _at(shapes: list[Any], index: int) -> Any:
    return shapes[index] if index < len(shapes) else None


@shapes_of("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "RotaryEmbedding", "GroupNorm")
def _like_first(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [shapes[0]]


# operators of ONNX that are defined by a function body, for which it infers no shapes
CONTRIB_SHAPES["", "GroupNormalization"] = _like_first
CONTRIB_SHAPES["", "MeanVarianceNormalization"] = _like_first


# of ai.onnx.ml those for which ONNX infers no shapes
FLOAT_RESULTS = frozenset({"FeatureVectorizer", "LinearRegressor", "Normalizer", "SVMRegressor", "Scaler"})
"""Operators that yield float32 whatever they read."""
shapes_of("Scaler", "Imputer", "Normalizer", domain="ai.onnx.ml")(_like_first)


@shapes_of("FeatureVectorizer", domain="ai.onnx.ml")
def _feature_vectorizer(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """Rows (C) or (N, C) side by side, each as long as `inputdimensions` says."""
    return [(shapes[0][0] if len(shapes[0]) > 1 else 1, sum(node.attributes["inputdimensions"].as_ints()))]


@shapes_of("LinearRegressor", "SVMRegressor", domain="ai.onnx.ml")
def _regressor(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(shapes[0][0] if len(shapes[0]) > 1 else 1, _int(node, "targets", 1))]


@shapes_of("BiasSplitGelu")
def _split_gelu(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:-1], shapes[0][-1] // 2)]


@shapes_of("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip_norm(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    statistic = (*shapes[0][:-1], 1)
    return [shapes[0], statistic, statistic, shapes[0]]


@shapes_of("LayerNormalization", "SimplifiedLayerNormalization")
def _norm(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    axis = _int(node, "axis", -1) % len(shapes[0])
    statistic = tuple(n if i < axis else 1 for i, n in enumerate(shapes[0]))
    return [shapes[0], statistic, statistic]


CONTRIB_SHAPES["", "SimplifiedLayerNormalization"] = _norm  # onnxruntime registers it under both domains


@shapes_of("EmbedLayerNormalization")
def _embed(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    out = (*shapes[0], shapes[2][1])
    return [out, shapes[0][:1], out]


@shapes_of("GridSample")
def _grid_sample(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:2], *shapes[1][1:-1])]


OUTPUT_TYPE_OF = {
    "DequantizeLinear": 1,
    "EmbedLayerNormalization": 2,
    "MatMulIntegerToFloat": 2,
    "QAttention": 2,
    "QuantizeLinear": 2,
}
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


@shapes_of("FusedMatMul", "TransposeMatMul")
def _fused_matmul(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    a, b = (tuple(shape[axis] for axis in matrix_axes(node, k, len(shape))) for k, shape in enumerate(shapes[:2]))
    if min(len(a), len(b)) < 2:
        return [None]
    if a[-1] != b[-2]:
        raise ValueError(f"matrices of {a[-1]} columns and {b[-2]} rows are multiplied")
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]


@shapes_of("Attention")
def _attention(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    sizes = node.attributes.get("qkv_hidden_sizes")
    width = int(sizes.as_ints()[2]) if sizes is not None else shapes[1][1] // 3
    batch, length = shapes[0][:2]
    heads, past = _int(node, "num_heads"), _at(shapes, 4)
    total = length + (past[3] if past is not None else 0)
    return [(batch, length, width), (2, batch, heads, total, width // heads)]


@shapes_of("MultiHeadAttention")
def _multi_head(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    query, key, value, heads = shapes[0], _at(shapes, 1), _at(shapes, 2), _int(node, "num_heads")
    if len(query) == 5:  # packed (batch, sequence, heads, 3, head size)
        width, size, keys = query[2] * query[4], query[4], query[1]
    else:
        size = query[2] // heads
        width = query[2] if value is None else value[2] if len(value) == 3 else value[1] * value[3]
        keys = query[1] if key is None else key[2] if len(key) == 4 else key[1]
    total = keys + (_at(shapes, 6)[2] if _at(shapes, 6) is not None else 0)
    batch, length = query[:2]
    state = (batch, heads, total)
    return [(batch, length, width), (*state, size), (*state, width // heads), (batch, heads, length, total)]


@shapes_of("GroupQueryAttention")
def _group_query(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """The cache grows by the new entries (a shared buffer is longer, which no other axis depends on)."""
    heads, groups = _int(node, "num_heads"), _int(node, "kv_num_heads")
    batch, length, width = shapes[0]
    if _at(shapes, 1) is None:  # packed QKV
        width = width * heads // (heads + 2 * groups)
    total = length + (_at(shapes, 3)[2] if _at(shapes, 3) is not None else 0)
    state = (batch, groups, total, width // heads)
    return [(batch, length, width), state, state, (batch, heads, length, total)]


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


@shapes_of("DynamicQuantizeLSTM")
def _quantised_lstm(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    (steps, batch, _), (directions, _, gates) = shapes[0], shapes[1]
    return [(steps, directions, batch, gates // 4)]


@shapes_of("QAttention")
def _quantised_attention(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:2], shapes[1][1] // 3)]
