"""Layers that can be fitted in closed form: a weight, how it is multiplied with data, and what happens to the product.

What follows a layer is looked at as far as it is affine per channel: a BatchNormalization, added constants, and the
residual sum in which the layer's branch ends. With the sum as the aim the branch also makes up for what the other
summand has lost. Whether the sum repeats the branch (one value per image or sentence, added to all positions) shows
only when the model runs; such a branch has itself as its aim.

    target = scale * (W X + offset) + shift + carried
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.mixtures import GATE
from prunecli.model import Model, Weight, find_weights
from prunecli.model.constants import INTERFACE, Constant, behind, is_constant
from prunecli.model.graphs import add_constant, reads, refill
from prunecli.model.weights import Use
from prunecli.operators import Contraction
from prunecli.operators.operator import input_of
from prunecli.types import Skipped

HIDDEN = "what it reads cannot be measured: it lies in a sub-graph or a function"


@dataclass(frozen=True)
class LinearLayer:
    """A weight of a model in working form.

    Attributes:
        node: that multiplies it first.
        uses: each way it is multiplied, in graph order, all in the weight's layout. What follows is known of one only.
        target: what is aimed at; carried: a value that is added on the way there, to `branch`.
        offset: a constant on the way that may be changed; norm: the BatchNormalization, `added` the other constants.
    """

    weight: Weight
    node: ir.Node
    uses: tuple[Contraction, ...]
    target: str
    branch: str
    carried: str | None = None
    offset: Offset | None = None
    norm: ir.Node | None = None
    added: tuple[ir.Value, ...] = ()

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def found(self) -> Contraction:
        return self.uses[0]

    @property
    def output(self) -> str:
        return self.found.output

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, rows, taps, cols)."""
        return self.weight.layout.canonical_shape

    def matrices(self, array: Array | None = None, dtype: Any = np.float64) -> Array:
        """The weight, or an array of its shape, as (batch, rows, K)."""
        batch, rows, taps, cols = self.shape
        given = self.weight.array() if array is None else array
        return self.weight.layout.canonical(np.asarray(given, dtype)).reshape(batch, rows, taps * cols)

    def stored(self, matrices: Array) -> Array:
        """The inverse, of any dtype."""
        return self.weight.layout.restore(matrices.reshape(self.shape))

    def cast(self, matrices: Array) -> Array:
        """The inverse, in the weight's type."""
        return np.ascontiguousarray(self.stored(matrices).astype(self.weight.dtype.numpy()))

    def bias(self) -> Array:
        """What its operator adds, (batch, rows)."""
        return self._by_row(None if self.found.bias is None else self.node.inputs[self.found.bias])

    def constant(self) -> Array:
        """What the offset adds now, (batch, rows)."""
        batch, rows = self.shape[:2]
        added = np.zeros(batch * rows) if self.offset is None else self.offset.read(batch * rows)
        return added.reshape(batch, rows)

    def affine(self) -> tuple[Array, Array]:
        """(scale, shift), (batch, rows) each, of the model as it is; the offset is no part of them."""
        scale, shift = np.ones(self.shape[:2]), np.zeros(self.shape[:2])
        moved = self.offset.node if self.offset is not None else None
        if moved is not self.node:
            shift = self.bias()
        if self.norm is not None:
            gamma, beta, mean, variance = (self._by_row(value) for value in self.norm.inputs[1:5])
            scale = gamma / np.sqrt(variance + self.norm.attributes.get_float("epsilon", 1e-5))
            shift = beta + scale * (shift - (0.0 if moved is self.norm else mean))
        for value in self.added:
            shift = shift + self._by_row(value)
        return scale, shift

    def _by_row(self, value: ir.Value | None) -> Array:
        batch, rows = self.shape[:2]
        found = behind(value)
        array = np.zeros(1) if found is None else found.array().reshape(-1)
        return np.broadcast_to(array, (batch * rows,)).reshape(batch, rows)

    @property
    def is_summed_plainly(self) -> bool:
        """Whether nothing but a BatchNormalization lies between the operator and the sum."""
        last = self.output if self.norm is None else self.norm.outputs[0].name
        first = last if self.norm is None else self.norm.inputs[0].name  # type: ignore[union-attr]
        return self.carried is not None and last == self.branch and first == self.output

    def alone(self) -> LinearLayer:
        """The branch as its own aim."""
        return replace(self, target=self.branch, carried=None)

    def moving_only(self, vectors: Collection[str]) -> LinearLayer:
        """Without its offset, unless that is one of these stored vectors, serves this layer alone and has a number for
        each row."""
        source = self.offset.source if self.offset is not None else None
        if source is None or source.name not in vectors or not source.is_own:
            return replace(self, offset=None)
        return self if source.size == self.shape[0] * self.shape[1] else replace(self, offset=None)

    def put(self, graph: ir.Graph, matrices: Array, constant: Array) -> None:
        """Change the model: the weight, and the offset if there is a place for one."""
        refill(self.weight.holder.value, self.cast(matrices))
        self.put_constant(graph, constant)

    def put_constant(self, graph: ir.Graph, constant: Array) -> None:
        """The offset alone, if there is a place for one."""
        if self.offset is not None:
            use = next(use for use in self.weight.uses if use.node is self.node)
            read = behind(self.node.inputs[use.index])  # it may be cast on the way, and what is added is not
            dtype = self.weight.dtype if read is None else read.dtype
            self.offset.write(graph, constant.reshape(-1), dtype, name=f"{self.weight.name}.bias")


