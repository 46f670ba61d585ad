"""Strided slices and added zero channels, which make parameter-free shortcuts, replaced by one operator of the same
result.

onnxruntime computes Slice and Pad in another layout than convolutions. Every such node between convolutions costs a
layout conversion before and after it, and prevents the fusion of the addition and activation that follow. Taking some
channels and every s-th pixel equals

    Y = Conv(X, W), W (outputs, inputs, 1, 1) of zeros and one 1 per taken output channel, strides s,

or a MaxPool of one pixel where all channels are taken. Finite values come out bit for bit the same. As a convolution it
is also a layer like any other: the channels before and after it can be cut independently.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.costs import MACS_PER_ELEMENT
from prunecli.dependency.edit import replace_node
from prunecli.dependency.rules.indexing import slice_parts
from prunecli.dependency.rules.shaping import pad_amounts
from prunecli.dependency.views import Geometry, view_geometry
from prunecli.model.graphs import add_constant, taken_names
from prunecli.model.shape_inference import Facts, Shape
from prunecli.operators import operator_of

RANK, BATCH, CHANNELS, SPATIAL = 4, 0, 1, (2, 3)
WALK = 6
"""Most nodes before the shortcut among which a convolution is searched."""
ZERO = -1


@dataclass(frozen=True)
class Shortcut:
    """`result` is `source` at the pixels that are multiples of `strides`; its channel c is channel `channels[c]` of
    `source`, or zero for ZERO. `nodes`: those that compute it now, the last one first."""

    source: ir.Value
    nodes: tuple[ir.Node, ...]
    channels: Array
    strides: tuple[int, int]
    inputs: int

    @property
    def result(self) -> ir.Value:
        return self.nodes[0].outputs[0]

    @property
    def name(self) -> str:
        return self.result.name or ""

    @property
    def keeps_channels(self) -> bool:
        return np.array_equal(self.channels, np.arange(self.inputs))

    def pays(self, facts: Facts) -> bool:
        """Return whether the replacing operator costs less, in written elements: what a Slice or Pad writes and the
        layout conversions of its input and output, against its multiply-accumulates."""
        written = sum(math.prod(facts.shapes[node.outputs[0]]) for node in self.nodes)
        macs = 0 if self.keeps_channels else math.prod(facts.shapes[self.result]) * self.inputs
        return macs < MACS_PER_ELEMENT * (written + math.prod(facts.shapes[self.source]))

    def replace(self, graph: ir.Graph) -> None:
        """Put the operator in the place of the nodes, in the graph."""
        old, attributes = self.nodes[0], {"kernel_shape": [1, 1], "strides": list(self.strides)}
        if self.keeps_channels:
            new = ir.node("MaxPool", [self.source], attributes, name=old.name)
        else:
            weight = np.zeros((len(self.channels), self.inputs, 1, 1), np.float32)
            taken = np.flatnonzero(self.channels != ZERO)
            weight[taken, self.channels[taken]] = 1
            stored = add_constant(graph, f"{self.name}.weight", weight, taken=taken_names(graph))
            new = ir.node("Conv", [self.source, stored], attributes, name=old.name)
        replace_node(graph, old, new)
        _sweep(graph, [*self.nodes[1:], *_producers(old)])


def replace_shortcuts(
    model: ir.Model, inputs: Mapping[str, Shape], names: Collection[str] | None = None
) -> tuple[str, ...]:
    """Replace shortcuts in place; returns the names of their results.

    Args:
        model: prepared, nodes in topological order.
        inputs: shapes of the graph's inputs at which costs are compared.
        names: of results to replace; None: all that pay.
    """
    if not any(_is_convolved(node.inputs[0]) for last in model.graph for node in _chain(last) if node.inputs[0]):
        return ()
    found, geometry = [], view_geometry(model, inputs)[0]
    for node in reversed(list(model.graph)):
        shortcut = shortcut_at(node, geometry) if node.graph is model.graph else None  # one that is gone has none
        if shortcut is not None and (shortcut.pays(geometry.facts) if names is None else shortcut.name in names):
            shortcut.replace(model.graph)
            found.append(shortcut.name)
    return tuple(reversed(found))


def shortcut_at(node: ir.Node, geometry: Geometry) -> Shortcut | None:
    """Return the shortcut that ends in this node: the longest chain of Slice and Pad after a convolution that takes
    channels and every s-th pixel; None without one. A Slice of channels alone is left as it is: it is fast."""
    found, nodes, channels, strides = None, list[ir.Node](), None, (1, 1)
    for step in _chain(node):
        taken = _taken(step, geometry)
        if taken is None:
            break
        own, source = taken.channels, step.inputs[0]
        channels = own if channels is None else np.where(channels == ZERO, ZERO, np.append(own, ZERO)[channels])
        strides = strides[0] * taken.strides[0], strides[1] * taken.strides[1]
        nodes.append(step)
        if source is not None and _is_convolved(source):
            found = Shortcut(
                source, tuple(nodes), channels, strides=strides, inputs=geometry.facts.shapes[source][CHANNELS]
            )
    return found if found is not None and (found.strides != (1, 1) or ZERO in found.channels) else None


def _chain(node: ir.Node) -> Iterator[ir.Node]:
    """Return the node and the nodes that only it depends on, from the last to the first."""
    while node.domain == "" and node.op_type in ("Slice", "Pad"):
        yield node
        value = node.inputs[0]
        before = None if value is None or value.is_graph_output() or len(value.uses()) > 1 else value.producer()
        if before is None:
            return
        node = before


@dataclass(frozen=True)
class _Taken:
    """What one node takes of a float32 image: channels (ZERO: a new one), and every s-th row and column."""

    channels: Array
    strides: tuple[int, int]


def _taken(node: ir.Node, geometry: Geometry) -> _Taken | None:
    """Return None for a node that takes anything else, or something else at other sizes of the dynamic dimensions."""
    first, *others = (_taken_at(node, facts) for facts in (geometry.facts, geometry.other) if facts is not None)
    same = first is not None and all(
        other is not None and other.strides == first.strides and np.array_equal(other.channels, first.channels)
        for other in others
    )
    return first if same else None


def _taken_at(node: ir.Node, facts: Facts) -> _Taken | None:
    source = node.inputs[0]
    shape = facts.shape(source)
    if source is None or shape is None or len(shape) != RANK or facts.dtypes[source] != ir.DataType.FLOAT:
        return None
    places = _sliced(node, facts, shape) if node.op_type == "Slice" else _padded(node, facts, shape)
    if places is None or not np.array_equal(places[BATCH], np.arange(shape[BATCH])):
        return None
    down, across = (_stride(places[axis], shape[axis]) for axis in SPATIAL)
    return None if down is None or across is None else _Taken(places[CHANNELS], (down, across))


def _sliced(node: ir.Node, facts: Facts, shape: Sequence[int]) -> list[Array] | None:
    """Return, by axis, the positions that a Slice takes."""
    parts = slice_parts(node, facts)
    return None if parts is None else [np.arange(n)[part] for n, part in zip(shape, parts, strict=True)]


def _padded(node: ir.Node, facts: Facts, shape: Sequence[int]) -> list[Array] | None:
    """Return, by axis, the positions left by padding with zeros, ZERO for new ones."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    value = node.attributes.get_float("value", 0.0) if given is None else facts.value(given)
    amounts = pad_amounts(node, facts)
    if (
        amounts is None
        or value is None
        or np.any(value)
        or node.attributes.get_string("mode", "constant") != "constant"
    ):
        return None
    out = []
    for size, (low, high) in zip(shape, amounts, strict=True):
        before, after = (np.full(max(added, 0), ZERO) for added in (low, high))
        out.append(np.concatenate([before, np.arange(max(-low, 0), size - max(-high, 0)), after]))
    return out


