"""One small graph per operator and spelling: name -> (how to build it, exact units that must be free)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.dependency.net import Net


@dataclass(frozen=True)
class Case:
    """`build` adds nodes to a net of this opset. `units`: how many units are free, over all families."""

    build: Callable[[Net], Any]
    units: int
    opset: int = 18
    dtype: Any = np.float32
    options: dict[str, Any] = field(default_factory=dict)

    def net(self, seed: int = 0) -> Net:
        net = Net(self.opset, seed, self.dtype)
        self.build(net)
        return net


def image(
    n: Net,
    body: Callable[[Net, str], str],
    width: int = 8,
    after: int = 0,
    size: tuple[int | str, ...] = ("H", "W"),
    **conv: Any,
) -> Net:
    """x (N, 3, H, W) -> Conv to `width` -> body -> Conv from `after` channels to 2."""
    h = body(n, n.conv(n.x("N", 3, *size), 3, width, 3, pads=[1, 1, 1, 1], **conv))
    return n.out(n.conv(h, after or width, 2))


def tokens(n: Net, body: Callable[[Net, str], str], width: int = 8, after: int = 0) -> Net:
    """x (N, T, 4) -> linear to `width` -> body -> linear from `after` to 3."""
    h = body(n, n.linear(n.x("N", "T", 4), 4, width))
    return n.out(n.linear(h, after or width, 3))


def rows(n: Net, body: Callable[[Net, str], str], width: int = 8, after: int = 0) -> Net:
    """x (N, 4) -> Gemm to `width` -> body -> Gemm from `after` to 3."""
    h = body(n, n("Gemm", n.x("N", 4), n.w(4, width), n.w(width)))
    return n.out(n("Gemm", h, n.w(3, after or width), n.w(3), transB=1))


def _fused_attention(n: Net) -> Net:
    """Heads (N, T, heads, size) are brought before T by the products themselves, as onnxruntime fuses Transpose."""
    x = n.x("T", "N", 4)
    q, k, v = (n("Reshape", n.linear(x, 4, 8), n.c([0, 0, 2, 4])) for _ in range(3))
    scores = n("Softmax", n.ms("FusedMatMul", q, k, transBatchA=1, transBatchB=1, transB=1, alpha=0.5), axis=-1)
    mixed = n("Transpose", n.ms("FusedMatMul", scores, v, transBatchB=1), perm=[2, 0, 1, 3])
    return n.out(n.linear(n("Reshape", mixed, n.c([0, 0, 8])), 8, 3))


UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu", "Erf",
    "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip
TESTS_OF_NUMBERS = ("IsInf", "IsNaN")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
LOGIC = ("And", "Or", "Xor")
BINARY = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum")


def _unary(op: str, **attributes: Any) -> Callable[[Net], Any]:
    return lambda n: rows(n, lambda n, h: n(op, h, **attributes))


def _both(n: Net, op: str) -> Net:
    x = n.x("N", 4)
    a, b = (n("Abs", n("MatMul", x, n.w(4, 8))) for _ in range(2))
    return n.out(n("MatMul", n(op, a, b), n.w(8, 3)))


def _compare(n: Net, op: str) -> Net:
    return rows(n, lambda n, h: n("Where", n(op, h, n.w(8)), h, n("Neg", h)))


def _logic(n: Net, op: str) -> Net:
    def body(n: Net, h: str) -> str:
        mask = n(op, n("Greater", h, n.w(8)), n("Not", n("Less", h, n.w(8))))
        return str(n("Where", mask, h, n.c(np.float32(0.5))))

    return rows(n, body)


def _integers(n: Net, op: str, **attributes: Any) -> Net:
    def body(n: Net, h: str) -> str:
        whole = n("Cast", n("Abs", n("Mul", h, n.c(np.float32(9)))), to=13)  # uint64
        other = n.c(n.rng.integers(1, 5, 8).astype(np.uint64))
        return str(n("Cast", n(op, *([whole] if op == "BitwiseNot" else [whole, other]), **attributes), to=1))

    return rows(n, body)


ELEMENTWISE = {
    **{op: Case(_unary(op), 8, 22 if op == "HardSwish" else 18) for op in UNARY},
    "Gelu": Case(_unary("Gelu"), 8, 20),
    "Swish": Case(_unary("Swish"), 8, 24),
    **{f"ms.{op}": Case(lambda n, op=op: rows(n, lambda n, h: n.ms(op, h)), 8) for op in ("Gelu", "FastGelu", "QuickGelu")},
    "ms.FastGelu bias": Case(lambda n: rows(n, lambda n, h: n.ms("FastGelu", h, n.w(8))), 8),
    "ms.BiasGelu": Case(lambda n: rows(n, lambda n, h: n.ms("BiasGelu", h, n.w(8))), 8),
    **{op: Case(lambda n, op=op: _both(n, op), 8) for op in BINARY},
    **{op: Case(lambda n, op=op: _compare(n, op), 8) for op in COMPARISONS},
    **{op: Case(lambda n, op=op: _logic(n, op), 8) for op in LOGIC},
    **{op: Case(lambda n, op=op: rows(n, lambda n, h: n("Where", n(op, h), h, n("Exp", h))), 8) for op in TESTS_OF_NUMBERS},
    "Mod": Case(lambda n: _integers(n, "Mod"), 8),
    "BitShift": Case(lambda n: _integers(n, "BitShift", direction="LEFT"), 8),
    **{op: Case(lambda n, op=op: _integers(n, op), 8) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")},
    "CastLike": Case(lambda n: rows(n, lambda n, h: n("CastLike", h, n.c(np.float32(1)))), 8),
    "Dropout": Case(lambda n: rows(n, lambda n, h: n("Dropout", h)), 8),
    "Dropout training": Case(lambda n: rows(n, lambda n, h: n("Dropout", h, n.c(np.float32(0.5)), n.c(True))), 0, options={"random": True}),
    "Clip with limits": Case(lambda n: rows(n, lambda n, h: n("Clip", h, n.c(np.float32(-1)), n.c(np.float32(1)))), 8),
    "Clip without lower limit": Case(lambda n: rows(n, lambda n, h: n("Clip", h, "", n.c(np.float32(1)))), 8),
    "PRelu per channel": Case(lambda n: image(n, lambda n, h: n("PRelu", h, n.w(8, 1, 1))), 8),
    "PRelu scalar": Case(lambda n: image(n, lambda n, h: n("PRelu", h, n.w(1, 1, 1))), 8),
    "layer scale of rank 3": Case(lambda n: image(n, lambda n, h: n("Mul", h, n.w(8, 1, 1))), 8),
    "constant of rank 4": Case(lambda n: image(n, lambda n, h: n("Add", h, n.w(1, 8, 1, 1))), 8),
    "constant of higher rank": Case(lambda n: n.out(n("MatMul", n("Add", n("MatMul", n.x("N", 4), n.w(4, 8)), n.w(1, 1, 8)), n.w(8, 3))), 8),
    "constant of one element": Case(lambda n: image(n, lambda n, h: n("Mul", h, n.w(1))), 8),
    "Trilu": Case(lambda n: tokens(n, lambda n, h: n("Trilu", h)), 0),
    "Trilu of other axes": Case(lambda n: image(n, lambda n, h: n("Trilu", h)), 8),
    "SwiGLU by hand": Case(lambda n: tokens(n, lambda n, h: n("Mul", *_swish(n, h)), 16, 8), 8),
}  # fmt: skip


def _swish(n: Net, h: str) -> tuple[str, str]:
    gate, value = n("Split", h, n.c([8, 8]), outputs=2, axis=-1)
    return n("Mul", gate, n("Sigmoid", gate)), value


def _residual(n: Net, h: str, blocks: int = 3) -> str:
    for _ in range(blocks):
        h = n("Relu", n("Add", h, n.conv(n("Relu", n.conv(h, 8, 6, 3, pads=[1] * 4)), 6, 8)))
    return h


def _gemm(n: Net, addend: str | None, **attributes: Any) -> Net:
    a = n("Gemm", n.x(2, 4), n.w(4, 8), n.w(8))
    shape = (8, 5)[:: -1 if attributes.get("transB") else 1]
    a = n("Transpose", a) if attributes.get("transA") else a
    return n.out(n("Gemm", n("Gemm", a, n.w(*shape), *([addend] if addend else []), **attributes), n.w(5, 3)))


LINEAR = {
    "Conv": Case(lambda n: image(n, lambda n, h: n("Relu", h)), 8),
    "Conv 1-D": Case(lambda n: n.out(n.conv(n("Relu", n.conv(n.x("N", 3, "H"), 3, 8, 3, rank=1)), 8, 2, rank=1)), 8),
    "Conv 3-D": Case(lambda n: n.out(n.conv(n("Relu", n.conv(n.x("N", 3, "H", 5, 5), 3, 8, 3, rank=3)), 8, 2, rank=3)), 8),
    "Conv auto_pad": Case(lambda n: image(n, lambda n, h: n.conv(h, 8, 8, 3, auto_pad="SAME_UPPER", strides=[2, 2])), 16),
    "Conv without bias": Case(lambda n: n.out(n("Conv", n("Conv", n.x("N", 3, "H", "W"), n.w(8, 3, 1, 1)), n.w(2, 8, 1, 1))), 8),
    "Conv depthwise": Case(lambda n: image(n, lambda n, h: n.conv(h, 8, 8, 3, group=8)), 8),
    "Conv depth multiplier": Case(lambda n: image(n, lambda n, h: n.conv(h, 8, 16, 3, group=8), 8, 16), 8 + 2),
    "Conv grouped": Case(lambda n: image(n, lambda n, h: n("Relu", n.conv(h, 8, 12, 3, group=4)), 8, 12), 4 + 2 + 3),
    "Conv grouped twice": Case(lambda n: image(n, lambda n, h: n.conv(n.conv(h, 8, 12, 1, group=4), 12, 8, 1, group=4)), 4 + 2 + 3 + 2),
    "Conv shuffled groups": Case(lambda n: image(n, lambda n, h: n.conv(_shuffle(n, n.conv(h, 8, 8, 1, group=2)), 8, 8, 1, group=2), size=(6, 6)), 14),
    "Conv residual": Case(lambda n: image(n, _residual), 8 + 3 * 6),
    "Conv computed weights": Case(lambda n: n.out(n("Conv", n.conv(n.x("N", 3, "H", "W"), 3, 8), n("Mul", n.w(2, 8, 1, 1), n.w(8, 1, 1)))), 8),
    "ConvTranspose": Case(lambda n: image(n, lambda n, h: n("ConvTranspose", h, n.w(8, 6, 2, 2), n.w(6), strides=[2, 2]), 8, 6), 14),
    "ConvTranspose groups": Case(lambda n: image(n, lambda n, h: n("ConvTranspose", h, n.w(8, 3, 2, 2), n.w(12), group=4, strides=[2, 2]), 8, 12), 4 + 2 + 3),
    "ConvTranspose output_shape": Case(lambda n: image(n, lambda n, h: n("ConvTranspose", h, n.w(8, 6, 2, 2), strides=[2, 2], output_shape=[13, 13]), 8, 6), 14),
    "ms.FusedConv": Case(lambda n: image(n, lambda n, h: n.ms("FusedConv", h, n.w(6, 8, 3, 3), n.w(6), activation="Relu", pads=[1] * 4), 8, 6), 14),
    "ms.FusedConv grouped": Case(lambda n: image(n, lambda n, h: n.ms("FusedConv", h, n.w(12, 2, 3, 3), n.w(12), activation="Relu", group=4), 8, 12), 4 + 2 + 3),
    "ms.FusedConv addend": Case(lambda n: image(n, lambda n, h: n.ms("FusedConv", h, n.w(8, 8, 3, 3), n.w(8), h, activation="Relu", pads=[1] * 4)), 8),
    "DeformConv": Case(lambda n: image(n, lambda n, h: n("DeformConv", h, n.w(6, 8, 1, 1), n.conv(n.inputs[0].name, 3, 2), n.w(6)), 8, 6), 14, 19),
    "DeformConv grouped": Case(lambda n: image(n, lambda n, h: n("DeformConv", h, n.w(12, 2, 1, 1), n.conv(n.inputs[0].name, 3, 2), group=4), 8, 12), 4 + 2 + 3, 19),
    "DeformConv offset groups": Case(lambda n: image(n, lambda n, h: n("DeformConv", h, n.w(6, 8, 1, 1), n.conv(n.inputs[0].name, 3, 4), offset_group=2), 8, 6), 4 + 6, 19),
    "Gemm": Case(lambda n: _gemm(n, n.w(5)), 8 + 5),
    "Gemm transB": Case(lambda n: _gemm(n, n.w(5), transB=1, alpha=0.5), 8 + 5),
    "Gemm transA": Case(lambda n: n.out(n("Gemm", n("Gemm", n.w(4, 6), n.x(4, 5), transA=1), n.w(5, 3), n.w(6, 1))), 0),
    "Gemm without C": Case(lambda n: _gemm(n, None), 13),
    "Gemm C row": Case(lambda n: _gemm(n, n.w(1, 5)), 13),
    "Gemm C column": Case(lambda n: _gemm(n, n.w(2, 1)), 13),
    "Gemm C scalar": Case(lambda n: _gemm(n, n.c(np.float32(2))), 13),
    "ms.FusedGemm": Case(lambda n: rows(n, lambda n, h: n.ms("FusedGemm", h, n.w(8, 6), n.w(6), activation="Relu"), 8, 6), 14),
    "MatMul": Case(lambda n: tokens(n, lambda n, h: n("Relu", h)), 8),
    "MatMul batch of weights": Case(lambda n: n.out(n("MatMul", n("MatMul", n.x("N", 1, "T", 4), n.w(3, 4, 8)), n.w(3, 8, 2))), 8),
    "MatMul vector on the right": Case(lambda n: n.out(n("MatMul", n("MatMul", n.x("N", 4), n.w(4, 8)), n.w(8))), 8),
    "MatMul vector on the left": Case(lambda n: n.out(n("MatMul", n("MatMul", n.x(4), n.w(4, 8)), n.w(8, 3))), 8),
    "ms.FusedMatMul": Case(lambda n: n.out(n.ms("FusedMatMul", n.ms("FusedMatMul", n.x("N", 4), n.w(8, 4), transB=1, alpha=0.3), n.w(8, 3))), 8),
    "ms.FusedMatMul transposed batch": Case(lambda n: n.out(n.ms("FusedMatMul", n("Reshape", n("MatMul", n.x(2, 4), n.w(4, 8)), n.c([2, 4, 2])), n.w(4, 2, 3), transBatchA=1)), 2),
    "ms.FusedMatMul transposed batch of weights": Case(lambda n: n.out(n.ms("FusedMatMul", n("MatMul", n.x(3, "T", 4), n.w(3, 4, 8)), n.w(8, 3, 2), transBatchB=1)), 8),
    "ms.FusedMatMul attention, batch transposed": Case(_fused_attention, 8 + 2),
    "ms.MoE": Case(lambda n: _mixture(n, 0, "relu"), 8 + 6 + 4),
    "ms.MoE gated, interleaved": Case(lambda n: _mixture(n, 1, "swiglu"), 8 + 6 + 4),
    "ms.MoE in float16": Case(lambda n: _mixture(n, 1, "swiglu"), 8 + 6 + 4, dtype=np.float16),
    "ms.MoE, logits not normalised": Case(lambda n: _mixture(n, 0, "silu", normalize=0), 8 + 6 + 4),
    "ms.MoE, one expert a token": Case(lambda n: _mixture(n, 0, "gelu", k=1), 8 + 6 + 4),
    "ms.MoE, a router with a bias": Case(lambda n: _mixture(n, 0, "relu", _with_bias), 8 + 6 + 4),
    "ms.MoE, a router by Gemm": Case(lambda n: _mixture(n, 0, "relu", lambda n, h: n("Gemm", h, n.w(4, 8), n.w(4), transB=1)), 8 + 6 + 4),
    "ms.MoE, a router through Cast": Case(lambda n: _mixture(n, 0, "relu", _cast_twice), 8 + 6 + 4),
    "ms.MoE, a router through Flatten": Case(lambda n: _mixture(n, 0, "relu", lambda n, h: n("Flatten", n("MatMul", h, n.w(8, 4)))), 8 + 6 + 4),
    "ms.MoE of sequences": Case(lambda n: _sequences(n), 8 + 6 + 4),
    "ms.MoE twice": Case(lambda n: _two_mixtures(n), 8 + 2 * (6 + 4)),
    "ms.MoE twice, one router": Case(lambda n: _two_mixtures(n, shared=True), 8 + 2 * 6 + 4),
    "ms.MoE, logits that are summed, too": Case(lambda n: _summed_logits(n), 8 + 6),
    "ms.MoE, logits that Softmax made": Case(lambda n: _mixture(n, 0, "relu", lambda n, h: n("Softmax", n("MatMul", h, n.w(8, 4)))), 8 + 6),
    "Einsum linear": Case(lambda n: n.out(n("Einsum", n("Einsum", n.x("N", "T", 4), n.w(4, 2, 3), equation="ntc,chd->nthd"), n.w(2, 3, 5), equation="nthd, hdo -> nto")), 2 + 3),
    "Einsum of one position": Case(lambda n: rows(n, lambda n, h: n("Einsum", h, n.w(1, 8), equation="nc,nc->nc")), 8),
    "Einsum ellipsis": Case(lambda n: n.out(n("Einsum", n("Einsum", n.x("N", "T", 4), n.w(4, 8), equation="...c,cd->...d"), n.w(8, 2), equation="...d,do->...o")), 8),
    "Einsum implicit": Case(lambda n: n.out(n("Einsum", n("MatMul", n.x("N", 4), n.w(4, 8)), n.w(8, 3), equation="ab,bc")), 8),
    "Einsum attention": Case(lambda n: _einsum_attention(n), 2 + 3 + 3),
    "tied embedding": Case(lambda n: _tied(n), 8),
}  # fmt: skip


def _shuffle(n: Net, h: str) -> str:
    h = n("Reshape", h, n.c([0, 2, 4, -1, 6]))
    return str(n("Reshape", n("Transpose", h, perm=[0, 2, 1, 3, 4]), n.c([0, 8, -1, 6])))


def _mixture(
    n: Net,
    fusion: int,
    activation: str,
    router: Callable[[Net, str], str] = lambda n, h: n("MatMul", h, n.w(8, 4)),
    **settings: int,
) -> Net:
    """Four experts of inner width 6 between projections of a hidden size of 8."""
    h = n("MatMul", n.x("N", 4), n.w(4, 8))
    return n.out(n("MatMul", _experts(n, h, router(n, h), fusion, activation, **settings), n.w(8, 3)))


def _experts(
    n: Net, h: str, logits: str, fusion: int = 0, activation: str = "relu", k: int = 2, normalize: int = 1
) -> str:
    rows = 6 * (2 if fusion else 1)
    held = n.w(4, rows, 8), n.w(4, rows), n.w(4, 8, 6), n.w(4, 8)
    settings = {"k": k, "activation_type": activation, "normalize_routing_weights": normalize}
    return str(n.ms("MoE", h, logits, *held, swiglu_fusion=fusion, **settings))


def _with_bias(n: Net, h: str) -> str:
    return str(n("Add", n("MatMul", h, n.w(8, 4)), n.w(4)))


def _cast_twice(n: Net, h: str) -> str:
    """As where a router computes in another type."""
    wide = n("Cast", n("MatMul", h, n.w(8, 4)), to=TensorProto.DOUBLE)
    return str(n("Cast", n("Mul", wide, n.c(np.float64(3))), to=helper.np_dtype_to_tensor_dtype(n.dtype)))


def _sequences(n: Net) -> Net:
    h = n("MatMul", n.x("N", "T", 4), n.w(4, 8))
    logits = n("Reshape", n("MatMul", h, n.w(8, 4)), n.c([-1, 4]))
    return n.out(n("MatMul", _experts(n, h, logits), n.w(8, 3)))


def _two_mixtures(n: Net, shared: bool = False) -> Net:
    h = n("MatMul", n.x("N", 4), n.w(4, 8))
    logits = n("MatMul", h, n.w(8, 4))
    y = _experts(n, h, logits)
    return n.out(n("MatMul", _experts(n, y, logits if shared else n("MatMul", y, n.w(8, 4))), n.w(8, 3)))


def _summed_logits(n: Net) -> Net:
    """To the sum a position is absent if it is zero, to the choice if it is the lowest number."""
    h = n("MatMul", n.x("N", 4), n.w(4, 8))
    logits = n("MatMul", h, n.w(8, 4))
    return n.out(n("MatMul", n("Add", _experts(n, h, logits), n("ReduceSum", logits, n.c([1]))), n.w(8, 3)))


def _einsum_attention(n: Net) -> Net:
    x = n.x("N", "T", 4)
    q, k, v = (n("Einsum", x, n.w(4, 2, 3), equation="ntc,chd->nthd") for _ in range(3))
    weights = n("Softmax", n("Einsum", q, k, equation="nthd,nshd->nhts"))
    return n.out(
        n("Einsum", n("Einsum", weights, v, equation="nhts,nshd->nthd"), n.w(2, 3, 5), equation="nthd,hdo->nto")
    )


def _tied(n: Net) -> Net:
    table = n.w(11, 8, name="table")
    h = n("Gather", table, n.x("N", "T", limit=11))
    return n.out(n("MatMul", n("Mul", n("Sigmoid", h), h), n("Transpose", table, perm=[1, 0])))


def _batch_norm(n: Net, h: str, width: int = 8, **attributes: Any) -> str:
    return str(n("BatchNormalization", h, n.w(width), n.w(width), n.w(width), n.positive(width), **attributes))


def _decomposed_rms(n: Net, h: str, same: bool = True) -> str:
    again = n("Identity", h) if same else n("Sigmoid", h)
    square = n("ReduceMean", n("Mul", h, h) if same else n("Mul", h, again), n.c([-1]))
    return str(n("Div", h, n("Sqrt", n("Add", square, n.c(np.float32(1e-5))))))


def _decomposed_layer(n: Net, h: str) -> str:
    centred = n("Sub", h, n("ReduceMean", h, n.c([-1])))
    variance = n("ReduceMean", n("Pow", centred, n.c(np.float32(2))), n.c([-1]))
    scaled = n("Div", centred, n("Sqrt", n("Add", variance, n.c(np.float32(1e-5)))))
    return str(n("Add", n("Mul", scaled, n.w(8)), n.w(8)))


def _instance_as_group(n: Net, h: str) -> str:
    """GroupNorm as PyTorch exports it: groups become the channels of an InstanceNormalization."""
    flat = n(
        "InstanceNormalization",
        n("Reshape", h, n.c([0, 4, -1])),
        n.c(np.ones(4, np.float32)),
        n.c(np.zeros(4, np.float32)),
    )
    return str(n("Add", n("Mul", n("Reshape", flat, n("Shape", h)), n.w(8, 1, 1)), n.w(8, 1, 1)))


def _grn(n: Net, h: str) -> str:
    """ConvNeXt V2: every channel is weighed by its norm over the mean norm of all channels."""
    norm = n("ReduceL2", h, n.c([1]))
    weight = n("Div", norm, n("Add", n("ReduceMean", norm, n.c([-1])), n.c(np.float32(1e-6))))
    return str(n("Add", n("Mul", n("Mul", h, weight), n.w(1, 1, 8)), h))


def _squeeze_excite(n: Net, h: str) -> str:
    s = n("Relu", n.conv(n("GlobalAveragePool", h), 8, 4))
    return str(n("Mul", h, n("Sigmoid", n.conv(s, 4, 8))))


WIDTH = {"wide": 8}  # units that are free only with an approximation
NORMS = {
    "BatchNormalization": Case(lambda n: image(n, _batch_norm), 8),
    "BatchNormalization in training": Case(lambda n: image(n, lambda n, h: n("BatchNormalization", h, n.w(8), n.w(8), n.w(8), n.positive(8), training_mode=1, outputs=3)[0]), 8),
    "BatchNormalization after Gemm": Case(lambda n: rows(n, _batch_norm), 8),
    "InstanceNormalization": Case(lambda n: image(n, lambda n, h: n("InstanceNormalization", h, n.w(8), n.w(8))), 8),
    "InstanceNormalization of groups": Case(lambda n: image(n, _instance_as_group), 4, options={"wide": 2}),
    "GroupNormalization 18": Case(lambda n: image(n, lambda n, h: n("GroupNormalization", h, n.w(4), n.w(4), num_groups=4)), 4, 18, options={"wide": 2}),
    "GroupNormalization 21": Case(lambda n: image(n, lambda n, h: n("GroupNormalization", h, n.w(8), n.w(8), num_groups=4)), 4, 21, options={"wide": 2}),
    "GroupNormalization of single channels": Case(lambda n: image(n, lambda n, h: n("GroupNormalization", h, n.w(8), n.w(8), num_groups=8)), 8, 21),
    "LayerNormalization": Case(lambda n: tokens(n, lambda n, h: n("LayerNormalization", h, n.w(8), n.w(8))), 0, options=WIDTH),
    "LayerNormalization over the others": Case(lambda n: tokens(n, lambda n, h: n("Transpose", n("LayerNormalization", n("Transpose", n("Reshape", h, n.c([0, 5, 8])), perm=[0, 2, 1]), n.w(5), n.w(5)), perm=[0, 2, 1])), 8, options={"static": True}),
    "RMSNormalization": Case(lambda n: tokens(n, lambda n, h: n("RMSNormalization", h, n.w(8))), 8, 23),
    "SimplifiedLayerNormalization": Case(lambda n: tokens(n, lambda n, h: n("SimplifiedLayerNormalization", h, n.w(8))), 8),
    "ms.SkipSimplifiedLayerNormalization": Case(lambda n: tokens(n, lambda n, h: n.linear(n.ms("SkipSimplifiedLayerNormalization", h, h, n.w(8)), 8, 6), 8, 6), 14),
    "ms.SkipLayerNormalization": Case(lambda n: tokens(n, lambda n, h: n.linear(n.ms("SkipLayerNormalization", h, h, n.w(8), n.w(8), n.w(8)), 8, 6), 8, 6), 6, options=WIDTH),
    "RMS norm that is given out": Case(lambda n: n.out(n.linear((made := n("SimplifiedLayerNormalization", n.linear(n.x("N", "T", 4), 4, 8), n.w(8), outputs=2))[0], 8, 3), made[1]), 0),
    "RMS norm of a product": Case(lambda n: tokens(n, lambda n, h: _decomposed_rms(n, h, same=False)), 0, options=WIDTH),
    "RMS norm decomposed": Case(lambda n: tokens(n, _decomposed_rms), 8),
    "LayerNorm decomposed": Case(lambda n: tokens(n, _decomposed_layer), 0, options=WIDTH),
    "LpNormalization": Case(lambda n: rows(n, lambda n, h: n("LpNormalization", h, axis=-1)), 8),
    "MeanVarianceNormalization": Case(lambda n: image(n, lambda n, h: n("MeanVarianceNormalization", h)), 8),
    "MeanVarianceNormalization of channels": Case(lambda n: image(n, lambda n, h: n("MeanVarianceNormalization", h, axes=[1])), 0),
    "LRN of another axis": Case(lambda n: tokens(n, lambda n, h: n("Squeeze", n("LRN", n("Unsqueeze", h, n.c([3])), size=3), n.c([3]))), 8),
    "LRN": Case(lambda n: image(n, lambda n, h: n("LRN", h, size=3)), 0),
    "Softmax": Case(lambda n: rows(n, lambda n, h: n("Softmax", h)), 0),
    "Softmax of another axis": Case(lambda n: tokens(n, lambda n, h: n("Softmax", h, axis=1)), 8),
    "Softmax 11 flattens": Case(lambda n: tokens(n, lambda n, h: n("Softmax", h, axis=1)), 0, 11),
    "LogSoftmax": Case(lambda n: rows(n, lambda n, h: n("LogSoftmax", h)), 0),
    "LogSoftmax of another axis": Case(lambda n: tokens(n, lambda n, h: n("LogSoftmax", h, axis=1)), 8),
    "Hardmax": Case(lambda n: tokens(n, lambda n, h: n("Hardmax", h, axis=1)), 8),
    "squeeze and excitation": Case(lambda n: image(n, _squeeze_excite), 8 + 4),
    **{op: Case(lambda n, op=op: image(n, lambda n, h: n.conv(n(op, h, n.c([1]), keepdims=1), 1, 4), 8, 4), 8 + 4) for op in ("ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare")},
    "ReduceLogSum": Case(lambda n: image(n, lambda n, h: n.conv(n("ReduceLogSum", n("Add", n("Abs", h), n("Abs", h)), n.c([1])), 1, 4), 8, 4), 8 + 4),
    **{op: Case(lambda n, op=op: image(n, lambda n, h: n.conv(n(op, h, n.c([1])), 1, 4), 8, 4), 4) for op in ("ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")},
    **{f"{op} of another axis": Case(lambda n, op=op: tokens(n, lambda n, h: n(op, h, n.c([1]))), 8) for op in ("ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")},
    "ReduceMean of space": Case(lambda n: rows_after(n, lambda n, h: n("ReduceMean", h, n.c([2, 3]), keepdims=0)), 8),
    "ReduceMean of space 13": Case(lambda n: rows_after(n, lambda n, h: n("ReduceMean", h, axes=[2, 3], keepdims=0)), 8, 13),
    "ReduceMean of all": Case(lambda n: n.out(n("ReduceMean", n.conv(n.x("N", 3, "H", "W"), 3, 8))), 8),
    "ReduceMean of two axes 13": Case(lambda n: image(n, lambda n, h: n.conv(n("ReduceMean", h, axes=[-3, 2]), 1, 4), 8, 4), 8 + 4, 13),
    "global response normalisation": Case(lambda n: tokens(n, _grn), 8),
    "ReduceSum of no axes": Case(lambda n: rows(n, lambda n, h: n("ReduceSum", h, n.c(np.zeros(0, np.int64)), noop_with_empty_axes=1)), 8),
    "ArgMax": Case(lambda n: n.out(n("ArgMax", n.conv(n.x("N", 3, "H", "W"), 3, 8), axis=1)), 0),
    "ArgMin of another axis": Case(lambda n: n.out(n("MatMul", n("Cast", n("ArgMin", n.linear(n.x("N", "T", 4), 4, 8), axis=1, keepdims=0), to=1), n.w(8, 2))), 8),
    "CumSum": Case(lambda n: tokens(n, lambda n, h: n("CumSum", h, n.c(1))), 8),
    "CumSum over channels": Case(lambda n: tokens(n, lambda n, h: n("CumSum", h, n.c(2), exclusive=1)), 8),
    "TopK of another axis": Case(lambda n: tokens(n, lambda n, h: n("TopK", h, n.c([3]), axis=1, outputs=2)[0]), 8),
    "TopK": Case(lambda n: tokens(n, lambda n, h: n("TopK", h, n.c([3]), outputs=2)[0], 8, 3), 0),
    "Det": Case(lambda n: n.out(n("MatMul", n("Det", n("Reshape", n("MatMul", n.x(2, 4), n.w(4, 32)), n.c([2, 8, 2, 2]))), n.w(8, 3))), 8),
}  # fmt: skip


def rows_after(n: Net, body: Callable[[Net, str], str], width: int = 8) -> Net:
    """Conv to `width` -> body to (N, width) -> Gemm."""
    h = body(n, n.conv(n.x("N", 3, "H", "W"), 3, width))
    return n.out(n("Gemm", h, n.w(width, 3), n.w(3)))
