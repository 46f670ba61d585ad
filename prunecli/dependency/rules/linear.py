"""Convolutions and products of matrices: a removed position of a contracted axis drops its term of the sum."""

from __future__ import annotations

import onnx_ir as ir

from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.model.constants import is_constant
from prunecli.operators import MICROSOFT
from prunecli.operators.product import matrix_axes, subscripts


@rule("Conv")
@rule("FusedConv", domain=MICROSOFT)
def conv(ctx: RuleContext) -> None:
    """X (N, C, ...), W (M, C/g, k...), B (M) -> Y (N, M, ...); group i reads slab i of C, writes slab i of M."""
    x, w, y = ctx.x(), ctx.x(1), ctx.y
    grouped(ctx, x, w, y=y, rows=0, cols=1)
    ctx.elementwise(ctx.input(3), y)  # FusedConv: Y = activation(conv + Z)
    ctx.count_terms((ctx.axis(w, 0), ctx.axis(w, 1)))


@rule("ConvTranspose")
def conv_transpose(ctx: RuleContext) -> None:
    """X (N, C, ...), W (C, M/g, k...), B (M) -> Y (N, M, ...)."""
    x, w, y = ctx.x(), ctx.x(1), ctx.y
    grouped(ctx, x, w, y=y, rows=1, cols=0)
    ctx.count_terms((ctx.axis(w, 0), ctx.axis(w, 1)))


