"""The registry of operators: a rule relates the positions of a node's tensors, a rewrite adapts its attributes to a
cut.

    @rule("MyNorm", domain="my.domain")
    def my_norm(ctx):
        ctx.elementwise(ctx.inputs[0], ctx.outputs[0])

    @rewrite("MyNorm", domain="my.domain")
    def my_norm_attributes(cut, node):
        cut.set_int(node, "channels", cut.size(node.inputs[0], 1))

    @shapes("MyNorm", domain="my.domain")
    def my_norm_shapes(node, inputs):
        return [inputs[0]]

A rule sees its node through `RuleContext`, whose methods are the statements it can make. An operator without a rule
freezes everything it touches; `barrier` registers the reason that the report then gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.atoms import AtomTable, Ints, Neutral
from prunecli.dependency.views import Geometry
from prunecli.model.shape_inference import Facts, Shape
from prunecli.operators import amend, macs_of
from prunecli.operators.operator import ShapeRule, input_of
from prunecli.registry import into_operators

if TYPE_CHECKING:
    from prunecli.dependency.edit import NodeCut

Rule = Callable[["RuleContext"], None]
Rewrite = Callable[["NodeCut", ir.Node], None]
Place = tuple[ir.Value, int]
"""An axis: a value and the index of the axis in its shape."""
RULES: dict[tuple[str, str], Rule] = {}
REWRITES: dict[tuple[str, str], Rewrite] = {}
BARRIERS: dict[tuple[str, str], str] = {}


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function that states the index relations of operators; a later registration wins."""

    def add(function: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = function
            BARRIERS.pop((domain, op), None)
        return function

    return add


rewrite = into_operators(REWRITES)
"""Register a function that adapts attributes and shape constants of a node to a cut."""


def shapes(*ops: str, domain: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register the output shapes of operators that ONNX does not know: (node, input shapes) -> output shapes.

    A shape is a tuple of ints, None for an input that is absent and for an output that is not known. The element
    type of the outputs is that of the first input.
    """

    def add(function: ShapeRule) -> ShapeRule:
        for op in ops:
            amend(op, domain, shapes=function)
        return function

    return add


def barrier(reason: str, *ops: str, domain: str = "") -> None:
    """Freeze everything these operators touch, for a reason that the report tells."""
    for op in ops:
        BARRIERS[domain, op] = reason


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one node, proportional to the kept fraction of each of `axes`."""

    node: ir.Node
    macs: int
    axes: tuple[int, ...]


@dataclass
class RuleContext:
    """One node, as its rule sees it. Shapes are concrete; `axis` names an axis for the statements below."""

    node: ir.Node
    geometry: Geometry
    table: AtomTable
    work: list[Work] = field(default_factory=list)
    opset: int = 0
    spoken: set[tuple[ir.Value, int]] = field(default_factory=set)
    """Axes that the rule has named so far."""

    @property
    def facts(self) -> Facts:
        """Shapes and known contents at the analysed dimensions."""
        return self.geometry.facts

    @property
    def inputs(self) -> Sequence[ir.Value | None]:
        return self.node.inputs

    @property
    def outputs(self) -> Sequence[ir.Value]:
        return self.node.outputs

    def x(self, index: int = 0) -> ir.Value:
        """An input that must be present."""
        value = self.input(index)
        assert value is not None, f"its input {index} is missing"
        return value

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.node.outputs[0]

    def input(self, index: int) -> ir.Value | None:
        """Return input `index`, or None where the node does not have it."""
        return input_of(self.node, index)

    def output(self, index: int) -> ir.Value | None:
        """Return output `index`, or None where the node does not have it or it has no name."""
        value = self.node.outputs[index] if index < len(self.node.outputs) else None
        return value if value is not None and is_named(value) else None

    def shape(self, value: ir.Value) -> Shape:
        return self.facts.shapes[value]

    def rank(self, value: ir.Value) -> int:
        return len(self.facts.shapes[value])

    def known(self, index: int) -> Array | None:
        """Return the content of input `index` where it is a shape computation or a constant."""
        return self.facts.value(self.input(index))

    def fixed(self, index: int) -> Array | None:
        """Return the content of input `index` where it is known and does not depend on dynamic dimensions."""
        return self.geometry.fixed(self.input(index))

    def int(self, name: str, default: int = 0) -> int:
        return self.node.attributes.get_int(name, default)

    def ints(self, name: str) -> tuple[int, ...] | None:  # type: ignore[valid-type]
        found = self.node.attributes.get_ints(name)
        return None if found is None else tuple(found)

    def string(self, name: str, default: str = "") -> str:
        return self.node.attributes.get_string(name, default)

    def dynamic(self, value: ir.Value, index: int) -> bool:  # type: ignore[valid-type]
        """Return whether the length of an axis depends on dynamic dimensions."""
        return self.geometry.is_dynamic(value, index % self.rank(value))

    def freeze_if_dynamic(self, value: ir.Value, index: int) -> None:  # type: ignore[valid-type]
        """Freeze an axis that positions are picked from, unless its length is the same at all dimensions."""
        if self.dynamic(value, index):
            self.freeze(value, f"{self.node.op_type} along a dynamic dimension", index)

    # -- statements -------------------------------------------------------------------------------

    def axis(self, value: ir.Value, index: int) -> int:  # type: ignore[valid-type]
        """Return the table's name for axis `index` (negative counts from the end) of a value."""
        shape = self.facts.shapes[value]
        index %= len(shape)
        axis = self.table.axis(value, index, shape[index])
        self.spoken.add((value, index))
        if is_shape_computation(value, self.facts):
            self.table.freeze(axis, "computed from shapes")
        return axis

    def tie(self, a: ir.Value | None, i: int, b: ir.Value, j: int) -> None:  # type: ignore[valid-type]
        """State that position p of axis i of a and position p of axis j of b are one. No statement where a is
        absent."""
        if a is not None:
            self.table.tie(self.axis(a, i), self.axis(b, j))

    def freeze(self, value: ir.Value | None, reason: str, axis: int | None = None) -> None:  # type: ignore[valid-type]
        """State that no position of the axis (of any axis, if None) may be removed."""
        if value is None or value not in self.facts.shapes:
            return
        for index in range(self.rank(value)) if axis is None else (axis,):
            self.table.freeze(self.axis(value, index), reason)

    def zero_is_absent(self, value: ir.Value, index: int) -> None:  # type: ignore[valid-type]
        """State that a zero at a position of this axis has the same result as its removal."""
        self.axis(value, index)

    def absent_as(self, value: ir.Value, index: int, neutral: Neutral) -> None:  # type: ignore[valid-type]
        """State that to this node a position of this axis is absent if it holds `neutral`, in place of zero."""
        self.table.absent(self.axis(value, index), neutral, self.node)

    def keep_at_least(self, value: ir.Value, index: int, count: int, reason: str) -> None:  # type: ignore[valid-type]
        """State that at least `count` positions of this axis stay."""
        self.table.keep(self.axis(value, index), count, reason)

    def freeze_unspoken(self) -> None:
        """Freeze every axis of an input that the rule has not named."""
        for value in self.node.inputs:
            if value is None or value not in self.facts.shapes:
                continue
            for index, size in enumerate(self.shape(value)):
                if size != 1 and (value, index) not in self.spoken:
                    self.freeze(value, f"{self.node.op_type} reads this axis as a whole", index)

    def freeze_node(self, reason: str) -> None:
        for value in (*self.node.inputs, *self.node.outputs):
            self.freeze(value, reason)

    def freeze_axes(self, values: Sequence[ir.Value | None], axes: Iterable[int], reason: str) -> None:  # type: ignore[valid-type]
        """Freeze these axes of all the values."""
        picked = list(axes)
        for value in values:
            for axis in picked:
                self.freeze(value, reason, axis)

    def align(self, a: ir.Value, b: ir.Value, skip: Iterable[int] = ()) -> None:  # type: ignore[valid-type]
        """Tie all axes but `skip` of two values of one rank; freeze those whose lengths differ."""
        left_out = {axis % self.rank(a) for axis in skip}
        for axis in range(self.rank(a)):
            if axis in left_out:
                continue
            if self.shape(a)[axis] == self.shape(b)[axis]:
                self.tie(a, axis, b, axis)
            else:
                self.freeze_axes((a, b), [axis], f"{self.node.op_type} changes the length of this axis")

    def elementwise(self, *values: ir.Value | None) -> None:
        """All but the last are inputs that broadcast (numpy rules) to the last; size-1 axes tie nothing."""
        *sources, out = (v for v in values if v is not None)
        shape = self.shape(out)
        for source in sources:
            offset = len(shape) - self.rank(source)
            for index, size in enumerate(self.shape(source)):
                if size == shape[index + offset] and size != 1:
                    self.tie(source, index, out, index + offset)

    def reshape(self, source: ir.Value, out: ir.Value) -> None:
        """Split and merge axes in row-major order; their common factors are tied one to one."""
        for group in reshape_groups(self.shape(source), self.shape(out)):
            if group.factors is None:
                reason = f"{self.node.op_type} splits the axis at no common factor"
                for value, axes in ((source, group.source), (out, group.target)):
                    for index in axes:
                        self.freeze(value, reason, index)
                continue
            virtual = [self.table.virtual(size) for size in group.factors]
            for value, spans in ((source, group.source_spans), (out, group.target_spans)):
                for index, (low, high) in spans.items():
                    self.table.product(self.axis(value, index), virtual[low:high])

    def map_positions(self, a: Place, ia: Ints, b: Place, ib: Ints) -> None:
        """Position ia[k] of axis a is position ib[k] of axis b. Frozen where one of them is dynamic."""
        if self.dynamic(*a) or self.dynamic(*b):
            for value, index in (a, b):
                self.freeze(value, f"{self.node.op_type} along a dynamic dimension", index)
        else:
            self.table.tie_positions(self.axis(*a), ia, self.axis(*b), ib=ib)

    def count(self, macs: float, *axes: int) -> None:  # type: ignore[valid-type]
        """State that the node does `macs` multiply-accumulates, proportional to the kept part of each axis."""
        self.work.append(Work(self.node, round(macs), tuple(axes)))

    def count_terms(self, *terms: Sequence[int]) -> None:  # type: ignore[valid-type]
        """State the axes to which each term of the node's multiply-accumulates (from `operators`) is proportional. An
        unknown number counts as nothing, as in `count_macs`."""
        for macs, axes in zip(macs_of(self.node, self.facts.shape) or [0] * len(terms), terms, strict=True):
            self.count(macs, *axes)


UNNAMED = "prunecli.unnamed"
"""Key in the `meta` of an output that has a name in the working form only."""


def is_named(value: ir.Value) -> bool:
    return bool(value.name) and UNNAMED not in value.meta


def is_shape_computation(value: ir.Value, facts: Facts) -> bool:
    """An integer or boolean value that was followed through the graph: geometry, not data."""
    if value not in facts.values or value.const_value is not None:
        return False
    return not ir.DataType(facts.dtypes[value]).is_floating_point()


@dataclass
class ReshapeGroup:
    """Consecutive source axes that hold the same elements as consecutive target axes."""

    source: list[int]
    target: list[int]
    factors: list[int] | None
    source_spans: dict[int, tuple[int, int]]
    target_spans: dict[int, tuple[int, int]]


def reshape_groups(source: Shape, target: Shape) -> list[ReshapeGroup]:
    """Split a row-major reshape into independent groups, each with the common refinement of its axes.

    Size-1 axes belong to no group. `factors` is None where no common refinement exists ((6, 4) -> (4, 6)).
    """
    a = [(i, n) for i, n in enumerate(source) if n != 1]
    b = [(i, n) for i, n in enumerate(target) if n != 1]
    groups: list[ReshapeGroup] = []
    i = j = 0
    while i < len(a) and j < len(b):
        i0, j0, left, right = i, j, a[i][1], b[j][1]
        i, j = i + 1, j + 1
        while left != right and (i < len(a) or j < len(b)):
            if (left < right or j >= len(b)) and i < len(a):
                left, i = left * a[i][1], i + 1
            else:
                right, j = right * b[j][1], j + 1
        groups.append(_group(a[i0:i], b[j0:j]))
    return groups


def _group(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> ReshapeGroup:
    cuts_a = np.cumprod([n for _, n in a]).tolist()
    cuts_b = np.cumprod([n for _, n in b]).tolist()
    cuts = sorted({1, *cuts_a, *cuts_b})
    refinable = all(y % x == 0 for x, y in itertools.pairwise(cuts)) and cuts_a[-1] == cuts_b[-1]
    factors = [y // x for x, y in itertools.pairwise(cuts)] if refinable else None

    def spans(axes: list[tuple[int, int]], ends: list[int]) -> dict[int, tuple[int, int]]:
        starts = [1, *ends[:-1]]
        return {axis: (cuts.index(s), cuts.index(e)) for (axis, _), s, e in zip(axes, starts, ends, strict=True)}

    empty = factors is None
    return ReshapeGroup(
        [i for i, _ in a], [i for i, _ in b], factors,
        source_spans={} if empty else spans(a, cuts_a), target_spans={} if empty else spans(b, cuts_b),
    )  # fmt: skip
