"""Operators that rearrange whole axes: reshape, transpose, space and depth, expand, tile."""

from __future__ import annotations

import onnx_ir as ir

from prunecli.dependency.context import RuleContext
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import rewrite, rule


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(ctx: RuleContext) -> None:
    """Positions keep their row-major order: axes split and merge (`Context.reshape`)."""
    x = ctx.inputs[0]
    assert x is not None
    ctx.reshape(x, ctx.outputs[0])


@rewrite("Reshape")
def reshape_target(cut: NodeCut, node: ir.Node) -> None:
    wanted = [list(cut.shape(node.outputs[0], view)) for view in range(len(cut.views))]
    cut.set_vector(node, 1, wanted, wildcard=True)


@rule("Transpose")
def transpose(ctx: RuleContext) -> None:
    """Axis i of Y is axis perm[i] of X."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    perm = ctx.ints("perm") or tuple(reversed(range(ctx.rank(x))))
    for place, axis in enumerate(perm):
        ctx.tie(x, axis, y, place)


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(ctx: RuleContext) -> None:
    """Channels are (b, b, C') in mode DCR and SpaceToDepth, (C', b, b) in mode CRD: C' can be cut."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
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
    x = ctx.inputs[0]
    assert x is not None
    ctx.elementwise(x, ctx.outputs[0])


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
    """Axis of n positions repeated r times: (r, n), of which n can be cut."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    for axis, (a, b) in enumerate(zip(ctx.shape(x), ctx.shape(y), strict=True)):
        if a == b:
            ctx.tie(x, axis, y, axis)
        elif a > 1 and b % a == 0:
            copies = ctx.table.virtual(b // a)
            ctx.table.freeze(copies, "copies made by Tile")
            ctx.table.product(ctx.axis(y, axis), (copies, ctx.axis(x, axis)))
        else:
            ctx.freeze_axes((x, y), [axis], "copies made by Tile")
