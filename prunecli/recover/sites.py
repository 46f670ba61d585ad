"""Where a cut model can be refitted: its linear layers, what each should yield, and where a constant can be added.

What is aimed at lies as far behind the layer as everything on the way is affine per channel: a BatchNormalization, added
constants, and the residual sum in which the layer's branch ends. With the sum as the aim the branch also makes up for
what the other summand has lost.

    target = scale * (X B + offset) + shift + carried
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from prunecli.evidence.design import Linear, linear
from prunecli.evidence.pieces import reads
from prunecli.model import Model, find_weights
from prunecli.model.names import free_name, taken_names
from prunecli.types import Skipped

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Offset:
    """A stored vector that adds `sign` times itself to the layer's output: input `index` of `node`. `new`: there is
    none yet."""

    node: ir.Node
    index: int
    sign: float = 1.0
    new: bool = False

    def read(self, size: int) -> Array:
        """What it adds, (size,), float64."""
        value = self.node.inputs[self.index] if self.index < len(self.node.inputs) else None
        if self.new or value is None or value.const_value is None:
            return np.zeros(size)
        array = np.asarray(value.const_value.numpy(), np.float64).reshape(-1)
        return self.sign * np.broadcast_to(array, (size,))

    def write(self, graph: ir.Graph, array: Array, like: ir.TensorProtocol, name: str) -> None:
        """Let it add `array`. A new one takes the type of the weight `like`."""
        value = self.node.inputs[self.index] if self.index < len(self.node.inputs) else None
        tensor = None if value is None else value.const_value
        shape = (len(array),) if tensor is None or tensor.size == 1 else tuple(tensor.shape.numpy())
        dtype = like.dtype if tensor is None else tensor.dtype
        content = (self.sign * array).reshape(shape).astype(dtype.numpy())
        put(graph, self.node, self.index, content, dtype, name)


@dataclass(frozen=True)
class Site:
    """One layer. `target`: a value of the original; `carried`: a value of the cut model. `norm`: the
    BatchNormalization on the way, whose scale and shift are those of the cut model at the time."""

    layer: Linear
    data: str
    weight: str
    target: str
    carried: str | None
    offset: Offset | None
    norm: ir.Node | None = None
    added: tuple[ir.Value, ...] = ()

    @property
    def name(self) -> str:
        node = self.layer.node
        return node.name or node.outputs[0].name or ""

    def affine(self, size: int) -> tuple[Array, Array]:
        """(scale, shift) per output channel, without what the offset adds."""
        scale, shift = np.ones(size), np.zeros(size)
        if self.norm is not None:
            gamma, beta, mean, variance = (_vector(v, size) for v in self.norm.inputs[1:5])
            epsilon = self.norm.attributes.get("epsilon")
            scale = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
            in_mean = self.offset is not None and self.offset.node is self.norm
            shift = beta - (0.0 if in_mean else scale * mean)
        for value in self.added:
            shift = shift + _vector(value, size)
        return scale, shift


@dataclass
class Sites:
    """In the order of the graph; `left`: layers that closed forms cannot refit, and why."""

    found: list[Site] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)


def find_sites(model: ir.Model) -> Sites:
    """The layers of a prepared model."""
    out, order = Sites(), {node: number for number, node in enumerate(model.graph)}
    weighted = {use.node for w in find_weights(_file(model)).prunable for use in w.uses}
    for node in model.graph:
        layer = linear(node)
        if layer is None:
            if node in weighted:
                out.left.append(Skipped(node.name or node.outputs[0].name or "", f"{node.op_type} has no closed form"))
            continue
        weight = node.inputs[layer.weight]
        assert weight is not None
        if len(list(weight.uses())) > 1:
            reason = f"its weight {weight.name} is shared with other layers"
            out.left.append(Skipped(node.name or node.outputs[0].name or "", reason))
            continue
        out.found.append(_site(layer, weight, weighted, order))
    return out


def _file(model: ir.Model) -> Model:
    from pathlib import Path

    return Model(model, Path(), "")


def _site(layer: Linear, weight: ir.Value, weighted: set[ir.Node], order: dict[ir.Node, int]) -> Site:
    node = layer.node
    data = node.inputs[layer.data]
    assert data is not None
    value, offset, norm, added, carried = node.outputs[0], _own_offset(layer), None, [], None
    channel = _channel_axis(layer)
    while (user := _only_reader(value)) is not None:
        other = next((v for v in user.inputs if v is not value), None)
        if user.op_type == "BatchNormalization" and norm is None and not added and _is_plain_norm(user, value):
            norm = user
            offset = Offset(user, 3, -1.0) if offset is None or offset.new else offset
        elif user.op_type == "Add" and other is not None and _is_vector(other, channel, len(value.shape or ())):
            index = list(user.inputs).index(other)
            if (offset is None or offset.new) and norm is None:
                offset = Offset(user, index)
            else:
                added.append(other)
        elif user.op_type in ("Add", "Sum") and len(user.inputs) == 2 and other is not None:
            if _is_sum_of_like(value, other) and _is_settled(other, node, weighted, order):
                value, carried = user.outputs[0], other.name
            break
        else:
            break
        value = user.outputs[0]
    return Site(layer, data.name or "", weight.name or "", value.name or "", carried, offset, norm, tuple(added))


def _own_offset(layer: Linear) -> Offset | None:
    node, index = layer.node, layer.bias
    if index is None:
        return None
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return Offset(node, index, new=True)
    stored = value.const_value
    size = layer.layout.canonical_shape[0] * layer.layout.canonical_shape[1]
    return Offset(node, index) if stored is not None and stored.size in (1, size) else None


def _channel_axis(layer: Linear) -> int:
    """Of the layer's output, from the front for convolutions, else from the end."""
    return 1 if layer.node.op_type in ("Conv", "ConvTranspose") else -1 if layer.weight == 1 else -2


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    producer = value.producer()
    return uses[0].node if producer is not None and uses[0].node.graph is producer.graph else None


