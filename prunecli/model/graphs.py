"""Walking over everything in an onnx_ir.Model: graphs, nodes, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir


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


def replace_tensors(model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Put `change(tensor)` in place of every tensor: initializers, node attributes, attribute defaults."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value)
        for node in graph:
            _change_attributes(node.attributes, change)
    for function in model.functions.values():
        _change_attributes(function.attributes, change)


def _change_attributes(
    attributes: ir.Attributes | dict[str, ir.Attr], change: Callable[[ir.TensorProtocol], ir.TensorProtocol]
) -> None:
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
