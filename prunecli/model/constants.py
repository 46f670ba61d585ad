"""The stored tensor behind a value: the one way to ask whether an input is constant, what it holds, and to change it.

Exporters feed parameters through Identity (equal tensors stored once), Cast (stored in half precision), Transpose and
Reshape. `behind` goes back along the operators that `uses` follows forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

import prunecli.model.attrs as attrs
from prunecli.model.layout import Shape, Step, Transpose
from prunecli.model.readers import MAX_DEPTH, moved
from prunecli.model.stored_tensors import overridable
from prunecli.storage.chain import stored

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Constant:
    """What a value holds. `way`: from the value that stores it to the one that is read, both included; `steps`: how
    elements move in between; `types`: what they are cast to, in order."""

    way: tuple[ir.Value, ...]
    tensor: ir.TensorProtocol
    steps: tuple[Step, ...]
    types: tuple[ir.DataType, ...]

    @property
    def name(self) -> str:
        """Of the initializer, or the output of the Constant node, that stores it."""
        return self.way[0].name or ""

    @property
    def size(self) -> int:
        return self.tensor.size

    @property
    def dtype(self) -> ir.DataType:
        """As it is read."""
        return self.types[-1]

    @property
    def shape(self) -> Shape:
        """As it is read."""
        shape = tuple(int(d) for d in self.tensor.shape.numpy())
        for step in self.steps:
            shape = step.apply(shape)
        return shape

    @property
    def is_own(self) -> bool:
        """Whether one node alone reads it, so that other contents change nothing else."""
        only = all(len(value.uses()) == 1 and not value.is_graph_output() for value in self.way)
        return only and not self.is_overridable

    @property
    def is_overridable(self) -> bool:
        """Whether it is to be left alone, because a caller may feed something else."""
        return overridable(self.way[0])

    def array(self) -> Array:
        """As it is read, float64."""
        array = self.tensor.numpy()
        for kind in self.types[1:]:
            array = array.astype(kind.numpy())
        for step in self.steps:
            array = step.forward(array)
        return np.asarray(array, np.float64)

    def stored(self, array: Array) -> Array:
        """What must be stored for the value to be `array`, in the stored type and shape."""
        for step in reversed(self.steps):
            array = step.backward(array)
        return np.ascontiguousarray(array.astype(self.tensor.dtype.numpy()))

    def axis(self, axis: int) -> int | None:
        """The stored axis that an axis of the value is; None where axes are merged or split."""
        axis %= len(self.shape)
        for step in reversed(self.steps):
            if not isinstance(step, Transpose):
                return None
            axis = step.perm[axis]
        return axis


def behind(value: ir.Value | None) -> Constant | None:
    """The constant that `value` is, through at most `MAX_DEPTH` operators that move elements or cast them."""
    if value is None:
        return None
    way = [value]
    while (tensor := stored(way[-1])) is None:
        node = way[-1].producer()
        if node is None or len(node.outputs) > 1 or not node.inputs or node.inputs[0] is None or len(way) > MAX_DEPTH:
            return None
        way.append(node.inputs[0])
    return _along(tuple(reversed(way)), tensor)


def _along(way: tuple[ir.Value, ...], tensor: ir.TensorProtocol) -> Constant | None:
    shape, steps, types = tuple(int(d) for d in tensor.shape.numpy()), list[Step](), [tensor.dtype]
    for value in way[1:]:
        node = value.producer()
        found = moved(node, 0, shape) if node is not None else None
        if node is None or found is None or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return None  # what is read is the rounded value
        steps += found
        shape = found[-1].apply(shape) if found else shape
        if node.op_type == "Cast":
            types.append(ir.DataType(attrs.integer(node, "to", 0)))
    return Constant(way, tensor, tuple(steps), tuple(types))
