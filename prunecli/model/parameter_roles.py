"""What each operator uses a constant input for: the registry behind `find_weights`.

A rule takes (node, input index, shape of that input) and answers with a `Role`, or `Refused` with the reason,
or None when the input is no parameter (then the constant is reported as such). To teach the program a new
operator, write one rule and decorate it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

import prunecli.model.attrs as attrs
import prunecli.model.layout as layout
from prunecli.model.layout import Layout, Shape

Kind = Literal["weight", "bias", "norm", "embedding"]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Role:
    """A parameter of `kind`, read as `layout`."""

    kind: Kind
    layout: Layout


@dataclass(frozen=True)
class Refused:
    """A parameter that cannot be pruned, and why."""

    reason: str


Answer = Role | Refused | None
Rule = Callable[[ir.Node, int, Shape], Answer]
RULES: dict[tuple[str, str], Rule] = {}


def reads(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for the operators `op_types` of `domain`."""

    def register(rule: Rule) -> Rule:
        RULES.update({(domain, op_type): rule for op_type in op_types})
        return rule

    return register


def role_of(node: ir.Node, index: int, shape: Shape) -> Answer:
    """The role of input `index` of `node`; None for an unknown operator or an input that is no parameter."""
    rule = RULES.get((node.domain, node.op_type))
    try:
        return rule(node, index, shape) if rule else None
    except attrs.UnreadableAttributeError as error:
        return Refused(str(error))


def _bias(shape: Shape) -> Role:
    return Role("bias", layout.vector(shape))


def _norm(shape: Shape) -> Role:
    return Role("norm", layout.vector(shape))


@reads("Conv")
@reads("FusedConv", "NhwcFusedConv", domain=MICROSOFT)
def conv(node: ir.Node, index: int, shape: Shape) -> Answer:
    """Y = X * W + B with W (M, C/g, k...)."""
    if index == 2:
        return _bias(shape)
    return _kernel(node, shape, layout.conv) if index == 1 else None


@reads("DeformConv")
def deform_conv(node: ir.Node, index: int, shape: Shape) -> Answer:
    """Inputs X, W, offset, B, mask; W as in Conv."""
    if index == 3:
        return _bias(shape)
    return _kernel(node, shape, layout.conv) if index == 1 else None


@reads("ConvTranspose")
def conv_transpose(node: ir.Node, index: int, shape: Shape) -> Answer:
    """W is (C, M/g, k...)."""
    if index == 2:
        return _bias(shape)
    return _kernel(node, shape, layout.conv_transpose) if index == 1 else None


def _kernel(node: ir.Node, shape: Shape, arrange: Callable[[Shape, int], Layout]) -> Answer:
    group = attrs.integer(node, "group", 1)
    if len(shape) < 3 or group < 1 or shape[0] % group:
        return Refused(f"its shape {list(shape)} does not fit {node.op_type} with group={group}")
    return Role("weight", arrange(shape, group))


@reads("Gemm")
@reads("FusedGemm", "GemmFastGelu", domain=MICROSOFT)
def gemm(node: ir.Node, index: int, shape: Shape) -> Answer:
    """Y = A' B' + C with A' (M, K), B' (K, N)."""
    if index == 2:
        return _bias(shape) if _is_vector(shape) else Refused("a full matrix is added, not a bias")
    if index > 2 or len(shape) != 2:
        return None
    transposed = bool(attrs.integer(node, "transB" if index else "transA", 0))
    return _operand(index, transposed, shape)


