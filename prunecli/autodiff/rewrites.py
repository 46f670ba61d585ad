"""Older and fused operators, restated by the current standard ones while the forward graph is copied.

A rewrite is `rewrite(ops, node, inputs) -> outputs`: it appends nodes for `node` of the source model, whose inputs
are already copied. `before` limits it to models of an older opset.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import MICROSOFT, Ops
from prunecli.autodiff.registry import describe
from prunecli.errors import PruneError
from prunecli.model.attrs import matrix_axes

Value = ir.Value
Inputs = list[ir.Value | None]
Rewrite = Callable[[Ops, ir.Node, Inputs], Sequence[Value]]


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


def attributes(node: ir.Node, *drop: str) -> dict[str, Any]:
    """The attributes as Python values, without those named."""
    return {k: a.value for k, a in node.attributes.items() if k not in drop}


def refuse(node: ir.Node, why: str) -> PruneError:
    return PruneError(f"cannot differentiate {describe(node)}: {why}", "convert the model to a newer opset")


def first(inputs: Inputs) -> Value:
    """An operator's data input, which is always present."""
    value = inputs[0]
    assert value is not None
    return value


def number(ops: Ops, like: Value, value: Any) -> Value | None:
    return None if value is None else ops.scalar(float(value), like)


@rewrite("Clip", before=11)
def clip(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given, x = attributes(node), first(inputs)
    return [ops.op("Clip", x, number(ops, x, given.get("min")), number(ops, x, given.get("max")))]


@rewrite("Slice", before=10)
def slice_(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given = attributes(node)
    axes = given.get("axes") or range(len(given["starts"]))
    return [ops.op("Slice", inputs[0], *(ops.ints(v) for v in (given["starts"], given["ends"], axes)))]


@rewrite("Pad", before=11)
def pad(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given, x = attributes(node), first(inputs)
    fill = ops.scalar(given.get("value", 0.0), x)
    return [ops.op("Pad", x, ops.ints(given["pads"]), fill, mode=given.get("mode", "constant"))]


@rewrite("Squeeze", "Unsqueeze", "ReduceSum", before=13)
def axes_input(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given = attributes(node)
    axes = given.pop("axes", None)
    extra = [] if axes is None else [ops.ints(axes)]
    return [ops.op(node.op_type, inputs[0], *extra, **given)]


rewrite(
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare", before=18,
)(axes_input)  # fmt: skip


@rewrite("Split", before=18)
def split(ops: Ops, node: ir.Node, inputs: Inputs) -> Sequence[Value]:
    given, x = attributes(node), first(inputs)
    sizes = given.pop("split", None)
    if len(inputs) > 1 and inputs[1] is not None:
        target: Value = inputs[1]
    elif sizes is not None:
        target = ops.ints(sizes)
    else:
        length, parts = ops.shape(x)[given.get("axis", 0)], len(node.outputs)
        target = ops.ints([length // parts] * parts)
    return ops.many("Split", x, target, outputs=len(node.outputs), **given)


@rewrite("Dropout", before=12)
def dropout(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Before opset 12 an inference model's Dropout does nothing."""
    x = first(inputs)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise refuse(node, "its mask is used")
    return [ops.op("Identity", x)]


@rewrite("ZipMap", domain="ai.onnx.ml")
def zip_map(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """One map per sample, of its scores: as a matrix, which is how runs give it."""
    return [ops.op("Identity", inputs[0])]


@rewrite("Softmax", "LogSoftmax", "Hardmax", before=13)
def softmax(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Before opset 13 all axes from `axis` on are normalised together."""
    x = first(inputs)
    shape = ops.shape(x)
    axis = attributes(node).get("axis", 1) % len(shape)
    if axis == len(shape) - 1:
        return [ops.op(node.op_type, x, axis=-1)]
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    flat = ops.reshape(x, (rows, ops.size(x) // rows))
    return [ops.reshape(ops.op(node.op_type, flat, axis=-1), shape)]


@rewrite("Upsample")
def upsample(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given = attributes(node)
    scales = inputs[1] if len(inputs) > 1 else ops.const(np.array(given["scales"], np.float32))
    return [_asymmetric(ops, inputs[0], scales, given.get("mode", "nearest"))]


@rewrite("Resize", before=11)
def resize(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    return [_asymmetric(ops, inputs[0], inputs[1], attributes(node).get("mode", "nearest"))]


def _asymmetric(ops: Ops, x: Value | None, scales: Value | None, mode: str) -> Value:
    return ops.op(
        "Resize",
        x,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@rewrite("TopK", before=10)
def top_k(ops: Ops, node: ir.Node, inputs: Inputs) -> Sequence[Value]:
    given = attributes(node)
    return ops.many("TopK", inputs[0], ops.ints([given["k"]]), outputs=2, axis=given.get("axis", -1))


@rewrite("BatchNormalization", before=14)
def batch_norm(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Before opset 14 further outputs meant training mode; before 9 `spatial` 0 meant statistics per element."""
    given = attributes(node, "spatial")
    if any(out.uses() for out in node.outputs[1:]) or attributes(node).get("spatial", 1) != 1:
        raise refuse(node, "its old training mode or spatial=0 is not supported")
    return [ops.op("BatchNormalization", *inputs, **given)]


@rewrite("Scatter", before=11)
def scatter(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    return [ops.op("ScatterElements", *inputs, **attributes(node))]


@rewrite("GroupNormalization")
def group_norm(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Each group as a channel of InstanceNormalization; scale and bias per group before opset 21, then per channel."""
    x, scale, bias = first(inputs), inputs[1], inputs[2]
    assert scale is not None and bias is not None
    given, shape = attributes(node), ops.shape(x)
    groups, entries = given["num_groups"], ops.shape(scale)[0]
    ones, zeros = (ops.const(np.full(groups, v, np.float32)) for v in (1, 0))
    flat = ops.reshape(x, (shape[0], groups, ops.size(x) // (shape[0] * groups)))
    xhat = ops.op("InstanceNormalization", flat, ones, zeros, epsilon=given.get("epsilon", 1e-5))
    split = ops.reshape(xhat, (shape[0], entries, ops.size(x) // (shape[0] * entries)))
    scaled = ops.mul(split, ops.reshape(scale, (1, entries, 1)))
    return [ops.reshape(ops.op("Add", scaled, ops.reshape(bias, (1, entries, 1))), shape)]


def _at(inputs: Inputs, index: int) -> Value | None:
    return inputs[index] if index < len(inputs) else None


def _must(inputs: Inputs, index: int) -> Value:
    value = _at(inputs, index)
    assert value is not None
    return value


def _activate(ops: Ops, node: ir.Node, y: Value, name: str, numbers: list[float]) -> Value:
    """The activation of a fused operator; `numbers` are its parameters in order."""
    if name in ("", "Relu", "Tanh", "Sigmoid", "HardSwish", "Softplus", "Softsign"):
        return ops.op(name, y) if name else y
    if name == "LeakyRelu":
        return ops.op(name, y, alpha=numbers[0])
    if name == "Clip":
        return ops.op(name, y, ops.scalar(numbers[0], y), ops.scalar(numbers[1], y))
    if name == "HardSigmoid":
        return ops.op(name, y, alpha=numbers[0], beta=numbers[1])
    raise refuse(node, f"the fused activation {name} is not known")


@rewrite("FusedConv", domain=MICROSOFT)
def fused_conv(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """activation(Conv(X, W, B) + Z)."""
    given = attributes(node, "activation", "activation_params")
    y = ops.op("Conv", *inputs[:3], **given)
    if _at(inputs, 3) is not None:
        y = ops.op("Add", y, _must(inputs, 3))
    all_given = attributes(node)
    return [_activate(ops, node, y, all_given.get("activation", ""), list(all_given.get("activation_params", [])))]


@rewrite("FusedGemm", domain=MICROSOFT)
def fused_gemm(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given = attributes(node)
    plain = {k: v for k, v in given.items() if not k.startswith("activation")}
    numbers = [given.get(f"activation_{k}", 0.0) for k in ("alpha", "beta", "gamma")]
    return [_activate(ops, node, ops.op("Gemm", *inputs, **plain), given.get("activation", ""), numbers)]


@rewrite("FusedMatMul", domain=MICROSOFT)
def fused_matmul(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Operands whose batch axes are transposed are so by a Transpose."""
    given, operands = attributes(node), [_must(inputs, 0), _must(inputs, 1)]
    for place, side in enumerate("AB"):
        if given.pop(f"transBatch{side}", 0):
            axes = matrix_axes(node, place, ops.rank(operands[place]))
            operands[place] = ops.transpose(operands[place], axes)
            given[f"trans{side}"] = 0
    return [ops.op("FusedMatMul", *operands, domain=MICROSOFT, **given)]


@rewrite("BiasGelu", domain=MICROSOFT)
def bias_gelu(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    return [ops.op("Gelu", ops.op("Add", *inputs), domain=MICROSOFT)]


@rewrite("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """LayerNormalization(X + skip + bias); the fourth output is that sum."""
    total = ops.op("Add", inputs[0], inputs[1])
    if _at(inputs, 4) is not None:
        total = ops.op("Add", total, _must(inputs, 4))
    epsilon = attributes(node).get("epsilon", 1e-12)
    y = ops.op("LayerNormalization", total, inputs[2], _at(inputs, 3), epsilon=epsilon, axis=-1)
    return _with_sum(node, y, total)


@rewrite("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    total = ops.op("Add", inputs[0], inputs[1])
    if _at(inputs, 3) is not None:
        total = ops.op("Add", total, _must(inputs, 3))
    epsilon = attributes(node).get("epsilon", 1e-12)
    return _with_sum(node, rms(ops, total, _must(inputs, 2), epsilon, -1), total)


@rewrite("SimplifiedLayerNormalization")
def simplified_layer_norm(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given = attributes(node)
    axis, epsilon = given.get("axis", -1), given.get("epsilon", 1e-5)
    return [rms(ops, first(inputs), _must(inputs, 1), epsilon, axis)]


def rms(ops: Ops, x: Value, scale: Value, epsilon: float, axis: int) -> Value:
    """x / sqrt(mean(x^2) + epsilon) * scale."""
    rank = ops.rank(x)
    square = ops.mean(ops.mul(x, x), list(range(axis % rank, rank)), keepdims=True)
    root = ops.op("Sqrt", ops.add2(square, epsilon))
    return ops.mul(ops.div(x, root), scale)


def _with_sum(node: ir.Node, y: Value, total: Value) -> list[Value]:
    if any(out.uses() for out in node.outputs[1:3]):
        raise refuse(node, "its statistics are used")
    return [y, y, y, total][: max(len(node.outputs), 1)]


@rewrite("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_norm(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Word, position and segment embeddings, summed and normalised. The mask output must be unused."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise refuse(node, "its mask index is used")
    ids = first(inputs)
    count = ops.shape(ids)[1]
    positions = _at(inputs, 8) or ops.const(np.arange(count, dtype=np.int64).reshape(1, count))
    total = ops.op("Add", ops.op("Gather", inputs[2], ids), ops.op("Gather", inputs[3], positions))
    if _at(inputs, 1) is not None and _at(inputs, 4) is not None:
        total = ops.op("Add", total, ops.op("Gather", inputs[4], inputs[1]))
    epsilon = attributes(node).get("epsilon", 1e-12)
    y = ops.op("LayerNormalization", total, inputs[5], inputs[6], epsilon=epsilon, axis=-1)
    return [y, y, total][: len(node.outputs)]


@rewrite("Attention", domain=MICROSOFT)
def attention(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """softmax(q k^T scale + mask) v of x W + b, without past states."""
    given = attributes(node)
    if any(_at(inputs, i) is not None for i in (4, 6)) or given.get("do_rotary"):
        raise refuse(node, "past states and rotary embeddings are not supported")
    packed = ops.op("MatMul", inputs[0], inputs[1])
    if _at(inputs, 2) is not None:
        packed = ops.op("Add", packed, _must(inputs, 2))
    width = ops.shape(packed)[2]
    sizes = given.get("qkv_hidden_sizes") or [width // 3] * 3
    q, k, v = ops.many("Split", packed, ops.ints(sizes), outputs=3, axis=2)
    mask = _raw_mask(ops, node, _at(inputs, 3), ops.shape(packed)[1], given)
    return [_attend(ops, node, (q, k, v), mask, _at(inputs, 5), given)]


@rewrite("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    given = attributes(node)
    shaped = [_at(inputs, i) for i in range(3)]
    if any(v is None or ops.rank(v) != 3 for v in shaped):
        raise refuse(node, "packed or already split heads are not supported")
    if any(_at(inputs, i) is not None for i in (6, 7, 8, 9)) or any(o.uses() for o in node.outputs[1:]):
        raise refuse(node, "past and present states are not supported")
    parts = [_must(inputs, i) for i in range(3)]
    if _at(inputs, 3) is not None:
        sizes = ops.ints([ops.shape(p)[2] for p in parts])
        biases = ops.many("Split", _must(inputs, 3), sizes, outputs=3, axis=0)
        parts = [ops.op("Add", p, b) for p, b in zip(parts, biases, strict=True)]
    mask = _raw_mask(ops, node, _at(inputs, 4), ops.shape(parts[1])[1], given)
    return [_attend(ops, node, (parts[0], parts[1], parts[2]), mask, _at(inputs, 5), given)]


def _raw_mask(ops: Ops, node: ir.Node, mask: Value | None, length: int, given: dict[str, Any]) -> Value | None:
    """(batch, keys) of 0 and 1 as a sum to the scores."""
    if mask is None:
        return None
    if ops.rank(mask) != 2 or ops.shape(mask)[1] != length:
        raise refuse(node, "only a (batch, keys) mask is supported")
    n = ops.shape(mask)[0]
    kept = ops.op("Cast", mask, to=int(ir.DataType.FLOAT))
    penalty = ops.mul(ops.one_minus(kept), float(given.get("mask_filter_value", -10000.0)))
    return ops.reshape(penalty, (n, 1, 1, length))


def _attend(
    ops: Ops, node: ir.Node, qkv: tuple[Value, Value, Value], mask: Value | None, bias: Value | None,
    given: dict[str, Any],
) -> Value:  # fmt: skip
    heads = int(given["num_heads"])
    q, k, v = (_heads(ops, value, heads) for value in qkv)
    rows, columns = ops.shape(q)[2], ops.shape(k)[2]
    future = None
    if given.get("unidirectional"):
        hidden = given.get("mask_filter_value", -10000.0)
        future = ops.const(np.triu(np.full((rows, columns), hidden, np.float32), 1))
    return _joined(ops, _mixed(ops, (q, k, v), [mask, bias, future], given))


def _mixed(ops: Ops, qkv: tuple[Value, Value, Value], added: list[Value | None], given: dict[str, Any]) -> Value:
    """softmax(cap(q k^T scale) + added) v, all of shape (batch, heads, length, width)."""
    q, k, v = qkv
    scale, cap = float(given.get("scale", 0.0)) or float(ops.shape(q)[-1]) ** -0.5, float(given.get("softcap", 0.0))
    scores = ops.mul(ops.op("MatMul", q, ops.swap_last(k)), scale)
    if cap > 0:
        scores = ops.mul(ops.op("Tanh", ops.mul(scores, 1 / cap)), cap)
    for extra in added:
        scores = scores if extra is None else ops.op("Add", scores, extra)
    return ops.op("MatMul", ops.op("Softmax", scores, axis=-1), v)


def _heads(ops: Ops, value: Value, heads: int) -> Value:
    """(batch, length, heads * width) -> (batch, heads, length, width)."""
    n, length, width = ops.shape(value)
    return ops.transpose(ops.reshape(value, (n, length, heads, width // heads)), [0, 2, 1, 3])


def _joined(ops: Ops, value: Value) -> Value:
    """The inverse."""
    n, heads, length, width = ops.shape(value)
    return ops.reshape(ops.transpose(value, [0, 2, 1, 3]), (n, length, heads * width))


@rewrite("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Causal attention in which several query heads share a key and value head. Padding is on the right, so that
    no token that counts sees it."""
    given = attributes(node)
    heads, groups = int(given["num_heads"]), int(given["kv_num_heads"])
    past, bias = _at(inputs, 3), _at(inputs, 10)
    if past is not None and ops.shape(past)[2]:
        raise refuse(node, "past states are not supported")
    if given.get("smooth_softmax", 0) > 0 or any(_at(inputs, i) is not None for i in range(11, len(inputs))):
        raise refuse(node, "attention sinks and quantised states are not supported")
    q, k, v = _separate(ops, inputs, heads, groups)
    if given.get("do_rotary"):
        at = _at(inputs, 9)  # without a past onnxruntime reads the first position alone, and counts from there
        at = None if at is None else ops.reshape(ops.slice(at, [0, 1], [0, 0], [1, 1]), (1,))
        angles = [_angles(ops, _must(inputs, i), at, ops.shape(q)[2]) for i in (7, 8)]
        q, k = (_rotated(ops, part, angles, bool(given.get("rotary_interleaved"))) for part in (q, k))
    length, window = ops.shape(q)[2], int(given.get("local_window_size", -1))
    seen = np.tril(np.ones((length, length), bool))
    seen = seen if window < 0 else np.triu(seen, 1 - window)
    hidden = ops.const(np.where(seen, 0, -1e30).astype(np.float32))
    mixed = _mixed(ops, (q, _repeated(ops, k, heads), _repeated(ops, v, heads)), [bias, hidden], given)
    return [_joined(ops, mixed), k, v][: len(node.outputs)]


def _separate(ops: Ops, inputs: Inputs, heads: int, groups: int) -> tuple[Value, Value, Value]:
    """Queries, keys and values by heads; with no keys given all three are in the first input."""
    if _at(inputs, 1) is not None:
        return tuple(_heads(ops, _must(inputs, i), n) for i, n in enumerate((heads, groups, groups)))  # type: ignore[return-value]
    whole = _heads(ops, first(inputs), heads + 2 * groups)
    return ops.many("Split", whole, ops.ints([heads, groups, groups]), outputs=3, axis=1)  # type: ignore[return-value]


def _repeated(ops: Ops, value: Value, heads: int) -> Value:
    """Each head as often as it takes to have so many."""
    n, groups, length, width = ops.shape(value)
    wide = ops.expand(ops.reshape(value, (n, groups, 1, length, width)), (n, groups, heads // groups, length, width))
    return ops.reshape(wide, (n, heads, length, width))


@rewrite("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Pairs of features (a, b) turned by the angle of their position: (a cos - b sin, a sin + b cos)."""
    given, x = attributes(node), first(inputs)
    if given.get("is_packed_batching") or given.get("scale", 1.0) != 1.0:
        raise refuse(node, "packed batches and a scale are not supported")
    flat = ops.rank(x) == 3
    heads = int(given.get("num_heads", 0)) or ops.shape(x)[-1] // (2 * ops.shape(inputs[2])[1])
    split = _heads(ops, x, heads) if flat else x
    angles = [_angles(ops, _must(inputs, i), _must(inputs, 1), ops.shape(split)[2]) for i in (2, 3)]
    turned = _rotated(ops, split, angles, bool(given.get("interleaved")))
    return [_joined(ops, turned) if flat else turned]


def _angles(ops: Ops, table: Value, positions: Value | None, length: int) -> Value:
    """Rows of the table of cosines or sines: at the positions (batch, length), at those from one number on, or from 0.
    (batch or 1, 1, length, half)."""
    steps = ops.const(np.arange(length, dtype=np.int64))
    if positions is None:
        positions = steps
    elif ops.rank(positions) == 1:
        positions = ops.op("Add", positions, steps)
    rows = ops.op("Gather", table, positions)
    batch = ops.shape(positions)[0] if ops.rank(positions) == 2 else 1
    return ops.reshape(rows, (batch, 1, length, ops.shape(table)[1]))


def _rotated(ops: Ops, x: Value, angles: list[Value], interleaved: bool) -> Value:
    """x (batch, heads, length, width), whose first 2 half features are turned."""
    (cos, sin), (*front, width) = angles, ops.shape(x)
    half = ops.shape(cos)[-1]
    part = ops.slice(x, [3], [0], [2 * half])
    if interleaved:
        pairs = ops.many("Split", ops.reshape(part, (*front, half, 2)), ops.ints([1, 1]), outputs=2, axis=4)
        a, b = (ops.reshape(value, (*front, half)) for value in pairs)
    else:
        a, b = ops.many("Split", part, ops.ints([half, half]), outputs=2, axis=3)
    turned = [ops.sub(ops.mul(a, cos), ops.mul(b, sin)), ops.op("Add", ops.mul(a, sin), ops.mul(b, cos))]
    if interleaved:
        turned = [ops.reshape(value, (*front, half, 1)) for value in turned]
    whole = ops.reshape(ops.concat(turned, 4 if interleaved else 3), (*front, 2 * half))
    return ops.concat([whole, ops.slice(x, [3], [2 * half], [width])], 3) if width > 2 * half else whole


_CUBIC = -0.75  # the coefficient of Keys (1981) that onnxruntime and PyTorch use
_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@rewrite("GridSample")
def grid_sample(ops: Ops, node: ir.Node, inputs: Inputs) -> list[Value]:
    """Y at a place = sum over the neighbours of its position of their weight times X there."""
    x, grid = first(inputs), inputs[1]
    assert grid is not None
    (n, c, *sizes), spots, rank = ops.shape(x), ops.shape(grid)[1:-1], ops.rank(grid)
    count = math.prod(spots)
    rows = ops.transpose(ops.reshape(x, (n, c, math.prod(sizes))), [0, 2, 1])
    axes = []
    for axis, size in enumerate(sizes):
        place = len(sizes) - 1 - axis  # a grid names the last axis first
        at = ops.reshape(ops.slice(grid, [rank - 1], [place], [place + 1]), (n, count))
        axes.append(_neighbours(ops, at, size, node))
    parts = []
    for neighbours in itertools.product(*axes):
        index, weight = neighbours[0]
        for size, (inner, factor) in zip(sizes[1:], neighbours[1:], strict=True):
            index, weight = ops.op("Add", ops.mul(index, size), inner), ops.mul(weight, factor)
        read = ops.op("GatherND", rows, ops.reshape(index, (n, count, 1)), batch_dims=1)
        parts.append(ops.mul(read, ops.reshape(weight, (n, count, 1))))
    return [ops.reshape(ops.transpose(ops.total(parts), [0, 2, 1]), (n, c, *spots))]


def _neighbours(ops: Ops, at: Value, size: int, node: ir.Node) -> list[tuple[Value, Value]]:
    """Along one axis: (index, weight) of every element that a position in [-1, 1] is interpolated from."""
    given = attributes(node)
    mode, padding = given.get("mode", "linear"), given.get("padding_mode", "zeros")
    mode, aligned = _MODES.get(mode, mode), bool(given.get("align_corners", 0))
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    position = ops.add2(ops.mul(at, (size - 1) / 2 if aligned else size / 2), (size - 1) / 2)
    position = ops.op("Round", position) if mode == "nearest" else position
    if padding == "reflection":
        position = _reflect(ops, position, low, high)
    start = ops.op("Round" if mode == "nearest" else "Floor", position)
    found = []
    for offset, weight in _weights(ops, ops.sub(position, start), mode):
        index = ops.add2(start, offset)
        index = ops.op("Round", _reflect(ops, index, low, high)) if padding == "reflection" else index
        stored = _clip(ops, index, 0.0, size - 1.0)
        if padding == "zeros":
            weight = ops.mul(weight, ops.cast(ops.op("Equal", index, stored), weight))
        found.append((ops.op("Cast", stored, to=int(ir.DataType.INT64)), weight))
    return found


def _clip(ops: Ops, value: Value, low: float, high: float) -> Value:
    return ops.op("Clip", value, ops.scalar(low, value), ops.scalar(high, value))


def _reflect(ops: Ops, value: Value, low: float, high: float) -> Value:
    """Turned back at both ends as often as it takes: low + r or, every other time, high - r."""
    span = max(high - low, 1e-6)  # of one element with aligned corners nothing is left
    away = ops.op("Abs", ops.add2(value, -low))
    times = ops.op("Floor", ops.mul(away, 1 / span))
    odd = ops.sub(times, ops.mul(ops.op("Floor", ops.mul(times, 0.5)), 2.0))
    rest = ops.sub(away, ops.mul(times, span))
    return ops.add2(ops.op("Add", rest, ops.mul(odd, ops.add2(ops.mul(rest, -2.0), span))), low)


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
    return ops.add2(ops.mul(ops.mul(t, t), ops.add2(ops.mul(t, _CUBIC + 2), -_CUBIC - 3)), 1.0)


def _far(ops: Ops, t: Value) -> Value:
    """a s^3 - 5 a s^2 + 8 a s - 4 a = a t^2 (1 - t), of the element s = 2 - t away."""
    return ops.mul(ops.mul(ops.mul(t, t), ops.add2(t, -1.0)), -_CUBIC)
