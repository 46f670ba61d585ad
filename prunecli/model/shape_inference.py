"""Concrete shapes, and the values of shape computations, at one choice of the dynamic dimensions.

Operators take their geometry from tensors (Reshape targets, Slice bounds), and exporters compute those by
chains such as Shape -> Gather -> Concat. One walk over the nodes in topological order follows shapes (through
the operators' own ONNX shape inference) and small values (through numpy) together, so that every such chain
is known. `scopes` leads the walk into subgraphs and local functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from prunecli.model.constant_values import FOLDS, MAX_KNOWN, Array, attr_int, axes_of, slice_bounds, slice_index
from prunecli.model.contrib_shapes import CONTRIB_SHAPES, FLOAT_RESULTS, OUTPUT_TYPE_OF, SAME_AS
from prunecli.storage.chain import constant_tensor

Shape = tuple[int, ...]
UNKNOWN_INPUT = "the shape of an input is unknown"
"""The problem of every operator after one with a problem of its own."""
MAX_KNOWN_FLOAT = 4096
"""Elements of a floating-point value worth following (scales, fills, masks)."""


@dataclass
class Inner:
    """One run of a subgraph or function body by a node of the outer graph.

    `facts` hold inside (shared with the outer ones for subgraphs). `times`: how often the body runs, None if
    unknown. `originals`: the model's own nodes, where the body had to be copied to fill in attributes.
    """

    body: ir.Graph
    facts: Facts
    times: int | None = 1
    originals: Mapping[ir.Node, ir.Node] = field(default_factory=dict)


@dataclass
class Facts:
    """What is known of each value: its shape, and its content where it is a shape computation."""

    shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    dtypes: dict[ir.Value, int] = field(default_factory=dict)
    values: dict[ir.Value, Array] = field(default_factory=dict)
    problems: dict[ir.Node, str] = field(default_factory=dict)
    inner: dict[ir.Node, list[Inner]] = field(default_factory=dict)
    opsets: Mapping[str, int] | None = None
    budget: list[int] = field(default_factory=lambda: [200_000])

    def shape(self, value: ir.Value | None) -> Shape | None:
        return None if value is None else self.shapes.get(value)

    def value(self, value: ir.Value | None) -> Array | None:
        return None if value is None else self.values.get(value)

    def learn(self, value: ir.Value, shape: Shape | None, dtype: int | None) -> None:
        if dtype is not None:
            self.dtypes[value] = dtype
        if shape is not None and dtype is not None:
            self.shapes[value] = shape


INFERRED_AS = {("", "MaxPool"): 22, ("", "AveragePool"): 22, ("", "LpPool"): 22}
"""Opsets from which ONNX infers what onnxruntime computes at any opset: `ceil_mode` adds no window that would begin
beyond the input and the padding before it."""
Scope = Callable[[ir.Node, Facts, ir.Model], bool]
SCOPES: list[Scope] = []
"""Visitors for nodes that contain or call other graphs; each answers whether it took the node."""


def know_constant(facts: Facts, value: ir.Value) -> None:
    """Add an initializer, or another value whose tensor is stored."""
    tensor = value.const_value
    if tensor is not None:
        know_tensor(facts, value, tensor)


def know_tensor(facts: Facts, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """`value` is known to be `tensor`; its content is read if it is small."""
    facts.learn(value, tuple(int(d) for d in tensor.shape.numpy()), int(tensor.dtype))
    if worth_knowing(int(tensor.dtype), tensor.size):
        facts.values[value] = tensor.numpy()


def worth_knowing(dtype: int, size: int) -> bool:
    kind = ir.DataType(dtype)
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return False
    return size <= (MAX_KNOWN_FLOAT if kind.is_floating_point() else MAX_KNOWN)


def visit(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    """Learn what one node yields; its inputs must have been visited."""
    facts.budget[0] -= 1
    if facts.budget[0] < 0:
        facts.problems[node] = "the model expands to too many nodes"
        return
    if any(scope(node, facts, model) for scope in SCOPES):
        return
    if node.op_type == "Constant" and node.domain == "":
        tensor = constant_tensor(node)
        if tensor is not None:
            node.outputs[0].const_value = tensor
            know_tensor(facts, node.outputs[0], tensor)
            return
    if _infer(node, facts, model):
        _fold_values(node, facts)


def _infer(node: ir.Node, facts: Facts, model: ir.Model) -> bool:
    if any(v is not None and v not in facts.shapes and v.graph is not None for v in node.inputs):
        facts.problems[node] = UNKNOWN_INPUT
        return False
    contrib = CONTRIB_SHAPES.get((node.domain, node.op_type))
    try:
        if contrib is not None:
            shapes = contrib(node, [facts.shape(v) for v in node.inputs])
            dtype = int(ir.DataType.FLOAT) if node.op_type in FLOAT_RESULTS else facts.dtypes[_typed_like(node)]
            for out, shape in zip(node.outputs, shapes, strict=False):
                facts.learn(out, shape, dtype if shape is not None else None)
        else:
            _infer_by_schema(node, facts, model)
    except Exception as error:  # shape inference raises many kinds; each means "unknown here"
        facts.problems[node] = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        return False
    return True


def _typed_like(node: ir.Node) -> ir.Value:
    """The input whose element type a contrib operator's outputs have: the first, unless it is quantised."""
    first, index = node.inputs[0], OUTPUT_TYPE_OF.get(node.op_type, 0)
    like = node.inputs[index] if index < len(node.inputs) else first
    value = like or first
    if value is None:
        raise ValueError("its first input is absent")
    return value


