"""Normalisation: per-channel parameters are tied, axes that statistics run over are frozen, scaled or approximate."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.model.constants import behind
from prunecli.operators import MICROSOFT


@rule("BatchNormalization")
def batch_norm(ctx: RuleContext) -> None:
    """X (N, C, ...); scale, bias, mean, variance (C), or (C, ...) where `spatial` is 0 (opset 7)."""
    y = ctx.y
    ctx.elementwise(ctx.inputs[0], y)
    for parameter in (*ctx.inputs[1:], *ctx.outputs[1:]):
        if parameter is not None:
            for axis in range(ctx.rank(parameter)):
                ctx.tie(parameter, axis, y, axis + 1)
    if ctx.int("training_mode"):
        ctx.freeze_axes([y], (a for a in range(ctx.rank(y)) if a != 1), "batch statistics in training mode")


@rule("InstanceNormalization")
def instance_norm(ctx: RuleContext) -> None:
    """X (N, C, ...); scale, bias (C); statistics run over the axes after C."""
    x, y = ctx.x(), ctx.y
    ctx.elementwise(x, y)
    for parameter in ctx.inputs[1:]:
        ctx.tie(parameter, 0, y, 1)
    _over(ctx, x, range(2, ctx.rank(x)))


ROOT_MEAN_SQUARE = ("RMSNormalization", "SimplifiedLayerNormalization")


@rule("LayerNormalization", *ROOT_MEAN_SQUARE)
@rule("LayerNormalization", "SimplifiedLayerNormalization", domain=MICROSOFT)
def layer_norm(ctx: RuleContext) -> None:
    """Normalises over the axes from `axis` on. Cutting those changes the mean of the rest, which is an approximation;
    without a mean, scale and epsilon follow (`root_mean_square_of_fewer`)."""
    x = ctx.x()
    ctx.elementwise(*ctx.inputs, ctx.y)
    for statistic in ctx.outputs[1:]:
        ctx.elementwise(x, statistic)
    _over(ctx, x, range(ctx.int("axis", -1) % ctx.rank(x), ctx.rank(x)), statistics=(1, 2))


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(ctx: RuleContext) -> None:
    """Y = LayerNorm(X + skip + bias); the fourth output is the sum."""
    x = ctx.x()
    for index, sources in ((0, ctx.inputs), (3, ctx.inputs), (1, [x]), (2, [x])):
        if (out := ctx.output(index)) is not None:
            ctx.elementwise(*sources, out)
    _over(ctx, x, [ctx.rank(x) - 1], statistics=(1, 2))


def _over(ctx: RuleContext, x: ir.Value, axes: range | list[int], statistics: tuple[int, ...] = ()) -> None:
    """`statistics`: outputs that give what is normalised by."""
    exact = ctx.node.op_type in (*ROOT_MEAN_SQUARE, "SkipSimplifiedLayerNormalization")
    for axis in axes:
        if not exact:
            ctx.table.approximate(ctx.axis(x, axis), f"{ctx.node.op_type} normalises over this axis")
        elif any(ctx.output(index) is not None for index in statistics):
            ctx.freeze(x, f"{ctx.node.op_type} gives out the root mean square over this axis", axis)
        else:
            ctx.table.mark(ctx.axis(x, axis), "width")


@rewrite(*ROOT_MEAN_SQUARE)
@rewrite("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def root_mean_square_of_fewer(cut: NodeCut, node: ir.Node) -> None:
    """x / sqrt(s m / n + e) = sqrt(n / m) x / sqrt(s + e n / m), with m of n positions left and s the mean of their
    squares: what the normalisation gives where the removed positions are zero."""
    skips = node.op_type == "SkipSimplifiedLayerNormalization"
    x, place = node.inputs[0], 2 if skips else 1
    shape = cut.before(x)
    first = len(shape) - 1 if skips else node.attributes.get_int("axis", -1) % len(shape)
    share = math.prod(cut.size(x, axis) / shape[axis] for axis in range(first, len(shape)) if shape[axis])
    if share == 1:
        return
    epsilon = node.attributes.get_float("epsilon", 1e-12 if skips else 1e-5)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon / share)
    scale = node.inputs[place]
    stored = behind(scale)
    dtype = ir.DataType(cut.views[0].before.dtypes[scale]).numpy()  # type: ignore[index]
    if stored is None:
        node.replace_input_with(place, cut.insert(node, "Mul", scale, np.array(share**-0.5, dtype)))
    else:
        cut.set_input(node, place, (stored.array().astype(np.float64) / math.sqrt(share)).astype(dtype))


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_norm(ctx: RuleContext) -> None:
    """LayerNorm of the sum of embedding tables (rows, hidden), looked up by ids."""
    ids, y = ctx.x(), ctx.y
    for index in (0, 1, 7, 8):
        ctx.freeze(ctx.input(index), "token ids")
    for table in ctx.inputs[2:5]:
        ctx.freeze(table, "looked up by computed indices", 0)
        ctx.tie(table, 1, y, 2)
    for parameter in ctx.inputs[5:7]:
        ctx.tie(parameter, 0, y, 2)
    ctx.tie(ids, 0, y, 0)
    ctx.tie(ids, 1, y, 1)
    ctx.freeze(ctx.output(1), "mask index")
    ctx.elementwise(ctx.output(2), y)
    _over(ctx, y, [2])


@rule("LpNormalization")
def lp_norm(ctx: RuleContext) -> None:
    """Y = X / |X| along an axis: zeros add nothing to the norm, so removal is exact."""
    x = ctx.x()
    ctx.align(x, ctx.y)


@rule("MeanVarianceNormalization", "Softmax", "LogSoftmax", "Hardmax", "LRN")
def frozen_axis(ctx: RuleContext) -> None:
    """A position's result depends on the others along the axis, and zero is not the same as absent."""
    x, y = ctx.x(), ctx.y
    ctx.align(x, y)
    ctx.freeze_axes([y], _axes(ctx, ctx.rank(x)), f"{ctx.node.op_type} runs over this axis")


