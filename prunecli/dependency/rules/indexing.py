"""Operators that read positions (slices, gathers) or write them (scatters).

Constant places move positions. Of computed places the axes stay whole; the other axes pass through.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.dependency.atoms import Ints
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.model.constant_values import slice_bounds, slice_index
from prunecli.model.shape_inference import Facts

MOST_LOOKED_AT = 1 << 24
"""Elements of a table that is looked at, whether it is one-hot."""
WHOLE = (0, (1 << 31) - 1, 1)  # start, end, step of a Slice that takes all


def slice_parts(node: ir.Node, facts: Facts) -> tuple[slice, ...] | None:
    """The slice along each axis, None where bounds depend on data."""
    bounds = slice_bounds(node, [None, *(facts.value(v) for v in node.inputs[1:])])
    given = [v is not None for v in (*node.inputs[1:], *[None] * 4)][:4]
    if bounds[0] is None or any(has and known is None for has, known in zip(given, bounds, strict=True)):
        return None
    return slice_index(len(facts.shapes[node.inputs[0]]), *bounds)  # type: ignore[index]


@rule("Slice")
def slice_(ctx: RuleContext) -> None:
    """Y[p] = X[start + p * step] along each axis."""
    x, y = ctx.x(), ctx.y
    parts = slice_parts(ctx.node, ctx.facts)
    other = ctx.geometry.other
    again = parts if other is None or x not in other.shapes else slice_parts(ctx.node, other)
    assert parts is not None  # else the shape of y is unknown
    for axis, part in enumerate(parts):
        taken = _taken(part, ctx.shape(x)[axis])
        whole = len(taken) == ctx.shape(x)[axis] and part.step in (None, 1)
        if whole and ctx.dynamic(x, axis) == ctx.dynamic(y, axis):
            ctx.tie(x, axis, y, axis)
        elif again is None or part != again[axis]:
            ctx.freeze_axes((x, y), [axis], "Slice bounds depend on dynamic dimensions")
        else:
            ctx.map_positions((x, axis), taken, (y, axis), ib=np.arange(len(taken)))


def _taken(part: slice, size: int) -> Ints:
    return np.arange(size)[part]


def places(kept: Ints, taken: Ints) -> Ints:
    """Where the taken positions that are kept stand among the kept ones, in taken order."""
    return np.searchsorted(kept, taken[np.isin(taken, kept)])


@rewrite("Slice")
def slice_kept(cut: NodeCut, node: ir.Node) -> None:
    """On a cut axis the bounds become those of the kept positions; a Gather picks what is not evenly spaced."""
    x, y = node.inputs[0], node.outputs[0]
    changed: dict[int, tuple[int, int, int]] = {}
    for axis, part in enumerate(slice_parts(node, cut.views[0].before) or ()):
        if part == slice(None) or (cut.removed_at(x, axis) is None and cut.removed_at(y, axis) is None):
            continue
        place = places(cut.kept(x, axis), _taken(part, cut.before(x)[axis]))
        bounds = _bounds(place)
        if bounds is None:
            node.replace_input_with(0, cut.insert(node, "Gather", node.inputs[0], place, axis=axis))
        changed[axis] = bounds or WHOLE
    if changed:
        _set_bounds(cut, node, changed)


def _bounds(place: Ints) -> tuple[int, int, int] | None:
    """(start, end, step) of evenly spaced places, or None."""
    gaps = np.unique(np.diff(place))
    if len(place) == 0:
        return 0, 0, 1
    if len(gaps) > 1:
        return None
    step = int(gaps[0]) if len(gaps) else 1
    end = int(place[-1]) + (1 if step > 0 else -1)
    return int(place[0]), end if end >= 0 else -(1 << 31) + 1, step


def _set_bounds(cut: NodeCut, node: ir.Node, changed: dict[int, tuple[int, int, int]]) -> None:
    """Overwrite the entries of the changed axes, whatever form the node keeps its bounds in."""
    rank = len(cut.before(node.outputs[0]))
    rows: list[list[list[int]]] = [[], [], [], []]  # starts, ends, axes, steps: per view
    for view in cut.views:
        known = slice_bounds(node, [None, *(view.before.value(v) for v in node.inputs[1:])])
        count = len(known[0])
        axes = [int(a) % rank for a in (range(count) if known[2] is None else known[2])]
        steps = [1] * count if known[3] is None else known[3]
        for k in range(3):
            old = (known[0], known[1], steps)[k]
            new = [changed[a][k] if a in changed else int(o) for a, o in zip(axes, old, strict=True)]
            rows[(0, 1, 3)[k]].append(new)
        rows[2].append(axes)
    if "starts" in node.attributes:
        for name, row in (("starts", rows[0]), ("ends", rows[1])):
            cut.set_ints(node, name, row[0])
        return
    last = 4 if any(step != 1 for step in rows[3][0]) or len(node.inputs) > 4 else 2
    for index in range(1, last + 1):
        if index in (1, 2) or (index == 3 and _missing(node, 3)) or index == 4:
            cut.set_vector(node, index, rows[index - 1])


def _missing(node: ir.Node, index: int) -> bool:
    return len(node.inputs) <= index or node.inputs[index] is None


@rule("Gather")
def gather(ctx: RuleContext) -> None:
    """Constant indices move positions; computed indices look rows up, so the rows stay."""
    x, indices, y = ctx.x(), ctx.x(1), ctx.y
    axis = ctx.int("axis", 0) % ctx.rank(x)
    rank = ctx.rank(indices)
    for other in range(ctx.rank(x)):
        if other != axis:
            ctx.tie(x, other, y, other if other < axis else other + rank - 1)
    fixed = ctx.fixed(1)
    if fixed is None:
        ctx.freeze(x, "looked up by computed indices", axis)
        if axis == 0 and _is_one_hot(x):
            ctx.table.mark(ctx.axis(x, 1), "vocabulary")
        for index in range(rank):
            ctx.tie(indices, index, y, axis + index)
        return
    taken = np.asarray(fixed, np.int64) % max(ctx.shape(x)[axis], 1)
    if rank == 0:
        ctx.table.freeze(ctx.axis(x, axis), "picked by itself", taken.reshape(1))
        ctx.freeze_if_dynamic(x, axis)
    elif rank == 1 and len(np.unique(taken)) == len(taken):
        ctx.map_positions((x, axis), taken, (y, axis), ib=np.arange(len(taken)))
    elif rank == 1 and (copies := _repeats(taken, ctx.shape(x)[axis])) and not ctx.dynamic(x, axis):
        copy = ctx.table.virtual(copies)
        ctx.table.interchange(copy)
        ctx.table.product(ctx.axis(y, axis), (ctx.axis(x, axis), copy))
    else:
        ctx.freeze(x, "positions are gathered more than once", axis)
        ctx.freeze_axes([y], range(axis, axis + rank), "positions are gathered more than once")


def _repeats(taken: Ints, size: int) -> int:
    """Return r where every one of `size` positions is taken r times in a row (repeat_interleave); else 0."""
    copies = len(taken) // max(size, 1)
    return copies if np.array_equal(taken, np.repeat(np.arange(size), copies)) else 0


def _is_one_hot(table: ir.Value) -> bool:
    """Whether a stored table has at most one element in each row that is not zero, as the unit matrix has."""
    tensor = table.const_value
    if tensor is None or len(tensor.shape) != 2 or tensor.size > MOST_LOOKED_AT or 1 in tensor.shape.numpy():
        return False
    return bool((np.count_nonzero(tensor.numpy(), axis=1) <= 1).all())


@rewrite("Gather")
def gather_kept(cut: NodeCut, node: ir.Node) -> None:
    """Indices are those of the same positions among the kept ones."""
    x, y = node.inputs[0], node.outputs[0]
    axis = node.attributes.get_int("axis", 0) % len(cut.before(x))
    known = cut.known(node, 1)
    moved = cut.removed_at(x, axis) is not None or (
        known is not None and known.ndim == 1 and cut.removed_at(y, axis) is not None
    )
    if known is None or known.ndim > 1 or not moved:
        return
    taken = np.asarray(known, np.int64) % cut.before(x)[axis]
    left = taken[cut.kept(y, axis)] if taken.ndim else taken.reshape(-1)
    place = places(cut.kept(x, axis), left)
    cut.set_input(node, 1, place.astype(known.dtype).reshape(known.shape if known.ndim == 0 else -1))


@rule("GatherElements")
def gather_elements(ctx: RuleContext) -> None:
    """Y[i, j] = X[I[i, j], j] for axis 0: the other axes run in step where I is as long as X."""
    x, indices, y = ctx.x(), ctx.x(1), ctx.y
    axis = ctx.int("axis", 0) % ctx.rank(x)
    ctx.align(indices, y)
    ctx.align(x, y, skip=[axis])
    ctx.freeze(x, "looked up by computed indices", axis)


@rule("GatherND")
def gather_nd(ctx: RuleContext) -> None:
    """Y[b.., i.., r..] = X[b.., *I[b.., i.., :], r..]: b batch axes, k looked-up axes, r the rest."""
    x, indices, y = ctx.x(), ctx.x(1), ctx.y
    batch, depth = ctx.int("batch_dims"), ctx.shape(indices)[-1]
    for axis in range(batch):
        ctx.tie(x, axis, y, axis)
    for axis in range(ctx.rank(indices) - 1):
        ctx.tie(indices, axis, y, axis)
    ctx.freeze(indices, "coordinates", -1)
    ctx.freeze_axes([x], range(batch, batch + depth), "looked up by computed indices")
    rest = ctx.rank(x) - batch - depth
    for k in range(1, rest + 1):
        ctx.tie(x, -k, y, -k)


WRITTEN = "written at computed places"


@rule("Scatter", "ScatterElements")
def scatter_elements(ctx: RuleContext) -> None:
    """Y = X, then Y[I[i, j], j] = U[i, j] for axis 0: the other axes run in step where all are as long."""
    x, indices, updates, y = ctx.x(), ctx.x(1), ctx.x(2), ctx.y
    axis = ctx.int("axis", 0) % ctx.rank(x)
    ctx.align(x, y)
    ctx.align(indices, updates)
    ctx.align(updates, y, skip=[axis])
    ctx.freeze_axes((y, updates), [axis], WRITTEN)


@rule("ScatterND")
def scatter_nd(ctx: RuleContext) -> None:
    """Y = X, then Y[*I[i.., :]] = U[i..]: the axes after the coordinates run in step."""
    x, indices, updates, y = ctx.x(), ctx.x(1), ctx.x(2), ctx.y
    depth = ctx.shape(indices)[-1]
    ctx.align(x, y)
    ctx.freeze_axes([y], range(depth), WRITTEN)
    ctx.freeze(indices, "coordinates")
    ctx.freeze_axes([updates], range(ctx.rank(indices) - 1), WRITTEN)
    for k in range(1, ctx.rank(x) - depth + 1):
        ctx.tie(updates, -k, y, -k)


@rule("TensorScatter")
def tensor_scatter(ctx: RuleContext) -> None:
    """A cache with new entries along `axis`."""
    past, update, y = ctx.x(), ctx.x(1), ctx.y
    axis = ctx.int("axis", -2) % ctx.rank(past)
    ctx.align(past, y)
    ctx.align(update, y, skip=[axis])
    ctx.freeze_axes((update, y), [axis], WRITTEN)
    ctx.freeze(ctx.input(2), "write positions")


@rule("ReverseSequence")
def reverse_sequence(ctx: RuleContext) -> None:
    """Reverses the first `sequence_lens` positions of the time axis, per entry of the batch axis."""
    x, lengths, y = ctx.x(), ctx.x(1), ctx.y
    ctx.align(x, y)
    ctx.freeze(y, "ReverseSequence orders this axis", ctx.int("time_axis", 0))
    ctx.tie(lengths, 0, y, ctx.int("batch_axis", 1))
