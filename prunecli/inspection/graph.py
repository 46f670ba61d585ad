"""Write the unit graph to a file, as GraphML or JSON by the suffix, and summarise it for reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from scipy.sparse import coo_array

from prunecli.dependency.unit_graph import UnitGraph
from prunecli.files import written
from prunecli.types import Json

KEYS = (("node", "name", "string"), ("node", "kind", "string"), ("node", "layer", "string"),
        ("node", "importance", "double"), ("edge", "weight", "double"))  # fmt: skip


@dataclass(frozen=True)
class LayerNode:
    """One group of units, or one other node. `units`: their number; `importance`: its sum over them; `each`: the
    importance of each, the largest first."""

    name: str
    kind: str
    units: int
    importance: float
    each: list[float]


@dataclass(frozen=True)
class GraphView:
    """The unit graph by layers, for reports. `layers`: in the order of the network; `links`: (layer that is read, layer
    that reads, share of all that this one reads)."""

    path: str
    units: int
    edges: int
    layers: list[LayerNode]
    links: list[tuple[int, int, float]]

    @classmethod
    def of(cls, graph: UnitGraph, path: str) -> GraphView:
        groups, rank = graph.catalogue.groups, graph.importance()
        label = np.concatenate([graph.catalogue.group_of, len(groups) + np.arange(len(graph.names))])
        sums = np.bincount(label, rank, minlength=len(groups) + len(graph.names))
        nodes = [(g.name, str(g.kind), g.count) for g in groups]
        nodes += [(name, kind, 0) for name, kind in zip(graph.names, graph.kinds, strict=True)]
        each = [sorted(rank[label == place].tolist(), reverse=True) for place in range(len(nodes))]
        layers = [LayerNode(*node, float(own), mine) for node, own, mine in zip(nodes, sums, each, strict=True)]
        energy = graph.edges.power(2).tocoo()
        between = coo_array((energy.data, (label[energy.row], label[energy.col])), shape=(len(layers), len(layers)))
        between = between.tocsr().tocoo()
        total = np.bincount(between.col, between.data, minlength=len(layers))
        links = [
            (int(a), int(b), float(w / total[b]))
            for a, b, w in zip(between.row, between.col, between.data, strict=True)
        ]
        return cls(path, graph.units, graph.edges.nnz, layers=layers, links=links)


def write_graph(graph: UnitGraph, path: Path) -> None:
    """Write nodes with name, kind, layer (group) and importance, and edges with their weights. A unit's kind is its
    group's; an edge leads from the unit that is read to its reader.

    Raises:
        PruneError: the file cannot be written.
    """
    nodes, edges = list(_nodes(graph)), _edges(graph)
    with written(path, "graph") as file:
        if path.suffix.lower() == ".json":
            table = {"schema": "prunecli/unit-graph/1", "directed": True, "nodes": nodes,
                     "edges": [{"source": a, "target": b, "weight": w} for a, b, w in edges]}  # fmt: skip
            file.write(json.dumps(table, allow_nan=False) + "\n")
            return
        file.write('<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
        for owner, name, kind in KEYS:
            file.write(f'  <key id="{name}" for="{owner}" attr.name="{name}" attr.type="{kind}"/>\n')
        file.write('  <graph edgedefault="directed">\n')
        for node in nodes:
            data = "".join(_data(name, node[name]) for owner, name, _ in KEYS if owner == "node")
            file.write(f'    <node id="n{node["id"]}">{data}</node>\n')
        for source, target, weight in edges:
            file.write(f'    <edge source="n{source}" target="n{target}">{_data("weight", weight)}</edge>\n')
        file.write("  </graph>\n</graphml>\n")


def _data(name: str, value: object) -> str:
    text = quoteattr(str(value))[1:-1]
    return f'<data key="{name}">{text}</data>'


def _nodes(graph: UnitGraph) -> Iterator[Json]:
    rank = graph.importance().tolist()
    for group in graph.catalogue.groups:
        for number in range(group.count):
            node = group.first + number
            yield {"id": node, "name": f"{group.name}[{number}]", "kind": group.kind, "layer": group.name,
                   "importance": rank[node]}  # fmt: skip
    for node, (name, kind) in enumerate(zip(graph.names, graph.kinds, strict=True), graph.units):
        yield {"id": node, "name": name, "kind": kind, "layer": name, "importance": rank[node]}


def _edges(graph: UnitGraph) -> Iterator[tuple[int, int, float]]:
    """Yield (read, reader, weight) row by row, so that no second copy of all edges is held."""
    edges = graph.edges
    for node in range(graph.count):
        part = slice(int(edges.indptr[node]), int(edges.indptr[node + 1]))
        for reader, weight in zip(edges.indices[part].tolist(), edges.data[part].tolist(), strict=True):
            yield node, reader, weight
