"""Values that onnxruntime knows only in a later folding pass, made of standard operators.

Folding frees nothing before its pass is over, then everything that is no longer read; it makes up to ten passes. A
constant that appears in pass i holds back whatever is computed from it, so that chains take turns and the memory
of one turn is free in the next. Each is a vector of one int64, 1:

    p(0)     = Abs([1])
    p(i + 1) = Abs(If(Cast(p(i)), Shape(v), Shape(v))),  v = Expand([1], p(i))

Pass i knows p(i), and so which branch is taken, and puts the branch in place of the If. Its Shape is not folded with
it: inside the branch the shape of v is not yet known. The next pass finds it as an ordinary node. Abs hides the value
from shape inference, which would know it sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from prunecli.storage.stored import constant

MOST = 10
MakeNode = Callable[[str, Sequence[ir.Value], Sequence[ir.Attr]], ir.Value]
Store = Callable[[ir.TensorProtocol], ir.Value]


class Passes:
    """Writes them into a graph, each once. `make` adds a node, `store` an initializer, `name` gives new names."""

    def __init__(self, make: MakeNode, store: Store, name: Callable[[], str]) -> None:
        self._make, self._store, self._name = make, store, name
        self._known: list[ir.Value] = []
        self._one: ir.Value | None = None

    def of(self, number: int) -> ir.Value:
        """p(number)."""
        if self._one is None:
            self._one = self._store(ir.tensor(np.ones(1, np.int64)))
            self._known.append(self._make("Abs", [self._one], []))
        while len(self._known) <= number:
            last = self._known[-1]
            condition = self._make("Cast", [last], [ir.AttrInt64("to", ir.DataType.BOOL)])
            value = self._make("Expand", [self._one, last], [])
            branches = [ir.AttrGraph(f"{side}_branch", self._branch(value)) for side in ("then", "else")]
            self._known.append(self._make("Abs", [self._make("If", [condition], branches)], []))
        return self._known[number]

    def _branch(self, value: ir.Value) -> ir.Graph:
        node = ir.Node("", "Shape", [value], name="")
        node.outputs[0].name = self._name()
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
        return ir.Graph([], node.outputs, nodes=[node], name=self._name())


@dataclass
class FoundPasses:
    """What a value of a pass is computed with, the nodes of branches included."""

    nodes: list[ir.Node] = field(default_factory=list)
    leaves: list[ir.Value] = field(default_factory=list)


def found(value: ir.Value | None) -> FoundPasses | None:
    """How `value` is computed if it is p(i) of some i, else None. Nothing else is taken for it: it is always 1."""
    got = FoundPasses()
    for _ in range(MOST):
        last = _producer(value, "Abs")
        if last is None:
            return None
        got.nodes.append(last)
        branching = _producer(last.inputs[0], "If")
        if branching is None:
            return got if _is_one(last.inputs[0], got) else None
        value = _previous(branching, got)
    return None


def _previous(branching: ir.Node, got: FoundPasses) -> ir.Value | None:
    """p(i) of the If of p(i + 1), if that is what it is."""
    condition = _producer(branching.inputs[0], "Cast")
    inner = [_shape_of(branching, name) for name in ("then_branch", "else_branch")]
    if condition is None or inner[0] is None or inner[1] is None or inner[0].inputs[0] is not inner[1].inputs[0]:
        return None
    expanded, to = _producer(inner[0].inputs[0], "Expand"), condition.attributes.get("to")
    if expanded is None or expanded.inputs[1] is not condition.inputs[0] or to is None:
        return None
    if not _is_one(expanded.inputs[0], got) or to.is_ref() or to.as_int() != ir.DataType.BOOL:
        return None
    got.nodes += [branching, condition, expanded, inner[0], inner[1]]
    return condition.inputs[0]


def _shape_of(branching: ir.Node, name: str) -> ir.Node | None:
    """The Shape node that is all of a branch."""
    attribute = branching.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.GRAPH:
        return None
    branch = attribute.as_graph()
    node = _producer(branch.outputs[0], "Shape") if len(branch.outputs) == 1 else None
    return node if node is not None and list(branch) == [node] and not node.attributes else None


ARITY = {"Abs": 1, "If": 1, "Cast": 1, "Shape": 1, "Expand": 2}


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != kind or node.domain:
        return None
    return node if len(node.outputs) == 1 and len(node.inputs) == ARITY[kind] else None


def _is_one(value: ir.Value | None, got: FoundPasses) -> bool:
    tensor = constant(value)
    if value is None or tensor is None or tensor.dtype != ir.DataType.INT64 or tuple(tensor.shape) != (1,):
        return False
    got.leaves.append(value)
    return int(tensor.numpy()[0]) == 1
