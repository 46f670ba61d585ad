"""From a graph to its units: run every node's rule, solve the ties, follow the factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

import prunecli.channels.rules  # noqa: F401 - fills the registry
from prunecli.channels.atoms import AtomTable, Components, solve
from prunecli.channels.context import Context, Work, is_shape_computation
from prunecli.channels.registry import RULES
from prunecli.channels.units import Family, find_families
from prunecli.model.facts import Facts, Shape, gather_facts


@dataclass
class Analysis:
    """Everything known about what can be cut from a model.

    `families` hold the units (see `units.py`); `components` maps them to atoms; `work` lists the
    multiply-accumulates and the axes they are proportional to.
    """

    model: ir.Model
    inputs: dict[str, Shape]
    facts: Facts
    components: Components
    families: list[Family]
    work: list[Work]


def analyse(model: ir.Model, inputs: Mapping[str, Shape]) -> Analysis:
    """State the relations of every operator and find all units.

    Args:
        model: nodes in topological order, local functions inlined. Not changed.
        inputs: concrete shape of every graph input (`gather_facts`).
    """
    facts = gather_facts(model, inputs)
    table, work = AtomTable(), list[Work]()
    _freeze_interface(model, facts, table)
    for node in model.graph:
        _apply_rule(Context(node, facts, table, work))
    components = solve(table)
    return Analysis(model, dict(inputs), facts, components, find_families(components), work)


def _freeze_interface(model: ir.Model, facts: Facts, table: AtomTable) -> None:
    for values, reason in ((model.graph.inputs, "graph input"), (model.graph.outputs, "graph output")):
        for value in values:
            if value.const_value is None or reason == "graph output":
                for index, size in enumerate(facts.shapes.get(value, ())):
                    table.freeze(table.axis(value, index, size), reason)


def _apply_rule(ctx: Context) -> None:
    node = ctx.node
    if node.op_type == "Constant" and node.domain == "":
        return
    captured = list(_captured(node))
    if captured:
        for value in captured:
            ctx.freeze(value, f"used inside the body of {node.op_type}")
        return
    if node.outputs and all(is_shape_computation(v, ctx.facts) for v in node.outputs if v.name):
        return
    function = RULES.get((node.domain, node.op_type))
    unknown = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name and v not in ctx.facts.shapes]
    if function is None:
        name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        ctx.freeze_node(f"no rule for operator {name}")
    elif unknown:
        ctx.freeze_node(f"shape of {unknown[0].name!r} depends on data or is unknown")
    else:
        function(ctx)


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """All values a node with bodies (If, Loop, Scan) uses or yields, those its bodies capture included."""
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPHS:
            graphs.extend(attr.as_graphs())
    if not graphs:
        return
    yield from (v for v in (*node.inputs, *node.outputs) if v is not None)
    while graphs:
        graph = graphs.pop()
        yield from graph.outputs
        for inner in graph:
            yield from (v for v in inner.inputs if v is not None)
            for attr in inner.attributes.values():
                if attr.type == ir.AttributeType.GRAPH:
                    graphs.append(attr.as_graph())
                elif attr.type == ir.AttributeType.GRAPHS:
                    graphs.extend(attr.as_graphs())
