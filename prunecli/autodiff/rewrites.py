"""Older and fused operators, restated by the current standard ones while the forward graph is copied.

A rewrite is `rewrite(ops, node, inputs) -> outputs`: it appends nodes for `node` of the source model, whose inputs
are already copied. `before` limits it to models of an older opset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import describe
from prunecli.errors import PruneError

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
