"""The reference of a structural cut: the original file with the removed positions forced to zero.

It is built by the plain onnx package from the file as the user gave it and from what the plan file lists, so
that agreement with it proves preparation, removal and saving at once, and anyone can build the same thing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunecli.apply.outline import drop_unnamed, free_initializers, graphs

Array = np.ndarray[Any, Any]
Positions = Mapping[str, Mapping[int, Array]]
"""Value name -> axis -> positions, in the names of the user's file."""
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
NORMS = (
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "InstanceNormalization", "GroupNormalization",
    "ReduceMean",
)  # fmt: skip
"""Operators whose statistics depend on how many positions there are."""
_WHERE_SINCE = 9


@dataclass(frozen=True)
class Forced:
    """What to force to zero.

    `positions` are removed; zeros are forced at the values in `listed`, which is enough (`cut_listing`).
    `shapes` and `dtypes` (ONNX element types) are of all values. `averaged`: axes (value, axis) whose positions
    normalisations average over: there only kept positions are to count.
    """

    positions: Positions
    listed: Collection[str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, int]
    averaged: Collection[tuple[str, int]] = field(default_factory=frozenset)

    def is_listed(self, name: str) -> bool:
        return name in self.listed and self.dtypes.get(name, TensorProto.FLOAT) in FLOATS


def masked_original(model: onnx.ModelProto, forced: Forced, restrict: bool = False) -> onnx.ModelProto:
    """Make every listed value zero at the listed positions; changes `model` in place and returns it.

    With `restrict`, normalisations that average over cut positions see the kept ones only.
    """
    free_initializers(model)
    for tensor in model.graph.initializer:
        if forced.is_listed(tensor.name) and tensor.data_type in FLOATS:
            tensor.CopyFrom(zeroed(tensor, forced.positions[tensor.name]))
    drop_unnamed(model)
    editor = _Editor(model, forced)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        wanted = restrict and editor.averages(node)
        model.graph.node.extend(editor.restricted(node) if wanted else editor.masked(node))
    return model


def zeroed(tensor: onnx.TensorProto, axes: Mapping[int, Array]) -> onnx.TensorProto:
    """The tensor with zeros at the positions of each axis."""
    array = np.array(numpy_helper.to_array(tensor))
    for axis, gone in axes.items():
        array[(slice(None),) * axis + (gone,)] = 0
    return numpy_helper.from_array(array, tensor.name)


def stored_bytes(path: Path) -> int:
    """Size of all weights of a model file, external data included."""
    model = onnx.load(str(path), load_external_data=False)
    return sum(_bytes(tensor) for graph in graphs(model) for tensor in graph.initializer)


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.float64)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


@dataclass
class _Editor:
    model: onnx.ModelProto
    forced: Forced
    serial: int = 0

    @property
    def has_where(self) -> bool:
        return all(o.version >= _WHERE_SINCE for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    def masked(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node, followed by one mask per listed output and axis."""
        steps: list[onnx.NodeProto] = []
        for index, name in enumerate(node.output):
            if name and self.forced.is_listed(name):
                node.output[index] = f"{name}.unmasked"
                steps += self._masks(name, node.output[index])
        yield node
        yield from steps

    def _masks(self, name: str, source: str) -> Iterator[onnx.NodeProto]:
        shape, axes = self.forced.shapes[name], self.forced.positions[name]
        code = self.forced.dtypes.get(name, TensorProto.FLOAT)
        for number, (axis, gone) in enumerate(axes.items()):
            keep = np.ones(shape[axis], bool)
            keep[gone] = False
            target = name if number == len(axes) - 1 else self._name(name)
            yield self._mask(keep.reshape([-1 if i == axis else 1 for i in range(len(shape))]), source, target, code)
            source = target

    def _mask(self, keep: Array, source: str, target: str, code: int) -> onnx.NodeProto:
        """Where(keep, x, 0); x * keep where Where does not exist or has no kernel."""
        dtype = helper.tensor_dtype_to_np_dtype(code)
        if self.has_where and code in (TensorProto.FLOAT, TensorProto.DOUBLE):
            zero = self._constant(np.zeros((), dtype))
            return helper.make_node("Where", [self._constant(keep), source, zero], [target])
        return helper.make_node("Mul", [source, self._constant(keep.astype(dtype))], [target])

    # -- statistics over the kept positions ---------------------------------------------------------

    def averages(self, node: onnx.NodeProto) -> bool:
        """Whether a normalisation averages over an axis that is cut."""
        return node.op_type in NORMS and any(
            (name, axis) in self.forced.averaged
            for name in (*node.input, *node.output)
            for axis in self.forced.positions.get(name, ())
        )

    def restricted(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Gather the kept positions of every input, normalise, and put the results back in their places."""
        places = {name: self.forced.positions[name] for name in node.output if name in self.forced.positions}
        if node.op_type == "GroupNormalization":
            self._count_groups(node)
        lost = [self._lost(node, name) for name in node.input]
        for index, name in enumerate(node.input):
            for axis, gone in lost[index].items():
                kept = np.delete(np.arange(self.forced.shapes[name][axis]), gone)
                step = self._gather(node.input[index], kept, axis)
                node.input[index] = step.output[0]
                yield step
        last = []
        for index, name in enumerate(node.output):
            if name in places:
                current = node.output[index] = self._name(name)
                for axis, gone in places[name].items():
                    last.append(self._gather(current, _places(self.forced.shapes[name][axis], gone), axis))
                    current = last[-1].output[0]
                last += self._masks(name, current)
        yield node
        yield from last

    def _lost(self, node: onnx.NodeProto, name: str) -> Mapping[int, Array]:
        """Positions that an input loses here: parameters lose those of the data, even if other nodes share them."""
        data = node.output[0] if node.op_type == "EmbedLayerNormalization" else node.input[0]
        own = self.forced.positions.get(name, {})
        if name in ("", data) or node.op_type == "ReduceMean":
            return own
        shape, whole = self.forced.shapes[name], self.forced.shapes[data]
        first = 1 if node.op_type in ("InstanceNormalization", "GroupNormalization") else len(whole) - len(shape)
        lost = self.forced.positions.get(data, {})
        aligned = {axis: first + axis for axis in range(len(shape))}
        return {
            axis: lost[place] if place in lost and whole[place] == shape[axis] else own[axis]
            for axis, place in aligned.items()
            if axis in own or (place in lost and whole[place] == shape[axis])
        }

    def _count_groups(self, node: onnx.NodeProto) -> None:
        """Groups that keep any channel."""
        for attribute in node.attribute:
            gone = self.forced.positions.get(node.input[0], {}).get(1)
            if attribute.name == "num_groups" and gone is not None:
                channels = self.forced.shapes[node.input[0]][1]
                kept = np.delete(np.arange(channels), gone)
                attribute.i = len(np.unique(kept // (channels // attribute.i)))

    def _gather(self, source: str, indices: Array, axis: int) -> onnx.NodeProto:
        target = self._name(source)
        return helper.make_node("Gather", [source, self._constant(indices.astype(np.int64))], [target], axis=axis)

    def _constant(self, array: Array) -> str:
        name = self._name("constant")
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _name(self, stem: str) -> str:
        self.serial += 1
        return f"{stem}.reference.{self.serial}"


def _places(size: int, gone: Array) -> Array:
    """For every old position its place among the kept ones; a removed one has any."""
    keep = np.ones(size, bool)
    keep[gone] = False
    found: Array = np.maximum(np.cumsum(keep) - 1, 0)
    return found
