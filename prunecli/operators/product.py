"""Products of matrices: Gemm, MatMul, Einsum, and their fused and quantised forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

import prunecli.operators.layout as layout
from prunecli.arrays import Array
from prunecli.operators.attributes import integer, number, text
from prunecli.operators.layout import Shape
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    Contraction,
    Demand,
    DemandReading,
    Operator,
    Refused,
    Role,
    ShapeOf,
    Standard,
    Sum,
    bias,
    is_vector,
    like_first,
    name_of,
    register,
    weight,
)


def matrix_axes(node: ir.Node, operand: int, rank: int) -> tuple[int, ...]:
    """The axes of an operand of MatMul or FusedMatMul in the order that is multiplied: batch, then M, K or K, N.

    transBatchA moves the first axis behind the batch, then transA swaps the last two; B likewise.
    """
    side, axes = "AB"[operand], list(range(rank))
    if rank > 2 and integer(node, f"transBatch{side}", 0):
        axes.insert(-1, axes.pop(0))
    if rank > 1 and integer(node, f"trans{side}", 0):
        axes[-2:] = axes[:-3:-1]
    return tuple(axes)


def _picked(array: Array, positions: Array | None) -> Array:
    return array if positions is None else array[..., positions]


def _float(array: Array) -> Array:
    return np.asarray(array, np.float32)


# -- Gemm: Y = alpha A' B' + beta C with A' (M, K), B' (K, N) -----------------------------------


def _transposed(node: ir.Node, index: int) -> bool:
    return bool(integer(node, ("transA", "transB")[index], 0))


def _inner(node: ir.Node, index: int) -> int:
    """The axis of A or B that is summed over: the last of a left operand, the first of a right one."""
    return int((index == 0) != _transposed(node, index))


def _gemm_role(node: ir.Node, index: int, shape: Shape) -> Role | Refused | None:
    if index == 2:
        return bias(shape) if is_vector(shape) else Refused("a full matrix is added, not a bias")
    if index > 2 or len(shape) != 2:
        return None
    inner = _inner(node, index)
    return weight(layout.matrix(shape, 1 - inner, inner))


def _gemm_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """M * N * K, with A' (M, K)."""
    return math.prod(out) * shape(0)[_inner(node, 0)]


def _gemm_contraction(node: ir.Node, index: int, shape: Shape) -> Contraction | None:
    """The weight is A or B."""
    if index > 1:
        return None
    data, output = name_of(node, 1 - index), node.outputs[0].name
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    inner = _inner(node, 1 - index)
    if data is None or output is None or alpha == 0:
        return None

    def columns(x: Array, shape: Shape, positions: Array | None) -> Array:
        return _picked(_float(x).T if inner == 1 else _float(x), positions)[None] * np.float32(alpha)

    def targets(y: Array, positions: Array | None) -> Array:
        return _picked(_float(y).T if index == 1 else _float(y), positions)[None]

    place = 2 if beta == 1 and index == 1 else None
    return Contraction(
        data,
        output,
        columns,
        targets=targets,
        positions=lambda out: out[1 - index],
        channel=-1 if index == 1 else -2,
        rank=2,
        bias=place if name_of(node, 2) else None,
        bias_place=place,
    )


def _gemm_sums(node: ir.Node, rank: Callable[[int], int]) -> Iterator[Sum]:
    for index in (1, 0):
        yield Sum(weight=index, axis=_inner(node, index) - 2, data=1 - index, data_axis=_inner(node, 1 - index) - 2)


def _gemm_demand(asked: DemandReading) -> Demand:
    if asked.index > 1:
        return NO_DEMAND
    other = asked.shape(1 - asked.index)
    size = other[_inner(asked.node, 1 - asked.index)] if other is not None else None
    return Demand((size, None) if _inner(asked.node, asked.index) == 0 else (None, size), True)


GEMM = Operator(
    role=_gemm_role,
    macs=_gemm_macs,
    contraction=_gemm_contraction,
    sums=_gemm_sums,
    rows=lambda node: 1 - _inner(node, 1),
    demand=_gemm_demand,
    bias=2,
)
SCALED = frozenset({"alpha", "beta", "transA", "transB"})


def _qgemm_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """A at input 0, B at input 3."""
    return [(shapes[0][1 - _inner(node, 0)], shapes[3][1 - _inner(node, 1)])]


