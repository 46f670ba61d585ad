"""Residual blocks: where a graph computes y = x + f(x), f can be dropped whole and y becomes x.

A block is an `Add` (or a `Sum`, or the addition inside `SkipLayerNormalization` and its RMS form) of which one
operand, the branch f(x), is used nowhere else and is computed from the other, the stream x. Dropping is exact by
construction: it is the original with the branch forced to zero, since x + 0 = x. Attention and MLP of a
transformer layer are two blocks; a block inside another one's branch is a block of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from prunecli.dependency.edit import Removed, replace_node
from prunecli.dependency.prepare import restore
from prunecli.dependency.views import Geometry
from prunecli.model.graphs import subgraphs
from prunecli.model.shape_inference import Facts
from prunecli.model.sizes import counts
from prunecli.operators import MICROSOFT, operator_of
from prunecli.operators.operator import input_of

_PASS = ("Identity", "Dropout", "Cast")
_SKIP_NORMS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""com.microsoft operators that add and normalise: (x, f, scale, ...) -> (y, mean, inverse deviation, x + f); the
number of the input `bias`, which is added, too."""
_SUM = 3
_EPSILON = 1e-12
"""The default epsilon of these operators."""


@dataclass(frozen=True)
class ResidualBlock:
    """One residual block of a prepared model.

    `join` is the addition, `branch` the index of f(x) among its inputs; `stream` is x. `axis` of the branch's
    value is static: all `size` positions along it stand for the whole value in a plan.
    """

    name: str
    join: ir.Node
    branch: int
    axis: int
    size: int

    @property
    def value(self) -> ir.Value:
        """The branch's value, f(x)."""
        value = self.join.inputs[self.branch]
        assert value is not None
        return value

    @property
    def positions(self) -> Removed:
        """What a plan lists: every position of one axis of the branch's value."""
        return {self.value.name or "": {self.axis: np.arange(self.size)}}


@dataclass(frozen=True)
class Dead:
    """Nodes and initializers that no output depends on once some blocks are removed."""

    nodes: frozenset[ir.Node]
    initializers: frozenset[ir.Value]

    @property
    def params(self) -> int:
        """Elements of the initializers that count."""
        tensors = (v.const_value for v in self.initializers)
        return sum(int(t.size) for t in tensors if t is not None and counts(t))


def find_blocks(model: ir.Model, geometry: Geometry) -> list[ResidualBlock]:
    """All residual blocks, in the order of the graph.

    Args:
        model: prepared (`prepare`): nodes in topological order, constants as initializers. Not changed.
        geometry: facts at the analysed dimensions and at others (`view_geometry`): the shapes of stream,
            branch and sum must agree at both.
    """
    blocks: list[ResidualBlock] = []
    for node in model.graph:
        for branch, stream in _operands(node):
            block = _block(node, branch, stream, geometry=geometry)
            if block is not None:
                blocks.append(block)
                break
    return _told_apart(blocks)


def _told_apart(blocks: list[ResidualBlock]) -> list[ResidualBlock]:
    """Name blocks whose nodes share a name after the value that they yield."""
    counts = Counter(block.name for block in blocks)
    return [b if counts[b.name] == 1 else replace(b, name=b.join.outputs[0].name or "") for b in blocks]


def _operands(node: ir.Node) -> Iterable[tuple[int, int]]:
    """Return the pairs of input indices (branch, stream) to try."""
    joins = node.op_type in ("Add", "Sum") and node.domain == ""
    if joins and len(node.inputs) >= 2:
        return [(i, j) for i in range(len(node.inputs)) for j in range(len(node.inputs)) if i != j]
    plain = _is_skip_norm(node) and not any(out.uses() or out.is_graph_output() for out in node.outputs[1:_SUM])
    return [(0, 1), (1, 0)] if plain else []


def _is_skip_norm(node: ir.Node) -> bool:
    return node.op_type in _SKIP_NORMS and node.domain == MICROSOFT


def _block(node: ir.Node, branch: int, stream: int, geometry: Geometry) -> ResidualBlock | None:
    value, x = node.inputs[branch], node.inputs[stream]
    if value is None or x is None or value.is_graph_output() or len(list(value.uses())) != 1:
        return None
    if not _alike(geometry.facts, value, x, node=node) or not _alike(geometry.other, value, x, node=node):
        return None
    axis = _static_axis(value, geometry)
    dead = _closure([(node, branch)])
    if axis is None or not _weighted(dead) or not _reads(dead, x):
        return None
    name = node.name or node.outputs[0].name or ""
    return ResidualBlock(name, node, branch, axis=axis, size=geometry.facts.shapes[value][axis])


def _alike(facts: Facts | None, value: ir.Value, x: ir.Value, node: ir.Node) -> bool:
    """Return whether branch, stream and sum have one shape and are floating-point."""
    if facts is None:
        return True
    shapes = {facts.shapes.get(v) for v in (value, x, node.outputs[0])}
    kind = facts.dtypes.get(value)
    floating = kind is not None and ir.DataType(kind).is_floating_point()
    return len(shapes) == 1 and None not in shapes and floating


def _static_axis(value: ir.Value, geometry: Geometry) -> int | None:
    """Return the channel axis (1 of images, else the last), or else the first axis of fixed length."""
    rank = len(geometry.facts.shapes[value])
    order = [1 if rank >= 4 else rank - 1, *range(rank - 1, -1, -1)]
    return next((axis for axis in order if axis >= 0 and not geometry.is_dynamic(value, axis)), None)


def _weighted(dead: Dead) -> bool:
    """Return whether the branch has weights (which others may share). x + 0.04 x^3 inside a decomposed Gelu has none
    and is no block."""
    tensors = (v.const_value for n in dead.nodes for v in n.inputs if v is not None)
    return any(
        t is not None and t.dtype.is_floating_point() and sum(n > 1 for n in t.shape.numpy()) >= 2 for t in tensors
    )


