"""Arithmetic and activation functions, element by element. The sweep sums gradients over broadcast axes.

Each rule's docstring gives the derivative; `m` is a 0/1 mask, computed by HardSigmoid with a huge slope.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import ZERO, Derivative, Gradient, GradientContext, Gradients, derivative, rule
from prunecli.operators import MICROSOFT

Value = ir.Value


@rule("Add", "Sum")
def add(g: GradientContext, dy: Value) -> Gradients:
    return [dy] * len(g.node.inputs)


@rule("Sub")
def sub(g: GradientContext, dy: Value) -> Gradients:
    return [dy, g.ops.neg(dy) if g.needs(1) else None]


@rule("Mean")
def mean(g: GradientContext, dy: Value) -> Gradients:
    return [g.ops.mul(dy, 1.0 / len(g.node.inputs))] * len(g.node.inputs)


@rule("Mul")
def mul(g: GradientContext, dy: Value) -> Gradients:
    a, b = g.x(0), g.x(1)
    return [g.ops.mul(dy, b) if g.needs(0) else None, g.ops.mul(dy, a) if g.needs(1) else None]


@rule("Div")
def div(g: GradientContext, dy: Value) -> Gradients:
    """d(a/b) = da / b - db (a/b) / b."""
    over_b = g.ops.div(dy, g.x(1))
    return [over_b, g.ops.neg(g.ops.mul(over_b, g.y)) if g.needs(1) else None]


@rule("Pow")
def power(g: GradientContext, dy: Value) -> Gradients:
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
    less = ops.op("Where", ops.op("Equal", p_value, ops.scalar(0.0, x)), ops.scalar(0.0, x), ops.add(p_value, -1.0))
    return ops.mul(ops.mul(dy, p_value), ops.op("Pow", x, less))  # x^0 is flat at 0 too, where x^-1 has no value


def _pow_exponent(g: GradientContext, dy: Value) -> Value:
    ops, x = g.ops, g.x(0)
    safe = ops.op("Where", ops.op("Greater", x, ops.scalar(0.0, x)), x, ops.scalar(1.0, x))
    return ops.mul(ops.mul(dy, g.y), ops.op("Log", safe))


@rule("Min", "Max")
def extremum(g: GradientContext, dy: Value) -> Gradients:
    """dy goes to the operands that equal the result, in equal shares where several do."""
    ops = g.ops
    if len(g.node.inputs) == 1:
        return dy
    masks = [ops.cast(ops.op("Equal", v, g.y), dy) for v in g.node.inputs]
    share = ops.div(dy, ops.op("Sum", *masks))
    return [ops.mul(m, share) if g.needs(i) else None for i, m in enumerate(masks)]


@rule("Where")
def where(g: GradientContext, dy: Value) -> Gradients:
    """By the mask as a factor: a product costs a seventh of a Where."""
    ops = g.ops
    mask = ops.cast(g.x(0), dy)
    return [
        None,
        ops.mul(dy, mask) if g.needs(1) else None,
        ops.mul(dy, ops.one_minus(mask)) if g.needs(2) else None,
    ]


@rule("Clip")
def clip(g: GradientContext, dy: Value) -> Gradients:
    """m = (x == clip(x)), bounds included; to a bound goes what it clipped."""
    ops, x = g.ops, g.x(0)
    gradients: list[Gradient] = [None] * len(g.node.inputs)
    if g.needs(0):
        gradients[0] = ops.mul(dy, ops.cast(ops.op("Equal", x, g.y), dy))
    for index, compare in ((1, "Less"), (2, "Greater")):
        if g.needs(index):
            gradients[index] = ops.mul(dy, ops.cast(ops.op(compare, x, g.x(index)), dy))
    return gradients


@rule("Neg")
def neg(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.neg(dy)


@rule("Sqrt")
def sqrt(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.div(g.ops.mul(dy, 0.5), g.y)


@rule("Log")
def log(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.div(dy, g.x())


@rule("Reciprocal")
def reciprocal(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.neg(g.ops.mul(dy, g.ops.square(g.y)))


@rule("Mod")
def mod(g: GradientContext, dy: Value) -> Gradients:
    """d(fmod(a, b)) = da - trunc(a / b) db; only the dividend is supported."""
    return [dy, None]


@rule("Cast", "CastLike")
def cast(g: GradientContext, dy: Value) -> Gradients:
    """Between floating-point types; anything else is a step."""
    return [g.ops.cast(dy, g.x()), ZERO]


@rule("Identity")
def identity(g: GradientContext, dy: Value) -> Gradients:
    return dy


@rule("Dropout")
def dropout(g: GradientContext, dy: Value, dmask: Value | None = None) -> Gradients:
    """The identity in inference; in training mode the forward pass's mask, scaled by 1 / (1 - ratio)."""
    training = g.ops.value(g.input(2))
    if g.input(2) is None or (training is not None and not bool(training)):
        return dy
    ratio = 0.5 if g.input(1) is None else g.ops.value(g.x(1))
    if training is None or ratio is None or len(g.node.outputs) < 2:
        raise g.refuse("in training mode it needs a constant ratio and its mask as second output")
    scale = 1.0 / (1.0 - float(np.asarray(ratio)))
    return g.ops.mul(g.ops.mul(dy, g.ops.cast(g.node.outputs[1], dy)), scale)


