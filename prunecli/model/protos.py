"""Walking over everything in a ModelProto, and its normal form. Nesting is bounded: the parser stops at 100 nested
messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import EncodeError, Message

Body = onnx.GraphProto | onnx.FunctionProto
VALUES = {
    onnx.AttributeProto.FLOAT: "f", onnx.AttributeProto.INT: "i", onnx.AttributeProto.STRING: "s",
    onnx.AttributeProto.TENSOR: "t", onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor", onnx.AttributeProto.TYPE_PROTO: "tp",
    onnx.AttributeProto.FLOATS: "floats", onnx.AttributeProto.INTS: "ints", onnx.AttributeProto.STRINGS: "strings",
    onnx.AttributeProto.TENSORS: "tensors", onnx.AttributeProto.GRAPHS: "graphs",
    onnx.AttributeProto.SPARSE_TENSORS: "sparse_tensors", onnx.AttributeProto.TYPE_PROTOS: "type_protos",
}  # fmt: skip
"""The field that holds the value of an attribute, by its type."""
KEYS = {
    "metadata_props": "key", "opset_import": "domain", "value_info": "name", "attribute": "name",
    "attribute_proto": "name", "quantization_annotation": "tensor_name", "quant_parameter_tensor_names": "key",
}  # fmt: skip
"""Repeated fields that are maps, and the field of an entry that is its key."""
OPTIONAL = ("configuration", "device_configurations")
"""Repeated fields of which an empty entry says nothing."""


def check_room(size: int) -> None:
    """Ask for so many bytes, and give them back untouched: protobuf ends the program where it gets none.

    Raises:
        MemoryError: there are not so many.
    """
    bytearray(size)


def serialised(message: Message) -> bytes:
    """The bytes of a message.

    Raises:
        MemoryError: there is no room for them.
        EncodeError: it is larger than 2 GiB.
    """
    try:
        return bytes(message.SerializeToString())
    except EncodeError as error:  # which says no more than that
        if message.ByteSize() >= 1 << 31:
            raise
        raise MemoryError from error


def normalise(message: Message) -> None:
    """Say in one form, in place, what a model can say in several, all of which onnxruntime reads alike.

    Absent is what equals its default; a map has each key once, of which the last entry counts; the standard domain
    is ""; an attribute has the value of its type alone; a value_info of a stored tensor has the type of that tensor, an
    output that is an input the type of that input.
    """
    if isinstance(message, onnx.AttributeProto):
        _keep_value(message)
    for field, value in _present(message):
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            if not field.is_repeated and _says_nothing(message, field, value):
                message.ClearField(field.name)
            continue
        for part in value if field.is_repeated else (value,):
            normalise(part)
        if field.name in KEYS:
            _keep_last(value, KEYS[field.name])
        elif field.name in OPTIONAL:
            _keep(value, [bool(part.ListFields()) for part in value])
    if isinstance(message, onnx.GraphProto):
        _settle_types(message)


def _present(message: Message) -> Iterator[tuple[FieldDescriptor, Any]]:
    """The fields of a message and their values; of a tensor all but its bytes, which would be copied."""
    if not isinstance(message, onnx.TensorProto):
        yield from message.ListFields()
        return
    if message.HasField("segment") and not message.segment.ListFields():
        message.ClearField("segment")
    for name in ("name", "doc_string", "data_location", "metadata_props"):
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated or message.HasField(name):
            yield field, getattr(message, name)


def _says_nothing(message: Message, field: FieldDescriptor, value: Any) -> bool:
    if isinstance(message, onnx.AttributeProto) and not message.type and field.name in VALUES.values():
        return False  # which field is present says what the type is
    if field.containing_oneof is not None:
        return field.name == "dim_param" and not value
    if field.name == "domain" and value == "ai.onnx" and not isinstance(message, onnx.ModelProto):
        return True
    return bool(value == field.default_value) and str(value) != "-0.0"


def _keep_value(attribute: onnx.AttributeProto) -> None:
    own = VALUES.get(attribute.type)
    for field, _ in attribute.ListFields() if own else ():
        if field.name != own and field.name in VALUES.values():
            attribute.ClearField(field.name)


def _keep_last(entries: Any, key: str) -> None:
    last = {getattr(entry, key): index for index, entry in enumerate(entries)}
    if len(last) < len(entries):
        _keep(entries, [last[getattr(entry, key)] == index for index, entry in enumerate(entries)])


def _keep(entries: Any, kept: list[bool]) -> None:
    for index in reversed(range(len(kept))):
        if not kept[index]:
            del entries[index]


def drop_repeated(graph: onnx.GraphProto) -> int:
    """Initializers without a name, or stored twice with equal bytes, go; how many."""
    seen: dict[str, onnx.TensorProto] = {}
    spare = []
    for index, tensor in enumerate(graph.initializer):
        if tensor.name and tensor.name not in seen:
            seen[tensor.name] = tensor
        elif not tensor.name or seen[tensor.name] == tensor:
            spare.append(index)
    for index in reversed(spare):
        del graph.initializer[index]
    return len(spare)


def _settle_types(graph: onnx.GraphProto) -> None:
    inputs = {info.name: info for info in graph.input}
    for info in graph.output:
        if info.name in inputs:
            info.type.CopyFrom(inputs[info.name].type)
    described = {info.name: info for info in graph.value_info}
    stored = [(t.name, t.data_type, t.dims) for t in graph.initializer if described]
    stored += [(s.values.name, s.values.data_type, s.dims) for s in graph.sparse_initializer if described]
    for name, kind, dims in stored:
        if name in described:
            described[name].type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, list(dims)))


def bodies(model: onnx.ModelProto) -> Iterator[Body]:
    """The main graph, every local function, and every subgraph inside them."""
    yield from _with_subgraphs(model.graph)
    for function in model.functions:
        yield from _with_subgraphs(function)


def _with_subgraphs(body: Body) -> Iterator[Body]:
    yield body
    for graph in graphs_in(attributes_of(body)):
        yield from _with_subgraphs(graph)


def graphs_in(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs that attributes hold."""
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Of the bodies, those that are graphs."""
    return (body for body in bodies(model) if isinstance(body, onnx.GraphProto))


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of every body, outer before inner."""
    return (node for body in bodies(model) for node in body.node)


def value_infos(body: Body) -> Iterator[onnx.ValueInfoProto]:
    """Every description of a value of one body."""
    yield from body.value_info
    if isinstance(body, onnx.GraphProto):
        yield from body.input
        yield from body.output


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
    for graph in graphs(model):
        yield from graph.sparse_initializer
    for attribute in attributes(model):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor: initializers, attributes, and both parts of sparse ones."""
    yield from dense_tensors(model)
    for sparse in sparse_tensors(model):
        yield sparse.values
        yield sparse.indices


def dense_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initializers and attributes."""
    for graph in graphs(model):
        yield from graph.initializer
    for attribute in attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
