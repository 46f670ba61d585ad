"""Attention: heads, head groups and head sizes, of ONNX's operators and of onnxruntime's fused ones (com.microsoft)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.operators import MICROSOFT

TURNED = "rotary embedding turns pairs inside a head"
SEQUENCE = "sequence of an attention"


@dataclass(frozen=True)
class Heads:
    """The factors of an attention: `queries`, the query heads, are `groups` key heads times `share` that each serves;
    `key` and `value` sizes.

    All are axes of the table.
    """

    queries: int
    groups: int
    share: int
    key: int
    value: int


def heads(ctx: RuleContext, queries: int, groups: int, key: int, value: int) -> Heads:
    """Virtual axes for `queries` heads over `groups` key heads, with head sizes `key` and `value`."""
    table = ctx.table
    sizes = (queries, groups, queries // groups, key, value)
    out = Heads(*map(table.virtual, sizes))
    table.product(out.queries, (out.groups, out.share))
    table.mark(out.groups, "head")
    if queries != groups:
        table.mark(out.share, "head")
        table.interchange(out.share)
    return out


def factor(ctx: RuleContext, value: ir.Value | None, axis: int, factors: Sequence[int]) -> None:
    """The axis is the product of the factors, if the value is there and the axis is not broadcast."""
    if value is not None and ctx.shape(value)[axis] != 1:
        ctx.table.product(ctx.axis(value, axis), factors)


def layout(ctx: RuleContext, value: ir.Value | None, of_heads: Sequence[int], size: int) -> None:
    """(B, heads, T, size), or (B, T, heads * size); the sequence is frozen, the batch is tied to the query's."""
    if value is None:
        return
    if ctx.rank(value) == 4:
        factor(ctx, value, 1, factors=of_heads)
        factor(ctx, value, 3, factors=[size])
    else:
        factor(ctx, value, 2, factors=[*of_heads, size])
    ctx.freeze(value, SEQUENCE, 2 if ctx.rank(value) == 4 else 1)
    tie_batch(ctx, value)


def tie_batch(ctx: RuleContext, value: ir.Value) -> None:
    """The first axis is the query's batch, unless it is broadcast."""
    if ctx.shape(value)[0] == ctx.shape(ctx.x())[0]:
        ctx.tie(value, 0, ctx.x(), 0)


def scores(ctx: RuleContext, value: ir.Value | None, of_heads: Sequence[int]) -> None:
    """A mask, a bias or the weights of the attention: (..., heads or 1, T, S), broadcast from the right."""
    if value is None:
        return
    rank = ctx.rank(value)
    ctx.freeze_axes([value], [-1, -2][:rank], SEQUENCE)
    if rank > 2:
        factor(ctx, value, rank - 3, factors=of_heads)
    if rank > 3:
        tie_batch(ctx, value)


