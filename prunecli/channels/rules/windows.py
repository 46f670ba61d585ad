"""Pooling, resizing and padding: channels pass through, the axes that windows run over are frozen."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.channels.context import Context
from prunecli.channels.cut import Cut
from prunecli.channels.registry import rewrite, rule

POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "LRN")


@rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
def pool(ctx: Context) -> None:
    """(N, C, spatial...) -> (N, C, smaller...)."""
    x = ctx.inputs[0]
    assert x is not None
    for out in ctx.outputs:
        if not out.name:
            continue
        ctx.tie(x, 0, out, 0)
        ctx.tie(x, 1, out, 1)
        for axis in range(2, ctx.rank(x)):
            ctx.freeze(out, "spatial axis of a pooling", axis)
    if len(ctx.outputs) > 1 and ctx.outputs[1].name:  # flat indices count through all channels
        ctx.freeze(ctx.outputs[1], "MaxPool indices number all channels")
    for axis in range(2, ctx.rank(x)):
        ctx.freeze(x, "spatial axis of a pooling", axis)


@rule("Resize", "Upsample")
def resize(ctx: Context) -> None:
    """Axes that keep their length pass through, resampled ones are frozen."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    for axis in range(ctx.rank(x)):
        if ctx.shape(x)[axis] == ctx.shape(y)[axis] and axis < 2:
            ctx.tie(x, axis, y, axis)
        else:
            for value in (x, y):
                ctx.freeze(value, "resampled axis", axis)


@rewrite("Resize")
def resize_sizes(cut: Cut, node: ir.Node) -> None:
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = node.attributes.get("axes")
        rank = len(cut.before(node.inputs[0]))
        picked = range(rank) if axes is None else [a % rank for a in axes.as_ints()]
        wanted = [[cut.shape(node.outputs[0], v)[a] for a in picked] for v in range(len(cut.views))]
        cut.set_vector(node, 3, wanted)


@rule("Pad")
def pad(ctx: Context) -> None:
    """Positions move by the padding before them; padded positions are new ones. Frozen where data is mirrored."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    before = pad_amounts(ctx)
    if before is None:
        ctx.freeze_node("Pad amounts depend on data")
        return
    for axis, (low, high) in enumerate(before):
        if low == 0 and high == 0:
            ctx.tie(x, axis, y, axis)
        elif ctx.string("mode", "constant") != "constant" or low < 0 or high < 0:
            for value in (x, y):
                ctx.freeze(value, "axis padded with its own data, or cropped", axis)
        else:
            size = ctx.shape(x)[axis]
            ctx.map_positions(x, axis, np.arange(size), y, axis, np.arange(size) + low)


def pad_amounts(ctx: Context) -> list[tuple[int, int]] | None:
    """(before, after) per axis of a Pad node of any opset."""
    x = ctx.inputs[0]
    assert x is not None
    rank = ctx.rank(x)
    pads = ctx.ints("pads") or ctx.ints("paddings")
    if pads is None:
        known = ctx.known(1)
        pads = None if known is None else tuple(int(p) for p in known)
    if pads is None:
        return None
    axes = ctx.known(3)
    if ctx.input(3) is not None and axes is None:
        return None
    picked = range(rank) if axes is None else [int(a) % rank for a in axes]
    out = [(0, 0)] * rank
    for k, axis in enumerate(picked):
        out[axis] = (pads[k], pads[k + len(pads) // 2])
    return out


@rewrite("Pad")
def pad_kept(cut: Cut, node: ir.Node) -> None:
    """Padding on a cut axis: as many new positions as were kept before and after the data."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    amounts = [_kept_padding(cut, node, x, y, view) for view in range(len(cut.views))]
    if "pads" in node.attributes:
        cut.set_ints(node, "pads", amounts[0])
    else:
        cut.set_vector(node, 1, amounts)


def _kept_padding(cut: Cut, node: ir.Node, x: ir.Value, y: ir.Value, view: int) -> list[int]:
    ctx = Context(node, cut.views[view].before, None)  # type: ignore[arg-type]
    amounts = pad_amounts(ctx) or []
    out = []
    for axis, (low, high) in enumerate(amounts):
        gone = cut.removed_at(y, axis)
        if gone is not None and (low or high):
            size = cut.before(x)[axis]
            low -= int((gone < low).sum())
            high -= int((gone >= cut.before(y)[axis] - high).sum())
            assert size >= 0
        out.append((low, high))
    axes = ctx.known(3)
    rank = len(out)
    picked = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    return [out[a][0] for a in picked] + [out[a][1] for a in picked]
