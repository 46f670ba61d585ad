"""Prepare a model for the removal of surplus units without changing what it computes: constant units are added to
biases, units that are multiples of another are added to its weights, and constant branches become constants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.views import single_views
from prunecli.model.constant_values import fold as fold_node
from prunecli.model.constants import is_constant
from prunecli.model.graphs import add_constant, free_name, refill, taken_names
from prunecli.operators.attributes import number as number_of
from prunecli.operators.operator import input_of
from prunecli.operators.recurrent import GATES
from prunecli.shrinking.contraction import WeightedSum, fixed
from prunecli.shrinking.numbering import SliceNumbering
from prunecli.shrinking.slices import Floats
from prunecli.shrinking.surplus import Finder, Surplus

JOINING = ("Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
COMBINING = ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow", "PRelu")


@dataclass(frozen=True)
class Moved:
    """How many constant positions were added to biases, and how many columns to other columns."""

    constants: int = 0
    columns: int = 0


def fold(finder: Finder, surplus: Surplus) -> Moved:
    """Add what the surplus units contribute to their readers to biases and other columns, in place.

    Of a constant c read by column w, w c goes into the bias. Of x_p = k x_q, k w_p is added to w_q. The columns of the
    surplus are then set to zero, so that nothing depends on it.
    """
    gone = finder.units.removed_atoms(surplus.removed)
    constants = columns = 0
    partner = _partners(finder, surplus)
    for end in finder.ends:
        one, atoms = end.contraction, finder.atoms(end.value, end.axis)
        if one is None or atoms is None or not gone[atoms].any():
            continue
        slices, read = finder.numbering.of(end.value, end.axis), one.reads(finder.kept(one, gone))
        idle = gone[atoms] & read & ~slices.zero
        level = idle & end.excused
        pairs = [(p, q) for p, q in partner(end.value, end.axis) if idle[p] and not level[p]]
        if not level.any() and not pairs:
            continue
        matrix = one.matrix().astype(np.float64)
        if level.any():
            add(finder.numbering, one, _constant_part(one, matrix, np.where(level, slices.factor, 0.0)))
        for p, q in pairs:
            matrix[..., q] += matrix[..., p] * (slices.factor[p] / slices.factor[q])
        _clear(one, matrix, [*np.flatnonzero(level).tolist(), *(p for p, _ in pairs)])
        constants, columns = constants + int(level.sum()), columns + len(pairs)
    return Moved(constants, columns)


def _partners(finder: Finder, surplus: Surplus) -> Callable[[ir.Value, int], Iterator[tuple[int, int]]]:
    """Return a function from (value, axis) to pairs of positions: of a merged unit, and of the unit that it is added
    to."""
    by_group: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one in surplus.merges:
        by_group[int(finder.units.group_of[one.unit])].append((one.unit, one.into))

    def partner(value: ir.Value, axis: int) -> Iterator[tuple[int, int]]:
        for number, pairs in by_group.items():
            group = finder.units.groups[number]
            positions = finder.positions(group, value, axis)
            if positions is not None:
                for unit, into in pairs:
                    both = positions[unit - group.first].tolist(), positions[into - group.first].tolist()
                    yield from zip(*both, strict=True)

    return partner


def _constant_part(one: WeightedSum, matrix: Array, values: Floats) -> Floats:
    """Return what the constants `values`, one per position, add to each row: of shape (rows,) with the groups one after
    another, or (directions, rows) of a recurrent operator."""
    if one.grouped:
        parts = values.reshape(one.groups, 1, 1, -1)
        return np.asarray((matrix * parts).sum((2, 3)).reshape(-1), np.float64)
    return np.asarray((matrix * values).sum((2, 3)), np.float64)


def _clear(one: WeightedSum, matrix: Array, positions: Sequence[int]) -> None:
    """Set these positions of a weight to zero, and store it."""
    if one.grouped:
        flat = matrix.swapaxes(2, 3).swapaxes(1, 2).copy()  # (groups, positions, rows, taps)
        shape = flat.shape
        flat = flat.reshape(-1, *shape[2:])
        flat[positions] = 0
        matrix = flat.reshape(shape).swapaxes(1, 2).swapaxes(2, 3)
    else:
        matrix[..., positions] = 0
    refill(one.weight.way[0], one.stored(np.ascontiguousarray(matrix)))


def add(numbering: SliceNumbering, one: WeightedSum, rows: Floats) -> None:
    """Add constants to the rows of a contraction's result, in its bias or behind it."""
    node, graph = one.node, numbering.graph
    if node.op_type in GATES:
        _add_to(numbering, node, 3, rows=np.concatenate([rows, np.zeros_like(rows)], axis=1))
    elif node.op_type == "MatMul":
        _add_behind(numbering, one, rows.reshape(-1))
    else:
        share = number_of(node, "alpha", 1.0) / (number_of(node, "beta", 1.0) or np.nan)
        rows = rows.reshape(-1) * (share if node.op_type == "Gemm" else 1.0)
        _add_to(numbering, node, 2, rows=rows if one.grouped or one.out_axis == 1 else rows[:, None])
    assert graph is node.graph


