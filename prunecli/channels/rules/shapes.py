"""Operators that move positions: reshape, transpose, concatenate, split, slice, gather, expand, tile."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.channels.context import Context
from prunecli.channels.cut import Cut
from prunecli.channels.registry import rewrite, rule
from prunecli.model.facts import slice_bounds, slice_index


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(ctx: Context) -> None:
    x = ctx.inputs[0]
    assert x is not None
    ctx.reshape(x, ctx.outputs[0])


@rewrite("Reshape")
def reshape_target(cut: Cut, node: ir.Node) -> None:
    wanted = [list(cut.shape(node.outputs[0], view)) for view in range(len(cut.views))]
    if "shape" in node.attributes:
        old = node.attributes["shape"].as_ints()
        cut.set_ints(node, "shape", [o if o in (0, -1) else w for o, w in zip(old, wanted[0], strict=True)])
        return
    cut.set_vector(node, 1, wanted, wildcard=True)


@rule("Transpose")
def transpose(ctx: Context) -> None:
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    perm = ctx.ints("perm") or tuple(reversed(range(ctx.rank(x))))
    for place, axis in enumerate(perm):
        ctx.tie(x, axis, y, place)


@rule("Concat")
def concat(ctx: Context) -> None:
    y = ctx.outputs[0]
    axis = ctx.int("axis", 1) % ctx.rank(y)
    start = 0
    for value in ctx.inputs:
        assert value is not None
        for other in range(ctx.rank(y)):
            if other != axis:
                ctx.tie(value, other, y, other)
        size = ctx.shape(value)[axis]
        ctx.map_positions(value, axis, np.arange(size), y, axis, np.arange(size) + start)
        start += size


@rule("Split")
def split(ctx: Context) -> None:
    x = ctx.inputs[0]
    assert x is not None
    axis = ctx.int("axis", 0) % ctx.rank(x)
    start = 0
    for out in ctx.outputs:
        for other in range(ctx.rank(x)):
            if other != axis:
                ctx.tie(x, other, out, other)
        size = ctx.shape(out)[axis]
        ctx.map_positions(x, axis, np.arange(size) + start, out, axis, np.arange(size))
        start += size


@rewrite("Split")
def split_sizes(cut: Cut, node: ir.Node) -> None:
    """Parts may have become unequal: name their sizes."""
    attr = node.attributes.get("axis")
    axis = 0 if attr is None else attr.as_int()
    if not any(cut.removed_at(v, axis) is not None for v in (node.inputs[0], *node.outputs)):
        return
    sizes = [[cut.shape(o, view)[axis] for o in node.outputs] for view in range(len(cut.views))]
    node.attributes.pop("num_outputs", None)
    if "split" in node.attributes or (node.version or 13) < 13:
        cut.set_ints(node, "split", sizes[0])
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        cut.set_vector(node, 1, sizes)
    else:
        cut.set_input(node, 1, np.array(sizes[0], np.int64))


@rule("Slice")
def slice_(ctx: Context) -> None:
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    bounds = slice_bounds(ctx.node, [None, *(ctx.known(i) for i in range(1, 5))])
    if bounds[0] is None or bounds[1] is None:
        ctx.freeze_node("Slice bounds depend on data")
        return
    index = slice_index(ctx.rank(x), *bounds)
    for axis, part in enumerate(index):
        taken = np.arange(ctx.shape(x)[axis])[part]
        if len(taken) == ctx.shape(x)[axis] and part.step in (None, 1):
            ctx.tie(x, axis, y, axis)
        else:
            ctx.map_positions(x, axis, taken, y, axis, np.arange(len(taken)))


@rewrite("Slice")
def slice_kept(cut: Cut, node: ir.Node) -> None:
    """On a cut axis the kept positions in range are listed: Slice becomes Slice (other axes) and Gather."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    before = cut.views[0].before
    bounds = slice_bounds(node, [None, *(before.value(v) for v in node.inputs[1:])])
    rank = len(cut.before(x))
    axes = [int(a) % rank for a in (range(len(bounds[0])) if bounds[2] is None else bounds[2])]
    cut_axes = [a for a in axes if cut.removed_at(x, a) is not None or cut.removed_at(y, a) is not None]
    if not cut_axes:
        return
    index = slice_index(rank, *bounds)
    starts, ends, steps = [], [], []
    for axis in cut_axes:
        taken = np.arange(cut.before(x)[axis])[index[axis]]
        place = _places(cut.kept(x, axis), taken)
        starts.append(place)
        ends.append(axis)
    _replace_slice(cut, node, bounds, axes, dict(zip(ends, starts, strict=True)), steps)


