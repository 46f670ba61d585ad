"""The reference of a structural cut: the original file with the removed positions forced to zero, or to what else
stands for an absent position there.

It is built by the plain onnx package from the file as the user gave it and from what the plan file lists, so
that agreement with it proves preparation, removal and saving at once, and anyone can build the same thing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunecli.arrays import Array, without
from prunecli.dependency.atoms import Neutral
from prunecli.dependency.neutral import lowest
from prunecli.model.protos import graphs
from prunecli.model.tensors import FLOATS
from prunecli.verify.outline import drop_unnamed, free_initializers
from prunecli.verify.pieces import value_bytes

Positions = Mapping[str, Mapping[int, Array]]
"""Value name -> axis -> positions, in the names of the user's file."""
NORMS = (
    "LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "InstanceNormalization",
    "GroupNormalization", "ReduceMean",
)  # fmt: skip
"""Operators whose statistics depend on the number of positions, which no scale can correct."""
_WHERE_SINCE = 9


@dataclass(frozen=True)
class Merged:
    """What is removed of an axis of dynamic length: its row-major factors are `split`, -1 the dynamic one, and factor k
    loses the positions `gone[k]`."""

    split: tuple[int, ...]
    gone: Mapping[int, Array]


@dataclass(frozen=True)
class Forced:
    """What to force to zero.

    `positions` are removed; zeros are forced at the values in `listed`, which is enough (`cut_listing`).
    `shapes` and `dtypes` (ONNX element types) are of all values. `averaged`: axes (value, axis) whose positions
    normalisations average over: there only kept positions are to count. `merged`: the same of axes that `positions`
    cannot list, because their lengths vary. `zeros`: what a stored tensor of integers holds where it stands for zeros;
    `zero_points`: the name of what stands for zero in a computed one ("": zero does). `neutral`: by value and axis,
    what stands for an absent position where zero does not (`dependency/neutral.py`).
    """

    positions: Positions
    listed: Collection[str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, int]
    averaged: Collection[tuple[str, int]] = field(default_factory=frozenset)
    merged: Mapping[str, Mapping[int, Merged]] = field(default_factory=dict)
    zeros: Mapping[str, Array] = field(default_factory=dict)
    zero_points: Mapping[str, str] = field(default_factory=dict)
    neutral: Mapping[str, Mapping[int, Neutral]] = field(default_factory=dict)

    @property
    def restricts(self) -> bool:
        """Whether a normalisation averages over an axis that is cut."""
        return any(self.averages(name) for name, _ in self.averaged)

    @property
    def chooses(self) -> bool:
        """Whether anything is removed that a choice of the largest goes by."""
        return any(axes.keys() & self.positions.get(name, {}).keys() for name, axes in self.neutral.items())

    def averages(self, name: str) -> bool:
        """Return whether normalisations average over a cut axis of the value."""
        lost = (*self.positions.get(name, ()), *self.merged.get(name, ()))
        return any((name, axis) in self.averaged for axis in lost)

    def less(self, name: str, value: Any) -> Any:
        """Return the value without the removed positions."""
        return without(value, self.positions.get(name, {}))

    def is_listed(self, name: str) -> bool:
        stands = name in self.zeros or name in self.zero_points
        return name in self.listed and (stands or self.dtypes.get(name, TensorProto.FLOAT) in FLOATS)


def masked_original(model: onnx.ModelProto, forced: Forced, restrict: bool = False) -> onnx.ModelProto:
    """Make every listed value zero at the listed positions; changes `model` in place and returns it.

    With `restrict`, normalisations that average over cut positions see the kept ones only.
    """
    free_initializers(model)
    for tensor in model.graph.initializer:
        if forced.is_listed(tensor.name) and (tensor.data_type in FLOATS or tensor.name in forced.zeros):
            tensor.CopyFrom(emptied(tensor, forced))
    drop_unnamed(model)
    editor = _Editor(model, forced)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        wanted = restrict and editor.averages(node)
        model.graph.node.extend(editor.restricted(node) if wanted else editor.masked(node))
    return model


