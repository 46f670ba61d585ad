"""Reading packed tensors: chains become dense tensors.

A chain is recognised by the name of its last node, and taken only if everything it computes from is stored and all
of its operators are of the kinds that chains have. Anything else stays in the graph as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

import prunecli.storage.passes as passes
from prunecli.errors import PruneError
from prunecli.storage.evaluate import DAMAGED, Recent, Wrong, dense, dtype_of, shape_of
from prunecli.storage.stored import constant
from prunecli.storage.writing import HELD, MARK

ANY = range(1, 1 << 16)
KINDS: dict[str, tuple[Container[int], set[str]]] = {
    "Cast": ({1}, {"to", "saturate"}), "Mul": ({2}, set()), "Reshape": ({2}, set()), "Transpose": ({1}, {"perm"}),
    "Slice": ({3}, set()), "Gather": ({2}, set()), "CumSum": ({2}, set()), "ConstantOfShape": ({1}, {"value"}),
    "ScatterElements": ({3}, {"axis"}), "ScatterND": ({3}, set()), "Compress": ({2}, set()), "Range": ({3}, set()),
    "Concat": (ANY, {"axis"}), "Split": ({1, 2}, {"split"}), "Expand": ({2}, set()),
}  # fmt: skip
"""The operators of chains: how many inputs each may have, and the attributes that may be stated."""
ALWAYS_FINE = 64 << 20
"""Bytes a dense form may take whatever is stored."""
MAX_GROWTH = 1000
"""Beyond that, dense bytes per stored byte: a few bytes must not allocate gigabytes."""
KEEP_UP_TO = 1 << 30
"""Dense bytes up to which tensors stay in memory, as those of an ordinary file do; others are computed when read."""
NODES_LOOKED_AT = 64
"""On average of the nodes of a graph, while chains are traced: they share nodes, but not that many times."""


@dataclass(frozen=True)
class PackedTensor:
    """A tensor that was packed: its name, the bytes stored for it alone, and whether the file describes it."""

    name: str
    nbytes: int
    graph: ir.Graph
    described: bool


@dataclass(frozen=True)
class _Chain:
    """`value`: its result. `nodes` compute it from `leaves`, which are stored; some may be other chains', too."""

    graph: ir.Graph
    value: ir.Value
    nodes: tuple[ir.Node, ...]
    leaves: tuple[ir.Value, ...]

    @property
    def held(self) -> str | None:
        """The name of the Constant node that held it, if one did."""
        name, start = self.nodes[0].name or "", f"{HELD}{self.value.name}/"
        return name.removeprefix(start) if name.startswith(start) else None


def resolve(graphs: Iterable[ir.Graph], functions: Iterable[ir.Graph], where: str) -> list[PackedTensor]:
    """Put a dense tensor in place of every chain; what was found. `functions`: which of the graphs are functions'.

    Raises:
        PruneError: a chain with positions out of range, or a size out of all proportion.
    """
    bodies = {id(graph) for graph in functions}
    chains = [chain for graph in graphs for chain in _chains(graph, id(graph) in bodies, where)]
    sizes = [_dense_bytes(chain, where) for chain in chains]
    stored = _stored(chains, sizes)
    found = [
        PackedTensor(c.value.name or "", nbytes, c.graph, described=c.value.type is not None)
        for c, nbytes in zip(chains, stored, strict=True)
    ]
    recent = Recent()
    for chain in chains:
        _replace(chain, sum(sizes) <= KEEP_UP_TO, where, recent=recent)
    _clean(chains)
    return found


def _chains(graph: ir.Graph, function: bool, where: str) -> Iterator[_Chain]:
    """Those of a graph; functions have no initializers."""
    left = NODES_LOOKED_AT * (len(graph) + NODES_LOOKED_AT)
    for node in graph:
        name, made = node.name or "", node.outputs[0].name if node.outputs else ""
        if (function or name != f"{MARK}{made}") and not name.startswith(f"{HELD}{made}/"):
            continue
        chain, looked_at = _trace(graph, node)
        left -= looked_at
        if chain is not None:
            yield chain
        if left < 0:
            raise PruneError(f"{where}: its packed tensors share too many nodes", DAMAGED)


