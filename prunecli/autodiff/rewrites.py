"""Older and fused operators, restated by the current standard ones while the forward graph is copied.

A rewrite is `rewrite(r) -> outputs of the node`, or its only one: it appends nodes for a node of the source model,
whose inputs are already copied. `before` limits it to models of an older opset. What onnxruntime's fused operators
(`com.microsoft`) mean is told by its ContribOperators.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import NodeContext
from prunecli.operators import MICROSOFT, named, operator_of
from prunecli.operators.product import matrix_axes

Value = ir.Value
Results = ir.Value | Sequence[ir.Value]


class RewriteContext(NodeContext):
    """What a rewrite sees: the builder, the node of the source model, and its inputs in the copy."""

    hint = "convert the model to a newer opset"
    refused = "cannot differentiate"

    @property
    def given(self) -> dict[str, Any]:
        """The attributes as Python values."""
        return {name: attribute.value for name, attribute in self.node.attributes.items()}


Rewrite = Callable[[RewriteContext], Results]


@dataclass(frozen=True)
class RewriteEntry:
    """`before`: the opset from which the operator needs no rewriting; None: it always does."""

    function: Rewrite
    before: int | None


REWRITES: dict[tuple[str, str], RewriteEntry] = {}


def rewrite(*ops: str, before: int | None = None, domain: str = "") -> Callable[[Rewrite], Rewrite]:
    def add(function: Rewrite) -> Rewrite:
        for op in ops:
            REWRITES[domain, op] = RewriteEntry(function, before)
        return function

    return add


def find_rewrite(node: ir.Node, opset: int) -> Rewrite | None:
    entry = REWRITES.get((node.domain, node.op_type))
    if entry is None or (entry.before is not None and opset >= entry.before):
        return None
    return entry.function


def number(ops: Ops, like: Value, value: Any) -> Value | None:
    return None if value is None else ops.scalar(float(value), like)


@rewrite("Clip", before=11)
def clip(r: RewriteContext) -> Results:
    given, x = r.given, r.x()
    return r.ops.op("Clip", x, number(r.ops, x, given.get("min")), number(r.ops, x, given.get("max")))


@rewrite("Slice", before=10)
def slice_(r: RewriteContext) -> Results:
    given = r.given
    axes = given.get("axes") or range(len(given["starts"]))
    return r.ops.op("Slice", r.x(), *(r.ops.ints(v) for v in (given["starts"], given["ends"], axes)))


@rewrite("Pad", before=11)
def pad(r: RewriteContext) -> Results:
    given, x = r.given, r.x()
    fill = r.ops.scalar(given.get("value", 0.0), x)
    return r.ops.op("Pad", x, r.ops.ints(given["pads"]), fill, mode=given.get("mode", "constant"))


REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
              "ReduceLogSumExp", "ReduceSumSquare")  # fmt: skip


@rewrite(*REDUCTIONS, before=18)
@rewrite("Squeeze", "Unsqueeze", "ReduceSum", before=13)
def axes_input(r: RewriteContext) -> Results:
    given = r.given
    axes = given.pop("axes", None)
    extra = [] if axes is None else [r.ops.ints(axes)]
    return r.ops.op(r.node.op_type, r.x(), *extra, **given)


@rewrite("Split", before=18)
def split(r: RewriteContext) -> Results:
    ops = r.ops
    given, x, parts = r.given, r.x(), len(r.node.outputs)
    sizes = given.pop("split", None) or [ops.shape(x)[given.get("axis", 0)] // parts] * parts
    return ops.many("Split", x, r.input(1) or ops.ints(sizes), outputs=parts, **given)


@rewrite("Dropout", before=12)
def dropout(r: RewriteContext) -> Results:
    """Before opset 12 an inference model's Dropout does nothing."""
    x = r.x()
    if len(r.node.outputs) > 1 and r.node.outputs[1].uses():
        raise r.refuse("its mask is used")
    return r.ops.op("Identity", x)


@rewrite("ZipMap", domain="ai.onnx.ml")
def zip_map(r: RewriteContext) -> Results:
    """One map per sample, of its scores: as a matrix, which is how runs give it."""
    return r.ops.op("Identity", r.x())


