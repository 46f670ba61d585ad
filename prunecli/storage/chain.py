"""Chains: trees of standard operators that compute one dense tensor from what is stored.

onnxruntime folds a chain into a plain initializer while it loads the model. It folds a node only if the node's
output shape is known beforehand and, until the whole pass is over, frees nothing: so every dense-sized value
between the stored bytes and the result costs memory and time at load, and chains are built to have few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """A stored leaf of a chain: `compute(dense)` gives it, of this type and shape, when it is written."""

    role: str
    dtype: ir.DataType
    shape: Shape
    compute: Callable[[Array], Array]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.bitwidth // 8


@dataclass(frozen=True)
class Fixed:
    """A small constant leaf; equal ones are stored once per graph."""

    dtype: str
    shape: Shape
    data: bytes

    @classmethod
    def of(cls, value: Any, dtype: str) -> Fixed:
        array = np.asarray(value, dtype)
        return cls(dtype, array.shape, array.tobytes())

    def array(self) -> Array:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Op:
    """An operator of the standard domain with one output. `shape` where onnxruntime cannot infer the output's."""

    type: str
    inputs: tuple[Node, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    shape: Shape | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether it computes the same for every tensor: such nodes are written once per graph."""
        return all(isinstance(i, Fixed) or (isinstance(i, Op) and i.is_fixed) for i in self.inputs)


Node = Op | Stream | Fixed


def streams(node: Node) -> list[Stream]:
    """The stored leaves, in order."""
    if isinstance(node, Stream):
        return [node]
    return [found for i in node.inputs for found in streams(i)] if isinstance(node, Op) else []


def cast(node: Node, to: ir.DataType) -> Op:
    return Op("Cast", (node,), (("to", to),))


def reshape(node: Node, shape: Shape) -> Op:
    return Op("Reshape", (node, Fixed.of(shape, "int64")))


def zeros(shape: Shape, dtype: ir.DataType) -> Op:
    """A tensor of zeros; older opsets have no bfloat16 ones."""
    narrow = dtype == ir.DataType.BFLOAT16
    made = Op("ConstantOfShape", (Fixed.of(shape, "int64"),), (("value", ir.DataType.FLOAT if narrow else dtype),))
    return cast(made, dtype) if narrow else made