@rule("PRelu")
def prelu(g: GradientContext, dy: Value) -> Gradients:
    """dx = dy (m + slope (1 - m)); dslope = dy min(x, 0)."""
    ops, x, slope = g.ops, g.x(0), g.x(1)
    mask = ops.positive(x)
    factor = ops.add(ops.mul(ops.one_minus(mask), slope), mask)
    below = ops.op("Min", x, ops.scalar(0.0, x))
    return [ops.mul(dy, factor), ops.mul(dy, below) if g.needs(1) else None]


@rule("Sigmoid")
def sigmoid(g: GradientContext, dy: Value) -> Gradients:
    """dx = dy y (1 - y)."""
    return g.ops.mul(g.ops.mul(dy, g.y), g.ops.one_minus(g.y))


def _inverse_root(ops: Ops, squared: Value) -> Value:
    return ops.op("Reciprocal", ops.op("Sqrt", squared))


def _two_slopes(g: GradientContext, positive: float, negative: float) -> Value:
    """`positive` where x > 0, else `negative`."""
    return g.ops.add(g.ops.mul(g.ops.positive(g.x()), positive - negative), negative)


DERIVATIVES: dict[str, Derivative] = {
    "Abs": lambda g: g.ops.op("Sign", g.x()),
    "Acos": lambda g: g.ops.neg(_inverse_root(g.ops, g.ops.one_minus(g.ops.square(g.x())))),
    "Acosh": lambda g: _inverse_root(g.ops, g.ops.add(g.ops.square(g.x()), -1.0)),
    "Asin": lambda g: _inverse_root(g.ops, g.ops.one_minus(g.ops.square(g.x()))),
    "Asinh": lambda g: _inverse_root(g.ops, g.ops.add(g.ops.square(g.x()), 1.0)),
    "Atan": lambda g: g.ops.op("Reciprocal", g.ops.add(g.ops.square(g.x()), 1.0)),
    "Atanh": lambda g: g.ops.op("Reciprocal", g.ops.one_minus(g.ops.square(g.x()))),
    "Cos": lambda g: g.ops.neg(g.ops.op("Sin", g.x())),
    "Cosh": lambda g: g.ops.op("Sinh", g.x()),
    "Erf": lambda g: g.ops.mul(g.ops.op("Exp", g.ops.neg(g.ops.square(g.x()))), 2.0 / math.sqrt(math.pi)),
    "Exp": lambda g: g.y,
    "LeakyRelu": lambda g: _two_slopes(g, 1.0, g.real("alpha", 0.01)),
    "Shrink": lambda g: g.ops.positive(g.ops.add(g.ops.op("Abs", g.x()), -g.real("lambd", 0.5))),
    "Sin": lambda g: g.ops.op("Cos", g.x()),
    "Sinh": lambda g: g.ops.op("Cosh", g.x()),
    "Softplus": lambda g: g.ops.op("Sigmoid", g.x()),
    "Tan": lambda g: g.ops.add(g.ops.square(g.y), 1.0),
    "Tanh": lambda g: g.ops.one_minus(g.ops.square(g.y)),
    "ThresholdedRelu": lambda g: g.ops.positive(g.ops.add(g.x(), -g.real("alpha", 1.0))),
}
for _op, _function in DERIVATIVES.items():
    derivative(_op)(_function)


@derivative("Relu")
def relu(g: GradientContext) -> Value:
    """dx = [y > 0] dy."""
    return g.ops.positive(g.y)


def _below(g: GradientContext) -> Value:
    return g.ops.op("Min", g.y, g.ops.scalar(0.0, g.y))


