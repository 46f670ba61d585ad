"""Arithmetic, element by element. Un-broadcasting is the sweep's business.

Each rule's docstring gives the derivative; `m` is a 0/1 mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import MICROSOFT
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


@rule("Relu")
def relu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """dx = [y > 0] dy."""
    return [g.ops.mul(dy, g.ops.positive(g.y))]


def _two_slopes(g: GradientContext, positive: float, negative: float) -> Value:
    """`positive` where x > 0, else `negative`."""
    return g.ops.add2(g.ops.mul(g.ops.positive(g.x()), positive - negative), negative)


@rule("LeakyRelu")
def leaky_relu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.mul(dy, _two_slopes(g, 1.0, g.real("alpha", 0.01)))]


@rule("PRelu")
def prelu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """dx = dy (m + slope (1 - m)); dslope = dy min(x, 0)."""
    ops, x, slope = g.ops, g.x(0), g.x(1)
    mask = ops.positive(x)
    factor = ops.op("Add", ops.mul(ops.one_minus(mask), slope), mask)
    below = ops.op("Min", x, ops.scalar(0.0, x))
    return [ops.mul(dy, factor), ops.mul(dy, below) if g.needs(1) else None]


@rule("ThresholdedRelu")
def thresholded_relu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.mul(dy, g.ops.positive(g.ops.add2(g.x(), -g.real("alpha", 1.0))))]


def _below(g: GradientContext) -> Value:
    return g.ops.op("Min", g.y, g.ops.scalar(0.0, g.y))


@rule("Elu")
def elu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """y = alpha (e^x - 1) below 0, so y' = y + alpha there."""
    alpha = g.real("alpha", 1.0)
    return [g.ops.mul(dy, g.ops.op("Add", _two_slopes(g, 1.0, alpha), _below(g)))]


@rule("Selu")
def selu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    alpha = g.real("alpha", 1.67326319217681884765625)
    gamma = g.real("gamma", 1.05070102214813232421875)
    return [g.ops.mul(dy, g.ops.op("Add", _two_slopes(g, gamma, gamma * alpha), _below(g)))]


@rule("Celu")
def celu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """y = alpha (e^(x/alpha) - 1) below 0, so y' = y / alpha + 1."""
    return [g.ops.mul(dy, g.ops.add2(g.ops.mul(_below(g), 1.0 / g.real("alpha", 1.0)), 1.0))]


@rule("Sigmoid")
def sigmoid(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """dx = dy y (1 - y)."""
    return [g.ops.mul(g.ops.mul(dy, g.y), g.ops.one_minus(g.y))]


def _inside(g: GradientContext, y: Value) -> Value:
    """1 where 0 < y < 1."""
    return g.ops.mul(g.ops.positive(y), g.ops.positive(g.ops.one_minus(y)))


@rule("HardSigmoid")
def hard_sigmoid(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """alpha where the result is strictly between 0 and 1."""
    return [g.ops.mul(dy, g.ops.mul(_inside(g, g.y), g.real("alpha", 0.2)))]


@rule("HardSwish")
def hard_swish(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """y = x h(x), h = clip(x/6 + 1/2, 0, 1): y' = h + x [0 < h < 1] / 6."""
    ops = g.ops
    h = ops.op("HardSigmoid", g.x(), alpha=1.0 / 6.0, beta=0.5)
    inner = ops.mul(ops.mul(g.x(), _inside(g, h)), 1.0 / 6.0)
    return [ops.mul(dy, ops.op("Add", h, inner))]


def _swish(g: GradientContext, dy: Value, alpha: float) -> list[Gradient]:
    """y = x s, s = sigmoid(alpha x): y' = s + alpha y (1 - s)."""
    ops = g.ops
    s = ops.op("Sigmoid", ops.mul(g.x(), alpha))
    return [ops.mul(dy, ops.op("Add", s, ops.mul(ops.mul(g.y, ops.one_minus(s)), alpha)))]


@rule("Swish")
def swish(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return _swish(g, dy, g.real("alpha", 1.0))


@rule("QuickGelu", domain=MICROSOFT)
def quick_gelu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return _swish(g, dy, g.real("alpha", 1.702))


@rule("Mish")
def mish(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """y = x t, t = tanh(softplus(x)): y' = t + x (1 - t^2) sigmoid(x)."""
    ops, x = g.ops, g.x()
    t = ops.op("Tanh", ops.op("Softplus", x))
    slope = ops.mul(ops.mul(x, ops.one_minus(ops.mul(t, t))), ops.op("Sigmoid", x))
    return [ops.mul(dy, ops.op("Add", t, slope))]


@rule("Softplus")
def softplus(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [g.ops.mul(dy, g.ops.op("Sigmoid", g.x()))]


@rule("Softsign")
def softsign(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """y = x / (1 + |x|): y' = (1 - |y|)^2."""
    rest = g.ops.one_minus(g.ops.op("Abs", g.y))
    return [g.ops.mul(dy, g.ops.mul(rest, rest))]


@rule("Shrink")
def shrink(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    distance = g.ops.op("Abs", g.x())
    return [g.ops.mul(dy, g.ops.positive(g.ops.add2(distance, -g.real("lambd", 0.5))))]


@rule("Tanh")
def tanh(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """dx = dy (1 - y^2)."""
    return [g.ops.mul(dy, g.ops.one_minus(g.ops.mul(g.y, g.y)))]


@rule("Gelu")
def gelu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    if g.text("approximate", "none") == "tanh":
        return [gelu_tanh(g, dy, g.x())]
    return [gelu_erf(g, dy, g.x())]


@rule("Gelu", domain=MICROSOFT)
def fused_gelu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    return [gelu_erf(g, dy, g.x())]


@rule("FastGelu", domain=MICROSOFT)
def fast_gelu(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    dx = gelu_tanh(g, dy, g.x() if g.input(1) is None else g.ops.op("Add", g.x(0), g.x(1)))
    return [dx, dx]


def gelu_erf(g: GradientContext, dy: Value, x: Value) -> Value:
    """y = x P(x), P the normal distribution function: y' = P(x) + x p(x)."""
    ops = g.ops
    erf = ops.op("Erf", ops.mul(x, math.sqrt(0.5)))
    density = ops.op("Exp", ops.mul(ops.mul(x, x), ops.scalar(-0.5, x)))
    weighted = ops.mul(ops.mul(x, density), math.sqrt(2.0 / math.pi))
    total = ops.add2(ops.op("Add", erf, weighted), 1.0)
    return ops.mul(ops.mul(total, 0.5), dy)


def gelu_tanh(g: GradientContext, dy: Value, x: Value) -> Value:
    """y = x s, s = sigmoid(2u), u = sqrt(2/pi) (x + c x^3): y' = s (1 + (1 - s) x 2 u')."""
    ops, c = g.ops, 0.044715
    k = 2.0 * math.sqrt(2.0 / math.pi)
    square = ops.mul(x, x)
    s = ops.op("Sigmoid", ops.mul(ops.add2(ops.mul(square, k * c), k), x))
    slope = ops.mul(ops.add2(ops.mul(square, 3.0 * k * c), k), x)
    return ops.mul(dy, ops.mul(s, ops.add2(ops.mul(slope, ops.one_minus(s)), 1.0)))