register(GEMM, "Gemm")
register(
    Operator(role=_gemm_role, macs=_gemm_macs, demand=_gemm_demand, standard=Standard("Gemm", (0, 1, 2), SCALED)),
    "FusedGemm",
    domain=MICROSOFT,
)
register(Operator(role=_gemm_role), "GemmFastGelu", domain=MICROSOFT)
register(Operator(macs=_gemm_macs, shapes=_qgemm_shapes, bias=6, quantised=True), "QGemm", domain=MICROSOFT)


# -- MatMul: A (..., M, K) times B (..., K, N); the fused forms may transpose either operand ----


def _matmul_role(node: ir.Node, index: int, shape: Shape) -> Role | None:
    if index > 1 or not shape:
        return None
    if len(shape) == 1:
        return weight(layout.arrange(shape, shape, cols=(0,)))
    axes = matrix_axes(node, index, len(shape))[-2:]
    rows, cols = reversed(axes) if index else axes
    return weight(layout.matrix(shape, rows, cols))


def _matmul_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """prod(Y) * K, whether the operands are weights or activations."""
    first = shape(0)
    return math.prod(out) * first[matrix_axes(node, 0, len(first))[-1]]


def _matmul_contraction(node: ir.Node, index: int, shape: Shape) -> Contraction | None:
    """Y = X W with X (..., M, K), W (..., K, N), or Y = W X; batch axes broadcast. A vector is a matrix of one row."""
    data, output = name_of(node, 1 - index), node.outputs[0].name
    if data is None or output is None or len(shape) < 2:
        return None
    stack = () if all(size == 1 for size in shape[:-2]) else shape[:-2]
    if 1 in stack:  # broadcast along some of its batch axes only
        return None

    def columns(x: Array, out: Shape, positions: Array | None) -> Array:
        x = _as_matrix(_float(x), left=index == 1)
        return _stacked(x if index == 0 else x.swapaxes(-1, -2), stack, positions)

    def targets(y: Array, positions: Array | None) -> Array:
        y = _float(y)
        if index == 1:
            y = (y if y.ndim > len(stack) + 1 else y[..., None, :]).swapaxes(-1, -2)
        elif y.ndim == len(stack) + 1:
            y = y[..., None]
        return _stacked(y, stack, positions)

    per_position = max(math.prod(stack) * shape[-1 if index == 1 else -2], 1)
    return Contraction(
        data,
        output,
        columns,
        targets=targets,
        positions=lambda out: math.prod(out) // per_position,
        channel=-1 if index == 1 else -2,
    )


def _as_matrix(x: Array, left: bool) -> Array:
    if x.ndim > 1:
        return x
    return x[None, :] if left else x[:, None]


def _stacked(x: Array, stack: Sequence[int], positions: Array | None) -> Array:
    """(..., K, R) with axes that broadcast to `stack` before the last two -> (prod(stack), K, all else x R)."""
    depth = len(stack)
    if x.ndim - 2 < depth:
        x = x.reshape((1,) * (depth - x.ndim + 2) + x.shape)
    lead = x.ndim - 2 - depth
    x = np.broadcast_to(x, (*x.shape[:lead], *stack, *x.shape[-2:]))
    moved = np.moveaxis(x, range(lead), range(depth + 1, depth + 1 + lead))
    return _picked(moved.reshape(math.prod(stack), x.shape[-2], -1), positions)


def _matmul_sums(node: ir.Node, rank: Callable[[int], int]) -> Iterator[Sum]:
    if rank(1) >= 2:
        yield Sum(weight=1, axis=-2, data=0, data_axis=-1)
    if rank(0) >= 2:
        yield Sum(weight=0, axis=-1, data=1, data_axis=-2)


def _matmul_demand(asked: DemandReading) -> Demand:
    shape = asked.shape(1) if asked.index == 0 else None
    return NO_DEMAND if not shape else Demand((None, shape[0] if len(shape) == 1 else shape[-2]))


def _matmul_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    a, b = (tuple(shape[axis] for axis in matrix_axes(node, k, len(shape))) for k, shape in enumerate(shapes[:2]))
    if min(len(a), len(b)) < 2:
        return [None]
    if a[-1] != b[-2]:
        raise ValueError(f"matrices of {a[-1]} columns and {b[-2]} rows are multiplied")
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]


def _nbits_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """prod(Y) * K with the attribute K."""
    return math.prod(out) * integer(node, "K", 0)


def _nbits_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:-1], integer(node, "N", 0))]


