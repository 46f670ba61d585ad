"""Which values a plan lists: those at which forcing the removed positions to zero makes a difference.

Along a chain of element-wise operators a position only ever meets itself, so that zeros at the end of the chain
are enough. To list every link would be harmful: a variance forced to zero behind its epsilon is divided by, and a
masked attention score is minus infinity, which a multiplication by zero does not make zero.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from prunecli.channels.edit import Removed

PASSING = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Expand", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "LogSoftmax", "Max", "Min", "Mish", "Mul", "Neg",
    "PRelu", "Pow", "Reciprocal", "Relu", "Reshape", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Transpose", "Unsqueeze",
    "Where",
})  # fmt: skip
"""Operators that keep positions apart on every axis that can be cut through them."""


def needed(graph: ir.Graph, listed: Removed) -> Removed:
    """Leave out computed values that are only read by passing operators whose results are listed, and what Flatten
    makes of listed ones.

    Args:
        graph: of the user's file.
        listed: everything that loses positions, by the names of that file.
    """
    inner = _captured(graph)
    passing = {
        value.name
        for node in graph
        for value in node.outputs
        if node.op_type != "Constant" and value not in inner and _is_passed_on(value, listed)
    }
    # onnxruntime's own inference of flattened lengths is wrong for pools with ceil_mode: a mask there cannot be opened
    moved = {
        n.outputs[0].name for n in graph if n.op_type == "Flatten" and _name(n.inputs[0]) in listed.keys() - passing
    }
    return {name: axes for name, axes in listed.items() if name not in passing | moved}


def _name(value: ir.Value | None) -> str | None:
    return None if value is None else value.name


def _is_passed_on(value: ir.Value, listed: Collection[str]) -> bool:
    uses = list(value.uses())
    return bool(uses) and not value.is_graph_output() and all(_passes(use.node, listed) for use in uses)


def _passes(node: ir.Node, listed: Collection[str]) -> bool:
    return node.domain == "" and node.op_type in PASSING and all(o.name in listed for o in node.outputs if o.name)


def _captured(graph: ir.Graph) -> set[ir.Value]:
    """Values that the bodies of nodes use."""
    inner = (node for node in graph.all_nodes() if node.graph is not graph)
    return {value for node in inner for value in node.inputs if value is not None and value.graph is graph}
