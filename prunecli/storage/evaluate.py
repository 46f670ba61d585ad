"""What a chain computes, in numpy. Files are not trusted: every index and every size is checked before it is used.

Each rule takes the node, its inputs and the most elements it may make, and follows the operator's definition for the
forms that chains use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.registry import into
from prunecli.storage.fitting import TOGETHER
from prunecli.storage.stored import constant, unmap

MOST_BYTES = 64
"""Of all that is made on the way, per element of the result; chains of float64 need about 40."""
Rule = Callable[[ir.Node, list[Array], int], Array]
RULES: dict[str, Rule] = {}
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
TYPES = {*FLOATS, ir.DataType.INT32, ir.DataType.INT64}
"""What chains cast to."""
DAMAGED = "the file is damaged or was tampered with; pack the model again"


class Wrong(Exception):  # noqa: N818 - becomes a PruneError that names the tensor
    """What makes a chain impossible."""


rule = into(RULES)


def dense(value: ir.Value, where: str, recent: Recent | None = None) -> Array:
    """The tensor that the chain ending in `value` computes.

    Raises:
        PruneError: an index out of range, or parts that do not fit each other.
    """
    try:
        shape, dtype = shape_of(value), dtype_of(value)
        with np.errstate(all="ignore"):
            array = ChainEvaluation(max(math.prod(shape), 1 << 16), recent or Recent()).of(value)
        if array.shape != shape or array.dtype != dtype.numpy():
            raise Wrong(f"it comes out as {array.dtype} {array.shape}")
        return array
    except (Wrong, ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise PruneError(f"{where}: the packed tensor '{value.name}' makes no sense: {error}", DAMAGED) from error


@dataclass
class Recent:
    """The vector that was split last: the tensors it was split into are usually read one after the other."""

    value: ir.Value | None = None
    array: Array | None = None


class ChainEvaluation:
    """Evaluates each value once; no array may have more than a few times `size` elements, nor all of them together
    more than `MOST_BYTES` for each."""

    def __init__(self, size: int, recent: Recent) -> None:
        self.limit, self._left = 8 * size + 64, MOST_BYTES * size
        self._recent = recent
        self._known: dict[ir.Value, Array] = {}

    def of(self, value: ir.Value | None) -> Array:
        if value is None:
            raise Wrong("an input is missing")
        if (tensor := constant(value)) is not None:
            array = np.asarray(tensor.numpy())
            unmap(tensor)
            return array
        if value not in self._known:
            array = self._known[value] = self._computed(value)
            self._left -= array.nbytes if array.base is None else 0
            if self._left < 0:
                raise Wrong("it takes far more memory than it has elements")
        return self._known[value]

    def _computed(self, value: ir.Value) -> Array:
        node = value.producer()
        assert node is not None
        if node.op_type == "Compress":
            return self._compress(node)
        if node.op_type == "Split":
            return self._split(node, value)
        if node.op_type == "Expand" and constant(node.inputs[1]) is None:
            # to [1], which whoever took the chain for one has made sure of
            return self.of(node.inputs[0])
        return RULES[node.op_type](node, [self.of(i) for i in node.inputs], self.limit)

    def _compress(self, node: ir.Node) -> Array:
        """The positions of what is true. The numbers to choose from are never made."""
        first, flags = node.inputs[0], self.of(node.inputs[1])
        numbers = first.producer() if first is not None else None
        if numbers is None or numbers.op_type != "Range":
            raise Wrong("positions are not taken from a Range")
        start, end, step = (self.of(i).item() for i in numbers.inputs)
        if (start, step) != (0, 1) or flags.dtype != np.bool_ or flags.ndim != 1 or flags.size > end:
            raise Wrong("there are more bits than numbers to choose from")
        return np.flatnonzero(flags)

    def _split(self, node: ir.Node, value: ir.Value) -> Array:
        """One part of a vector, which may be a good deal larger."""
        sizes, flat = split_sizes(node), node.inputs[0]
        if flat is None or self._recent.value is not flat:
            whole = ChainEvaluation(max(sum(sizes), 1 << 16), self._recent).of(flat)
            if whole.shape != (sum(sizes),):
                raise Wrong(f"parts of {sum(sizes)} elements of {whole.size}")
            self._recent.value, self._recent.array = flat, whole
        assert self._recent.array is not None
        start = sum(sizes[: value.index() or 0])
        return self._recent.array[start : start + sizes[value.index() or 0]]


def split_sizes(node: ir.Node) -> list[int]:
    """The elements of each part."""
    stated = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if stated is not None and stated.size <= len(node.outputs):
        sizes = [int(size) for size in np.asarray(stated.numpy()).reshape(-1)]
    else:
        sizes = [int(size) for size in node.attributes["split"].as_ints()] if "split" in node.attributes else []
    if len(sizes) != len(node.outputs) or min(sizes, default=-1) < 0 or sum(sizes) > TOGETHER:
        raise Wrong("its parts have impossible sizes")
    return sizes


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of the dense tensor, from the constants that state it: nothing of its size is made."""
    if (tensor := constant(value)) is not None:
        return tuple(tensor.shape.numpy())
    node = _producer(value)
    if node.op_type == "Concat":
        axis, shapes = _number(node, "axis", 0), [shape_of(i) for i in node.inputs]
        if len({(shape[:axis], shape[axis + 1 :]) for shape in shapes}) != 1 or not 0 <= axis < len(shapes[0]):
            raise Wrong("its pieces do not fit each other")
        return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])
    if node.op_type == "Gather":  # looked up: one value for each of the places
        return shape_of(node.inputs[1])
    if node.op_type in ("Reshape", "ConstantOfShape"):
        stated = constant(node.inputs[-1])
        dims = np.asarray(stated.numpy()) if stated is not None and stated.size <= 64 else np.array([-1])
        if dims.ndim != 1 or dims.dtype != np.int64 or (dims < 0).any():
            raise Wrong("its shape is impossible")
        return tuple(int(d) for d in dims)
    return shape_of(node.inputs[0])


