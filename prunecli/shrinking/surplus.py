"""Which units of a model go without changing what it computes.

A unit may go if at every sum over its positions each term that a kept result has of it is zero, or can be had
otherwise: a constant goes into the bias, a multiple of a kept slice into that slice's weight. Everything else that a
unit touches treats its positions by themselves. The set that is looked for is the largest: units that only feed units
which go, go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.dependency.neutral import neutral_of
from prunecli.dependency.rules.reductions import reduced_axes
from prunecli.operators import operator_of
from prunecli.operators.attributes import number as number_of
from prunecli.operators.operator import input_of
from prunecli.operators.product import matrix_axes
from prunecli.operators.recurrent import GATES
from prunecli.shrinking.contraction import RECURRENT, WeightedSum, fixed
from prunecli.shrinking.numbering import SliceNumbering
from prunecli.shrinking.slices import Ints

BY_POSITION = (
    "AveragePool", "ConstantOfShape", "Dropout", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Hardmax",
    "LogSoftmax", "LpPool", "MaxPool", "MeanVarianceNormalization", "Resize", "Softmax", "Trilu", "Upsample",
)  # fmt: skip
BY_HEAD = frozenset(("Attention", "GroupQueryAttention", "MultiHeadAttention"))
"""Operators that treat heads by themselves, not the positions inside them."""


@dataclass(frozen=True, eq=False)
class End:
    """Where positions meet: `node` sums, or does anything, over an axis of a value.

    `contraction`: with stored weights. `excused`: positions that need not be there, because all that is made of them is
    zero or can be had by a bias. `heads`: whole heads do not meet here.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    excused: Array
    contraction: WeightedSum | None = None
    heads: bool = False


@dataclass(frozen=True)
class Merge:
    """A unit whose slices are multiples of those of another, which stays."""

    unit: int
    into: int


@dataclass
class Surplus:
    """What may go. `removed`: a mask over units; `merges`: of those, which add to another."""

    removed: Array
    merges: list[Merge] = field(default_factory=list)


