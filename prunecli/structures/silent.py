"""Find values that are zero wherever the weights before them are: they need no mask.

A mask between operators keeps onnxruntime from fusing them into integer kernels, which it uses in the model without the
mask. So the proof of a quantised model masks stored tensors, and computed values only where zero weights do not make
them zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.model.constants import behind
from prunecli.operators import operator_of

Positions = Mapping[str, Mapping[int, Array]]
KEEPING = frozenset({
    "Abs", "AveragePool", "Cast", "Concat", "Elu", "Erf", "Flatten", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
    "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mish", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMean",
    "ReduceSum", "Relu", "Reshape", "Resize", "Selu", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "Transpose", "Add", "Unsqueeze", "Upsample",
})  # fmt: skip
"""Operators that map zeros to zeros, if every input that loses positions is zero there."""


def silent(graph: ir.Graph, removed: Positions) -> set[str]:
    """Return the names of the computed values that are zero at their removed positions if stored ones are zero there,
    and values that are not silent are masked.

    Args:
        graph: in floating point, in the order in which it runs.
        removed: positions by value and axis.
    """
    found = set[str]()
    for node in graph:
        rule = _silence_rule(node)
        if rule is not None and rule(node, removed):
            found.update(out.name for out in node.outputs if out.name and out.name in removed)
    return found


SilenceRule = Callable[[ir.Node, Positions], bool]


def _silence_rule(node: ir.Node) -> SilenceRule | None:
    if node.domain:
        return None
    if node.op_type in KEEPING:
        return _keeps
    return {"Mul": _multiplies, "Clip": _clips, "BatchNormalization": _normalises}.get(
        node.op_type, _weighs if operator_of(node).contraction is not None else None
    )


def _loses(value: ir.Value | None, removed: Positions) -> bool:
    """Return whether a value has zeros: where it loses positions, it is silent, masked or stored."""
    return value is not None and value.name in removed


def _keeps(node: ir.Node, removed: Positions) -> bool:
    """Operands that broadcast lose nothing and are not zero; values moved along other axes need not be."""
    if node.op_type in ("Add", "Sub", "Sum"):
        return all(_loses(value, removed) for value in node.inputs)
    if node.op_type == "Pad":
        filler = behind(node.inputs[2]) if len(node.inputs) > 2 else None
        given = len(node.inputs) > 2 and node.inputs[2] is not None
        plain = node.attributes.get_string("mode", "constant") == "constant"
        zero = filler is not None and not filler.array().any() if given else not node.attributes.get_float("value", 0.0)
        if not (plain and zero):
            return False
    return node.op_type == "Concat" or _loses(node.inputs[0], removed)


def _multiplies(node: ir.Node, removed: Positions) -> bool:
    return any(_loses(value, removed) for value in node.inputs)


def _clips(node: ir.Node, removed: Positions) -> bool:
    """The limits include zero."""
    limits = [behind(value) for value in node.inputs[1:3] if value is not None]
    if any(limit is None for limit in limits):
        return False
    low = [limit.array().min() for limit in limits[:1] if limit is not None]
    high = [limit.array().max() for limit in limits[1:] if limit is not None]
    low += [node.attributes.get_float("min", 0.0)]
    high += [node.attributes.get_float("max", 0.0)]
    return _loses(node.inputs[0], removed) and max(low) <= 0 <= min(high)


def _normalises(node: ir.Node, removed: Positions) -> bool:
    """Scale and offset are stored, and so zero."""
    return all(_loses(value, removed) and behind(value) is not None for value in node.inputs[1:3])


def _weighs(node: ir.Node, removed: Positions) -> bool:
    """A layer whose weight rows and offsets at these positions are stored, and so zero."""
    rows, out = operator_of(node).rows, node.outputs[0]
    weight = behind(node.inputs[1]) if rows is not None else None
    if rows is None or weight is None:
        return False
    own = rows(node) % len(weight.shape)
    lost = {weight.axis(own): weight.name}.items()
    if not all(axis in removed.get(name, {}) for axis, name in lost):
        return False
    added = node.inputs[2] if len(node.inputs) > 2 else None
    same = len(removed.get(out.name or "", {})) == 1  # along the rows alone
    return same and (added is None or (_loses(added, removed) and behind(added) is not None))
