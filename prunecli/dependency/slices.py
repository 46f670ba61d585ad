"""The weights of a group's units: one matrix (units, width) per slice of a weight that the units touch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, without
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.model import Model, find_weights
from prunecli.model.constants import behind
from prunecli.model.weights import Weight
from prunecli.operators import operator_of
from prunecli.operators.layout import Layout
from prunecli.storage.stored import unmap

_NOWHERE = Path()
Role = Literal["out", "in", "bias", "norm", "other"]
"""out: rows of the weight that computes the unit; in: columns that read it; bias and norm: its parameters."""


@dataclass(frozen=True)
class Slice:
    """Axis `axis` of initializer `name` as the units of a group see it: `index` is (units, positions)."""

    name: str
    axis: int
    role: Role
    index: Array

    def take(self, array: Array) -> Array:
        """The slices of an array of the weight's shape, as (units, width), float64."""
        front = np.moveaxis(array, self.axis, 0)
        picked = front[self.index]
        return picked.reshape(len(self.index), -1).astype(np.float64)


class WeightSlices:
    """Reads the weights of a catalogue's groups."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        model = catalogue.analysis.model
        self._values = model.graph.initializers
        self._weights = {w.name: w for w in find_weights(Model(model, _NOWHERE, "")).all()}
        self._folds = dict(_norm_folds(model))
        self._roles: dict[tuple[str, int], Role] = {}

    def of(self, group: Group) -> Iterator[Slice]:
        """The slices of a group, in the order of `group.weights`."""
        table, offset = self.catalogue.analysis.components.table, self.catalogue.analysis.components.offset
        atoms, _ = self.catalogue.rows(group)
        where = self.catalogue.axis_of_atom[atoms]
        for name, axis in group.weights:
            root = table.find(table.axis(self._values[name], axis, 0))
            index = atoms[where == root].reshape(group.count, -1) - offset[root]
            yield Slice(name, axis, self.role(name, axis), index=index)

    def array(self, name: str) -> Array:
        """The weight, float64; a convolution that feeds a BatchNormalization as it is after folding that in:
        w * scale / sqrt(variance + epsilon)."""
        return np.asarray(self._folded(name), np.float64)

    def matrix(self, piece: Slice, gone: Mapping[int, Array] | None = None) -> Array:
        """The slices of a piece, (units, width) float64, without the positions that are gone of its other axes.

        The weight itself is read as it is stored: it may be large."""
        others = {axis: positions for axis, positions in (gone or {}).items() if axis != piece.axis}
        return piece.take(without(self._folded(piece.name), others))

    def width(self, piece: Slice, gone: Mapping[int, Array]) -> int:
        """Return the number of elements of one position of the piece's axis, without removed positions of the other
        axes."""
        tensor = self._values[piece.name].const_value
        assert tensor is not None
        left = [int(size) - len(gone.get(axis, ())) for axis, size in enumerate(tensor.shape.numpy())]
        return math.prod(left[: piece.axis] + left[piece.axis + 1 :])

    def _folded(self, name: str) -> Array:
        tensor = self._values[name].const_value
        assert tensor is not None
        array: Array = np.asarray(tensor.numpy())
        unmap(tensor)
        if name in self._folds:
            axis, factor = self._folds[name]
            array = array.astype(np.float64) * factor.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        return array

    def role(self, name: str, axis: int) -> Role:
        if (name, axis) not in self._roles:
            self._roles[name, axis] = _role(self._weights.get(name), axis)
        return self._roles[name, axis]

    @cached_property
    def norm_scales(self) -> set[str]:
        """Names of the BatchNormalization scales, one per channel."""
        norms = (n for n in self.catalogue.analysis.model.graph if n.op_type == "BatchNormalization")
        return {scale.name for node in norms if (scale := behind(node.inputs[1])) is not None and len(scale.shape) == 1}


def _role(weight: Weight | None, axis: int) -> Role:
    if weight is None:
        return "other"
    if weight.kind in ("bias", "norm"):
        return "bias" if weight.kind == "bias" else "norm"
    return "out" if weight.kind == "embedding" else _matrix_role(weight.layout, weight.shape, axis)


def _matrix_role(layout: Layout, shape: tuple[int, ...], axis: int) -> Role:
    """Number the positions of the stored axis and find the canonical axis along which the numbers vary."""
    labels = (np.arange(shape[axis]) % 251).astype(np.uint8)
    stored = np.broadcast_to(labels.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
    batch, rows, _, cols = (_varies(layout.canonical(stored), i) for i in range(4))
    if cols and not (rows or batch):
        return "in"
    return "out" if rows or batch else "other"


def _varies(array: Array, axis: int) -> bool:
    if array.shape[axis] < 2:
        return False
    return bool((array.take(0, axis) != array.take(1, axis)).any())


def _norm_folds(model: ir.Model) -> Iterator[tuple[str, tuple[int, Array]]]:
    """(weight name, (output axis, factor)) of each weight whose only reader is a BatchNormalization."""
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.inputs[0] is None:
            continue
        producer = node.inputs[0].producer()
        scale, variance = (behind(node.inputs[i]) for i in (1, 4))
        if producer is None or scale is None or variance is None or len(node.inputs[0].uses()) != 1:
            continue
        if len(scale.shape) != 1:  # a factor per element: opset 7 with spatial=0
            continue
        factor = scale.array() / np.sqrt(variance.array() + node.attributes.get_float("epsilon", 1e-5))
        weight = behind(producer.inputs[1]) if len(producer.inputs) > 1 else None
        rows = operator_of(producer).rows
        if weight is None or not weight.is_own or rows is None:
            continue
        if (axis := weight.axis(rows(producer))) is not None:
            yield weight.name, (axis, factor)
