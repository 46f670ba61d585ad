"""How an operator multiplies a weight with data: output = weight . columns(data) + constant.

The weight is read as (batch, rows, K) with K = taps x cols, taps outermost, as `Layout` has them; `columns` brings the
data into (batch, K, R): one column per output position, and `targets` the output into (batch, rows, R), in the same
order. What least squares, Optimal Brain Surgeon and Gram matrices need follows from these two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.model import attrs
from prunecli.model.weights import Use

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Contraction:
    """One use of a weight.

    Attributes:
        data: the value that is multiplied with the weight.
        output: the value that comes out, None where no value holds the product alone (recurrent gates).
        columns: (data, shape of the output, positions or None) -> (batch, K, R) float32.
        targets: (output, positions or None) -> (batch, rows, R) float32.
        positions: shape of the output -> how many R there are.
        bias: the node's input that is added to every row, None if there is none.
    """

    data: str
    output: str | None
    columns: Callable[[Array, Shape, Array | None], Array]
    targets: Callable[[Array, Array | None], Array]
    positions: Callable[[Shape], int]
    bias: int | None = None


Builder = Callable[[Use], Contraction | None]
CONTRACTIONS: dict[str, Builder] = {}


def contracts(*ops: str) -> Callable[[Builder], Builder]:
    """Register how operators contract the weight that a `Use` names."""

    def add(function: Builder) -> Builder:
        CONTRACTIONS.update(dict.fromkeys(ops, function))
        return function

    return add


def contraction(use: Use) -> Contraction | None:
    """How this use multiplies its weight with computed data; None where that is not known."""
    build = CONTRACTIONS.get(use.op) if use.kind == "weight" and use.node.domain == "" else None
    try:
        return build(use) if build else None
    except attrs.UnreadableAttributeError:
        return None


def _name(node: ir.Node, index: int) -> str | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.name if value is not None and value.name else None


def _added(node: ir.Node, index: int) -> int | None:
    return index if _name(node, index) else None


def _picked(array: Array, positions: Array | None) -> Array:
    return array if positions is None else array[..., positions]


def _float(array: Array) -> Array:
    return np.asarray(array, np.float32)


@contracts("Conv")
def conv(use: Use) -> Contraction | None:
    """Y[n, m, o] = sum_{c, k} W[m, c, k] X[n, c, o s + k d - p]; W (M, C / g, *kernel)."""
    node, kernel = use.node, use.shape[2:]
    data, output = _name(node, 0), node.outputs[0].name
    if use.index != 1 or data is None or output is None:
        return None
    window = SlidingWindow.of(node, kernel)
    group = attrs.integer(node, "group", 1)

    def columns(x: Array, shape: Shape, positions: Array | None) -> Array:
        before = [window.pads(i, x.shape[2 + i], shape[2 + i])[0] for i in range(len(kernel))]
        starts = [window.strides[i] * np.arange(shape[2 + i]) - before[i] for i in range(len(kernel))]
        steps = [window.dilations[i] * np.arange(kernel[i]) for i in range(len(kernel))]
        return _windows(_float(x), starts, steps, group, positions)

    return Contraction(data, output, columns, _channels(group), _places, _added(node, 2))


@contracts("ConvTranspose")
def conv_transpose(use: Use) -> Contraction | None:
    """Y[n, m, i s + k d - p] += W[c, m, k] X[n, c, i]; W (C, M / g, *kernel): a convolution of X with zeros put
    between its positions, by the kernel read backwards."""
    node, kernel = use.node, use.shape[2:]
    data, output = _name(node, 0), node.outputs[0].name
    if use.index != 1 or data is None or output is None:
        return None
    window = SlidingWindow.of(node, kernel)
    group = attrs.integer(node, "group", 1)

    def columns(x: Array, shape: Shape, positions: Array | None) -> Array:
        spread = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], window.strides, strict=True))))
        spread = spread.astype(np.float32)
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in window.strides))] = x
        cut = [window.transposed_pad(i, x.shape[2 + i], shape[2 + i]) for i in range(len(kernel))]
        starts = [np.arange(shape[2 + i]) + cut[i] for i in range(len(kernel))]
        steps = [-window.dilations[i] * np.arange(kernel[i]) for i in range(len(kernel))]
        return _windows(spread, starts, steps, group, positions)

    return Contraction(data, output, columns, _channels(group), _places, _added(node, 2))


@dataclass(frozen=True)
class SlidingWindow:
    """The attributes of a convolution, one entry per spatial axis; `given` are its pads, befores first."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    given: Shape
    auto: str

    @classmethod
    def of(cls, node: ir.Node, kernel: Shape) -> SlidingWindow:
        ones = (1,) * len(kernel)
        return cls(
            kernel,
            attrs.integers(node, "strides") or ones,
            attrs.integers(node, "dilations") or ones,
            attrs.integers(node, "pads") or (0,) * (2 * len(kernel)),
            attrs.text(node, "auto_pad", "NOTSET"),
        )

    def reach(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def pads(self, axis: int, size: int, out: int) -> tuple[int, int]:
        """Padding of a convolution before and after the axis (operator Conv, attribute auto_pad)."""
        if self.auto in ("NOTSET", "VALID"):
            given = self.given if self.auto == "NOTSET" else (0,) * len(self.given)
            return given[axis], given[axis + len(self.kernel)]
        total = max((out - 1) * self.strides[axis] + self.reach(axis) - size, 0)
        return self._halves(total)

    def _halves(self, total: int) -> tuple[int, int]:
        small = total // 2
        return (small, total - small) if self.auto == "SAME_UPPER" else (total - small, small)

    def transposed_pad(self, axis: int, size: int, out: int) -> int:
        """What is cut off before the axis of a transposed convolution, whose padding follows from its output where
        that is fixed (operator ConvTranspose, attributes output_shape and auto_pad)."""
        if self.auto == "VALID":
            return 0
        if self.auto == "NOTSET":
            return self.given[axis]
        total = (size - 1) * self.strides[axis] + self.reach(axis) - out
        return self._halves(max(total, 0))[0]


def _windows(x: Array, starts: list[Array], steps: list[Array], group: int, positions: Array | None) -> Array:
    """x (N, C, *space) at starts + steps, zero outside: (group, taps x C / group, R), R in the order (n, *out)."""
    count, channels, space = x.shape[0], x.shape[1], x.shape[2:]
    before = [max(0, -int(s.min() + t.min())) for s, t in zip(starts, steps, strict=True)]
    after = [max(0, int(s.max() + t.max()) + 1 - n) for s, t, n in zip(starts, steps, space, strict=True)]
    padded = np.zeros((channels, count, *(b + n + a for b, n, a in zip(before, space, after, strict=True))), np.float32)
    inside = tuple(slice(b, b + n) for b, n in zip(before, space, strict=True))
    padded[(slice(None), slice(None), *inside)] = x.swapaxes(0, 1)
    strides = [math.prod(padded.shape[3 + i :]) for i in range(len(space))]
    base = np.arange(count) * math.prod(padded.shape[2:])
    for start, pad, stride in zip(starts, before, strides, strict=True):
        base = base[..., None] + (start + pad) * stride
    flat = base.reshape(-1) if positions is None else base.reshape(-1)[positions]
    offsets = [sum(int(o) * s for o, s in zip(tap, strides, strict=True)) for tap in itertools.product(*steps)]
    lines = padded.reshape(group, channels // group, -1)
    out = np.empty((group, len(offsets), channels // group, flat.size), np.float32)
    for tap, offset in enumerate(offsets):
        np.take(lines, flat + offset, axis=2, out=out[:, tap])
    return out.reshape(group, -1, flat.size)


def _places(shape: Shape) -> int:
    """Of (N, M, *space): samples times places."""
    return shape[0] * math.prod(shape[2:])


def _channels(group: int) -> Callable[[Array, Array | None], Array]:
    """(N, M, *space) -> (group, M / group, R)."""

    def targets(y: Array, positions: Array | None) -> Array:
        rows = y.reshape(*y.shape[:2], -1).swapaxes(0, 1).reshape(group, y.shape[1] // group, -1)
        return _float(_picked(rows, positions))

    return targets


@contracts("Gemm")
def gemm(use: Use) -> Contraction | None:
    """Y = alpha A' B' + beta C, the weight being A or B."""
    node = use.node
    if use.index > 1:
        return None
    data, output = _name(node, 1 - use.index), node.outputs[0].name
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    flipped = bool(attrs.integer(node, "transB" if use.index == 0 else "transA", 0))
    if data is None or output is None or alpha == 0:
        return None

    def columns(x: Array, shape: Shape, positions: Array | None) -> Array:
        inner_last = (use.index == 1) != flipped  # A (M, K), or B' (K, N)
        return _picked(_float(x).T if inner_last else _float(x), positions)[None] * np.float32(alpha)

    def targets(y: Array, positions: Array | None) -> Array:
        return _picked(_float(y).T if use.index == 1 else _float(y), positions)[None]

    added = _added(node, 2) if beta == 1 and use.index == 1 else None
    return Contraction(data, output, columns, targets, lambda shape: shape[0 if use.index == 1 else 1], added)


@contracts("MatMul")
def matmul(use: Use) -> Contraction | None:
    """Y = X W with X (..., M, K), W (..., K, N), or Y = W X; batch axes broadcast. A vector is a matrix of one row."""
    node = use.node
    data, output = _name(node, 1 - use.index), node.outputs[0].name
    if data is None or output is None or len(use.shape) < 2:
        return None
    stack = () if all(size == 1 for size in use.shape[:-2]) else use.shape[:-2]
    if 1 in stack:  # broadcast along some of its batch axes only
        return None

    def columns(x: Array, shape: Shape, positions: Array | None) -> Array:
        x = _as_matrix(_float(x), left=use.index == 1)
        return _stacked(x if use.index == 0 else x.swapaxes(-1, -2), stack, positions)

    def targets(y: Array, positions: Array | None) -> Array:
        y = _float(y)
        if use.index == 1:
            y = (y if y.ndim > len(stack) + 1 else y[..., None, :]).swapaxes(-1, -2)
        elif y.ndim == len(stack) + 1:
            y = y[..., None]
        return _stacked(y, stack, positions)

    def positions_of(shape: Shape) -> int:
        rows = use.shape[-1] if use.index == 1 else use.shape[-2]
        return math.prod(shape) // max(math.prod(stack) * rows, 1)

    return Contraction(data, output, columns, targets, positions_of)


def _as_matrix(x: Array, left: bool) -> Array:
    if x.ndim > 1:
        return x
    return x[None, :] if left else x[:, None]


def _stacked(x: Array, stack: Sequence[int], positions: Array | None) -> Array:
    """(..., K, R) with axes that broadcast to `stack` before the last two -> (prod(stack), K, all else x R)."""
    depth = len(stack)
    if x.ndim - 2 < depth:
        x = x.reshape((1,) * (depth - x.ndim + 2) + x.shape)
    lead = x.ndim - 2 - depth
    x = np.broadcast_to(x, (*x.shape[:lead], *stack, *x.shape[-2:]))
    moved = np.moveaxis(x, range(lead), range(depth + 1, depth + 1 + lead))
    return _picked(moved.reshape(math.prod(stack), x.shape[-2], -1), positions)