def _axes(ctx: RuleContext, rank: int) -> list[int]:
    op = ctx.node.op_type
    if op == "MeanVarianceNormalization":
        return list(ctx.ints("axes") or (0, 2, 3))
    if op == "LRN":
        return [1]
    if ctx.opset < 13:  # the older Softmax flattens to two axes first
        return list(range(ctx.int("axis", 1) % rank, rank))
    return [ctx.int("axis", -1) % rank]


@rule("GroupNormalization")
def group_norm(ctx: RuleContext) -> None:
    """X (N, C, ...), C = groups x slots. Whole groups go exactly; a slot of every group only approximately."""
    x, y = ctx.x(), ctx.y
    ctx.elementwise(x, y)
    groups, channels = ctx.int("num_groups"), ctx.shape(x)[1]
    group, slot = ctx.table.virtual(groups), ctx.table.virtual(channels // groups)
    ctx.table.product(ctx.axis(x, 1), (group, slot))
    if channels != groups:
        ctx.table.approximate(slot, "GroupNormalization normalises over the slots of a group")
    for parameter in (ctx.x(1), ctx.x(2)):
        per_group = ctx.shape(parameter)[0] == groups and groups != channels  # opset 18 had one value a group
        ctx.table.tie(ctx.axis(parameter, 0), group if per_group else ctx.axis(x, 1))
    ctx.freeze_axes([x], range(2, ctx.rank(x)), "axis that GroupNormalization reduces over")


@rewrite("GroupNormalization")
def group_count(cut: NodeCut, node: ir.Node) -> None:
    """Removed positions are whole groups, or the same slots of every group: count the groups that kept any."""
    groups = node.attributes["num_groups"].as_int()
    cut.set_int(node, "num_groups", cut.blocks(node.inputs[0], 1, groups))