@reads("MatMul")
@reads("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def matmul(node: ir.Node, index: int, shape: Shape) -> Answer:
    """A (..., M, K) times B (..., K, N); the contrib forms may transpose either operand."""
    if index > 1 or not shape:
        return None
    if len(shape) == 1:
        return Role("weight", layout.arrange(shape, shape, cols=(0,)))
    axes = attrs.matrix_axes(node, index, len(shape))[-2:]
    rows, cols = reversed(axes) if index else axes
    return Role("weight", layout.matrix(shape, rows, cols))


def _operand(index: int, transposed: bool, shape: Shape) -> Role:
    """Left operands are (rows, cols), right operands (cols, rows), unless transposed."""
    rows, cols = (-2, -1) if (index == 0) != transposed else (-1, -2)
    return Role("weight", layout.matrix(shape, rows, cols))


@reads("LSTM", "GRU", "RNN")
def recurrent(node: ir.Node, index: int, shape: Shape) -> Answer:
    """W (D, gates*H, I), R (D, gates*H, H), B (D, 2*gates*H), LSTM peepholes P (D, 3*H)."""
    if index in (1, 2) and len(shape) == 3:
        return Role("weight", layout.matrix(shape, 1, 2))
    if index == 3 or (index == 7 and node.op_type == "LSTM"):
        return _bias(shape)
    return Refused(f"initial state of {node.op_type}") if index in (5, 6) else None


@reads("Einsum")
def einsum(node: ir.Node, index: int, shape: Shape) -> Answer:
    """Letters only this operand brings to the output are rows, contracted ones cols, shared ones batch."""
    equation = attrs.text(node, "equation", "").replace(" ", "")
    if "->" not in equation or "." in equation:
        return Refused("Einsum without an explicit output, or with an ellipsis")
    terms, output = equation.split("->")
    operands = terms.split(",")
    if index >= len(operands) or len(operands[index]) != len(shape) or len(set(operands[index])) != len(shape):
        return Refused("Einsum takes a diagonal of it")
    letters, others = operands[index], {c for i, term in enumerate(operands) if i != index for c in term}
    if not others or not any(c in others and c not in output for c in letters):
        return Refused("Einsum does not contract it with anything")
    rows = [i for i, c in enumerate(letters) if c in output and c not in others]
    batch = [i for i, c in enumerate(letters) if c in output and c in others]
    cols = [i for i, c in enumerate(letters) if c not in output]
    return Role("weight", layout.arrange(shape, shape, batch, rows, (), cols))


@reads("Attention", "PackedAttention", domain=MICROSOFT)
def attention(node: ir.Node, index: int, shape: Shape) -> Answer:
    """X (B, S, I) times W (I, 3*H), then attention; bias (3*H)."""
    if index == 1 and len(shape) == 2:
        return _operand(1, False, shape)
    return _bias(shape) if index == 2 else None


def _at(rule: Callable[[Shape], Role], *indices: int) -> Rule:
    """A rule for operators whose parameters sit at fixed positions."""

    def answer(node: ir.Node, index: int, shape: Shape) -> Answer:
        return rule(shape) if index in indices else None

    return answer


def _embedding(shape: Shape) -> Role:
    return Role("embedding", layout.last_axis_cols(shape))


reads("MultiHeadAttention", domain=MICROSOFT)(_at(_bias, 3))
reads("PackedMultiHeadAttention", domain=MICROSOFT)(_at(_bias, 3))
reads("BiasGelu", "FastGelu", "BiasDropout", domain=MICROSOFT)(_at(_bias, 1))
reads("BiasAdd", "BiasSplitGelu", domain=MICROSOFT)(_at(_bias, 1))
reads("BatchNormalization")(_at(_norm, 1, 2, 3, 4))
reads("InstanceNormalization", "GroupNormalization", "LayerNormalization")(_at(_norm, 1, 2))
reads("GroupNorm", "SkipGroupNorm", "LayerNormalization", domain=MICROSOFT)(_at(_norm, 1, 2))
reads("RMSNormalization", "SimplifiedLayerNormalization")(_at(_norm, 1))
reads("SimplifiedLayerNormalization", domain=MICROSOFT)(_at(_norm, 1))
reads("SkipSimplifiedLayerNormalization", domain=MICROSOFT)(_at(_norm, 2, 3))
reads("SkipLayerNormalization", domain=MICROSOFT)(_at(_norm, 2, 3, 4))
reads("PRelu")(_at(_norm, 1))


@reads("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_norm(node: ir.Node, index: int, shape: Shape) -> Answer:
    """Word, position and segment tables at 2, 3, 4; gamma and beta at 5, 6."""
    if index in (2, 3, 4):
        return _embedding(shape)
    return _norm(shape) if index in (5, 6) else None


@reads("Gather")
def gather(node: ir.Node, index: int, shape: Shape) -> Answer:
    """A table (V, D...) looked up along axis 0."""
    if index != 0 or len(shape) < 2:
        return None
    axis = attrs.integer(node, "axis", 0)
    return _embedding(shape) if axis in (0, -len(shape)) else None


@reads("Add", "Sub")
def shift(node: ir.Node, index: int, shape: Shape) -> Answer:
    """A constant along one axis is a bias; any other is a table, such as position embeddings."""
    return _bias(shape) if _is_vector(shape) else None


@reads("Mul", "Div")
def scale(node: ir.Node, index: int, shape: Shape) -> Answer:
    """A constant along one axis scales channels, as the rest of an unfused normalisation does."""
    if node.op_type == "Div" and index == 0:
        return None
    return _norm(shape) if _is_vector(shape) else None


def _is_vector(shape: Shape) -> bool:
    """At most one axis is longer than 1 (scalars are filtered out before)."""
    return sum(d != 1 for d in shape) <= 1
