"""Splitting models that differ late: what they share is run once, and only what follows for each of them.

Shared are values that equal nodes compute from equal inputs; the prefix computes them, and a suffix is the rest of
one model. The values on the border become outputs of one and inputs of the other. That is exact, whatever was cut
or inserted: nothing is taken from one model for another that the other does not compute itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx

from prunecli.model.protos import graphs_in

Node = onnx.NodeProto
Graph = onnx.GraphProto


def reads(node: Node) -> set[str]:
    """Return the names that a node reads from its graph: its inputs, and what its sub-graphs read from outside."""
    names = {name for name in node.input if name}
    for graph in graphs_in(node.attribute):
        names |= _captured(graph)
    return names


def _captured(graph: Graph) -> set[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    used = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
    return used - own


def shared(models: Sequence[onnx.ModelProto]) -> set[str]:
    """Return the computed values that are the same in all models, given the same feed. Nodes are in topological
    order."""
    first, *others = (model.graph for model in models)
    if any(list(model.functions) != list(models[0].functions) for model in models[1:]):
        return set()
    tables = [{tensor.name: tensor for tensor in graph.initializer} for graph in others]
    stored = {tensor.name for tensor in first.initializer}.union(*tables)
    same = {tensor.name for tensor in first.initializer if all(t.get(tensor.name) == tensor for t in tables)}
    same |= {value.name for value in first.input if value.name not in stored}
    nodes = [{tuple(node.output): node for node in graph.node} for graph in others]
    made: set[str] = set()
    for node in first.node:
        if reads(node) <= same and all(table.get(tuple(node.output)) == node for table in nodes):
            made.update(name for name in node.output if name)
            same.update(node.output)
    return made


def beyond(graph: Graph, early: Collection[str]) -> list[bool]:
    """Return, per node, whether it is late: it computes a value that is not among the early ones."""
    return [any(name and name not in early for name in node.output) for node in graph.node]


def border(graph: Graph, late: list[bool]) -> list[str]:
    """Return the computed values that the late nodes, or the outputs, read from the others."""
    early = {
        name for node, is_late in zip(graph.node, late, strict=True) if not is_late for name in node.output if name
    }
    wanted = [name for node, is_late in zip(graph.node, late, strict=True) if is_late for name in sorted(reads(node))]
    wanted += [value.name for value in graph.output]
    return list(dict.fromkeys(name for name in wanted if name in early))


def suffix(model: onnx.ModelProto, late: list[bool], frontier: Mapping[str, int]) -> onnx.ModelProto:
    """Return the late nodes as a model, with the border (name -> ONNX element type) as inputs. Outputs of the model
    that lie on the border are not among its outputs."""
    graph = model.graph
    nodes = [node for node, is_late in zip(graph.node, late, strict=True) if is_late]
    needed = {name for node in nodes for name in reads(node)}
    made = {name for node in nodes for name in node.output}
    inputs = [value for value in graph.input if value.name in needed]
    inputs += [onnx.helper.make_tensor_value_info(n, kind, None) for n, kind in frontier.items() if n in needed]
    outputs = [value for value in graph.output if value.name in made]
    return _model(model, nodes, inputs, outputs=outputs)


def prefix(model: onnx.ModelProto, late: list[bool], frontier: Collection[str]) -> onnx.ModelProto:
    """Return the early nodes that the border needs, as a model."""
    wanted, nodes = set(frontier), []
    for node, is_late in zip(reversed(model.graph.node), reversed(late), strict=True):
        if not is_late and wanted.intersection(node.output):
            nodes.append(node)
            wanted |= reads(node)
    nodes.reverse()
    inputs = [value for value in model.graph.input if value.name in wanted]
    return _model(model, nodes, inputs, outputs=[onnx.ValueInfoProto(name=name) for name in frontier])


def _model(
    model: onnx.ModelProto, nodes: list[Node], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    used = {name for node in nodes for name in reads(node)}
    stored = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = onnx.GraphProto(name=model.graph.name or "part")
    graph.node.extend(nodes)
    graph.initializer.extend(stored)
    graph.input.extend(value for value in inputs if value.name not in {tensor.name for tensor in stored})
    graph.output.extend(outputs)
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.CopyFrom(graph)
    return part