def layers_of(work: ir.Model, weights: Iterable[Weight]) -> tuple[list[LinearLayer], list[Skipped]]:
    """The layers of those weights of a model in working form, in the order in which they run, and why others cannot be
    measured. An error on a sum is made up for by the last of the layers that end in it."""
    order = {node: place for place, node in enumerate(work.graph)}
    layers: list[LinearLayer] = []
    left: list[Skipped] = []
    for weight in weights:
        reason = _reason(weight, order)
        if reason:
            left.append(Skipped(weight.name, reason))
        else:
            layers.append(_layer(weight, order))
    layers.sort(key=lambda layer: order[layer.node])
    makers = {value.name: node for node in work.graph for value in node.outputs}
    still, out = set[ir.Node](), []
    for layer in reversed(layers):
        still.update(use.node for use in layer.weight.uses)
        maker = makers.get(layer.carried)
        settled = maker is None or not ancestors(maker) & still
        out.append(layer if settled else layer.alone())
    return out[::-1], left


def refittable(work: ir.Model) -> tuple[list[LinearLayer], list[Skipped]]:
    """The layers of a whole model of which weight and offset can be written anew without touching another one."""
    layers, left = layers_of(work, find_weights(Model(work, Path(), "")).prunable)
    reasons = {layer.name: _tied(layer) for layer in layers}
    left += [Skipped(name, reason) for name, reason in reasons.items() if reason]
    return [layer for layer in layers if not reasons[layer.name]], left


def _tied(layer: LinearLayer) -> str:
    value = layer.weight.holder.value
    if len(layer.weight.uses) > 1 or len(value.uses()) > 1:
        return "it is shared by several layers"
    return "it is an output of the model too" if value.is_graph_output() else ""


def _reason(weight: Weight, order: Collection[ir.Node]) -> str:
    """Why a weight has no evidence; empty if it has."""
    if any(use.node not in order for use in weight.uses):
        return HIDDEN
    if weight.holder.overridable:
        return INTERFACE
    for use in weight.uses:
        if use.kind != "weight" or use.layout != weight.layout:
            return "it is read in several ways that do not fit each other"
        if behind(use.node.inputs[use.index]) is None:
            return "it reaches its layer in parts, or quantised on the way"
        found = use.contraction
        if found is None:
            return f"{use.op} is no layer that can be fitted"
        if any(value is not None and value.name == found.data and is_constant(value) for value in use.node.inputs):
            return f"{use.op} multiplies it with a constant, not with data"
        if use.op == "Gemm" and not _adds_per_row(use, found):
            return "what Gemm adds to it is not one number for each of its outputs"
        if found.bias is not None and behind(use.node.inputs[found.bias]) is None:
            return f"what {use.op} adds to it is computed, or a part of what is stored"
    if len(weight.uses) > 1 and any(found.bias is not None for found in _contractions(weight.uses)):
        return "several operators with biases of their own share it"
    return ""


def _adds_per_row(use: Use, found: Contraction) -> bool:
    """Whether what a Gemm adds, if anything, is one number per row of the weight, or one for all."""
    added = input_of(use.node, 2)
    if added is None or use.node.attributes.get_float("beta", 1.0) == 0:
        return True
    if found.bias is None:
        return False
    stored = behind(added)
    return stored is None or stored.size == 1 or stored.shape[-1] == stored.size == use.layout.canonical_shape[1]


def _layer(weight: Weight, order: dict[ir.Node, int]) -> LinearLayer:
    uses = sorted(weight.uses, key=lambda use: order[use.node])
    found = _contractions(uses)
    use, value = uses[0], uses[0].node.outputs[0]
    if len(uses) > 1:
        return LinearLayer(weight, use.node, found, target=value.name or "", branch=value.name or "")
    size = weight.layout.canonical_shape[0] * weight.layout.canonical_shape[1]
    offset, norm, carried, total = _own_offset(use, found[0], size), None, None, None
    added: list[ir.Value] = []
    while (user := _only_reader(value)) is not None:
        others = [v for v in user.inputs if v is not value]
        if norm is None and not added and _normalises(user, value, use, found=found[0]):
            norm = user
            offset = Offset(user, 3, -1.0) if offset is None or offset.new else offset
        elif user.op_type != "Add" or user.domain or len(others) != 1 or others[0] is None:
            break
        elif _is_vector(others[0], found[0], size):
            if (offset is None or offset.new) and norm is None:
                offset = Offset(user, list(user.inputs).index(others[0]))
            else:
                added.append(others[0])
        else:
            if not is_constant(others[0]):
                total, carried = user.outputs[0], others[0].name
            break
        value = user.outputs[0]
    target, branch = (total or value).name or "", value.name or ""
    return LinearLayer(
        weight,
        use.node,
        found,
        target=target,
        branch=branch,
        carried=carried,
        offset=offset,
        norm=norm,
        added=tuple(added),
    )


