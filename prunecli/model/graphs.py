"""Walking over everything in an onnx_ir.Model (graphs, nodes, tensors), new names and new constants."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, MutableMapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from prunecli.arrays import Array


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, every local function's graph, and every subgraph inside them."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of every graph, subgraph and local function."""
    for graph in all_graphs(model):
        yield from graph


def node_name(node: ir.Node) -> str:
    """Return the name of a node, or that of its first output, where it has none."""
    return node.name or (node.outputs[0].name or "" if node.outputs else "")


def is_sorted(graph: ir.Graph) -> bool:
    """Whether every node, in subgraphs too, comes after the nodes whose outputs it reads."""
    return _sorted_after(graph, set())


def _sorted_after(graph: ir.Graph, done: set[ir.Node]) -> bool:
    for node in graph:
        producers = (value.producer() for value in node.inputs if value is not None)
        if any(producer is not None and producer not in done for producer in producers):
            return False
        if not all(_sorted_after(inner, done) for inner in subgraphs(node)):
            return False
        done.add(node)
    return True


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs held by the node's own attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def reads(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, those that its sub-graphs take from outside included; each once."""
    found = [*(value for value in node.inputs if value is not None), *captured(node)]
    return [value for value in dict.fromkeys(found) if value.name]


def captured(node: ir.Node) -> list[ir.Value]:
    """What a node's sub-graphs take from outside."""
    found = []
    for graph in subgraphs(node):
        inside = [*(value for inner in graph for value in reads(inner)), *graph.outputs]
        found += [value for value in inside if value.graph is not graph]
    return found


Change = Callable[[ir.TensorProtocol], ir.TensorProtocol]


def replace_tensors(model: ir.Model, stored: Change, other: Change) -> None:
    """Put `stored(tensor)` in place of initializers and Constants, `other(tensor)` of other attributes."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = stored(value.const_value)
        for node in graph:
            _change_attributes(node.attributes, stored if node.op_type == "Constant" else other)
    for function in model.functions.values():
        _change_attributes(function.attributes, other)


def _change_attributes(attributes: MutableMapping[str, ir.Attr], change: Change) -> None:
    for name, attribute in list(attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if (new := change(tensor)) is not tensor:
                attributes[name] = ir.AttrTensor(name, new, doc_string=attribute.doc_string)
        elif attribute.type == ir.AttributeType.TENSORS:
            new_tensors = [change(tensor) for tensor in attribute.as_tensors()]
            attributes[name] = ir.AttrTensors(name, new_tensors, doc_string=attribute.doc_string)


def taken_names(graph: ir.Graph) -> set[str]:
    """Names of the values and nodes of a graph and of the graphs inside its nodes."""
    names = {node.name or "" for node in ir.traversal.RecursiveGraphIterator(graph)}
    for each in (graph, *graph.subgraphs()):
        names.update(value.name or "" for value in (*each.inputs, *each.initializers.values()))
        names.update(value.name or "" for node in each for value in node.outputs)
    return names


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or `name` with the first number that makes it new; from then on it is taken."""
    candidates = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    found = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(found)
    return found


def add_constant(graph: ir.Graph, name: str, array: Array, taken: set[str] | None = None) -> ir.Value:
    """A new initializer, called `name`, or so with a number if that is taken. `taken`: names that are, if known."""
    name = free_name(name, taken_names(graph) if taken is None else taken)
    value = ir.Value(name=name, const_value=ir.Tensor(np.asarray(array, order="C"), name=name))
    assert value.const_value is not None
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
    graph.register_initializer(value)
    return value


def refill(value: ir.Value, array: Array) -> None:
    """Store other content in an initializer, which is of the type that it has."""
    assert value.const_value is not None
    value.const_value = ir.Tensor(np.asarray(array, order="C"), dtype=value.const_value.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def inline_functions(model: ir.Model) -> None:
    """Put the bodies of local functions in the place of their calls. Which names values get follows from the model."""
    for function in model.functions.values():  # onnxruntime runs a body at the opset of the model, whatever its own
        function.opset_imports.update((k, v) for k, v in model.opset_imports.items() if k in function.opset_imports)
    InlinePass()(model)
