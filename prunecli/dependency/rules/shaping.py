"""Operators that rearrange axes (reshape, transpose, tile), join, part or pad tensors, or fill them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.model.shape_inference import Facts
from prunecli.operators.operator import input_of


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(ctx: RuleContext) -> None:
    """Positions keep their row-major order: axes split and merge (`Context.reshape`)."""
    x = ctx.x()
    ctx.reshape(x, ctx.y)


@rewrite("Reshape")
def reshape_target(cut: NodeCut, node: ir.Node) -> None:
    wanted = [list(cut.shape(node.outputs[0], view)) for view in range(len(cut.views))]
    cut.set_vector(node, 1, wanted, wildcard=True)


@rule("Transpose")
def transpose(ctx: RuleContext) -> None:
    """Axis i of Y is axis perm[i] of X."""
    x, y = ctx.x(), ctx.y
    perm = ctx.ints("perm") or tuple(reversed(range(ctx.rank(x))))
    for place, axis in enumerate(perm):
        ctx.tie(x, axis, y, place)


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(ctx: RuleContext) -> None:
    """Channels are (b, b, C') in mode DCR and SpaceToDepth, (C', b, b) in mode CRD: C' can be cut."""
    x, y = ctx.x(), ctx.y
    block = ctx.int("blocksize")
    deep, flat = (x, y) if ctx.node.op_type == "DepthToSpace" else (y, x)
    cells = ctx.table.virtual(block * block)
    ctx.table.freeze(cells, "pixels of a block")
    channel = ctx.axis(flat, 1)
    order = (channel, cells) if ctx.string("mode", "DCR") == "CRD" else (cells, channel)
    ctx.table.product(ctx.axis(deep, 1), order)
    ctx.tie(x, 0, y, 0)
    ctx.freeze_axes((x, y), (2, 3), "spatial axis")


@rule("Expand")
def expand(ctx: RuleContext) -> None:
    """Axes of equal length are tied; a stretched size-1 axis makes new positions."""
    x, y = ctx.x(), ctx.y
    ctx.elementwise(x, y)
    first = ctx.rank(y) - ctx.rank(x)
    for axis, size in enumerate(ctx.shape(y)):
        if size != 1 and (axis < first or ctx.shape(x)[axis - first] == 1):
            ctx.table.interchange(ctx.axis(y, axis))


@rewrite("Expand")
def expand_target(cut: NodeCut, node: ir.Node) -> None:
    """The target may be shorter than the result, and 1 in it means "as long as it is"."""
    wanted = []
    for number, view in enumerate(cut.views):
        full = cut.shape(node.outputs[0], number)
        target = view.before.value(node.inputs[1])
        tail = full if target is None else full[len(full) - len(target) :]
        wanted.append([n if target is None or target[i] != 1 else 1 for i, n in enumerate(tail)])
    cut.set_vector(node, 1, wanted)


