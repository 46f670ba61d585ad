"""Multiply-accumulates of one inference. Biases, activations, pooling and the like count nothing.

Positions that fall on padding count as any other, as in the usual counters for PyTorch models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

import prunecli.model.attrs as attrs
from prunecli.model.layout import Shape
from prunecli.model.loading import Model
from prunecli.model.parameter_roles import MICROSOFT
from prunecli.model.shape_inference import Facts, Inner
from prunecli.model.shapes import Shapes

ShapeOf = Callable[[int], Shape]
Formula = Callable[[ir.Node, ShapeOf, Shape], int]
Counts = dict[ir.Node, int | None]
FORMULAS: dict[tuple[str, str], Formula] = {}


class UnknownShapeError(Exception):
    """An operand's shape is not known."""


@dataclass
class Macs:
    """`nodes`: per operator that multiplies, None where a shape is unknown. `total`: None if any is unknown.

    A node inside a function or loop counts all its runs; of the branches of an If only the dearer one counts.
    """

    nodes: dict[ir.Node, int | None] = field(default_factory=dict)

    @property
    def total(self) -> int | None:
        return _sum(self.nodes.values())


def counts(*op_types: str, domain: str = "") -> Callable[[Formula], Formula]:
    """Register a formula (node, shape of input i, shape of output 0) -> multiply-accumulates."""

    def register(formula: Formula) -> Formula:
        FORMULAS.update({(domain, op_type): formula for op_type in op_types})
        return formula

    return register


def count_macs(model: Model, shapes: Shapes) -> Macs:
    """Count every operator that has a formula, in subgraphs and local functions too."""
    return Macs(_tally(model.ir.graph, shapes.facts))


def _tally(body: ir.Graph, facts: Facts) -> Counts:
    result: Counts = {}
    for node in body:
        formula = FORMULAS.get((node.domain, node.op_type))
        bodies = [_inside(inner) for inner in facts.inner.get(node, [])]
        if bodies:
            _add(result, max(bodies, key=lambda counts: _sum(counts.values()) or 0))
        elif formula is not None:
            _add(result, {node: _count(formula, node, facts.shape)})
    return result


def _inside(inner: Inner) -> Counts:
    """Counts of a body, times its runs, by the nodes of the model as it is stored."""
    counted = _tally(inner.body, inner.facts)
    return {inner.originals.get(node, node): _times(count, inner.times) for node, count in counted.items()}


def _add(result: Counts, more: Counts) -> None:
    for node, count in more.items():
        result[node] = _sum((result.get(node, 0), count))


def _times(count: int | None, times: int | None) -> int | None:
    return None if count is None or times is None else count * times


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _count(formula: Formula, node: ir.Node, shape: Callable[[ir.Value | None], Shape | None]) -> int | None:
    def known(value: ir.Value | None) -> Shape:
        found = shape(value)
        if found is None:
            raise UnknownShapeError
        return found

    def of(index: int) -> Shape:
        return known(node.inputs[index] if index < len(node.inputs) else None)

    try:
        return formula(node, of, known(next((out for out in node.outputs if out.name), None)))
    except (UnknownShapeError, attrs.UnreadableAttributeError, IndexError, ValueError):
        return None


