"""ONNX Attention and RotaryEmbedding: heads, head groups and head sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from prunecli.dependency.context import RuleContext
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import rewrite, rule


@dataclass(frozen=True)
class Heads:
    """The factors of an attention: `groups` key heads, each serving `share` query heads; `key` and `value` sizes.

    All four are axes of the table.
    """

    groups: int
    share: int
    key: int
    value: int


def heads(ctx: RuleContext, queries: int, groups: int, key: int, value: int) -> Heads:
    """Virtual axes for `queries` heads over `groups` key heads, with head sizes `key` and `value`."""
    table = ctx.table
    out = Heads(table.virtual(groups), table.virtual(queries // groups), table.virtual(key), table.virtual(value))
    table.mark(out.groups, "head")
    if queries != groups:
        table.mark(out.share, "head")
    return out


def factor(ctx: RuleContext, value: ir.Value | None, axis: int, factors: Sequence[int]) -> None:
    """The axis is the product of the factors, if the value is there and the axis is not broadcast."""
    if value is not None and ctx.shape(value)[axis] != 1:
        ctx.table.product(ctx.axis(value, axis), factors)


def layout(ctx: RuleContext, value: ir.Value | None, of_heads: Sequence[int], size: int) -> None:
    """(B, heads, T, size), or (B, T, heads * size); the sequence is frozen, the batch is tied to the query's."""
    if value is None:
        return
    query = ctx.inputs[0]
    assert query is not None
    if ctx.rank(value) == 4:
        factor(ctx, value, 1, of_heads)
        factor(ctx, value, 3, [size])
    else:
        factor(ctx, value, 2, [*of_heads, size])
    ctx.freeze(value, "sequence of an attention", 2 if ctx.rank(value) == 4 else 1)
    if ctx.shape(value)[0] == ctx.shape(query)[0]:
        ctx.tie(value, 0, query, 0)


def scores(ctx: RuleContext, value: ir.Value | None, of_heads: Sequence[int]) -> None:
    """A mask, a bias or the weights of the attention: (..., heads or 1, T, S), broadcast from the right."""
    if value is None:
        return
    rank = ctx.rank(value)
    ctx.freeze_axes([value], [-1, -2][:rank], "sequence of an attention")
    if rank > 2:
        factor(ctx, value, rank - 3, of_heads)
    if rank > 3:
        query = ctx.inputs[0]
        assert query is not None
        if ctx.shape(value)[0] == ctx.shape(query)[0]:
            ctx.tie(value, 0, query, 0)


def count_attention(ctx: RuleContext, parts: Heads, queries: int, sequences: tuple[int, int, int]) -> None:
    """QK' and AV: batch * heads * T * S * (key size + value size)."""
    batch, query, keys = sequences
    for size in (parts.key, parts.value):
        macs = batch * queries * query * keys * ctx.table.size(size)
        ctx.count(macs, parts.groups, parts.share, size)


@rule("Attention")
def attention(ctx: RuleContext) -> None:
    """Q, K, V as (B, heads, T, d), or (B, T, heads * d) with q_num_heads and kv_num_heads; mask, past, present."""
    q, k, v, y = (*ctx.inputs[:3], ctx.outputs[0])
    assert q is not None and k is not None and v is not None
    flat = ctx.rank(q) == 3
    queries = ctx.int("q_num_heads") if flat else ctx.shape(q)[1]
    groups = ctx.int("kv_num_heads") if flat else ctx.shape(k)[1]
    sizes = [ctx.shape(t)[2] // groups if flat else ctx.shape(t)[3] for t in (k, v)]
    parts = heads(ctx, queries, groups, *sizes)
    both = [parts.groups, parts.share]
    layout(ctx, q, both, parts.key)
    layout(ctx, y, both, parts.value)
    for value, size in ((k, parts.key), (v, parts.value), (ctx.input(4), parts.key), (ctx.input(5), parts.value),
                        (ctx.output(1), parts.key), (ctx.output(2), parts.value)):  # fmt: skip
        layout(ctx, value, [parts.groups], size)
    scores(ctx, ctx.input(3), both)
    scores(ctx, ctx.output(3), both)
    ctx.freeze(ctx.input(6), "lengths of the sequences")
    axis = 1 if flat else 2
    count_attention(ctx, parts, queries, (ctx.shape(q)[0], ctx.shape(q)[axis], ctx.shape(k)[axis]))


@rewrite("Attention")
def attention_heads(cut: NodeCut, node: ir.Node) -> None:
    """Heads are counted where attributes name them; the scale stays what it was."""
    q, k = node.inputs[0], node.inputs[1]
    assert q is not None and k is not None
    if len(cut.before(q)) == 3:
        queries, groups = (node.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads"))
        size = cut.before(q)[2] // queries
        cut.set_int(node, "q_num_heads", cut.blocks(q, 2, queries))
        cut.set_int(node, "kv_num_heads", cut.blocks(k, 2, groups))
        left = cut.size(q, 2) // cut.blocks(q, 2, queries)
    else:
        size, left = cut.before(q)[3], cut.size(q, 3)
    keep_scale(cut, node, size, left)


def keep_scale(cut: NodeCut, node: ir.Node, size: int, left: int) -> None:
    """The default scale is 1 / sqrt(head size): state it before the head size changes."""
    attr = node.attributes.get("scale")
    if left != size and (attr is None or attr.as_float() == 0.0):
        node.attributes["scale"] = ir.AttrFloat32("scale", float(size) ** -0.5)


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain="com.microsoft")
def rotary(ctx: RuleContext) -> None:
    """Rotates pairs inside every head of X (B, heads, T, d) or (B, T, heads * d): heads can be cut."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    ctx.elementwise(x, y)
    for value in ctx.inputs[1:]:
        ctx.freeze(value, "rotary positions and angles")
    if ctx.rank(x) == 4:
        ctx.table.mark(ctx.axis(x, 1), "head")
        ctx.freeze(x, "rotary embedding turns pairs inside a head", 3)
        return
    size = rotary_size(ctx)
    head, inside = ctx.table.virtual(ctx.shape(x)[2] // size), ctx.table.virtual(size)
    ctx.table.mark(head, "head")
    ctx.table.freeze(inside, "rotary embedding turns pairs inside a head")
    ctx.table.product(ctx.axis(x, 2), (head, inside))


def rotary_size(ctx: RuleContext) -> int:
    """Head size: from the number of heads where it is stated, else twice the width of the angle table."""
    x = ctx.inputs[0]
    assert x is not None
    if ctx.int("num_heads"):
        return ctx.shape(x)[2] // ctx.int("num_heads")
    cos = ctx.inputs[2 if ctx.node.domain else 1]
    assert cos is not None
    return 2 * ctx.shape(cos)[-1]


@rewrite("RotaryEmbedding")
@rewrite("RotaryEmbedding", domain="com.microsoft")
def rotary_heads(cut: NodeCut, node: ir.Node) -> None:
    x, attr = node.inputs[0], node.attributes.get("num_heads")
    if attr is not None and attr.as_int():
        axis = 1 if len(cut.before(x)) == 4 else 2
        cut.set_int(node, "num_heads", cut.blocks(x, axis, attr.as_int()))
