"""Walking over everything in a ModelProto. Nesting is bounded: the parser stops at 100 nested messages."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

Body = onnx.GraphProto | onnx.FunctionProto


def bodies(model: onnx.ModelProto) -> Iterator[Body]:
    """The main graph, every local function, and every subgraph inside them."""
    yield from _with_subgraphs(model.graph)
    for function in model.functions:
        yield from _with_subgraphs(function)


def _with_subgraphs(body: Body) -> Iterator[Body]:
    yield body
    for attribute in attributes_of(body):
        if attribute.HasField("g"):
            yield from _with_subgraphs(attribute.g)
        for graph in attribute.graphs:
            yield from _with_subgraphs(graph)


def attributes_of(body: Body) -> Iterator[onnx.AttributeProto]:
    """The attributes of the nodes of one body, and the defaults of a function's own attributes."""
    for node in body.node:
        yield from node.attribute
    if isinstance(body, onnx.FunctionProto):
        yield from body.attribute_proto


def attributes(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for body in bodies(model):
        yield from attributes_of(body)


def sparse_tensors(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    for body in bodies(model):
        if isinstance(body, onnx.GraphProto):
            yield from body.sparse_initializer
    for attribute in attributes(model):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor: initializers, attributes, and both parts of sparse ones."""
    for body in bodies(model):
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
    for attribute in attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for sparse in sparse_tensors(model):
        yield sparse.values
        yield sparse.indices