def _reads(dead: Dead, x: ir.Value) -> bool:
    """Return whether the branch is computed from the stream: a node of it reads x (or a copy of x) as data."""
    source = _origin(x)
    used = (v for n in dead.nodes if not operator_of(n).of_shape for v in n.inputs if v is not None)
    return any(_origin(v) is source for v in used)


def _origin(value: ir.Value) -> ir.Value | ir.Node:
    """Return the value that `value` is a plain copy of; for the sum of a fused normalisation, its node's first
    output."""
    while (node := value.producer()) is not None and node.op_type in _PASS and node.inputs[0] is not None:
        value = node.inputs[0]
    return node if node is not None and _is_skip_norm(node) else value


def dead_without(blocks: Sequence[ResidualBlock]) -> Dead:
    """Return what is unused once these blocks are dropped together; nothing is changed."""
    return _closure([(b.join, b.branch) for b in blocks])


def _closure(cuts: Sequence[tuple[ir.Node, int]]) -> Dead:
    """Follow uses backwards from the inputs that are cut off."""
    gone: set[tuple[ir.Node, int]] = set(cuts)
    nodes: set[ir.Node] = set()
    initializers: set[ir.Value] = set()
    queue = [node.inputs[index] for node, index in cuts]
    while queue:
        value = queue.pop()
        if value is None or _needed(value, gone):
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input():
                initializers.add(value)
        elif node not in nodes and not any(_needed(out, gone) for out in node.outputs):
            nodes.add(node)
            reads = list(_reads_of(node))
            gone.update(reads)
            queue.extend(reader.inputs[index] for reader, index in reads)
    return Dead(frozenset(nodes), frozenset(initializers))


def _needed(value: ir.Value, gone: set[tuple[ir.Node, int]]) -> bool:
    return value.is_graph_output() or any(tuple(use) not in gone for use in value.uses())


def _reads_of(node: ir.Node) -> Iterator[tuple[ir.Node, int]]:
    """(node, input) of a node and of all nodes inside its bodies."""
    yield from ((node, index) for index in range(len(node.inputs)))
    for inner in (inner for graph in subgraphs(node) for inner in graph.all_nodes()):
        yield from ((inner, index) for index in range(len(inner.inputs)))


def drop_blocks(model: ir.Model, blocks: Sequence[ResidualBlock]) -> Dead:
    """Rewire y := x for each block and delete what is no longer used, in place.

    Args:
        model: the prepared model in which the blocks were found.
    Returns:
        what was deleted.
    """
    dead = dead_without(blocks)
    bypassed = [block for block in blocks if block.join not in dead.nodes]
    for block in bypassed:
        _bypass(model, block)
    _delete(model.graph, dead)
    for join in (b.join for b in bypassed if b.join.graph is not None):
        if not any(_needed(out, set()) for out in join.outputs):  # a normalisation for dropped branches only
            rest = _closure([(join, index) for index in range(len(join.inputs))])
            _delete(model.graph, Dead(rest.nodes | {join}, rest.initializers))
    restore(model)
    return dead


def _delete(graph: ir.Graph, dead: Dead) -> None:
    for node in [n for n in graph if n in dead.nodes]:
        graph.remove(node, safe=False)
        for reader, index in _reads_of(node):
            reader.replace_input_with(index, None)
    for value in dead.initializers:
        del graph.initializers[value.name or ""]


def _bypass(model: ir.Model, block: ResidualBlock) -> None:
    """Replace the sum by what is left of it without the branch."""
    join, graph = block.join, model.graph
    rest = [v for index, v in enumerate(join.inputs) if index != block.branch]
    if _is_skip_norm(join):
        _normalise_only(join, block.branch)
    elif len(rest) > 1:
        replace_node(graph, join, ir.node("Sum", rest, name=join.name))
    elif join.outputs[0].is_graph_output():
        replace_node(graph, join, ir.node("Identity", rest, name=join.name))
    else:
        assert rest[0] is not None
        join.outputs[0].replace_all_uses_with(rest[0])
        graph.remove(join, safe=True)


def _normalise_only(join: ir.Node, branch: int) -> None:
    """Without f, apply the same operator to x + x. Normalisation removes the factor of two if epsilon is multiplied by
    its square: 2 s / sqrt(4 v + 4 epsilon) = s / sqrt(v + epsilon), exactly."""
    place = _SKIP_NORMS[join.op_type]
    stream = join.inputs[1 - branch]
    bias = input_of(join, place)
    total = join.outputs[_SUM] if len(join.outputs) > _SUM else None
    if total is not None and (total.uses() or total.is_graph_output()):
        left = _insert(join, "sum", [v for v in (stream, bias) if v is not None], like=total)
        total.replace_all_uses_with(left, replace_graph_outputs=True)
        total.name, left.name = None, total.name
    if total is not None:
        join.resize_outputs(_SUM)
    if bias is not None:
        join.replace_input_with(place, _insert(join, "bias", [bias, bias], like=bias))
    join.replace_input_with(branch, stream)
    epsilon = join.attributes.get_float("epsilon", _EPSILON)
    join.attributes["epsilon"] = ir.AttrFloat32("epsilon", 4 * epsilon)


def _insert(join: ir.Node, what: str, operands: list[ir.Value], like: ir.Value) -> ir.Value:
    """Insert the sum of one or two values before a node; its shape and type are those of `like`."""
    name = f"{join.outputs[0].name}.{what}"
    node = ir.node("Add" if len(operands) > 1 else "Identity", operands, name=name)
    join.prepend(node)
    out = node.outputs[0]
    out.name, out.shape, out.type = name, like.shape, like.type
    return out
