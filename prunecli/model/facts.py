"""Concrete shapes, and the values of shape computations, at one choice of the dynamic dimensions.

Operators take their geometry from tensors (Reshape targets, Slice bounds), and exporters compute those by
chains such as Shape -> Gather -> Concat. One walk over the nodes in topological order follows shapes (through
the operators' own ONNX shape inference) and small values (through numpy) together, so every such chain is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from prunecli.model.contrib_shapes import CONTRIB_SHAPES

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
MAX_KNOWN = 1 << 20  # elements: integer tables (token ids, index maps) stay known, activations never qualify
MAX_KNOWN_FLOAT = 4096  # elements of a floating-point value worth following (scales, fills, masks)


@dataclass
class Facts:
    """What is known of each value: its shape, and its content where it is a shape computation."""

    shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    dtypes: dict[ir.Value, int] = field(default_factory=dict)
    values: dict[ir.Value, Array] = field(default_factory=dict)
    problems: dict[ir.Node, str] = field(default_factory=dict)

    def shape(self, value: ir.Value | None) -> Shape | None:
        return None if value is None else self.shapes.get(value)

    def value(self, value: ir.Value | None) -> Array | None:
        return None if value is None else self.values.get(value)


Fold = Callable[[ir.Node, list[Array | None]], list[Array]]
FOLDS: dict[str, Fold] = {}


def fold(*ops: str) -> Callable[[Fold], Fold]:
    def add(function: Fold) -> Fold:
        for op in ops:
            FOLDS[op] = function
        return function

    return add


def gather_facts(model: ir.Model, inputs: Mapping[str, Shape]) -> Facts:
    """Walk the main graph at the given input shapes.

    Args:
        model: the graph; nodes in topological order.
        inputs: concrete shape per graph input that is not an initializer.
    Returns:
        Facts; a value whose shape cannot be inferred is absent, its node is in `problems`.
    """
    facts = Facts()
    graph = model.graph
    for value in graph.initializers.values():
        know_constant(facts, value)
    for value in graph.inputs:
        if value not in facts.shapes and value.name in inputs:
            facts.shapes[value] = tuple(inputs[value.name])
            facts.dtypes[value] = int(value.dtype or ir.DataType.FLOAT)
    for node in graph:
        visit(node, facts, model)
    return facts


def know_constant(facts: Facts, value: ir.Value) -> None:
    """Add an initializer, or another value whose tensor is stored."""
    tensor = value.const_value
    if tensor is None:
        return
    facts.shapes[value] = tuple(int(d) for d in tensor.shape.numpy())
    facts.dtypes[value] = int(tensor.dtype)
    if _worth_knowing(int(tensor.dtype), int(np.prod(facts.shapes[value], dtype=np.int64))):
        facts.values[value] = tensor.numpy()


def _worth_knowing(dtype: int, size: int) -> bool:
    kind = ir.DataType(dtype)
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return False
    return size <= (MAX_KNOWN_FLOAT if kind.is_floating_point() else MAX_KNOWN)


def visit(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    """Add what follows from one node, whose inputs have been visited."""
    """Learn what one node yields; its inputs must have been visited."""
    if node.op_type == "Constant" and node.domain == "":
        tensor = constant_tensor(node)
        if tensor is not None:
            node.outputs[0].const_value = tensor
            know_constant(facts, node.outputs[0])
            return
    if _infer(node, facts, model):
        _fold_values(node, facts)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor a Constant node yields, whichever attribute spells it; None for sparse or string values."""
    for name, attr in node.attributes.items():
        if name == "value":
            return attr.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.array(attr.value, np.float32))
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.array(attr.value, np.int64))
    return None