def grouped(ctx: RuleContext, x: ir.Value, w: ir.Value, y: ir.Value, rows: int, cols: int, bias: int = 2) -> None:
    """One axis of the weight spans all groups, the other one group: which is which is Conv / ConvTranspose."""
    groups = ctx.int("group", 1)
    channels, outputs = ctx.shape(x)[1], ctx.shape(y)[1]
    group, slot_in, slot_out = (ctx.table.virtual(n) for n in (groups, channels // groups, outputs // groups))
    ctx.table.product(ctx.axis(x, 1), (group, slot_in))
    ctx.table.product(ctx.axis(y, 1), (group, slot_out))
    for axis, whole, slot in ((rows, rows == 0, slot_out), (cols, cols == 0, slot_in)):
        ctx.table.product(ctx.axis(w, axis), (group, slot) if whole else (slot,))
    ctx.tie(ctx.input(bias), 0, y, 1)
    ctx.tie(x, 0, y, 0)
    ctx.freeze_axes([w], range(2, ctx.rank(w)), "kernel")
    ctx.freeze_axes((x, y), range(2, ctx.rank(x)), "spatial axis of a convolution")


@rewrite("Conv", "ConvTranspose", "DeformConv")
@rewrite("FusedConv", domain=MICROSOFT)
def conv_group(cut: NodeCut, node: ir.Node) -> None:
    """Set `group` to channels / channels per group, since whole groups may have been removed."""
    if node.attributes.get_int("group", 1) > 1:
        whole = node.outputs[0] if node.op_type == "ConvTranspose" else node.inputs[0]
        cut.set_int(node, "group", cut.size(whole, 1) // cut.size(node.inputs[1], 1))


@rule("Gemm")
@rule("FusedGemm", domain=MICROSOFT)
def gemm(ctx: RuleContext) -> None:
    """Y = alpha * A' B' + beta * C with A' (M, K), B' (K, N), C broadcast to (M, N)."""
    a, b, y = ctx.x(), ctx.x(1), ctx.y
    m, k = (1, 0) if ctx.int("transA") else (0, 1)
    k2, n = (1, 0) if ctx.int("transB") else (0, 1)
    ctx.tie(a, m, y, 0)
    ctx.tie(a, k, b, k2)
    ctx.tie(b, n, y, 1)
    ctx.elementwise(ctx.input(2), y)
    ctx.count_terms((ctx.axis(y, 0), ctx.axis(y, 1), ctx.axis(a, k)))


@rule("MatMul")
@rule("FusedMatMul", domain=MICROSOFT)
def matmul(ctx: RuleContext) -> None:
    """numpy.matmul: (..., M, K) x (..., K, N) -> (..., M, N); 1-D operands are vectors. Fused: transposed before."""
    a, b, y = ctx.x(), ctx.x(1), ctx.y
    left, right = matrix_axes(ctx.node, 0, ctx.rank(a)), matrix_axes(ctx.node, 1, ctx.rank(b))
    ctx.tie(a, left[-1], b, right[-2] if len(right) > 1 else 0)
    if len(left) > 1:
        ctx.tie(a, left[-2], y, -2 if len(right) > 1 else -1)
    if len(right) > 1:
        ctx.tie(b, right[-1], y, -1)
    _batch(ctx, (a, left), (b, right), y=y)
    axes = [ctx.axis(y, i) for i in range(ctx.rank(y))]
    ctx.count_terms((*axes, ctx.axis(a, left[-1])))


Operand = tuple[ir.Value, tuple[int, ...]]
"""A value and its axes in the order that is multiplied."""


def _batch(ctx: RuleContext, a: Operand, b: Operand, y: ir.Value) -> None:
    """Leading axes broadcast; where both operands are computed they are what attention calls heads."""
    both = not is_constant(a[0]) and not is_constant(b[0])
    for index in range(ctx.rank(y) - min(2, len(a[1]), len(b[1])) if ctx.rank(y) else 0):
        size = ctx.shape(y)[index]
        for source, axes in (a, b):
            own = index - ctx.rank(y) + len(axes)
            if 0 <= own < len(axes) - 2 and ctx.shape(source)[axes[own]] == size and size != 1:
                ctx.tie(source, axes[own], y, index)
                if both:
                    ctx.table.mark(ctx.axis(y, index), "head")


@rule("Einsum")
def einsum(ctx: RuleContext) -> None:
    """Axes of one position are skipped: they broadcast."""
    values = [*(ctx.x(i) for i in range(len(ctx.inputs))), ctx.y]
    labels = subscripts(ctx.string("equation"), [ctx.rank(v) for v in values])
    first: dict[str, int] = {}
    for term, value in zip(labels, values, strict=True):
        for index, letter in enumerate(term):
            axis = ctx.axis(value, index)
            if ctx.table.size(axis) == 1:
                continue
            if letter in first:
                ctx.table.tie(first[letter], axis)
            first.setdefault(letter, axis)
    ctx.count_terms(tuple(first.values()))
    _mark_heads(ctx, labels, first)


def _mark_heads(ctx: RuleContext, labels: list[list[str]], first: dict[str, int]) -> None:
    """A batch letter of a product of two computed operands is what attention calls heads."""
    if any(is_constant(v) for v in ctx.inputs if v is not None):
        return
    *terms, right = (set(term) for term in labels)
    for letter in right.intersection(*terms):
        if letter in first:
            ctx.table.mark(first[letter], "head")


SHARDED = "experts of which the router knows more than are here"
INTERLEAVED = 1
"""The `swiglu_fusion` of gates and values in turns; 2: one after the other."""


@rule("MoE", domain=MICROSOFT)
def mixture(ctx: RuleContext) -> None:
    """X (..., H), router (tokens, E), per expert W1 (E, F I, H), W2 (E, H, I), W3 (E, I, H) and biases -> Y (..., H):
    W2 f(W1 x), F = 2 where gate and value are fused. What all experts have inside, I, is cut in all of them at once.

    Each token goes through the k experts of the largest router logits, and a softmax weighs them: an expert without
    offers is absent, and at least k stay."""
    x, router, w1, w2, y = ctx.x(), ctx.x(1), ctx.x(2), ctx.x(4), ctx.y
    b1, b2, w3, b3 = (ctx.input(index) for index in (3, 5, 6, 7))
    inner = ctx.table.virtual(ctx.shape(w2)[2])
    pair = ctx.table.virtual(ctx.shape(w1)[1] // ctx.shape(w2)[2])
    ctx.table.freeze(pair, "gate and value of one inner unit")
    fused = (inner, pair) if ctx.int("swiglu_fusion") == INTERLEAVED else (pair, inner)
    for value, axis, factors in (
        (w1, 1, fused),
        (b1, 1, fused),
        (w2, 2, (inner,)),
        (w3, 1, (inner,)),
        (b3, 1, (inner,)),
    ):
        if value is not None:
            ctx.table.product(ctx.axis(value, axis), factors)
    for value, axis in ((w1, 2), (w2, 1), (b2, 1), (w3, 2), (y, -1)):
        ctx.tie(value, axis, x, -1)
    for index in range(ctx.rank(x) - 1):
        ctx.tie(x, index, y, index)
    ctx.freeze(router, "tokens of a mixture of experts", 0)
    whole_experts(ctx, router, [v for v in (w1, b1, w2, b2, w3, b3) if v is not None])
    ctx.count_terms((inner, ctx.axis(x, -1)))


def whole_experts(ctx: RuleContext, router: ir.Value, held: list[ir.Value]) -> None:
    """Tie the experts' rows of what they hold to the logits by which tokens choose them."""
    if any(ctx.shape(value)[0] != ctx.shape(router)[-1] for value in held):
        ctx.freeze_axes(held, (0,), SHARDED)
        ctx.freeze(router, SHARDED, -1)
        return
    for value in held:
        ctx.tie(value, 0, router, -1)
    chosen = ctx.int("k", 1)
    ctx.table.mark(ctx.axis(router, -1), "expert")
    ctx.absent_as(router, -1, "lowest")
    ctx.keep_at_least(router, -1, chosen, reason=f"each token goes through {chosen} experts")
