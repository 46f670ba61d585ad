"""Layers that can be fitted in closed form: a weight, how it is multiplied with data, and what may be added to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.evidence.contractions import Contraction, contraction
from prunecli.model.weights import Use, Weight, Weights
from prunecli.types import Skipped

Array = np.ndarray[Any, Any]
_HIDDEN = "what it reads cannot be measured: it lies in a sub-graph or a function"


@dataclass(frozen=True)
class Intercept:
    """A stored vector whose change by `sign` times d changes the layer's output by d, a number per row."""

    weight: Weight
    sign: int

    def moved(self, values: Array, change: Array) -> Array:
        """The vector with the layer's output moved by `change` (all rows)."""
        moved: Array = values + self.sign * change.reshape(values.shape).astype(np.float64)
        return moved


@dataclass(frozen=True)
class Layer:
    """A weight of the working form.

    Attributes:
        uses: each way it is multiplied, in graph order, all in the weight's layout.
        intercept: what may be added to its output; None where nothing may, as with several uses.
        offset: (batch, rows) what its operator adds already.
        gain: (batch, rows) by which its output is multiplied next (a BatchNormalization; 1 without): what its errors
            are worth.
        branch: what the output, multiplied, is added to next, which has errors of its own to make up for.
    """

    weight: Weight
    uses: tuple[Contraction, ...]
    intercept: Intercept | None
    offset: Array
    gain: Array
    branch: str | None

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, rows, taps, cols)."""
        return self.weight.layout.canonical_shape

    def matrices(self, array: Array) -> Array:
        """A stored array as (batch, rows, K), float64."""
        batch, rows, taps, cols = self.shape
        found: Array = self.weight.layout.canonical(array).reshape(batch, rows, taps * cols).astype(np.float64)
        return found

    def stored(self, matrices: Array) -> Array:
        """The inverse, of any dtype."""
        return self.weight.layout.restore(matrices.reshape(self.shape))


def layers_of(
    work: ir.Model, found: Weights, names: Iterable[str], fixed: frozenset[str] = frozenset()
) -> tuple[list[Layer], list[Skipped]]:
    """The layers of those weights in the order in which they run, and why others cannot be measured.

    Args:
        work: in `working_form`; found: its weights; names: of the stored tensors that are wanted; fixed: vectors
            that may not change.
    """
    order = {node: place for place, node in enumerate(work.graph)}
    others = {w.holder.value: w for w in found.others if w.holder.name not in fixed}
    held = {w.holder.name: w for w in found.prunable if w.holder.graph is work.graph}
    layers, left = [], []
    for name in names:
        weight = held.get(name)
        reason = _reason(weight, order) if weight is not None else _HIDDEN
        if weight is None or reason:
            left.append(Skipped(name, reason))
        else:
            layers.append(_layer(weight, others, order))
    layers.sort(key=lambda layer: min(order[use.node] for use in layer.weight.uses))
    return layers, left


def _reason(weight: Weight, order: dict[ir.Node, int]) -> str:
    """Why a weight has no evidence; empty if it has."""
    if any(use.node not in order for use in weight.uses):
        return _HIDDEN
    if weight.holder.overridable:
        return "it is also a graph input, so that a caller may feed other values"
    for use in weight.uses:
        if use.kind != "weight" or use.layout != weight.layout:
            return "it is read in several ways that do not fit each other"
        found = contraction(use)
        if found is None or found.output is None:
            return f"how {use.op} multiplies it with data is not known"
        if use.op == "Gemm" and not _adds_per_row(use, found):
            return "what Gemm adds to it is not one number for each of its outputs"
        if found.bias is not None and _stored(use.node.inputs[found.bias]) is None:
            return f"what {use.op} adds to it is computed"
    if len(weight.uses) > 1 and any(contraction(use).bias is not None for use in weight.uses):  # type: ignore[union-attr]
        return "several operators with biases of their own share it"
    return ""


def _adds_per_row(use: Use, found: Contraction) -> bool:
    """Whether what a Gemm adds, if anything, is one number per row of the weight, or one for all."""
    added = use.node.inputs[2] if len(use.node.inputs) > 2 else None
    beta = use.node.attributes["beta"].as_float() if "beta" in use.node.attributes else 1.0
    if added is None or beta == 0:
        return True
    if found.bias is None:
        return False
    stored = _stored(added)
    return stored is None or stored.size == 1 or stored.shape[-1] == stored.size == use.layout.canonical_shape[1]


def _per_channel(use: Use) -> bool:
    """Whether axis 1 of the operator's output, that of a BatchNormalization, counts the rows of the weight."""
    shape = use.node.outputs[0].shape
    flat = use.op == "Gemm" or (use.op == "MatMul" and shape is not None and len(shape) == 2)
    return use.op in ("Conv", "ConvTranspose") or (flat and use.index == 1)


