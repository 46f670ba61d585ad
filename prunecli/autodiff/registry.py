"""The table of gradient rules: a dictionary and a decorator are the whole extension mechanism.

A rule is `rule(g, *dys) -> gradient of each input`, or only that of the first input. `dys` has one entry per output
of the node, None for an output that the loss does not reach. A gradient may be smaller or larger than the input along
broadcast axes: the sweep un-broadcasts. The entry of an input that is not differentiated (`g.needs`) may be None;
`ZERO` states that the gradient is zero everywhere (a step function, an index), so the sweep stops there.
A `derivative` is the rule of an element-wise operator of one input: it returns dy/dx.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.errors import PruneError
from prunecli.model.graphs import node_name
from prunecli.model.shape_inference import Shape
from prunecli.registry import into_operators


class Zero:
    """The type of `ZERO`."""


ZERO: Final = Zero()
Gradient = ir.Value | Zero | None
Gradients = Gradient | Sequence[Gradient]
Rule = Callable[..., Gradients]
Derivative = Callable[["GradientContext"], ir.Value]
RULES: dict[tuple[str, str], Rule] = {}
STEPS = frozenset(
    ("", op)
    for op in (
        "Shape", "Size", "Floor", "Ceil", "Round", "Sign", "Equal", "Greater", "GreaterOrEqual", "Less",
        "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf", "ArgMax", "ArgMin", "NonZero",
        "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial",
        "NonMaxSuppression", "Unique",
    )
)  # fmt: skip
"""(domain, type) of the operators that are piecewise constant or not numeric: their derivative is zero wherever it
exists."""


rule = into_operators(RULES)
"""Register a gradient rule for operators of one domain."""


def derivative(*ops: str, domain: str = "") -> Callable[[Derivative], Derivative]:
    """Register the derivative of element-wise operators: the gradient of their input is dy times it."""

    def add(function: Derivative) -> Derivative:
        @functools.wraps(function)
        def times_dy(g: GradientContext, dy: ir.Value) -> ir.Value:
            return g.ops.mul(dy, function(g))

        rule(*ops, domain=domain)(times_dy)
        return function

    return add


class NodeContext:
    """A node with the builder that it is worked on with, and its inputs there."""

    hint = "differentiate tensors behind it, or export the model without it"
    refused = "no gradient for"

    def __init__(self, ops: Ops, node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
        self.ops = ops
        self.node = node
        self.inputs = inputs

    def input(self, index: int) -> ir.Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def x(self, index: int = 0) -> ir.Value:
        """An input that must be present."""
        value = self.input(index)
        if value is None:
            raise self.refuse(f"its input {index} is missing")
        return value

    def shape(self, index: int = 0) -> Shape:
        return self.ops.shape(self.x(index))

    def integer(self, name: str, default: int = 0) -> int:
        return self.node.attributes.get_int(name, default)

    def real(self, name: str, default: float) -> float:
        return self.node.attributes.get_float(name, default)

    def ints(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        return tuple(self.node.attributes.get_ints(name, default or ()))

    def text(self, name: str, default: str) -> str:
        return self.node.attributes.get_string(name, default)

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front."""
        rank = self.ops.rank(self.x(0)) if rank is None else rank
        axis = self.integer("axis", default)
        return axis + rank if axis < 0 else axis

    def known(self, index: int) -> tuple[int, ...] | None:
        """An integer input as numbers: None where it is absent.

        Raises:
            PruneError: it is present but not constant.
        """
        value = self.input(index)
        if value is None:
            return None
        array = self.ops.value(value)
        if array is None:
            raise self.refuse(f"its input {index} ({value.name}) depends on data")
        return tuple(int(i) for i in array.reshape(-1))

    def refuse(self, why: str) -> PruneError:
        return PruneError(f"{self.refused} {describe(self.node)}: {why}", self.hint)


class GradientContext(NodeContext):
    """What a rule sees: its node, and which of the inputs need a gradient."""

    def __init__(self, ops: Ops, node: ir.Node, needed: Sequence[bool]) -> None:
        super().__init__(ops, node, node.inputs)
        self._needed = needed

    def needs(self, index: int) -> bool:
        return index < len(self._needed) and self._needed[index]

    @property
    def y(self) -> ir.Value:
        return self.node.outputs[0]


def describe(node: ir.Node) -> str:
    """`Gemm 'name'`, with the domain where it is not ONNX's own."""
    domain = f"{node.domain}." if node.domain else ""
    return f"{domain}{node.op_type} '{node_name(node)}'"
