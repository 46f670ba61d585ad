"""How strong signals are along a graph, read off the weights alone, and how far a change of one reaches the outputs.

The power of a value is the mean of its squares where inputs have power 1, entries are independent and of mean 0:

    y = W x + b      sum_k w_rk^2, mean over rows r, times the power of x, plus the mean of b^2
    normalisation    mean of scale^2 + offset^2
    sums             powers add
    Relu and alike   half

The reach of a value is by how much the outputs change, relative to their power, per relative change of the value. A
layer hands on all of it, a sum the part that the summand has in its power, other operators of several computed values
equal parts: what splits and meets again is whole. This is the mean field of Poole et al. (2016) and
Schoenholz et al. (2017), with what the file says of widths, scales and sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from prunecli.model.constants import behind
from prunecli.model.graphs import captured
from prunecli.model.weights import Weight
from prunecli.operators import operator_of

GATE = 0.25
"""Power of a number between 0 and 1."""
SUMS = {"Add", "Sum", "Sub"}
LEAST, MOST = 1e-12, 1e12
"""A mask that is added has infinite power; it says nothing of the other summand."""


@dataclass
class Flow:
    """By value: its power; its reach; the layers whose output it is a function of, no other layer in between; how many
    layers lie between the inputs and it, and between it and the outputs; how many sums of several computed values
    follow; whether a gate follows before the next layer.

    `scales`: by layer, the factors of the normalisation that alone reads it, one per row."""

    power: dict[ir.Value, float] = field(default_factory=dict)
    reach: dict[ir.Value, float] = field(default_factory=dict)
    sources: dict[ir.Value, frozenset[int]] = field(default_factory=dict)
    before: dict[ir.Value, int] = field(default_factory=dict)
    after: dict[ir.Value, int] = field(default_factory=dict)
    sums: dict[ir.Value, int] = field(default_factory=dict)
    gated: dict[ir.Value, bool] = field(default_factory=dict)
    scales: dict[int, np.ndarray] = field(default_factory=dict)


def flow_of(graph: ir.Graph, weights: Sequence[Weight]) -> Flow:
    """Walk along the graph and back. Layers are numbered as `weights` are."""
    layers: dict[ir.Node, list[int]] = {}
    for number, weight in enumerate(weights):
        for use in weight.uses:
            if use.kind == "weight":
                layers.setdefault(use.node, []).append(number)
    flow = Flow()
    for value in graph.inputs:
        if not value.is_initializer():
            _know(flow, value, 1.0, sources=frozenset(), before=0)
    for node in graph:
        _forward(flow, node, layers.get(node, []), weights=weights)
    for value in graph.outputs:
        flow.reach[value] = flow.reach.get(value, 0.0) + 1.0 / len(graph.outputs)
    for node in reversed(list(graph)):
        _backward(flow, node, bool(layers.get(node)))
    return flow


def _know(flow: Flow, value: ir.Value, power: float, sources: frozenset[int], before: int) -> None:
    flow.power[value] = max(power, LEAST) if power < MOST else 1.0
    flow.sources[value], flow.before[value] = sources, before


def _computed(flow: Flow, node: ir.Node) -> list[ir.Value]:
    """What it reads, bodies included, that is computed from the graph's inputs."""
    return [value for value in (*node.inputs, *dict.fromkeys(captured(node))) if value in flow.power]


def _forward(flow: Flow, node: ir.Node, layers: Sequence[int], weights: Sequence[Weight]) -> None:
    given = _computed(flow, node)
    if not given:
        return
    sources = frozenset(layers) if layers else frozenset().union(*(flow.sources[v] for v in given))
    before = max(flow.before[v] for v in given) + bool(layers)
    power = _power(flow, node, given, weights=[weights[k] for k in layers])
    if node.op_type == "BatchNormalization" and len(sources) == 1 and _alone(given[0]):
        scale = behind(node.inputs[1]) if node.inputs[1] is not None else None
        if scale is not None:
            flow.scales[next(iter(sources))] = np.asarray(scale.array(), np.float64).reshape(-1)
    for value in node.outputs:
        _know(flow, value, power, sources=sources, before=before)


def _alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1


def _power(flow: Flow, node: ir.Node, given: Sequence[ir.Value], weights: Sequence[Weight]) -> float:
    op, known, powers = node.op_type, operator_of(node), [flow.power[v] for v in given]
    if weights:
        return powers[0] * max(_gain(weight) for weight in weights) + _constants(flow, node, skip=weights)
    if known.scaled_by:  # the power of the scale and the offset
        return sum(_square(node.inputs[i]) for i in known.scaled_by if i < len(node.inputs)) or 1.0
    if op in SUMS:
        return sum(powers) + _constants(flow, node)
    if op in ("Mul", "Div"):
        return float(np.prod(powers)) if op == "Mul" and len(given) > 1 else powers[0] * _factor(flow, node)
    if known.activation == "gate":
        return GATE
    if known.activation == "rectifier":
        return powers[0] / 2
    if op == "MatMul":
        return float(np.prod(powers))
    return float(np.mean(powers)) if op == "Concat" else powers[0]


def _gain(weight: Weight) -> float:
    """Mean over rows of the sum of squares."""
    batch, rows, _, _ = weight.layout.canonical_shape
    flat = weight.array().reshape(-1).astype(np.float32, copy=False)
    found = float(np.vdot(flat, flat)) / max(batch * rows, 1)
    weight.release()
    return found


def _square(value: ir.Value | None) -> float:
    """Mean square of a stored value; 0 where it is none."""
    constant = None if value is None else behind(value)
    return 0.0 if constant is None else float(np.square(constant.array(), dtype=np.float64).mean())


def _constants(flow: Flow, node: ir.Node, skip: Sequence[Weight] = ()) -> float:
    """Mean squares of what is added: stored inputs that are no matrices."""
    taken = {use.index for weight in skip for use in weight.uses if use.node is node}
    return sum(
        _square(v) for i, v in enumerate(node.inputs) if v is not None and i not in taken and v not in flow.power
    )


def _factor(flow: Flow, node: ir.Node) -> float:
    """What a stored factor makes of the power; single numbers are scales that make up for lengths of sums."""
    stored = [v for v in node.inputs if v is not None and v not in flow.power]
    if all((constant := behind(v)) is None or constant.array().size == 1 for v in stored):
        return 1.0
    found = _constants(flow, node)
    return found if node.op_type == "Mul" else 1 / max(found, LEAST)


def _backward(flow: Flow, node: ir.Node, is_layer: bool) -> None:
    given = _computed(flow, node)
    reach = sum(flow.reach.get(v, 0.0) for v in node.outputs)
    after = max((flow.after.get(v, 0) for v in node.outputs), default=0) + is_layer
    several, is_gate = node.op_type in SUMS and len(given) > 1, operator_of(node).activation == "gate"
    sums = max((flow.sums.get(v, 0) for v in node.outputs), default=0) + several
    total = sum(flow.power[v] for v in given)
    for value in given:
        share = 1.0
        if several:
            share = flow.power[value] / total
        elif len(given) > 1:
            share = 1 / len(given)
        elif is_gate:
            share = GATE
        gated = is_gate or (not is_layer and any(flow.gated.get(v, False) for v in node.outputs))
        flow.gated[value] = flow.gated.get(value, False) or gated
        flow.reach[value] = flow.reach.get(value, 0.0) + reach * share
        flow.after[value] = max(flow.after.get(value, 0), after)
        flow.sums[value] = max(flow.sums.get(value, 0), sums)