@rewrite("Softmax", "LogSoftmax", "Hardmax", before=13)
def softmax(r: RewriteContext) -> Results:
    """Before opset 13 all axes from `axis` on are normalised together."""
    ops, x = r.ops, r.x()
    shape, axis = ops.shape(x), r.axis(1)
    if axis == len(shape) - 1:
        return ops.op(r.node.op_type, x, axis=-1)
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    flat = ops.reshape(x, (rows, ops.size(x) // rows))
    return ops.reshape(ops.op(r.node.op_type, flat, axis=-1), shape)


@rewrite("Upsample")
def upsample(r: RewriteContext) -> Results:
    scales = r.input(1) or r.ops.const(np.array(r.given["scales"], np.float32))
    return _asymmetric(r, scales)


@rewrite("Resize", before=11)
def resize(r: RewriteContext) -> Results:
    return _asymmetric(r, r.x(1))


def _asymmetric(r: RewriteContext, scales: Value) -> Value:
    where = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return r.ops.op("Resize", r.x(), None, scales, mode=r.text("mode", "nearest"), **where)


@rewrite("TopK", before=10)
def top_k(r: RewriteContext) -> Results:
    return r.ops.many("TopK", r.x(), r.ops.ints([r.integer("k")]), outputs=2, axis=r.integer("axis", -1))


@rewrite("BatchNormalization", before=14)
def batch_norm(r: RewriteContext) -> Results:
    """Before opset 14 further outputs meant training mode; before 9 `spatial` 0 meant statistics per element."""
    given = r.given
    if any(out.uses() for out in r.node.outputs[1:]) or given.pop("spatial", 1) != 1:
        raise r.refuse("its old training mode or spatial=0 is not supported")
    return r.ops.op("BatchNormalization", *r.inputs, **given)


@rewrite("Scatter", before=11)
def scatter(r: RewriteContext) -> Results:
    return r.ops.op("ScatterElements", *r.inputs, **r.given)


@rewrite("GroupNormalization")
def group_norm(r: RewriteContext) -> Results:
    """Each group as a channel of InstanceNormalization; scale and bias per group before opset 21, then per channel."""
    ops = r.ops
    x, scale, bias = r.x(), r.x(1), r.x(2)
    assert scale is not None and bias is not None
    shape, groups, entries = ops.shape(x), r.integer("num_groups"), ops.shape(scale)[0]
    ones, zeros = (ops.const(np.full(groups, v, np.float32)) for v in (1, 0))
    flat = ops.reshape(x, (shape[0], groups, ops.size(x) // (shape[0] * groups)))
    xhat = ops.op("InstanceNormalization", flat, ones, zeros, epsilon=r.real("epsilon", 1e-5))
    split = ops.reshape(xhat, (shape[0], entries, ops.size(x) // (shape[0] * entries)))
    scaled = ops.mul(split, ops.reshape(scale, (1, entries, 1)))
    return ops.reshape(ops.add(scaled, ops.reshape(bias, (1, entries, 1))), shape)


def _activate(r: RewriteContext, y: Value, name: str, numbers: list[float]) -> Value:
    """The activation of a fused operator; `numbers` are its parameters in order."""
    ops = r.ops
    if name in ("", "Relu", "Tanh", "Sigmoid", "HardSwish", "Softplus", "Softsign"):
        return ops.op(name, y) if name else y
    if name == "LeakyRelu":
        return ops.op(name, y, alpha=numbers[0])
    if name == "Clip":
        return ops.op(name, y, ops.scalar(numbers[0], y), ops.scalar(numbers[1], y))
    if name == "HardSigmoid":
        return ops.op(name, y, alpha=numbers[0], beta=numbers[1])
    raise r.refuse(f"the fused activation {name} is not known")


@rewrite(*named(lambda operator: operator.standard, MICROSOFT), domain=MICROSOFT)
def fused(r: RewriteContext) -> Results:
    """activation(y + Z), with y what the standard operator computes and Z at input 3, if it is there."""
    standard, given = operator_of(r.node).standard, r.given
    assert standard is not None
    plain = {name: value for name, value in given.items() if name in standard.attributes}
    y = r.ops.op(standard.op_type, *r.inputs[:3], **plain)
    numbers = given.get("activation_params") or [given.get(f"activation_{k}", 0.0) for k in ("alpha", "beta", "gamma")]
    return _activate(r, r.ops.total([y, r.input(3)]), given.get("activation", ""), numbers=list(numbers))


@rewrite("FusedMatMul", domain=MICROSOFT)
def fused_matmul(r: RewriteContext) -> Results:
    """Operands whose batch axes are transposed are so by a Transpose."""
    given, operands = r.given, [r.x(), r.x(1)]
    for place, side in enumerate("AB"):
        if given.pop(f"transBatch{side}", 0):
            axes = matrix_axes(r.node, place, r.ops.rank(operands[place]))
            operands[place] = r.ops.transpose(operands[place], axes)
            given[f"trans{side}"] = 0
    return r.ops.op("FusedMatMul", *operands, domain=MICROSOFT, **given)


@rewrite("BiasGelu", domain=MICROSOFT)
def bias_gelu(r: RewriteContext) -> Results:
    return r.ops.op("Gelu", r.ops.op("Add", *r.inputs), domain=MICROSOFT)


@rewrite("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(r: RewriteContext) -> Results:
    """LayerNormalization(X + skip + bias); the fourth output is that sum."""
    total = r.ops.total([r.x(), r.x(1), r.input(4)])
    epsilon = r.real("epsilon", 1e-12)
    return _with_sum(r, r.ops.op("LayerNormalization", total, r.x(2), r.input(3), epsilon=epsilon, axis=-1), total)


@rewrite("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(r: RewriteContext) -> Results:
    total = r.ops.total([r.x(), r.x(1), r.input(3)])
    return _with_sum(r, rms(r.ops, total, r.x(2), epsilon=r.real("epsilon", 1e-12), axis=-1), total)


@rewrite("SimplifiedLayerNormalization")
def simplified_layer_norm(r: RewriteContext) -> Results:
    return rms(r.ops, r.x(), r.x(1), epsilon=r.real("epsilon", 1e-5), axis=r.integer("axis", -1))


def rms(ops: Ops, x: Value, scale: Value, epsilon: float, axis: int) -> Value:
    """x / sqrt(mean(x^2) + epsilon) * scale."""
    rank = ops.rank(x)
    square = ops.mean(ops.square(x), list(range(axis % rank, rank)), keepdims=True)
    root = ops.op("Sqrt", ops.add(square, epsilon))
    return ops.mul(ops.div(x, root), scale)


def _with_sum(r: RewriteContext, y: Value, total: Value) -> list[Value]:
    if any(out.uses() or out.is_graph_output() for out in r.node.outputs[1:3]):
        raise r.refuse("its statistics are used")
    return [y, y, y, total][: max(len(r.node.outputs), 1)]


@rewrite("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_norm(r: RewriteContext) -> Results:
    """Word, position and segment embeddings, summed and normalised. The mask output must be unused."""
    ops = r.ops
    if len(r.node.outputs) > 1 and r.node.outputs[1].uses():
        raise r.refuse("its mask index is used")
    ids = r.x()
    count = ops.shape(ids)[1]
    positions = r.input(8) or ops.const(np.arange(count, dtype=np.int64).reshape(1, count))
    segments = r.input(1) is not None and r.input(4) is not None
    tables = [(r.x(2), ids), (r.x(3), positions), *([(r.x(4), r.x(1))] if segments else [])]
    total = ops.total([ops.op("Gather", table, index) for table, index in tables])
    y = ops.op("LayerNormalization", total, r.x(5), r.x(6), epsilon=r.real("epsilon", 1e-12), axis=-1)
    return [y, y, total][: len(r.node.outputs)]


@rewrite("Attention", domain=MICROSOFT)
def attention(r: RewriteContext) -> Results:
    """softmax(q k^T scale + mask) v of x W + b, without past states."""
    ops = r.ops
    if any(r.input(i) is not None for i in (4, 6)) or r.integer("do_rotary"):
        raise r.refuse("past states and rotary embeddings are not supported")
    packed = ops.total([ops.op("MatMul", r.x(), r.x(1)), r.input(2)])
    _, length, width = ops.shape(packed)
    sizes = r.ints("qkv_hidden_sizes") or [width // 3] * 3
    qkv = ops.split(packed, sizes, 2)
    return _attend(r, qkv, _raw_mask(r, r.input(3), length), bias=r.input(5))


@rewrite("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(r: RewriteContext) -> Results:
    ops = r.ops
    shaped = [r.input(i) for i in range(3)]
    if any(v is None or ops.rank(v) != 3 for v in shaped):
        raise r.refuse("packed or already split heads are not supported")
    if any(r.input(i) is not None for i in (6, 7, 8, 9)) or any(o.uses() for o in r.node.outputs[1:]):
        raise r.refuse("past and present states are not supported")
    parts: Sequence[Value] = [r.x(i) for i in range(3)]
    if r.input(3) is not None:
        biases = ops.split(r.x(3), [ops.shape(p)[2] for p in parts], 0)
        parts = [ops.add(p, b) for p, b in zip(parts, biases, strict=True)]
    return _attend(r, parts, _raw_mask(r, r.input(4), ops.shape(parts[1])[1]), bias=r.input(5))


def _raw_mask(r: RewriteContext, mask: Value | None, length: int) -> Value | None:
    """(batch, keys) of 0 and 1 as a sum to the scores."""
    if mask is None:
        return None
    ops = r.ops
    if ops.rank(mask) != 2 or ops.shape(mask)[1] != length:
        raise r.refuse("only a (batch, keys) mask is supported")
    n = ops.shape(mask)[0]
    kept = ops.op("Cast", mask, to=int(ir.DataType.FLOAT))
    penalty = ops.mul(ops.one_minus(kept), r.real("mask_filter_value", -10000.0))
    return ops.reshape(penalty, (n, 1, 1, length))


def _attend(r: RewriteContext, qkv: Sequence[Value], mask: Value | None, bias: Value | None) -> Value:
    ops = r.ops
    q, k, v = (_heads(ops, value, r.integer("num_heads")) for value in qkv)
    rows, columns = ops.shape(q)[2], ops.shape(k)[2]
    future = None
    if r.integer("unidirectional"):
        hidden = r.real("mask_filter_value", -10000.0)
        future = ops.const(np.triu(np.full((rows, columns), hidden, np.float32), 1))
    return _joined(ops, _mixed(r, (q, k, v), [mask, bias, future]))


def _mixed(r: RewriteContext, qkv: Sequence[Value], added: list[Value | None]) -> Value:
    """softmax(cap(q k^T scale) + added) v, all of shape (batch, heads, length, width)."""
    ops, (q, k, v) = r.ops, qkv
    scale, cap = r.real("scale", 0.0) or float(ops.shape(q)[-1]) ** -0.5, r.real("softcap", 0.0)
    scores = ops.mul(ops.op("MatMul", q, ops.swap_last(k)), scale)
    if cap > 0:
        scores = ops.mul(ops.op("Tanh", ops.mul(scores, 1 / cap)), cap)
    return ops.op("MatMul", ops.op("Softmax", ops.total([scores, *added]), axis=-1), v)


def _heads(ops: Ops, value: Value, heads: int) -> Value:
    """(batch, length, heads * width) -> (batch, heads, length, width)."""
    n, length, width = ops.shape(value)
    return ops.transpose(ops.reshape(value, (n, length, heads, width // heads)), [0, 2, 1, 3])


def _joined(ops: Ops, value: Value) -> Value:
    """The inverse."""
    n, heads, length, width = ops.shape(value)
    return ops.reshape(ops.transpose(value, [0, 2, 1, 3]), (n, length, heads * width))


@rewrite("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(r: RewriteContext) -> Results:
    """Causal attention in which several query heads share a key and value head. Padding is on the right, so that
    no token that counts sees it."""
    ops, heads = r.ops, r.integer("num_heads")
    past, bias = r.input(3), r.input(10)
    if past is not None and ops.shape(past)[2]:
        raise r.refuse("past states are not supported")
    if r.integer("smooth_softmax") > 0 or any(r.input(i) is not None for i in range(11, len(r.inputs))):
        raise r.refuse("attention sinks and quantised states are not supported")
    q, k, v = _separate(r, heads, r.integer("kv_num_heads"))
    if r.integer("do_rotary"):
        at = r.input(9)  # without a past onnxruntime reads the first position alone, and counts from there
        at = None if at is None else ops.reshape(ops.slice(at, [0, 1], [0, 0], [1, 1]), (1,))
        angles = [_angles(ops, r.x(i), at, length=ops.shape(q)[2]) for i in (7, 8)]
        q, k = (_rotated(ops, part, angles, interleaved=bool(r.integer("rotary_interleaved"))) for part in (q, k))
    length, window = ops.shape(q)[2], r.integer("local_window_size", -1)
    seen = np.tril(np.ones((length, length), bool))
    seen = seen if window < 0 else np.triu(seen, 1 - window)
    hidden = ops.const(np.where(seen, 0, -1e30).astype(np.float32))
    mixed = _mixed(r, (q, _repeated(ops, k, heads), _repeated(ops, v, heads)), [bias, hidden])
    return [_joined(ops, mixed), k, v][: len(r.node.outputs)]


def _separate(r: RewriteContext, heads: int, groups: int) -> Sequence[Value]:
    """Queries, keys and values by heads; with no keys given all three are in the first input."""
    counts = [heads, groups, groups]
    if r.input(1) is not None:
        return [_heads(r.ops, r.x(i), count) for i, count in enumerate(counts)]
    return r.ops.split(_heads(r.ops, r.x(), sum(counts)), counts, 1)


def _repeated(ops: Ops, value: Value, heads: int) -> Value:
    """Each head as often as it takes to have so many."""
    n, groups, length, width = ops.shape(value)
    wide = ops.expand(ops.reshape(value, (n, groups, 1, length, width)), (n, groups, heads // groups, length, width))
    return ops.reshape(wide, (n, heads, length, width))


@rewrite("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(r: RewriteContext) -> Results:
    """Pairs of features (a, b) turned by the angle of their position: (a cos - b sin, a sin + b cos)."""
    ops, x = r.ops, r.x()
    if r.integer("is_packed_batching") or r.real("scale", 1.0) != 1.0:
        raise r.refuse("packed batches and a scale are not supported")
    flat = ops.rank(x) == 3
    heads = r.integer("num_heads") or ops.shape(x)[-1] // (2 * ops.shape(r.x(2))[1])
    split = _heads(ops, x, heads) if flat else x
    angles = [_angles(ops, r.x(i), r.x(1), length=ops.shape(split)[2]) for i in (2, 3)]
    turned = _rotated(ops, split, angles, interleaved=bool(r.integer("interleaved")))
    return _joined(ops, turned) if flat else turned


def _angles(ops: Ops, table: Value, positions: Value | None, length: int) -> Value:
    """Rows of the table of cosines or sines: at the positions (batch, length), at those from one number on, or from 0.
    (batch or 1, 1, length, half)."""
    steps = ops.const(np.arange(length, dtype=np.int64))
    if positions is None:
        positions = steps
    elif ops.rank(positions) == 1:
        positions = ops.add(positions, steps)
    rows = ops.op("Gather", table, positions)
    batch = ops.shape(positions)[0] if ops.rank(positions) == 2 else 1
    return ops.reshape(rows, (batch, 1, length, ops.shape(table)[1]))


def _rotated(ops: Ops, x: Value, angles: list[Value], interleaved: bool) -> Value:
    """x (batch, heads, length, width), whose first 2 half features are turned."""
    (cos, sin), (*front, width) = angles, ops.shape(x)
    half = ops.shape(cos)[-1]
    part = ops.slice(x, [3], [0], [2 * half])
    if interleaved:
        pairs = ops.split(ops.reshape(part, (*front, half, 2)), [1, 1], 4)
        a, b = (ops.reshape(value, (*front, half)) for value in pairs)
    else:
        a, b = ops.split(part, [half, half], 3)
    turned = [ops.sub(ops.mul(a, cos), ops.mul(b, sin)), ops.add(ops.mul(a, sin), ops.mul(b, cos))]
    if interleaved:
        turned = [ops.reshape(value, (*front, half, 1)) for value in turned]
    whole = ops.reshape(ops.concat(turned, 4 if interleaved else 3), (*front, 2 * half))
    return ops.concat([whole, ops.slice(x, [3], [2 * half], [width])], 3) if width > 2 * half else whole


_CUBIC = -0.75  # the coefficient of Keys (1981) that onnxruntime and PyTorch use
_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@rewrite("GridSample")
def grid_sample(r: RewriteContext) -> Results:
    """Y at a place = sum over the neighbours of its position of their weight times X there."""
    ops, x, grid = r.ops, r.x(), r.x(1)
    (n, c, *sizes), spots, rank = ops.shape(x), ops.shape(grid)[1:-1], ops.rank(grid)
    count = math.prod(spots)
    rows = ops.transpose(ops.reshape(x, (n, c, math.prod(sizes))), [0, 2, 1])
    axes = []
    for axis, size in enumerate(sizes):
        place = len(sizes) - 1 - axis  # a grid names the last axis first
        at = ops.reshape(ops.slice(grid, [rank - 1], [place], [place + 1]), (n, count))
        axes.append(_neighbours(r, at, size))
    parts = []
    for neighbours in itertools.product(*axes):
        index, weight = neighbours[0]
        for size, (inner, factor) in zip(sizes[1:], neighbours[1:], strict=True):
            index, weight = ops.add(ops.mul(index, size), inner), ops.mul(weight, factor)
        read = ops.op("GatherND", rows, ops.reshape(index, (n, count, 1)), batch_dims=1)
        parts.append(ops.mul(read, ops.reshape(weight, (n, count, 1))))
    return ops.reshape(ops.transpose(ops.total(parts), [0, 2, 1]), (n, c, *spots))


def _neighbours(r: RewriteContext, at: Value, size: int) -> list[tuple[Value, Value]]:
    """Along one axis: (index, weight) of every element that a position in [-1, 1] is interpolated from."""
    ops, padding = r.ops, r.text("padding_mode", "zeros")
    mode, aligned = r.text("mode", "linear"), bool(r.integer("align_corners"))
    mode = _MODES.get(mode, mode)
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    position = ops.add(ops.mul(at, (size - 1) / 2 if aligned else size / 2), (size - 1) / 2)
    position = ops.op("Round", position) if mode == "nearest" else position
    if padding == "reflection":
        position = _reflect(ops, position, low, high=high)
    start = ops.op("Round" if mode == "nearest" else "Floor", position)
    found = []
    for offset, weight in _weights(ops, ops.sub(position, start), mode):
        index = ops.add(start, offset)
        index = ops.op("Round", _reflect(ops, index, low, high=high)) if padding == "reflection" else index
        stored = _clip(ops, index, 0.0, high=size - 1.0)
        if padding == "zeros":
            weight = ops.mul(weight, ops.cast(ops.op("Equal", index, stored), weight))
        found.append((ops.op("Cast", stored, to=int(ir.DataType.INT64)), weight))
    return found


def _clip(ops: Ops, value: Value, low: float, high: float) -> Value:
    return ops.op("Clip", value, ops.scalar(low, value), ops.scalar(high, value))


def _reflect(ops: Ops, value: Value, low: float, high: float) -> Value:
    """Turned back at both ends as often as it takes: low + r or, every other time, high - r."""
    span = max(high - low, 1e-6)  # of one element with aligned corners nothing is left
    away = ops.op("Abs", ops.add(value, -low))
    times = ops.op("Floor", ops.mul(away, 1 / span))
    odd = ops.sub(times, ops.mul(ops.op("Floor", ops.mul(times, 0.5)), 2.0))
    rest = ops.sub(away, ops.mul(times, span))
    return ops.add(ops.add(rest, ops.mul(odd, ops.add(ops.mul(rest, -2.0), span))), low)


def _weights(ops: Ops, t: Value, mode: str) -> list[tuple[float, Value]]:
    """(offset, weight) for a position t past an element."""
    if mode == "nearest":
        return [(0.0, ops.const(np.ones(ops.shape(t), np.float32)))]
    if mode == "linear":
        return [(0.0, ops.one_minus(t)), (1.0, t)]
    rest = ops.one_minus(t)
    return [(-1.0, _far(ops, rest)), (0.0, _near(ops, t)), (1.0, _near(ops, rest)), (2.0, _far(ops, t))]


def _near(ops: Ops, t: Value) -> Value:
    """(a + 2) t^3 - (a + 3) t^2 + 1, of the element t away."""
    return ops.add(ops.mul(ops.square(t), ops.add(ops.mul(t, _CUBIC + 2), -_CUBIC - 3)), 1.0)


def _far(ops: Ops, t: Value) -> Value:
    """a s^3 - 5 a s^2 + 8 a s - 4 a = a t^2 (1 - t), of the element s = 2 - t away."""
    return ops.mul(ops.mul(ops.square(t), ops.add(t, -1.0)), -_CUBIC)
