"""Sequences whose elements are known one by one become tensors: what exporters write for split, unbind and stack.

SequenceConstruct, ConcatFromSequence   -> Concat
SplitToSequence, SequenceAt             -> Split
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from prunecli.dependency.views import Geometry, view_geometry
from prunecli.inputs import resolve_shapes
from prunecli.model.shape_inference import Facts
from prunecli.model.shapes import input_specs

MAX_ELEMENTS = 4096


def unpack_sequences(model: ir.Model) -> None:
    """Rewrite, in place, every reader of a sequence whose elements are known; sequences nobody reads go."""
    graph = model.graph
    lengths = _Lengths(model)
    elements: dict[ir.Value, list[ir.Value]] = {}
    for node in list(graph):
        if node.domain != "":
            continue
        if node.op_type == "SequenceConstruct" and all(v is not None for v in node.inputs):
            elements[node.outputs[0]] = [v for v in node.inputs if v is not None]
        elif node.op_type == "SplitToSequence" and _only_read_by_place(node.outputs[0]):
            parts = _split(node, lengths)
            if parts:
                elements[node.outputs[0]] = parts
        elif node.inputs and node.inputs[0] in elements:
            _read(graph, node, elements[node.inputs[0]])
    for value in reversed(list(elements)):
        producer = value.producer()
        if producer is not None and not value.uses() and not value.is_graph_output():
            graph.remove(producer, safe=True)


def _only_read_by_place(value: ir.Value) -> bool:
    return bool(value.uses()) and all(use.node.op_type in ("SequenceAt", "ConcatFromSequence") for use in value.uses())


def _read(graph: ir.Graph, node: ir.Node, parts: list[ir.Value]) -> None:
    """One reader of a sequence."""
    if node.op_type == "SequenceAt":
        place = _constant(node, 1)
        if place is not None and -len(parts) <= int(place) < len(parts):
            _replace(graph, node, ir.Node("", "Identity", [parts[int(place)]], num_outputs=1))
    elif node.op_type == "ConcatFromSequence":
        axis = node.attributes["axis"].as_int()
        new = node.attributes.get("new_axis")
        if new is not None and new.as_int():
            parts = [_unsqueezed(graph, node, part, axis) for part in parts]
        _replace(graph, node, ir.Node("", "Concat", parts, [ir.AttrInt64("axis", axis)], num_outputs=1))


def _unsqueezed(graph: ir.Graph, before: ir.Node, part: ir.Value, axis: int) -> ir.Value:
    """By Unsqueeze from opset 13 on, which takes the axes as an input; sequences are younger than opset 11."""
    shape = _vector(graph, f"{before.name}.axis", [axis])
    step = ir.Node("", "Unsqueeze", [part, shape], num_outputs=1)
    graph.insert_before(before, step)
    return step.outputs[0]


def _split(node: ir.Node, lengths: _Lengths) -> list[ir.Value]:
    """The parts that SplitToSequence makes, by a Split put before it; none where their number is not known."""
    model, source = lengths.model, node.inputs[0]
    graph = model.graph
    attr = node.attributes.get("axis")
    axis = 0 if attr is None else attr.as_int()
    sizes = _sizes(node, lengths.of(source, axis))
    if sizes is None or (model.opset_imports.get("") or 0) < 13 or len(sizes) > MAX_ELEMENTS:
        return []
    parts = _vector(graph, f"{node.name or node.outputs[0].name}.lengths", sizes)
    step = ir.Node("", "Split", [source, parts], [ir.AttrInt64("axis", axis)], num_outputs=len(sizes))
    graph.insert_before(node, step)
    kept = node.attributes.get("keepdims")
    if (len(node.inputs) > 1 and node.inputs[1] is not None) or kept is None or kept.as_int():
        return list(step.outputs)
    axes = _vector(graph, f"{node.name or node.outputs[0].name}.axis", [axis])
    squeezed = [ir.Node("", "Squeeze", [part, axes], num_outputs=1) for part in step.outputs]
    graph.insert_before(node, squeezed)
    return [one.outputs[0] for one in squeezed]


def _sizes(node: ir.Node, length: int | None) -> list[int] | None:
    """Lengths of the parts: a list that is given, equal ones with a shorter last, or ones."""
    given = _constant(node, 1)
    if given is None:
        absent = len(node.inputs) < 2 or node.inputs[1] is None
        return [1] * length if absent and length is not None else None
    if given.ndim:
        return [int(n) for n in given]
    if length is None or int(given) <= 0:
        return None
    whole, rest = divmod(length, int(given))
    return [int(given)] * whole + ([rest] if rest else [])


class _Lengths:
    """Lengths of axes that no dynamic dimension has a part in; what the file itself says of shapes may be stale."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.geometry = model, Geometry(Facts())

    def of(self, value: ir.Value | None, axis: int) -> int | None:
        if value is not None and value not in self.geometry.facts.shapes:  # a result of what was rewritten since
            inputs = resolve_shapes(input_specs(self.model))
            self.geometry, _ = view_geometry(self.model, inputs)
        shape = self.geometry.facts.shape(value)
        if value is None or shape is None or not -len(shape) <= axis < len(shape):
            return None
        return None if self.geometry.is_dynamic(value, axis) else shape[axis]


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _vector(graph: ir.Graph, name: str, entries: Sequence[int]) -> ir.Value:
    while name in graph.initializers:
        name += "'"
    array = np.array(entries, np.int64)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
    value.dtype = ir.DataType.INT64
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    """The new node's output takes the name and the place of the old one's."""
    old, out = node.outputs[0], new.outputs[0]
    graph.insert_before(node, new)
    name, old.name = old.name, f"{old.name}.sequence"
    out.name, out.shape, out.type = name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    graph.remove(node, safe=True)
