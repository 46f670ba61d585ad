"""The fused attentions of onnxruntime (com.microsoft): Attention, MultiHeadAttention, GroupQueryAttention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from prunecli.dependency.context import RuleContext
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import rewrite, rule
from prunecli.dependency.rules.attention import Heads, count_attention, factor, heads, keep_scale, layout, scores

MS = "com.microsoft"


def packed(ctx: RuleContext, value: ir.Value | None, axis: int, parts: Sequence[Sequence[int]]) -> None:
    """The axis holds blocks one after the other, each the product of its factors."""
    if value is None:
        return
    start = 0
    for factors in parts:
        size = int(np.prod([ctx.table.size(f) for f in factors]))
        block = ctx.table.virtual(size)
        ctx.table.product(block, factors)
        ctx.table.tie_positions(ctx.axis(value, axis), np.arange(size) + start, block, np.arange(size))
        start += size


def qkv(parts: Heads) -> list[list[int]]:
    """The factors of packed queries, keys and values."""
    return [[parts.groups, parts.share, parts.key], [parts.groups, parts.key], [parts.groups, parts.value]]


@rule("Attention", domain=MS)
def attention(ctx: RuleContext) -> None:
    """X (B, T, C), W (C, q + k + v), bias (q + k + v), past (2, B, heads, P, d) -> Y (B, T, heads * dv)."""
    x, w, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and w is not None
    count, sizes = ctx.int("num_heads"), ctx.ints("qkv_hidden_sizes") or (ctx.shape(w)[1] // 3,) * 3
    parts = heads(ctx, count, count, sizes[1] // count, sizes[2] // count)
    ctx.tie(x, 2, w, 0)
    for value in (w, ctx.input(2)):
        packed(ctx, value, -1, qkv(parts))
    layout(ctx, y, [parts.groups], parts.value)
    ctx.freeze(x, "sequence of an attention", 1)
    _states(ctx, parts)
    ctx.freeze(ctx.input(3), "attention mask")
    scores(ctx, ctx.input(5), [parts.groups])
    ctx.freeze(ctx.input(6), "lengths of the sequences")
    if ctx.int("do_rotary"):
        ctx.table.freeze(parts.key, "rotary embedding turns pairs inside a head")
    batch, length, width = ctx.shape(x)
    for size, factors in zip(sizes, qkv(parts), strict=True):
        ctx.count(batch * length * width * size, ctx.axis(w, 0), *factors)
    count_attention(ctx, parts, count, (batch, length, length))


def _states(ctx: RuleContext, parts: Heads) -> None:
    """Past and present (2, B, heads, P, d) hold keys and values side by side: they have one size."""
    for state in (ctx.input(4), ctx.output(1)):
        if state is None:
            continue
        ctx.freeze_axes([state], (0, 1, 3), "state of an attention")
        factor(ctx, state, 2, [parts.groups])
        factor(ctx, state, 4, [parts.key])
        if ctx.table.size(parts.key) == ctx.table.size(parts.value):
            ctx.table.tie(parts.key, parts.value)
        else:
            for size in (parts.key, parts.value):
                ctx.table.freeze(size, "keys and values of unequal sizes in one state")


@rewrite("Attention", domain=MS)
def attention_sizes(cut: NodeCut, node: ir.Node) -> None:
    """Heads, and the widths of queries, keys and values where they are stated or have become unequal."""
    w, count = node.inputs[1], node.attributes["num_heads"].as_int()
    assert w is not None
    attr = node.attributes.get("qkv_hidden_sizes")
    whole = cut.before(w)[1]
    sizes = list(attr.as_ints()) if attr is not None else [whole // 3] * 3
    ends = np.cumsum([0, *sizes])
    kept = cut.kept(w, 1)
    left = [int(((kept >= a) & (kept < b)).sum()) for a, b in itertools.pairwise(ends)]
    remaining = cut.blocks(node.outputs[0], 2, count)
    cut.set_int(node, "num_heads", remaining)
    if attr is not None or len(set(left)) > 1:
        cut.set_ints(node, "qkv_hidden_sizes", left)
    keep_scale(cut, node, sizes[0] // count, left[0] // remaining)


@rule("MultiHeadAttention", domain=MS)
def multi_head(ctx: RuleContext) -> None:
    """Q, K, V (B, T, heads * d), or packed as (B, T, heads, 3 or 2, d), or K and V as (B, heads, T, d)."""
    q, k, v, y = ctx.inputs[0], ctx.input(1), ctx.input(2), ctx.outputs[0]
    assert q is not None
    count = ctx.int("num_heads")
    key = ctx.shape(q)[4] if ctx.rank(q) == 5 else ctx.shape(q)[2] // count
    parts = heads(ctx, count, count, key, ctx.shape(y)[2] // count)
    for value, size in ((q, parts.key), (k, parts.key), (v, parts.value), (y, parts.value),
                        (ctx.input(6), parts.key), (ctx.input(7), parts.value),
                        (ctx.output(1), parts.key), (ctx.output(2), parts.value)):  # fmt: skip
        if value is not None and ctx.rank(value) == 5:
            factor(ctx, value, 2, [parts.groups])
            factor(ctx, value, 4, [parts.key])
            ctx.table.tie(parts.key, parts.value)
            ctx.freeze_axes([value], (0, 1, 3), "packed queries, keys and values")
        else:
            layout(ctx, value, [parts.groups], size)
    if k is not None and ctx.rank(k) == 4:  # onnxruntime then wants keys and values of one shape
        ctx.table.tie(parts.key, parts.value)
    packed(ctx, ctx.input(3), 0, qkv(parts))
    ctx.freeze(ctx.input(4), "attention mask")
    scores(ctx, ctx.input(5), [parts.groups])
    scores(ctx, ctx.output(3), [parts.groups])
    for index in (8, 9):
        ctx.freeze(ctx.input(index), "cache of an attention")
    keys = ctx.shape(q)[1] if k is None else ctx.shape(k)[2 if ctx.rank(k) == 4 else 1]
    count_attention(ctx, parts, count, (ctx.shape(q)[0], ctx.shape(q)[1], keys))


@rewrite("MultiHeadAttention", domain=MS)
def multi_head_count(cut: NodeCut, node: ir.Node) -> None:
    q, count = node.inputs[0], node.attributes["num_heads"].as_int()
    assert q is not None
    shape = cut.before(q)
    if len(shape) == 5:
        cut.set_int(node, "num_heads", cut.size(q, 2))
        keep_scale(cut, node, shape[4], cut.size(q, 4))
        return
    left = cut.blocks(q, 2, count)
    cut.set_int(node, "num_heads", left)
    keep_scale(cut, node, shape[2] // count, cut.size(q, 2) // left)


@rule("GroupQueryAttention", domain=MS)
def group_query(ctx: RuleContext) -> None:
    """Q (B, T, heads * d), K, V (B, T, groups * d), or all packed in Q; past and present (B, groups, P, d).

    One head size serves queries, keys and values: heads can be cut, sizes not.
    """
    q, k, v, y = ctx.inputs[0], ctx.input(1), ctx.input(2), ctx.outputs[0]
    assert q is not None
    count, groups = ctx.int("num_heads"), ctx.int("kv_num_heads")
    size = ctx.shape(y)[2] // count
    parts = heads(ctx, count, groups, size, size)
    for inside in (parts.key, parts.value):
        ctx.table.freeze(inside, "GroupQueryAttention: the head size is fixed")
    both = [parts.groups, parts.share]
    if k is None:
        packed(ctx, q, 2, qkv(parts))
        ctx.tie(q, 0, y, 0)
        ctx.freeze(q, "sequence of an attention", 1)
    else:
        layout(ctx, q, both, parts.key)
        layout(ctx, k, [parts.groups], parts.key)
        layout(ctx, v, [parts.groups], parts.value)
    layout(ctx, y, both, parts.value)
    for state in (ctx.input(3), ctx.input(4), ctx.output(1), ctx.output(2)):
        layout(ctx, state, [parts.groups], parts.key)
    scores(ctx, ctx.input(10), both)
    scores(ctx, ctx.output(3), both)
    factor(ctx, ctx.input(11), 0, both)
    for index in (5, 6, 7, 8, 9, 12, 13, 14, 15, 16):
        ctx.freeze(ctx.input(index), "positions, angles and scales of an attention")
    keys = ctx.shape(q)[1] if k is None else ctx.shape(k)[1]
    count_attention(ctx, parts, count, (ctx.shape(q)[0], ctx.shape(q)[1], keys))


@rewrite("GroupQueryAttention", domain=MS)
def group_query_count(cut: NodeCut, node: ir.Node) -> None:
    """Whole groups, or the same query heads of every group, may have gone."""
    y, count = node.outputs[0], node.attributes["num_heads"].as_int()
    groups = node.attributes["kv_num_heads"].as_int()
    size = cut.before(y)[2] // count
    cut.set_int(node, "num_heads", cut.size(y, 2) // size)
    cut.set_int(node, "kv_num_heads", cut.blocks(y, 2, groups))