@counts("Conv", "DeformConv", "ConvInteger")
@counts("FusedConv", domain=MICROSOFT)
def _conv(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """prod(Y) * C/g * prod(k), with W (M, C/g, k...)."""
    return math.prod(out) * math.prod(shape(1)[1:])


@counts("QLinearConv")
def _qlinear_conv(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """As Conv, with W at input 3."""
    return math.prod(out) * math.prod(shape(3)[1:])


@counts("ConvTranspose")
def _conv_transpose(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """prod(X) * M/g * prod(k), with W (C, M/g, k...): every input element meets every tap once."""
    return math.prod(shape(0)) * math.prod(shape(1)[1:])


@counts("Gemm")
@counts("FusedGemm", "QGemm", domain=MICROSOFT)
def _gemm(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """M * N * K, with A' (M, K)."""
    return math.prod(out) * shape(0)[0 if attrs.integer(node, "transA", 0) else 1]


@counts("MatMul", "MatMulInteger", "QLinearMatMul")
@counts("FusedMatMul", "TransposeMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """prod(Y) * K, whether the operands are weights or activations."""
    first = shape(0)
    return math.prod(out) * first[attrs.matrix_axes(node, 0, len(first))[-1]]


@counts("MatMulNBits", domain=MICROSOFT)
def _matmul_nbits(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """prod(Y) * K with the attribute K."""
    return math.prod(out) * attrs.integer(node, "K", 0)


@counts("Einsum")
def _einsum(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """Product of the sizes of all letters, for two operands; operands without contraction multiply too."""
    equation = attrs.text(node, "equation", "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if "." in equation or len(terms) > 2:
        raise UnknownShapeError
    if len(terms) == 1:
        return 0
    sizes = {letter: d for i, term in enumerate(terms) for letter, d in zip(term, shape(i), strict=False)}
    return math.prod(sizes.values())


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@counts(*GATES)
def _recurrent(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """T * B * D * gates * H * (I + H).

    X (T, B, I) or (B, T, I), W (D, gates*H, I), R (D, gates*H, H).
    """
    steps = math.prod(shape(0)[:2])
    return steps * (math.prod(shape(1)) + math.prod(shape(2)))


@counts("DynamicQuantizeLSTM", domain=MICROSOFT)
def _quantised_lstm(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """As LSTM; the operands are stored transposed."""
    return _recurrent(node, shape, out)


@counts("Attention", "QAttention", domain=MICROSOFT)
def _attention(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """B*S*I*(Hq+Hk+Hv) for the projection, then B*S*T*(Hq+Hv) for scores and weighted sum; T counts the past.

    X (B, S, I), W (I, Hq+Hk+Hv), past (2, B, heads, P, head size) at input 4.
    """
    (batch, length, _), weight = shape(0), shape(1)
    sizes = attrs.integers(node, "qkv_hidden_sizes") or (weight[1] // 3,) * 3
    past = shape(4)[3] if node.op_type == "Attention" and _present(node, 4) else 0
    total = length + past
    return batch * length * (math.prod(weight) + total * (sizes[0] + sizes[2]))


@counts("MultiHeadAttention", domain=MICROSOFT)
def _multi_head(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """B*S*T*(Hq+Hv): scores and weighted sum; T counts the past keys (input 6, (B, heads, P, head size)).

    Query (B, S, Hq), or all three packed as (B, S, heads, 3, size); key (B, T, H) or (B, heads, T, size), or
    packed with the value as (B, T, heads, 2, size).
    """
    query = shape(0)
    batch, length = query[:2]
    width = query[2] if len(query) == 3 else query[2] * query[4]
    keys = length
    if len(query) == 3 and _present(node, 1):
        key = shape(1)
        keys = key[2] if len(key) == 4 else key[1]
    past = shape(6)[2] if _present(node, 6) else 0
    return batch * length * (keys + past) * (width + out[2])


@counts("GroupQueryAttention", domain=MICROSOFT)
def _group_query(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """B*S*T*2*H with H the width of the output; T counts the past (input 3, (B, groups, P, size))."""
    batch, length = shape(0)[:2]
    past = shape(3)[2] if _present(node, 3) else 0
    return batch * length * (length + past) * 2 * out[2]


@counts("Attention")
def _onnx_attention(node: ir.Node, shape: ShapeOf, out: Shape) -> int:
    """B*S*T*(Hq+Hv), Q (B, S, Hq) or (B, heads, S, size); past keys at input 4, (B, heads, P, size)."""
    query, key = shape(0), shape(1)
    length = query[1] if len(query) == 3 else query[2]
    keys = key[1] if len(key) == 3 else key[2]
    past = shape(4)[2] if _present(node, 4) else 0
    return (keys + past) * (math.prod(query) + math.prod(out)) if length else 0


def _present(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None
