"""Gathers and scatters: what was read from a place is added to that place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.registry import ZERO, Gradient, GradientContext, rule

Value = ir.Value


@rule("Gather")
def gather(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
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
def gather_elements(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    zeros = g.ops.zeros(g.shape(), dy)
    return [g.ops.op("ScatterElements", zeros, g.x(1), dy, axis=g.axis(0), reduction="add"), ZERO]


@rule("GatherND")
def gather_nd(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
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


@rule("ScatterND")
def scatter_nd(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return _scatter(g, dy, lambda: g.ops.op("GatherND", dy, g.x(1)))


@rule("ScatterElements", "Scatter")
def scatter_elements(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return _scatter(g, dy, lambda: g.ops.op("GatherElements", dy, g.x(1), axis=g.axis(0)))


def _scatter(g: GradientContext, dy: Value, read: Callable[[], Value]) -> list[Gradient]:
    """Overwritten places pass nothing to the data; added ones pass to both."""
    reduction = g.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise g.refuse(f"reduction {reduction} is not supported")
    updates = read() if g.needs(2) else None
    if reduction == "add" or not g.needs(0):
        return [dy, ZERO, updates]
    zeros = g.ops.zeros(g.shape(2), dy)
    axis = None if g.node.op_type == "ScatterND" else g.axis(0)
    return [g.ops.op(g.node.op_type, dy, g.x(1), zeros, axis=axis), ZERO, updates]


@rule("TopK")
def top_k(g: GradientContext, node: ir.Node, dy: Value | None, dindices: Value | None = None) -> list[Gradient]:
    if dy is None:
        return [ZERO, ZERO]
    zeros = g.ops.zeros(g.shape(), dy)
    return [g.ops.op("ScatterElements", zeros, node.outputs[1], dy, axis=g.axis(-1)), ZERO]
