"""Pooling: maxima scatter back to where they came from, averages spread out."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import Gradient, GradientContext, rule
from prunecli.autodiff.rules.windows import PoolWindow, read_window
from prunecli.model.shape_inference import Array, Shape

Value = ir.Value


@rule("MaxPool")
def max_pool(g: GradientContext, node: ir.Node, dy: Value, dindices: Value | None = None) -> list[Gradient]:
    """dx is dy scattered to the winners' flat positions (the operator's second output), summed where they meet."""
    ops = g.ops
    if g.integer("storage_order"):
        raise g.refuse("storage_order 1 is not supported")
    size = ops.size(g.x())
    flat = ops.size(dy)
    where = ops.reshape(_indices(g), (flat,))
    window = read_window(g, g.ints("kernel_shape"), g.shape()[2:], ops.shape(dy)[2:])
    apart = all(s >= k for s, k in zip(window.strides, window.spans, strict=True))
    zeros = ops.zeros((size,), dy)
    scattered = ops.op(
        "ScatterElements", zeros, where, ops.reshape(dy, (flat,)), axis=0, reduction=None if apart else "add"
    )
    return [ops.reshape(scattered, g.shape())]


def _indices(g: GradientContext) -> Value:
    node = g.node
    if len(node.outputs) < 2:
        node.resize_outputs(2)
    out = node.outputs[1]
    out.name = out.name or g.ops.fresh_name()
    g.ops.facts.shapes[out] = g.ops.shape(g.y)
    g.ops.facts.dtypes[out] = int(ir.DataType.INT64)
    return out


@rule("AveragePool")
def average_pool(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """Each input receives dy / count from every window it is in: a transposed convolution with ones."""
    ops, shape = g.ops, g.shape()
    out = ops.shape(dy)[2:]
    window = read_window(g, g.ints("kernel_shape"), shape[2:], out)
    counts = _counts(window, shape[2:], out, bool(g.integer("count_include_pad")))
    if np.all(counts == counts.flat[0]):
        dy = ops.mul(dy, 1.0 / float(counts.flat[0]))
    else:
        dy = ops.mul(dy, ops.const((1.0 / counts).astype(np.float32)))
    if window.plain:
        return [_repeat(ops, dy, window.strides, shape)]
    return [_spread_ones(ops, dy, window, shape)]


def _counts(window: PoolWindow, large: Shape, small: Shape, include_pad: bool) -> Array:
    """How many elements each window averages over. A last window reaching past the padding counts none there."""
    per_axis = []
    for i in range(len(small)):
        low, high = (-window.before[i], large[i] + window.after[i]) if include_pad else (0, large[i])
        starts = np.arange(small[i]) * window.strides[i] - window.before[i]
        taps = starts[:, None] + np.arange(window.kernel[i]) * window.dilations[i]
        per_axis.append(((taps >= low) & (taps < high)).sum(1))
    total: np.ndarray = per_axis[0].astype(np.float64)
    for counts in per_axis[1:]:
        total = total[..., None] * counts
    return total


def _repeat(ops: Ops, dy: Value, steps: tuple[int, ...], shape: Shape) -> Value:
    """Each element fills its own block; what the windows did not reach at the end gets zeros."""
    lead, spatial = ops.shape(dy)[:2], ops.shape(dy)[2:]
    apart = [*lead, *itertools.chain.from_iterable((n, 1) for n in spatial)]
    filled = [*lead, *itertools.chain.from_iterable(zip(spatial, steps, strict=True))]
    blocks = ops.expand(ops.reshape(dy, apart), tuple(filled))
    whole = ops.reshape(blocks, [*lead, *(n * s for n, s in zip(spatial, steps, strict=True))])
    rest = [n - m for n, m in zip(shape, ops.shape(whole), strict=True)]
    return ops.pad(whole, [0] * len(shape), rest)


def _spread_ones(ops: Ops, dy: Value, window: PoolWindow, shape: Shape) -> Value:
    n, c, *small = ops.shape(dy)
    planes = ops.reshape(dy, (n * c, 1, *small))
    ones = ops.const(np.ones((1, 1, *window.kernel), np.float32))
    full = ops.op(
        "ConvTranspose", planes, ones, strides=window.strides, dilations=window.dilations,
        kernel_shape=window.kernel,
    )  # fmt: skip
    have = ops.shape(full)[2:]
    after = [want + before - have[i] for i, (want, before) in enumerate(zip(shape[2:], window.before, strict=True))]
    cropped = ops.pad(full, [0, 0, *(-b for b in window.before)], [0, 0, *after])
    return ops.reshape(cropped, shape)


@rule("GlobalAveragePool")
def global_average_pool(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    _n, _c, *spatial = g.shape()
    return [g.ops.expand(g.ops.mul(dy, 1.0 / float(np.prod(spatial))), g.shape())]


@rule("GlobalMaxPool")
def global_max_pool(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [to_winners(g.ops, g.x(), g.y, dy, list(range(2, g.ops.rank(g.x()))))]


def to_winners(ops: Ops, x: Value, y: Value, dy: Value, axes: list[int]) -> Value:
    """dy, in equal shares, to the elements that equal the extremum y (y and dy with the axes kept)."""
    mask = ops.cast(ops.op("Equal", x, y), dy)
    return ops.mul(mask, ops.div(dy, ops.sum(mask, axes, keepdims=True)))
