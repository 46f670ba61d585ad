"""What operators compute on small known values, in numpy: the other half of following shape computations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.operators.attributes import axes_of

Array = np.ndarray[Any, Any]
MAX_KNOWN = 1 << 20
"""Elements: integer tables (token ids, index maps) stay known, activations never qualify."""

Fold = Callable[[ir.Node, list[Array | None]], list[Array]]
FOLDS: dict[str, Fold] = {}


def fold(*ops: str) -> Callable[[Fold], Fold]:
    def add(function: Fold) -> Fold:
        for op in ops:
            FOLDS[op] = function
        return function

    return add


@fold("Shape")
def _shape(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.array(x[0].shape, np.int64)]


@fold("Size")
def _size(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.array(x[0].size, np.int64)]


@fold("Identity", "Cast", "Dropout")
def _same(node: ir.Node, x: list[Any]) -> list[Array]:
    return [x[0]]


@fold("Gather")
def _gather(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.take(x[0], x[1].astype(np.int64), axis=node.attributes.get_int("axis", 0))]


@fold("Concat")
def _concat(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.concatenate(x, axis=node.attributes.get_int("axis", 0))]


@fold("Unsqueeze")
def _unsqueeze(node: ir.Node, x: list[Any]) -> list[Array]:
    axes = axes_of(node, x) or ()
    return [np.expand_dims(x[0], tuple(axes))]


@fold("Squeeze")
def _squeeze(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.squeeze(x[0], axis=axes_of(node, x))]


@fold("Reshape")
def _reshape(node: ir.Node, x: list[Any]) -> list[Array]:
    keep_zero = node.attributes.get_int("allowzero", 0)
    target = [x[0].shape[i] if d == 0 and not keep_zero else int(d) for i, d in enumerate(x[1])]
    return [x[0].reshape(target)]


@fold("Transpose")
def _transpose(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.transpose(x[0], node.attributes.get_ints("perm"))]


@fold("Expand")
def _expand(node: ir.Node, x: list[Any]) -> list[Array]:
    shape = np.broadcast_shapes(x[0].shape, tuple(int(d) for d in x[1]))
    return [np.broadcast_to(x[0], shape)]


@fold("Tile")
def _tile(node: ir.Node, x: list[Any]) -> list[Array]:
    if x[0].size * np.prod(x[1], dtype=np.float64) > MAX_KNOWN:
        raise ValueError("too large to follow")
    return [np.tile(x[0], x[1])]


@fold("ConstantOfShape")
def _constant_of_shape(node: ir.Node, x: list[Any]) -> list[Array]:
    attr = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if attr is None else attr.as_tensor().numpy()
    shape = tuple(int(d) for d in x[0])
    if int(np.prod(shape, dtype=np.int64)) > MAX_KNOWN:
        raise ValueError("too large to follow")
    return [np.full(shape, fill.reshape(-1)[0])]


@fold("Range")
def _range(node: ir.Node, x: list[Any]) -> list[Array]:
    count = (float(x[1]) - float(x[0])) / float(x[2])
    if count > MAX_KNOWN:
        raise ValueError("too large to follow")
    return [np.arange(x[0].item(), x[1].item(), x[2].item())]


def slice_index(rank: int, starts: Any, ends: Any, axes: Any, steps: Any) -> tuple[slice, ...]:
    """ONNX Slice bounds as numpy slices (clamping of huge and negative bounds included)."""
    index = [slice(None)] * rank
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        start, end, step = int(start), int(end), int(step)
        # below -(2^31) on a negative step means "through the first element"
        stop = None if step < 0 and end < -(1 << 30) else end
        index[int(axis)] = slice(start, stop, step)
    return tuple(index)


def slice_bounds(node: ir.Node, x: list[Array | None]) -> tuple[Any, Any, Any, Any]:
    """(starts, ends, axes, steps) of a Slice node of any opset."""
    starts, ends = node.attributes.get_ints("starts"), node.attributes.get_ints("ends")
    if starts is not None:
        return starts, ends, node.attributes.get_ints("axes"), None
    rest = [*x[1:], None, None, None, None]
    return rest[0], rest[1], rest[2], rest[3]


@fold("Slice")
def _slice(node: ir.Node, x: list[Any]) -> list[Array]:
    return [x[0][slice_index(x[0].ndim, *slice_bounds(node, x))]]


@fold("Split")
def _split(node: ir.Node, x: list[Any]) -> list[Array]:
    axis = node.attributes.get_int("axis", 0)
    sizes = node.attributes.get_ints("split") or (tuple(x[1]) if len(x) > 1 and x[1] is not None else None)
    if sizes is None:
        part = -(-x[0].shape[axis] // len(node.outputs))
        sizes = (part,) * len(node.outputs)
    return list(np.split(x[0], np.cumsum(sizes)[:-1], axis=axis))


def _integer_divide(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        return (np.abs(a) // np.abs(b)) * np.sign(a) * np.sign(b)  # ONNX truncates towards zero
    return np.divide(a, b)


def _mod(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.fmod(*x) if node.attributes.get_int("fmod", 0) else np.mod(*x)]


FOLDS["Mod"] = _mod

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _integer_divide, "Neg": np.negative,
    "Abs": np.abs, "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal, "Not": np.logical_not, "And": np.logical_and, "Or": np.logical_or,
    "Where": np.where, "Sqrt": np.sqrt, "Floor": np.floor, "Ceil": np.ceil, "Pow": np.power, "Sign": np.sign,
    "Reciprocal": np.reciprocal, "Min": lambda *a: np.minimum.reduce(np.broadcast_arrays(*a)),
    "Max": lambda *a: np.maximum.reduce(np.broadcast_arrays(*a)), "Round": np.round,
}  # fmt: skip


def _elementwise(function: Callable[..., Any]) -> Fold:
    return lambda node, x: [np.asarray(function(*x))]


FOLDS.update({name: _elementwise(function) for name, function in _ELEMENTWISE.items()})


def _reduction(function: Callable[..., Any]) -> Fold:
    def run(node: ir.Node, x: list[Any]) -> list[Array]:
        axes = axes_of(node, x)
        return [np.asarray(function(x[0], axis=axes, keepdims=bool(node.attributes.get_int("keepdims", 1))))]

    return run


_REDUCTIONS: dict[str, Any] = {
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
}
FOLDS.update({name: _reduction(function) for name, function in _REDUCTIONS.items()})


@fold("CumSum")
def _cumsum(node: ir.Node, x: list[Any]) -> list[Array]:
    if node.attributes.get_int("exclusive", 0) or node.attributes.get_int("reverse", 0):
        raise ValueError("not followed")
    return [np.cumsum(x[0], axis=int(x[1]))]


@fold("Pad")
def _pad(node: ir.Node, x: list[Any]) -> list[Array]:
    if len(x) < 2 or node.attributes.get("mode") is not None:
        raise ValueError("not followed")
    pads = np.asarray(x[1]).reshape(2, -1).T
    fill = x[2].item() if len(x) > 2 and x[2] is not None else 0
    return [np.pad(x[0], pads, constant_values=fill)]
