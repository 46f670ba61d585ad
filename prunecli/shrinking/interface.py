"""What a model takes and gives: outputs nobody needs, inputs nothing reads, a head for the last position only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError, did_you_mean
from prunecli.model import Dims, Model, concrete_shapes
from prunecli.model.constants import is_constant
from prunecli.model.graphs import add_constant, free_name, taken_names
from prunecli.model.shape_inference import Facts
from prunecli.operators import operator_of
from prunecli.operators.attributes import integer
from prunecli.shrinking.folding import drop_unused
from prunecli.verify.tolerance import Feed, Outputs

END = np.iinfo(np.int64).max
NORMALISING = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True)
class InterfaceChange:
    """One change of what a model takes or gives.

    `feed`: the changed model's inputs for those of the original. `outputs`: what it gives, from what the original does.
    `asked`: what the original is asked instead, where the changed model takes several inputs for one (ids that went).
    """

    feed: Callable[[Feed], Feed] = lambda feed: feed
    outputs: Callable[[Outputs], Outputs] = lambda outputs: outputs
    asked: Callable[[Feed], Feed] = lambda feed: feed


@dataclass(frozen=True)
class Dropped:
    """Outputs or inputs that went, and the nodes that only they used."""

    what: str
    names: tuple[str, ...]
    nodes: int
    change: InterfaceChange


def keep_outputs(model: ir.Model, names: Sequence[str]) -> Dropped | None:
    """Keep some outputs; None where there are no others.

    Raises:
        PruneError: there is no output of a name.
    """
    known = [value.name or "" for value in model.graph.outputs]
    for name in names:
        if name not in known:
            raise PruneError(f"the model has no output {name!r}",
                             did_you_mean(name, known, f"its outputs are {', '.join(known)}"))  # fmt: skip
    gone = tuple(name for name in known if name not in names)
    if not gone:
        return None
    kept = [value for value in model.graph.outputs if value.name in names]
    model.graph.outputs[:] = kept
    nodes = drop_unused(model.graph)
    left = tuple(value.name or "" for value in kept)
    change = InterfaceChange(outputs=lambda outputs: {name: outputs[name] for name in left})
    return Dropped("output", gone, len(nodes), change=change)


def drop_dead_inputs(model: ir.Model) -> Dropped | None:
    """Drop the inputs that nothing reads; None where there are none."""
    dead = [value for value in model.graph.inputs if not value.uses() and not value.is_graph_output()]
    if not dead or len(dead) == len(model.graph.inputs):
        return None
    names = tuple(value.name or "" for value in dead)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value not in dead]
    for value in dead:
        model.graph.initializers.pop(value.name or "", None)
    change = InterfaceChange(feed=lambda feed: {name: value for name, value in feed.items() if name not in names})
    return Dropped("input", names, 0, change=change)


@dataclass(frozen=True)
class LastToken:
    """The output that has its last position only. `begins`: the value of which only that is taken."""

    output: str
    begins: str
    positions: int | None
    change: InterfaceChange


@dataclass(frozen=True)
class _Head:
    """A chain of nodes that treat positions by themselves, from `value` to an output."""

    value: ir.Value
    reader: ir.Node
    chain: Sequence[ir.Node]
    output: ir.Value


def last_token(file: Model, dims: Dims) -> LastToken:
    """Let the head of a language model compute its last position only, in place.

    Raises:
        PruneError: no output has such a head, or several have one.
    """
    facts = concrete_shapes(file, dims).facts
    heads = [head for out in file.ir.graph.outputs if (head := _head(out, facts)) is not None]
    if not heads:
        raise PruneError("no output has a head over positions: (batch, positions, vocabulary) by a stored matrix",
                         "leave --last-token out")  # fmt: skip
    if len(heads) > 1:
        names = ", ".join(head.output.name or "" for head in heads)
        raise PruneError(f"several outputs have a head over positions: {names}", "keep one of them with --outputs")
    head = heads[0]
    _take_last(file.ir, head)
    name, length = head.output.name or "", facts.shapes[head.output][1]
    positions = length if head.output.shape is not None and isinstance(head.output.shape[1], int) else None
    for node in head.chain:
        _restate(node.outputs[0])

    def last(outputs: Outputs) -> Outputs:
        return {key: value[:, -1:] if key == name else value for key, value in outputs.items()}

    return LastToken(name, head.value.name or "", positions, change=InterfaceChange(outputs=last))


def _restate(value: ir.Value) -> None:
    if value.shape is not None:
        value.shape = ir.Shape([1 if axis == 1 else dim for axis, dim in enumerate(value.shape)])


def _head(out: ir.Value, facts: Facts) -> _Head | None:
    """The longest chain of nodes before an output that treat positions by themselves, with a matrix among them."""
    if len(facts.shapes.get(out, ())) != 3 or out.uses():
        return None
    chain: list[ir.Node] = []
    value, matrices = out, 0
    while (node := value.producer()) is not None and (data := _by_token(node, facts)) is not None:
        chain.append(node)
        matrices += node.op_type == "MatMul"
        value = data
        if len(value.uses()) > 1 or value.is_graph_output():
            break
    return _Head(value, chain[-1], chain, output=out) if matrices else None


def _by_token(node: ir.Node, facts: Facts) -> ir.Value | None:
    """The data input of a node that treats positions (axis 1 of 3) by themselves, None for another node."""
    data = [v for v in node.inputs if v is not None and not is_constant(v)]
    shape = facts.shapes.get(data[0]) if len(data) == 1 else None
    if shape is None or len(shape) != 3 or facts.shapes.get(node.outputs[0], ())[:2] != shape[:2]:
        return None
    others = [facts.shapes.get(v, ()) for v in node.inputs if v is not None and v is not data[0]]
    if operator_of(node).elementwise == "first" or node.op_type == "Dropout":
        return data[0]
    if node.op_type in ("Add", "Sub", "Mul", "Div") and all(len(s) < 2 or s[-2] == 1 for s in others):
        return data[0]
    if node.op_type == "MatMul" and node.inputs[0] is data[0] and len(others[0]) == 2:
        return data[0]
    if node.op_type in NORMALISING and integer(node, "axis", -1) in (-1, 2):
        return data[0]
    return None


def _take_last(model: ir.Model, head: _Head) -> None:
    """Put a Slice of the last position behind the value that the head begins with."""
    graph, name = model.graph, free_name(f"{head.value.name}.last", taken_names(model.graph))
    limits: dict[str, Any] = {"starts": [-1], "ends": [END], "axes": [1]}
    if (model.opset_imports.get("") or 0) < 10:
        inputs, attributes = [head.value], [ir.AttrInt64s(key, value) for key, value in limits.items()]
    else:
        bounds = [add_constant(graph, f"{name}.{key}", np.array(value, np.int64)) for key, value in limits.items()]
        inputs, attributes = [head.value, *bounds], []
    step = ir.Node("", "Slice", inputs, attributes, num_outputs=1, name=name)
    out = step.outputs[0]
    out.name, out.type, out.shape = name, head.value.type, head.value.shape
    _restate(out)
    graph.insert_before(head.reader, step)
    for place, value in enumerate(head.reader.inputs):
        if value is head.value:
            head.reader.replace_input_with(place, out)