def _add_to(numbering: SliceNumbering, node: ir.Node, index: int, rows: Floats) -> None:
    """Add to the stored input `index` of a node. If other nodes read it, or it is missing, the node gets a new one."""
    value = input_of(node, index)
    found = fixed(value)
    weight = fixed(node.inputs[1]) or fixed(node.inputs[0])
    assert weight is not None
    if found is not None and found.is_own and found.array().shape == np.shape(rows):
        refill(found.way[0], found.stored(found.array() + rows))
        return
    array = (rows if found is None else found.array() + rows).astype(weight.dtype.numpy())
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_constant(numbering.graph, f"{node.name or node.outputs[0].name}.bias", array))


def _add_behind(numbering: SliceNumbering, one: WeightedSum, rows: Floats) -> None:
    """Add to the result of a node without a bias: to the constant of an Add that follows it, or by a new Add."""
    out, graph = one.out, numbering.graph
    assert one.out_axis is not None
    rank, kind = numbering.rank(out), one.weight.dtype.numpy()
    shape = [-1 if axis == one.out_axis else 1 for axis in range(rank)]
    uses = list(out.uses())
    node = uses[0].node if len(uses) == 1 and not out.is_graph_output() else None
    if node is not None and node.op_type == "Add" and node.domain == "" and node.graph is graph:
        place = 1 - uses[0].idx
        other = node.inputs[place]
        found = fixed(other)
        if other is not None and found is not None and found.size in (1, len(rows)):
            array = found.array() + rows.reshape(shape[-max(len(found.shape), rank - one.out_axis) :])
            if array.size == len(rows):
                node.replace_input_with(place, add_constant(graph, f"{node.name or out.name}.bias", array.astype(kind)))
                return
    bias = add_constant(graph, f"{one.node.name or out.name}.bias", rows.reshape(shape).astype(kind))
    step = ir.Node("", "Add", [None, bias], num_outputs=1, name=f"{one.node.name or out.name}.biased")
    graph.insert_after(one.node, step)
    taken = taken_names(graph)
    name, new = out.name or "", step.outputs[0]
    new.shape, new.type = out.shape, out.type
    out.replace_all_uses_with(new, replace_graph_outputs=True)
    step.replace_input_with(0, out)
    out.name = free_name(f"{name}.unbiased", taken)
    new.name = name


