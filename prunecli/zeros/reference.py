"""The original model with its weights masked, or replaced, by numpy, built by the plain onnx package alone.

It shares no code with this program's loader and saver but for where external data lies, so that agreement with it
proves them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.model.external_data import read_whole
from prunecli.model.protos import graphs, nodes
from prunecli.zeros.zero import Zeroed


class TensorSlot(NamedTuple):
    """A stored tensor: how to read it, and how to put another in its place."""

    read: Callable[[], Array]
    put: Callable[[onnx.TensorProto], object]


def masked_reference(path: Path, found: Sequence[Zeroed]) -> onnx.ModelProto:
    """The model at `path` with `numpy.where(drop, 0, w)` in place of every weight (of fitted ones the new w).

    Raises:
        PruneError: a weight is not found in the file.
    """
    model = read_whole(path)
    slots = _slots(model)
    for one in found:
        slot, values = _take(slots, one)
        slot.put(numpy_helper.from_array(one.expected(values), one.weight.holder.name))
    return model


def _slots(model: onnx.ModelProto) -> dict[str, list[TensorSlot]]:
    """Every stored tensor, by name."""
    slots: dict[str, list[TensorSlot]] = {}
    for graph in graphs(model):
        for tensor in graph.initializer:
            slot = TensorSlot(partial(numpy_helper.to_array, tensor), tensor.CopyFrom)
            slots.setdefault(tensor.name, []).append(slot)
        for sparse in graph.sparse_initializer:
            slot = TensorSlot(partial(_densified, sparse), partial(_put_dense, graph, sparse))
            slots.setdefault(sparse.values.name, []).append(slot)
    for node in nodes(model):
        if node.op_type == "Constant" and node.output:
            slot = TensorSlot(partial(_constant_value, node), partial(_put_constant, node))
            slots.setdefault(node.output[0], []).append(slot)
    return slots


def _take(slots: dict[str, list[TensorSlot]], one: Zeroed) -> tuple[TensorSlot, Array]:
    """The slot of that name which holds the weight's values; of equal ones, in two branches, each once."""
    name, wanted = one.weight.holder.name, np.asarray(one.stored.numpy())
    for slot in slots.get(name, []):
        values = slot.read()
        if values.dtype == wanted.dtype and values.shape == wanted.shape and values.tobytes() == wanted.tobytes():
            slots[name].remove(slot)
            one.release()
            return slot, values
    raise PruneError(f"internal: {name} was not found again in the original", "please report this")


def _constant_value(node: onnx.NodeProto) -> Array:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value, np.float32) if "float" in node.attribute[0].name else np.empty(0)


def _put_constant(node: onnx.NodeProto, tensor: onnx.TensorProto) -> None:
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", tensor))


def _densified(sparse: onnx.SparseTensorProto) -> Array:
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = values
    else:
        dense[tuple(places.T)] = values
    return dense


def _put_dense(graph: onnx.GraphProto, sparse: onnx.SparseTensorProto, tensor: onnx.TensorProto) -> None:
    graph.sparse_initializer.remove(sparse)
    graph.initializer.append(tensor)
