"""Keeping what onnx-ir would lose between loading and saving.

onnx-ir cannot hold map and opaque types, sparse or undecodable attributes, training information, or entries
about names that no longer exist, and it adds a value_info for every initializer. Before parsing, `detach`
takes such parts out of the proto; `pin` ties them to the IR objects they belong to, so that they follow every
edit; after serialising, `attach` puts them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import onnx
import onnx_ir as ir

from prunecli.model.graphs import subgraphs
from prunecli.model.protos import Body, bodies, value_infos

KEY = "prunecli.kept"
_OLD = "prunecli.listed"
FREE_INITIALIZERS = 4
"""The IR version since which an initializer need not be a graph input, and can be overridden if it is one."""
Message = TypeVar("Message", onnx.ValueInfoProto, onnx.AttributeProto, onnx.TensorAnnotation)


@dataclass
class Kept:
    """What one graph or function body loses: by value name, by node position, and the rest verbatim."""

    types: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    attributes: dict[int, list[onnx.AttributeProto]] = field(default_factory=dict)
    described: set[str] = field(default_factory=set)
    repeated: list[tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]] = field(default_factory=list)
    infos: list[onnx.ValueInfoProto] = field(default_factory=list)
    annotations: list[onnx.TensorAnnotation] = field(default_factory=list)


@dataclass
class Lost:
    """Everything detached from one model: per body in walking order, and the training information."""

    bodies: list[Kept]
    training: list[onnx.TrainingInfoProto]
    version: int
    inputs: list[onnx.ValueInfoProto]


def detach(model: onnx.ModelProto) -> Lost:
    """Take out of `model` what onnx-ir cannot hold."""
    version, inputs = model.ir_version, [_copy(info) for info in model.graph.input]
    if version < FREE_INITIALIZERS:
        stored = {tensor.name for tensor in model.graph.initializer}
        del model.graph.input[:]
        model.graph.input.extend(info for info in inputs if info.name not in stored)
        model.ir_version = FREE_INITIALIZERS
    lost = Lost([_detach(body) for body in bodies(model)], list(model.training_info), version, inputs=inputs)
    del model.training_info[:]
    return lost


def _detach(body: Body) -> Kept:
    kept = Kept()
    if isinstance(body, onnx.GraphProto):
        _detach_graph(body, kept)  # first: it copies descriptions whole
    for index, node in enumerate(body.node):
        odd = [attribute for attribute in node.attribute if not _survives(attribute)]
        for attribute in odd:
            kept.attributes.setdefault(index, []).append(_copy(attribute))
            node.attribute.remove(attribute)
    for info in value_infos(body):
        if not _round_trips(info):
            kept.types[info.name] = _copy(info)
            info.ClearField("type")
    return kept


def _detach_graph(graph: onnx.GraphProto, kept: Kept) -> None:
    stored, produced = {t.name for t in graph.initializer}, {o for node in graph.node for o in node.output}
    known = stored | produced | {info.name for info in graph.input}
    ends = {info.name: info for info in (*graph.input, *graph.output)}
    kept.repeated = [(_copy(i), _copy(ends[i.name])) for i in graph.value_info if i.name in ends]
    kept.described = stored & {info.name for info in graph.value_info}
    # "domain::function/value" is how older models describe values inside functions; onnx-ir reads those
    kept.infos = [_copy(info) for info in graph.value_info if info.name not in known and "::" not in info.name]
    kept.annotations = [_copy(a) for a in graph.quantization_annotation if a.tensor_name not in known]


def _copy(proto: Message) -> Message:
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy


def _round_trips(info: onnx.ValueInfoProto) -> bool:
    try:
        value = ir.serde.deserialize_value_info_proto(info, None)
        again = ir.serde.serialize_value(value)
    except Exception:  # onnx-ir raises many kinds for what it does not know
        return False
    return again.HasField("type") == info.HasField("type") and bool(again.type == info.type)


def _survives(attribute: onnx.AttributeProto) -> bool:
    kinds = onnx.AttributeProto
    if attribute.type in (kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS, kinds.UNDEFINED) and not attribute.ref_attr_name:
        return False
    if attribute.type == kinds.STRINGS:
        return all(_is_text(text) for text in attribute.strings)
    if attribute.type in (kinds.TYPE_PROTO, kinds.TYPE_PROTOS):
        types = [attribute.tp] if attribute.type == kinds.TYPE_PROTO else attribute.type_protos
        return all(_round_trips(onnx.ValueInfoProto(name="x", type=t)) for t in types)
    return True


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def pin(model: ir.Model, lost: Lost) -> None:
    """Tie what was detached to the values, nodes and graphs of the freshly parsed `model`."""
    model.meta[KEY], model.meta[_OLD] = lost.training, (lost.version, lost.inputs)
    for body, kept in zip(ir_bodies(model), lost.bodies, strict=True):
        body.meta[KEY] = kept
        nodes = list(body)
        for index, attributes in kept.attributes.items():
            nodes[index].meta[KEY] = attributes
        for value in _values(body):
            if value.name in kept.types:
                value.meta[KEY] = kept.types[value.name]


def is_tensor(value: ir.Value) -> bool:
    """Whether a value may be a tensor: the file states no other type for it."""
    if value.type is None and KEY in value.meta:
        return bool(value.meta[KEY].type.WhichOneof("value") in (None, "tensor_type"))
    return value.type is None or isinstance(value.type, ir.TensorType)


def is_described(graph: ir.Graph, name: str) -> bool:
    """Whether the file has a value_info for this initializer."""
    kept = graph.meta.get(KEY)
    return isinstance(kept, Kept) and name in kept.described


def describe(graph: ir.Graph, name: str) -> None:
    """Let the file have one."""
    kept = graph.meta.setdefault(KEY, Kept())
    kept.described.add(name)


def _values(body: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    yield from body.inputs
    for node in body:
        yield from node.outputs
    if isinstance(body, ir.Graph):
        yield from body.initializers.values()


def ir_bodies(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The IR counterparts of `protos.bodies`, in the same order."""
    yield from _ir_with_subgraphs(model.graph)
    for function in model.functions.values():
        yield from _ir_with_subgraphs(function)


