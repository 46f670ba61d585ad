"""Products of matrices: Gemm, MatMul, Einsum and their fused forms."""

from __future__ import annotations

import string

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import Gradient, GradientContext, Gradients, rule
from prunecli.model.shape_inference import Shape
from prunecli.operators import MICROSOFT

Value = ir.Value


@rule("Gemm")
def gemm(g: GradientContext, dy: Value) -> Gradients:
    """Y = alpha A'B' + beta C, ' being an optional transposition of its own per operand."""
    alpha, beta = g.real("alpha", 1.0), g.real("beta", 1.0)
    ta, tb = bool(g.integer("transA")), bool(g.integer("transB"))
    da, db = product_gradients(g, dy, ta, tb=tb, alpha=alpha)
    return [da, db, g.ops.mul(dy, beta) if g.needs(2) else None]


@rule("MatMul")
def matmul(g: GradientContext, dy: Value) -> Gradients:
    ranks = [g.ops.rank(g.x(0)), g.ops.rank(g.x(1))]
    if min(ranks) >= 2:
        return list(product_gradients(g, dy, False, tb=False, alpha=1.0))
    return _with_vectors(g, dy, ranks)


@rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul(g: GradientContext, dy: Value) -> Gradients:
    return list(
        product_gradients(g, dy, bool(g.integer("transA")), tb=bool(g.integer("transB")), alpha=g.real("alpha", 1.0))
    )


def product_gradients(
    g: GradientContext, dy: Value, ta: bool, tb: bool, alpha: float
) -> tuple[Value | None, Value | None]:
    """dA = alpha dY B'^T, dB = alpha A'^T dY, transposed back where the operand was transposed."""
    ops, a, b = g.ops, g.x(0), g.x(1)
    da = db = None
    if ops.rank(b) == 2 and ops.rank(a) > 2 and not ta:
        return _flat_gradients(g, dy, tb, alpha=alpha)
    if g.needs(0):
        da = ops.matmul(b, dy, tb, True, alpha) if ta else ops.matmul(dy, b, False, not tb, alpha)
    if g.needs(1):
        db = ops.matmul(dy, a, True, ta, alpha) if tb else ops.matmul(a, dy, not ta, False, alpha)
    return da, db


def _flat_gradients(g: GradientContext, dy: Value, tb: bool, alpha: float) -> tuple[Value | None, Value | None]:
    """A stack of rows times one matrix: one large product instead of a batch that is summed afterwards."""
    ops, a, b = g.ops, g.x(0), g.x(1)
    rows = ops.size(a) // ops.shape(a)[-1]
    dy2 = ops.reshape(dy, (rows, ops.shape(dy)[-1]))
    da = db = None
    if g.needs(0):
        da = ops.reshape(ops.matmul(dy2, b, False, not tb, alpha), ops.shape(a))
    if g.needs(1):
        a2 = ops.reshape(a, (rows, ops.shape(a)[-1]))
        db = ops.matmul(dy2, a2, True, False, alpha) if tb else ops.matmul(a2, dy2, True, False, alpha)
    return da, db


def _with_vectors(g: GradientContext, dy: Value, ranks: list[int]) -> Gradients:
    """numpy's rule: a vector is a row on the left, a column on the right, and the extra axis is dropped."""
    ops, a, b = g.ops, g.x(0), g.x(1)
    shape = list(ops.shape(dy))
    if ranks[0] == 1:
        a = ops.reshape(a, (1, ops.shape(a)[0]))
        shape.insert(len(shape) - (ranks[1] > 1), 1)
    if ranks[1] == 1:
        b = ops.reshape(b, (ops.shape(b)[0], 1))
        shape.append(1)
    dy = ops.reshape(dy, shape)
    gradients: list[Gradient] = [None, None]
    for index, (value, rank) in enumerate(((a, ranks[0]), (b, ranks[1]))):
        if g.needs(index):
            product = ops.matmul(dy, b, False, True) if index == 0 else ops.matmul(a, dy, True, False)
            whole = ops.unbroadcast(product, ops.shape(value))
            gradients[index] = ops.reshape(whole, g.shape(index)) if rank == 1 else whole
    return gradients


