"""Where a model can be refitted after a structural cut: its linear layers, what each should yield, and where a
constant can be added.

What is aimed at lies as far behind the layer as everything on the way is affine per channel: a BatchNormalization,
added constants, and the residual sum in which the layer's branch ends. With the sum as the aim the branch also makes up
for what the other summand has lost. Whether the sum repeats the branch (one value per image or sentence, added to all
positions) shows only when the model runs; such a branch has itself as its aim.

    target = scale * (W X + offset) + shift + carried
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.evidence.contractions import Contraction, contraction
from prunecli.model import Model, Weight, find_weights
from prunecli.model.graphs import subgraphs
from prunecli.model.names import free_name, taken_names
from prunecli.model.roles import Role, role_of
from prunecli.types import Skipped

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Offset:
    """A stored vector of which `sign` times itself is added to the layer's output: input `index` of `node`. `new`:
    there is none yet, and it would be an input of the layer's own."""

    node: ir.Node
    index: int
    sign: float = 1.0
    new: bool = False

    @property
    def value(self) -> ir.Value | None:
        return self.node.inputs[self.index] if self.index < len(self.node.inputs) else None

    def read(self, size: int) -> Array:
        """What it adds, (size,), float64."""
        value = self.value
        if value is None or value.const_value is None:
            return np.zeros(size)
        array = np.asarray(value.const_value.numpy(), np.float64).reshape(-1)
        return self.sign * np.broadcast_to(array, (size,))

    def content(self, added: Array) -> Array:
        """The stored vector that adds so much, in the type and shape of the present one."""
        value = self.value
        assert value is not None and value.const_value is not None
        tensor = value.const_value
        shape = (len(added),) if tensor.size == 1 else tuple(tensor.shape.numpy())
        return (self.sign * added).reshape(shape).astype(tensor.dtype.numpy())

    def write(self, graph: ir.Graph, added: Array, dtype: ir.DataType, name: str) -> None:
        """Let it add so much. A new one gets that type and name."""
        value = self.value
        if value is None or value.const_value is None:
            _put(graph, self.node, self.index, (self.sign * added).astype(dtype.numpy()), dtype, name)
        else:
            _put(graph, self.node, self.index, self.content(added), value.const_value.dtype, value.name or name)


@dataclass(frozen=True)
class Site:
    """One layer: a weight and the one node that multiplies it with data. `target`: what is aimed at; `carried`: a value
    that is added on the way there, to `branch`; `norm`: the BatchNormalization and `added` the constants on the way."""

    weight: Weight
    found: Contraction
    target: str
    branch: str
    carried: str | None
    offset: Offset | None
    norm: ir.Node | None = None
    added: tuple[ir.Value, ...] = ()

    @property
    def node(self) -> ir.Node:
        return self.weight.uses[0].node

    @property
    def name(self) -> str:
        return self.node.name or self.node.outputs[0].name or ""

    @property
    def output(self) -> str:
        return self.found.output or ""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, rows, taps, cols)."""
        return self.weight.layout.canonical_shape

    def matrices(self, array: Array | None = None) -> Array:
        """The weight, or an array of its shape, as (batch, rows, K), float64."""
        batch, rows, taps, cols = self.shape
        given = self.weight.array() if array is None else array
        return self.weight.layout.canonical(np.asarray(given, np.float64)).reshape(batch, rows, taps * cols)

    def stored(self, matrices: Array) -> Array:
        """The inverse, in the weight's type."""
        array = self.weight.layout.restore(matrices.reshape(self.shape))
        return np.ascontiguousarray(array.astype(self.weight.dtype.numpy()))

    def constant(self) -> Array:
        """What the offset adds now, (batch, rows)."""
        batch, rows = self.shape[:2]
        added = np.zeros(batch * rows) if self.offset is None else self.offset.read(batch * rows)
        return added.reshape(batch, rows)

    def affine(self) -> tuple[Array, Array]:
        """(scale, shift), (batch, rows) each, of the model as it is; the offset is no part of them."""
        batch, rows = self.shape[:2]
        size = batch * rows
        scale, shift = np.ones(size), np.zeros(size)
        if self.norm is not None:
            gamma, beta, mean, variance = (_vector(v, size) for v in self.norm.inputs[1:5])
            epsilon = self.norm.attributes.get("epsilon")
            scale = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
            in_mean = self.offset is not None and self.offset.node is self.norm
            shift = beta - (0.0 if in_mean else scale * mean)
        for value in self.added:
            shift = shift + _vector(value, size)
        return scale.reshape(batch, rows), shift.reshape(batch, rows)

    def alone(self) -> Site:
        """The branch as its own aim."""
        return replace(self, target=self.branch, carried=None)

    def put(self, graph: ir.Graph, matrices: Array, constant: Array) -> None:
        """Change the model: the weight, and the offset if there is a place for one."""
        value = self.weight.holder.value
        value.const_value = ir.Tensor(self.stored(matrices), dtype=self.weight.dtype, name=value.name)
        if self.offset is not None:
            self.offset.write(graph, constant.reshape(-1), self.weight.dtype, f"{self.weight.name}.bias")


@dataclass
class Sites:
    """In the order of the graph. `left`: layers that cannot be refitted, and why."""

    found: list[Site] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)