def _stride(taken: Array, size: int) -> int | None:
    """Return s if the positions 0, s, 2 s ... of `size` are taken, up to the end."""
    step = int(taken[1]) if len(taken) > 1 else size
    return step if step > 0 and np.array_equal(taken, np.arange(0, size, step)) else None


def _is_convolved(value: ir.Value) -> bool:
    """Return whether a convolution computes the value, with elementwise operators after it: it is in the blocked
    layout."""
    near, seen = [value], set[ir.Node]()
    for _ in range(WALK):
        nodes = [node for each in near if (node := each.producer()) is not None and node not in seen]
        if any(operator_of(node).blocked for node in nodes):
            return True
        seen.update(nodes)
        near = [each for node in nodes if _keeps_blocks(node) for each in node.inputs if each is not None]
    return False


def _keeps_blocks(node: ir.Node) -> bool:
    return operator_of(node).elementwise is not None or node.op_type == "BatchNormalization"


def _producers(node: ir.Node) -> list[ir.Node]:
    return [before for value in node.inputs if value is not None and (before := value.producer()) is not None]


def _sweep(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Remove those of the nodes that are unused, and the ones before them that become so."""
    while nodes:
        node = nodes.pop(0)
        unread = not any(out.uses() or out.is_graph_output() for out in node.outputs)
        if node.graph is graph and unread:
            before, values = _producers(node), [value for value in node.inputs if value is not None]
            graph.remove(node, safe=True)
            nodes += before
            for value in values:
                if value.is_initializer() and not value.uses() and not value.is_graph_input():
                    graph.initializers.pop(value.name or "", None)
