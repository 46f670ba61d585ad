"""Normalisation and reductions: per-channel parameters are tied, reduced axes are frozen or approximate."""

from __future__ import annotations

import onnx_ir as ir

from prunecli.channels.context import Context
from prunecli.channels.cut import Cut
from prunecli.channels.registry import rewrite, rule
from prunecli.model.facts import axes_of


@rule("BatchNormalization", "InstanceNormalization")
def per_channel(ctx: Context) -> None:
    """X (N, C, ...); scale, bias, mean, variance (C)."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    ctx.elementwise(x, y)
    for parameter in (*ctx.inputs[1:], *ctx.outputs[1:]):
        if parameter is not None and parameter.name:
            ctx.tie(parameter, 0, y, 1)
    if ctx.node.op_type == "InstanceNormalization":
        for axis in range(2, ctx.rank(x)):
            ctx.freeze(x, "axis that InstanceNormalization reduces over", axis)
    if ctx.int("training_mode"):
        ctx.freeze(x, "batch statistics in training mode", 0)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization",
      "SimplifiedLayerNormalization", domain="com.microsoft")  # fmt: skip
def layer_norm(ctx: Context) -> None:
    """Normalises over the axes from `axis` on: cutting those changes the statistics of the rest."""
    x = ctx.inputs[0]
    assert x is not None
    skip = ctx.node.op_type.startswith("Skip")
    for out in (ctx.output(0), ctx.output(3) if skip else None):
        if out is not None:
            ctx.elementwise(*ctx.inputs, out)
    if not skip:
        ctx_axis = ctx.int("axis", -1) % ctx.rank(x)
    else:
        ctx_axis = ctx.rank(x) - 1
    for statistic in ctx.outputs[1:3]:
        if statistic.name and statistic in ctx.facts.shapes:
            ctx.elementwise(x, statistic)
    for axis in range(ctx_axis, ctx.rank(x)):
        ctx.table.approximate(ctx.axis(x, axis), f"{ctx.node.op_type} normalises over this axis")


@rule("LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "Hardmax", "LRN", "CumSum")
def frozen_axis(ctx: Context) -> None:
    """A position's result depends on the others along the axis, and zero is not the same as absent."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    ctx.elementwise(x, y)
    for axis in _reduced_axes(ctx):
        ctx.freeze(y, f"{ctx.node.op_type} runs over this axis", axis)


def _reduced_axes(ctx: Context) -> list[int]:
    x, op = ctx.inputs[0], ctx.node.op_type
    assert x is not None
    rank = ctx.rank(x)
    if op == "MeanVarianceNormalization":
        return list(ctx.ints("axes") or (0, 2, 3))
    if op == "LRN":
        return [1]
    if op == "CumSum":
        known = ctx.known(1)
        return list(range(rank)) if known is None else [int(known)]
    version = ctx.node.version or 13
    if op != "LpNormalization" and version < 13:  # the older Softmax flattens to two axes first
        return list(range(ctx.int("axis", 1) % rank, rank))
    return [ctx.int("axis", -1) % rank]


REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
              "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip
ADDITIVE = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")  # a zero adds nothing: removal is exact


@rule(*REDUCTIONS, "ArgMax", "ArgMin")
def reduce(ctx: Context) -> None:
    x, y, op = ctx.inputs[0], ctx.outputs[0], ctx.node.op_type
    assert x is not None
    rank = ctx.rank(x)
    axes = reduction_axes(ctx)
    if axes is None:
        ctx.freeze_node(f"{op}: the axes depend on data")
        return
    kept = [a for a in range(rank) if a not in axes]
    keepdims = ctx.int("keepdims", 1)
    for place, axis in enumerate(kept):
        ctx.tie(x, axis, y, axis if keepdims else place)
    for axis in axes:
        if op == "ReduceMean":
            ctx.table.approximate(ctx.axis(x, axis), "ReduceMean averages over this axis")
        elif op not in ADDITIVE:
            ctx.freeze(x, f"{op} runs over this axis", axis)


def reduction_axes(ctx: Context) -> list[int] | None:
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
    return [a % rank for a in axes]


@rule("GroupNormalization")
def group_norm(ctx: Context) -> None:
    """X (N, C, ...), C = groups x slots. Whole groups go exactly; a slot of every group only approximately."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    ctx.elementwise(x, y)
    groups, channels = ctx.int("num_groups"), ctx.shape(x)[1]
    group, slot = ctx.table.virtual(groups), ctx.table.virtual(channels // groups)
    ctx.table.product(ctx.axis(x, 1), (group, slot))
    if channels != groups:
        ctx.table.approximate(slot, "GroupNormalization normalises over the slots of a group")
    for parameter in ctx.inputs[1:3]:
        if parameter is None:
            continue
        per_group = ctx.shape(parameter)[0] == groups and groups != channels  # opset 18 had one value a group
        ctx.table.tie(ctx.axis(parameter, 0), group if per_group else ctx.axis(x, 1))
    for axis in range(2, ctx.rank(x)):
        ctx.freeze(x, "axis that GroupNormalization reduces over", axis)


@rewrite("GroupNormalization")
def group_count(cut: Cut, node: ir.Node) -> None:
    """Removed positions are whole groups, or the same slots of every group: count the groups that kept any."""
    x = node.inputs[0]
    assert x is not None
    groups = node.attributes["num_groups"].as_int()
    per_group = cut.before(x)[1] // groups
    cut.set_int(node, "num_groups", len(set((cut.kept(x, 1) // per_group).tolist())))