def _infer_by_schema(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    proto, names = _standalone(node)
    opsets = model.opset_imports if facts.opsets is None else facts.opsets
    version = opsets.get(proto.domain)
    if version is None:
        raise ValueError(f"no opset import for domain {node.domain!r}")
    version = max(version, INFERRED_AS.get((proto.domain, proto.op_type), version))
    schema = onnx.defs.get_schema(proto.op_type, version, proto.domain)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value, name in names.items():
        if value in facts.shapes:
            types[name] = onnx.helper.make_tensor_type_proto(facts.dtypes[value], facts.shapes[value])
        known = facts.values.get(value)
        if known is not None and known.size <= 1024 and known.dtype != bool:
            data[name] = onnx.numpy_helper.from_array(known, name)
    imports = [onnx.helper.make_opsetid(proto.domain, version)]
    result = shape_inference.infer_node_outputs(
        schema, proto, types, data, opset_imports=imports, ir_version=max(model.ir_version or 8, 8)
    )
    for out in node.outputs:
        _learn_type(facts, out, result.get(out.name) if out.name else None)  # several may be left unnamed
    _check_reshape(node, facts)
    if all(out not in facts.shapes for out in node.outputs):
        _shape_by_value(node, facts)


def _check_reshape(node: ir.Node, facts: Facts) -> None:
    """ONNX's inference believes a target without -1, whatever it holds; onnxruntime does not."""
    before, after = (
        (facts.shape(v) for v in (node.inputs[0], node.outputs[0])) if node.op_type == "Reshape" else (None,) * 2
    )
    if before is not None and after is not None and math.prod(before) != math.prod(after):
        del facts.shapes[node.outputs[0]]
        raise ValueError(f"{before} does not fit into {after}")


def _standalone(node: ir.Node) -> tuple[onnx.NodeProto, dict[ir.Value, str]]:
    """The node as a proto with input names of its own: values of different scopes may share a name."""
    proto = ir.serde.serialize_node(node)
    same = SAME_AS.get((node.domain, node.op_type))
    if same is not None:
        proto.domain, proto.op_type = "", same.op_type
        kept = [a for a in proto.attribute if a.name in same.attributes]
        del proto.attribute[:]
        proto.attribute.extend(kept)
    inputs = node.inputs if same is None else [node.inputs[i] for i in same.inputs if i < len(node.inputs)]
    names = {v: f"i{k}" for k, v in enumerate(inputs) if v is not None}
    del proto.input[:]
    proto.input.extend("" if v is None else names[v] for v in inputs)
    return proto, names


def _learn_type(facts: Facts, out: ir.Value, found: onnx.TypeProto | None) -> None:
    if found is None or not found.HasField("tensor_type"):
        return
    facts.dtypes[out] = found.tensor_type.elem_type
    dims = found.tensor_type.shape.dim if found.tensor_type.HasField("shape") else None
    if dims is not None and all(d.HasField("dim_value") for d in dims):
        if any(d.dim_value < 0 for d in dims):
            raise ValueError("the input is too small for it")
        facts.shapes[out] = tuple(d.dim_value for d in dims)


def _shape_by_value(node: ir.Node, facts: Facts) -> None:
    """Shapes that depend on values ONNX does not look at (a rank-0 Reshape, Range, computed Expand)."""
    arrays = [facts.value(v) for v in node.inputs]
    known = all(v is None or a is not None for v, a in zip(node.inputs, arrays, strict=True))
    if not known or node.op_type not in FOLDS or node.domain != "":
        raise ValueError("the output shape depends on data")
    out, result = node.outputs[0], FOLDS[node.op_type](node, arrays)[0]
    facts.shapes[out] = result.shape
    facts.dtypes.setdefault(out, int(ir.DataType.from_numpy(result.dtype)))


def _fold_values(node: ir.Node, facts: Facts) -> None:
    out = node.outputs[0]
    shape = facts.shapes.get(out)
    if node.domain != "" or node.op_type not in FOLDS or shape is None:
        return
    if not worth_knowing(facts.dtypes.get(out, 1), int(np.prod(shape, dtype=np.float64))):
        return
    if node.op_type in ("Shape", "Size"):  # known from the shape alone, whatever the tensor holds
        source = facts.shapes[node.inputs[0]]  # type: ignore[index]
        start, end = attr_int(node, "start", 0), attr_int(node, "end", len(source))
        facts.values[out] = np.array(
            source[slice(start, end)] if node.op_type == "Shape" else math.prod(source), np.int64
        )
        return
    arrays = [facts.value(v) for v in node.inputs]
    if any(v is not None and a is None for v, a in zip(node.inputs, arrays, strict=True)):
        return
    try:
        with np.errstate(all="ignore"):
            results = FOLDS[node.op_type](node, arrays)
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError):
        return  # nonsense in the model: what it comes to stays unknown
    for value, result in zip(node.outputs, results, strict=False):
        if facts.shapes.get(value) == result.shape:
            dtype = ir.DataType(facts.dtypes[value]).numpy()
            facts.values[value] = result.astype(dtype, copy=False)


__all__ = [
    "Array",
    "Facts",
    "Inner",
    "Shape",
    "attr_int",
    "axes_of",
    "know_constant",
    "slice_bounds",
    "slice_index",
    "visit",
]
