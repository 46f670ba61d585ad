"""Reductions: the axes that stay pass through; a reduced axis can be cut where a zero adds nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.model.shape_inference import Facts
from prunecli.operators import operator_of
from prunecli.operators.attributes import axes_of
from prunecli.operators.operator import input_of

ADDITIVE = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare")
"""A zero adds nothing to these sums: removal is exact."""
ORDERED = ("ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")


@rule(*ADDITIVE, *ORDERED, "ReduceMean", "ArgMax", "ArgMin")
def reduce(ctx: RuleContext) -> None:
    """Y = f(X along axes). A mean of n positions of which m stay is that of the m times m / n.

    Where it normalises what it was taken from (LayerNorm written out), the cut is the same normalisation of what
    stays, as it is for LayerNormalization: an approximation. A mean of squares alone (RMSNorm) is scaled.
    """
    x, y, op = ctx.x(), ctx.y, ctx.node.op_type
    axes = reduced_axes(ctx.node, ctx.rank(x), ctx.known(1))
    assert axes is not None  # else the shape of y is unknown
    keepdims = ctx.int("keepdims", 1)
    kept = [axis for axis in range(ctx.rank(x)) if axis not in axes]
    for place, axis in enumerate(kept):
        ctx.tie(x, axis, y, axis if keepdims else place)
    for axis in axes:
        if op == "ReduceMean" and normalises(ctx.node, ctx.facts):
            if of_squares(ctx.node):
                ctx.zero_is_absent(x, axis)
                ctx.table.mark(ctx.axis(x, axis), "width")
            else:
                ctx.table.approximate(ctx.axis(x, axis), "ReduceMean normalises over this axis")
        elif op == "ReduceMean" or op in ADDITIVE:
            ctx.zero_is_absent(x, axis)
        else:
            ctx.freeze(x, f"{op} runs over this axis", axis)


def reduced_axes(node: ir.Node, rank: int, known: Array | None) -> list[int] | None:
    """The axes, from the attribute or the content `known` of the input; None where they depend on data."""
    if node.op_type in ("ArgMax", "ArgMin"):
        return [node.attributes.get_int("axis", 0) % rank]
    axes = axes_of(node, [None, known])
    if axes is None or len(axes) == 0:
        if input_of(node, 1) is not None and known is None:
            return None
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({a % rank for a in axes})


def normalises(node: ir.Node, facts: Facts) -> bool:
    """Whether a mean goes back, position by position, onto a tensor of the shape that it was taken from.

    Means of a pooled map (N, 1, 1, C), as in global response normalisation, weigh channels and are not meant.
    """
    shape = facts.shapes[node.inputs[0]]  # type: ignore[index]
    size = math.prod(facts.shapes[node.outputs[0]])
    if len(shape) > 2 and size == shape[0]:
        return False
    return any(facts.shapes.get(out) == shape for out in _readers(node, facts, size))


def of_squares(node: ir.Node) -> bool:
    """Whether the mean is of x x or of a power of x, x no difference: nothing was taken from x to centre it."""
    value = node.inputs[0]
    squared = value.producer() if value is not None else None
    if squared is None or squared.op_type not in ("Mul", "Pow"):
        return False
    if squared.op_type == "Mul" and squared.inputs[0] is not squared.inputs[1]:
        return False
    maker = squared.inputs[0].producer() if squared.inputs[0] is not None else None
    while maker is not None and maker.op_type in ("Cast", "Identity") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker is None or maker.op_type != "Sub"


def _readers(node: ir.Node, facts: Facts, size: int) -> Iterator[ir.Value]:
    """Outputs of the element-wise nodes that a statistic of `size` elements passes through."""
    queue, seen = [node.outputs[0]], set[ir.Value]()
    while queue:
        for use in queue.pop().uses():
            if not operator_of(use.node).elementwise and use.node.op_type not in ("Expand", "Reshape", "Unsqueeze"):
                continue
            for out in use.node.outputs:
                if out not in seen:
                    seen.add(out)
                    yield out
                    if math.prod(facts.shapes.get(out, ())) == size:
                        queue.append(out)


@rewrite("ReduceMean")
def mean_of_fewer(cut: NodeCut, node: ir.Node) -> None:
    """The removed positions counted as zeros: scale what stays by its share, before the mean."""
    x, facts = node.inputs[0], cut.views[0].before
    shape = cut.before(x)
    axes = reduced_axes(node, len(shape), cut.known(node, 1)) or []
    share = math.prod(cut.size(x, axis) / shape[axis] for axis in axes if shape[axis])
    if share != 1 and (of_squares(node) or not normalises(node, facts)):
        factor = np.array(share, ir.DataType(facts.dtypes[node.outputs[0]]).numpy())
        node.replace_input_with(0, cut.insert(node, "Mul", x, factor))


@rule("CumSum", "CumProd")
def cumulative(ctx: RuleContext) -> None:
    """Y[p] = sum of X up to p: a removed zero adds nothing to later sums. A product needs every factor."""
    x, y = ctx.x(), ctx.y
    ctx.align(x, y)
    if ctx.node.op_type == "CumProd":
        axis = ctx.known(1)
        ctx.freeze(y, "CumProd runs over this axis", None if axis is None else int(axis.item()))


@rule("TopK")
def top_k(ctx: RuleContext) -> None:
    """The k largest along an axis; the other axes pass through."""
    x = ctx.x()
    axis = ctx.int("axis", -1) % ctx.rank(x)
    ctx.freeze(x, "TopK ranks this axis", axis)
    for out in ctx.outputs:
        ctx.align(x, out, skip=[axis])
        ctx.freeze(out, "TopK ranks this axis", axis)


@rule("Det")
def det(ctx: RuleContext) -> None:
    """X (*, M, M) -> Y (*)."""
    x, y = ctx.x(), ctx.y
    ctx.freeze_axes([x], (-1, -2), "Det needs the whole matrix")
    for axis in range(ctx.rank(y)):
        ctx.tie(x, axis, y, axis)
