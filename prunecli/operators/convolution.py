"""Convolutions: a kernel that moves over the data.

X (N, C, *I), W (M, C / g, *K) -> Y (N, M, *O)      of a transposed convolution W (C, M / g, *K)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

import prunecli.operators.layout as layout
from prunecli.arrays import Array
from prunecli.operators.attributes import integer, integers, text
from prunecli.operators.layout import Layout, Shape
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    Contraction,
    ContractionRule,
    Demand,
    DemandReading,
    DemandRule,
    MacsRule,
    Operator,
    Refused,
    Role,
    RoleRule,
    ShapeOf,
    Standard,
    Sum,
    bias,
    name_of,
    register,
    weight,
)

Arrangement = Callable[[Shape, int], Layout]


def _group(node: ir.Node) -> int:
    return integer(node, "group", 1)


def _role(arranged: Arrangement, added: int = 2) -> RoleRule:
    """W at input 1, a bias at input `added`."""

    def role(node: ir.Node, index: int, shape: Shape) -> Role | Refused | None:
        if index == added:
            return bias(shape)
        if index != 1:
            return None
        group = _group(node)
        if len(shape) < 3 or group < 1 or shape[0] % group:
            return Refused(f"its shape {list(shape)} does not fit {node.op_type} with group={group}")
        return weight(arranged(shape, group))

    return role


def _macs(kernel: int) -> MacsRule:
    """prod(Y) * C/g * prod(k), with W (M, C/g, k...) at input `kernel`."""

    def macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
        return math.prod(out) * math.prod(shape(kernel)[1:])

    return macs


def _transposed_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """prod(X) * M/g * prod(k), with W (C, M/g, k...): every input element meets every tap once."""
    return math.prod(shape(0)) * math.prod(shape(1)[1:])


def _demand(kernel: int, channels: Callable[[ir.Node, Shape], int]) -> DemandRule:
    """The rank and the channels of the data follow from the weight at input `kernel`."""

    def demand(asked: DemandReading) -> Demand:
        shape = asked.shape(kernel)
        if asked.index != 0 or shape is None or len(shape) < 3:
            return NO_DEMAND
        return Demand((None, channels(asked.node, shape), *(None,) * (len(shape) - 2)), True)

    return demand


def _channels(node: ir.Node, kernel: Shape) -> int:
    return kernel[1] * _group(node)


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
            integers(node, "strides") or ones,
            integers(node, "dilations") or ones,
            given=integers(node, "pads") or (0,) * (2 * len(kernel)),
            auto=text(node, "auto_pad", "NOTSET"),
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


Columns = Callable[[SlidingWindow, int, Array, Shape, "Array | None"], Array]
"""(window, groups, data, shape of the output, positions) -> (groups, taps x C / groups, R)."""


def _contraction(columns: Columns) -> ContractionRule:
    def contraction(node: ir.Node, index: int, shape: Shape) -> Contraction | None:
        data, output = name_of(node, 0), node.outputs[0].name
        if index != 1 or data is None or output is None:
            return None
        window, group = SlidingWindow.of(node, shape[2:]), _group(node)
        return Contraction(
            data,
            output,
            columns=lambda x, out, positions: columns(window, group, x, out, positions),
            targets=lambda y, positions: _rows(group, y, positions),
            positions=lambda out: out[0] * math.prod(out[2:]),
            channel=1 - len(shape),
            rank=len(shape),
            bias=2 if name_of(node, 2) else None,
            bias_place=2,
        )

    return contraction


def _columns(window: SlidingWindow, group: int, x: Array, out: Shape, positions: Array | None) -> Array:
    """Y[n, m, o] = sum_{c, k} W[m, c, k] X[n, c, o s + k d - p]."""
    axes = range(len(window.kernel))
    before = [window.pads(i, x.shape[2 + i], out[2 + i])[0] for i in axes]
    starts = [window.strides[i] * np.arange(out[2 + i]) - before[i] for i in axes]
    steps = [window.dilations[i] * np.arange(window.kernel[i]) for i in axes]
    return _windows(x, starts, steps, group=group, positions=positions)


def _transposed_columns(window: SlidingWindow, group: int, x: Array, out: Shape, positions: Array | None) -> Array:
    """Y[n, m, i s + k d - p] += W[c, m, k] X[n, c, i]: a convolution of X with zeros put between its positions, by the
    kernel read backwards."""
    axes = range(len(window.kernel))
    lengths = ((n - 1) * s + 1 for n, s in zip(x.shape[2:], window.strides, strict=True))
    spread = np.zeros((*x.shape[:2], *lengths), np.float32)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in window.strides))] = x
    cut = [window.transposed_pad(i, x.shape[2 + i], out[2 + i]) for i in axes]
    starts = [np.arange(out[2 + i]) + cut[i] for i in axes]
    steps = [-window.dilations[i] * np.arange(window.kernel[i]) for i in axes]
    return _windows(spread, starts, steps, group=group, positions=positions)


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


def _rows(group: int, y: Array, positions: Array | None) -> Array:
    """(N, M, *space) -> (group, M / group, R)."""
    rows = y.reshape(*y.shape[:2], -1).swapaxes(0, 1).reshape(group, y.shape[1] // group, -1)
    return np.asarray(rows if positions is None else rows[..., positions], np.float32)


def _sums(node: ir.Node, rank: Callable[[int], int]) -> Iterator[Sum]:
    yield Sum(weight=1, axis=1 - rank(1), data=0, data_axis=1 - rank(1), groups=_group(node))


def _transposed_sums(node: ir.Node, rank: Callable[[int], int]) -> Iterator[Sum]:
    yield Sum(weight=1, axis=-rank(1), data=0, data_axis=1 - rank(1))


def _first(node: ir.Node) -> int:
    """The axis of the weight that the output's channels lie on."""
    return 0


KERNEL_ATTRIBUTES = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
CONV = Operator(
    role=_role(layout.kernel),
    macs=_macs(1),
    contraction=_contraction(_columns),
    sums=_sums,
    rows=_first,
    demand=_demand(1, _channels),
    bias=2,
    kernel="sliding",
    blocked=True,
)
FUSED_CONV = replace(
    CONV, contraction=None, rows=None, blocked=False, standard=Standard("Conv", (0, 1, 2), KERNEL_ATTRIBUTES)
)
CONV_TRANSPOSE = Operator(
    role=_role(layout.transposed_kernel),
    macs=_transposed_macs,
    contraction=_contraction(_transposed_columns),
    sums=_transposed_sums,
    demand=_demand(1, lambda node, kernel: kernel[0]),
    bias=2,
    kernel="transposed",
)
QLINEAR_CONV = Operator(macs=_macs(3), demand=_demand(3, _channels), bias=8, quantised=True)

register(CONV, "Conv")
register(CONV_TRANSPOSE, "ConvTranspose")
register(Operator(role=_role(layout.kernel, added=3), macs=_macs(1)), "DeformConv")
register(Operator(macs=_macs(1)), "CausalConvWithState")
register(Operator(macs=_macs(1), demand=_demand(1, _channels), quantised=True), "ConvInteger")
register(QLINEAR_CONV, "QLinearConv")
register(FUSED_CONV, "FusedConv", domain=MICROSOFT)
register(Operator(role=_role(layout.kernel), on_cpu=False), "NhwcFusedConv", domain=MICROSOFT)
register(Operator(on_cpu=False), "NhwcConv", domain=MICROSOFT)
register(Operator(quantised=True), "QLinearConv QLinearConvTranspose", domain=MICROSOFT)
