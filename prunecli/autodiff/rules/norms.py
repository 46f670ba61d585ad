"""Normalisations. xhat is the normalised input, r = 1 / sqrt(var + epsilon).

Batch statistics: Ioffe and Szegedy 2015; layers: Ba et al. 2016; groups: Wu and He 2018; RMS: Zhang and Sennrich 2019.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import ZERO, GradientContext, Gradients, rule

Value = ir.Value


@rule("BatchNormalization")
def batch_norm(g: GradientContext, dy: Value, *dstats: Value | None) -> Gradients:
    """Frozen: y = a (x - mean) + bias with a = scale r. In training mode the statistics depend on x too."""
    if g.integer("training_mode"):
        if any(d is not None for d in dstats):
            raise g.refuse("its batch statistics feed the loss")
        return _batch_norm_training(g, dy)
    ops = g.ops
    rstd = _inverse_deviation(g, g.x(4))
    a = ops.mul(g.x(1), rstd)
    dx = ops.mul(dy, _per_channel(g, a)) if g.needs(0) else None
    dscale = dbias = dmean = dvar = None
    if g.needs(2) or g.needs(3):
        dbias = ops.channel_sum(dy)
    if g.needs(1) or g.needs(4):
        centred = ops.sub(g.x(0), _per_channel(g, g.x(3)))
        dscale = ops.mul(ops.channel_sum(ops.mul(dy, centred)), rstd)
        dvar = ops.mul(ops.mul(ops.mul(dscale, a), rstd), -0.5)
    if g.needs(3) and dbias is not None:
        dmean = ops.neg(ops.mul(a, dbias))
    return [dx, dscale, dbias, dmean, dvar]


def _inverse_deviation(g: GradientContext, variance: Value) -> Value:
    shifted = g.ops.add(variance, g.real("epsilon", 1e-5))
    return g.ops.op("Reciprocal", g.ops.op("Sqrt", shifted))


def _per_channel(g: GradientContext, value: Value) -> Value:
    return g.ops.reshape(value, (-1, *[1] * (g.ops.rank(g.x(0)) - 2)))


def _batch_norm_training(g: GradientContext, dy: Value) -> Gradients:
    """dx = a (dy - mean(dy) - xhat mean(dy xhat)), written as two channel-wise scale-and-shift passes."""
    ops, x = g.ops, g.x(0)
    count = ops.size(x) // ops.shape(x)[1]
    mean, variance = _batch_statistics(g)
    rstd = _inverse_deviation(g, variance)
    centred = ops.sub(x, _per_channel(g, mean))
    dscale = ops.mul(ops.channel_sum(ops.mul(dy, centred)), rstd)
    dbias = ops.channel_sum(dy)
    a = ops.mul(g.x(1), rstd)
    slope = ops.mul(ops.mul(ops.mul(a, rstd), dscale), -1.0 / count)
    shift = ops.mul(ops.mul(a, dbias), -1.0 / count)
    dx = ops.add(ops.mul(dy, _per_channel(g, a)), _scale_shift(ops, centred, slope, shift=shift))
    return [dx, dscale, dbias, ZERO, ZERO]


def _scale_shift(ops: Ops, x: Value, slope: Value, shift: Value) -> Value:
    """slope x + shift per channel, in one pass: BatchNormalization with mean 0 and variance 1."""
    plain = [ops.const(np.full(ops.shape(slope), number, np.float32)) for number in (0, 1)]
    return ops.op("BatchNormalization", x, slope, shift, *plain, epsilon=0.0)


def _batch_statistics(g: GradientContext) -> tuple[Value, Value]:
    """The running outputs are the batch's own statistics when the momentum is 0."""
    if len(g.node.outputs) == 3 and g.real("momentum", 0.9) == 0.0:
        return g.node.outputs[1], g.node.outputs[2]
    ops, x = g.ops, g.x(0)
    axes = [0, *range(2, ops.rank(x))]
    mean = ops.mean(x, axes)
    centred = ops.sub(x, _per_channel(g, mean))
    return mean, ops.mean(ops.square(centred), axes)


@rule("LayerNormalization")
def layer_norm(g: GradientContext, dy: Value, *dstats: Value | None) -> Gradients:
    """dx = r (w - mean(w) - xhat mean(w xhat)), w = dy scale; dscale = sum(dy xhat); dbias = sum(dy)."""
    if any(d is not None for d in dstats):
        raise g.refuse("its statistics feed the loss")
    axis = g.axis(-1)
    mean, rstd = _layer_statistics(g, axis)
    xhat = g.ops.mul(g.ops.sub(g.x(0), mean), rstd)
    return [*_normalised(g, dy, xhat, rstd=rstd), dy]


