"""Operators that move elements without changing them: the gradient moves back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.registry import Gradient, GradientContext, rule
from prunecli.autodiff.rules.conv import spread

Value = ir.Value


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.reshape(dy, g.shape())]


@rule("Transpose")
def transpose(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    perm = g.ints("perm") or tuple(reversed(range(g.ops.rank(g.x()))))
    return [g.ops.transpose(dy, [int(i) for i in np.argsort(perm)])]


@rule("Expand")
def expand(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [dy]


@rule("Tile")
def tile(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """(a b) x -> axes (times, length), summed over times."""
    ops, shape = g.ops, g.shape()
    split: list[int] = []
    axes = []
    for have, want in zip(ops.shape(dy), shape, strict=True):
        if have != want:
            axes.append(len(split))
            split.append(have // want)
        split.append(want)
    return [ops.reshape(ops.sum(ops.reshape(dy, split), axes), shape)]


@rule("Concat")
def concat(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    axis = g.axis(0, g.ops.rank(dy))
    sizes = [g.ops.shape(v)[axis] for v in node.inputs]
    if len(sizes) == 1:
        return [dy]
    return list(g.ops.many("Split", dy, g.ops.ints(sizes), outputs=len(sizes), axis=axis))


@rule("Split")
def split(g: GradientContext, node: ir.Node, *dys: Value | None) -> list[Gradient]:
    like = next(d for d in dys if d is not None)
    parts = [
        g.ops.zeros(g.ops.shape(out), like) if dy is None else dy for dy, out in zip(dys, node.outputs, strict=True)
    ]
    return [g.ops.concat(parts, g.axis(0))]


@rule("Slice")
def slice_(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """Reversed axes are reversed back, skipped positions and ends are filled with zeros."""
    ops, shape = g.ops, g.shape()
    starts, ends = g.known(1) or (), g.known(2) or ()
    axes = tuple(a % len(shape) for a in g.known(3) or range(len(starts)))
    steps = g.known(4) or (1,) * len(starts)
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(*slice(start, None if step < 0 and end < -(1 << 30) else end, step).indices(shape[axis]))
        dy, first, stop = _unslice_axis(g, dy, axis, taken)
        before[axis], after[axis] = first, shape[axis] - stop
    return [ops.pad(dy, before, after)]


def _unslice_axis(g: GradientContext, dy: Value, axis: int, taken: range) -> tuple[Value, int, int]:
    """The gradient over [first, stop) of one axis."""
    ops = g.ops
    if len(taken) == 0:
        return dy, 0, 0
    if taken.step < 0:
        dy = ops.slice(dy, [axis], [-1], [-(1 << 62)], [-1])
        taken = taken[::-1]
    length = taken[-1] - taken[0] + 1
    if taken.step > 1 and len(taken) > 1:
        rank = ops.rank(dy)
        rest = ops.shape(dy)[axis + 1 :]
        flat = ops.reshape(dy, (*ops.shape(dy)[: axis + 1], int(np.prod(rest, dtype=np.int64))))
        wide = spread(ops, flat, (taken.step, 1), (length, ops.shape(flat)[-1]))
        dy = ops.reshape(wide, (*ops.shape(dy)[:axis], length, *rest))
        assert ops.rank(dy) == rank
    return dy, taken[0], taken[0] + length


@rule("DepthToSpace")
def depth_to_space(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """Blocks back into channels; mode CRD has the channel before the block's coordinates."""
    ops, b = g.ops, g.integer("blocksize")
    if g.text("mode", "DCR") == "DCR":
        return [ops.op("SpaceToDepth", dy, blocksize=b)]
    n, c, h, w = ops.shape(dy)
    split = ops.reshape(dy, (n, c, h // b, b, w // b, b))
    return [ops.reshape(ops.transpose(split, [0, 1, 3, 5, 2, 4]), g.shape())]


@rule("SpaceToDepth")
def space_to_depth(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.op("DepthToSpace", dy, blocksize=g.integer("blocksize"), mode="DCR")]


@rule("ReverseSequence")
def reverse_sequence(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    times, batch = g.integer("time_axis", 0), g.integer("batch_axis", 1)
    return [g.ops.op("ReverseSequence", dy, g.x(1), time_axis=times, batch_axis=batch)]
