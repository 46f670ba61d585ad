"""Pooling and resizing: channels pass through, the axes that windows run over are frozen."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from prunecli.dependency.context import RuleContext
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import rewrite, rule
from prunecli.dependency.rules.linear import grouped


@rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
def pool(ctx: RuleContext) -> None:
    """(N, C, spatial...) -> (N, C, smaller...)."""
    x = ctx.inputs[0]
    assert x is not None
    for out in ctx.outputs:
        if out.name:
            ctx.tie(x, 0, out, 0)
            ctx.tie(x, 1, out, 1)
            ctx.freeze_axes([out], range(2, ctx.rank(x)), "spatial axis of a pooling")
    if ctx.output(1) is not None:  # flat indices count through all channels
        ctx.freeze(ctx.output(1), "MaxPool indices number all channels")
    ctx.freeze_axes([x], range(2, ctx.rank(x)), "spatial axis of a pooling")


@rule("Resize", "Upsample")
def resize(ctx: RuleContext) -> None:
    """Axes of scale 1 pass through, resampled ones are frozen."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    same = _unscaled(ctx, x, y)
    for axis in range(ctx.rank(x)):
        if same[axis]:
            ctx.tie(x, axis, y, axis)
        else:
            ctx.freeze_axes((x, y), [axis], "resampled axis")


def _unscaled(ctx: RuleContext, x: ir.Value, y: ir.Value) -> list[bool]:
    """Per axis: the scale is 1, by the scales where they are given, else because the sizes are equal."""
    equal = [a == b for a, b in zip(ctx.shape(x), ctx.shape(y), strict=True)]
    if ctx.string("coordinate_transformation_mode") == "tf_crop_and_resize":
        return [axis < 2 and same for axis, same in enumerate(equal)]
    index = 1 if ctx.node.op_type == "Upsample" or ctx.opset < 11 else 2
    attr = ctx.node.attributes.get("scales")
    given = ctx.input(index)
    known = np.array(attr.as_floats()) if attr is not None else ctx.fixed(index)
    if known is None and given is not None and 0 not in ctx.shape(given):
        return [axis < 2 and same for axis, same in enumerate(equal)]
    if known is None or known.size == 0:
        return equal
    axes = ctx.ints("axes") or tuple(range(ctx.rank(x)))
    scaled = {a % ctx.rank(x) for a, scale in zip(axes, known, strict=True) if scale != 1}
    return [same and axis not in scaled for axis, same in enumerate(equal)]


@rewrite("Resize")
def resize_sizes(cut: NodeCut, node: ir.Node) -> None:
    """Sizes of cut axes follow; scales stay."""
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = node.attributes.get("axes")
        rank = len(cut.before(node.inputs[0]))
        picked = range(rank) if axes is None else [a % rank for a in axes.as_ints()]
        wanted = [[cut.shape(node.outputs[0], v)[a] for a in picked] for v in range(len(cut.views))]
        cut.set_vector(node, 3, wanted)


@rule("DeformConv")
def deform_conv(ctx: RuleContext) -> None:
    """A Conv that reads X at offsets (N, og * 2 * k, h, w), weighted by a mask; og slabs of channels share them."""
    x, w, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and w is not None
    grouped(ctx, x, w, y, rows=0, cols=1, bias=3)
    slabs = ctx.int("offset_group", 1)
    if slabs > 1:
        slab, slot = ctx.table.virtual(slabs), ctx.table.virtual(ctx.shape(x)[1] // slabs)
        ctx.table.freeze(slab, "channels that share their offsets")
        ctx.table.product(ctx.axis(x, 1), (slab, slot))
    for value in (ctx.input(2), ctx.input(4)):
        if value is not None:
            ctx.tie(value, 0, y, 0)
            ctx.freeze_axes([value], range(1, ctx.rank(value)), "offsets of a deformable convolution")
    spatial = math.prod(ctx.shape(y)[2:]) * ctx.shape(y)[0]
    ctx.count(math.prod(ctx.shape(w)) * spatial, ctx.axis(w, 0), ctx.axis(w, 1))