def _infer(node: ir.Node, facts: Facts, model: ir.Model) -> bool:
    if any(v is not None and v not in facts.shapes and v.graph is model.graph for v in node.inputs):
        facts.problems[node] = "the shape of an input is unknown"
        return False
    contrib = CONTRIB_SHAPES.get((node.domain, node.op_type))
    try:
        if contrib is not None:
            shapes = contrib(node, [facts.shape(v) for v in node.inputs])
            for out, shape in zip(node.outputs, shapes, strict=False):
                if shape is not None:
                    facts.shapes[out] = shape
                    facts.dtypes[out] = facts.dtypes[next(v for v in node.inputs if v is not None)]
        else:
            _infer_by_schema(node, facts, model)
    except Exception as error:  # shape inference raises many kinds; each means "unknown here"
        facts.problems[node] = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        return False
    return True


def _infer_by_schema(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    version = model.opset_imports.get(node.domain)
    if version is None:
        raise ValueError(f"no opset import for domain {node.domain!r}")
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    proto = ir.to_proto(node)
    names = {v: f"i{k}" for k, v in enumerate(node.inputs) if v is not None}
    del proto.input[:]
    proto.input.extend("" if v is None else names[v] for v in node.inputs)
    for value, name in names.items():
        if value in facts.shapes:
            types[name] = onnx.helper.make_tensor_type_proto(facts.dtypes[value], facts.shapes[value])
        known = facts.values.get(value)
        if known is not None and known.size <= 1024 and known.dtype != bool:
            data[name] = onnx.numpy_helper.from_array(known, name)
    imports = [onnx.helper.make_opsetid(node.domain, version)]
    result = shape_inference.infer_node_outputs(
        schema, proto, types, data, opset_imports=imports, ir_version=max(model.ir_version or 8, 8)
    )
    for out in node.outputs:
        found = result.get(out.name or "")
        if found is None or not found.HasField("tensor_type"):
            continue
        facts.dtypes[out] = found.tensor_type.elem_type
        dims = found.tensor_type.shape.dim if found.tensor_type.HasField("shape") else None
        if dims is not None and all(d.HasField("dim_value") for d in dims):
            facts.shapes[out] = tuple(d.dim_value for d in dims)
    if all(out not in facts.shapes for out in node.outputs):
        _shape_by_value(node, facts)


def _shape_by_value(node: ir.Node, facts: Facts) -> None:
    """Shapes that depend on values ONNX does not look at (a rank-0 Reshape, Range, computed Expand)."""
    out = node.outputs[0]
    arrays = [facts.value(v) for v in node.inputs]
    if node.op_type in FOLDS and all(
        v is None or a is not None for v, a in zip(node.inputs, arrays, strict=True)
    ):
        facts.shapes[out] = FOLDS[node.op_type](node, arrays)[0].shape
        return
    raise ValueError("the output shape depends on data")


def _fold_values(node: ir.Node, facts: Facts) -> None:
    out = node.outputs[0]
    shape = facts.shapes.get(out)
    if node.domain != "" or node.op_type not in FOLDS or shape is None:
        return
    if not _worth_knowing(facts.dtypes.get(out, 1), int(np.prod(shape, dtype=np.int64))):
        return
    if node.op_type == "Shape":
        source = facts.shapes[node.inputs[0]]  # type: ignore[index]
        start, end = attr_int(node, "start", 0), attr_int(node, "end", len(source))
        facts.values[out] = np.array(source[slice(start, end)], np.int64)
        return
    arrays = [facts.value(v) for v in node.inputs]
    if any(v is not None and a is None for v, a in zip(node.inputs, arrays, strict=True)):
        return
    try:
        with np.errstate(all="ignore"):
            results = FOLDS[node.op_type](node, arrays)
    except (ValueError, IndexError, TypeError, KeyError):
        return
    for value, result in zip(node.outputs, results, strict=False):
        if facts.shapes.get(value) == result.shape:
            dtype = ir.DataType(facts.dtypes[value]).numpy()
            facts.values[value] = result.astype(dtype, copy=False)


def attr_int(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


def attr_ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attr = node.attributes.get(name)
    return None if attr is None else tuple(int(i) for i in attr.as_ints())


def axes_of(node: ir.Node, arrays: list[Array | None], index: int = 1) -> tuple[int, ...] | None:
    """`axes` as an attribute (older opsets) or as an input (newer ones)."""
    from_attr = attr_ints(node, "axes")
    if from_attr is not None:
        return from_attr
    if len(arrays) > index and arrays[index] is not None:
        return tuple(int(i) for i in np.atleast_1d(arrays[index]))  # type: ignore[arg-type]
    return None


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
    return [np.take(x[0], x[1].astype(np.int64), axis=attr_int(node, "axis", 0))]


@fold("Concat")
def _concat(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.concatenate(x, axis=attr_int(node, "axis", 0))]


@fold("Unsqueeze")
def _unsqueeze(node: ir.Node, x: list[Any]) -> list[Array]:
    axes = axes_of(node, x) or ()
    return [np.expand_dims(x[0], tuple(axes))]


@fold("Squeeze")
def _squeeze(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.squeeze(x[0], axis=axes_of(node, x))]


@fold("Reshape")
def _reshape(node: ir.Node, x: list[Any]) -> list[Array]:
    target = [
        x[0].shape[i] if d == 0 and not attr_int(node, "allowzero", 0) else int(d) for i, d in enumerate(x[1])
    ]
    return [x[0].reshape(target)]


@fold("Transpose")
def _transpose(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.transpose(x[0], attr_ints(node, "perm"))]


@fold("Expand")
def _expand(node: ir.Node, x: list[Any]) -> list[Array]:
    shape = np.broadcast_shapes(x[0].shape, tuple(int(d) for d in x[1]))
    return [np.broadcast_to(x[0], shape)]


@fold("Tile")
def _tile(node: ir.Node, x: list[Any]) -> list[Array]:
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
    starts, ends = attr_ints(node, "starts"), attr_ints(node, "ends")
    if starts is not None:
        return starts, ends, attr_ints(node, "axes"), None
    rest = [*x[1:], None, None, None, None]
    return rest[0], rest[1], rest[2], rest[3]


@fold("Slice")
def _slice(node: ir.Node, x: list[Any]) -> list[Array]:
    return [x[0][slice_index(x[0].ndim, *slice_bounds(node, x))]]


@fold("Split")
def _split(node: ir.Node, x: list[Any]) -> list[Array]:
    axis = attr_int(node, "axis", 0)
    sizes = attr_ints(node, "split") or (tuple(x[1]) if len(x) > 1 and x[1] is not None else None)
    if sizes is None:
        part = -(-x[0].shape[axis] // len(node.outputs))
        sizes = (part,) * len(node.outputs)
    return list(np.split(x[0], np.cumsum(sizes)[:-1], axis=axis))


def _integer_divide(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        return (np.abs(a) // np.abs(b)) * np.sign(a) * np.sign(b)  # ONNX truncates towards zero
    return np.divide(a, b)


def _mod(node: ir.Node, x: list[Any]) -> list[Array]:
    return [np.fmod(*x) if attr_int(node, "fmod", 0) else np.mod(*x)]


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


for _name, _function in _ELEMENTWISE.items():
    FOLDS[_name] = _elementwise(_function)


def _reduction(function: Callable[..., Any]) -> Fold:
    def run(node: ir.Node, x: list[Any]) -> list[Array]:
        axes = axes_of(node, x)
        return [np.asarray(function(x[0], axis=axes, keepdims=bool(attr_int(node, "keepdims", 1))))]

    return run


for _name, _function in {
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
}.items():
    FOLDS[_name] = _reduction(_function)


@fold("CumSum")
def _cumsum(node: ir.Node, x: list[Any]) -> list[Array]:
    if attr_int(node, "exclusive", 0) or attr_int(node, "reverse", 0):
        raise ValueError("not followed")
    return [np.cumsum(x[0], axis=int(x[1]))]


@fold("Pad")
def _pad(node: ir.Node, x: list[Any]) -> list[Array]:
    if len(x) < 2 or node.attributes.get("mode") is not None:
        raise ValueError("not followed")
    pads = np.asarray(x[1]).reshape(2, -1).T
    fill = x[2].item() if len(x) > 2 and x[2] is not None else 0
    return [np.pad(x[0], pads, constant_values=fill)]
