"""Reductions: dy, its axes kept, is spread over what was reduced."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import GradientContext, Gradients, rule
from prunecli.autodiff.rules.conv import to_winners

Value = ir.Value
_MANY_FACTORS = 128  # above, the square of their number is too much to write out
_TINY = float(np.finfo(np.float32).tiny)


def _kept(g: GradientContext, dy: Value) -> tuple[Value, Value, list[int]]:
    """(dy, y, axes), both with the reduced axes present as length 1."""
    ops, shape = g.ops, g.shape()
    axes = g.known(1)
    if not axes:
        axes = () if g.integer("noop_with_empty_axes") else tuple(range(len(shape)))
    axes = tuple(a % len(shape) for a in axes)
    kept = [1 if i in axes else n for i, n in enumerate(shape)]
    return ops.reshape(dy, kept), ops.reshape(g.y, kept), sorted(axes)


@rule("ReduceSum")
def reduce_sum(g: GradientContext, dy: Value) -> Gradients:
    return _kept(g, dy)[0]


@rule("ReduceMean")
def reduce_mean(g: GradientContext, dy: Value) -> Gradients:
    dy, _, axes = _kept(g, dy)
    return g.ops.mul(dy, 1.0 / float(np.prod([g.shape()[a] for a in axes])))


@rule("ReduceMax", "ReduceMin")
def reduce_extremum(g: GradientContext, dy: Value) -> Gradients:
    dy, y, axes = _kept(g, dy)
    return to_winners(g.ops, g.x(), y, dy=dy, axes=axes)


@rule("ReduceProd")
def reduce_prod(g: GradientContext, dy: Value) -> Gradients:
    """dx_i = dy prod over k != i of x_k, which holds where elements are 0 too; for many factors dy y / x."""
    dy, y, axes = _kept(g, dy)
    count = int(np.prod([g.shape()[a] for a in axes], dtype=np.int64))
    if count > _MANY_FACTORS:
        return g.ops.div(g.ops.mul(dy, y), g.x())
    return g.ops.mul(dy, _other_factors(g.ops, g.x(), axes, count=count))


def _other_factors(ops: Ops, x: Value, axes: list[int], count: int) -> Value:
    """For each element the product of the others: all factors (..., 1, n), the element's own place filled with 1."""
    rest = [a for a in range(ops.rank(x)) if a not in axes]
    last = ops.transpose(x, [*rest, *axes])
    rows = ops.size(x) // max(count, 1)
    factors = ops.op(
        "Where", ops.const(np.eye(count, dtype=bool)), ops.scalar(1.0, x), ops.reshape(last, (rows, 1, count))
    )
    others = ops.reshape(ops.op("ReduceProd", factors, ops.ints([2]), keepdims=0), ops.shape(last))
    return ops.transpose(others, [int(i) for i in np.argsort([*rest, *axes])])


@rule("ReduceL1")
def reduce_l1(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.mul(g.ops.op("Sign", g.x()), _kept(g, dy)[0])


@rule("ReduceL2")
def reduce_l2(g: GradientContext, dy: Value) -> Gradients:
    """dx = dy x / y, 0 where y is 0."""
    ops = g.ops
    dy, y, _ = _kept(g, dy)
    return ops.mul(g.x(), ops.div(dy, ops.op("Max", y, ops.scalar(_TINY, y))))


@rule("ReduceLogSum")
def reduce_log_sum(g: GradientContext, dy: Value) -> Gradients:
    dy, y, _ = _kept(g, dy)
    return g.ops.div(dy, g.ops.op("Exp", y))


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(g: GradientContext, dy: Value) -> Gradients:
    dy, y, _ = _kept(g, dy)
    return g.ops.mul(g.ops.op("Exp", g.ops.sub(g.x(), y)), dy)


@rule("ReduceSumSquare")
def reduce_sum_square(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.mul(g.x(), g.ops.mul(_kept(g, dy)[0], 2.0))
