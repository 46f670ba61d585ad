"""Chains: trees of standard operators that compute one dense tensor from what is stored.

onnxruntime folds a chain into a plain initializer while it loads the model. It folds a node only if the size of the
node's output is known beforehand and, until the whole pass is over, frees nothing: every value between the stored
bytes and the result costs memory and time at load. So chains have few dense-sized values, large tensors are computed
in pieces, and chains of large models wait for different passes (`Pass`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """A stored leaf of a chain: `compute(dense)` gives it, of this type and shape, when it is written. `piece`: which
    piece of the tensor it is for."""

    role: str
    dtype: ir.DataType
    shape: Shape
    compute: Callable[[Array], Array]
    piece: int = 0

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
class ChainPass:
    """An int64 1 in a vector, which onnxruntime does not know before its folding pass of this number, from 0."""

    number: int


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


Node = Op | Stream | Fixed | ChainPass
POSITIONS = ("bits", "gaps", "codes")
"""Roles of the streams that say where values lie: whatever a chain computes, it computes from one of them."""


def streams(node: Node) -> list[Stream]:
    """The stored leaves, in order."""
    if isinstance(node, Stream):
        return [node]
    return [found for i in node.inputs for found in streams(i)] if isinstance(node, Op) else []


def with_streams(node: Node, change: Callable[[Stream], Node]) -> Node:
    """The same tree with other leaves in place of its streams."""
    if isinstance(node, Stream):
        return change(node)
    if isinstance(node, Op):
        return replace(node, inputs=tuple(with_streams(i, change) for i in node.inputs))
    return node


def after(node: Node, number: int) -> Node:
    """The same tree, which cannot be folded before that pass: its positions have to be broadcast to [1], which changes
    nothing but cannot be done sooner."""

    def wait(stream: Stream) -> Node:
        return Op("Expand", (stream, ChainPass(number))) if stream.role in POSITIONS else stream

    return with_streams(node, wait) if number else node


@dataclass(frozen=True)
class Filler:
    """What ConstantOfShape repeats: one element of a type."""

    dtype: ir.DataType
    value: int = 0


def filled(node: Node, fill: int) -> Node:
    """The chain of a tensor in which `fill` stands where another has zeros: it is made for the tensor xor `fill`, of
    which only the positions matter, and gives what it holds."""

    def shift(stream: Stream) -> Stream:
        inner, is_value = stream.compute, stream.role == "values"

        def compute(array: Array) -> Array:
            mask = array.dtype.type(fill)
            made = inner(array ^ mask)
            return made ^ mask if is_value else made

        return replace(stream, compute=compute)

    if isinstance(node, Stream):
        return shift(node)
    if not isinstance(node, Op):
        return node
    attributes = tuple((n, replace(v, value=fill) if isinstance(v, Filler) else v) for n, v in node.attributes)
    return replace(node, inputs=tuple(filled(i, fill) for i in node.inputs), attributes=attributes)


def cast(node: Node, to: ir.DataType) -> Op:
    return Op("Cast", (node,), (("to", to),))


def reshape(node: Node, shape: Shape) -> Op:
    return Op("Reshape", (node, Fixed.of(shape, "int64")))


def zeros(shape: Shape, dtype: ir.DataType) -> Op:
    """A tensor of zeros; older opsets have no bfloat16 ones."""
    narrow = dtype == ir.DataType.BFLOAT16
    made = Op(
        "ConstantOfShape", (Fixed.of(shape, "int64"),), (("value", Filler(ir.DataType.FLOAT if narrow else dtype)),)
    )
    return cast(made, dtype) if narrow else made
