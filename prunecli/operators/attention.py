"""Attention: scores of queries and keys, and the weighted sum of values.

Shapes: queries (B, S, Hq), keys (B, T, Hk), values (B, T, Hv); T counts the past. Source of the operators of
onnxruntime: ContribOperators.md.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

import prunecli.operators.layout as layout
from prunecli.operators.attributes import integer, integers
from prunecli.operators.layout import Shape
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    Demand,
    DemandReading,
    Operator,
    Role,
    ShapeOf,
    at,
    bias,
    input_of,
    register,
    weight,
)


def _packed_role(node: ir.Node, index: int, shape: Shape) -> Role | None:
    """X (B, S, I) times W (I, Hq + Hk + Hv) at input 1; bias at input 2."""
    if index == 1 and len(shape) == 2:
        return weight(layout.matrix(shape, 1, 0))
    return bias(shape) if index == 2 else None


def _packed_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> tuple[int, ...]:
    """B * S * I * H for the projection to each of Hq, Hk, Hv, then B * S * T * Hq and B * S * T * Hv.

    Past (2, B, heads, P, head size) at input 4.
    """
    (batch, length, width), packed = shape(0), shape(1)
    sizes = integers(node, "qkv_hidden_sizes") or (packed[1] // 3,) * 3
    has_past = node.op_type == "Attention" and input_of(node, 4) is not None
    total = length + (shape(4)[3] if has_past else 0)
    queries = batch * length
    return (*(queries * width * size for size in sizes), queries * total * sizes[0], queries * total * sizes[2])


def _packed_demand(asked: DemandReading) -> Demand:
    shape = asked.shape(1)
    return Demand((None, None, shape[0]), True) if asked.index == 0 and shape is not None else NO_DEMAND


def _packed_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    sizes = integers(node, "qkv_hidden_sizes")
    width = sizes[2] if sizes is not None else shapes[1][1] // 3
    batch, length = shapes[0][:2]
    heads, past = integer(node, "num_heads", 0), _at(shapes, 4)
    total = length + (past[3] if past is not None else 0)
    return [(batch, length, width), (2, batch, heads, total, width // heads)]


def _quantised_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:2], shapes[1][1] // 3)]


def _at(shapes: list[Any], index: int) -> Any:
    return shapes[index] if index < len(shapes) else None


def _multi_head_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> tuple[int, int]:
    """B * S * T * Hq and B * S * T * Hv; past keys at input 6, (B, heads, P, head size).

    Query (B, S, Hq), or all three packed as (B, S, heads, 3, size); key (B, T, H) or (B, heads, T, size), or
    packed with the value as (B, T, heads, 2, size).
    """
    query = shape(0)
    batch, length = query[:2]
    width = query[2] if len(query) == 3 else query[2] * query[4]
    keys = length
    if len(query) == 3 and input_of(node, 1) is not None:
        key = shape(1)
        keys = key[2] if len(key) == 4 else key[1]
    past = shape(6)[2] if input_of(node, 6) is not None else 0
    pairs = batch * length * (keys + past)
    return pairs * width, pairs * out[2]


def _multi_head_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    query, key, value, heads = shapes[0], _at(shapes, 1), _at(shapes, 2), integer(node, "num_heads", 0)
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


def _group_query_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> tuple[int, int]:
    """B * S * T * H twice, with H the width of the output; past at input 3, (B, groups, P, size)."""
    batch, length = shape(0)[:2]
    past = shape(3)[2] if input_of(node, 3) is not None else 0
    pairs = batch * length * (length + past)
    return pairs * out[2], pairs * out[2]


def _group_query_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """The cache grows by the new entries (a shared buffer is longer, which no other axis depends on)."""
    heads, groups = integer(node, "num_heads", 0), integer(node, "kv_num_heads", 0)
    batch, length, width = shapes[0]
    if _at(shapes, 1) is None:  # packed QKV
        width = width * heads // (heads + 2 * groups)
    total = length + (_at(shapes, 3)[2] if _at(shapes, 3) is not None else 0)
    state = (batch, groups, total, width // heads)
    return [(batch, length, width), state, state, (batch, heads, length, total)]


def _attention_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> tuple[int, int]:
    """B * S * T * Hq and B * S * T * Hv; Q (B, S, Hq) or (B, heads, S, size).

    Past keys (B, heads, P, size) at input 4.
    """
    query, key = shape(0), shape(1)
    length, keys = (operand[1] if len(operand) == 3 else operand[2] for operand in (query, key))
    total = keys + (shape(4)[2] if input_of(node, 4) is not None else 0)
    return (total * math.prod(query), total * math.prod(out)) if length else (0, 0)


register(Operator(macs=_attention_macs), "Attention")
register(
    Operator(role=_packed_role, macs=_packed_macs, demand=_packed_demand, shapes=_packed_shapes),
    "Attention",
    domain=MICROSOFT,
)
register(
    Operator(macs=_packed_macs, demand=_packed_demand, shapes=_quantised_shapes, type_of=2, quantised=True),
    "QAttention",
    domain=MICROSOFT,
)
register(Operator(role=_packed_role, on_cpu=False), "PackedAttention", domain=MICROSOFT)
register(
    Operator(role=at(bias=(3,)), macs=_multi_head_macs, shapes=_multi_head_shapes),
    "MultiHeadAttention",
    domain=MICROSOFT,
)
register(Operator(role=at(bias=(3,)), on_cpu=False), "PackedMultiHeadAttention", domain=MICROSOFT)
register(Operator(macs=_group_query_macs, shapes=_group_query_shapes), "GroupQueryAttention", domain=MICROSOFT)
