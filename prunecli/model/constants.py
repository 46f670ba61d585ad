"""Stored tensors and what reads them: where one is stored, who reads it, and which one is behind a value.

A constant is an initializer, or an attribute of a Constant node (`Holder`).

Exporters feed parameters through Identity (equal tensors stored once), Cast (stored in half precision), Transpose and
Reshape. `readers` follows such operators, and function calls, forward from a stored tensor, also through Slice, Split
and Concat. `is_constant` goes back along all of them; `behind` names the one stored tensor that a value is, what it
holds, and how to change it, so that it ends where tensors are taken apart or put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.model.constant_values import fold
from prunecli.model.graphs import all_graphs
from prunecli.operators import Refused, Role, operator_of, role_of
from prunecli.operators.attributes import UnreadableAttributeError, integer, integers
from prunecli.operators.layout import Reshape, Shape, Step, Transpose
from prunecli.operators.operator import input_of
from prunecli.registry import into
from prunecli.storage.stored import stored

INTERFACE = "it is also a graph input, so that a caller may feed other values; --include with its name allows changes"
_NAMED = "prunecli.named"
FLOAT_ATTRIBUTES = ("value_float", "value_floats")


@dataclass(frozen=True)
class Holder:
    """A stored constant. `node` is the Constant node, None for an initializer."""

    value: ir.Value
    graph: ir.Graph
    node: ir.Node | None = None

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        tensor = stored(self.value)
        assert tensor is not None
        return tensor

    def put(self, tensor: ir.TensorProtocol) -> None:
        """Store `tensor` in place of the present one."""
        if self.node is None:
            self.value.const_value = tensor
        else:
            for name in FLOAT_ATTRIBUTES:
                self.node.attributes.pop(name, None)
            self.node.attributes["value"] = ir.AttrTensor("value", tensor)
            if self.value.const_value is not None:
                self.value.const_value = tensor
        if self.value.shape is not None:
            self.value.shape = ir.Shape(tensor.shape.numpy())

    @property
    def overridable(self) -> bool:
        """See `overridable`."""
        return overridable(self.value)


def overridable(value: ir.Value) -> bool:
    """Whether a stored tensor is part of the model's interface and to be left alone: an initializer that is a graph
    input too, so that a caller may feed other values of its shape, and that the user has not named (`name_inputs`)."""
    return value.is_initializer() and value.is_graph_input() and _NAMED not in value.meta


def name_inputs(model: ir.Model, patterns: Iterable[str]) -> None:
    """Allow changes of the initializers that are graph inputs too and whose name matches one of the patterns."""
    for value in model.graph.inputs:
        if value.is_initializer() and any(fnmatchcase(value.name or "", pattern) for pattern in patterns):
            release(value)


def release(value: ir.Value) -> None:
    """Allow changes, because the user named it."""
    value.meta[_NAMED] = True


def holders(model: ir.Model) -> Iterator[Holder]:
    """Every tensor constant of the model, in graph order; the main graph first, functions last."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield Holder(value, graph)
        for node in graph:
            if _holds_tensor(node):
                yield Holder(node.outputs[0], graph, node)


def _holds_tensor(node: ir.Node) -> bool:
    if node.op_type != "Constant" or node.domain != "" or not node.outputs:
        return False
    return any(name in node.attributes and not node.attributes[name].is_ref() for name in ("value", *FLOAT_ATTRIBUTES))


MAX_DEPTH = 64


@dataclass(frozen=True)
class Reader:
    """Input `index` of `node` reads the constant as `shape`, after `steps`; `answer` is its role there."""

    node: ir.Node
    index: int
    shape: Shape
    steps: tuple[Step, ...]
    answer: Role | Refused | None

    @property
    def op(self) -> str:
        return self.node.op_type


Through = Callable[[ir.Node, Shape], tuple[Step, ...] | None]
TRANSPARENT: dict[str, Through] = {}
PARTS = ("Slice", "Split", "Concat")
"""Operators whose result is not one stored tensor."""
ROUNDED = ("QuantizeLinear", "DequantizeLinear")
"""Operators whose result has other values than the stored tensor."""


through = into(TRANSPARENT)
"""Register how an operator moves (never changes) the elements of its first input."""


def readers(model: ir.Model, value: ir.Value, shape: Shape) -> Iterator[Reader]:
    """Every final reader of `value`, once. Shape and Size do not read the values and are left out."""
    found: set[tuple[ir.Node, int]] = set()
    trail = _Trail(model)
    for reader in _readers(trail, value, shape, steps=(), depth=0):
        if (reader.node, reader.index) not in found:
            found.add((reader.node, reader.index))
            yield reader


@dataclass
class _Trail:
    """What one search has passed: parts of a tensor may reach the same place on many ways."""

    model: ir.Model
    passed: set[tuple[ir.Value, tuple[Step, ...]]] = field(default_factory=set)


def _readers(trail: _Trail, value: ir.Value, shape: Shape, steps: tuple[Step, ...], depth: int) -> Iterator[Reader]:
    if (value, steps) in trail.passed:
        return
    trail.passed.add((value, steps))
    for node, index in value.uses():
        function = trail.model.functions.get(node.op_identifier())
        if operator_of(node).of_shape:
            continue
        if function is not None and depth < MAX_DEPTH and index < len(function.inputs):
            yield from _readers(trail, function.inputs[index], shape, steps=steps, depth=depth + 1)
            continue
        found = moved(node, index, shape) if depth < MAX_DEPTH else None
        if found is None:
            yield Reader(node, index, shape, steps=steps, answer=role_of(node, index, shape))
            continue
        after = found[-1].apply(shape) if found else shape
        for out in node.outputs:
            yield from _readers(trail, out, after, steps=(*steps, *found), depth=depth + 1)


