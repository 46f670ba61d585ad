"""What a node takes for an absent position.

To a sum a position is absent if it holds zero: that is so of every axis of which nothing else is said. A choice of the
largest (the experts that a token goes through) would take a zero for an offer; to it a position is absent if it holds
the lowest number of its type. A rule says so by `RuleContext.absent_as`.

A value has one number at a removed position, so an axis on which its readers take different numbers for absent stays
whole. Readers that keep positions apart take none: what they make of a removed position is removed, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from prunecli.dependency.atoms import AtomTable, Neutral
from prunecli.operators import operator_of

PASSING = frozenset({"Expand", "LogSoftmax", "Softmax"})
"""Operators that mix positions or repeat them, but on no axis that can be cut through them."""
MASKED_BEFORE = frozenset({"Flatten"})
"""Operators behind which no mask may stand (`structures.cut_plan.needed`)."""


def passes(node: ir.Node) -> bool:
    """Return whether a node keeps positions apart on every axis that can be cut through it: those that compute each
    position from the same one, those that only arrange axes anew, and PASSING."""
    known = operator_of(node)
    if node.domain == "" and node.op_type in PASSING | MASKED_BEFORE:
        return node.op_type in PASSING
    return known.elementwise is not None or known.moves == "axes"


def lowest(dtype: np.dtype[Any]) -> np.ndarray:
    """Return the lowest finite number of a floating-point type, as an array of no axes."""
    return np.asarray(ml_dtypes.finfo(dtype).min, dtype)  # type: ignore[no-untyped-call]


def neutral_of(table: AtomTable) -> dict[tuple[ir.Value, int], Neutral]:
    """(value, axis) -> what its readers take for absent, where that is not zero."""
    told = ((table.axes[each.axis], each.neutral) for each in table.absences if each.neutral != "zero")
    return {(axis.value, axis.index): neutral for axis, neutral in told if axis.value is not None}


def freeze_contradictions(table: AtomTable) -> None:
    """Freeze axes on which the readers of a value take different numbers for absent."""
    told: dict[int, dict[ir.Node, Neutral]] = defaultdict(dict)
    for each in table.absences:
        told[each.axis][each.reader] = each.neutral
    for axis, by in told.items():
        value = table.axes[axis].value
        assert value is not None
        other = next(_taking_zero(value, by), None) if set(by.values()) != {"zero"} else None
        if other is not None:
            first = next(iter(by)).op_type
            table.freeze(axis, f"an absent position is the lowest number to {first}, and zero to {other.op_type}")


def _taking_zero(value: ir.Value, told: Collection[ir.Node]) -> Iterator[ir.Node]:
    """Return the readers of a value that said nothing, or read it in another place, too, and do not keep positions
    apart."""
    readers = [use.node for use in value.uses()]
    return (node for node in readers if (node not in told or readers.count(node) > 1) and not passes(node))
