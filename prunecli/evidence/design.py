"""Linear layers as least squares sees them: Y = X B with one row per position, per group of the layer.

    X   (groups, rows, taps * cols)    what each output position reads, taps before input channels
    B   (groups, taps * cols, outputs) the weight; of its canonical form (batch, rows, taps, cols)
    Y   (groups, rows, outputs)

Rows are samples times positions. A strided, padded or transposed convolution differs only in which inputs it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.model import attrs
from prunecli.model.layout import Layout
from prunecli.model.roles import Role, role_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Linear:
    """A node that multiplies computed data by one stored weight. `data` and `weight` are its input numbers; `bias`
    that of a bias it may have, None if the operator takes none; `layout` of the weight."""

    node: ir.Node
    data: int
    weight: int
    bias: int | None
    layout: Layout
    rows: Callable[[ir.Node, Array], Array]
    targets: Callable[[ir.Node, Array, int], Array]

    def matrix(self, weight: Array) -> Array:
        """B, float64, of the stored weight (of any number of kept positions)."""
        four = _layout(self.node, self.weight, weight.shape).canonical(np.asarray(weight, np.float64))
        return four.transpose(0, 2, 3, 1).reshape(four.shape[0], -1, four.shape[1])

    def stored(self, matrix: Array, shape: Sequence[int]) -> Array:
        """The inverse of `matrix`, in the stored order."""
        layout = _layout(self.node, self.weight, tuple(shape))
        groups, rows, taps, cols = layout.canonical_shape
        return layout.restore(matrix.reshape(groups, taps, cols, rows).transpose(0, 3, 1, 2))

    def x(self, data: Array) -> Array:
        """X, float32."""
        return self.rows(self.node, np.asarray(data, np.float32))

    def y(self, output: Array, groups: int) -> Array:
        """Y, float32."""
        return self.targets(self.node, np.asarray(output, np.float32), groups)


def _layout(node: ir.Node, index: int, shape: Sequence[int]) -> Layout:
    found = role_of(node, index, tuple(shape))
    assert isinstance(found, Role)
    return found.layout


# -- convolutions -------------------------------------------------------------------------------------


def _kernel(node: ir.Node) -> tuple[int, ...]:
    value = node.inputs[1]
    assert value is not None and value.const_value is not None
    return tuple(int(d) for d in value.const_value.shape.numpy()[2:])


def _steps(node: ir.Node, name: str, rank: int) -> tuple[int, ...]:
    return attrs.integers(node, name) or (1,) * rank


def conv_pads(node: ir.Node, space: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) per spatial axis, `auto_pad` resolved (ONNX operator Conv)."""
    kernel = _kernel(node)
    rank, mode = len(kernel), attrs.text(node, "auto_pad", "NOTSET")
    strides, dilations = _steps(node, "strides", rank), _steps(node, "dilations", rank)
    if mode == "VALID":
        return [(0, 0)] * rank
    if mode == "NOTSET":
        pads = attrs.integers(node, "pads") or (0,) * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    out = []
    for size, k, s, d in zip(space, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small = total // 2
        out.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return out


def _conv_rows(node: ir.Node, data: Array) -> Array:
    kernel, groups = _kernel(node), attrs.integer(node, "group", 1)
    strides = _steps(node, "strides", len(kernel))
    padded = np.pad(data, [(0, 0), (0, 0), *conv_pads(node, data.shape[2:])])
    return _windows(padded, kernel, strides, _steps(node, "dilations", len(kernel)), groups)


def _windows(
    data: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], groups: int
) -> Array:  # fmt: skip
    """(N, C, *space) -> (groups, N * positions, taps * C / groups)."""
    rank = len(kernel)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(data, spans, tuple(range(2, 2 + rank)))
    view = view[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
    view = view[(..., *(slice(None, None, d) for d in dilations))]
    n, channels, *rest = view.shape
    split = view.reshape(n, groups, channels // groups, *rest) if groups > 1 else view[:, None]
    space, taps = range(3, 3 + rank), range(3 + rank, 3 + 2 * rank)
    return split.transpose(1, 0, *space, *taps, 2).reshape(groups, n * math.prod(rest[:rank]), -1)


def _conv_targets(node: ir.Node, output: Array, groups: int) -> Array:
    n, channels, *space = output.shape
    split = output.reshape(n, groups, channels // groups, math.prod(space))
    return split.transpose(1, 0, 3, 2).reshape(groups, -1, channels // groups)


def _transposed_rows(node: ir.Node, data: Array) -> Array:
    """A transposed convolution reads the stretched input (s - 1 zeros between positions) through the mirrored kernel.

    Output position p reads tap k from stretched position p + before - k * d."""
    kernel, groups = _kernel(node), attrs.integer(node, "group", 1)
    rank = len(kernel)
    strides, dilations = _steps(node, "strides", rank), _steps(node, "dilations", rank)
    stretched = np.zeros((*data.shape[:2], *((n - 1) * s + 1 for n, s in zip(data.shape[2:], strides, strict=True))),
                         data.dtype)  # fmt: skip
    stretched[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = data
    widths = []
    for axis, (before, after) in enumerate(_transposed_pads(node, data.shape[2:])):
        span = (kernel[axis] - 1) * dilations[axis]
        widths.append((span - before, span - after))
    crop = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(widths, stretched.shape[2:], strict=True))
    padded = np.pad(stretched[(slice(None), slice(None), *crop)],
                    [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in widths)])  # fmt: skip
    found = _windows(padded, kernel, (1,) * rank, dilations, groups)
    taps = math.prod(kernel)
    return found.reshape(groups, found.shape[1], taps, -1)[:, :, ::-1].reshape(found.shape)


def _transposed_pads(node: ir.Node, space: Sequence[int]) -> list[tuple[int, int]]:
    """What is cut off the full output before and after; negative: rows of zeros are added (ONNX ConvTranspose)."""
    kernel = _kernel(node)
    rank, mode = len(kernel), attrs.text(node, "auto_pad", "NOTSET")
    strides, dilations = _steps(node, "strides", rank), _steps(node, "dilations", rank)
    extra = attrs.integers(node, "output_padding") or (0,) * rank
    shape = attrs.integers(node, "output_shape")
    pads = attrs.integers(node, "pads") or (0,) * (2 * rank)
    out = []
    for axis, (n, k, s, d) in enumerate(zip(space, kernel, strides, dilations, strict=True)):
        full = (n - 1) * s + (k - 1) * d + 1
        before, after = pads[axis], pads[rank + axis]
        if shape is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
            total = full + extra[axis] - (shape[-rank:][axis] if shape is not None else n * s)
            before = total - total // 2 if mode != "SAME_UPPER" else total // 2
            after = total - before
        elif mode == "VALID":
            before = after = 0
        out.append((before, after - extra[axis]))
    return out


# -- matrices -----------------------------------------------------------------------------------------


def _matrix_rows(index: int, transposed: bool) -> Callable[[ir.Node, Array], Array]:
    """Of the operand at `index`: its reduction axis last."""

    def rows(node: ir.Node, data: Array) -> Array:
        if (index == 1) != transposed:
            data = data.swapaxes(-1, -2)
        return data.reshape(1, -1, data.shape[-1])

    return rows


def _right_targets(node: ir.Node, output: Array, groups: int) -> Array:
    return output.reshape(1, -1, output.shape[-1])


def _left_targets(node: ir.Node, output: Array, groups: int) -> Array:
    return _right_targets(node, output.swapaxes(-1, -2), groups)


def linear(node: ir.Node) -> Linear | None:
    """How least squares reads a node; None for what is no such layer, or one of several stacked matrices."""
    if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    places = [0, 1] if node.op_type in ("Gemm", "MatMul") else [1]
    stored = [i for i in places if _rank(node.inputs[i]) >= 2]
    if len(stored) != 1 or _is_stored(node.inputs[1 - stored[0]]):
        return None
    (weight,) = stored
    value = node.inputs[weight]
    assert value is not None and value.const_value is not None
    role = role_of(node, weight, tuple(int(d) for d in value.const_value.shape.numpy()))
    if not isinstance(role, Role):
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        rows = _conv_rows if node.op_type == "Conv" else _transposed_rows
        return Linear(node, 0, 1, 2, role.layout, rows, _conv_targets)
    if role.layout.canonical_shape[0] != 1:
        return None
    data = 1 - weight
    gemm = node.op_type == "Gemm"
    turned = gemm and bool(attrs.integer(node, "transB" if data else "transA", 0))
    plain = not gemm or (weight == 1 and _scale(node, "alpha") == 1 and _scale(node, "beta") == 1)
    if not plain:
        return None
    targets = _right_targets if weight == 1 else _left_targets
    return Linear(node, data, weight, 2 if gemm else None, role.layout, _matrix_rows(data, turned), targets)


def _scale(node: ir.Node, name: str) -> float:
    found = node.attributes.get(name)
    return 1.0 if found is None else float(found.as_float())


def _is_stored(value: ir.Value | None) -> bool:
    return value is None or value.const_value is not None


def _rank(value: ir.Value | None) -> int:
    return len(value.const_value.shape) if value is not None and value.const_value is not None else 0