@rule("Einsum")
def einsum(g: GradientContext, *dys: Value) -> Gradients:
    """The gradient of an operand is the Einsum of dy and the other operands into its own indices."""
    terms, out = _einsum_terms(g)
    gradients: list[Gradient] = []
    for index, term in enumerate(terms):
        if not g.needs(index):
            gradients.append(None)
            continue
        others = [(terms[k], g.x(k)) for k in range(len(terms)) if k != index]
        gradients.append(_einsum_operand(g.ops, (out, dys[0]), others, term=term, shape=g.shape(index)))
    return gradients


def _einsum_operand(ops: Ops, dy: tuple[str, Value], others: list[tuple[str, Value]], term: str, shape: Shape) -> Value:
    """Indices that only this operand has were summed away: its gradient is constant along them."""
    present = set(dy[0]).union(*(set(t) for t, _ in others)) if others else set(dy[0])
    kept = "".join(c for c in term if c in present)
    factors = [dy, *others]
    equation = f"{','.join(t for t, _ in factors)}->{kept}"
    part = ops.op("Einsum", *(v for _, v in factors), equation=equation)
    have = dict(zip(kept, ops.shape(part), strict=True))
    return ops.expand(ops.reshape(part, [have.get(c, 1) for c in term]), tuple(
        have.get(c, n) for c, n in zip(term, shape, strict=True)))  # fmt: skip


def _einsum_terms(g: GradientContext) -> tuple[list[str], str]:
    """The operand indices and the result's, with the ellipsis spelled out."""
    equation = g.text("equation", "").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    ranks = [g.ops.rank(g.x(k)) for k in range(len(terms))]
    extra = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True) if "..." in t]
    free = [c for c in string.ascii_letters if c not in equation][: max(extra, default=0)]
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        out = ("..." if extra else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spelled = []
    for term, rank in zip(terms, ranks, strict=True):
        count = rank - len(term.replace("...", ""))
        spelled.append(term.replace("...", "".join(free[len(free) - count :])))
    if any(len(set(t)) != len(t) for t in spelled):
        raise g.refuse("an operand repeats an index (a diagonal)")
    return spelled, out.replace("...", "".join(free))


@rule("Softmax")
def softmax(g: GradientContext, dy: Value) -> Gradients:
    """dx = y (dy - sum(dy y))."""
    ops = g.ops
    weighted = ops.mul(dy, g.y)
    total = ops.sum(weighted, [g.axis(-1)], keepdims=True)
    return ops.sub(weighted, ops.mul(g.y, total))


@rule("LogSoftmax")
def log_softmax(g: GradientContext, dy: Value) -> Gradients:
    """dx = dy - e^y sum(dy)."""
    ops = g.ops
    total = ops.sum(dy, [g.axis(-1)], keepdims=True)
    return ops.sub(dy, ops.mul(ops.op("Exp", g.y), total))


@rule("CumSum")
def cumsum(g: GradientContext, dy: Value) -> Gradients:
    """The sum runs the other way."""
    return g.ops.op("CumSum", dy, g.x(1), exclusive=g.integer("exclusive"), reverse=1 - g.integer("reverse"))


@rule("Trilu")
def trilu(g: GradientContext, dy: Value) -> Gradients:
    return g.ops.op("Trilu", dy, g.input(1), upper=g.integer("upper", 1))


def contract(ops: Ops, value: Value, axis: int, matrix: Value) -> Value:
    """Multiply one axis of `value` (length n) by `matrix` (n, m), in place of the axis."""
    rank = ops.rank(value)
    if axis == rank - 1:
        return ops.matmul(value, matrix)
    shape = ops.shape(value)
    inner = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    flat = ops.reshape(value, (*shape[:axis], shape[axis], inner))
    product = ops.matmul(ops.transpose(matrix, (1, 0)), flat)
    return ops.reshape(product, (*shape[:axis], ops.shape(matrix)[1], *shape[axis + 1 :]))