def emptied(tensor: onnx.TensorProto, forced: Forced) -> onnx.TensorProto:
    """Return a stored tensor with what stands for absent positions at those of each axis."""
    array, zeros = np.array(numpy_helper.to_array(tensor)), forced.zeros.get(tensor.name)
    neutral = forced.neutral.get(tensor.name, {})
    for axis, gone in forced.positions[tensor.name].items():
        each = 1 if zeros is None else forced.shapes[tensor.name][axis] // array.shape[axis]  # numbers in a byte
        where = (slice(None),) * axis + (np.unique(gone // each),)
        array[where] = neutral_number(neutral.get(axis, "zero"), array.dtype) if zeros is None else zeros[where]
    return numpy_helper.from_array(array, tensor.name)


def neutral_number(neutral: Neutral, dtype: np.dtype[Any]) -> Array:
    """Return what stands for an absent position in numbers of a type."""
    return lowest(dtype) if neutral == "lowest" else np.zeros((), dtype)


def stored_bytes(path: Path) -> int:
    """Size of all weights of a model file, external data included."""
    model = onnx.load(str(path), load_external_data=False, format="protobuf")
    return sum(value_bytes(tensor) for graph in graphs(model) for tensor in graph.initializer)


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
            spread = keep.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            if name in self.forced.zeros or name in self.forced.zero_points:
                zero = self._zero_of(name, code)
                yield helper.make_node("Where", [self._constant(spread), source, zero], [target])
            else:
                neutral = self.forced.neutral.get(name, {}).get(axis, "zero")
                yield from self._mask(spread, source, target, code=code, neutral=neutral)
            source = target

    def _zero_of(self, name: str, code: int) -> str:
        """Return the integer that stands for zero in a tensor."""
        if name in self.forced.zeros:
            return self._constant(self.forced.zeros[name])
        point = self.forced.zero_points[name]
        return point or self._constant(np.zeros((), helper.tensor_dtype_to_np_dtype(code)))

    def _mask(self, keep: Array, source: str, target: str, code: int, neutral: Neutral) -> Iterator[onnx.NodeProto]:
        """Where(keep, x, neutral); x * keep + neutral * (1 - keep) where Where does not exist or has no kernel."""
        dtype = helper.tensor_dtype_to_np_dtype(code)
        number = neutral_number(neutral, dtype)
        if self.has_where and code in (TensorProto.FLOAT, TensorProto.DOUBLE):
            yield helper.make_node("Where", [self._constant(keep), source, self._constant(number)], [target])
            return
        kept = target if neutral == "zero" else self._name(target)
        yield helper.make_node("Mul", [source, self._constant(keep.astype(dtype))], [kept])
        if neutral != "zero":
            absent = np.where(keep, np.zeros((), dtype), number)
            yield helper.make_node("Add", [kept, self._constant(absent)], [target])

    # -- statistics over the kept positions ---------------------------------------------------------

    def averages(self, node: onnx.NodeProto) -> bool:
        """Whether a normalisation averages over an axis that is cut."""
        return node.op_type in NORMS and any(self.forced.averages(name) for name in (*node.input, *node.output))

    def restricted(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Gather the kept positions of every input, normalise, and scatter the results back."""
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
            for axis, merged in self.forced.merged.get(name, {}).items():
                kept_of = {k: np.delete(np.arange(merged.split[k]), gone) for k, gone in merged.gone.items()}
                steps = self._inside(
                    node.input[index], axis, len(self.forced.shapes[name]), split=merged.split, indices=kept_of
                )
                node.input[index] = steps[-1].output[0]
                yield from steps
        last = []
        for index, name in enumerate(node.output):
            if name in places:
                current = node.output[index] = self._name(name)
                for axis, gone in places[name].items():
                    last.append(self._gather(current, _places(self.forced.shapes[name][axis], gone), axis))
                    current = last[-1].output[0]
                last += self._masks(name, current)
            for axis, merged in self.forced.merged.get(name, {}).items():
                current = node.output[index] = self._name(name)
                left = tuple(n - len(merged.gone.get(k, ())) for k, n in enumerate(merged.split))
                back = {k: _places(merged.split[k], gone) for k, gone in merged.gone.items()}
                last += self._inside(current, axis, len(self.forced.shapes[name]), split=left, indices=back)
                last[-1].output[0] = name
        yield node
        yield from last

    def _lost(self, node: onnx.NodeProto, name: str) -> Mapping[int, Array]:
        """Return the positions that an input loses here: parameters lose those of the data, even if other nodes share
        them."""
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
        """Return the number of groups that keep a channel."""
        for attribute in node.attribute:
            gone = self.forced.positions.get(node.input[0], {}).get(1)
            if attribute.name == "num_groups" and gone is not None:
                channels = self.forced.shapes[node.input[0]][1]
                kept = np.delete(np.arange(channels), gone)
                attribute.i = len(np.unique(kept // (channels // attribute.i)))

    def _gather(self, source: str, indices: Array, axis: int) -> onnx.NodeProto:
        target = self._name(source)
        return helper.make_node("Gather", [source, self._constant(indices.astype(np.int64))], [target], axis=axis)

    def _inside(
        self, source: str, axis: int, rank: int, split: Sequence[int], indices: Mapping[int, Array]
    ) -> list[onnx.NodeProto]:
        """Gather along factors of a merged axis: reshape it into them, gather, merge them again."""
        shape = helper.make_node("Shape", [source], [self._name(source)])
        ends = [self._gather(shape.output[0], np.arange(a, b), 0) for a, b in ((0, axis), (axis + 1, rank)) if b > a]
        steps = [shape, *ends]

        def reshape(lengths: Sequence[int]) -> None:
            middle = [self._constant(np.array(lengths, np.int64))]
            before, after = ends[: axis > 0], ends[axis > 0 :]
            parts = [*(e.output[0] for e in before), *middle, *(e.output[0] for e in after)]
            steps.append(helper.make_node("Concat", parts, [self._name(source)], axis=0))
            steps.append(helper.make_node("Reshape", [current, steps[-1].output[0]], [self._name(source)]))

        current = source
        reshape(split)
        for place, picked in indices.items():
            steps.append(self._gather(steps[-1].output[0], picked, axis + place))
        current = steps[-1].output[0]
        reshape([-1])
        return steps

    def _constant(self, array: Array) -> str:
        name = self._name("constant")
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _name(self, stem: str) -> str:
        self.serial += 1
        return f"{stem}.reference.{self.serial}"


def _places(size: int, gone: Array) -> Array:
    """Return, for every old position, its index among the kept ones; removed ones get any index."""
    keep = np.ones(size, bool)
    keep[gone] = False
    found: Array = np.maximum(np.cumsum(keep) - 1, 0)
    return found
