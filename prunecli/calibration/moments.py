"""Second moments of what weights read: E[x_j^2] for every input position j of a matrix or kernel.

The squares are added up inside the graph (ReduceSumSquare over all axes but j's), so that a run returns one short
vector per weight, however large the activations are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from prunecli.model.constants import behind
from prunecli.operators import operator_of
from prunecli.runtime import Session

Array = np.ndarray[Any, Any]
_AXES_AS_INPUT = 18
_SUM = "prunecli.moments."


@dataclass(frozen=True)
class MomentReading:
    """Axis `axis` of `weight` is contracted with axis `data_axis` (from the end) of the value `data`. `groups`:
    the axis is read once per group, on consecutive stretches of the data."""

    weight: str
    axis: int
    data: str
    data_axis: int
    groups: int = 1


def readings(model: ir.Model) -> list[MomentReading]:
    """Every contraction of a stored weight with computed data, in the main graph."""
    found = []
    for node in model.graph:
        sums = operator_of(node).sums
        for one in sums(node, partial(_rank, node)) if sums else ():
            stored, value = behind(node.inputs[one.weight]), node.inputs[one.data]
            if stored is None or value is None or behind(value) is not None:
                continue
            if (place := stored.axis(one.axis)) is not None:
                found.append(MomentReading(stored.name, place, value.name or "", one.data_axis, one.groups))
    return found


def _rank(node: ir.Node, index: int) -> int:
    found = behind(node.inputs[index])
    return len(found.shape) if found is not None else 0


def second_moments(
    model: ir.Model,
    ranks: Mapping[str, int],
    batches: Iterable[Mapping[str, Any]],
    open_session: Callable[..., Session] = Session.open,
) -> dict[str, Array]:
    """E[x_j^2] over all samples, positions of the other axes, and uses: weight -> one value per position.

    Args:
        model: prepared; not changed.
        ranks: of the values; what is not in it is not measured.
        batches: feeds.
    Raises:
        PruneError: onnxruntime cannot run the model on them.
    """
    wanted = [reading for reading in readings(model) if reading.data in ranks]
    places = {(r.data, r.data_axis): f"{_SUM}{number}" for number, r in enumerate(wanted)}
    if not wanted:
        return {}
    session = open_session(_summing(ir.to_proto(model), places, ranks))
    sums: dict[tuple[str, int], Array] = {}
    counts: dict[tuple[str, int], float] = {}
    names = [n for name in places.values() for n in (name, f"{name}.size")]
    for feed in batches:
        found = session.run(feed, names)
        for key, name in places.items():
            squares = np.asarray(found[name], np.float64)
            sums[key] = sums.get(key, 0.0) + squares
            counts[key] = counts.get(key, 0.0) + float(found[f"{name}.size"]) / max(len(squares), 1)
    out: dict[str, Array] = {}
    for reading in wanted:
        key = reading.data, reading.data_axis
        if key in sums:
            mean = (sums[key] / max(counts[key], 1.0)).reshape(reading.groups, -1).mean(axis=0)
            out[reading.weight] = out.get(reading.weight, 0.0) + mean
    return out


def _summing(
    model: onnx.ModelProto, places: Mapping[tuple[str, int], str], ranks: Mapping[str, int]
) -> onnx.ModelProto:  # fmt: skip
    """The model with the sums of squares, and the number of elements, as outputs."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    for (data, axis), name in places.items():
        nodes = [
            helper.make_node("Cast", [data], [f"{name}.cast"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Size", [data], [f"{name}.size"]),
            _sum_but(model, f"{name}.cast", ranks[data], axis, name, opset),
        ]
        model.graph.node.extend(nodes)
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}.size", onnx.TensorProto.INT64, []))
    return model


def _sum_but(
    model: onnx.ModelProto, source: str, rank: int, axis: int, name: str, opset: int
) -> onnx.NodeProto:  # fmt: skip
    """Sum of squares over every axis but one."""
    axes = [a for a in range(rank) if a != axis % rank]
    if opset < _AXES_AS_INPUT:
        return helper.make_node("ReduceSumSquare", [source], [name], axes=axes, keepdims=0)
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{name}.axes"))
    return helper.make_node("ReduceSumSquare", [source, f"{name}.axes"], [name], keepdims=0, noop_with_empty_axes=1)
