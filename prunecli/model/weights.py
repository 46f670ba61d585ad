"""Which stored tensors are weights, who reads them, and how; what is not prunable, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.constants import Holder, Reader, holders, is_constant, readers
from prunecli.model.graphs import all_nodes
from prunecli.model.loading import Model
from prunecli.model.quantised import UNREAD
from prunecli.model.tensors import FLOATS, QUANTISED
from prunecli.operators import Contraction, Refused, Role, contraction, named, role_of
from prunecli.operators.layout import Layout, Shape
from prunecli.operators.operator import ONNX_ML, Kind
from prunecli.storage.stored import unmap
from prunecli.types import Skipped

Values = np.ndarray[Any, Any]
PRIORITY: tuple[Kind, ...] = ("embedding", "weight", "norm", "bias")
"""The kind of a tensor with several roles: a table that is also a matrix (tied embeddings) is left alone."""
SCALARS = "scalar constant"
COEFFICIENTS = ("coefficients", "nodes_values", "support_vectors", "target_weights", "class_weights")
"""Attributes in which the operators of ai.onnx.ml keep their parameters."""


@dataclass(frozen=True)
class Use:
    """One operator that reads a weight: input `index` of `node`, as `layout` of the stored tensor. `shape`: of the
    input itself, which is the stored one where nothing lies in between."""

    node: ir.Node
    index: int
    kind: Kind
    layout: Layout
    shape: Shape

    @property
    def op(self) -> str:
        return self.node.op_type

    @property
    def contraction(self) -> Contraction | None:
        """How the operator multiplies the weight with computed data; None where that is not known."""
        return contraction(self.node, self.index, self.shape) if self.kind == "weight" else None


@dataclass(frozen=True)
class Weight:
    """One stored floating-point tensor and the operators that read it.

    `name` is unique in the model: the initializer's name, or the Constant node's output. `layout` is that
    of the first use of the weight's kind. `notes` are sentences for the report (shared, tied, overridable).
    """

    name: str
    kind: Kind
    uses: tuple[Use, ...]
    holder: Holder
    layout: Layout
    notes: tuple[str, ...] = ()

    @property
    def op(self) -> str:
        """Operator type of the use that decides the kind."""
        return self._main.op

    @property
    def node(self) -> ir.Node:
        """The node of the use that decides the kind."""
        return self._main.node

    @property
    def _main(self) -> Use:
        return next(use for use in self.uses if use.kind == self.kind)

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The tensor as it is now: mapped, inline, or pending replacement."""
        return self.holder.tensor

    @property
    def shape(self) -> Shape:
        return tuple(self.tensor.shape.numpy())

    @property
    def dtype(self) -> ir.DataType:
        return self.tensor.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensor.size

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def array(self) -> Values:
        """The values, of the stored shape and type, read-only; bfloat16 as ml_dtypes.bfloat16.

        External data is mapped: call `release` when done with a large tensor.
        """
        return np.asarray(self.tensor.numpy())

    def release(self) -> None:
        """Let go of mapped external data. Views taken from `array` stay valid."""
        unmap(self.tensor)

    def replace(self, change: Callable[[Values], Values], shape: Shape | None = None) -> None:
        """Let `change(array)` take this tensor's place, computed anew whenever it is read, last while saving.

        Args:
            change: gets the present values (read-only) and returns an array of the same dtype.
            shape: of the result, if it differs from the present one.
        """
        self.holder.put(pending(self.tensor, change, self.shape if shape is None else shape, name=self.name))


def pending(source: ir.TensorProtocol, change: Callable[[Values], Values], shape: Shape, name: str) -> ir.LazyTensor:
    """`change(source)`, evaluated when read; `source`'s mapping is released right after."""

    def compute() -> ir.TensorProtocol:
        result = np.asarray(change(np.asarray(source.numpy())))
        unmap(source)
        if result.shape != shape or result.dtype != source.dtype.numpy():
            raise PruneError(
                f"internal: weight '{name}' should become {source.dtype.name} {list(shape)}, "
                f"not {result.dtype} {list(result.shape)}",
                "please report this",
            )
        return ir.Tensor(result, dtype=source.dtype, name=source.name)

    return ir.LazyTensor(
        compute,
        dtype=source.dtype,
        shape=ir.Shape(shape),
        name=source.name,
        doc_string=source.doc_string,
        metadata_props=dict(source.metadata_props),
    )


@dataclass
class Weights:
    """`prunable`: matrices and kernels. `others`: biases, normalisation, embeddings. `single`: parameters of one
    element, which are trained but not pruned. `skipped`: the rest."""

    prunable: list[Weight] = field(default_factory=list)
    others: list[Weight] = field(default_factory=list)
    single: list[Weight] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def all(self) -> list[Weight]:
        return self.prunable + self.others


def find_weights(model: Model) -> Weights:
    """Every stored tensor of every graph, subgraph and local function, sorted into the three lists."""
    found = Weights()
    counted: Counter[str] = Counter()
    names: set[str] = set()
    for holder in holders(model.ir):
        tensor = holder.tensor
        if tensor.dtype == ir.DataType.STRING or tensor.size == 0:
            continue
        shape = tuple(tensor.shape.numpy())
        reads = list(readers(model.ir, holder.value, shape))
        weight = _weight(holder, shape, reads, names=names) if tensor.dtype in FLOATS else None
        if weight is not None and tensor.size > 1:
            (found.prunable if weight.kind == "weight" else found.others).append(weight)
            continue
        if weight is not None and all(_is_parameter(use) for use in weight.uses):
            found.single.append(weight)
        if reason := _reason(tensor, reads, counted, unread=model.ir.meta.get(UNREAD, "")):
            found.skipped.append(Skipped(_unique(holder, names), reason))
    found.skipped += _counted(counted) + _in_attributes(model.ir)
    return found


