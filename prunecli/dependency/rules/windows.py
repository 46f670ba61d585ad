"""Pooling, resizing, sampling and Fourier transforms: channels pass through, the axes that are worked on are frozen."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.dependency.rules.linear import grouped
from prunecli.operators import MICROSOFT
from prunecli.operators.operator import input_of


@rule("AveragePool", "LpPool", "MaxPool")
@rule("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def pool(ctx: RuleContext) -> None:
    """(N, C, spatial...) -> (N, C, smaller...)."""
    x = ctx.x()
    for out in ctx.outputs:
        ctx.tie(x, 0, out, 0)
        ctx.tie(x, 1, out, 1)
        ctx.freeze_axes([out], range(2, ctx.rank(x)), "spatial axis of a pooling")
    ctx.freeze(ctx.output(1), "MaxPool indices number all channels")
    ctx.freeze_axes([x], range(2, ctx.rank(x)), "spatial axis of a pooling")


@rule("Resize", "Upsample")
def resize(ctx: RuleContext) -> None:
    """Axes of scale 1 pass through, resampled ones are frozen."""
    x, y = ctx.x(), ctx.y
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
    stated, given = ctx.node.attributes.get_floats("scales"), ctx.input(index)
    known = ctx.fixed(index) if stated is None else np.array(stated)
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
    if input_of(node, 3) is not None:
        rank = len(cut.before(node.inputs[0]))
        picked = [a % rank for a in node.attributes.get_ints("axes", range(rank))]
        wanted = [[cut.shape(node.outputs[0], v)[a] for a in picked] for v in range(len(cut.views))]
        cut.set_vector(node, 3, wanted)


@rule("DeformConv")
def deform_conv(ctx: RuleContext) -> None:
    """A Conv that reads X at offsets (N, og * 2 * k, h, w), weighted by a mask; og slabs of channels share them."""
    x, w, y = ctx.x(), ctx.x(1), ctx.y
    grouped(ctx, x, w, y=y, rows=0, cols=1, bias=3)
    slabs = ctx.int("offset_group", 1)
    if slabs > 1:
        slab, slot = ctx.table.virtual(slabs), ctx.table.virtual(ctx.shape(x)[1] // slabs)
        ctx.table.freeze(slab, "channels that share their offsets")
        ctx.table.product(ctx.axis(x, 1), (slab, slot))
    for value in (ctx.input(2), ctx.input(4)):
        ctx.tie(value, 0, y, 0)
        ctx.freeze_axes([value], range(1, ctx.rank(y)), "offsets of a deformable convolution")
    ctx.count_terms((ctx.axis(w, 0), ctx.axis(w, 1)))


SAMPLED = "sampled axis"


@rule("GridSample")
@rule("GridSample", domain=MICROSOFT)
def grid_sample(ctx: RuleContext) -> None:
    """X (N, C, D1..), grid (N, E1.., r) -> Y (N, C, E1..)."""
    x, grid, y = ctx.x(), ctx.x(1), ctx.y
    ctx.tie(x, 0, y, 0)
    ctx.tie(x, 1, y, 1)
    ctx.tie(grid, 0, y, 0)
    ctx.freeze_axes((x, y), range(2, ctx.rank(x)), SAMPLED)
    ctx.freeze_axes([grid], range(1, ctx.rank(grid)), SAMPLED)


@rule("RoiAlign", "MaxRoiPool")
def roi_pool(ctx: RuleContext) -> None:
    """X (N, C, H, W), rois (R, 4 or 5), batch_indices (R) -> Y (R, C, h, w)."""
    x, rois, y = ctx.x(), ctx.x(1), ctx.y
    ctx.tie(x, 1, y, 1)
    ctx.tie(rois, 0, y, 0)
    ctx.tie(ctx.input(2), 0, rois, 0)
    ctx.freeze(x, "images looked up by computed indices", 0)
    ctx.freeze(rois, "coordinates", 1)
    ctx.freeze_axes((x, y), (2, 3), SAMPLED)


@rule("Col2Im")
def col2im(ctx: RuleContext) -> None:
    """X (N, C * block, L) -> Y (N, C, image...): C can be cut."""
    x, y = ctx.x(), ctx.y
    cells = ctx.table.virtual(ctx.shape(x)[1] // max(ctx.shape(y)[1], 1))
    ctx.table.freeze(cells, "pixels of a block")
    ctx.tie(x, 0, y, 0)
    ctx.table.product(ctx.axis(x, 1), (ctx.axis(y, 1), cells))
    ctx.freeze(x, SAMPLED, 2)
    ctx.freeze_axes([y], range(2, ctx.rank(y)), SAMPLED)


@rule("CenterCropPad")
def center_crop_pad(ctx: RuleContext) -> None:
    """Axes that keep their length pass through."""
    x = ctx.x()
    ctx.align(x, ctx.y)
    named = ctx.ints("axes")
    for axis in range(ctx.rank(x)) if named is None else named:
        ctx.freeze_axes((x, ctx.y), [axis], "cropped or padded axis")


TRANSFORMED = "axis of a Fourier transform"


@rule("DFT")
def dft(ctx: RuleContext) -> None:
    """X (..., n, ..., 1 or 2) -> Y (..., m, ..., 2), transformed along one axis (1 by default, -2 from opset 20)."""
    x, y = ctx.x(), ctx.y
    known = ctx.known(2)
    if ctx.input(2) is not None and known is None:
        ctx.freeze_node("DFT: the axis depends on data")
        return
    default = 1 if ctx.opset < 20 else -2
    axis = ctx.int("axis", default) if known is None else int(known.item())
    ctx.align(x, y, skip=[axis, -1])
    ctx.freeze_axes((x, y), (axis, -1), TRANSFORMED)


@rule("STFT")
def stft(ctx: RuleContext) -> None:
    """Signal (B, n, 1 or 2) -> Y (B, frames, bins, 2)."""
    x, y = ctx.x(), ctx.y
    ctx.tie(x, 0, y, 0)
    ctx.freeze_axes([x], range(1, ctx.rank(x)), TRANSFORMED)
    ctx.freeze_axes([y], range(1, ctx.rank(y)), TRANSFORMED)
    for value in ctx.inputs[1:]:
        ctx.freeze(value, TRANSFORMED)


@rule("CausalConvWithState")
def causal_conv(ctx: RuleContext) -> None:
    """X (B, C, L), W (C, 1, k), bias (C), states (B, C, k - 1): a depthwise convolution."""
    x, w, y = ctx.x(), ctx.x(1), ctx.y
    ctx.align(x, y)
    ctx.tie(w, 0, y, 1)
    ctx.freeze(w, "kernel", 2)
    ctx.tie(ctx.input(2), 0, y, 1)
    for state in (ctx.input(3), ctx.output(1)):
        ctx.tie(state, 0, y, 0)
        ctx.tie(state, 1, y, 1)
        ctx.freeze(state, "kernel", 2)
    ctx.freeze(y, "spatial axis of a convolution", 2)
    ctx.count_terms((ctx.axis(y, 1),))