def _contractions(uses: Iterable[Use]) -> tuple[Contraction, ...]:
    return tuple(replace(found, gate=use.node.meta.get(GATE)) for use in uses if (found := use.contraction) is not None)


def _own_offset(use: Use, found: Contraction, size: int) -> Offset | None:
    place = found.bias_place
    if place is None:
        return None
    value = input_of(use.node, place)
    if value is None:
        return Offset(use.node, place, new=True)
    return Offset(use.node, place) if found.bias is not None and _is_vector_of(value, size, 1) else None


def _is_vector_of(value: ir.Value | None, *sizes: int) -> bool:
    """Whether it is a constant of so many elements, which is nothing that the model takes or gives."""
    found = behind(value)
    if found is None or found.size not in sizes or not found.tensor.dtype.is_floating_point():
        return False
    return not found.is_overridable and not any(each.is_graph_output() for each in found.way)


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    producer = value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None:
        return None
    return uses[0].node if uses[0].node.graph is producer.graph else None


def _normalises(node: ir.Node, value: ir.Value, use: Use, found: Contraction) -> bool:
    """Whether a node is a BatchNormalization with stored statistics whose channels, axis 1, are the weight's rows."""
    if node.op_type != "BatchNormalization" or node.inputs[0] is not value or any(v.name for v in node.outputs[1:]):
        return False
    shape = use.node.outputs[0].shape
    rank = found.rank or (len(shape) if shape is not None else 0)
    if node.attributes.get_int("training_mode", 0) or use.index != 1 or found.channel != 1 - rank:
        return False
    rows = use.layout.canonical_shape[0] * use.layout.canonical_shape[1]
    return all(_is_vector_of(v, rows) for v in node.inputs[1:5])


def _is_vector(value: ir.Value, found: Contraction, size: int) -> bool:
    """A stored array with one number per output channel."""
    held = behind(value)
    if held is None or not _is_vector_of(value, size):
        return False
    rank = len(held.shape)
    return all(length == 1 or axis - rank == found.channel for axis, length in enumerate(held.shape))


def ancestors(node: ir.Node) -> set[ir.Node]:
    """The node and those of its graph that it depends on."""
    found: set[ir.Node] = set()
    stack: list[ir.Node | None] = [node]
    while stack:
        node_ = stack.pop()
        if node_ is not None and node_ not in found:
            found.add(node_)
            stack.extend(value.producer() for value in reads(node_))
    return found


@dataclass(frozen=True)
class Offset:
    """A stored vector of which `sign` times itself is added to the layer's output: input `index` of `node`. `new`:
    there is none yet, and it would be an input of the layer's own."""

    node: ir.Node
    index: int
    sign: float = 1.0
    new: bool = False

    @property
    def source(self) -> Constant | None:
        """Return what is stored; None if there is nothing yet."""
        return behind(self.node.inputs[self.index]) if self.index < len(self.node.inputs) else None

    @property
    def name(self) -> str:
        """Return the name of the stored vector; empty if there is none yet."""
        return self.source.name if self.source is not None else ""

    def read(self, size: int) -> Array:
        """Return the vector the offset adds, (size,), float64: zeros if nothing is stored yet."""
        source = self.source
        return np.zeros(size) if source is None else self.sign * np.broadcast_to(source.array().reshape(-1), (size,))

    def content(self, added: Array) -> Array:
        """Return the stored vector with which the offset adds so much, in the type and shape of the present one."""
        assert self.source is not None
        return self.source.stored(self._read_as(self.source, added))

    def _read_as(self, source: Constant, added: Array) -> Array:
        return (self.sign * added).reshape(source.shape if source.size == len(added) else (len(added),))

    def write(self, graph: ir.Graph, added: Array, dtype: ir.DataType, name: str) -> None:
        """Make the offset add so much: in the present initializer if nothing else reads that, else in a new one. One
        where there was none gets that type and name."""
        source = self.source
        if source is None:
            self._put(graph, self.sign * added, dtype, name=name)
        elif source.is_own and source.name in graph.initializers and (source.size == len(added) or not source.steps):
            refill(source.way[0], source.stored(self._read_as(source, added)))
        else:
            self._put(graph, self._read_as(source, added), source.dtype, name=source.name)

    def _put(self, graph: ir.Graph, array: Array, dtype: ir.DataType, name: str) -> None:
        """Let the node read a new initializer."""
        fresh = add_constant(graph, name, array.astype(dtype.numpy()))
        if self.index >= len(self.node.inputs):
            self.node.resize_inputs(self.index + 1)
        self.node.replace_input_with(self.index, fresh)
