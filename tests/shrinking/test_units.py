"""Surplus units of networks made by hand: which go is known, and that the outputs stay is checked by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from prunecli.errors import PruneError
from prunecli.report.render import to_markdown
from prunecli.shrinking.report import to_document
from tests.dependency.net import Net
from tests.shrinking.nets import Build, array, largest_difference, put, rows, saved, shrunk


def mlp(n: Net, act: str = "Relu", width: int = 8, **attributes: Any) -> Net:
    """Gemm (W (8, 4), b), an activation, Gemm (V (3, 8), c)."""
    h = n("Gemm", n.x("N", 4), n.w(width, 4, name="W"), n.w(width, name="b"), transB=1)
    return n.out(n("Gemm", n(act, h, **attributes), n.w(3, width, name="V"), n.w(3, name="c"), transB=1))


def dead(n: Net, at: Any = 2) -> None:
    rows(n, "W", at)
    rows(n, "b", at)


def always_zero(n: Net) -> None:
    mlp(n)
    dead(n)


def constant(n: Net) -> None:
    mlp(n)
    rows(n, "W", [1, 5])


def silenced(n: Net) -> None:
    """A negative bias alone, through Relu."""
    mlp(n)
    rows(n, "W", 3)
    rows(n, "b", 3, -1.5)


def unread(n: Net) -> None:
    mlp(n)
    rows(n, "V", [0, 7], axis=1)


def twice(n: Net, act: str, factor: float, **attributes: Any) -> None:
    mlp(n, act, **attributes)
    for name in ("W", "b"):
        rows(n, name, 6, factor * array(n, name)[1])


def prelu(n: Net, factor: float, slopes: tuple[float, float]) -> None:
    h = n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1)
    slope = np.linspace(0.1, 0.8, 8)
    slope[[1, 6]] = slopes
    n.out(n("Gemm", n("PRelu", h, n.c(slope.astype(np.float32))), n.w(8, 3), n.w(3)))
    for name in ("W", "b"):
        rows(n, name, 6, factor * array(n, name)[1])


def halves(n: Net) -> None:
    """Everything dead: one unit stays, since a sum needs a term."""
    mlp(n)
    rows(n, "V", slice(None), axis=1)


def batch_norm(n: Net, act: str) -> None:
    """Scale 0 makes a channel its bias."""
    h = n.conv(n.x("N", 3, "H", "W"), 3, 8, 3)
    scale, bias = np.ones(8, np.float32), np.linspace(-1, 1, 8).astype(np.float32)
    scale[[0, 7]] = 0
    h = n("BatchNormalization", h, n.c(scale), n.c(bias), n.w(8), n.positive(8))
    n.out(n.conv(n(act, h), 8, 4))


def padded(n: Net, dead: list[int], value: float = 0.7) -> None:
    """Constants before a convolution whose border is padded with zeros."""
    x = n.x("N", 3, "H", "W")
    h = n("Relu", n("Conv", x, n.w(8, 3, 3, 3, name="W"), n.w(8, name="b"), pads=[1, 1, 1, 1]))
    n.out(n("Conv", h, n.w(4, 8, 3, 3), n.w(4), pads=[1, 1, 1, 1]))
    rows(n, "W", dead)
    rows(n, "b", dead, value)


def residual(n: Net, writers: int) -> None:
    """Channels of a stream go if every branch that writes to it is silent there."""
    x = n.x("N", 3, "H", "W")
    stream = n("Relu", n("Conv", x, n.w(8, 3, 1, 1, name="W0"), n.w(8, name="b0")))
    branch = n(
        "Conv", n("Relu", n.conv(stream, 8, 8, 3, pads=[1, 1, 1, 1])), n.w(8, 8, 1, 1, name="W1"), n.w(8, name="b1")
    )
    n.out(n.conv(n("Relu", n("Add", stream, branch)), 8, 4))
    for number in range(writers):
        rows(n, f"W{number}", [2, 3])
        rows(n, f"b{number}", [2, 3])


def silent_branch(n: Net, bias: float) -> None:
    """A branch that adds the same everywhere."""
    x = n.x("N", 8, "H", "W")
    h = n("Relu", n.conv(x, 8, 6, 3, pads=[1, 1, 1, 1]))
    branch = n("Conv", h, n.c(np.zeros((8, 6, 1, 1), np.float32)), n.c(np.full(8, bias, np.float32)))
    n.out(n.conv(n("Relu", n("Add", x, branch)), 8, 4))


def depthwise(n: Net) -> None:
    h = n("Relu", n("Conv", n.x("N", 3, "H", "W"), n.w(8, 3, 1, 1, name="W"), n.w(8, name="b")))
    h = n("Relu", n("Conv", h, n.w(8, 1, 3, 3, name="D"), n.w(8, name="e"), group=8, pads=[1, 1, 1, 1]))
    n.out(n("Conv", h, n.w(4, 8, 1, 1, name="V")))
    dead(n, [1, 4])
    rows(n, "e", [1, 4], [0.5, -0.5])
    rows(n, "V", 6, axis=1)


def grouped(n: Net, at: list[int]) -> None:
    """Four groups of two channels: they go group by group."""
    h = n("Relu", n("Conv", n.x("N", 3, "H", "W"), n.w(8, 3, 1, 1, name="W"), n.w(8, name="b")))
    h = n("Relu", n("Conv", h, n.w(8, 2, 1, 1, name="G"), n.w(8, name="g"), group=4))
    n.out(n("Conv", h, n.w(4, 8, 1, 1, name="V")))
    dead(n, at)
    rows(n, "V", at, axis=1)


def joined(n: Net) -> None:
    """Concat, Split and back: each part has its own."""
    x = n.x("N", 4)
    a = n("Relu", n("Gemm", x, n.w(6, 4, name="W"), n.w(6, name="b"), transB=1))
    both = n("Concat", a, n("Relu", n("Gemm", x, n.w(4, 6), n.w(6))), axis=1)
    one, two = n("Split", both, n.c([6, 6]), outputs=2, axis=1)
    n.out(n("Gemm", one, n.w(6, 3)), n("Gemm", two, n.w(6, 3, name="V")))
    dead(n, [0, 1])
    rows(n, "V", 5)


def attention(n: Net, mask: str) -> None:
    """Four heads of three: one head's values are zero, or nothing reads it."""
    x = n.x("N", "T", 12)

    def heads(name: str, perm: list[int]) -> str:
        h = n("Add", n("MatMul", x, n.w(12, 12, name=f"W{name}")), n.w(12, name=f"b{name}"))
        return str(n("Transpose", n("Reshape", h, n.c([0, 0, 4, 3])), perm=perm))

    scores = n("Softmax", n("MatMul", heads("q", [0, 2, 1, 3]), heads("k", [0, 2, 3, 1])), axis=-1)
    context = n("Transpose", n("MatMul", scores, heads("v", [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    n.out(n("MatMul", n("Reshape", context, n.c([0, 0, 12])), n.w(12, 12, name="Wo")))
    if mask == "value":
        rows(n, "Wv", slice(3, 6), axis=1)
        rows(n, "bv", slice(3, 6))
    elif mask == "output":
        rows(n, "Wo", slice(6, 9))


def recurrent(
    n: Net, op: str, gates: int, candidate: int, state: float | None = None, functions: tuple[str, ...] = ()
) -> None:
    """Unit 2 never has anything to remember, unit 4 is read by nobody."""
    names = ["", n.c(np.full((1, 2, 6), state, np.float32))] if state is not None else []
    y, _ = n(op, n.x("T", 2, 4), n.w(1, gates * 6, 4, name="W"), n.w(1, gates * 6, 6, name="R"),
             n.w(1, 2 * gates * 6, name="B"), *names, outputs=2, hidden_size=6, **{"activations": functions} if functions else {})  # fmt: skip
    n.out(n("MatMul", n("Squeeze", y, n.c([1])), n.w(6, 3, name="V")))
    for name in ("W", "R"):
        rows(n, name, candidate * 6 + 2, axis=1)
    rows(n, "B", [candidate * 6 + 2, (gates + candidate) * 6 + 2], axis=1)
    rows(n, "V", 4)
    rows(n, "R", 4, axis=2)


def chain(n: Net) -> None:
    """Unit 1 of the last hidden layer is unread; unit 3 of the first feeds only that."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(6, 4, name="W"), n.w(6, name="b"), transB=1))
    h = n("Relu", n("Gemm", h, n.w(5, 6, name="M"), n.w(5), transB=1))
    n.out(n("Gemm", h, n.w(3, 5, name="V"), n.w(3), transB=1))
    rows(n, "V", 1, axis=1)
    middle = array(n, "M")
    middle[[0, 2, 3, 4], 3] = 0
    put(n, "M", middle)


def softmax(n: Net) -> None:
    """A zero is one part of a Softmax over the units."""
    mlp(n, "Softmax", axis=-1)
    dead(n)


def layer_norm(n: Net) -> None:
    h = n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1)
    n.out(n("Gemm", n("LayerNormalization", h, n.positive(8), n.w(8)), n.w(8, 3)))
    dead(n)


def output(n: Net) -> None:
    """The hidden units are an output, too."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1))
    n.out(h, n("Gemm", h, n.w(8, 3)))
    dead(n)


def shared(n: Net) -> None:
    """Two layers share their weight, so that a unit is one of both: it is silent in one only."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1))
    g = n("Tanh", n("Gemm", h, n.w(8, 8, name="S"), transB=1))
    n.out(n("Gemm", n("Relu", n("Gemm", g, "S", transB=1)), n.w(8, 3)))
    dead(n, 5)


def sigmoid(n: Net) -> None:
    """A silent unit is one half behind a Sigmoid, which goes into the bias."""
    mlp(n, "Sigmoid")
    dead(n, [0, 1])


def gated(n: Net) -> None:
    """x * sigmoid(x), and a gate that is closed."""
    h = n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1)
    gate = np.ones(8, np.float32)
    gate[6] = 0
    h = n("Mul", n("Mul", h, n("Sigmoid", h)), n.c(gate))
    n.out(n("Gemm", h, n.w(8, 3)))
    dead(n)


def flattened(n: Net) -> None:
    """Channels that a Flatten spreads over many inputs."""
    h = n("Relu", n("Conv", n.x("N", 3, 4, 4), n.w(6, 3, 3, 3, name="W"), n.w(6, name="b")))
    n.out(n("Gemm", n("Flatten", h), n.w(24, 3), n.w(3)))
    dead(n, [1, 2])


def pooled(n: Net) -> None:
    h = n("Relu", n("Conv", n.x("N", 3, "H", "W"), n.w(6, 3, 3, 3, name="W"), n.w(6, name="b")))
    h = n("GlobalAveragePool", n("MaxPool", h, kernel_shape=[2, 2]))
    n.out(n("Gemm", n("Flatten", h), n.w(6, 3), n.w(3)))
    rows(n, "W", [1, 2])
    rows(n, "b", [1, 2], [0.5, 0.0])


def pixels(n: Net) -> None:
    """A reduction over the units: a zero adds nothing, a constant would."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1))
    n.out(n("ReduceSum", h, n.c([1]), keepdims=1))
    dead(n, [0, 1])
    rows(n, "b", 1, 0.5)


def linear_twice(n: Net, factor: float) -> None:
    """The bias is added behind the product."""
    h = n("MatMul", n.x("N", 4), n.w(4, 8, name="W"))
    n.out(n("MatMul", n("Relu", n("Add", h, n.w(8, name="b"))), n.w(8, 3)))
    rows(n, "W", 5, factor * array(n, "W")[:, 2], axis=1)
    rows(n, "b", 5, factor * array(n, "b")[2])


def scaled_gemm(n: Net) -> None:
    """alpha and beta, and a constant behind them."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1, alpha=0.5, beta=2.0))
    n.out(n("Gemm", h, n.w(8, 3), n.w(3), alpha=3.0, beta=0.5))
    rows(n, "W", 2)
    rows(n, "b", 2, 0.3)


def no_bias_read(n: Net) -> None:
    """With beta 0 a bias cannot take constants; that of one unit goes to the other."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1))
    n.out(n("Relu", n("Gemm", h, n.w(8, 3), n.w(3), beta=0.0)))
    rows(n, "W", [2, 5])
    rows(n, "b", [2, 5], 0.3)


def repeated(n: Net) -> None:
    """Padding that repeats what is there: a constant stays one."""
    h = n("Relu", n("Conv", n.x("N", 3, "H", "W"), n.w(8, 3, 1, 1, name="W"), n.w(8, name="b")))
    n.out(n.conv(n("Pad", h, n.c([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect"), 8, 4, 3))
    rows(n, "W", [2, 5])
    rows(n, "b", [2, 5], [-1.0, 0.3])


def other_batch(n: Net) -> None:
    """A branch of zeros of a batch of its own: with a batch of 1 beside it, it says how long the sum is."""
    branch = n("Gemm", n.x("T", 4), n.c(np.zeros((4, 6), np.float32)))
    n.out(n("Add", n.linear(n.x("N", 4), 4, 6), branch))


def cropped(n: Net) -> None:
    """A Resize that fills with a number: a channel of zeros is none any more."""
    h = n("Relu", n("Conv", n.x(2, 3, 6, 6), n.w(6, 3, 1, 1, name="W"), n.w(6, name="b")))
    roi, sizes = n.c(np.array([0, 0, 0, 0, 1, 1, 2, 2], np.float32)), n.c([2, 6, 6, 6])
    h = n("Resize", h, roi, "", sizes, mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
          extrapolation_value=1.5)  # fmt: skip
    n.out(n("Conv", h, n.w(4, 6, 1, 1)))
    dead(n)


def between(n: Net, *ops: Any, factor: float = 2.0, equal: bool = True) -> None:
    """Operators between a Gemm (unit 6 is a multiple of unit 1, or a constant) and another."""
    h = n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1)
    for op in ops:
        h = op(h)
    n.out(n("Gemm", h, n.w(8, 3), n.w(3)))
    for name in ("W", "b"):
        rows(n, name, 6, factor * array(n, name)[1] if equal else 0.0)
    if not equal:
        rows(n, "b", 6, 0.3)


def vector(n: Net, **changed: float) -> str:
    """Eight numbers, of which some are stated: `_6=0`."""
    numbers = np.linspace(0.5, 1.2, 8).astype(np.float32)
    for name, number in changed.items():
        numbers[int(name[1:])] = number
    return n.c(numbers)


def behind_a_product(n: Net, added: bool, last: bool = False) -> None:
    """A constant unit before a MatMul, which has no bias: an Add behind it takes the constant, or a new one does."""
    h = n("Relu", n("Add", n("MatMul", n.x("N", 4), n.w(4, 8, name="W")), n.w(8, name="b")))
    h = n("MatMul", h, n.w(8, 3))
    n.out(n("Add", h, n.w(3)) if added else h if last else n("Tanh", h))
    rows(n, "W", 2, axis=1)
    rows(n, "b", 2, 0.3)


def into_recurrent(n: Net) -> None:
    """A constant feature of a sequence goes into the bias of what reads it."""
    h = n("Relu", n("Add", n("MatMul", n.x("T", 2, 4), n.w(4, 6, name="W")), n.w(6, name="b")))
    y, _ = n("GRU", h, n.w(1, 15, 6), n.w(1, 15, 5), n.w(1, 30), outputs=2, hidden_size=5)
    n.out(n("Squeeze", y, n.c([1])))
    rows(n, "W", 3, axis=1)
    rows(n, "b", 3, 0.3)


def in_parts(n: Net) -> None:
    """Exporters store the weights of a recurrent operator by gate and join them in the graph."""
    w, r = n.w(1, 24, 4), n.w(1, 24, 6)
    rows(n, w, 20, axis=1)
    rows(n, r, 20, axis=1)
    parts = [n("Concat", *n("Split", name, n.c([12, 12]), axis=1, outputs=2), axis=1) for name in (w, r)]
    y, _ = n("LSTM", n.x("T", 2, 4), *parts, outputs=2, hidden_size=6)
    n.out(n("MatMul", n("Squeeze", y, n.c([1])), n.w(6, 3)))


def image(n: Net, *ops: Any, equal: bool = False, bias: float = 0.3, size: int = 8) -> None:
    """Operators between two convolutions: channel 2 is a constant, or channel 2 is twice channel 5."""
    h = n("Conv", n.x("N", 3, "H", "W"), n.w(8, 3, 1, 1, name="W"), n.w(8, name="b"))
    for op in ops:
        h = op(h)
    n.out(n.conv(h, size, 4))
    rows(n, "W", 2, 2 * array(n, "W")[5] if equal else 0.0)
    rows(n, "b", 2, 2 * array(n, "b")[5] if equal else bias)


def pad(n: Net, *more: Any, pads: Any = (0, 0, 1, 1, 0, 0, 1, 1)) -> Any:
    given = [n.c(np.float32(number)) for number in more]
    return lambda h: n("Pad", h, n.c(list(pads)), *given)


def zero_branch(n: Net, last: bool, size: Any) -> None:
    """A branch of zeros of the stream's size, or of one that makes the sum larger."""
    x, wide = n.x("N", 8, *size), n.x("N", 8, "H", "W")
    branch = n("Conv", wide, n.c(np.zeros((8, 8, 1, 1), np.float32)))
    h = n("Add", x, branch)
    n.out(h if last else n.conv(h, 8, 4))


def fed_bias(n: Net) -> None:
    """What a Gemm adds is an input."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.x(8), transB=1))
    n.out(n("Gemm", h, n.w(8, 3)))
    rows(n, "W", [2, 5])


def fed_factor(n: Net) -> None:
    """Every unit times one number that is an input."""
    h = n("Mul", n("Gemm", n.x("N", 4), n.w(8, 4, name="W"), n.w(8, name="b"), transB=1), n.x(1))
    n.out(n("Gemm", n("Relu", h), n.w(8, 3)))
    dead(n)


def training_norm(n: Net) -> None:
    """Scale 0 of a normalisation by statistics of the batch."""
    h = n("BatchNormalization", n.conv(n.x("N", 3, "H", "W"), 3, 8), vector(n, _3=0), vector(n, _3=0), n.w(8), n.positive(8),
          training_mode=1, outputs=3)[0]  # fmt: skip
    n.out(n.conv(n("Relu", h), 8, 4))


def equal_heads(n: Net) -> None:
    attention(n, "none")
    for name in "qkv":
        for part, axis in (("W", 1), ("b", 0)):
            content = array(n, f"{part}{name}")
            rows(n, f"{part}{name}", slice(9, 12), np.moveaxis(content, axis, 0)[0:3], axis=axis)


# name, network, units that go, branches that go, does rounding come in
CASES: list[tuple[str, Build | Any, int, int, bool]] = [
    ("zero", always_zero, 1, 0, False),
    ("constant", constant, 2, 0, True),
    ("silenced by Relu", silenced, 1, 0, False),
    ("unread", unread, 2, 0, False),
    ("twice, Relu", lambda n: twice(n, "Relu", 2.5), 1, 0, True),
    ("twice, LeakyRelu", lambda n: twice(n, "LeakyRelu", 0.3, alpha=0.2), 1, 0, True),
    ("twice, Identity, negative", lambda n: twice(n, "Identity", -2.0), 1, 0, True),
    ("twice, Relu, negative", lambda n: twice(n, "Relu", -2.0), 0, 0, False),
    ("twice, Sigmoid", lambda n: twice(n, "Sigmoid", 2.0), 0, 0, False),
    ("equal, Sigmoid", lambda n: twice(n, "Sigmoid", 1.0), 1, 0, True),
    ("twice, PRelu", lambda n: prelu(n, 3.0, (0.3, 0.3)), 1, 0, True),
    ("twice, PRelu of other slopes", lambda n: prelu(n, 3.0, (0.3, 0.4)), 0, 0, False),
    ("all unread", halves, 7, 0, False),
    ("BatchNormalization, Relu", lambda n: batch_norm(n, "Relu"), 2, 0, True),
    ("BatchNormalization, Tanh", lambda n: batch_norm(n, "Tanh"), 2, 0, True),
    ("padded constant", lambda n: padded(n, [3]), 0, 0, False),
    ("padded constants", lambda n: padded(n, [3, 4, 5]), 2, 0, True),
    ("padded zeros", lambda n: padded(n, [3, 4], -1.0), 2, 0, False),
    ("stream, one writer", lambda n: residual(n, 1), 0, 0, False),
    ("stream, both writers", lambda n: residual(n, 2), 2, 0, False),
    ("branch of zero", lambda n: silent_branch(n, 0.0), 0, 1, False),
    ("branch of a constant", lambda n: silent_branch(n, 0.4), 0, 1, False),
    ("depthwise", depthwise, 3, 0, True),
    ("whole group", lambda n: grouped(n, [2, 3]), 1, 0, False),
    ("part of a group", lambda n: grouped(n, [2]), 0, 0, False),
    ("Concat and Split", joined, 3, 0, False),
    ("head of zeros", lambda n: attention(n, "value"), 1, 0, False),
    ("equal heads", equal_heads, 1, 0, True),
    ("twice, MatMul and Add", lambda n: linear_twice(n, 2.5), 1, 0, True),
    ("Gemm with factors", scaled_gemm, 1, 0, True),
    ("Gemm that reads no bias", no_bias_read, 1, 0, True),
    ("Resize that fills", cropped, 0, 0, False),
    ("Pad that repeats", repeated, 2, 0, True),
    ("branch that broadcasts", other_batch, 0, 0, False),
    ("branch that is larger", lambda n: zero_branch(n, False, (1, 1)), 0, 0, False),
    ("branch before an output", lambda n: zero_branch(n, True, ("H", "W")), 0, 1, False),
    ("twice, Neg", lambda n: between(n, lambda h: n("Neg", h)), 1, 0, True),
    ("twice, halved", lambda n: between(n, lambda h: n("Mul", h, n.c(np.float32(0.5)))), 1, 0, True),
    ("twice, divided by others", lambda n: between(n, lambda h: n("Div", h, vector(n))), 1, 0, True),
    (
        "equal, less equals",
        lambda n: between(n, lambda h: n("Sub", h, vector(n, _1=0.3, _6=0.3)), factor=1),
        1,
        0,
        True,
    ),
    ("equal, less others", lambda n: between(n, lambda h: n("Tanh", n("Sub", h, vector(n))), factor=1), 0, 0, False),
    ("a number over zero", lambda n: between(n, lambda h: n("Div", h, vector(n, _6=0)), equal=False), 0, 0, False),
    (
        "zero over a number",
        lambda n: between(n, lambda h: n("Div", n("Sub", h, vector(n, _6=0.3)), vector(n)), equal=False),
        1,
        0,
        True,
    ),
    (
        "constant, Clip",
        lambda n: between(n, lambda h: n("Clip", h, n.c(np.float32(0.4)), n.c(np.float32(2))), equal=False),
        1,
        0,
        True,
    ),
    (
        "constant, sum and difference",
        lambda n: between(n, lambda h: n("Sub", n("Add", h, h), n("Tanh", h)), equal=False),
        1,
        0,
        True,
    ),
    ("constant before a MatMul", lambda n: behind_a_product(n, False), 1, 0, True),
    ("constant before the last MatMul", lambda n: behind_a_product(n, False, last=True), 1, 0, True),
    ("constant before a MatMul and an Add", lambda n: behind_a_product(n, True), 1, 0, True),
    ("constant before a GRU", into_recurrent, 1, 0, True),
    ("LSTM in parts", in_parts, 1, 0, False),
    ("Pad of a constant with it", lambda n: image(n, pad(n, 0.3)), 1, 0, True),
    ("Pad of a constant with another", lambda n: image(n, pad(n, 0.5)), 0, 0, False),
    ("Pad of zeros", lambda n: image(n, lambda h: n("Relu", h), pad(n), bias=-1), 1, 0, False),
    ("Pad of multiples", lambda n: image(n, pad(n), equal=True), 1, 0, True),
    ("Pad of multiples with a number", lambda n: image(n, pad(n, 0.3), equal=True), 0, 0, False),
    ("Pad of channels", lambda n: image(n, pad(n, 0.3, pads=(0, 1, 0, 0, 0, 1, 0, 0)), size=10), 3, 0, True),
    (
        "equal, InstanceNormalization",
        lambda n: image(n, lambda h: n("InstanceNormalization", h, *[vector(n, _2=1, _5=1)] * 2), equal=True),
        0,
        0,
        False,
    ),
    (
        "twice, Resize",
        lambda n: image(n, lambda h: n("Resize", h, "", n.c(np.float32([1, 1, 2, 2])), mode="nearest"), equal=True),
        1,
        0,
        True,
    ),
    ("bias that is fed", fed_bias, 0, 0, False),
    ("zero times what is fed", fed_factor, 1, 0, False),
    ("BatchNormalization in training", training_norm, 0, 0, False),
    ("head unread", lambda n: attention(n, "output"), 1, 0, False),
    ("LSTM", lambda n: recurrent(n, "LSTM", 4, 3), 2, 0, False),
    ("LSTM, forget gate", lambda n: recurrent(n, "LSTM", 4, 2), 1, 0, False),
    ("GRU", lambda n: recurrent(n, "GRU", 3, 2), 2, 0, False),
    ("RNN", lambda n: recurrent(n, "RNN", 1, 0), 2, 0, False),
    ("LSTM, functions named", lambda n: recurrent(n, "LSTM", 4, 3, functions=("Sigmoid", "Tanh", "Tanh")), 2, 0, False),
    ("LSTM, no zero", lambda n: recurrent(n, "LSTM", 4, 3, functions=("Sigmoid", "Sigmoid", "Tanh")), 1, 0, False),
    ("RNN, Relu", lambda n: recurrent(n, "RNN", 1, 0, functions=("Relu",)), 2, 0, False),
    ("GRU with a state", lambda n: recurrent(n, "GRU", 3, 2, 0.5), 1, 0, False),
    ("GRU with a state of zero", lambda n: recurrent(n, "GRU", 3, 2, 0.0), 2, 0, False),
    ("chain", chain, 2, 0, False),
    ("Softmax over the units", softmax, 0, 0, False),
    ("LayerNormalization over the units", layer_norm, 0, 0, False),
    ("an output", output, 0, 0, False),
    ("shared weight", shared, 0, 0, False),
    ("Sigmoid of zero", sigmoid, 2, 0, True),
    ("gate", gated, 2, 0, False),
    ("Flatten", flattened, 2, 0, False),
    ("pools", pooled, 2, 0, True),
    ("sum over the units", pixels, 1, 0, False),
]


@pytest.mark.parametrize(("name", "build", "units", "branches", "rounded"), CASES, ids=[case[0] for case in CASES])
def test_surplus_goes_and_the_outputs_stay(
    name: str, build: Any, units: int, branches: int, rounded: bool, tmp_path: Path
) -> None:
    net = Net()
    build(net)
    path = saved(net, tmp_path / "m.onnx")
    found = shrunk(path)
    assert sum(row.removed for row in found.removed.units) == units
    assert len(found.removed.branches) == branches
    if units + branches == 0:
        assert found.output is None and not (tmp_path / "out.onnx").exists()
        return
    assert found.output is not None and found.verification.kind == "exact"
    assert found.after.params < found.before.params
    assert largest_difference(path, tmp_path / "out.onnx", net.shapes) < 1e-6
    assert largest_difference(path, tmp_path / "out.onnx", net.other) < 1e-6
    assert ("sums are rounded anew" in found.verification.detail) <= rounded


def test_what_goes_is_told_with_its_reason(tmp_path: Path) -> None:
    net = mlp(Net())
    dead(net, 1)
    rows(net, "W", 2)
    rows(net, "b", 2, 0.5)
    rows(net, "V", 3, axis=1)
    for name in ("W", "b"):
        rows(net, name, 4, 2 * array(net, name)[0])
    (row,) = shrunk(saved(net, tmp_path / "m.onnx")).removed.units
    assert (row.name, row.before, row.removed) == ("W", 8, 4)
    assert row.reasons == {"zero": 1, "constant": 1, "unread": 1, "equal": 1}


def test_half_precision(tmp_path: Path) -> None:
    net = Net(dtype=np.float16)
    mlp(net)
    dead(net)
    rows(net, "W", 4)
    path = saved(net, tmp_path / "m.onnx")
    assert sum(row.removed for row in shrunk(path).removed.units) == 2
    assert largest_difference(path, tmp_path / "out.onnx", net.shapes) < 4e-3


def test_an_initializer_that_is_an_input_may_be_fed(tmp_path: Path) -> None:
    net = mlp(Net())
    dead(net)
    net.inputs.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [8, 4]))
    net.shapes["W"] = net.other["W"] = (8, 4)
    assert shrunk(saved(net, tmp_path / "m.onnx")).removed.nothing


def test_a_weight_that_is_an_output_stays(tmp_path: Path) -> None:
    net = mlp(Net())
    dead(net)
    model = net.model()
    model.graph.output.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [8, 4]))
    onnx.save(model, tmp_path / "m.onnx")
    assert shrunk(tmp_path / "m.onnx").removed.nothing


def test_what_a_body_captures_stays(tmp_path: Path) -> None:
    net = Net()
    h = net("Relu", net("Gemm", net.x("N", 4), net.w(8, 4, name="W"), net.w(8, name="b"), transB=1))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("p", "q")]
    bodies = [helper.make_graph([helper.make_node(op, [h], [info.name])], info.name, [], [info])
              for op, info in zip(("Relu", "Neg"), infos, strict=True)]  # fmt: skip
    y = net("If", net.c(np.array(True)), then_branch=bodies[0], else_branch=bodies[1])
    net.out(net("Gemm", y, net.w(8, 3)))
    dead(net)
    net.ranks[y] = 2
    assert shrunk(saved(net, tmp_path / "m.onnx")).removed.nothing


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    net = Net()
    scale, zero = net.c(np.float32(0.1)), net.c(np.int8(0))
    net.out(net("MatMul", net.x("N", 4), net("DequantizeLinear", net.c(np.ones((4, 3), np.int8)), scale, zero)))
    with pytest.raises(PruneError, match="is quantised") as caught:
        shrunk(saved(net, tmp_path / "m.onnx"))
    assert "floating-point model" in caught.value.hint


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    net = mlp(Net())
    rows(net, "W", 1, np.nan)
    with pytest.raises(PruneError, match="NaN or infinity"):
        shrunk(saved(net, tmp_path / "m.onnx"))


def test_silent_on_data_is_a_promise_about_that_data(tmp_path: Path) -> None:
    net = mlp(Net())
    rows(net, "W", 3)
    put(net, "W", array(net, "W"))
    weights, bias = array(net, "W"), array(net, "b")
    weights[3], bias[3] = [5, 0, 0, 0], -100.0
    put(net, "W", weights)
    put(net, "b", bias)
    path = saved(net, tmp_path / "m.onnx")
    assert shrunk(path).removed.nothing
    np.save(tmp_path / "d.npy", np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    found = shrunk(path, data=str(tmp_path / "d.npy"), tolerance=0)
    assert sum(row.removed for row in found.removed.units) == 1
    assert found.verification.kind == "exact" and "promise about these inputs only" in found.verification.detail
    assert "on all 40 samples" in found.verification.detail


def test_a_tolerance_above_zero_is_measured_not_proved(tmp_path: Path) -> None:
    net = mlp(Net())
    weights, bias = array(net, "W"), array(net, "b")
    weights[3], bias[3] = 1e-4, 0.0
    put(net, "W", weights)
    put(net, "b", bias)
    path = saved(net, tmp_path / "m.onnx")
    np.save(tmp_path / "d.npy", np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    found = shrunk(path, data=str(tmp_path / "d.npy"), tolerance=0.01)
    assert sum(row.removed for row in found.removed.units) == 1
    assert found.verification.kind == "approximate"
    assert found.verification.max_abs_error is not None and 0 < found.verification.max_abs_error < 0.01


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    net = Net()
    weight = net.rng.standard_normal((24, 24)).astype(np.float32)
    h = net("Relu", net("MatMul", net.x("N", 24), net.c(weight)))
    net.out(net("Dropout", net("Identity", net("MatMul", h, net.c(weight)))))
    found = shrunk(saved(net, tmp_path / "m.onnx"))
    page = to_markdown(to_document(found))
    assert "1 tensor (2,304 bytes)" in page and "only passed a value on" in page and "1 node " in page
    assert found.removed.tidied.bytes == weight.nbytes and found.removed.tidied.copies == 1
    assert largest_difference(tmp_path / "m.onnx", tmp_path / "out.onnx", net.shapes) == 0
