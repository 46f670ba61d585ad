"""Convolutions and pools: windows that slide over any number of spatial axes, at known shapes.

Of a convolution with g groups: x (N, C, *I), w (M, C / g, *K), y (N, M, *O).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import GradientContext, Gradients, rule
from prunecli.model.shape_inference import Shape

Value = ir.Value


@dataclass(frozen=True)
class PoolWindow:
    """A sliding window over n spatial axes. `before`/`after` are the pads, in elements; `groups` those of a Conv."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int = 1

    @property
    def spans(self) -> tuple[int, ...]:
        """Length covered by the dilated kernel."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> list[int]:
        return [*self.before, *self.after]

    @property
    def plain(self) -> bool:
        """Every input element lies in exactly one window: no overlap, no gap, no padding."""
        return self.kernel == self.strides and not any(self.pads) and set(self.dilations) <= {1}


def read_window(g: GradientContext, kernel: Sequence[int], large: Shape, small: Shape) -> PoolWindow:
    """The window that slides over `large` (spatial lengths) and yields `small`; a transposed convolution makes `large`
    of `small`. Pads that `auto_pad` or `output_shape` leaves open follow from the lengths."""
    n, mode = len(kernel), g.text("auto_pad", "NOTSET")
    pads = g.ints("pads", [0] * (2 * n)) if mode == "NOTSET" else (0,) * (2 * n)
    window = PoolWindow(
        tuple(kernel), g.ints("strides", [1] * n), g.ints("dilations", [1] * n), before=pads[:n], after=pads[n:],
        groups=g.integer("group", 1),
    )  # fmt: skip
    if mode in ("NOTSET", "VALID") and not g.ints("output_shape"):
        return window
    lengths = zip(small, window.strides, g.ints("output_padding", [0] * n), window.spans, large, strict=True)
    totals = [max(0, (o - 1) * stride + extra + span - i) for o, stride, extra, span, i in lengths]
    less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
    return replace(window, before=before, after=after)


@rule("Conv")
def conv(g: GradientContext, dy: Value) -> Gradients:
    """dx: a Conv with flipped weights, or a ConvTranspose; dw: a product per place of the kernel; dbias = sum(dy)."""
    window = read_window(g, g.shape(1)[2:], g.shape(0)[2:], small=g.ops.shape(dy)[2:])
    dx = _input_gradient(g.ops, dy, g.x(1), x=g.x(0), window=window) if g.needs(0) else None
    dw = weight_gradient(g.ops, g.x(0), dy, window=window) if g.needs(1) else None
    return [dx, dw, g.ops.channel_sum(dy) if g.needs(2) else None]


@rule("ConvTranspose")
def conv_transpose(g: GradientContext, dy: Value) -> Gradients:
    """The transpose of a Conv from y to x with the same weights: its gradients with the roles exchanged."""
    ops = g.ops
    window = read_window(g, g.shape(1)[2:], ops.shape(dy)[2:], small=g.shape(0)[2:])
    dx = _conv(ops, dy, g.x(1), window=window) if g.needs(0) else None
    dw = weight_gradient(ops, dy, g.x(0), window=window) if g.needs(1) else None
    return [dx, dw, ops.channel_sum(dy) if g.needs(2) else None]


def _conv(ops: Ops, x: Value, w: Value, window: PoolWindow) -> Value:
    return ops.op("Conv", x, w, **_attributes(window))


def _attributes(window: PoolWindow) -> dict[str, Any]:
    return {
        "strides": window.strides, "dilations": window.dilations, "pads": window.pads, "kernel_shape": window.kernel,
        "group": window.groups,
    }  # fmt: skip


def _input_gradient(ops: Ops, dy: Value, w: Value, x: Value, window: PoolWindow) -> Value:
    """Stride 1: a Conv with flipped, transposed weights. Otherwise the transposed convolution."""
    pads = [[s - 1 - p for s, p in zip(window.spans, side, strict=True)] for side in (window.before, window.after)]
    if set(window.strides) == {1} and min(map(min, pads)) >= 0:
        back = replace(window, before=tuple(pads[0]), after=tuple(pads[1]))
        return _conv(ops, dy, _flipped(ops, w, window.groups), window=back)
    if set(window.kernel) == {1} and not any(window.pads):
        return _pointwise_strided(ops, dy, w, x=x, window=window)
    padded = [i + b + a for i, b, a in zip(ops.shape(x)[2:], window.before, window.after, strict=True)]
    lengths = zip(padded, ops.shape(dy)[2:], window.strides, window.spans, strict=True)
    rest = [i - ((o - 1) * s + span) for i, o, s, span in lengths]
    return ops.op("ConvTranspose", dy, w, **_attributes(window), output_padding=rest)


def _flipped(ops: Ops, w: Value, groups: int) -> Value:
    """(M, C/g, *K) -> (C, M/g, *K), every spatial axis reversed."""
    m, c, *kernel = ops.shape(w)
    axes = [2 + i for i, k in enumerate(kernel) if k > 1]
    if axes:
        w = ops.slice(w, axes, [-1] * len(axes), ends=[-(1 << 62)] * len(axes), steps=[-1] * len(axes))
    if groups == 1:
        return ops.transpose(w, [1, 0, *range(2, 2 + len(kernel))])
    split = ops.reshape(w, (groups, m // groups, c, *kernel))
    swapped = ops.transpose(split, [0, 2, 1, *range(3, 3 + len(kernel))])
    return ops.reshape(swapped, (groups * c, m // groups, *kernel))


def _pointwise_strided(ops: Ops, dy: Value, w: Value, x: Value, window: PoolWindow) -> Value:
    """A 1x1 kernel reads every s-th position only: a stride-1 product, then zeros in between."""
    one = (1,) * len(window.kernel)
    product = _conv(ops, dy, _flipped(ops, w, window.groups), window=replace(window, strides=one, dilations=one))
    return spread(ops, product, window.strides, lengths=ops.shape(x)[2:])


def spread(ops: Ops, value: Value, steps: tuple[int, ...], lengths: tuple[int, ...]) -> Value:
    """Put zeros between the elements of the last axes: position i goes to i * step; cut or pad to `lengths`."""
    shape = ops.shape(value)
    if len(steps) == 2 and len(shape) == 4 and shape[2] > 1 and shape[3] > 1:
        return _spread_planes(ops, value, steps, lengths=lengths)
    lead, rank = len(shape) - len(steps), len(shape)
    apart = [*shape[:lead], *itertools.chain.from_iterable((n, 1) for n in shape[lead:])]
    after = [0] * lead + list(itertools.chain.from_iterable((0, s - 1) for s in steps))
    wide = ops.pad(ops.reshape(value, apart), [0] * len(after), after)
    merged = [*shape[:lead], *(n * s for n, s in zip(shape[lead:], steps, strict=True))]
    rest = [0] * lead + [n - m for n, m in zip(lengths, merged[lead:], strict=True)]
    return ops.pad(ops.reshape(wide, merged), [0] * rank, rest)


def _spread_planes(ops: Ops, value: Value, steps: tuple[int, ...], lengths: tuple[int, ...]) -> Value:
    """Every element repeated by Resize, the copies zeroed by a mask: a tenth of the time of a Pad of many axes."""
    shape = ops.shape(value)
    scales = ops.const(np.array([1, 1, *steps], np.float32))
    wide = ops.op("Resize", value, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric",
                  nearest_mode="floor")  # fmt: skip
    merged = [n * s for n, s in zip(shape[2:], steps, strict=True)]
    mask = np.zeros(merged, np.float32)
    mask[:: steps[0], :: steps[1]] = 1
    rest = [0, 0, *(n - m for n, m in zip(lengths, merged, strict=True))]
    return ops.pad(ops.mul(wide, ops.const(mask)), [0] * 4, rest)


def weight_gradient(ops: Ops, x: Value, dy: Value, window: PoolWindow) -> Value:
    """dw[m, c, k] = sum over n, o of dy[n, m, o] x[n, c, o stride + k dilation - pad]."""
    channels, groups = ops.shape(x)[1], window.groups
    if groups == channels and groups > 1:
        return _depthwise_gradient(ops, x, dy, window=window)
    if _by_image(ops, x, dy, window=window):
        return _image_products(ops, x, dy, window=window)
    x = ops.pad(x, [0, 0, *window.before], [0, 0, *window.after]) if groups > 1 else _channels_last(ops, x, window)
    dy_rows = _rows(ops, ops.transpose(dy, [1, 0, *range(2, ops.rank(dy))]), groups)
    (_, m, *out), c = ops.shape(dy), channels // groups
    taps = []
    for tap in itertools.product(*map(range, window.kernel)):
        starts = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        ends = [a + (o - 1) * s + 1 for a, o, s in zip(starts, out, window.strides, strict=True)]
        taps.append(_tap(ops, x, dy_rows, ends=(starts, ends), window=window))
    if len(taps) == 1:
        return ops.reshape(taps[0], (m, c, *window.kernel))
    stacked = ops.stack([ops.reshape(tap, (m, c)) for tap in taps])
    return ops.reshape(ops.transpose(stacked, [1, 2, 0]), (m, c, *window.kernel))


def _channels_last(ops: Ops, x: Value, window: PoolWindow) -> Value:
    """(N, *I, C), padded: what one tap saw is copied in long pieces, and is a matrix that needs no transposition."""
    last = ops.transpose(x, [0, *range(2, ops.rank(x)), 1])
    return ops.pad(last, [0, *window.before, 0], [0, *window.after, 0])


def _by_image(ops: Ops, x: Value, dy: Value, window: PoolWindow) -> bool:
    """A product per image needs no transposed copies, but a sum of the images' results: for 1x1 kernels, if small."""
    (_, m, *out), c = ops.shape(dy), ops.shape(x)[1]
    positions = int(np.prod(out, dtype=np.int64))
    return window.groups == 1 and set(window.kernel) == {1} and positions * (m + c) >= 4 * m * c


