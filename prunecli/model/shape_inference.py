"""Concrete shapes, and the values of shape computations, at one choice of the dynamic dimensions.

Operators take their geometry from tensors (Reshape targets, Slice bounds), and exporters compute those by
chains such as Shape -> Gather -> Concat. One walk over the nodes in topological order follows shapes (through
the operators' own ONNX shape inference) and small values (through numpy) together, so that every such chain
is known. The walk goes into subgraphs and local functions, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from prunecli.arrays import Array
from prunecli.errors import short_of_memory
from prunecli.model.constant_values import FOLDS, MAX_KNOWN, fold
from prunecli.operators import operator_of
from prunecli.operators.attributes import UnreadableAttributeError, integer, integers
from prunecli.operators.layout import Shape
from prunecli.operators.operator import input_of
from prunecli.registry import into
from prunecli.storage.stored import constant_tensor

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


INFERRED_AS = {
    ("", "MaxPool"): 22, ("", "AveragePool"): 22, ("", "LpPool"): 22,
    ("", "GreaterOrEqual"): 16, ("", "LessOrEqual"): 16,
}  # fmt: skip
"""Opsets from which ONNX infers what onnxruntime computes at any opset: `ceil_mode` adds no window that would begin
beyond the input and the padding before it, and comparisons have a shape."""


def know_constant(facts: Facts, value: ir.Value) -> None:
    """Add an initializer, or another value whose tensor is stored."""
    tensor = value.const_value
    if tensor is not None:
        know_tensor(facts, value, tensor)


def know_tensor(facts: Facts, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """`value` is known to be `tensor`; its content is read if it is small."""
    facts.learn(value, tuple(tensor.shape.numpy()), int(tensor.dtype))
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
    if enter(node, facts, model):
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
    rule = operator_of(node).shapes
    try:
        if rule is not None:
            shapes = rule(node, [facts.shape(v) for v in node.inputs])
            like = operator_of(node).type_of
            dtype = int(ir.DataType.FLOAT) if like is None else facts.dtypes[_typed_like(node, like)]
            for out, shape in zip(node.outputs, shapes, strict=False):
                facts.learn(out, shape, dtype if shape is not None else None)
        else:
            _infer_by_schema(node, facts, model)
    except Exception as error:  # shape inference raises many kinds; each means "unknown here"
        if short_of_memory(error):
            raise
        facts.problems[node] = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        return False
    return True


def _typed_like(node: ir.Node, index: int) -> ir.Value:
    """The input that has the element type of the outputs: the first where the stated one is absent."""
    value = input_of(node, index) or node.inputs[0]
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
        raise ValueError("the output shape depends on data")


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
    same = operator_of(node).standard
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


def _fold_values(node: ir.Node, facts: Facts) -> None:
    out = node.outputs[0]
    shape = facts.shapes.get(out)
    if node.domain != "" or node.op_type not in FOLDS or shape is None:
        return
    if not worth_knowing(facts.dtypes.get(out, 1), int(np.prod(shape, dtype=np.float64))):
        return
    if node.op_type in ("Shape", "Size"):  # known from the shape alone, whatever the tensor holds
        source = facts.shapes[node.inputs[0]]  # type: ignore[index]
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(source))
        facts.values[out] = np.array(
            source[slice(start, end)] if node.op_type == "Shape" else math.prod(source), np.int64
        )
        return
    arrays = [facts.value(v) for v in node.inputs]
    if any(v is not None and a is None for v, a in zip(node.inputs, arrays, strict=True)):
        return
    try:
        with np.errstate(all="ignore"):
            results = fold(node, arrays)
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError):
        return  # nonsense in the model: what it comes to stays unknown
    for value, result in zip(node.outputs, results, strict=False):
        if facts.shapes.get(value) == result.shape:
            dtype = ir.DataType(facts.dtypes[value]).numpy()
            facts.values[value] = result.astype(dtype, copy=False)


def gather_facts(model: ir.Model, inputs: Mapping[str, Shape], patience: int | None = None) -> Facts:
    """Walk the graph at the given input shapes, subgraphs and function calls included.

    Args:
        model: the graph; nodes in topological order.
        inputs: concrete shape per graph input that is not an initializer.
        patience: the walk ends early once more nodes than this have problems.
    Returns:
        Facts; a value whose shape cannot be inferred is absent, its node is in `problems`.
    """
    facts = Facts()
    for value in model.graph.initializers.values():
        know_constant(facts, value)
    for value in model.graph.inputs:
        if value not in facts.shapes and (value.name or "") in inputs:
            facts.learn(value, tuple(inputs[value.name or ""]), int(value.dtype or ir.DataType.FLOAT))
    for node in model.graph:
        visit(node, facts, model)
        if patience is not None and len(facts.problems) > patience:
            break
    return facts


Visitor = Callable[[ir.Node, Facts, ir.Model], None]
VISITORS: dict[str, Visitor] = {}


enters = into(VISITORS)
"""Register a visitor for a standard operator with graph attributes."""


def enter(node: ir.Node, facts: Facts, model: ir.Model) -> bool:
    """Visit the bodies of `node`, if it has any."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        _call(node, function, facts, model=model)
        return True
    visitor = VISITORS.get(node.op_type) if node.domain == "" else None
    if visitor is None:
        return False
    try:
        visitor(node, facts, model)
    except (KeyError, TypeError, IndexError, ValueError, UnreadableAttributeError) as error:
        facts.problems[node] = f"{node.op_type} is malformed: {error}"
    return True


