"""Where a constant is added to what a layer computes, and how it is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.model.constants import Constant, behind
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
    def source(self) -> Constant | None:
        """What is stored; None if there is nothing yet."""
        return behind(self.node.inputs[self.index]) if self.index < len(self.node.inputs) else None

    @property
    def name(self) -> str:
        """Of the stored vector; empty if there is none yet."""
        return self.source.name if self.source is not None else ""

    def read(self, size: int) -> Array:
        """What it adds, (size,), float64."""
        source = self.source
        return np.zeros(size) if source is None else self.sign * np.broadcast_to(source.array().reshape(-1), (size,))

    def content(self, added: Array) -> Array:
        """The stored vector that adds so much, in the type and shape of the present one."""
        assert self.source is not None
        return self.source.stored(self._read_as(self.source, added))

    def _read_as(self, source: Constant, added: Array) -> Array:
        return (self.sign * added).reshape(source.shape if source.size == len(added) else (len(added),))

    def write(self, graph: ir.Graph, added: Array, dtype: ir.DataType, name: str) -> None:
        """Let it add so much: in the present initializer if nothing else reads that, else in a new one. One where there
        was none gets that type and name."""
        source = self.source
        if source is None:
            self._put(graph, self.sign * added, dtype, name)
        elif source.is_own and source.name in graph.initializers and (source.size == len(added) or not source.steps):
            put(source, source.stored(self._read_as(source, added)))
        else:
            self._put(graph, self._read_as(source, added), source.dtype, source.name)

    def _put(self, graph: ir.Graph, array: Array, dtype: ir.DataType, name: str) -> None:
        """Let the node read a new initializer."""
        fresh = ir.Value(name=free_name(name, taken_names(graph)), type=ir.TensorType(dtype))
        fresh.shape = ir.Shape(array.shape)
        fresh.const_value = ir.Tensor(np.ascontiguousarray(array.astype(dtype.numpy())), dtype=dtype, name=fresh.name)
        graph.register_initializer(fresh)
        if self.index >= len(self.node.inputs):
            self.node.resize_inputs(self.index + 1)
        self.node.replace_input_with(self.index, fresh)


def put(source: Constant, array: Array) -> None:
    """Store `array`, of the stored type and shape, where a constant is."""
    value = source.way[0]
    value.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=source.tensor.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)
