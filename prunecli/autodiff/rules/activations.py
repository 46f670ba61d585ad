"""Activation functions. Masks come from HardSigmoid with a huge slope: one vectorised pass."""

from __future__ import annotations

import math

import onnx_ir as ir

from prunecli.autodiff.builder import MICROSOFT
from prunecli.autodiff.registry import Gradient, GradientContext, rule

Value = ir.Value


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
