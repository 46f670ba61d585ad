"""What operators compute on known values: small ones in numpy, the other half of following shape computations, any by
ONNX's reference implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.operators.attributes import axes_of

MAX_KNOWN = 1 << 20
"""Elements: integer tables (token ids, index maps) stay known, activations never qualify."""
Fold = Callable[[ir.Node, list[Any]], Array | list[Array]]


def fold(node: ir.Node, arrays: list[Array | None]) -> list[Array]:
    """The outputs of a standard operator of `FOLDS`.

    Raises:
        Exception: of many kinds, where the node makes no sense; ValueError where it is too large to follow.
    """
    found = FOLDS[node.op_type](node, arrays)
    return found if isinstance(found, list) else [np.asarray(found)]


def computed(nodes: Sequence[ir.Node], feed: Mapping[str, Array], wanted: str, model: ir.Model) -> Array:
    """A value that nodes of a model compute, by ONNX's reference implementation.

    Args:
        feed: what they read, by name.
        wanted: the name of the value.
    Raises:
        Exception: of many kinds, where the implementation does not know a node, or the node makes no sense.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    helper = onnx.helper
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), None) for n, a in feed.items()]
    outputs = [helper.make_empty_tensor_value_info(wanted)]
    graph = helper.make_graph([ir.to_proto(node) for node in nodes], "part", inputs, outputs)
    version = nodes[0].version or model.opset_imports.get("") or 0
    part = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    with np.errstate(all="ignore"):
        (found,) = list(ReferenceEvaluator(part).run(None, dict(feed)))
    return np.asarray(found)


def _reshape(node: ir.Node, x: list[Any]) -> Array:
    keep_zero = node.attributes.get_int("allowzero", 0)
    target = [x[0].shape[i] if d == 0 and not keep_zero else int(d) for i, d in enumerate(x[1])]
    return np.reshape(x[0], target)


def _expand(node: ir.Node, x: list[Any]) -> Array:
    return np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, tuple(int(d) for d in x[1])))


def _constant_of_shape(node: ir.Node, x: list[Any]) -> Array:
    given = node.attributes.get_tensor("value")
    fill = np.zeros(1, np.float32) if given is None else given.numpy()
    return np.full(tuple(int(d) for d in x[0]), fill.reshape(-1)[0])


def _range(node: ir.Node, x: list[Any]) -> Array:
    if (float(x[1]) - float(x[0])) / float(x[2]) > MAX_KNOWN:  # ONNX's inference, which the caller asks, wraps around
        raise ValueError("too large to follow")
    return np.arange(x[0].item(), x[1].item(), x[2].item())


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


def _split(node: ir.Node, x: list[Any]) -> list[Array]:
    axis = node.attributes.get_int("axis", 0)
    sizes = node.attributes.get_ints("split") or (tuple(x[1]) if len(x) > 1 and x[1] is not None else None)
    if sizes is None:
        sizes = (-(-x[0].shape[axis] // len(node.outputs)),) * len(node.outputs)
    return list(np.split(x[0], np.cumsum(sizes)[:-1], axis=axis))


def _integer_divide(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        return (np.abs(a) // np.abs(b)) * np.sign(a) * np.sign(b)  # ONNX truncates towards zero
    return np.divide(a, b)


def _cumsum(node: ir.Node, x: list[Any]) -> Array:
    if node.attributes.get_int("exclusive", 0) or node.attributes.get_int("reverse", 0):
        raise ValueError("not followed")
    return np.cumsum(x[0], axis=int(x[1]))


def _elementwise(function: Callable[..., Any]) -> Fold:
    return lambda node, x: np.asarray(function(*x))


def _reduction(function: Callable[..., Any]) -> Fold:
    return lambda node, x: np.asarray(
        function(x[0], axis=axes_of(node, x), keepdims=bool(node.attributes.get_int("keepdims", 1)))
    )


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _integer_divide, "Neg": np.negative,
    "Abs": np.abs, "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal, "Not": np.logical_not, "And": np.logical_and, "Or": np.logical_or,
    "Where": np.where, "Sqrt": np.sqrt, "Floor": np.floor, "Ceil": np.ceil, "Pow": np.power, "Sign": np.sign,
    "Reciprocal": np.reciprocal, "Min": lambda *a: np.minimum.reduce(np.broadcast_arrays(*a)),
    "Max": lambda *a: np.maximum.reduce(np.broadcast_arrays(*a)), "Round": np.round,
}  # fmt: skip
_REDUCTIONS: dict[str, Any] = {
    "ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min,
}  # fmt: skip
FOLDS: dict[str, Fold] = {
    "Cast": lambda node, x: x[0],
    "Concat": lambda node, x: np.concatenate(x, axis=node.attributes.get_int("axis", 0)),
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "Dropout": lambda node, x: x[0],
    "Expand": _expand,
    "Gather": lambda node, x: np.take(x[0], x[1].astype(np.int64), axis=node.attributes.get_int("axis", 0)),
    "Identity": lambda node, x: x[0],
    "Mod": lambda node, x: np.fmod(*x) if node.attributes.get_int("fmod", 0) else np.mod(*x),
    "Range": _range,
    "Reshape": _reshape,
    "Shape": lambda node, x: np.array(x[0].shape, np.int64),
    "Size": lambda node, x: np.array(x[0].size, np.int64),
    "Slice": lambda node, x: x[0][slice_index(x[0].ndim, *slice_bounds(node, x))],
    "Split": _split,
    "Squeeze": lambda node, x: np.squeeze(x[0], axis=axes_of(node, x)),
    "Tile": lambda node, x: np.tile(x[0], x[1]),
    "Transpose": lambda node, x: np.transpose(x[0], node.attributes.get_ints("perm")),
    "Unsqueeze": lambda node, x: np.expand_dims(x[0], axes_of(node, x) or ()),
    **{op: _elementwise(function) for op, function in _ELEMENTWISE.items()},
    **{op: _reduction(function) for op, function in _REDUCTIONS.items()},
}
