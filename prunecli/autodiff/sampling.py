"""GridSample, restated as gathers: images and grid both get their gradients from those of the parts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.rewrites import Inputs, Value, attributes, first, rewrite

_CUBIC = -0.75  # the coefficient of Keys (1981) that onnxruntime and PyTorch use
_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@rewrite("GridSample")
def grid_sample(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Y at a place = sum over the neighbours of its position of their weight times X there."""
    x, grid = first(inputs), inputs[1]
    assert grid is not None
    (n, c, *sizes), spots, rank = ops.shape(x), ops.shape(grid)[1:-1], ops.rank(grid)
    count = math.prod(spots)
    rows = ops.transpose(ops.reshape(x, (n, c, math.prod(sizes))), [0, 2, 1])
    axes = []
    for axis, size in enumerate(sizes):
        place = len(sizes) - 1 - axis  # a grid names the last axis first
        at = ops.reshape(ops.slice(grid, [rank - 1], [place], [place + 1]), (n, count))
        axes.append(_neighbours(ops, at, size, node))
    parts = []
    for neighbours in itertools.product(*axes):
        index, weight = neighbours[0]
        for size, (inner, factor) in zip(sizes[1:], neighbours[1:], strict=True):
            index, weight = ops.op("Add", ops.mul(index, size), inner), ops.mul(weight, factor)
        read = ops.op("GatherND", rows, ops.reshape(index, (n, count, 1)), batch_dims=1)
        parts.append(ops.mul(read, ops.reshape(weight, (n, count, 1))))
    return [ops.reshape(ops.transpose(ops.total(parts), [0, 2, 1]), (n, c, *spots))]


def _neighbours(ops: Ops, at: Value, size: int, node: ir.Node) -> list[tuple[Value, Value]]:
    """Along one axis: (index, weight) of every element that a position in [-1, 1] is interpolated from."""
    given = attributes(node)
    mode, padding = given.get("mode", "linear"), given.get("padding_mode", "zeros")
    mode, aligned = _MODES.get(mode, mode), bool(given.get("align_corners", 0))
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    position = ops.add2(ops.mul(at, (size - 1) / 2 if aligned else size / 2), (size - 1) / 2)
    position = ops.op("Round", position) if mode == "nearest" else position
    if padding == "reflection":
        position = _reflect(ops, position, low, high)
    start = ops.op("Round" if mode == "nearest" else "Floor", position)
    found = []
    for offset, weight in _weights(ops, ops.sub(position, start), mode):
        index = ops.add2(start, offset)
        index = ops.op("Round", _reflect(ops, index, low, high)) if padding == "reflection" else index
        stored = _clip(ops, index, 0.0, size - 1.0)
        if padding == "zeros":
            weight = ops.mul(weight, ops.cast(ops.op("Equal", index, stored), weight))
        found.append((ops.op("Cast", stored, to=int(ir.DataType.INT64)), weight))
    return found


def _clip(ops: Ops, value: Value, low: float, high: float) -> Value:
    return ops.op("Clip", value, ops.scalar(low, value), ops.scalar(high, value))


def _reflect(ops: Ops, value: Value, low: float, high: float) -> Value:
    """Turned back at both ends as often as it takes: low + r or, every other time, high - r."""
    span = max(high - low, 1e-6)  # of one element with aligned corners nothing is left
    away = ops.op("Abs", ops.add2(value, -low))
    times = ops.op("Floor", ops.mul(away, 1 / span))
    odd = ops.sub(times, ops.mul(ops.op("Floor", ops.mul(times, 0.5)), 2.0))
    rest = ops.sub(away, ops.mul(times, span))
    return ops.add2(ops.op("Add", rest, ops.mul(odd, ops.add2(ops.mul(rest, -2.0), span))), low)


def _weights(ops: Ops, t: Value, mode: str) -> list[tuple[float, Value]]:
    """(offset, weight) for a position t past an element."""
    if mode == "nearest":
        return [(0.0, ops.const(np.ones(ops.shape(t), np.float32)))]
    if mode == "linear":
        return [(0.0, ops.one_minus(t)), (1.0, t)]
    rest = ops.one_minus(t)
    return [(-1.0, _far(ops, rest)), (0.0, _near(ops, t)), (1.0, _near(ops, rest)), (2.0, _far(ops, t))]


def _near(ops: Ops, t: Value) -> Value:
    """(a + 2) t^3 - (a + 3) t^2 + 1, of the element t away."""
    return ops.add2(ops.mul(ops.mul(t, t), ops.add2(ops.mul(t, _CUBIC + 2), -_CUBIC - 3)), 1.0)


def _far(ops: Ops, t: Value) -> Value:
    """a s^3 - 5 a s^2 + 8 a s - 4 a = a t^2 (1 - t), of the element s = 2 - t away."""
    return ops.mul(ops.mul(ops.mul(t, t), ops.add2(t, -1.0)), -_CUBIC)
