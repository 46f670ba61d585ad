"""Arithmetic, element by element. Un-broadcasting is the sweep's business.

Each rule's docstring gives the derivative; `m` is a 0/1 mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.registry import RULES, ZERO, Gradient, GradientContext, rule

Value = ir.Value


@rule("Add", "Sum")
def add(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [dy] * len(node.inputs)


@rule("Sub")
def sub(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [dy, g.ops.neg(dy) if g.needs(1) else None]


@rule("Mean")
def mean(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.mul(dy, 1.0 / len(node.inputs))] * len(node.inputs)


@rule("Mul")
def mul(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    a, b = g.x(0), g.x(1)
    return [g.ops.mul(dy, b) if g.needs(0) else None, g.ops.mul(dy, a) if g.needs(1) else None]


@rule("Div")
def div(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """d(a/b) = da / b - db (a/b) / b."""
    over_b = g.ops.div(dy, g.x(1))
    return [over_b, g.ops.neg(g.ops.mul(over_b, g.y)) if g.needs(1) else None]


@rule("Pow")
def power(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """d(x^p) = p x^(p-1) dx + x^p log(x) dp, the second term 0 where x <= 0."""
    return [_pow_base(g, dy) if g.needs(0) else None, _pow_exponent(g, dy) if g.needs(1) else None]


def _pow_base(g: GradientContext, dy: Value) -> Gradient:
    ops, x = g.ops, g.x(0)
    known = ops.value(g.x(1))
    if known is not None and known.size == 1:
        p = float(known.reshape(-1)[0])
        if p == 0.0:
            return ZERO
        if p in (1.0, 2.0):
            return dy if p == 1.0 else ops.mul(dy, ops.mul(x, 2.0))
        return ops.mul(ops.mul(dy, ops.op("Pow", x, ops.scalar(p - 1.0, x))), p)
    p_value = ops.cast(g.x(1), x)
    less = ops.op("Where", ops.op("Equal", p_value, ops.scalar(0.0, x)), ops.scalar(0.0, x), ops.add2(p_value, -1.0))
    return ops.mul(ops.mul(dy, p_value), ops.op("Pow", x, less))  # x^0 is flat at 0 too, where x^-1 has no value


def _pow_exponent(g: GradientContext, dy: Value) -> Value:
    ops, x = g.ops, g.x(0)
    safe = ops.op("Where", ops.op("Greater", x, ops.scalar(0.0, x)), x, ops.scalar(1.0, x))
    return ops.mul(ops.mul(dy, g.y), ops.op("Log", safe))


@rule("Min", "Max")
def extremum(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """dy goes to the operands that equal the result, in equal shares where several do."""
    ops = g.ops
    if len(node.inputs) == 1:
        return [dy]
    masks = [ops.cast(ops.op("Equal", v, g.y), dy) for v in node.inputs]
    share = ops.div(dy, ops.op("Sum", *masks))
    return [ops.mul(m, share) if g.needs(i) else None for i, m in enumerate(masks)]


@rule("Where")
def where(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """By the mask as a factor: a product costs a seventh of a Where."""
    ops = g.ops
    mask = ops.cast(g.x(0), dy)
    return [
        None,
        ops.mul(dy, mask) if g.needs(1) else None,
        ops.mul(dy, ops.one_minus(mask)) if g.needs(2) else None,
    ]


@rule("Clip")
def clip(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """m = (x == clip(x)), bounds included; to a bound goes what it clipped."""
    ops, x = g.ops, g.x(0)
    gradients: list[Gradient] = [None] * len(node.inputs)
    if g.needs(0):
        gradients[0] = ops.mul(dy, ops.cast(ops.op("Equal", x, g.y), dy))
    for index, compare in ((1, "Less"), (2, "Greater")):
        if g.needs(index):
            gradients[index] = ops.mul(dy, ops.cast(ops.op(compare, x, g.x(index)), dy))
    return gradients


Derivative = Callable[[GradientContext], Value]


def _unary(op: str, derivative: Derivative) -> None:
    RULES["", op] = lambda g, node, dy: [g.ops.mul(dy, derivative(g))]


def _squared(g: GradientContext, value: Value) -> Value:
    return g.ops.mul(value, value)


def _plus(g: GradientContext, number: float, value: Value) -> Value:
    return g.ops.add2(value, number)


def _inverse(g: GradientContext, value: Value) -> Value:
    return g.ops.op("Reciprocal", value)


def _root(g: GradientContext, value: Value) -> Value:
    return g.ops.op("Sqrt", value)


@rule("Neg")
def neg(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.neg(dy)]


@rule("Sqrt")
def sqrt(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.div(g.ops.mul(dy, 0.5), g.y)]


@rule("Log")
def log(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.div(dy, g.x())]


@rule("Reciprocal")
def reciprocal(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.neg(g.ops.mul(dy, _squared(g, g.y)))]


@rule("Mod")
def mod(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """d(fmod(a, b)) = da - trunc(a / b) db; only the dividend is supported."""
    return [dy, None]


_unary("Exp", lambda g: g.y)
_unary("Abs", lambda g: g.ops.op("Sign", g.x()))
_unary("Sin", lambda g: g.ops.op("Cos", g.x()))
_unary("Cos", lambda g: g.ops.neg(g.ops.op("Sin", g.x())))
_unary("Tan", lambda g: _plus(g, 1.0, _squared(g, g.y)))
_unary("Asin", lambda g: _inverse(g, _root(g, g.ops.one_minus(_squared(g, g.x())))))
_unary("Acos", lambda g: g.ops.neg(_inverse(g, _root(g, g.ops.one_minus(_squared(g, g.x()))))))
_unary("Atan", lambda g: _inverse(g, _plus(g, 1.0, _squared(g, g.x()))))
_unary("Sinh", lambda g: g.ops.op("Cosh", g.x()))
_unary("Cosh", lambda g: g.ops.op("Sinh", g.x()))
_unary("Asinh", lambda g: _inverse(g, _root(g, _plus(g, 1.0, _squared(g, g.x())))))
_unary("Acosh", lambda g: _inverse(g, _root(g, _plus(g, -1.0, _squared(g, g.x())))))
_unary("Atanh", lambda g: _inverse(g, g.ops.one_minus(_squared(g, g.x()))))
_unary(
    "Erf",
    lambda g: g.ops.mul(g.ops.op("Exp", g.ops.neg(_squared(g, g.x()))), 2.0 / math.sqrt(math.pi)),
)


@rule("Cast", "CastLike")
def cast(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """Between floating-point types; anything else is a step."""
    return [g.ops.cast(dy, g.x()), ZERO]


@rule("Identity")
def identity(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [dy]


@rule("Dropout")
def dropout(g: GradientContext, node: ir.Node, dy: Value, dmask: Value | None = None) -> list[Gradient]:
    """The identity in inference; in training mode the forward pass's mask, scaled by 1 / (1 - ratio)."""
    training = g.ops.value(g.input(2))
    if g.input(2) is None or (training is not None and not bool(training)):
        return [dy]
    ratio = 0.5 if g.input(1) is None else g.ops.value(g.x(1))
    if training is None or ratio is None or len(node.outputs) < 2:
        raise g.refuse("in training mode it needs a constant ratio and its mask as second output")
    scale = 1.0 / (1.0 - float(np.asarray(ratio)))
    return [g.ops.mul(g.ops.mul(dy, g.ops.cast(node.outputs[1], dy)), scale)]
