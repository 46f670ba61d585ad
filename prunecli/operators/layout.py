"""How an operator reads a stored tensor: as (batch, rows, taps, cols), whatever the stored axis order.

rows   outputs of the layer (neurons, filters)
cols   inputs of the layer: the reduction axis, along which N:M patterns run
taps   kernel positions of a convolution, 1 otherwise
batch  independent matrices: groups, LSTM directions, stacked MatMul operands
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Reshape:
    """`array.reshape(after)`; undone by `reshape(before)`."""

    before: Shape
    after: Shape

    def forward(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return array.reshape(self.after)

    def backward(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return array.reshape(self.before)

    def apply(self, shape: Shape) -> Shape:
        return self.after


@dataclass(frozen=True)
class Transpose:
    """`array.transpose(perm)`; undone by the inverse permutation."""

    perm: Shape

    def forward(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return array.transpose(self.perm)

    def backward(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        inverse = sorted(range(len(self.perm)), key=self.perm.__getitem__)
        return array.transpose(inverse)

    def apply(self, shape: Shape) -> Shape:
        return tuple(shape[axis] for axis in self.perm)


Step = Reshape | Transpose


@dataclass(frozen=True)
class Layout:
    """A stored tensor of `shape`, read through `steps` as `canonical_shape` = (batch, rows, taps, cols)."""

    shape: Shape
    steps: tuple[Step, ...]
    canonical_shape: tuple[int, int, int, int]

    def canonical(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """`array` of `shape` as (batch, rows, taps, cols).

        A view wherever numpy permits: always for C-contiguous input, unless the merged axes are not
        neighbours in memory (an Einsum operand in an unusual order), where numpy copies. Write through
        `restore`, never through the view.
        """
        for step in self.steps:
            array = step.forward(array)
        return array

    def restore(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The inverse: an array of `canonical_shape` (of any dtype, such as a mask) back in stored order."""
        for step in reversed(self.steps):
            array = step.backward(array)
        return array

    def after(self, steps: Sequence[Step], shape: Shape) -> Layout:
        """The layout of a tensor of `shape` that reaches this one through `steps`."""
        return Layout(shape, (*steps, *self.steps), self.canonical_shape)


def arrange(
    shape: Shape,
    split: Shape,
    *,
    batch: Sequence[int] = (),
    rows: Sequence[int] = (),
    taps: Sequence[int] = (),
    cols: Sequence[int] = (),
) -> Layout:
    """Split `shape` into the factors `split`, then order and merge those axes into the four roles.

    Every axis of `split` must appear in exactly one role, and `prod(split) == prod(shape)`.
    """
    roles = (tuple(batch), tuple(rows), tuple(taps), tuple(cols))
    order = tuple(axis for role in roles for axis in role)
    merged = [math.prod(split[axis] for axis in role) for role in roles]
    four = (merged[0], merged[1], merged[2], merged[3])
    steps: list[Step] = [Reshape(shape, split)] if split != shape else []
    if order != tuple(range(len(split))):
        steps.append(Transpose(order))
    moved = tuple(split[axis] for axis in order)
    if moved != four:
        steps.append(Reshape(moved, four))
    return Layout(shape, tuple(steps), four)


def matrix(shape: Shape, rows: int, cols: int) -> Layout:
    """A (stack of) matrices: `rows` and `cols` name their axes, all others are batch."""
    rank = len(shape)
    rows, cols = rows % rank, cols % rank
    batch = [axis for axis in range(rank) if axis not in (rows, cols)]
    return arrange(shape, shape, batch=batch, rows=(rows,), cols=(cols,))


def kernel(shape: Shape, group: int) -> Layout:
    """The weight (M, C/g, k...) of a convolution: batch = groups, rows = M/g, taps = prod(k), cols = C/g."""
    split = (group, shape[0] // group, *shape[1:])
    return arrange(shape, split, batch=(0,), rows=(1,), taps=range(3, len(split)), cols=(2,))


def transposed_kernel(shape: Shape, group: int) -> Layout:
    """The weight (C, M/g, k...) of a transposed convolution: batch = groups, rows = M/g, taps = prod(k), cols = C/g."""
    split = (group, shape[0] // group, *shape[1:])
    return arrange(shape, split, batch=(0,), rows=(2,), taps=range(3, len(split)), cols=(1,))


def vector(shape: Shape) -> Layout:
    """A bias, scale or mean of any rank: every element is a row of its own."""
    return arrange(shape, shape, rows=range(len(shape)))


def last_axis_cols(shape: Shape) -> Layout:
    """A table whose last axis is the vector, such as an embedding (V, D): rows = V, cols = D."""
    if not shape:
        return vector(shape)
    return arrange(shape, shape, rows=range(len(shape) - 1), cols=(len(shape) - 1,))