def score_axes(parts: Heads) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the scores and the weighted sum are proportional to: heads, and the size of a key, of a value."""
    return (parts.queries, parts.key), (parts.queries, parts.value)


@rule("Attention")
def attention(ctx: RuleContext) -> None:
    """Q, K, V as (B, heads, T, d), or (B, T, heads * d) with q_num_heads and kv_num_heads; mask, past, present."""
    q, k, v, y = ctx.x(), ctx.x(1), ctx.x(2), ctx.y
    flat = ctx.rank(q) == 3
    queries = ctx.int("q_num_heads") if flat else ctx.shape(q)[1]
    groups = ctx.int("kv_num_heads") if flat else ctx.shape(k)[1]
    sizes = [ctx.shape(t)[2] // groups if flat else ctx.shape(t)[3] for t in (k, v)]
    parts = heads(ctx, queries, groups, *sizes)
    layout(ctx, q, [parts.queries], size=parts.key)
    layout(ctx, y, [parts.queries], size=parts.value)
    for value, size in ((k, parts.key), (v, parts.value), (ctx.input(4), parts.key), (ctx.input(5), parts.value),
                        (ctx.output(1), parts.key), (ctx.output(2), parts.value)):  # fmt: skip
        layout(ctx, value, [parts.groups], size=size)
    scores(ctx, ctx.input(3), [parts.queries])
    scores(ctx, ctx.output(3), [parts.queries])
    ctx.freeze(ctx.input(6), "lengths of the sequences")
    ctx.count_terms(*score_axes(parts))


@rewrite("Attention")
def attention_heads(cut: NodeCut, node: ir.Node) -> None:
    """Heads are counted where attributes name them; the scale stays what it was."""
    q, k = node.inputs[:2]
    if len(cut.before(q)) == 3:
        queries, groups = (node.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads"))
        size = cut.before(q)[2] // queries
        cut.set_int(node, "q_num_heads", cut.blocks(q, 2, queries))
        cut.set_int(node, "kv_num_heads", cut.blocks(k, 2, groups))
        left = cut.size(q, 2) // cut.blocks(q, 2, queries)
    else:
        size, left = cut.before(q)[3], cut.size(q, 3)
    keep_scale(node, size, left)


def keep_scale(node: ir.Node, size: int, left: int) -> None:
    """The default scale is 1 / sqrt(head size): state it before the head size changes."""
    if left != size and not node.attributes.get_float("scale", 0.0):
        node.attributes["scale"] = ir.AttrFloat32("scale", float(size) ** -0.5)


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary(ctx: RuleContext) -> None:
    """Rotates pairs inside every head of X (B, heads, T, d) or (B, T, heads * d): heads can be cut."""
    x, y = ctx.x(), ctx.y
    ctx.elementwise(x, y)
    for value in ctx.inputs[1:]:
        ctx.freeze(value, "rotary positions and angles")
    if ctx.rank(x) == 4:
        ctx.table.mark(ctx.axis(x, 1), "head")
        ctx.freeze(x, TURNED, 3)
        return
    size = rotary_size(ctx)
    head, inside = ctx.table.virtual(ctx.shape(x)[2] // size), ctx.table.virtual(size)
    ctx.table.mark(head, "head")
    ctx.table.freeze(inside, TURNED)
    ctx.table.product(ctx.axis(x, 2), (head, inside))


def rotary_size(ctx: RuleContext) -> int:
    """Head size: from the number of heads where it is stated, else twice the width of the angle table."""
    if ctx.int("num_heads"):
        return ctx.shape(ctx.x())[2] // ctx.int("num_heads")
    return 2 * ctx.shape(ctx.x(2 if ctx.node.domain else 1))[-1]


@rewrite("RotaryEmbedding")
@rewrite("RotaryEmbedding", domain=MICROSOFT)
def rotary_heads(cut: NodeCut, node: ir.Node) -> None:
    x, count = node.inputs[0], node.attributes.get_int("num_heads", 0)
    if count:
        cut.set_int(node, "num_heads", cut.blocks(x, 1 if len(cut.before(x)) == 4 else 2, count))


def packed(ctx: RuleContext, value: ir.Value | None, axis: int, parts: Sequence[Sequence[int]]) -> None:
    """The axis holds blocks one after the other, each the product of its factors."""
    if value is None:
        return
    start = 0
    for factors in parts:
        size = int(np.prod([ctx.table.size(f) for f in factors]))
        block = ctx.table.virtual(size)
        ctx.table.product(block, factors)
        ctx.table.tie_positions(ctx.axis(value, axis), np.arange(size) + start, block, ib=np.arange(size))
        start += size


def qkv(parts: Heads) -> list[list[int]]:
    """The factors of packed queries, keys and values."""
    return [[parts.queries, parts.key], [parts.groups, parts.key], [parts.groups, parts.value]]


@rule("Attention", domain=MICROSOFT)
def fused_attention(ctx: RuleContext) -> None:
    """X (B, T, C), W (C, q + k + v), bias (q + k + v), past (2, B, heads, P, d) -> Y (B, T, heads * dv)."""
    x, w, y = ctx.x(), ctx.x(1), ctx.y
    count, sizes = ctx.int("num_heads"), ctx.ints("qkv_hidden_sizes") or (ctx.shape(w)[1] // 3,) * 3
    parts = heads(ctx, count, count, key=sizes[1] // count, value=sizes[2] // count)
    ctx.tie(x, 2, w, 0)
    for value in (w, ctx.input(2)):
        packed(ctx, value, -1, parts=qkv(parts))
    layout(ctx, y, [parts.groups], size=parts.value)
    ctx.freeze(x, SEQUENCE, 1)
    _states(ctx, parts)
    ctx.freeze(ctx.input(3), "attention mask")
    scores(ctx, ctx.input(5), [parts.groups])
    ctx.freeze(ctx.input(6), "lengths of the sequences")
    if ctx.int("do_rotary"):
        ctx.table.freeze(parts.key, TURNED)
    ctx.count_terms(*((ctx.axis(w, 0), *factors) for factors in qkv(parts)), *score_axes(parts))


def _states(ctx: RuleContext, parts: Heads) -> None:
    """Past and present (2, B, heads, P, d) hold keys and values side by side: they have one size."""
    for state in (ctx.input(4), ctx.output(1)):
        if state is None:
            continue
        ctx.freeze_axes([state], (0, 1, 3), "state of an attention")
        factor(ctx, state, 2, factors=[parts.groups])
        factor(ctx, state, 4, factors=[parts.key])
        if ctx.table.size(parts.key) == ctx.table.size(parts.value):
            ctx.table.tie(parts.key, parts.value)
        else:
            for size in (parts.key, parts.value):
                ctx.table.freeze(size, "keys and values of unequal sizes in one state")


@rewrite("Attention", domain=MICROSOFT)
def attention_sizes(cut: NodeCut, node: ir.Node) -> None:
    """Heads, and the widths of queries, keys and values where they are stated or have become unequal."""
    w, count = node.inputs[1], node.attributes["num_heads"].as_int()
    stated = node.attributes.get_ints("qkv_hidden_sizes")
    sizes = stated or [cut.before(w)[1] // 3] * 3
    ends = np.cumsum([0, *sizes])
    kept = cut.kept(w, 1)
    left = [int(((kept >= a) & (kept < b)).sum()) for a, b in itertools.pairwise(ends)]
    remaining = cut.blocks(node.outputs[0], 2, count)
    cut.set_int(node, "num_heads", remaining)
    if stated is not None or len(set(left)) > 1:
        cut.set_ints(node, "qkv_hidden_sizes", left)
    keep_scale(node, sizes[0] // count, left[0] // remaining)


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head(ctx: RuleContext) -> None:
    """Q, K, V (B, T, heads * d), or packed as (B, T, heads, 3 or 2, d), or K and V as (B, heads, T, d)."""
    q, k, v, y = ctx.x(), ctx.input(1), ctx.input(2), ctx.y
    count = ctx.int("num_heads")
    key = ctx.shape(q)[4] if ctx.rank(q) == 5 else ctx.shape(q)[2] // count
    parts = heads(ctx, count, count, key=key, value=ctx.shape(y)[2] // count)
    for value, size in ((q, parts.key), (k, parts.key), (v, parts.value), (y, parts.value),
                        (ctx.input(6), parts.key), (ctx.input(7), parts.value),
                        (ctx.output(1), parts.key), (ctx.output(2), parts.value)):  # fmt: skip
        if value is not None and ctx.rank(value) == 5:
            factor(ctx, value, 2, factors=[parts.groups])
            factor(ctx, value, 4, factors=[parts.key])
            ctx.table.tie(parts.key, parts.value)
            ctx.freeze_axes([value], (0, 1, 3), "packed queries, keys and values")
        else:
            layout(ctx, value, [parts.groups], size=size)
    if k is not None and ctx.rank(k) == 4:  # onnxruntime then wants keys and values of one shape
        ctx.table.tie(parts.key, parts.value)
    packed(ctx, ctx.input(3), 0, parts=qkv(parts))
    ctx.freeze(ctx.input(4), "attention mask")
    scores(ctx, ctx.input(5), [parts.groups])
    scores(ctx, ctx.output(3), [parts.groups])
    for index in (8, 9):
        ctx.freeze(ctx.input(index), "cache of an attention")
    ctx.count_terms(*score_axes(parts))


@rewrite("MultiHeadAttention", domain=MICROSOFT)
def multi_head_count(cut: NodeCut, node: ir.Node) -> None:
    q, count = node.inputs[0], node.attributes["num_heads"].as_int()
    shape = cut.before(q)
    if len(shape) == 5:
        cut.set_int(node, "num_heads", cut.size(q, 2))
        keep_scale(node, shape[4], cut.size(q, 4))
        return
    left = cut.blocks(q, 2, count)
    cut.set_int(node, "num_heads", left)
    keep_scale(node, shape[2] // count, cut.size(q, 2) // left)


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query(ctx: RuleContext) -> None:
    """Q (B, T, heads * d), K, V (B, T, groups * d), or all packed in Q; past and present (B, groups, P, d).

    One head size serves queries, keys and values: heads can be cut, sizes not.
    """
    q, k, v, y = ctx.x(), ctx.input(1), ctx.input(2), ctx.y
    count, groups = ctx.int("num_heads"), ctx.int("kv_num_heads")
    size = ctx.shape(y)[2] // count
    parts = heads(ctx, count, groups, key=size, value=size)
    for inside in (parts.key, parts.value):
        ctx.table.freeze(inside, "GroupQueryAttention: the head size is fixed")
    if k is None:
        packed(ctx, q, 2, parts=qkv(parts))
        ctx.tie(q, 0, y, 0)
        ctx.freeze(q, SEQUENCE, 1)
    else:
        layout(ctx, q, [parts.queries], size=parts.key)
        layout(ctx, k, [parts.groups], size=parts.key)
        layout(ctx, v, [parts.groups], size=parts.value)
    layout(ctx, y, [parts.queries], size=parts.value)
    for state in (ctx.input(3), ctx.input(4), ctx.output(1), ctx.output(2)):
        layout(ctx, state, [parts.groups], size=parts.key)
    scores(ctx, ctx.input(10), [parts.queries])
    scores(ctx, ctx.output(3), [parts.queries])
    factor(ctx, ctx.input(11), 0, factors=[parts.queries])
    for index in (5, 6, 7, 8, 9, 12, 13, 14, 15, 16):
        ctx.freeze(ctx.input(index), "positions, angles and scales of an attention")
    ctx.count_terms(*score_axes(parts))


@rewrite("GroupQueryAttention", domain=MICROSOFT)
def group_query_count(cut: NodeCut, node: ir.Node) -> None:
    """Whole groups, or as many query heads of every group, may have gone."""
    y, count, groups = node.outputs[0], *(node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    size = cut.before(y)[2] // count
    cut.set_int(node, "num_heads", cut.size(y, 2) // size)
    cut.set_int(node, "kv_num_heads", cut.blocks(y, 2, groups))