def find_sites(work: ir.Model) -> Sites:
    """The layers of a model in working form."""
    out, order = Sites(), {node: number for number, node in enumerate(work.graph)}
    prunable = find_weights(Model(work, Path(), "")).prunable
    weighted = {use.node for weight in prunable for use in weight.uses if use.node in order}
    for weight in prunable:
        reason = _reason(weight, order)
        if reason:
            out.left.append(Skipped(weight.name, reason))
        else:
            out.found.append(_site(weight, weighted, order))
    out.found.sort(key=lambda site: order[site.node])
    return out


def _reason(weight: Weight, order: dict[ir.Node, int]) -> str:
    """Why a weight cannot be refitted; empty if it can."""
    (use, *others) = weight.uses
    if others or len(weight.holder.value.uses()) > 1:
        return "it is shared by several layers"
    if use.node not in order:
        return "it lies in a sub-graph"
    if weight.holder.overridable or weight.holder.value.is_graph_output():
        return "it is an input or an output of the model too"
    found = contraction(use)
    if found is None or found.output is None or role_of(use.node, use.index, weight.shape) is None:
        return f"how {use.op} multiplies it with data has no closed form"
    if not isinstance(role_of(use.node, use.index, weight.shape), Role) or use.shape != weight.shape:
        return "it reaches its layer through other operators"
    return "" if found.data else "it is multiplied with no data"


def _site(weight: Weight, weighted: set[ir.Node], order: dict[ir.Node, int]) -> Site:
    use = weight.uses[0]
    found = contraction(use)
    assert found is not None
    channel = 1 - len(use.shape) if use.op in ("Conv", "ConvTranspose") else -1 if use.index == 1 else -2
    value, offset, norm, carried = use.node.outputs[0], _own_offset(weight, found), None, None
    added: list[ir.Value] = []
    total: ir.Value | None = None
    while (user := _only_reader(value)) is not None:
        others = [v for v in user.inputs if v is not value]
        if user.op_type == "BatchNormalization" and norm is None and not added and _is_plain_norm(user, value):
            norm = user
            offset = Offset(user, 3, -1.0) if offset is None or offset.new else offset
        elif user.op_type != "Add" or user.domain or len(others) != 1 or others[0] is None:
            break
        elif _is_vector(others[0], channel, weight.layout.canonical_shape):
            if (offset is None or offset.new) and norm is None:
                offset = Offset(user, list(user.inputs).index(others[0]))
            else:
                added.append(others[0])
        else:
            if others[0].const_value is None and _is_settled(others[0], use.node, weighted, order):
                total, carried = user.outputs[0], others[0].name
            break
        value = user.outputs[0]
    branch = value.name or ""
    return Site(weight, found, (total or value).name or "", branch, carried, offset, norm, tuple(added))


def _own_offset(weight: Weight, found: Contraction) -> Offset | None:
    use = weight.uses[0]
    if use.op not in ("Conv", "ConvTranspose") and not (use.op == "Gemm" and use.index == 1):
        return None
    value = use.node.inputs[2] if len(use.node.inputs) > 2 else None
    if value is None:
        beta = use.node.attributes.get("beta")
        return Offset(use.node, 2, new=True) if beta is None or beta.as_float() == 1 else None
    batch, rows = weight.layout.canonical_shape[:2]
    fits = value.const_value is not None and value.const_value.size in (1, batch * rows)
    return Offset(use.node, 2) if fits and found.bias is not None and _is_own(value) else None


def _is_own(value: ir.Value) -> bool:
    return not value.is_graph_input() and not value.is_graph_output()


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    producer = value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None:
        return None
    return uses[0].node if uses[0].node.graph is producer.graph else None


def _is_plain_norm(node: ir.Node, value: ir.Value) -> bool:
    training = node.attributes.get("training_mode")
    constant = all(v is not None and v.const_value is not None and _is_own(v) for v in node.inputs[1:5])
    return node.inputs[0] is value and constant and not (training is not None and training.as_int())


def _is_vector(value: ir.Value, channel: int, shape: tuple[int, int, int, int]) -> bool:
    """A stored array with one number per output channel, which lies `channel` axes from the end."""
    tensor = value.const_value
    if tensor is None or not _is_own(value) or tensor.size != shape[0] * shape[1]:
        return False
    sizes = tuple(int(d) for d in tensor.shape.numpy())
    return all(size == 1 or axis - len(sizes) == channel for axis, size in enumerate(sizes))


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


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those that its bodies take from outside included."""
    yield from (value for value in node.inputs if value is not None and value.name)
    for graph in subgraphs(node):
        for inner in graph.all_nodes():
            yield from (v for v in inner.inputs if v is not None and v.name and v.graph is node.graph)
        yield from (v for v in graph.outputs if v.name and v.graph is node.graph)


def _vector(value: ir.Value | None, size: int) -> Array:
    assert value is not None and value.const_value is not None
    return np.broadcast_to(np.asarray(value.const_value.numpy(), np.float64).reshape(-1), (size,))


def _put(graph: ir.Graph, node: ir.Node, index: int, array: Array, dtype: ir.DataType, name: str) -> None:
    """Let a node read `array`: in the present initializer if the node is its only reader, else in a new one."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and value.name in graph.initializers and len(value.uses()) == 1:
        value.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=value.name)
        value.shape = ir.Shape(array.shape)
        return
    fresh = ir.Value(name=free_name(name, taken_names(graph)), shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
    fresh.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=fresh.name)
    graph.register_initializer(fresh)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, fresh)
