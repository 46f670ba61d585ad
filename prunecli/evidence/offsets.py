"""Where a constant is added to what a layer computes, and how it is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.model.names import free_name, taken_names

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Offset:
    """A stored vector of which `sign` times itself is added to the layer's output: input `index` of `node`. `new`:
    there is none yet, and it would be an input of the layer's own."""

    node: ir.Node
    index: int
    sign: float = 1.0
    new: bool = False

    @property
    def value(self) -> ir.Value | None:
        return self.node.inputs[self.index] if self.index < len(self.node.inputs) else None

    @property
    def name(self) -> str:
        """Of the stored vector; empty if there is none yet."""
        return (self.value.name if self.value is not None else None) or ""

    def read(self, size: int) -> Array:
        """What it adds, (size,), float64."""
        stored = stored_array(self.value)
        return np.zeros(size) if stored is None else self.sign * np.broadcast_to(stored.reshape(-1), (size,))

    def content(self, added: Array) -> Array:
        """The stored vector that adds so much, in the type and shape of the present one."""
        value = self.value
        assert value is not None and value.const_value is not None
        tensor = value.const_value
        shape = tuple(tensor.shape.numpy()) if tensor.size == len(added) else (len(added),)
        return (self.sign * added).reshape(shape).astype(tensor.dtype.numpy())

    def write(self, graph: ir.Graph, added: Array, dtype: ir.DataType, name: str) -> None:
        """Let it add so much. A new one gets that type and name."""
        value = self.value
        if value is None or value.const_value is None:
            _put(graph, self.node, self.index, (self.sign * added).astype(dtype.numpy()), dtype, name)
        else:
            _put(graph, self.node, self.index, self.content(added), value.const_value.dtype, value.name or name)


def stored_array(value: ir.Value | None) -> Array | None:
    """The constant that a value holds, float64."""
    tensor = value.const_value if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy(), np.float64)


def _put(graph: ir.Graph, node: ir.Node, index: int, array: Array, dtype: ir.DataType, name: str) -> None:
    """Let a node read `array`: in the present initializer if the node is its only reader, else in a new one."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and value.name in graph.initializers and len(value.uses()) == 1:
        value.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=value.name)
        value.shape = ir.Shape(array.shape)
        return
    fresh = ir.Value(name=free_name(name, taken_names(graph)), shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
    fresh.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=fresh.name)
    graph.register_initializer(fresh)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, fresh)