@rule("Tile")
def tile(ctx: RuleContext) -> None:
    """An axis of n positions repeated r times is (r, n), of which both can be cut."""
    x, y = ctx.x(), ctx.y
    for axis, (a, b) in enumerate(zip(ctx.shape(x), ctx.shape(y), strict=True)):
        if a == b:
            ctx.tie(x, axis, y, axis)
        elif a and b % a == 0:
            copies = ctx.table.virtual(b // a)
            if ctx.dynamic(y, axis):
                ctx.table.freeze(copies, "copies made by Tile, as many as a dynamic dimension says")
            ctx.table.product(ctx.axis(y, axis), (copies, ctx.axis(x, axis)))
            if a == 1:
                ctx.table.interchange(ctx.axis(y, axis))


@rewrite("Tile")
def tile_repeats(cut: NodeCut, node: ir.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    pairs = [zip(cut.shape(y, view), cut.shape(x, view), strict=True) for view in range(len(cut.views))]
    cut.set_vector(node, 1, [[whole // part for whole, part in pair] for pair in pairs])


@rule("Concat")
def concat(ctx: RuleContext) -> None:
    """Position p of input k is position p + (lengths before k) of Y."""
    y = ctx.y
    axis = ctx.int("axis", 1) % ctx.rank(y)
    start = 0
    for value in (ctx.x(i) for i in range(len(ctx.inputs))):
        ctx.align(value, y, skip=[axis])
        size = ctx.shape(value)[axis]
        ctx.map_positions((value, axis), np.arange(size), (y, axis), ib=np.arange(size) + start)
        start += size


@rule("Split")
def split(ctx: RuleContext) -> None:
    """Position p of output k is position p + (lengths before k) of X."""
    x = ctx.x()
    axis = ctx.int("axis", 0) % ctx.rank(x)
    start = 0
    for out in ctx.outputs:
        size = ctx.shape(out)[axis]
        ctx.align(x, out, skip=[axis])
        ctx.map_positions((x, axis), np.arange(size) + start, (out, axis), ib=np.arange(size))
        start += size


@rewrite("Split")
def split_sizes(cut: NodeCut, node: ir.Node) -> None:
    """Parts may have become unequal: name their sizes."""
    axis = node.attributes.get_int("axis", 0)
    if not any(cut.removed_at(v, axis) is not None for v in (node.inputs[0], *node.outputs)):
        return
    sizes = [[cut.shape(o, view)[axis] for o in node.outputs] for view in range(len(cut.views))]
    node.attributes.pop("num_outputs", None)
    if cut.opset(node) < 13:
        cut.set_ints(node, "split", sizes[0])
    else:
        cut.set_vector(node, 1, sizes)


@rule("Pad")
def pad(ctx: RuleContext) -> None:
    """Positions move by the padding before them; padded positions are new ones. Frozen where data is mirrored."""
    x, y = ctx.x(), ctx.y
    amounts = pad_amounts(ctx.node, ctx.facts)
    assert amounts is not None  # else the shape of y is unknown
    for axis, (low, high) in enumerate(amounts):
        if low == 0 and high == 0 and ctx.dynamic(x, axis) == ctx.dynamic(y, axis):
            ctx.tie(x, axis, y, axis)
        elif ctx.string("mode", "constant") != "constant" or low < 0 or high < 0:
            ctx.freeze_axes((x, y), [axis], "axis padded with its own data, or cropped")
        else:
            size = ctx.shape(x)[axis]
            ctx.map_positions((x, axis), np.arange(size), (y, axis), ib=np.arange(size) + low)


def pad_amounts(node: ir.Node, facts: Facts) -> list[tuple[int, int]] | None:
    """(before, after) per axis of a Pad node of any opset, None where they depend on data."""
    rank = len(facts.shapes[node.inputs[0]])  # type: ignore[index]
    pads = node.attributes.get_ints("pads") or _ints(node, facts, 1)
    picked = _ints(node, facts, 3) if input_of(node, 3) is not None else list(range(rank))
    if pads is None or picked is None:
        return None
    out = [(0, 0)] * rank
    for k, axis in enumerate(picked):
        out[axis % rank] = (pads[k], pads[k + len(pads) // 2])
    return out


def _ints(node: ir.Node, facts: Facts, index: int) -> list[int] | None:
    known = facts.value(node.inputs[index]) if index < len(node.inputs) else None
    return None if known is None else [int(n) for n in known]


@rewrite("Pad")
def pad_kept(cut: NodeCut, node: ir.Node) -> None:
    """Padding on a cut axis: as many new positions as were kept before and after the data."""
    wanted = [_kept_padding(cut, node, view) for view in range(len(cut.views))]
    if "pads" in node.attributes:
        cut.set_ints(node, "pads", wanted[0])
    else:
        cut.set_vector(node, 1, wanted)


def _kept_padding(cut: NodeCut, node: ir.Node, view: int) -> list[int]:
    y, facts = node.outputs[0], cut.views[view].before
    amounts = pad_amounts(node, facts) or []
    for axis, (low, high) in enumerate(amounts):
        gone = cut.removed_at(y, axis)
        if gone is not None and (low or high):
            first_after = cut.before(y)[axis] - high
            amounts[axis] = (low - int((gone < low).sum()), high - int((gone >= first_after).sum()))
    named = input_of(node, 3) is not None
    picked = (_ints(node, facts, 3) or []) if named else range(len(amounts))
    return [amounts[a][0] for a in picked] + [amounts[a][1] for a in picked]


@rule("ConstantOfShape")
def constant_of_shape(ctx: RuleContext) -> None:
    """A fill: every position is like every other, none is tied."""


@rewrite("ConstantOfShape")
def fill_shape(cut: NodeCut, node: ir.Node) -> None:
    cut.set_vector(node, 0, [list(cut.shape(node.outputs[0], v)) for v in range(len(cut.views))])


@rule("Shape", "Size")
def shape_of(ctx: RuleContext) -> None:
    """Geometry is followed by value, and then this rule is not asked; where it is not, the shape must stay."""
    ctx.freeze_node(f"{ctx.node.op_type} of a tensor, used in a way that is not followed")


@rule("OneHot")
def one_hot(ctx: RuleContext) -> None:
    """Indices (d...) -> Y with a new axis of classes."""
    indices, y = ctx.x(), ctx.y
    new = ctx.int("axis", -1) % ctx.rank(y)
    ctx.freeze(y, "classes of OneHot", new)
    for axis in range(ctx.rank(indices)):
        ctx.tie(indices, axis, y, axis + (axis >= new))
