"""The content of a model file without the values of its weights, to show that only those changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import onnx
from google.protobuf.message import Message
from onnx import numpy_helper

from prunecli.model.external_data import pull_in, read_proto
from prunecli.model.protos import bodies, graphs, graphs_in, nodes, normalise

OWN = "prunecli."
"""Prefix of the metadata that saving adds."""
FREE_INITIALIZERS = 4
"""The IR version since which an initializer need not be listed as an input."""
_VALUES = {"value", "sparse_value", "value_float", "value_floats"}
"""Attributes in which a Constant may hold a tensor of floats: saving may turn one into another."""
_DATA = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_STORED = (*_DATA, "external_data", "data_location")
Part = TypeVar("Part", bound=Message)


def outline(path: Path) -> bytes:
    """Return a digest of the model without the values of initializers and constants: equal for files that differ only
    in those, in metadata of this program, or in an order without meaning. Names, shapes and types are included."""
    model = read_proto(path)
    model.DiscardUnknownFields()
    normalise(model)
    free_initializers(model)
    _arrange(model.metadata_props, lambda p: p.key, lambda p: not p.key.startswith(OWN))
    for graph in graphs(model):
        _plain_graph(graph)
    drop_unnamed(model)
    for node in nodes(model):
        for attribute in node.attribute:
            _plain_attribute(node, attribute)
    for body in reversed([*bodies(model)]):  # inner ones first: sorting copies them
        for node in body.node:
            _arrange(node.attribute, lambda attribute: attribute.name)
        _arrange(body.node, lambda node: (*node.output, node.name))
        _arrange(body.value_info, lambda info: info.name, lambda info: info.HasField("type"))
    _arrange(model.functions, lambda f: (f.domain, f.name, f.overload))
    _arrange(model.opset_import, lambda entry: entry.domain)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).digest()


def _arrange(parts: Any, key: Callable[[Any], Any], keep: Callable[[Any], bool] = lambda part: True) -> None:
    """Sort a repeated field, and drop the entries that do not count."""
    chosen = sorted((_copy(part) for part in parts if keep(part)), key=key)
    del parts[:]
    parts.extend(chosen)


def _copy(part: Part) -> Part:
    copy: Part = type(part)()
    copy.CopyFrom(part)
    return copy


def _plain_graph(graph: onnx.GraphProto) -> None:
    """List initializers by name, type and shape, dense or sparse alike, each once."""
    for sparse in graph.sparse_initializer:
        dense = graph.initializer.add()
        dense.CopyFrom(sparse.values)
        dense.dims[:] = sparse.dims
    del graph.sparse_initializer[:]
    named = {tensor.name: _without_values(tensor) for tensor in graph.initializer if tensor.name}
    del graph.initializer[:]
    graph.initializer.extend(named[name] for name in sorted(named))
    _arrange(graph.quantization_annotation, lambda annotation: annotation.tensor_name)


def _without_values(tensor: onnx.TensorProto) -> onnx.TensorProto:
    plain = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    plain.doc_string = tensor.doc_string
    plain.metadata_props.extend(sorted(tensor.metadata_props, key=lambda p: p.key))
    return plain


def _plain_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    """Bring the tensor of an attribute into one form; that of a Constant may be a weight and is left out."""
    if node.op_type == "Constant" and attribute.name in _VALUES and not attribute.ref_attr_name:
        attribute.Clear()
        attribute.name = "value"
        return
    for tensor in (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            pull_in(tensor)
        values = numpy_helper.to_array(tensor)
        plain = values.tobytes() if values.dtype != object else repr(values.tolist()).encode()
        for name in _STORED:
            tensor.ClearField(name)
        tensor.raw_data = plain


def free_initializers(model: onnx.ModelProto) -> None:
    """Remove initializers from the inputs where the IR version required them to be listed: they were constants
    anyway."""
    if model.ir_version < FREE_INITIALIZERS:
        stored = {tensor.name for tensor in model.graph.initializer}
        _arrange(model.graph.input, lambda info: 0, lambda info: info.name not in stored)
        model.ir_version = FREE_INITIALIZERS


def drop_unnamed(model: onnx.ModelProto) -> None:
    """Remove unnamed outputs at the end of a node, as onnx-ir does when it writes. onnxruntime, unless it fuses the
    node, crashes on those of a BatchNormalization."""
    for node in nodes(model):
        while node.output and not node.output[-1]:
            del node.output[-1]


def reads(node: onnx.NodeProto) -> list[str]:
    """Return the values that a node reads, including those that bodies in its attributes read from outside."""
    found = [name for name in node.input if name]
    for body in graphs_in(node.attribute):
        own = {info.name for info in body.input} | {t.name for t in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        inside = [name for inner in body.node for name in reads(inner)] + [info.name for info in body.output]
        found += [name for name in inside if name not in own]
    return found


def of_shapes(nodes: Iterable[onnx.NodeProto], constants: Iterable[str]) -> set[str]:
    """Return values computed from the shapes of others and from constants: they only matter where they meet data."""
    fixed, found = set(constants), set[str]()
    for node in nodes:
        read = {name for name in node.input if name}
        if node.op_type in ("Shape", "Size") or (read & found and read <= found | fixed):
            found.update(node.output)
        elif read <= fixed:
            fixed.update(node.output)
    return found