# -- constant branches ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """A constant branch that is no longer computed: `node` reads a constant in place of `value`, or went with it if it
    is zero."""

    node: str
    value: str
    zero: bool


def fold_branches(numbering: SliceNumbering) -> list[Branch]:
    """Replace operands that are always the same by constants, in place; if they add zeros, remove the node."""
    found = []
    for node in list(numbering.graph):
        if node.op_type not in COMBINING or node.domain != "" or len(node.inputs) != 2:
            continue
        out = node.outputs[0]
        for index, value in enumerate(node.inputs):
            other = node.inputs[1 - index]
            if value is None or other is None or value.producer() is None or is_constant(value):
                continue
            numbers = _level(numbering, value)
            if numbers is not None and _level(numbering, out) is None and _alike(numbering, other, out):
                found.append(Branch(node.name or out.name or "", value.name or "", not numbers.any()))
                _replace(numbering, node, index, numbers=numbers)
                break
    return found


def _alike(numbering: SliceNumbering, other: ir.Value, out: ir.Value) -> bool:
    """Whether an operand has the shape of the result at all sizes of dynamic dimensions, 1 among them."""
    analysis = numbering.analysis
    geometry = analysis.geometry
    views = [geometry.facts, *([geometry.other] if geometry.other is not None else [])]
    if any(view.shapes.get(other) != view.shapes.get(out) or other not in view.shapes for view in views):
        return False
    return all(view.shapes.get(other) == view.shapes.get(out) for view in single_views(analysis.model, analysis.inputs))


def _level(numbering: SliceNumbering, value: ir.Value) -> Array | None:
    """Return a tensor, of one axis longer than 1, that a value always equals when broadcast; None if there is none."""
    if not numbering.is_data(value):
        return None
    for axis in range(numbering.rank(value)):
        if numbering.tells(value, axis):
            slices = numbering.of(value, axis)
            if slices.constant.all():
                shape = [-1 if place == axis else 1 for place in range(numbering.rank(value))]
                return slices.factor.reshape(shape)
    return None


def _replace(numbering: SliceNumbering, node: ir.Node, index: int, numbers: Array) -> None:
    """Let a node read `numbers` at an input; a node that adds zeros is removed."""
    graph, out, other = numbering.graph, node.outputs[0], node.inputs[1 - index]
    assert other is not None
    adds = node.op_type in ("Add", "Sum") or (node.op_type == "Sub" and index == 1)
    if adds and not numbers.any():
        if out.is_graph_output():
            new = ir.Node("", "Identity", [other], num_outputs=1, name=node.name)
            graph.insert_before(node, new)
            step = new.outputs[0]
            step.shape, step.type = out.shape, out.type
            out.replace_all_uses_with(step, replace_graph_outputs=True)
            name, out.name = out.name, None
            step.name = name
        else:
            out.replace_all_uses_with(other)
        graph.remove(node, safe=True)
        return
    code = numbering.facts.dtypes[out]
    array = numbers.astype(ir.DataType(code).numpy())
    node.replace_input_with(index, add_constant(graph, f"{node.name or out.name}.constant", array))


def join_constants(model: ir.Model) -> None:
    """Store each weight of a recurrent operator as one tensor, in place: exporters compute it from parts by direction
    and gate."""
    joined = False
    for node in model.graph:
        for index in range(1, 4) if node.op_type in GATES else ():
            value = input_of(node, index)
            if value is not None and value.const_value is None and (array := _content(value)) is not None:
                node.replace_input_with(index, add_constant(model.graph, f"{value.name}.joined", array))
                joined = True
    if joined:
        drop_unused(model.graph)


def _content(value: ir.Value) -> Array | None:
    """Return the content of a value that is joined, cut or reshaped from stored tensors; None for any other value."""
    if value.const_value is not None:
        return None if value.is_graph_input() else value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type not in JOINING or node.domain != "":
        return None
    inputs = [None if v is None else _content(v) for v in node.inputs]
    if any(v is not None and array is None for v, array in zip(node.inputs, inputs, strict=True)):
        return None
    return fold_node(node, inputs)[value.index() or 0]


def drop_unused(graph: ir.Graph) -> list[ir.Node]:
    """Remove nodes and initializers of the main graph from which no output is computed; return the nodes."""
    gone = []
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
            gone.append(node)
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[value.name or ""]
    return gone
