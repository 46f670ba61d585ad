"""The reference of the proof: the original graph in which removed positions are forced to zero."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.channels.edit import Removed
from prunecli.channels.views import shape_derived
from prunecli.model.facts import Facts
from prunecli.model.names import free_name, taken_names


def force_zero(model: ir.Model, removed: Removed, facts: Facts) -> None:
    """Change a prepared model in place: each listed value passes through Where(mask, value, 0).

    Constants are zeroed at the removed positions; values that are not floating-point are left alone (they are
    geometry or comparisons whose results are masked further on), and so is what is computed from shapes alone
    (a fill as long as X): a cut shortens it but keeps its content.
    """
    graph = model.graph
    for value in graph.initializers.values():
        axes = removed.get(value.name or "")
        tensor = value.const_value
        if axes and tensor is not None and tensor.dtype.is_floating_point():
            array = np.array(tensor.numpy())
            for axis, gone in axes.items():
                array[(slice(None),) * axis + (gone,)] = 0
            value.const_value = ir.Tensor(array, name=value.name, dtype=tensor.dtype)
    zeros: dict[int, ir.Value] = {}
    taken = taken_names(graph)
    derived = shape_derived(model, facts)
    for node in list(graph):
        for out in node.outputs:
            axes = removed.get(out.name or "")
            if axes and out not in derived and ir.DataType(facts.dtypes.get(out, 1)).is_floating_point():
                _mask(model, node, out, axes, facts, zeros, taken)


def _mask(
    model: ir.Model,
    node: ir.Node,
    out: ir.Value,
    axes: dict[int, np.ndarray],
    facts: Facts,
    zeros: dict[int, ir.Value],
    taken: set[str],
) -> None:
    shape = facts.shapes[out]
    uses = list(out.uses())
    current = out
    last = node
    dtype = facts.dtypes[out]
    if dtype not in zeros:
        zeros[dtype] = _constant(
            model, free_name(f"prune.zero.{dtype}", taken), np.zeros((), ir.DataType(dtype).numpy())
        )
    for axis, gone in axes.items():
        keep = np.ones(shape[axis], bool)
        keep[gone] = False
        mask = keep.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        name = free_name(f"prune.mask.{out.name}.{axis}", taken)
        where = ir.Node("", "Where", [_constant(model, name, mask), current, zeros[dtype]], num_outputs=1, name=name)
        where.outputs[0].name = free_name(f"{name}.out", taken)
        model.graph.insert_after(last, where)
        current, last = where.outputs[0], where
    for user, index in uses:
        user.replace_input_with(index, current)


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
    value.dtype = ir.DataType.from_numpy(array.dtype)
    model.graph.register_initializer(value)
    return value
