"""Shapes and contents at two choices of the dynamic dimensions, which tell constants from what depends on those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.model.shape_inference import Facts, Shape, gather_facts
from prunecli.operators import operator_of


@dataclass(frozen=True)
class Geometry:
    """Facts at the analysed dimensions and, where some are dynamic, at others."""

    facts: Facts
    other: Facts | None = None

    def fixed(self, value: ir.Value | None) -> Array | None:
        """Return the content of a value where it is known and independent of dynamic dimensions."""
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
    and products of dimensions consistent), or only those of which the model admits another length.
    """
    facts = gather_facts(model, inputs)
    if other_inputs:
        other = gather_facts(model, other_inputs)
        found = (other, dict(other_inputs)) if _admitted(facts, other) and other_inputs != inputs else None
    else:
        found = _choose(model, inputs, facts)
    return (Geometry(facts), None) if found is None else (Geometry(facts, found[0]), found[1])


def single_views(model: ir.Model, inputs: Mapping[str, Shape]) -> Iterator[Facts]:
    """Return facts with one dynamic dimension at 1, each in turn, where the model accepts that: broadcasting shows."""
    facts = gather_facts(model, inputs)
    names = _names(model, inputs)
    for name in dict.fromkeys(name for dims in names.values() for name in dims if name):
        shapes = dict(inputs)
        for value, dims in names.items():
            sizes = zip(dims, inputs[value], strict=True)
            shapes[value] = tuple(1 if dim == name else size for dim, size in sizes)
        view = gather_facts(model, shapes, patience=len(facts.problems))
        if _admitted(facts, view):
            yield view


Choice = tuple[Facts, dict[str, Shape]]
STRETCHES = (Fraction(2), Fraction(3, 2), Fraction(5, 4))


def _choose(model: ir.Model, inputs: Mapping[str, Shape], facts: Facts) -> Choice | None:
    names = dict.fromkeys(name for dims in _names(model, inputs).values() for name in dims if name)
    if not names:
        return None
    whole = _try(model, inputs, facts, factors=dict.fromkeys(names, STRETCHES[0]))
    if whole is not None:
        return whole
    alone = {name: _one(model, inputs, facts, name=name) for name in names}
    good = {name: factor for name, (factor, choice) in alone.items() if choice is not None}
    together = _try(model, inputs, facts, factors=good) if len(good) > 1 else None
    return together or next((choice for _, choice in alone.values() if choice is not None), None)


def _one(model: ir.Model, inputs: Mapping[str, Shape], facts: Facts, name: str) -> tuple[Fraction, Choice | None]:
    for factor in STRETCHES:
        choice = _try(model, inputs, facts, factors={name: factor})
        if choice is not None:
            return factor, choice
    return Fraction(1), None


def _try(model: ir.Model, inputs: Mapping[str, Shape], facts: Facts, factors: Mapping[str, Fraction]) -> Choice | None:
    """Return the graph with stretched dimensions, None where nothing changes or the model does not accept it."""
    shapes = dict(inputs)
    for value, names in _names(model, inputs).items():
        shapes[value] = tuple(
            size if name is None else int(size * factors.get(name, Fraction(1)))
            for name, size in zip(names, inputs[value], strict=True)
        )
    if shapes == dict(inputs):
        return None
    other = gather_facts(model, shapes, patience=len(facts.problems))
    return (other, shapes) if _admitted(facts, other) else None


def _admitted(facts: Facts, other: Facts) -> bool:
    return len(other.problems) <= len(facts.problems)


def is_fixed(dim: int | ir.SymbolicDim) -> bool:
    """Return whether a dimension is fixed. Some exporters write -1 for a free one."""
    return isinstance(dim, int) and dim >= 0


def name_of(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


def open_shape(rank: int) -> ir.Shape:
    """Return the shape of an input of unknown rank: no dimension is fixed."""
    return ir.Shape([None] * rank)


def _names(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, list[str | None]]:
    """Per graph input the name of each dimension, None where it is fixed; nameless leading ones are one batch."""
    out: dict[str, list[str | None]] = {}
    for value in model.graph.inputs:
        if value.name in inputs:
            out[value.name or ""] = [
                None if is_fixed(dim) else name_of(dim) or (f"{value.name}.{axis}" if axis else "batch")
                for axis, dim in enumerate(value.shape or open_shape(len(inputs[value.name or ""])))
            ]
    return out


def shape_derived(model: ir.Model, facts: Facts) -> set[ir.Value]:
    """Return values whose known content was computed from the shape of a tensor (the head size, a fill as long as
    X)."""
    out: set[ir.Value] = set()
    for node in model.graph:
        if operator_of(node).of_shape or any(v in out for v in node.inputs if v is not None):
            out.update(v for v in node.outputs if v in facts.values)
    return out
