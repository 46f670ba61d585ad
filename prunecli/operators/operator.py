"""The data types of what is said of an operator, and the table of operators.

An entry of the table is an `Operator`: every field is one fact, None where it does not apply. To teach the program an
operator, write its entry in the module of its family (docs/architecture.md):

    register(Operator(role=at(weight=(1,)), macs=my_macs), "MyConv", domain="my.domain")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import onnx_ir as ir

import prunecli.operators.layout as layout
from prunecli.arrays import Array
from prunecli.operators.attributes import UnreadableAttributeError
from prunecli.operators.layout import Layout, Shape

MICROSOFT = "com.microsoft"
ONNX_ML = "ai.onnx.ml"
Key = tuple[str, str]
"""Domain and type of an operator."""
Kind = Literal["weight", "bias", "norm", "embedding"]


@dataclass(frozen=True)
class Role:
    """A parameter of `kind`, read as `layout`."""

    kind: Kind
    layout: Layout


@dataclass(frozen=True)
class Refused:
    """A parameter that cannot be pruned, and why."""

    reason: str


@dataclass(frozen=True)
class PositionGate:
    """`value` has for each position of a layer the factor by which what comes out is multiplied further on; `total` is
    what that is added to, of the same positions."""

    value: str
    total: str


@dataclass(frozen=True)
class Contraction:
    """How a node multiplies a weight with data: output = weight . columns(data) + constant.

    The weight is read as (batch, rows, K) with K = taps x cols, taps outermost, as `Layout` has them.

    Attributes:
        data: the value that is multiplied with the weight.
        output: the value that comes out.
        columns: (data, shape of the output, positions or None) -> (batch, K, R) float32: one column per position.
        targets: (output, positions or None) -> (batch, rows, R) float32, positions in the same order.
        positions: shape of the output -> how many R there are.
        channel: the axis of the output, from its end, along which the rows of the weight lie.
        rank: of the output, None if it is that of the data.
        bias: the node's input that is added to every row, None if there is none.
        bias_place: the node's input at which something may be added to every row, None if there is no such.
        gate: an error at a position counts its square; None: all count the same.
    """

    data: str
    output: str
    columns: Callable[[Array, Shape, Array | None], Array]
    targets: Callable[[Array, Array | None], Array]
    positions: Callable[[Shape], int]
    channel: int
    rank: int | None = None
    bias: int | None = None
    bias_place: int | None = None
    gate: PositionGate | None = None

    @property
    def result(self) -> str:
        """The value whose positions tell which of the layer's are of any use."""
        return self.output if self.gate is None else self.gate.total


@dataclass(frozen=True)
class Sum:
    """Axis `axis` of the input `weight` is summed over together with axis `data_axis` of the input `data`; both axes
    count from the end. `groups`: the axis is read once per group, on consecutive stretches of the data."""

    weight: int
    axis: int
    data: int
    data_axis: int
    groups: int = 1


@dataclass(frozen=True)
class Demand:
    """Sizes that are asked of a value: `sizes` of its last axes, None for any; `whole`: it has no other axes."""

    sizes: tuple[int | None, ...] = ()
    whole: bool = False

    def __or__(self, other: Demand) -> Demand:
        """Both; where they contradict each other, the first."""
        longest = len(self.sizes) if self.whole else len(other.sizes) if other.whole else None
        pairs = zip_longest(reversed(self.sizes), reversed(other.sizes))
        sizes = [a if a is not None else b for a, b in pairs][:longest]
        return Demand(tuple(reversed(sizes)), self.whole or other.whole)


NO_DEMAND = Demand()


@dataclass(frozen=True)
class DemandReading:
    """Input `index` of a node: `after` is asked of the node's first output. `shapes`, `arrays`: of the inputs that are
    computed from constants alone, None of the others."""

    node: ir.Node
    index: int
    after: Demand
    shapes: Sequence[Shape | None]
    arrays: Sequence[Array | None]

    def shape(self, index: int) -> Shape | None:
        return self.shapes[index] if index < len(self.shapes) else None