MATMUL = Operator(
    role=_matmul_role,
    macs=_matmul_macs,
    contraction=_matmul_contraction,
    sums=_matmul_sums,
    rows=lambda node: -1,
    demand=_matmul_demand,
)
INTEGER_MATMUL = Operator(macs=_matmul_macs, demand=_matmul_demand, quantised=True)

register(MATMUL, "MatMul")
register(INTEGER_MATMUL, "MatMulInteger")
register(Operator(macs=_matmul_macs, quantised=True), "QLinearMatMul")
register(
    Operator(role=_matmul_role, macs=_matmul_macs, shapes=_matmul_shapes),
    "FusedMatMul TransposeMatMul",
    domain=MICROSOFT,
)
register(Operator(role=_matmul_role), "FusedMatMulActivation", domain=MICROSOFT)
register(replace(INTEGER_MATMUL, shapes=_matmul_shapes), "DynamicQuantizeMatMul", domain=MICROSOFT)
register(replace(INTEGER_MATMUL, shapes=_matmul_shapes, type_of=2), "MatMulIntegerToFloat", domain=MICROSOFT)
register(Operator(macs=_nbits_macs, shapes=_nbits_shapes, quantised=True), "MatMulNBits", domain=MICROSOFT)
register(Operator(quantised=True), "MatMulBnb4 MatMulFpQ4", domain=MICROSOFT)


# -- MoE: each token through k experts, which are two (gated: three) matrices each ------------


def _experts_role(node: ir.Node, index: int, shape: Shape) -> Role | None:
    """Matrices (experts, rows, cols), and biases (experts, rows)."""
    if index in (2, 4, 6) and len(shape) == 3:
        return weight(layout.matrix(shape, 1, 2))
    return bias(shape) if index in (3, 5, 7) else None


def _experts_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """tokens * k * inner * hidden * matrices; both halves of a fused gate count."""
    _, hidden, inner = shape(4)
    fused, third = shape(2)[1] // inner, int(name_of(node, 6) is not None)
    return math.prod(out) // hidden * integer(node, "k", 1) * inner * hidden * (fused + third + 1)


def _packed_experts_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """As of MoE. The weights are inputs 2, 5 and 8, with several numbers in a byte along their last axis."""
    bits = integer(node, "fc2_expert_weight_bits", integer(node, "expert_weight_bits", 4))
    _, hidden, packed = shape(5)
    inner = packed * 8 // bits
    fused, third = shape(2)[1] // inner, int(name_of(node, 8) is not None)
    return math.prod(out) // hidden * integer(node, "k", 1) * inner * hidden * (fused + third + 1)


register(Operator(role=_experts_role, macs=_experts_macs, shapes=like_first), "MoE", domain=MICROSOFT)
register(Operator(macs=_packed_experts_macs, shapes=like_first, quantised=True), "QMoE", domain=MICROSOFT)


# -- Einsum: equal letters are one axis; a letter that is not in the output is summed over ------


def subscripts(equation: str, ranks: Sequence[int]) -> list[list[str]]:
    """The label of every axis of every operand and of the result.

    An ellipsis stands for axes labelled by their distance from its end (they broadcast from the right).
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(set(left) - {",", "."})
        right = ("..." if "." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    out = []
    for term, rank in zip([*terms, right], ranks, strict=True):
        before, dots, after = term.partition("...")
        hidden = rank - len(before) - len(after) if dots else 0
        out.append([*before, *(f"...{k}" for k in range(hidden, 0, -1)), *after])
    return out


def _einsum_role(node: ir.Node, index: int, shape: Shape) -> Role | Refused:
    """Letters only this operand brings to the output are rows, contracted ones cols, shared ones batch."""
    equation = text(node, "equation", "").replace(" ", "")
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
    return weight(layout.arrange(shape, shape, batch=batch, rows=rows, cols=cols))


def _einsum_macs(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """Product of the sizes of all letters, for two operands; operands without contraction multiply too.

    Raises:
        ValueError: of more operands it is not known which are multiplied first.
    """
    operands = [shape(index) for index in range(len(node.inputs))]
    if len(operands) > 2:
        raise ValueError("more than two operands")
    if len(operands) == 1:
        return 0
    labels = subscripts(text(node, "equation", ""), [*(len(operand) for operand in operands), len(out)])
    sizes: dict[str, int] = {}
    for term, operand in zip(labels[:-1], operands, strict=True):
        for letter, size in zip(term, operand, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 0))
    return math.prod(sizes.values())


register(Operator(role=_einsum_role, macs=_einsum_macs), "Einsum")