@derivative("Elu")
def elu(g: GradientContext) -> Value:
    """y = alpha (e^x - 1) below 0, so y' = y + alpha there."""
    return g.ops.add(_two_slopes(g, 1.0, g.real("alpha", 1.0)), _below(g))


@derivative("Selu")
def selu(g: GradientContext) -> Value:
    alpha = g.real("alpha", 1.67326319217681884765625)
    gamma = g.real("gamma", 1.05070102214813232421875)
    return g.ops.add(_two_slopes(g, gamma, gamma * alpha), _below(g))


@derivative("Celu")
def celu(g: GradientContext) -> Value:
    """y = alpha (e^(x/alpha) - 1) below 0, so y' = y / alpha + 1."""
    return g.ops.add(g.ops.mul(_below(g), 1.0 / g.real("alpha", 1.0)), 1.0)


def _inside(g: GradientContext, y: Value) -> Value:
    """1 where 0 < y < 1."""
    return g.ops.mul(g.ops.positive(y), g.ops.positive(g.ops.one_minus(y)))


@derivative("HardSigmoid")
def hard_sigmoid(g: GradientContext) -> Value:
    """alpha where the result is strictly between 0 and 1."""
    return g.ops.mul(_inside(g, g.y), g.real("alpha", 0.2))


@derivative("HardSwish")
def hard_swish(g: GradientContext) -> Value:
    """y = x h(x), h = clip(x/6 + 1/2, 0, 1): y' = h + x [0 < h < 1] / 6."""
    h = g.ops.op("HardSigmoid", g.x(), alpha=1.0 / 6.0, beta=0.5)
    return g.ops.add(h, g.ops.mul(g.ops.mul(g.x(), _inside(g, h)), 1.0 / 6.0))


@derivative("Swish")
@derivative("QuickGelu", domain=MICROSOFT)
def swish(g: GradientContext) -> Value:
    """y = x s, s = sigmoid(alpha x): y' = s + alpha y (1 - s)."""
    ops, alpha = g.ops, g.real("alpha", 1.702 if g.node.domain else 1.0)
    s = ops.op("Sigmoid", ops.mul(g.x(), alpha))
    return ops.add(s, ops.mul(ops.mul(g.y, ops.one_minus(s)), alpha))


@derivative("Mish")
def mish(g: GradientContext) -> Value:
    """y = x t, t = tanh(softplus(x)): y' = t + x (1 - t^2) sigmoid(x)."""
    ops, x = g.ops, g.x()
    t = ops.op("Tanh", ops.op("Softplus", x))
    return ops.add(t, ops.mul(ops.mul(x, ops.one_minus(ops.square(t))), ops.op("Sigmoid", x)))


@derivative("Softsign")
def softsign(g: GradientContext) -> Value:
    """y = x / (1 + |x|): y' = (1 - |y|)^2."""
    return g.ops.square(g.ops.one_minus(g.ops.op("Abs", g.y)))


@derivative("Gelu")
@derivative("Gelu", domain=MICROSOFT)
def gelu(g: GradientContext) -> Value:
    """y = x P(x), P the normal distribution function: y' = P(x) + x p(x)."""
    ops, x = g.ops, g.x()
    if g.text("approximate", "none") == "tanh":
        return gelu_tanh(ops, x)
    erf = ops.op("Erf", ops.mul(x, math.sqrt(0.5)))
    density = ops.op("Exp", ops.mul(ops.square(x), -0.5))
    weighted = ops.mul(ops.mul(x, density), math.sqrt(2.0 / math.pi))
    return ops.mul(ops.add(ops.add(erf, weighted), 1.0), 0.5)


@rule("FastGelu", domain=MICROSOFT)
def fast_gelu(g: GradientContext, dy: Value) -> Gradients:
    dx = g.ops.mul(dy, gelu_tanh(g.ops, g.x() if g.input(1) is None else g.ops.add(g.x(0), g.x(1))))
    return [dx, dx]


def gelu_tanh(ops: Ops, x: Value) -> Value:
    """y = x s, s = sigmoid(2u), u = sqrt(2/pi) (x + c x^3): y' = s (1 + (1 - s) x 2 u')."""
    c, k = 0.044715, 2.0 * math.sqrt(2.0 / math.pi)
    square = ops.square(x)
    s = ops.op("Sigmoid", ops.mul(ops.add(ops.mul(square, k * c), k), x))
    slope = ops.mul(ops.add(ops.mul(square, 3.0 * k * c), k), x)
    return ops.mul(s, ops.add(ops.mul(slope, ops.one_minus(s)), 1.0))
