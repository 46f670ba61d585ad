"""Operators that sample images at computed places: channels pass through."""

from __future__ import annotations

from prunecli.dependency.context import RuleContext
from prunecli.dependency.registry import rule

SAMPLED = "sampled axis"


@rule("GridSample")
@rule("GridSample", domain="com.microsoft")
def grid_sample(ctx: RuleContext) -> None:
    """X (N, C, D1..), grid (N, E1.., r) -> Y (N, C, E1..)."""
    x, grid, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and grid is not None
    ctx.tie(x, 0, y, 0)
    ctx.tie(x, 1, y, 1)
    ctx.tie(grid, 0, y, 0)
    ctx.freeze_axes((x, y), range(2, ctx.rank(x)), SAMPLED)
    ctx.freeze_axes([grid], range(1, ctx.rank(grid)), SAMPLED)


@rule("RoiAlign", "MaxRoiPool")
def roi_pool(ctx: RuleContext) -> None:
    """X (N, C, H, W), rois (R, 4 or 5), batch_indices (R) -> Y (R, C, h, w)."""
    x, rois, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and rois is not None
    ctx.tie(x, 1, y, 1)
    ctx.tie(rois, 0, y, 0)
    if ctx.input(2) is not None:
        ctx.tie(rois, 0, ctx.inputs[2], 0)  # type: ignore[arg-type]
    ctx.freeze(x, "images looked up by computed indices", 0)
    ctx.freeze(rois, "coordinates", 1)
    ctx.freeze_axes((x, y), (2, 3), SAMPLED)


@rule("Col2Im")
def col2im(ctx: RuleContext) -> None:
    """X (N, C * block, L) -> Y (N, C, image...): C can be cut."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    cells = ctx.table.virtual(ctx.shape(x)[1] // max(ctx.shape(y)[1], 1))
    ctx.table.freeze(cells, "pixels of a block")
    ctx.tie(x, 0, y, 0)
    ctx.table.product(ctx.axis(x, 1), (ctx.axis(y, 1), cells))
    ctx.freeze(x, SAMPLED, 2)
    ctx.freeze_axes([y], range(2, ctx.rank(y)), SAMPLED)


@rule("CenterCropPad")
def center_crop_pad(ctx: RuleContext) -> None:
    """Axes that keep their length pass through."""
    x = ctx.inputs[0]
    assert x is not None
    ctx.align(x, ctx.outputs[0])
    named = ctx.ints("axes")
    for axis in range(ctx.rank(x)) if named is None else named:
        ctx.freeze_axes((x, ctx.outputs[0]), [axis], "cropped or padded axis")