@dataclass(frozen=True)
class Standard:
    """The standard operator whose output has the same shape, made from some of the inputs and attributes."""

    op_type: str
    inputs: tuple[int, ...]
    attributes: frozenset[str]


ShapeOf = Callable[[int], Shape]
RoleRule = Callable[[ir.Node, int, Shape], Role | Refused | None]
MacsRule = Callable[[ir.Node, ShapeOf, Shape], int | tuple[int, ...]]
ContractionRule = Callable[[ir.Node, int, Shape], Contraction | None]
SumsRule = Callable[[ir.Node, Callable[[int], int]], Iterable[Sum]]
DemandRule = Callable[[DemandReading], Demand]
ShapeRule = Callable[[ir.Node, list[Any]], Sequence[Shape | None]]


@dataclass(frozen=True)
class Operator:
    """What the program knows of an operator besides its coupling rule and its gradient.

    Attributes:
        role: (node, index, shape of that input) -> what a constant there is; None if it is no parameter.
        macs: (node, shape of input i, shape of output 0) -> multiply-accumulates, one number per term of a sum.
        contraction: (node, index, shape of the weight) -> how that weight is multiplied with data.
        sums: (node, rank of stored input i) -> the axes of its weights that are summed over.
        rows: node -> the axis of input 1 along which the channels of the output lie.
        demand: what it asks of the size of an input.
        shapes: (node, shapes of the inputs) -> shapes of the outputs, where ONNX infers none.
        standard: the standard operator by which ONNX infers its shape.
        type_of: the input that has the element type of the output; None: the output is float32.
        bias: the input that is added to every row of its weights.
        elementwise: each position of the output is computed from the same position of the `first` input (to which a
            bias along the last axis may be added), or of `all` inputs, which broadcast.
        moves: the output is the first input with other `axes` (a shape, an order), or has `elements` of the inputs
            elsewhere, with fills between them perhaps.
        of_shape: it reads the shape of its input, not the numbers.
        activation: a `rectifier` passes about half of the power of what comes in; a `gate` gives numbers from 0 to 1.
        scaled_by: the inputs that scale and shift what it has normalised.
        kernel: `sliding` over the data in steps of `strides`, or `transposed`: over the output.
        blocked: onnxruntime has an operator of that name for images in blocks of channels.
        quantised: its integer inputs of rank 2 or more are quantised weights.
        on_cpu: onnxruntime has a kernel for it on the CPU.
    """

    role: RoleRule | None = None
    macs: MacsRule | None = None
    contraction: ContractionRule | None = None
    sums: SumsRule | None = None
    rows: Callable[[ir.Node], int] | None = None
    demand: DemandRule | None = None
    shapes: ShapeRule | None = None
    standard: Standard | None = None
    type_of: int | None = 0
    bias: int | None = None
    elementwise: Literal["first", "all"] | None = None
    moves: Literal["axes", "elements"] | None = None
    of_shape: bool = False
    activation: Literal["rectifier", "gate"] | None = None
    scaled_by: tuple[int, ...] = ()
    kernel: Literal["sliding", "transposed"] | None = None
    blocked: bool = False
    quantised: bool = False
    on_cpu: bool = True


OPERATORS: dict[Key, Operator] = {}
UNKNOWN = Operator()


def register(operator: Operator, ops: str, domain: str = "") -> None:
    """Say this of the operators `ops` of `domain`, whose types are separated by spaces.

    Raises:
        ValueError: something is said of one of them already.
    """
    for op in ops.split():
        if (domain, op) in OPERATORS:
            raise ValueError(f"the operator {domain}:{op} is described twice")
        OPERATORS[domain, op] = operator


def amend(ops: str, domain: str = "", **facts: Any) -> None:
    """Say more of operators, whose types are separated by spaces; what was said of these facts before is replaced."""
    for op in ops.split():
        OPERATORS[domain, op] = replace(OPERATORS.get((domain, op), UNKNOWN), **facts)


