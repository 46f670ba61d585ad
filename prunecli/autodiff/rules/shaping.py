"""Operators that move elements: reshapes, slices, gathers, scatters; Resize and Pad, which are linear along an axis.

The gradient moves back; what was read from a place is added to that place.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import ZERO, GradientContext, Gradients, rule
from prunecli.autodiff.rules.conv import spread
from prunecli.autodiff.rules.matmul import contract
from prunecli.model.shape_inference import Shape

Value = ir.Value


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.reshape(dy, g.shape())


@rule("Transpose")
def transpose(g: GradientContext, dy: Value) -> Gradients:
    perm = g.ints("perm") or tuple(reversed(range(g.ops.rank(g.x()))))
    return g.ops.transpose(dy, [int(i) for i in np.argsort(perm)])


@rule("Expand")
def expand(g: GradientContext, dy: Value) -> Gradients:
    return dy


@rule("Tile")
def tile(g: GradientContext, dy: Value) -> Gradients:
    """(a b) x -> axes (times, length), summed over times."""
    return _sum_copies(g.ops, dy, g.shape(), first=True)


def _sum_copies(ops: Ops, dy: Value, shape: Shape, first: bool) -> Value:
    """Sum over the copies of each position; an axis is (copies, length) if `first`, else (length, copies)."""
    split: list[int] = []
    axes = []
    for have, want in zip(ops.shape(dy), shape, strict=True):
        if have == want:
            split.append(want)
        else:
            axes.append(len(split) + (not first))
            split += [have // want, want] if first else [want, have // want]
    return ops.reshape(ops.sum(ops.reshape(dy, split), axes), shape)


@rule("Concat")
def concat(g: GradientContext, dy: Value) -> Gradients:
    axis = g.axis(0, g.ops.rank(dy))
    sizes = [g.ops.shape(v)[axis] for v in g.node.inputs]
    return dy if len(sizes) == 1 else g.ops.split(dy, sizes, axis)


@rule("Split")
def split(g: GradientContext, *dys: Value | None) -> Gradients:
    like = next(d for d in dys if d is not None)
    parts = [dy or g.ops.zeros(g.ops.shape(out), like) for dy, out in zip(dys, g.node.outputs, strict=True)]
    return g.ops.concat(parts, g.axis(0))


@rule("Slice")
def slice_(g: GradientContext, dy: Value) -> Gradients:
    """Reversed axes are reversed back, skipped positions and ends are filled with zeros."""
    ops, shape = g.ops, g.shape()
    starts, ends = g.known(1) or (), g.known(2) or ()
    axes = tuple(a % len(shape) for a in g.known(3) or range(len(starts)))
    steps = g.known(4) or (1,) * len(starts)
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(*slice(start, None if step < 0 and end < -(1 << 30) else end, step).indices(shape[axis]))
        dy, first, stop = _unslice_axis(g, dy, axis, taken=taken)
        before[axis], after[axis] = first, shape[axis] - stop
    return ops.pad(dy, before, after)


def _unslice_axis(g: GradientContext, dy: Value, axis: int, taken: range) -> tuple[Value, int, int]:
    """The gradient over [first, stop) of one axis."""
    ops = g.ops
    if len(taken) == 0:
        return dy, 0, 0
    if taken.step < 0:
        dy = ops.slice(dy, [axis], [-1], ends=[-(1 << 62)], steps=[-1])
        taken = taken[::-1]
    length = taken[-1] - taken[0] + 1
    if taken.step > 1 and len(taken) > 1:
        (*front, _), rest = ops.shape(dy)[: axis + 1], ops.shape(dy)[axis + 1 :]
        flat = ops.reshape(dy, (*front, len(taken), math.prod(rest)))
        wide = spread(ops, flat, (taken.step, 1), lengths=(length, math.prod(rest)))
        dy = ops.reshape(wide, (*front, length, *rest))
    return dy, taken[0], taken[0] + length


@rule("DepthToSpace")
def depth_to_space(g: GradientContext, dy: Value) -> Gradients:
    """Blocks back into channels; mode CRD has the channel before the block's coordinates."""
    ops, b = g.ops, g.integer("blocksize")
    if g.text("mode", "DCR") == "DCR":
        return ops.op("SpaceToDepth", dy, blocksize=b)
    n, c, h, w = ops.shape(dy)
    split = ops.reshape(dy, (n, c, h // b, b, w // b, b))
    return ops.reshape(ops.transpose(split, [0, 1, 3, 5, 2, 4]), g.shape())


@rule("SpaceToDepth")
def space_to_depth(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.op("DepthToSpace", dy, blocksize=g.integer("blocksize"), mode="DCR")


@rule("ReverseSequence")
def reverse_sequence(g: GradientContext, dy: Value) -> Gradients:
    times, batch = g.integer("time_axis", 0), g.integer("batch_axis", 1)
    return g.ops.op("ReverseSequence", dy, g.x(1), time_axis=times, batch_axis=batch)


@rule("Gather")
def gather(g: GradientContext, dy: Value) -> Gradients:
    """One constant position: padding. Else rows of dy are added to the rows they came from."""
    ops, shape, axis = g.ops, g.shape(), g.axis(0)
    known, indices = ops.value(g.x(1)), g.x(1)
    if known is not None and known.size == 1:
        at = int(known.reshape(-1)[0]) % shape[axis]
        row = ops.reshape(dy, (*shape[:axis], 1, *shape[axis + 1 :]))
        before, after = [0] * len(shape), [0] * len(shape)
        before[axis], after[axis] = at, shape[axis] - 1 - at
        return [ops.pad(row, before, after), ZERO]
    count = ops.rank(indices)
    front = [*range(axis, axis + count), *range(axis), *range(axis + count, ops.rank(dy))]
    rest = (*shape[:axis], *shape[axis + 1 :])
    updates = ops.transpose(dy, front)
    places = ops.reshape(ops.op("Cast", indices, to=int(ir.DataType.INT64)), (*ops.shape(indices), 1))
    zeros = ops.zeros((shape[axis], *rest), dy)
    table = ops.op("ScatterND", zeros, places, updates, reduction="add")
    back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return [ops.transpose(table, back), ZERO]


@rule("GatherElements")
def gather_elements(g: GradientContext, dy: Value) -> Gradients:
    zeros = g.ops.zeros(g.shape(), dy)
    return [g.ops.op("ScatterElements", zeros, g.x(1), dy, axis=g.axis(0), reduction="add"), ZERO]


@rule("GatherND")
def gather_nd(g: GradientContext, dy: Value) -> Gradients:
    places = _with_batch(g, g.integer("batch_dims"))
    return [g.ops.op("ScatterND", g.ops.zeros(g.shape(), dy), places, dy, reduction="add"), ZERO]


def _with_batch(g: GradientContext, batch: int) -> Value:
    """Index tuples that name the leading batch axes too, which ScatterND does not know."""
    ops, indices = g.ops, g.x(1)
    if not batch:
        return indices
    shape = ops.shape(indices)
    grid = np.stack(np.meshgrid(*map(np.arange, shape[:batch]), indexing="ij"), -1).astype(np.int64)
    wide = np.broadcast_to(grid.reshape(*shape[:batch], *[1] * (len(shape) - 1 - batch), batch), (*shape[:-1], batch))
    return ops.op("Concat", ops.const(wide), indices, axis=-1)


@rule("ScatterND", "ScatterElements", "Scatter")
def scatter(g: GradientContext, dy: Value) -> Gradients:
    """Overwritten places pass nothing to the data; added ones pass to both."""
    ops, reduction, by_tuple = g.ops, g.text("reduction", "none"), g.node.op_type == "ScatterND"
    if reduction not in ("none", "add"):
        raise g.refuse(f"reduction {reduction} is not supported")
    axis = None if by_tuple else g.axis(0)
    read = "GatherND" if by_tuple else "GatherElements"
    updates = ops.op(read, dy, g.x(1), axis=axis) if g.needs(2) else None
    if reduction == "add" or not g.needs(0):
        return [dy, ZERO, updates]
    return [ops.op(g.node.op_type, dy, g.x(1), ops.zeros(g.shape(2), dy), axis=axis), ZERO, updates]


@rule("TopK")
def top_k(g: GradientContext, dy: Value | None, dindices: Value | None = None) -> Gradients:
    if dy is None:
        return [ZERO, ZERO]
    zeros = g.ops.zeros(g.shape(), dy)
    return [g.ops.op("ScatterElements", zeros, g.node.outputs[1], dy, axis=g.axis(-1)), ZERO]


_KEPT = ("mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "antialias")


@rule("Resize")
def resize(g: GradientContext, dy: Value) -> Gradients:
    """Nearest by a whole factor: sums over blocks. Else per axis a product with the operator's own matrix."""
    ops, shape, out = g.ops, g.shape(), g.ops.shape(dy)
    if g.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise g.refuse("tf_crop_and_resize is not supported")
    if g.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise g.refuse("keep_aspect_ratio_policy is not supported")
    if _repeats(g, shape, out):
        return _sum_copies(ops, dy, shape, first=False)
    for axis, (small, large) in enumerate(zip(shape, out, strict=True)):
        if small != large or _scale(g, axis) != 1.0:
            dy = contract(ops, dy, axis, matrix=_axis_matrix(g, axis, small, large=large))
    return dy


def _axes(g: GradientContext) -> tuple[int, ...]:
    rank = g.ops.rank(g.x())
    return tuple(a % rank for a in g.ints("axes", range(rank)))


def _scale(g: GradientContext, axis: int) -> float | None:
    """The stated scale of an axis; None where sizes are given instead."""
    if g.input(2) is None or g.ops.size(g.x(2)) == 0:
        return 1.0 if axis not in _axes(g) else None
    scales = g.ops.value(g.x(2))
    if scales is None:
        raise g.refuse("its scales depend on data")
    return float(scales.reshape(-1)[_axes(g).index(axis)]) if axis in _axes(g) else 1.0


def _repeats(g: GradientContext, shape: Shape, out: Shape) -> bool:
    """Whether every element is simply repeated a whole number of times."""
    whole = all(
        o % i == 0 and (_scale(g, k) or o / i) == o / i for k, (i, o) in enumerate(zip(shape, out, strict=True))
    )
    if g.text("mode", "nearest") != "nearest" or not whole:
        return False
    coordinates = g.text("coordinate_transformation_mode", "half_pixel")
    rounding = g.text("nearest_mode", "round_prefer_floor")
    return (coordinates, rounding) == ("asymmetric", "floor") or (
        coordinates in ("half_pixel", "half_pixel_symmetric") and rounding.startswith("round")
    )


def _axis_matrix(g: GradientContext, axis: int, small: int, large: int) -> Value:
    """(large, small): the operator applied to the unit vectors of the axis; constant, so folded before running."""
    ops = g.ops
    eye = ops.const(np.eye(small, dtype=np.float32).reshape(1, 1, small, small))
    attributes = {k: g.node.attributes[k].value for k in _KEPT if k in g.node.attributes}
    scale = _scale(g, axis)
    scales = None if scale is None else ops.const(np.array([1, 1, scale, 1], np.float32))
    sizes = ops.ints([1, 1, large, small]) if scale is None else None
    return ops.reshape(ops.op("Resize", eye, None, scales, sizes, **attributes), (large, small))


@rule("Pad")
def pad(g: GradientContext, dy: Value) -> Gradients:
    """Constant padding is cropped away; the other modes repeat elements, whose gradients are summed."""
    ops, shape, mode = g.ops, g.shape(), g.text("mode", "constant")
    before, after = _amounts(g)
    if mode == "constant":
        inner = ops.pad(dy, [-b for b in before], [-a for a in after])
        return [inner, None, _fill_gradient(g, dy, inner) if g.needs(2) else None]
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            taken = np.pad(np.arange(shape[axis]), (max(low, 0), max(high, 0)), mode=mode)  # type: ignore[call-overload]
            taken = taken[max(-low, 0) : len(taken) - max(-high, 0)]
            matrix = np.eye(shape[axis], dtype=np.float32)[taken]
            dy = contract(ops, dy, axis, matrix=ops.const(matrix))
    return dy


def _fill_gradient(g: GradientContext, dy: Value, inner: Value) -> Value:
    """What arrived outside of the data: all of dy but the part that goes to the data (cropped places got nothing)."""
    everywhere, inside = (g.ops.sum(v) for v in (dy, inner))
    return g.ops.reshape(g.ops.sub(everywhere, inside), g.shape(2))


def _amounts(g: GradientContext) -> tuple[list[int], list[int]]:
    rank = g.ops.rank(g.x())
    pads, axes = g.known(1) or (), g.known(3)
    axes = tuple(range(rank)) if axes is None else tuple(a % rank for a in axes)
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    return before, after
