"""The graph at two choices of its dynamic dimensions: what differs between them is not a constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.model.facts import Array, Facts, Shape, gather_facts


@dataclass(frozen=True)
class Geometry:
    """Facts at the analysed dimensions and, where some are dynamic, at others."""

    facts: Facts
    other: Facts | None = None

    def fixed(self, value: ir.Value | None) -> Array | None:
        """The content of a value where it is known and no dynamic dimension has a part in it."""
        known = self.facts.value(value)
        if known is None or value is None or self.other is None or value.const_value is not None:
            return known
        again = self.other.value(value)
        return known if again is not None and same_content(known, again) else None

    def is_dynamic(self, value: ir.Value, axis: int) -> bool:
        """Whether an axis is longer at other dimensions."""
        shape = self.other.shapes.get(value) if self.other is not None else None
        return shape is not None and shape[axis] != self.facts.shapes[value][axis]


def same_content(a: Array, b: Array) -> bool:
    """Equal shapes and elements; NaN equals NaN."""
    return bool(np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating)))


def view_geometry(
    model: ir.Model, inputs: Mapping[str, Shape], other_inputs: Mapping[str, Shape] | None = None
) -> tuple[Geometry, dict[str, Shape] | None]:
    """Facts at `inputs` and at `other_inputs`; returns also the other shapes, None where there are none.

    Where no other shapes are given they are chosen: every dynamic dimension twice as long (which keeps sums
    and products of dimensions consistent), or only the first axes where the model does not admit that.
    """
    facts = gather_facts(model, inputs)
    tries = [dict(other_inputs)] if other_inputs else [_doubled(model, inputs), _doubled(model, inputs, first=True)]
    for shapes in tries:
        if shapes == dict(inputs):
            continue
        other = gather_facts(model, shapes)
        if len(other.problems) <= len(facts.problems):
            return Geometry(facts, other), shapes
    return Geometry(facts), None


def _doubled(model: ir.Model, inputs: Mapping[str, Shape], first: bool = False) -> dict[str, Shape]:
    """Dynamic sizes times two; with `first` only the dimensions that lead some input (the batch)."""
    values = [v for v in model.graph.inputs if v.name in inputs and v.shape is not None]
    leading = {str(v.shape[0]) for v in values if v.shape is not None and len(v.shape)}
    out = dict(inputs)
    for value in values:
        assert value.shape is not None and value.name is not None
        out[value.name] = tuple(
            size if _is_fixed(dim) or (first and axis and str(dim) not in leading) else 2 * size
            for axis, (dim, size) in enumerate(zip(value.shape, inputs[value.name], strict=True))
        )
    return out


def _is_fixed(dim: object) -> bool:
    """Some exporters write -1 for a dimension that is free."""
    return isinstance(dim, int) and dim >= 0


def shape_derived(model: ir.Model, facts: Facts) -> set[ir.Value]:
    """Values whose known content was computed from the shape of some tensor (the head size, a fill as long as X)."""
    out: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type in ("Shape", "Size") or any(v in out for v in node.inputs if v is not None):
            out.update(v for v in node.outputs if v in facts.values)
    return out