def operator_of(node: ir.Node) -> Operator:
    """What is known of a node's operator; `UNKNOWN` where it is not in the table."""
    return OPERATORS.get((node.domain, node.op_type), UNKNOWN)


def named(holds: Callable[[Operator], Any], domain: str | None = None) -> list[str]:
    """Types of the operators of which something holds, of one domain or of all."""
    return [op for (where, op), entry in OPERATORS.items() if domain in (None, where) and holds(entry)]


def role_of(node: ir.Node, index: int, shape: Shape) -> Role | Refused | None:
    """The role of input `index` of `node`; None for an unknown operator or an input that is no parameter."""
    rule = operator_of(node).role
    try:
        return rule(node, index, shape) if rule else None
    except UnreadableAttributeError as error:
        return Refused(str(error))


def contraction(node: ir.Node, index: int, shape: Shape) -> Contraction | None:
    """How the weight of that shape at input `index` is multiplied with data; None where that is not known."""
    rule = operator_of(node).contraction
    try:
        return rule(node, index, shape) if rule else None
    except UnreadableAttributeError:
        return None


class _UnknownShapeError(Exception):
    """An operand's shape is not known."""


def macs_of(node: ir.Node, shape: Callable[[ir.Value | None], Shape | None]) -> tuple[int, ...] | None:
    """The terms of a node's multiply-accumulates, none for an operator that has no formula; None where a shape is
    unknown. Positions that fall on padding count as any other, as in the usual counters for PyTorch models."""
    rule = operator_of(node).macs
    if rule is None:
        return ()

    def known(value: ir.Value | None) -> Shape:
        found = shape(value)
        if found is None:
            raise _UnknownShapeError
        return found

    def of(index: int) -> Shape:
        return known(input_of(node, index))

    try:
        found = rule(node, of, known(next((out for out in node.outputs if out.name), None)))
    except (_UnknownShapeError, UnreadableAttributeError, IndexError, ValueError):
        return None
    return found if isinstance(found, tuple) else (found,)


def demand_of(asked: DemandReading) -> Demand:
    """What a node asks of the sizes of one of its inputs."""
    rule = operator_of(asked.node).demand
    try:
        return rule(asked) if rule else NO_DEMAND
    except (UnreadableAttributeError, LookupError, TypeError, ValueError, AssertionError):
        return NO_DEMAND  # the node is malformed: what it asks for is not known


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def name_of(node: ir.Node, index: int) -> str | None:
    """The name of input `index`, None where it is absent."""
    value = input_of(node, index)
    return value.name or None if value is not None else None


# -- roles that many operators share ------------------------------------------------------------


def weight(arranged: Layout) -> Role:
    return Role("weight", arranged)


def bias(shape: Shape) -> Role:
    return Role("bias", layout.vector(shape))


def norm(shape: Shape) -> Role:
    return Role("norm", layout.vector(shape))


def embedding(shape: Shape) -> Role:
    return Role("embedding", layout.last_axis_cols(shape))


ROLES: dict[str, Callable[[Shape], Role]] = {"bias": bias, "norm": norm, "embedding": embedding}


def at(**places: Iterable[int]) -> RoleRule:
    """The rule of an operator whose biases, normalisation parameters and tables sit at fixed inputs."""
    kinds = {index: kind for kind, indices in places.items() for index in indices}

    def role(node: ir.Node, index: int, shape: Shape) -> Role | None:
        return ROLES[kinds[index]](shape) if index in kinds else None

    return role


def is_vector(shape: Shape) -> bool:
    """Whether at most one axis is longer than 1."""
    return sum(size != 1 for size in shape) <= 1


def same_size(asked: DemandReading) -> Demand:
    """The first input is as large as the output."""
    return asked.after if asked.index == 0 else NO_DEMAND


def like_first(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """The output has the shape of the first input."""
    return [shapes[0]]
