"""Recurrent layers: X (T, B, I), W (D, gates * H, I), R (D, gates * H, H), B (D, 2 * gates * H), P (D, 3 * H)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir

import prunecli.operators.layout as layout
from prunecli.operators.layout import Shape
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    Demand,
    DemandReading,
    Operator,
    Refused,
    Role,
    ShapeOf,
    Sum,
    bias,
    register,
    weight,
)

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _role(node: ir.Node, index: int, shape: Shape) -> Role | Refused | None:
    if index in (1, 2) and len(shape) == 3:
        return weight(layout.matrix(shape, 1, 2))
    if index == 3 or (index == 7 and node.op_type == "LSTM"):
        return bias(shape)
    return Refused(f"initial state of {node.op_type}") if index in (5, 6) else None


def _macs(node: ir.Node, shape: ShapeOf, out: Shape) -> tuple[int, int]:
    """T * B * D * gates * H * I of the input, and as many times H instead of I of the state.

    X is (T, B, I) or (B, T, I); quantised operands are stored transposed.
    """
    steps = math.prod(shape(0)[:2])
    return steps * math.prod(shape(1)), steps * math.prod(shape(2))


def _sums(node: ir.Node, rank: Callable[[int], int]) -> Iterator[Sum]:
    yield Sum(weight=1, axis=-1, data=0, data_axis=-1)


def _demand(asked: DemandReading) -> Demand:
    shape = asked.shape(1)
    return Demand((None, None, shape[2]), True) if asked.index == 0 and shape and len(shape) == 3 else NO_DEMAND


def _quantised_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    (steps, batch, _), (directions, _, gates) = shapes[0], shapes[1]
    hidden = gates // GATES["LSTM"]
    found: list[Shape | None] = [(steps, directions, batch, hidden), *[(directions, batch, hidden)] * 2]
    return found[: len(node.outputs)]


register(Operator(role=_role, macs=_macs, sums=_sums, demand=_demand, bias=3), " ".join(GATES))
register(Operator(macs=_macs, shapes=_quantised_shapes, quantised=True), "DynamicQuantizeLSTM", domain=MICROSOFT)