def _ir_with_subgraphs(body: ir.Graph | ir.Function) -> Iterator[ir.Graph | ir.Function]:
    yield body
    for node in body:
        for graph in subgraphs(node):
            yield from _ir_with_subgraphs(graph)


def attach(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Put everything pinned to `model` back into its serialised form."""
    proto.training_info.extend(model.meta.get(KEY, []))
    walk = list(bodies(proto))  # now: an attribute that comes back may hold a graph that nobody looked into
    for body, source in zip(walk, ir_bodies(model), strict=True):
        kept = source.meta.get(KEY) or Kept()
        for node, origin in zip(body.node, source, strict=True):
            node.attribute.extend(origin.meta.get(KEY, []))
        _attach_types(body, source)
        if isinstance(body, onnx.GraphProto):
            _attach_graph(body, kept)


def list_initializers(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Make initializers graph inputs again in a file whose IR version asks for that, in the file's order."""
    version, infos = model.meta.get(_OLD, (FREE_INITIALIZERS, []))
    if version >= FREE_INITIALIZERS:
        return
    proto.ir_version = version
    before = {info.name: info for info in infos}
    now = {info.name: info for info in proto.graph.input}
    for tensor in proto.graph.initializer:
        info, dims = before.get(tensor.name), list(tensor.dims)
        if info is None or [dim.dim_value for dim in info.type.tensor_type.shape.dim] != dims:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims)
        now[tensor.name] = info
    order = [name for name in before if name in now] + [name for name in now if name not in before]
    inputs = [_copy(now[name]) for name in order]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def _attach_types(body: Body, source: ir.Graph | ir.Function) -> None:
    """Types onnx-ir could not hold; values that got a type since then keep the new one."""
    pinned = {v.name: v.meta[KEY] for v in _values(source) if KEY in v.meta and v.type is None and v.name}
    if not pinned:
        return
    described = set()
    for info in value_infos(body):
        if info.name in pinned:
            info.type.SetInParent()  # also if it is empty
            info.type.CopyFrom(pinned[info.name].type)
            described.add(info.name)
    produced = {name for node in body.node for name in node.output}
    for name, info in pinned.items():
        if name in produced and name not in described:
            body.value_info.add(name=name).type.CopyFrom(info.type)


def _attach_graph(graph: onnx.GraphProto, kept: Kept) -> None:
    """Entries about unknown names and about inputs and outputs; none for an initializer that had none."""
    stored = {t.name for t in graph.initializer}
    wanted = [i for i in graph.value_info if i.name not in stored or i.name in kept.described]
    if len(wanted) != len(graph.value_info):
        wanted = [_copy(info) for info in wanted]
        del graph.value_info[:]
        graph.value_info.extend(wanted)
    ends = {info.name: info for info in (*graph.input, *graph.output)}
    given = {info.name for info in graph.value_info}
    repeated = (info for info, end in kept.repeated if ends.get(info.name) == end)
    graph.value_info.extend(info for info in repeated if info.name not in given)
    graph.value_info.extend(kept.infos)
    graph.quantization_annotation.extend(kept.annotations)