class Finder:
    """Finds the units of an analysed model that can go without changing its outputs."""

    def __init__(self, catalogue: Catalogue, numbering: SliceNumbering) -> None:
        self.units, self.numbering = catalogue, numbering
        self.solved = catalogue.analysis.components
        self.chosen_by = neutral_of(self.solved.table)
        self.ends = [end for node in reversed(list(numbering.graph)) for end in self._ends(node)]

    def find(self, allowed: Array) -> Surplus:
        """Return the surplus among the allowed units."""
        allowed = allowed & np.array([g.approximation == "" for g in self.units.groups], bool)[self.units.group_of]
        removed = self._unneeded(allowed)
        while stays := self._emptied(removed):
            allowed = allowed.copy()
            allowed[stays] = False
            removed = self._unneeded(allowed)
        merges = self._equal(allowed, removed)
        removed = removed.copy()
        removed[[one.unit for one in merges]] = True
        return Surplus(removed, merges)

    # -- ends -------------------------------------------------------------------------------------

    def atoms(self, value: ir.Value, axis: int) -> Ints | None:
        """The atoms of an axis of a value, None where no rule has named it."""
        number = self.solved.table.numbers.get((value, axis))
        return None if number is None else self.solved.atoms(number)

    def _ends(self, node: ir.Node) -> Iterator[End]:
        """Where positions of the inputs of a node meet."""
        numbering = self.numbering
        found = numbering.contractions.get(node, [])
        for one in found:
            slices = numbering.of(one.data, one.axis)
            excused = slices.constant if one.plain and may_fold(one) else slices.zero
            yield End(node, one.data, one.axis, excused=excused, contraction=one)
        if found and not _computed_weights(node, found):
            return
        if not found and _is_by_position(node):
            return
        for value, axis in self._meeting(node):
            yield End(node, value, axis, excused=self._absent(node, value, axis), heads=node.op_type in BY_HEAD)

    def _meeting(self, node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
        numbering = self.numbering
        data = [v for v in dict.fromkeys(node.inputs) if v is not None and numbering.is_data(v)]
        if node.op_type.startswith("Reduce") and data:
            axes = reduced_axes(node, numbering.rank(data[0]), numbering.facts.value(input_of(node, 1)))
            yield from ((data[0], axis) for axis in (range(numbering.rank(data[0])) if axes is None else axes))
        elif node.op_type in ("MatMul", "FusedMatMul"):
            for index, value in enumerate(node.inputs[:2]):
                if value is not None and value in numbering.facts.shapes:
                    yield value, _inner(node, index, numbering.rank(value))
        else:
            yield from ((v, axis) for v in data for axis in range(numbering.rank(v)))

    def _absent(self, node: ir.Node, value: ir.Value, axis: int) -> Array:
        """Positions of an axis at which a product is zero: in a MatMul one zero factor is enough. To a choice of the
        largest a zero is not absent."""
        zero = self.numbering.of(value, axis).zero
        if (value, axis) in self.chosen_by:
            return np.zeros_like(zero)
        if node.op_type in ("MatMul", "FusedMatMul"):
            for index, other in enumerate(node.inputs[:2]):
                if other is not None and other in self.numbering.facts.shapes:
                    zero = zero | self.numbering.of(other, _inner(node, index, self.numbering.rank(other))).zero
        return zero

    # -- what is not needed -----------------------------------------------------------------------

    def _unneeded(self, allowed: Array) -> Array:
        """The largest set of allowed units of which no kept result needs anything."""
        removed = allowed.copy()
        while True:
            before = removed.copy()
            for end in self.ends:
                gone = self.units.removed_atoms(removed)
                bad = self._needed(end, gone)
                if bad is not None and bad.any():
                    removed = removed & ~self._touching(end, bad)
            if np.array_equal(before, removed):
                return removed

    def _needed(self, end: End, gone: Array) -> Array | None:
        """Return a mask over the positions of an end that go although a kept result needs them; None without atoms."""
        atoms = self.atoms(end.value, end.axis)
        if atoms is None:
            return None
        bad: Array = gone[atoms] & ~end.excused
        if end.contraction is None or not bad.any():
            return bad
        return bad & end.contraction.reads(self.kept(end.contraction, gone))

    def kept(self, one: WeightedSum, gone: Array) -> Array:
        """Which positions of a result stay."""
        if one.out_axis is None:
            return np.ones(1, bool)
        atoms = self.atoms(one.out, one.out_axis)
        size = self.numbering.facts.shapes[one.out][one.out_axis]
        return np.ones(size, bool) if atoms is None else ~gone[atoms]

    def _touching(self, end: End, bad: Array) -> Array:
        """Mask over the units that have one of these positions."""
        atoms = self.atoms(end.value, end.axis)
        assert atoms is not None
        marked = np.zeros(len(self.units.axis_of_atom), np.int64)
        marked[atoms[bad]] = 1
        counts = np.concatenate([[0], np.cumsum(marked[self.units.atoms])])
        hit: Array = counts[self.units.start[1:]] > counts[self.units.start[:-1]]
        if end.heads:
            hit = hit & np.array([g.kind != "head" for g in self.units.groups], bool)[self.units.group_of]
        return hit

    def _emptied(self, removed: Array) -> list[int]:
        """Return one unit to keep for each axis that would otherwise be empty."""
        kept = self.units.kept(removed)
        empty = set(np.flatnonzero((kept <= 0) & (self.units.sizes > 0)).tolist())
        stays: list[int] = []
        for group in self.units.groups:
            mine = np.flatnonzero(removed[group.units]) + group.first
            if empty.intersection(group.axes) and len(mine):
                stays.append(int(mine[0]))
                empty -= set(group.axes)
        return stays

    # -- what is there twice ----------------------------------------------------------------------

    def _equal(self, allowed: Array, removed: Array) -> list[Merge]:
        """Return the units that are multiples of an earlier unit wherever they are read, each with that unit."""
        out: list[Merge] = []
        for group in self.units.groups:
            if group.count < 2 or not (allowed & ~removed)[group.units].any():
                continue
            columns = self._signature(group)
            if columns is None:
                continue
            leaders: dict[bytes, int] = {}
            for number, row in enumerate(np.ascontiguousarray(columns)):
                unit = group.first + number
                if removed[unit]:
                    continue
                leader = leaders.setdefault(row.tobytes(), unit)
                if leader != unit and allowed[unit]:
                    out.append(Merge(unit, leader))
        return out

    def _signature(self, group: Group) -> Array | None:
        """(units, numbers): units with equal rows are multiples of each other at each end; None where some end does not
        allow it."""
        columns: list[Array] = []
        for end in self.ends:
            positions = self.positions(group, end.value, end.axis)
            if positions is None or (end.heads and group.kind == "head"):
                continue
            slices = self.numbering.of(end.value, end.axis)
            if end.contraction is not None and _channelwise(end.contraction):
                continue
            if end.contraction is None or not may_merge(end.contraction):
                if not end.excused[positions].all():
                    return None
                continue
            columns += [slices.group[positions], slices.zero[positions].astype(np.int64)]
        if not columns:
            return None
        made = np.concatenate(columns, axis=1)
        return made if len(np.unique(made, axis=0)) < group.count else None

    def positions(self, group: Group, value: ir.Value, axis: int) -> Ints | None:
        """(units, positions of each on an axis of a value), None where the group is not on that axis."""
        root = self.solved.table.root(value, axis)
        if root is None or root not in group.axes:
            return None
        low, high = self.units.start[group.first], self.units.start[group.first + group.count]
        atoms = self.units.atoms[low:high]
        mine = atoms[self.units.axis_of_atom[atoms] == root] - int(self.solved.offset[root])
        return np.sort(mine.reshape(group.count, -1), axis=1)


def _is_by_position(node: ir.Node) -> bool:
    """Whether a node treats the positions of every axis that the coupling rules let go by themselves."""
    known = operator_of(node)
    return bool(known.elementwise or known.moves or known.of_shape or known.scaled_by) or node.op_type in BY_POSITION


def _inner(node: ir.Node, index: int, rank: int) -> int:
    """The axis of an operand of MatMul that is summed over."""
    axes = matrix_axes(node, index, rank)
    return axes[-1] if index == 0 or rank == 1 else axes[-2]


def _computed_weights(node: ir.Node, found: Sequence[WeightedSum]) -> bool:
    """Whether a recurrent operator has a weight that is not stored."""
    return node.op_type in GATES and len(found) < 2


def _channelwise(one: WeightedSum) -> bool:
    """Whether each position has rows of its own, which go with it (a depthwise convolution)."""
    return one.grouped and one.groups > 1 and one.layout.canonical_shape[3] == 1


def may_merge(one: WeightedSum) -> bool:
    """Return whether columns of the weight may be added up: nothing else reads it, and each row has all columns."""
    return one.weight.is_own and not (one.grouped and one.groups > 1)


def may_fold(one: WeightedSum) -> bool:
    """Whether a constant can be added to the result, by a bias stored or not there yet, and its column cleared."""
    recurrent = one.node.op_type in GATES
    if one.out_axis is None or one.node.domain != "" or not one.weight.is_own:
        return False
    if (recurrent and one.index == RECURRENT) or (one.groups > 1 and not one.grouped and not recurrent):
        return False
    place, beta = operator_of(one.node).bias, number_of(one.node, "beta", 1.0)
    if place is None:
        return one.node.op_type == "MatMul"
    if beta == 0:  # of Gemm, which then reads no bias
        return False
    value = input_of(one.node, place)
    return value is None or fixed(value) is not None