def _places(kept: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Where the taken positions that are kept stand among the kept ones, in taken order."""
    alive = taken[np.isin(taken, kept)]
    return np.searchsorted(kept, alive)


def _replace_slice(cut: Cut, node: ir.Node, bounds: tuple, axes: list[int], places: dict, _: list) -> None:
    """Restate bounds where the places are evenly spaced (nearly always), as constants of this node alone."""
    starts = [int(s) for s in bounds[0]]
    ends = [int(e) for e in bounds[1]]
    steps = [1] * len(starts) if bounds[3] is None else [int(s) for s in bounds[3]]
    for axis, place in places.items():
        gap = np.diff(place)
        if len(gap) and (gap != gap[0]).any():
            _gather_instead(cut, node, axis, place)
            k = axes.index(axis)
            starts[k], ends[k], steps[k] = 0, (1 << 31) - 1, 1
            continue
        step = int(gap[0]) if len(gap) else 1
        first, last = int(place[0]), int(place[-1])
        k = axes.index(axis)
        starts[k], steps[k] = first, step
        ends[k] = last + 1 if step > 0 else (last - 1 if last > 0 else -(1 << 31) + 1)
    if "starts" in node.attributes:
        cut.set_ints(node, "starts", starts)
        cut.set_ints(node, "ends", ends)
        return
    keep = [i for i in range(len(axes)) if axes[i] not in places]
    dynamic = bool(keep) and len(cut.views) > 1
    for position, values in ((1, starts), (2, ends), (4, steps)):
        old = [view.after.value(node.inputs[position]) if position < len(node.inputs) else None for view in cut.views]
        wanted = [list(values) for _ in cut.views]
        if dynamic and position < 4:
            for view, current in enumerate(old):
                for k in keep:
                    wanted[view][k] = int(current[k]) if current is not None else values[k]
        if position == 4 and node.inputs[4:5] in ([], [None], ()) and all(s == 1 for s in steps):
            continue
        if position < len(node.inputs) and node.inputs[position] is not None:
            cut.set_vector(node, position, wanted)
        else:
            if len(node.inputs) < 4 or node.inputs[3] is None:
                cut.set_input(node, 3, np.array(axes, np.int64))
            cut.set_input(node, position, np.array(values, np.int64))


def _gather_instead(cut: Cut, node: ir.Node, axis: int, place: np.ndarray) -> None:
    """Insert a Gather of the places before the node, which then takes the whole axis."""
    gather = ir.Node("", "Gather", [node.inputs[0], None], [ir.AttrInt64("axis", axis)], num_outputs=1,
                     name=f"{node.name or node.outputs[0].name}.kept")  # fmt: skip
    gather.outputs[0].name = gather.name
    cut.model.graph.insert_before(node, gather)
    cut.set_input(gather, 1, place.astype(np.int64))
    cut.visit(gather)
    node.replace_input_with(0, gather.outputs[0])


@rule("Gather")
def gather(ctx: Context) -> None:
    """Constant indices move positions; computed indices look rows up, so the rows stay."""
    x, indices, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and indices is not None
    axis = ctx.int("axis", 0) % ctx.rank(x)
    rank = ctx.rank(indices)
    for other in range(ctx.rank(x)):
        if other != axis:
            ctx.tie(x, other, y, other if other < axis else other + rank - 1)
    known = ctx.known(1)
    if known is None:
        ctx.freeze(x, "looked up by computed indices", axis)
        for index in range(rank):
            ctx.tie(indices, index, y, axis + index)
    elif rank == 0:
        ctx.freeze(x, "a single position is picked", axis)
    elif rank == 1 and len(np.unique(known)) == len(known):
        taken = np.asarray(known) % ctx.shape(x)[axis]
        ctx.map_positions(x, axis, taken, y, axis, np.arange(len(taken)))
    else:
        ctx.freeze(x, "positions are gathered more than once", axis)
        for index in range(rank):
            ctx.freeze(y, "positions are gathered more than once", axis + index)


@rewrite("Gather")
def gather_kept(cut: Cut, node: ir.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    attr = node.attributes.get("axis")
    axis = (0 if attr is None else attr.as_int()) % len(cut.before(x))
    known = cut.known(node, 1)
    if known is None or known.ndim != 1 or (cut.removed_at(x, axis) is None and cut.removed_at(y, axis) is None):
        return
    taken = np.asarray(known) % cut.before(x)[axis]
    cut.set_input(node, 1, _places(cut.kept(x, axis), taken).astype(known.dtype))


@rule("Expand")
def expand(ctx: Context) -> None:
    """Axes of equal length are tied; a stretched size-1 axis makes new positions."""
    x = ctx.inputs[0]
    assert x is not None
    ctx.elementwise(x, ctx.outputs[0])


@rewrite("Expand")
def expand_target(cut: Cut, node: ir.Node) -> None:
    shape = cut.known(node, 1)
    full = [list(cut.shape(node.outputs[0], view)) for view in range(len(cut.views))]
    if shape is not None:  # the target may be shorter than the result, and 1 means "as it is"
        full = [w[len(w) - len(shape):] for w in full]
        full = [[1 if s == 1 else n for s, n in zip(shape, w, strict=True)] for w in full]
    cut.set_vector(node, 1, full)


@rule("Tile")
def tile(ctx: Context) -> None:
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    for axis, (a, b) in enumerate(zip(ctx.shape(x), ctx.shape(y), strict=True)):
        if a == b:
            ctx.tie(x, axis, y, axis)
        elif a != 1:
            copies, positions = ctx.table.virtual(b // a), ctx.table.virtual(a)
            ctx.table.freeze(copies, "copies made by Tile")
            ctx.table.product(ctx.axis(y, axis), (copies, positions))
            ctx.table.tie(positions, ctx.axis(x, axis))
        else:
            ctx.freeze(y, "copies made by Tile", axis)


@rule("ConstantOfShape")
def constant_of_shape(ctx: Context) -> None:
    """A fill: every position is like every other, none is tied."""


@rewrite("ConstantOfShape")
def fill_shape(cut: Cut, node: ir.Node) -> None:
    cut.set_vector(node, 0, [list(cut.shape(node.outputs[0], v)) for v in range(len(cut.views))])


@rule("Shape", "Size")
def shape_of(ctx: Context) -> None:
    """Geometry: followed by value, so the data is free to be cut."""


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(ctx: Context) -> None:
    """Channels are (b, b, C') in mode DCR and SpaceToDepth, (C', b, b) in mode CRD: C' can be cut."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    block = ctx.int("blocksize")
    deep, flat = (x, y) if ctx.node.op_type == "DepthToSpace" else (y, x)
    cells = ctx.table.virtual(block * block)
    ctx.table.freeze(cells, "pixels of a block")
    channel = ctx.axis(flat, 1)
    crd = ctx.string("mode", "DCR") == "CRD" and ctx.node.op_type == "DepthToSpace"
    ctx.table.product(ctx.axis(deep, 1), (channel, cells) if crd else (cells, channel))
    ctx.tie(x, 0, y, 0)
    for value in (x, y):
        for axis in (2, 3):
            ctx.freeze(value, "spatial axis", axis)