def _weight(holder: Holder, shape: Shape, reads: list[Reader], names: set[str]) -> Weight | None:
    uses = tuple(_use(read, shape, read.answer) for read in reads if isinstance(read.answer, Role))
    if not uses or any(isinstance(read.answer, Refused) for read in reads):
        return None
    kind = min((use.kind for use in uses), key=PRIORITY.index)
    main = next(use for use in uses if use.kind == kind)
    return Weight(
        _unique(holder, names), kind, uses, holder=holder, layout=main.layout, notes=_notes(holder, uses, reads)
    )


def _is_parameter(use: Use) -> bool:
    """Whether one number is a parameter. Scales and offsets of elementwise operators are mostly constants of a formula
    (1 / sqrt(d), an epsilon), but for the bias of a layer with one output."""
    if use.op not in ("Add", "Sub", "Mul", "Div"):
        return True
    other = use.node.inputs[1 - use.index]
    layer = other.producer() if other is not None else None
    if use.op != "Add" or layer is None:
        return False
    stored = [(i, value) for i, value in enumerate(layer.inputs) if value is not None and is_constant(value)]
    roles = [
        role_of(layer, i, tuple(v.shape.numpy())) for i, v in stored if v.shape is not None and v.shape.is_static()
    ]
    layouts = [role.layout for role in roles if isinstance(role, Role) and role.kind == "weight"]
    return any(layout.canonical_shape[0] * layout.canonical_shape[1] == 1 for layout in layouts)


def _use(read: Reader, shape: Shape, role: Role) -> Use:
    return Use(read.node, read.index, role.kind, layout=role.layout.after(read.steps, shape), shape=read.shape)


def _unique(holder: Holder, names: set[str]) -> str:
    """The holder's name, with its graph's when another scope already has one of that name."""
    name, number = holder.name, 2
    if name in names:
        name = f"{holder.graph.name or 'graph'}/{holder.name}"
    while name in names:
        name, number = f"{holder.graph.name or 'graph'}/{holder.name}#{number}", number + 1
    names.add(name)
    return name


def _notes(holder: Holder, uses: tuple[Use, ...], reads: list[Reader]) -> tuple[str, ...]:
    notes = []
    if len(uses) > 1:
        notes.append(f"shared by {len(uses)} inputs: " + ", ".join(sorted({use.op for use in uses})))
    if len({use.layout for use in uses}) > 1:
        notes.append(f"read in different layouts; that of {uses[0].op} is used")
    unknown = sorted({read.op for read in reads if read.answer is None})
    if unknown:
        notes.append("also read by " + ", ".join(unknown))
    if holder.overridable:
        notes.append("also a graph input: left alone unless --include names it, for a caller may feed other values")
    if holder.value.is_graph_output():
        notes.append("also a graph output")
    return tuple(notes)


def _reason(tensor: ir.TensorProtocol, reads: list[Reader], counted: Counter[str], unread: str) -> str | None:
    """Why `tensor` is left alone; None if it is no parameter (an index, a shape) or is only counted. `unread`: why
    integers are not read as numbers."""
    if tensor.dtype in FLOATS:
        if tensor.size == 1:
            counted[SCALARS] += 1
            return None
        return _float_reason(reads)
    quantising = sorted({read.op for read in reads} & {*named(lambda operator: operator.quantised)})
    if tensor.dtype in QUANTISED and len(tensor.shape) >= 2 and quantising:
        why = unread or "not prunable yet"
        return f"quantised to {tensor.dtype.name.lower()} ({', '.join(quantising)}): {why}"
    if tensor.dtype.is_floating_point():
        return f"stored as {tensor.dtype.name.lower()}: not prunable yet"
    return None


def _float_reason(reads: list[Reader]) -> str:
    for read in reads:
        if isinstance(read.answer, Refused):
            return read.answer.reason
    ops = sorted({read.op for read in reads})
    if not ops:
        return "nothing reads it"
    if "QuantizeLinear" in ops:
        return "quantised while the model runs (QuantizeLinear): not prunable yet"
    if not {*named(lambda operator: operator.quantised)}.isdisjoint(ops):
        return f"scale of a quantised tensor ({', '.join(ops)})"
    return f"a constant read by {', '.join(ops)}: no operator takes it as a weight"


def _counted(counted: Counter[str]) -> list[Skipped]:
    """One entry for all constants that are only worth counting."""
    return [
        Skipped(f"{n} {what}{'s' * (n > 1)}", "single values are not pruned") for what, n in sorted(counted.items())
    ]


def _in_attributes(model: ir.Model) -> list[Skipped]:
    """Operators of ai.onnx.ml keep their parameters in attributes."""
    return [
        Skipped(node.name or node.op_type, f"{node.op_type} keeps its parameters in attributes: not prunable yet")
        for node in all_nodes(model)
        if node.domain == ONNX_ML and any(name in node.attributes for name in COEFFICIENTS)
    ]