def _layer(weight: Weight, others: dict[ir.Value, Weight], order: dict[ir.Node, int]) -> Layer:
    uses = sorted(weight.uses, key=lambda use: order[use.node])
    found = tuple(c for c in map(contraction, uses) if c is not None)
    batch, rows = weight.layout.canonical_shape[:2]
    added = None if found[0].bias is None else _stored(uses[0].node.inputs[found[0].bias])
    offset = np.zeros((batch, rows)) if added is None else np.broadcast_to(added.reshape(-1), batch * rows)
    offset = offset.reshape(batch, rows)
    if len(found) > 1:
        return Layer(weight, found, None, offset, np.ones((batch, rows)), None)
    gain, branch = _after(uses[0], batch * rows)
    own = _intercept(uses[0], found[0], others)
    return Layer(weight, found, own, offset, gain.reshape(batch, rows), branch)


def _intercept(use: Use, found: Contraction, others: dict[ir.Value, Weight]) -> Intercept | None:
    if found.bias is not None:
        return _own(use.node.inputs[found.bias], others, use, 1)
    node, index = _only_reader(use.node.outputs[0])
    if node is None:
        return None
    if node.op_type == "BatchNormalization" and index == 0 and len(node.outputs) == 1:
        return _own(node.inputs[3], others, use, -1) if _per_channel(use) else None
    if node.op_type == "Add" and node.domain == "":
        return _own(node.inputs[1 - index], others, use, 1)
    return None


def _own(value: ir.Value | None, others: dict[ir.Value, Weight], use: Use, sign: int) -> Intercept | None:
    """The vector that `value` stores, if it serves this layer alone and has one number per row of it."""
    weight = others.get(value) if value is not None else None
    if weight is None or value is None or len(value.uses()) != 1:
        return None
    if weight.holder.overridable or value.is_graph_output():
        return None
    batch, rows = use.layout.canonical_shape[:2]
    shape = weight.shape
    axis = next((i - len(shape) for i, size in enumerate(shape) if size > 1), -1)
    per_channel = use.op in ("Conv", "ConvTranspose")
    fits = weight.size == batch * rows and (per_channel or batch == 1)
    if weight.uses[0].op == "Add":  # of the others the operator says that it is per row
        row_axis = 1 - len(use.shape) if per_channel else -2 if use.index == 0 else -1
        fits = fits and axis == row_axis
    return Intercept(weight, sign) if fits else None


def _only_reader(value: ir.Value) -> tuple[ir.Node | None, int]:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None, 0
    return uses[0].node, uses[0].idx


def _after(use: Use, rows: int) -> tuple[Array, str | None]:
    """The factor of a BatchNormalization that follows, ones without, and what is then added that is computed too."""
    node, index = _only_reader(use.node.outputs[0])
    gain: Array = np.ones(rows)
    if node is not None and node.op_type == "BatchNormalization" and index == 0 and len(node.outputs) == 1:
        scale, _, _, variance = (_stored(v) for v in node.inputs[1:5])
        if scale is None or variance is None or scale.shape != gain.shape or not _per_channel(use):
            return gain, None
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        gain = scale / np.sqrt(variance + epsilon)
        node, index = _only_reader(node.outputs[0])
    if node is None or node.op_type != "Add" or node.domain != "":
        return gain, None
    other = node.inputs[1 - index]
    if other is None or other.const_value is not None or other is node.inputs[index]:
        return gain, None
    return gain, other.name


def _stored(value: ir.Value | None) -> Array | None:
    tensor = value.const_value if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy(), np.float64)


def ancestors(work: ir.Model, value: str) -> set[ir.Node]:
    """The nodes that the value depends on."""
    producer: dict[str, ir.Node] = {v.name or "": node for node in work.graph for v in node.outputs}
    found: set[ir.Node] = set()
    stack: list[str] = [value]
    while stack:
        node = producer.get(stack.pop())
        if node is not None and node not in found:
            found.add(node)
            stack.extend(v.name or "" for v in node.inputs if v is not None)
    return found
