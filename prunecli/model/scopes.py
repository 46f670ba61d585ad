"""Following shapes into the bodies that nodes contain or call: If, Loop, Scan, local functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

import prunecli.model.attrs as attrs
from prunecli.model.shape_inference import SCOPES, Facts, Inner, Shape, know_constant, visit

Visitor = Callable[[ir.Node, Facts, ir.Model], None]
VISITORS: dict[str, Visitor] = {}


def enters(op_type: str) -> Callable[[Visitor], Visitor]:
    """Register a visitor for a standard operator with graph attributes."""

    def register(visitor: Visitor) -> Visitor:
        VISITORS[op_type] = visitor
        return visitor

    return register


def enter(node: ir.Node, facts: Facts, model: ir.Model) -> bool:
    """Visit the bodies of `node`, if it has any."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        _call(node, function, facts, model)
        return True
    visitor = VISITORS.get(node.op_type) if node.domain == "" else None
    if visitor is None:
        return False
    try:
        visitor(node, facts, model)
    except (KeyError, TypeError, IndexError, ValueError, attrs.UnreadableAttributeError) as error:
        facts.problems[node] = f"{node.op_type} is malformed: {error}"
    return True


SCOPES.append(enter)


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
        _pass(inside, value, facts, origin)
    _run(body, inside, model)
    for out, value in zip(node.outputs, body.outputs, strict=False):
        _pass(facts, out, inside, value)
    facts.inner[node] = [Inner(body, inside, 1, originals)]


def _instantiate(node: ir.Node, function: ir.Function) -> tuple[ir.Graph, dict[ir.Node, ir.Node]]:
    """The function's body, copied if its nodes take attributes from the call."""
    if not function.attributes:
        return function.graph, {}
    body = function.graph.clone()
    inner, outer = list(body.all_nodes()), list(function.graph.all_nodes())
    for copy in inner:
        for name, attribute in list(copy.attributes.items()):
            if attribute.is_ref():
                _fill(copy, name, attribute, node.attributes, function.attributes)
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
            _pass(facts, out, facts, results[0])
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
    ends_early = len(node.inputs) > 1 and node.inputs[1] is not None
    times = int(trips.reshape(-1)[0]) if trips is not None and trips.size == 1 and not ends_early else None
    results = body.outputs[1:]
    for value, result in zip(body.inputs[2:], results[:carried], strict=False):
        if facts.shape(value) != facts.shape(result):
            facts.shapes.pop(result, None)  # it grows with every round
    _collect(node.outputs, results, carried, times, facts)
    _missing(node, facts)
    facts.inner[node] = [Inner(body, facts, times)]


@enters("Scan")
def _scan(node: ir.Node, facts: Facts, model: ir.Model) -> None:
    """Body inputs: states, then one slice of each scanned input along its axis (opset 9 and later)."""
    body = node.attributes["body"].as_graph()
    scanned = attrs.integer(node, "num_scan_inputs", 0)
    states = len(body.inputs) - scanned
    if len(node.inputs) != len(body.inputs):
        raise IndexError("inputs do not match the body")
    axes = attrs.integers(node, "scan_input_axes") or (0,) * scanned
    out_axes = attrs.integers(node, "scan_output_axes") or ()
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
    _collect(node.outputs, body.outputs, states, None if any(out_axes) else times, facts)
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
