"""Where a graph sums over an axis with stored weights: a result is the sum of weight times data, plus a bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.registry import is_named
from prunecli.model.constants import Constant, behind, is_constant
from prunecli.model.shape_inference import Facts
from prunecli.operators import MICROSOFT
from prunecli.operators.attributes import integer, integers, text
from prunecli.operators.layout import Layout
from prunecli.operators.operator import Role, operator_of, role_of
from prunecli.operators.product import matrix_axes
from prunecli.operators.recurrent import GATES

KEPT_UP_TO = 1 << 26
"""Elements of a weight of which it is remembered which are zero."""
RECURRENT = 2
"""Input of a recurrent operator that multiplies its own last result."""


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """`node` sums over axis `axis` of `data`; its result is along axis `out_axis` of `out` (None: a single number).

    `index`: the input that is the weight, read as (groups, rows, taps, positions). In `grouped` ones group g reads and
    writes the g-th slab of the axes; else all groups (directions, stacked matrices) read and write the whole axes.
    `gates`: how many rows in turn belong to each position of the result. `plain`: a constant slice of the data adds a
    constant to the result, so that nothing is padded.
    """

    node: ir.Node
    data: ir.Value
    axis: int
    out: ir.Value
    out_axis: int | None
    index: int
    weight: Constant
    layout: Layout
    grouped: bool = False
    gates: int = 1
    plain: bool = True

    @property
    def groups(self) -> int:
        return self.layout.canonical_shape[0]

    def matrix(self) -> Array:
        """The weight as (groups, rows, taps, positions), in the type that it is read in."""
        return self.layout.canonical(self.weight.read())

    def stored(self, matrix: Array) -> Array:
        """What has to be stored for the weight to be this."""
        return self.weight.stored(self.layout.restore(matrix))

    @cached_property
    def _nonzero(self) -> Array:
        """(groups, rows, positions): which weights are not zero."""
        return np.asarray((self.matrix() != 0).any(2))

    def nonzero(self) -> Array:
        """(groups, rows, positions): whether any weight is not zero."""
        return self._nonzero if self.weight.size <= KEPT_UP_TO else (self.matrix() != 0).any(2)

    def reads(self, kept: Array) -> Array:
        """Which positions of the data the kept positions of the result have a weight for that is not zero."""
        live = self.nonzero()
        rows = kept.reshape(self.groups, -1, 1) if self.grouped else np.tile(kept, self.gates)[None, :, None]
        found = (live & rows).any(1)
        return np.asarray(found.reshape(-1) if self.grouped else found.any(0))


def contractions(graph: ir.Graph, facts: Facts) -> Iterator[WeightedSum]:
    """Every contraction with a stored weight, in the graph's order."""
    for node in graph:
        known = all(value is None or value in facts.shapes for value in _ends(node))
        if not known or node.domain not in ("", MICROSOFT):
            continue
        if operator_of(node).kernel:
            yield from _convolution(node)
        elif node.op_type in ("Gemm", "FusedGemm"):
            yield from _gemm(node)
        elif node.op_type in ("MatMul", "FusedMatMul"):
            yield from _matmul(node, facts)
        elif node.op_type in GATES and node.domain == "":
            yield from _recurrent(node, facts)


def _ends(node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (*node.inputs[:3], *(out for out in node.outputs if out.name))


def fixed(value: ir.Value | None) -> Constant | None:
    """The stored tensor that a value is, if no caller may feed another."""
    found = behind(value)
    return None if found is None or found.is_overridable else found


def _weight(node: ir.Node, index: int) -> tuple[Constant, Layout] | None:
    """The stored tensor at an input and how the operator reads it."""
    found = fixed(node.inputs[index]) if index < len(node.inputs) else None
    if found is None or not found.tensor.dtype.is_floating_point():
        return None
    role = role_of(node, index, found.shape)
    return (found, role.layout) if isinstance(role, Role) and role.kind == "weight" else None


def _convolution(node: ir.Node) -> Iterator[WeightedSum]:
    found, data = _weight(node, 1), node.inputs[0]
    if found is None or data is None:
        return
    plain = operator_of(node).kernel == "sliding" and not _pads(node)
    yield WeightedSum(
        node,
        data,
        1,
        out=node.outputs[0],
        out_axis=1,
        index=1,
        weight=found[0],
        layout=found[1],
        grouped=True,
        plain=plain,
    )


def _pads(node: ir.Node) -> bool:
    return any(integers(node, "pads") or ()) or text(node, "auto_pad", "NOTSET").startswith("SAME")


def _gemm(node: ir.Node) -> Iterator[WeightedSum]:
    for index in (1, 0):
        found, data = _weight(node, index), node.inputs[1 - index]
        if found is not None and data is not None and not is_constant(data):
            inner = 1 - integer(node, "transA", 0) if index else integer(node, "transB", 0)
            yield WeightedSum(
                node, data, inner, out=node.outputs[0], out_axis=index, index=index, weight=found[0], layout=found[1]
            )


def _matmul(node: ir.Node, facts: Facts) -> Iterator[WeightedSum]:
    for index in (1, 0):
        found, data = _weight(node, index), node.inputs[1 - index]
        if found is None or data is None or is_constant(data):
            continue
        axes = matrix_axes(node, 1 - index, len(facts.shapes[data]))
        inner = axes[-1] if index or len(axes) == 1 else axes[-2]
        rank = len(facts.shapes[node.outputs[0]])
        vector = len(found[0].shape) == 1
        place = None if vector else rank - 1 if index or len(axes) == 1 else rank - 2
        yield WeightedSum(
            node, data, inner, out=node.outputs[0], out_axis=place, index=index, weight=found[0], layout=found[1]
        )


def _recurrent(node: ir.Node, facts: Facts) -> Iterator[WeightedSum]:
    out = next((v for v in node.outputs if is_named(v)), None)
    if out is None:
        return
    data, place, gates = node.inputs[0], len(facts.shapes[out]) - 1, GATES[node.op_type]
    first, second = _weight(node, 1), _weight(node, RECURRENT)
    if first is not None and data is not None:
        yield WeightedSum(
            node, data, 2, out=out, out_axis=place, index=1, weight=first[0], layout=first[1], gates=gates
        )
    if second is not None:
        yield WeightedSum(
            node, out, place, out=out, out_axis=place, index=RECURRENT, weight=second[0], layout=second[1], gates=gates
        )