def moved(node: ir.Node, index: int, shape: Shape) -> tuple[Step, ...] | None:
    """How a node moves the elements of an input of that shape, changing none; None if it does something else."""
    movable = node.domain == "" and (index == 0 or node.op_type == "Concat")
    rule = TRANSPARENT.get(node.op_type) if movable else None
    try:
        return rule(node, shape) if rule else None
    except (UnreadableAttributeError, IndexError, TypeError, ValueError):
        return None


@through("Identity")
def _identity(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    return ()


@through("Cast")
def _cast(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    """Between floating-point types a zero stays a zero."""
    to = ir.DataType(integer(node, "to", 0))
    return () if to.is_floating_point() else None


@through("QuantizeLinear")
def _quantise(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    """Rounded to whole steps and back, a zero stays a zero; the type between is read by nothing else."""
    out = node.outputs[0]
    back = all(use.idx == 0 and _undoes(use.node, node) for use in out.uses())
    return () if back and out.uses() and not out.is_graph_output() else None


@through("DequantizeLinear")
def _dequantise(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    return () if before is not None and _undoes(node, before) else None


def _undoes(after: ir.Node, before: ir.Node) -> bool:
    """Whether a DequantizeLinear makes zeros of what the QuantizeLinear before it made of zeros: one zero point."""
    if after.op_type != "DequantizeLinear" or before.op_type != "QuantizeLinear":
        return False
    return same_zero_point(input_of(after, 2), input_of(before, 2))


def same_zero_point(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two zero points, stored or the same value, are alike; an absent one is 0."""
    held = [np.zeros(1, np.int8) if value is None else tensor.numpy() if (tensor := stored(value)) is not None else None
            for value in (one, other)]  # fmt: skip
    return one is other or (all(array is not None for array in held) and bool(np.all(held[0] == held[1])))


@through(*PARTS)
def _parts(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    """Constants taken apart and put together again (gates of an LSTM, packed projections).

    Which axes are rows and columns does not change, so that the layout is that of the whole stored tensor.
    """
    return () if all(value is None or is_constant(value) for value in node.inputs) else None


def is_constant(value: ir.Value) -> bool:
    """Whether the value follows from stored constants by moving elements only, in at most MAX_DEPTH steps."""
    waiting: set[ir.Value | None] = {value}
    passed: set[ir.Value | None] = set()
    for _ in range(MAX_DEPTH + 1):
        passed |= waiting
        behind = [_moved_from(each) for each in waiting]
        if any(inputs is None for inputs in behind):
            return False
        waiting = {each for inputs in behind for each in inputs or ()} - passed
    return not waiting


def _moved_from(value: ir.Value | None) -> Sequence[ir.Value | None] | None:
    """What the elements of a value come from: nothing if it is stored, None if they are not only moved."""
    if value is None or stored(value) is not None:
        return ()
    node = value.producer()
    if node is None or node.domain != "":
        return None
    return node.inputs if node.op_type in TRANSPARENT else None


@through("Transpose")
def _transpose(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    perm = integers(node, "perm") or tuple(reversed(range(len(shape))))
    return (Transpose(perm),) if sorted(perm) == list(range(len(shape))) else None


@through("Flatten")
def _flatten(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    axis = integer(node, "axis", 1) % (len(shape) + 1)
    return (Reshape(shape, (math.prod(shape[:axis]), math.prod(shape[axis:]))),)


@through("Reshape", "Squeeze", "Unsqueeze")
def _reshaped(node: ir.Node, shape: Shape) -> tuple[Step, ...] | None:
    """The row-major order stays."""
    given = [_constant(value) for value in node.inputs[1:]]
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    if any(value is not None and array is None for value, array in zip(node.inputs[1:], given, strict=True)):
        return None
    after = fold(node, [np.empty(shape, np.void), *given])[0].shape
    return (Reshape(shape, after),)


def _constant(value: ir.Value | None) -> Array | None:
    """The content of a short stored vector."""
    tensor = stored(value)
    return None if tensor is None or tensor.size > 64 else tensor.numpy().reshape(-1)


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
        shape = tuple(self.tensor.shape.numpy())
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
        return np.asarray(self.read(), np.float64)

    def read(self) -> Array:
        """As it is read."""
        array = self.tensor.numpy()
        for kind in self.types[1:]:
            array = array.astype(kind.numpy())
        for step in self.steps:
            array = step.forward(array)
        return np.asarray(array)

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
    """The stored tensor that `value` is, through at most `MAX_DEPTH` operators that move elements or cast them; None
    for a part of one, for several put together, and for what is computed."""
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
    shape, steps, types = tuple(tensor.shape.numpy()), list[Step](), [tensor.dtype]
    for value in way[1:]:
        node = value.producer()
        found = moved(node, 0, shape) if node is not None else None
        if node is None or found is None or node.op_type in (*PARTS, *ROUNDED):
            return None
        steps += found
        shape = found[-1].apply(shape) if found else shape
        if node.op_type == "Cast":
            types.append(ir.DataType(integer(node, "to", 0)))
    return Constant(way, tensor, tuple(steps), types=tuple(types))