def _run(body: ir.Graph, facts: Facts, model: ir.Model) -> None:
    for value in body.initializers.values():
        know_constant(facts, value)
    for node in body:
        visit(node, facts, model)


def _pass(facts: Facts, value: ir.Value, source: Facts, origin: ir.Value | None) -> None:
    """`value` in `facts` is what `origin` is in `source`."""
    if origin is None:
        return
    facts.learn(value, source.shape(origin), source.dtypes.get(origin))
    if origin in source.values:
        facts.values[value] = source.values[origin]


def _call(node: ir.Node, function: ir.Function, facts: Facts, model: ir.Model) -> None:
    body, originals = _instantiate(node, function)
    opsets = {**function.opset_imports, **model.opset_imports}  # as onnxruntime does
    inside = Facts(opsets=opsets, budget=facts.budget, problems=facts.problems)
    for value, origin in zip(body.inputs, node.inputs, strict=False):
        _pass(inside, value, facts, origin=origin)
    _run(body, inside, model)
    for out, value in zip(node.outputs, body.outputs, strict=False):
        _pass(facts, out, inside, origin=value)
    facts.inner[node] = [Inner(body, inside, 1, originals=originals)]


def _instantiate(node: ir.Node, function: ir.Function) -> tuple[ir.Graph, dict[ir.Node, ir.Node]]:
    """The function's body, copied if its nodes take attributes from the call."""
    if not function.attributes:
        return function.graph, {}
    body = function.graph.clone()
    inner, outer = list(body.all_nodes()), list(function.graph.all_nodes())
    for copy in inner:
        for name, attribute in list(copy.attributes.items()):
            if attribute.is_ref():
                _fill(copy, name, attribute, given=node.attributes, defaults=function.attributes)
    return body, dict(zip(inner, outer, strict=True))


def _fill(
    node: ir.Node,
    name: str,
    attribute: ir.Attr,
    given: Mapping[str, ir.Attr],
    defaults: Mapping[str, ir.Attr],
) -> None:
    """Put the caller's value, or the default, in place of a reference; an absent one is absent."""
    source = given.get(attribute.ref_attr_name or "") or defaults.get(attribute.ref_attr_name or "")
    if source is None or source.is_ref() or source.value is None:
        del node.attributes[name]
    else:
        node.attributes[name] = ir.Attr(name, source.type, source.value)


