"""Names that nothing in a model has yet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx_ir as ir


def taken_names(graph: ir.Graph) -> set[str]:
    """Names of the values and nodes of a graph and of the graphs inside its nodes."""
    return set(_names(graph))


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or `name` with the first number that makes it new; from then on it is taken."""
    candidates = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    found = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(found)
    return found


def _names(graph: ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        yield value.name or ""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield node.name or ""
        yield from (value.name or "" for value in node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _ends(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    yield from _ends(inner)


def _ends(graph: ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        yield value.name or ""