def _image_products(ops: Ops, x: Value, dy: Value, window: PoolWindow) -> Value:
    """dw = sum over n of dy[n] x[n]', both (channels, positions)."""
    (n, m, *out), c = ops.shape(dy), ops.shape(x)[1]
    x = ops.pad(x, [0, 0, *window.before], [0, 0, *window.after])
    axes = list(range(2, ops.rank(x)))
    ends = [(o - 1) * s + 1 for o, s in zip(out, window.strides, strict=True)]
    seen = ops.slice(x, axes, [0] * len(axes), ends=ends, steps=window.strides)
    products = ops.matmul(ops.reshape(dy, (n, m, -1)), ops.reshape(seen, (n, c, -1)), tb=True)
    return ops.reshape(ops.sum(products, [0]), (m, c, *window.kernel))


def _rows(ops: Ops, value: Value, groups: int) -> Value:
    """(C, N, *I) -> (C, L), or (groups, C / groups, L)."""
    channels, *rest = ops.shape(value)
    length = int(np.prod(rest, dtype=np.int64))
    return ops.reshape(value, (channels, length) if groups == 1 else (groups, channels // groups, length))


def _tap(ops: Ops, x: Value, dy_rows: Value, ends: tuple[list[int], list[int]], window: PoolWindow) -> Value:
    """One kernel position: what it saw of x, between `ends`, times dy, as one product over batch and positions."""
    first = 1 if window.groups == 1 else 2
    seen = ops.slice(x, range(first, first + len(window.kernel)), *ends, window.strides)
    if window.groups == 1:
        return ops.matmul(dy_rows, ops.reshape(seen, (ops.shape(dy_rows)[1], ops.shape(x)[-1])))
    by_channel = ops.transpose(seen, [1, 0, *range(2, ops.rank(seen))])
    return ops.matmul(dy_rows, _rows(ops, by_channel, window.groups), tb=True)


def _depthwise_gradient(ops: Ops, x: Value, dy: Value, window: PoolWindow) -> Value:
    """One filter per channel: a convolution of each image plane with its own dy plane as the kernel.

    The kernel of that convolution is dy, its stride the dilation and its dilation the stride.
    """
    (n, c, *plane), (_, m, *kernel) = ops.shape(x), ops.shape(dy)
    if m != c:
        return _multiplied_depthwise(ops, x, dy, window=window)
    # the window may leave a rest at the end that no tap saw: shrink the padding (or crop) by it
    seen = [(o - 1) * s + span for o, s, span in zip(kernel, window.strides, window.spans, strict=True)]
    after = [want - have - before for want, have, before in zip(seen, plane, window.before, strict=True)]
    planes = ops.reshape(x, (1, n * c, *plane))
    if min(after) < 0:
        cut = [min(a, 0) for a in after]
        planes, after = ops.pad(planes, [0] * (2 + len(cut)), [0, 0, *cut]), [max(a, 0) for a in after]
    filters = ops.reshape(dy, (n * c, 1, *kernel))
    swapped = PoolWindow(
        tuple(kernel), window.dilations, window.strides, before=window.before, after=tuple(after), groups=n * c
    )
    taps = _conv(ops, planes, filters, window=swapped)
    per_image = ops.reshape(taps, (n, c * int(np.prod(window.kernel))))
    return ops.reshape(ops.sum(per_image, [0]), (c, 1, *window.kernel))


def _multiplied_depthwise(ops: Ops, x: Value, dy: Value, window: PoolWindow) -> Value:
    """Several filters per channel: one depthwise gradient per multiple."""
    c, (n, m, *spatial) = ops.shape(x)[1], ops.shape(dy)
    parts = ops.reshape(dy, (n, c, m // c, *spatial))
    results = []
    for k in range(m // c):
        part = ops.reshape(ops.slice(parts, [2], [k], [k + 1]), (n, c, *spatial))
        results.append(_depthwise_gradient(ops, x, part, window=window))
    return ops.reshape(ops.concat(results, 1), (m, 1, *window.kernel))


@rule("MaxPool")
def max_pool(g: GradientContext, dy: Value, dindices: Value | None = None) -> Gradients:
    """dx is dy scattered to the winners' flat positions (the operator's second output), summed where they meet."""
    ops = g.ops
    if g.integer("storage_order"):
        raise g.refuse("storage_order 1 is not supported")
    flat = ops.size(dy)
    where = ops.reshape(_indices(g), (flat,))
    window = read_window(g, g.ints("kernel_shape"), g.shape()[2:], small=ops.shape(dy)[2:])
    apart = all(s >= k for s, k in zip(window.strides, window.spans, strict=True))
    zeros, rows = ops.zeros((ops.size(g.x()),), dy), ops.reshape(dy, (flat,))
    scattered = ops.op("ScatterElements", zeros, where, rows, axis=0, reduction=None if apart else "add")
    return ops.reshape(scattered, g.shape())


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
def average_pool(g: GradientContext, dy: Value) -> Gradients:
    """Each input receives dy / count from every window it is in: a transposed convolution with ones."""
    ops, shape = g.ops, g.shape()
    out = ops.shape(dy)[2:]
    window = read_window(g, g.ints("kernel_shape"), shape[2:], small=out)
    counts = _counts(window, shape[2:], out, include_pad=bool(g.integer("count_include_pad")))
    if np.all(counts == counts.flat[0]):
        dy = ops.mul(dy, 1.0 / float(counts.flat[0]))
    else:
        dy = ops.mul(dy, ops.const((1.0 / counts).astype(np.float32)))
    if window.plain:
        return _repeat(ops, dy, window.strides, shape=shape)
    return _spread_ones(ops, dy, window, shape=shape)


def _counts(window: PoolWindow, large: Shape, small: Shape, include_pad: bool) -> Array:
    """How many elements each window averages over. A last window reaching past the padding counts none there."""
    per_axis = []
    for i in range(len(small)):
        low, high = (-window.before[i], large[i] + window.after[i]) if include_pad else (0, large[i])
        starts = np.arange(small[i]) * window.strides[i] - window.before[i]
        taps = starts[:, None] + np.arange(window.kernel[i]) * window.dilations[i]
        per_axis.append(((taps >= low) & (taps < high)).sum(1))
    total: Array = functools.reduce(np.multiply.outer, per_axis).astype(np.float64)
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
    full = ops.op("ConvTranspose", planes, ones, strides=window.strides, dilations=window.dilations,
                  kernel_shape=window.kernel)  # fmt: skip
    lengths = zip(shape[2:], window.before, ops.shape(full)[2:], strict=True)
    after = [want + before - have for want, before, have in lengths]
    cropped = ops.pad(full, [0, 0, *(-b for b in window.before)], [0, 0, *after])
    return ops.reshape(cropped, shape)


@rule("GlobalAveragePool")
def global_average_pool(g: GradientContext, dy: Value) -> Gradients:
    _n, _c, *spatial = g.shape()
    return g.ops.expand(g.ops.mul(dy, 1.0 / float(np.prod(spatial))), g.shape())


@rule("GlobalMaxPool")
def global_max_pool(g: GradientContext, dy: Value) -> Gradients:
    return to_winners(g.ops, g.x(), g.y, dy=dy, axes=list(range(2, g.ops.rank(g.x()))))


def to_winners(ops: Ops, x: Value, y: Value, dy: Value, axes: list[int]) -> Value:
    """dy, in equal shares, to the elements that equal the extremum y (y and dy with the axes kept)."""
    mask = ops.cast(ops.op("Equal", x, y), dy)
    return ops.mul(mask, ops.div(dy, ops.sum(mask, axes, keepdims=True)))