def _trace(graph: ir.Graph, last: ir.Node) -> tuple[_Chain | None, int]:
    """Everything `last` is computed from, None if it is not all stored in this graph; and how many nodes it took."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[ir.Value, None] = {}
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if not _is_known(node, last) or node.graph is not graph:
            return None, len(nodes)
        nodes[node] = None
        inputs = node.inputs
        if node.op_type == "Expand" and constant(node.inputs[1]) is None:
            turn, inputs = passes.found(node.inputs[1]), node.inputs[:1]
            if turn is None or any(each.graph is not graph for each in turn.nodes if each.op_type != "Shape"):
                return None, len(nodes)
            nodes |= dict.fromkeys(turn.nodes)
            leaves |= dict.fromkeys(turn.leaves)
        for value in inputs:
            producer = value.producer() if value is not None else None
            if value is None or (constant(value) is None and producer is None):
                return None, len(nodes)
            if constant(value) is not None:
                leaves[value] = None
            elif producer is not None and producer not in nodes:
                waiting.append(producer)
    return _Chain(graph, last.outputs[0], tuple(nodes), leaves=tuple(leaves)), len(nodes)


def _is_known(node: ir.Node, last: ir.Node) -> bool:
    """Pieces are joined last, and parts are only reshaped: nested, they would cost exponential time."""
    if node.op_type == "Concat" and node is not last:
        return False
    if node.op_type == "Split" and not (last.op_type == "Reshape" and last.inputs[0] in node.outputs):
        return False
    if node.domain or node.op_type not in KINDS or (len(node.outputs) != 1) != (node.op_type == "Split"):
        return False
    arity, stated = KINDS[node.op_type]
    plain = all(name in stated and not attribute.is_ref() for name, attribute in node.attributes.items())
    return len(node.inputs) in arity and plain


def _stored(chains: list[_Chain], sizes: list[int]) -> list[int]:
    """Bytes of the leaves of each chain; those of several are shared out by the sizes of what they decode to."""
    whole: Counter[ir.Value] = Counter()
    for chain, size in zip(chains, sizes, strict=True):
        whole.update(dict.fromkeys(chain.leaves, size))
    return [
        round(sum(tensor.nbytes * size / (whole[leaf] or 1)
                  for leaf in chain.leaves if (tensor := constant(leaf)) is not None))
        for chain, size in zip(chains, sizes, strict=True)
    ]  # fmt: skip


def _dense_bytes(chain: _Chain, where: str) -> int:
    name, stored = chain.value.name, sum(t.nbytes for leaf in chain.leaves if (t := constant(leaf)) is not None)
    try:
        size = math.prod(shape_of(chain.value)) * dtype_of(chain.value).bitwidth // 8
    except (Wrong, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PruneError(f"{where}: the packed tensor '{name}' makes no sense: {error}", DAMAGED) from error
    if size > max(ALWAYS_FINE, MAX_GROWTH * stored):
        raise PruneError(f"{where}: the packed tensor '{name}' would take {size} bytes from {stored}", DAMAGED)
    return size


def _replace(chain: _Chain, keep: bool, where: str, recent: Recent) -> None:
    """A dense tensor of the same name: a Constant where the chain's values lie in one, else an initializer."""
    value = chain.value
    array = dense(value, where, recent)  # what is wrong is told now, not when somebody reads it
    dtype, shape = dtype_of(value), ir.Shape(array.shape)

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(dense(value, where, recent)), dtype=dtype, shape=shape)

    tensor: ir.TensorProtocol
    if keep:
        tensor = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, shape=shape, name=value.name)
    else:
        tensor = ir.LazyTensor(compute, dtype=dtype, shape=shape, name=value.name)
    if chain.held is not None:
        made = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", tensor)}, name=chain.held)
        chain.graph.insert_before(chain.nodes[0], made)
        new = made.outputs[0]
        new.name, new.type, new.shape = value.name, value.type, value.shape
    else:
        new = ir.Value(name=value.name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)
        chain.graph.initializers[value.name or ""] = new
    new.doc_string = value.doc_string
    new.metadata_props.update(value.metadata_props)
    ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)


def _clean(chains: list[_Chain]) -> None:
    """Take out of the graphs what only the chains read. Nodes keep their inputs: tensors may yet be computed."""
    gone = {node for chain in chains for node in chain.nodes}
    own = {
        (node, output)
        for chain in chains
        for node in chain.nodes
        if node.graph is chain.graph
        for output in node.outputs
    }  # not those inside branches, which go with their If
    kept = [node for node, output in own if output.is_graph_output() or _read_outside(output, gone)]
    while kept:
        node = kept.pop()
        if node in gone:
            gone.remove(node)
            kept += [p for i in node.inputs if i is not None and (p := i.producer()) is not None]
    for chain in chains:
        chain.graph.remove([node for node in chain.nodes if node in gone and node.graph is chain.graph])
        for leaf in chain.leaves:
            if leaf.is_graph_output() or _read_outside(leaf, gone):
                continue
            producer = leaf.producer()
            if producer is not None and producer.graph is not None:
                producer.graph.remove(producer)
            elif producer is None and leaf.graph is not None:
                leaf.graph.initializers.pop(leaf.name or "", None)


def _read_outside(value: ir.Value, gone: set[ir.Node]) -> bool:
    return any(use.node not in gone for use in value.uses())