def _is_plain_norm(node: ir.Node, value: ir.Value) -> bool:
    training = node.attributes.get("training_mode")
    constant = all(v is not None and v.const_value is not None for v in node.inputs[1:5])
    return node.inputs[0] is value and constant and not (training is not None and training.as_int())


def _is_vector(value: ir.Value, channel: int, rank: int) -> bool:
    """A stored array that varies along the channel axis alone."""
    tensor = value.const_value
    if tensor is None:
        return False
    shape = tuple(int(d) for d in tensor.shape.numpy())
    from_end = channel if channel < 0 else channel - rank
    if tensor.size == 1 or not rank:
        return False
    return all(size == 1 or axis - len(shape) == from_end for axis, size in enumerate(shape))


def _is_sum_of_like(one: ir.Value, other: ir.Value) -> bool:
    """Whether nothing is broadcast, as far as the shapes are known."""
    if other.const_value is not None or one.shape is None or other.shape is None:
        return other.const_value is None and one.shape is None and other.shape is None
    return len(one.shape) == len(other.shape) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int)
        for a, b in zip(one.shape, other.shape, strict=True)
    )  # fmt: skip


def _is_settled(value: ir.Value, node: ir.Node, weighted: set[ir.Node], order: dict[ir.Node, int]) -> bool:
    """Whether every layer before a value comes before a node."""
    seen: set[ir.Node] = set()
    stack = [value]
    while stack:
        made = stack.pop().producer()
        if made is None or made in seen:
            continue
        if made in weighted and order[made] >= order[node]:
            return False
        seen.add(made)
        stack += list(reads(made))
    return True


def _vector(value: ir.Value | None, size: int) -> Array:
    assert value is not None and value.const_value is not None
    return np.broadcast_to(np.asarray(value.const_value.numpy(), np.float64).reshape(-1), (size,))


def put(graph: ir.Graph, node: ir.Node, index: int, array: Array, dtype: ir.DataType, name: str) -> None:
    """Let a node read `array`: under the initializer's name if the node is its only reader, else under a new one."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and value.name in graph.initializers and len(list(value.uses())) == 1:
        if not value.is_graph_output():
            value.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=value.name)
            value.shape = ir.Shape(array.shape)
            return
    fresh = ir.Value(name=free_name(name, taken_names(graph)), shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
    fresh.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=fresh.name)
    graph.register_initializer(fresh)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, fresh)


Method = Literal["none", "bias", "bn", "lstsq"]


def iter_weights(sites: Sites) -> Iterator[str]:
    """Names of the weights that can be refitted."""
    return (site.weight for site in sites.found)