def _layer_statistics(g: GradientContext, axis: int) -> tuple[Value, Value]:
    """Mean and r as the operator's second and third outputs, added to the node if it lacks them."""
    ops, node, x = g.ops, g.node, g.x(0)
    node.resize_outputs(3)
    shape = ops.shape(x)
    for out in node.outputs[1:]:
        out.name = out.name or ops.fresh_name()
        ops.facts.shapes[out] = (*shape[:axis], *[1] * (len(shape) - axis))
        ops.facts.dtypes[out] = int(ir.DataType.FLOAT)
    return node.outputs[1], node.outputs[2]


def _normalised(g: GradientContext, dy: Value, xhat: Value, rstd: Value, centre: bool = True) -> tuple[Value, Value]:
    """(dx, dy xhat) of y = scale xhat normalised over `axis` and after. The two means are matrix-vector products."""
    ops, scale, axis, shape = g.ops, g.x(1), g.axis(-1), g.shape()
    width = int(np.prod(shape[axis:], dtype=np.int64))
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    column = ops.reshape(ops.mul(ops.expand(scale, shape[axis:]), 1.0 / width), (width, 1))
    product = ops.mul(dy, xhat)

    def weighted_mean(value: Value) -> Value:
        flat = ops.matmul(ops.reshape(value, (rows, width)), column)
        return ops.reshape(flat, (*shape[:axis], *[1] * (len(shape) - axis)))

    inner = ops.sub(ops.mul(dy, scale), ops.mul(xhat, weighted_mean(product)))
    if centre:
        inner = ops.sub(inner, weighted_mean(dy))
    return ops.mul(inner, rstd), product


@rule("RMSNormalization")
def rms_norm(g: GradientContext, dy: Value) -> Gradients:
    """dx = r (w - xhat mean(w xhat)), xhat = x r, r = 1 / sqrt(mean(x^2) + epsilon)."""
    ops, x = g.ops, g.x(0)
    square = ops.mean(ops.square(x), range(g.axis(-1), ops.rank(x)), keepdims=True)
    rstd = _inverse_deviation(g, square)
    return _normalised(g, dy, ops.mul(x, rstd), rstd=rstd, centre=False)


@rule("InstanceNormalization")
def instance_norm(g: GradientContext, dy: Value) -> Gradients:
    """Each (image, channel) on its own: a LayerNormalization of the flattened plane gives xhat and r."""
    ops, (n, c, *_) = g.ops, g.shape()
    flat = (n, c, ops.size(g.x(0)) // (n * c))
    xhat, _, rstd = ops.many(
        "LayerNormalization", ops.reshape(g.x(0), flat), ops.const(np.ones(flat[2], np.float32)), outputs=3,
        axis=-1, epsilon=g.real("epsilon", 1e-5),
    )  # fmt: skip
    dy3 = ops.reshape(dy, flat)
    product = ops.mul(dy3, xhat)
    per_plane, per_plane_xhat = ops.sum(dy3, [2], keepdims=True), ops.sum(product, [2], keepdims=True)
    rest = ops.add(per_plane, ops.mul(xhat, per_plane_xhat))
    factor = ops.mul(rstd, ops.reshape(g.x(1), (1, c, 1)))
    dx = ops.mul(ops.sub(dy3, ops.mul(rest, 1.0 / flat[2])), factor)
    dscale, dbias = ops.sum(per_plane_xhat, [0, 2]), ops.sum(per_plane, [0, 2])
    return [ops.reshape(dx, g.shape()), dscale, dbias]


@rule("LpNormalization")
def lp_norm(g: GradientContext, dy: Value) -> Gradients:
    """y = x / |x|_p: dx = (dy - d|x| sum(dy y)) / |x|, with d|x| = y for p = 2 and sign(x) for p = 1."""
    ops, x, axis = g.ops, g.x(), g.axis(-1)
    two = g.integer("p", 2) == 2
    length = ops.op("ReduceL2" if two else "ReduceL1", x, ops.ints([axis]), keepdims=1)
    total = ops.sum(ops.mul(dy, g.y), [axis], keepdims=True)
    direction = g.y if two else ops.op("Sign", x)
    return ops.div(ops.sub(dy, ops.mul(direction, total)), length)