@enters("If")
def _if(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    """Both branches, or the only one that can be taken; an output is known if they agree."""
    condition = facts.value(node.inputs[0])
    names = ["then_branch", "else_branch"]
    if condition is not None and condition.size == 1:
        names = names[:1] if bool(condition.reshape(-1)[0]) else names[1:]
    bodies = [node.attributes[name].as_graph() for name in names]
    for body in bodies:
        _run(body, facts, model)
    for index, out in enumerate(node.outputs):
        results = [body.outputs[index] for body in bodies]
        if len({(facts.shape(r), facts.dtypes.get(r)) for r in results}) == 1:
            _pass(facts, out, facts, origin=results[0])
            if len(results) > 1:
                facts.values.pop(out, None)
    _missing(node, facts)
    facts.inner[node] = [Inner(body, facts) for body in bodies]


@enters("Loop")
def _loop(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    """Body inputs: iteration, condition, carried values. Outputs: carried values, then stacked ones."""
    body = node.attributes["body"].as_graph()
    trips = facts.value(node.inputs[0])
    facts.learn(body.inputs[0], (), int(ir.DataType.INT64))
    facts.learn(body.inputs[1], (), int(ir.DataType.BOOL))
    carried = len(node.inputs) - 2
    for value, origin in zip(body.inputs[2:], node.inputs[2:], strict=True):
        facts.learn(value, facts.shape(origin), facts.dtypes.get(origin) if origin is not None else None)
    _run(body, facts, model)
    ends_early = input_of(node, 1) is not None
    times = int(trips.reshape(-1)[0]) if trips is not None and trips.size == 1 and not ends_early else None
    results = body.outputs[1:]
    for value, result in zip(body.inputs[2:], results[:carried], strict=False):
        if facts.shape(value) != facts.shape(result):
            facts.shapes.pop(result, None)  # it grows with every round
    _collect(node.outputs, results, carried, times=times, facts=facts)
    _missing(node, facts)
    facts.inner[node] = [Inner(body, facts, times)]


@enters("Scan")
def _scan(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    """Body inputs: states, then one slice of each scanned input along its axis (opset 9 and later)."""
    body = node.attributes["body"].as_graph()
    scanned = integer(node, "num_scan_inputs", 0)
    states = len(body.inputs) - scanned
    if len(node.inputs) != len(body.inputs):
        raise IndexError("inputs do not match the body")
    axes = integers(node, "scan_input_axes") or (0,) * scanned
    out_axes = integers(node, "scan_output_axes") or ()
    times = None
    for index, (value, origin) in enumerate(zip(body.inputs, node.inputs, strict=True)):
        shape = facts.shape(origin)
        if index >= states and shape is not None:
            if not shape:
                raise IndexError("it scans a scalar")
            axis = axes[index - states] % len(shape)
            times, shape = shape[axis], (*shape[:axis], *shape[axis + 1 :])
        facts.learn(value, shape, facts.dtypes.get(origin) if origin is not None else None)
    _run(body, facts, model)
    _collect(node.outputs, body.outputs, states, times=None if any(out_axes) else times, facts=facts)
    _missing(node, facts)
    facts.inner[node] = [Inner(body, facts, times)]


def _collect(
    outputs: Sequence[ir.Value], results: Sequence[ir.Value], carried: int, times: int | None, facts: Facts
) -> None:
    """Carried outputs keep their shape, the others are stacked `times` along a new first axis."""
    for index, (out, result) in enumerate(zip(outputs, results, strict=False)):
        shape: Shape | None = facts.shape(result)
        if index >= carried:
            shape = (times, *shape) if shape is not None and times is not None else None
        facts.learn(out, shape, facts.dtypes.get(result))


def _missing(node: ir.Node, facts: Facts) -> None:
    if any(out.name and out not in facts.shapes for out in node.outputs):
        facts.problems[node] = f"the output shapes of {node.op_type} depend on data"


__all__ = ["Array", "Facts", "Inner", "Shape", "gather_facts", "know_constant", "visit"]
