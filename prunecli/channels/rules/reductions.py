"""Reductions: the axes that stay pass through; a reduced axis can be cut where a zero adds nothing."""

from __future__ import annotations

from prunecli.channels.context import Context
from prunecli.channels.registry import rule
from prunecli.model.facts import axes_of

ADDITIVE = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare")
"""A zero adds nothing to these sums: removal is exact."""
ORDERED = ("ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")


@rule(*ADDITIVE, *ORDERED, "ReduceMean", "ArgMax", "ArgMin")
def reduce(ctx: Context) -> None:
    """Y = f(X along axes). A mean over fewer positions is another mean, hence an approximation."""
    x, y, op = ctx.inputs[0], ctx.outputs[0], ctx.node.op_type
    assert x is not None
    axes = reduced_axes(ctx)
    if axes is None:
        ctx.freeze_node(f"{op}: the axes depend on data")
        return
    keepdims = ctx.int("keepdims", 1)
    kept = [axis for axis in range(ctx.rank(x)) if axis not in axes]
    for place, axis in enumerate(kept):
        ctx.tie(x, axis, y, axis if keepdims else place)
    for axis in axes:
        if op == "ReduceMean":
            ctx.table.approximate(ctx.axis(x, axis), "ReduceMean averages over this axis")
        elif op not in ADDITIVE:
            ctx.freeze(x, f"{op} runs over this axis", axis)


def reduced_axes(ctx: Context) -> list[int] | None:
    """The axes, from the attribute or the input; None where they depend on data."""
    x = ctx.inputs[0]
    assert x is not None
    rank = ctx.rank(x)
    if ctx.node.op_type in ("ArgMax", "ArgMin"):
        return [ctx.int("axis", 0) % rank]
    axes = axes_of(ctx.node, [None, ctx.known(1)])
    if axes is None or len(axes) == 0:
        if ctx.input(1) is not None and ctx.known(1) is None:
            return None
        return [] if ctx.int("noop_with_empty_axes") else list(range(rank))
    return sorted({a % rank for a in axes})


@rule("CumSum", "CumProd")
def cumulative(ctx: Context) -> None:
    """Y[p] = sum of X up to p: a removed zero adds nothing to later sums. A product needs every factor."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    ctx.align(x, y)
    if ctx.node.op_type == "CumSum":
        return
    axis = ctx.known(1)
    axes = range(ctx.rank(x)) if axis is None else [int(axis.item())]
    ctx.freeze_axes([y], axes, "CumProd runs over this axis")


@rule("TopK")
def top_k(ctx: Context) -> None:
    """The k largest along an axis; the other axes pass through."""
    x = ctx.inputs[0]
    assert x is not None
    axis = ctx.int("axis", -1) % ctx.rank(x)
    ctx.freeze(x, "TopK ranks this axis", axis)
    for out in ctx.outputs:
        if out.name:
            ctx.align(x, out, skip=[axis])
            ctx.freeze(out, "TopK ranks this axis", axis)


@rule("Det")
def det(ctx: Context) -> None:
    """X (*, M, M) -> Y (*)."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    ctx.freeze_axes([x], (-1, -2), "Det needs the whole matrix")
    for axis in range(ctx.rank(y)):
        ctx.tie(x, axis, y, axis)
