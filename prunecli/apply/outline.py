"""What a model file says apart from the values of its tensors: to show that only those changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

_DATA = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_KEPT = ("external_data", "data_location")
_FLOATS = {"value_float": onnx.AttributeProto.FLOAT, "value_floats": onnx.AttributeProto.FLOATS}


def outline(path: Path) -> bytes:
    """The model without tensor values and metadata: equal for two files that differ in weights only. Names,
    shapes and types of all tensors remain."""
    model = onnx.load(str(path), load_external_data=False)
    del model.metadata_props[:]
    for graph in graphs(model):
        for tensor in graph.initializer:
            _empty(tensor)
    for node in nodes(model):
        for attribute in node.attribute:
            _plain(node, attribute)
            for tensor in (attribute.t, *attribute.tensors):
                if attribute.type in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS):
                    _empty(tensor)
    return bytes(model.SerializeToString(deterministic=True))


def _empty(tensor: onnx.TensorProto) -> None:
    for name in (*_DATA, *_KEPT):
        tensor.ClearField(name)


def _plain(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    """A Constant's floats may come back as a tensor: both become the name `value`."""
    if node.op_type == "Constant" and (attribute.name in _FLOATS or attribute.name == "value"):
        attribute.Clear()
        attribute.name = "value"


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every graph inside its nodes and inside local functions."""
    yield model.graph
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                yield from attribute.graphs


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of every graph and local function, outer before inner."""
    pending: list[Any] = [
        *model.graph.node,
        *(node for function in model.functions for node in function.node),
    ]
    while pending:
        node = pending.pop(0)
        yield node
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            pending += [node for graph in inner for node in graph.node]