def dtype_of(value: ir.Value | None) -> ir.DataType:
    """The element type of the dense tensor."""
    if (tensor := constant(value)) is not None:
        return tensor.dtype
    node = _producer(value)
    if node.op_type == "Cast":
        return ir.DataType(_number(node, "to", 1))
    if node.op_type == "ConstantOfShape":
        return _fill(node).dtype
    return dtype_of(node.inputs[0])


def _producer(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    if node is None:
        raise Wrong("an input is missing")
    return node


def _fill(node: ir.Node) -> ir.TensorProtocol:
    return node.attributes["value"].as_tensor() if "value" in node.attributes else ir.tensor(np.zeros(1, np.float32))


def _number(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def _fits(size: int, limit: int) -> None:
    if size > limit:
        raise Wrong(f"a part of it would have {size} elements")


def _inside(index: Array, size: int) -> None:
    if index.dtype.kind not in "iu":
        raise Wrong("positions are not integers")
    if index.size and (index.min() < 0 or index.max() >= size):
        raise Wrong(f"position {index.max() if index.max() >= size else index.min()} of {size}")


@rule("Cast")
def _cast(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    to = ir.DataType(_number(node, "to", 1))
    if to not in TYPES or inputs[0].dtype.kind in "OUSc":
        raise Wrong(f"a part of it is cast to {to.name}")
    return inputs[0].astype(to.numpy())


@rule("Mul")
def _mul(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    if np.broadcast_shapes(*(i.shape for i in inputs)) != inputs[0].shape or inputs[0].dtype != inputs[1].dtype:
        raise Wrong("scales do not fit the values")
    return np.asarray(inputs[0] * inputs[1])


@rule("Expand")
def _expand(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    shape = [int(d) for d in inputs[1]]
    _fits(math.prod(shape), limit)
    return np.broadcast_to(inputs[0], shape)


@rule("Reshape")
def _reshape(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    return inputs[0].reshape([int(d) for d in inputs[1]])


@rule("Transpose")
def _transpose(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    return inputs[0].transpose(node.attributes["perm"].as_ints())


@rule("Slice")
def _slice(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    return inputs[0][int(inputs[1].item()) : int(inputs[2].item())]


@rule("Gather")
def _gather(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    table, index = inputs
    _inside(index, len(table))
    _fits(index.size * math.prod(table.shape[1:]), limit)
    return np.take(table, index, axis=0)


@rule("CumSum")
def _cumsum(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    return np.cumsum(inputs[0], axis=int(inputs[1].item()), dtype=inputs[0].dtype)


@rule("Concat")
def _concat(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    if len({array.dtype for array in inputs}) != 1:
        raise Wrong("its pieces are of different types")
    _fits(sum(array.size for array in inputs), limit)
    return np.concatenate(inputs, axis=_number(node, "axis", 0))


@rule("ConstantOfShape")
def _constant_of_shape(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    shape, value = [int(d) for d in inputs[0]], _fill(node).numpy()
    _fits(math.prod(shape), limit)
    return np.full(shape, value.item(), value.dtype)


@rule("ScatterElements")
def _scatter_elements(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    data, index, values = inputs[0].copy(), inputs[1], inputs[2]
    axis = _number(node, "axis", 0)
    fits = index.shape == values.shape and index.ndim == data.ndim and 0 <= axis < data.ndim
    others = [(i, d) for at, (i, d) in enumerate(zip(index.shape, data.shape, strict=False)) if at != axis]
    if not fits or any(i != d for i, d in others) or values.dtype != data.dtype:
        raise Wrong(f"positions of shape {index.shape} for values of shape {values.shape}")
    _inside(index, data.shape[axis])
    if data.ndim == 1:
        data[index] = values
    else:
        np.put_along_axis(data, index.astype(np.int64), values, axis)
    return data


@rule("ScatterND")
def _scatter_nd(node: ir.Node, inputs: list[Array], limit: int) -> Array:
    data, index, values = inputs[0].copy(), inputs[1], inputs[2]
    if index.ndim != 2 or index.shape[1] != 1 or values.shape != (len(index), *data.shape[1:]):
        raise Wrong(f"positions of shape {index.shape} for values of shape {values.shape}")
    _inside(index, len(data))
    data[index[:, 0]] = values
    return data
