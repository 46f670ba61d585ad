"""Residual blocks: where a graph computes y = x + f(x), f can be dropped whole and y becomes x.

A block is an `Add` (or a `Sum`, or the addition inside `SkipLayerNormalization`) of which one operand, the
branch f(x), is used nowhere else and is computed from the other, the stream x. Dropping is exact by
construction: it is the original with the branch forced to zero, since x + 0 = x. Attention and MLP of a
transformer layer are two blocks; a block inside another one's branch is a block of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.channels.edit import Removed
from prunecli.channels.views import Geometry
from prunecli.errors import PruneError
from prunecli.model.facts import Facts

_PASS = ("Identity", "Dropout", "Cast")
_LAYER_NORM_SINCE = 17


@dataclass(frozen=True)
class Block:
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
    """What nobody needs any more once some blocks are gone."""

    nodes: frozenset[ir.Node]
    initializers: frozenset[ir.Value]

    @property
    def params(self) -> int:
        """Elements of the floating-point initializers."""
        tensors = (v.const_value for v in self.initializers)
        return sum(int(t.size) for t in tensors if t is not None and t.dtype.is_floating_point())


def find_blocks(model: ir.Model, geometry: Geometry) -> list[Block]:
    """All residual blocks, in the order of the graph.

    Args:
        model: prepared (`prepare`): nodes in topological order, constants as initializers. Not changed.
        geometry: facts at the analysed dimensions and at others (`view_geometry`): the shapes of stream,
            branch and sum must agree at both.
    """
    blocks: list[Block] = []
    for node in model.graph:
        for branch, stream in _operands(node, model):
            block = _block(model, node, branch, stream, geometry)
            if block is not None:
                blocks.append(block)
                break
    return blocks


def _operands(node: ir.Node, model: ir.Model) -> Iterable[tuple[int, int]]:
    """(branch, stream) input indices to try."""
    joins = node.op_type in ("Add", "Sum") and node.domain == ""
    if joins and len(node.inputs) >= 2:
        return [(i, j) for i in range(len(node.inputs)) for j in range(len(node.inputs)) if i != j]
    recent = model.opset_imports.get("", 0) >= _LAYER_NORM_SINCE  # what is left is a LayerNormalization
    return [(0, 1), (1, 0)] if recent and _is_skip_norm(node) else []


def _is_skip_norm(node: ir.Node) -> bool:
    return node.op_type == "SkipLayerNormalization" and node.domain == "com.microsoft"


def _block(model: ir.Model, node: ir.Node, branch: int, stream: int, geometry: Geometry) -> Block | None:
    value, x = node.inputs[branch], node.inputs[stream]
    if value is None or x is None or value.is_graph_output() or len(list(value.uses())) != 1:
        return None
    if not _alike(geometry.facts, value, x, node) or not _alike(geometry.other, value, x, node):
        return None
    axis = _static_axis(value, geometry)
    dead = _closure(model, [(node, branch)])
    if axis is None or not _weighted(dead) or not _reads(dead, x, geometry.facts):
        return None
    name = node.name or node.outputs[0].name or ""
    return Block(name, node, branch, axis, geometry.facts.shapes[value][axis])


def _alike(facts: Facts | None, value: ir.Value, x: ir.Value, node: ir.Node) -> bool:
    """Branch, stream and sum have one shape and are floating-point."""
    if facts is None:
        return True
    shapes = {facts.shapes.get(v) for v in (value, x, node.outputs[0])}
    kind = facts.dtypes.get(value)
    floating = kind is not None and ir.DataType(kind).is_floating_point()
    return len(shapes) == 1 and None not in shapes and floating


def _static_axis(value: ir.Value, geometry: Geometry) -> int | None:
    """The channel axis (1 of images, else the last), or the first other one that has a fixed length."""
    rank = len(geometry.facts.shapes[value])
    order = [1 if rank >= 4 else rank - 1, *range(rank - 1, -1, -1)]
    return next((axis for axis in order if axis >= 0 and not _may_change(value, axis, geometry)), None)


def _may_change(value: ir.Value, axis: int, geometry: Geometry) -> bool:
    return axis >= len(geometry.facts.shapes[value]) or geometry.is_dynamic(value, axis)


def _weighted(dead: Dead) -> bool:
    """x + 0.04 x^3 inside a decomposed Gelu is no block: a block has weights (which others may share)."""
    tensors = (v.const_value for n in dead.nodes for v in n.inputs if v is not None)
    return any(
        t is not None and t.dtype.is_floating_point() and sum(n > 1 for n in t.shape.numpy()) >= 2 for t in tensors
    )


def _reads(dead: Dead, x: ir.Value, facts: Facts) -> bool:
    """Whether the branch is computed from the stream: some node of it takes x (or a copy of x) as data."""
    source = _origin(x)
    used = (v for n in dead.nodes if n.op_type not in ("Shape", "Size") for v in n.inputs if v is not None)
    return any(_origin(v) is source for v in used)


def _origin(value: ir.Value) -> ir.Value:
    """The value that `value` is a plain copy of."""
    while (node := value.producer()) is not None and node.op_type in _PASS and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def dead_without(model: ir.Model, blocks: Sequence[Block]) -> Dead:
    """What dropping these blocks together makes useless; the model is not changed."""
    return _closure(model, [(b.join, b.branch) for b in blocks])


def _closure(model: ir.Model, cuts: Sequence[tuple[ir.Node, int]]) -> Dead:
    """Follow uses backwards from the inputs that are cut off."""
    gone: set[tuple[ir.Node, int]] = set(cuts)
    nodes: set[ir.Node] = set()
    initializers: set[ir.Value] = set()
    queue = [node.inputs[index] for node, index in cuts]
    while queue:
        value = queue.pop()
        if value is None or value.is_graph_output() or any(tuple(use) not in gone for use in value.uses()):
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input():
                initializers.add(value)
        elif node not in nodes and not any(_needed(out, gone) for out in node.outputs):
            nodes.add(node)
            gone.update((node, index) for index in range(len(node.inputs)))
            queue.extend(_all_inputs(node, gone))
    return Dead(frozenset(nodes), frozenset(initializers))


def _needed(value: ir.Value, gone: set[tuple[ir.Node, int]]) -> bool:
    return value.is_graph_output() or any(tuple(use) not in gone for use in value.uses())


def _all_inputs(node: ir.Node, gone: set[tuple[ir.Node, int]]) -> list[ir.Value | None]:
    """What a node reads, the values its bodies capture included."""
    found = list(node.inputs)
    for attr in node.attributes.values():
        graphs = [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else []
        graphs += list(attr.as_graphs()) if attr.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            for inner in graph:
                gone.update((inner, index) for index in range(len(inner.inputs)))
                found.extend(_all_inputs(inner, gone))
    return found


def blocks_named(blocks: Sequence[Block], names: Iterable[str]) -> list[Block]:
    """The blocks of these names, in graph order.

    Raises:
        PruneError: there is no such block.
    """
    wanted = set(names)
    missing = wanted - {b.name for b in blocks}
    if missing:
        raise PruneError(f"there is no residual block {sorted(missing)[0]!r}", "see --dry-run for their names")
    return [b for b in blocks if b.name in wanted]


def drop_blocks(model: ir.Model, blocks: Sequence[Block]) -> Dead:
    """Rewire y := x for each block and delete what nobody needs any more, in place.

    Args:
        model: the prepared model in which the blocks were found.
    Returns:
        what was deleted.
    """
    dead = dead_without(model, blocks)
    for block in blocks:
        if block.join not in dead.nodes:
            _bypass(model, block)
    graph = model.graph
    for node in reversed([n for n in graph if n in dead.nodes]):
        graph.remove(node, safe=False)
    for value in dead.initializers:
        del graph.initializers[value.name or ""]
    return dead


def _bypass(model: ir.Model, block: Block) -> None:
    """Make the sum what is left of it without the branch."""
    join, graph = block.join, model.graph
    rest = [v for index, v in enumerate(join.inputs) if index != block.branch]
    if _is_skip_norm(join):
        _normalise_only(graph, join, rest)
    elif len(rest) > 1:
        _replace(graph, join, ir.Node("", "Sum", rest, num_outputs=1, name=join.name))
    elif join.outputs[0].is_graph_output():
        _replace(graph, join, ir.Node("", "Identity", rest, num_outputs=1, name=join.name))
    else:
        assert rest[0] is not None
        join.outputs[0].replace_all_uses_with(rest[0])
        graph.remove(join, safe=True)


def _normalise_only(graph: ir.Graph, join: ir.Node, rest: list[ir.Value | None]) -> None:
    """SkipLayerNormalization(x, f, scale, beta, bias) without f: LayerNormalization(x + bias)."""
    stream, scale, beta, bias = (*rest, None, None)[:4]
    epsilon = join.attributes.get("epsilon")
    total = join.outputs[3] if len(join.outputs) > 3 and join.outputs[3].name else None
    norm = ir.Node("", "LayerNormalization", [v for v in (stream, scale, beta) if v is not None],
                   [ir.AttrInt64("axis", -1), epsilon or ir.AttrFloat32("epsilon", 1e-12)],
                   num_outputs=1, name=join.name)  # fmt: skip
    if bias is not None or (total is not None and total.is_graph_output()):
        inputs = [stream] if bias is None else [stream, bias]
        add = ir.Node("", "Identity" if bias is None else "Add", inputs, num_outputs=1, name=f"{join.name}.sum")
        graph.insert_before(join, add)
        add.outputs[0].name = f"{join.outputs[0].name}.sum"
        add.outputs[0].shape, add.outputs[0].type = join.outputs[0].shape, join.outputs[0].type
        norm.replace_input_with(0, add.outputs[0])
    if total is not None:
        summed = norm.inputs[0]
        assert summed is not None
        total.replace_all_uses_with(summed, replace_graph_outputs=True)
    _replace(graph, join, norm)


def _replace(graph: ir.Graph, join: ir.Node, new: ir.Node) -> None:
    """Put a node in the place of another; its first output takes the name and the users of the old one."""
    graph.insert_before(join, new)
    old, out = join.outputs[0], new.outputs[0]
    out.shape, out.type = old.shape, old.type
    old.replace_all_uses_with(out, replace_graph_outputs=True)
    graph.remove(join, safe=True)
    old.name, out.name = None, old.name
