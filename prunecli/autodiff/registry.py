"""The table of gradient rules: a dictionary and a decorator are the whole extension mechanism.

A rule is `rule(g, node, *dys) -> Sequence[gradient per input]`. `dys` has one entry per output of the node, None
for an output the loss does not reach. A gradient may be smaller or larger than the input along broadcast axes:
the sweep un-broadcasts. Entries for inputs that are not being differentiated may be None (see `Context.needs`);
`ZERO` states that the gradient is zero everywhere (a step function, an index), so the sweep stops there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.errors import PruneError
from prunecli.model.shape_inference import Shape


class Zero:
    """The type of `ZERO`."""


ZERO: Final = Zero()
Gradient = ir.Value | Zero | None
Rule = Callable[..., Sequence[Gradient]]
RULES: dict[tuple[str, str], Rule] = {}
STEPS = frozenset(
    (
        "Shape", "Size", "Floor", "Ceil", "Round", "Sign", "Equal", "Greater", "GreaterOrEqual", "Less",
        "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf", "ArgMax", "ArgMin", "NonZero",
        "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial",
        "NonMaxSuppression", "Unique",
    )
)  # fmt: skip
"""Operators that are piecewise constant or not numeric: their derivative is zero wherever it exists."""


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a gradient rule for operators of one domain."""

    def add(function: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = function
        return function

    return add


class GradientContext:
    """What a rule sees: the builder, the node, and which of its inputs need a gradient."""

    def __init__(self, ops: Ops, node: ir.Node, needed: Sequence[bool]) -> None:
        self.ops = ops
        self.node = node
        self._needed = needed

    def needs(self, index: int) -> bool:
        return index < len(self._needed) and self._needed[index]

    def input(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def x(self, index: int = 0) -> ir.Value:
        """An input that must be present."""
        value = self.input(index)
        if value is None:
            raise self.refuse(f"its input {index} is missing")
        return value

    @property
    def y(self) -> ir.Value:
        return self.node.outputs[0]

    def shape(self, index: int = 0) -> Shape:
        return self.ops.shape(self.x(index))

    def integer(self, name: str, default: int = 0) -> int:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else int(attribute.as_int())

    def real(self, name: str, default: float) -> float:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else float(attribute.as_float())

    def ints(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        attribute = self.node.attributes.get(name)
        return tuple(default or ()) if attribute is None else tuple(int(i) for i in attribute.as_ints())

    def text(self, name: str, default: str) -> str:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

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
        return PruneError(
            f"no gradient for {describe(self.node)}: {why}",
            "differentiate tensors behind it, or export the model without it",
        )


def describe(node: ir.Node) -> str:
    """`Conv 'name'`, with the domain where it is not ONNX's own."""
    domain = f"{node.domain}." if node.domain else ""
    name = node.name or (node.outputs[0].name if node.outputs else "")
    return f"{domain}{node.op_type} '{name}'"
