"""What is known of the slices of a tensor along one axis: which are constant, and which are multiples of each other.

A slice is `x.take(p, axis)`. Slice p is `factor[p]` times the tensor that `group[p]` stands for. Group 0 is the number
one, so that a slice of group 0 is constant and equal to its factor; positions of another group are multiples of the
same unknown tensor. This is value numbering (Alpern, Wegman, Zadeck 1988) of slices, up to a factor.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli.arrays import Array

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
CONSTANT = 0
CHUNK = 1 << 22
"""Elements of a matrix that are looked at together."""
RELATIVE = 1.5
"""Units in the last place by which two rows may differ and count as multiples of each other: each element of a multiple
is rounded, and the one that it is divided by."""
BITS = 20
"""Of a ratio that are compared: fewer than float32 has, since both numbers are rounded."""


@dataclass(frozen=True)
class Slices:
    """The group and the factor of each position of an axis."""

    group: Ints
    factor: Floats

    def __len__(self) -> int:
        return len(self.group)

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which slices are constant: they equal their factor."""
        return np.asarray(self.group == CONSTANT)

    @property
    def zero(self) -> NDArray[np.bool_]:
        """Which slices are zero."""
        return np.asarray((self.group == CONSTANT) & (self.factor == 0))

    @property
    def tells(self) -> bool:
        """Return whether a slice is constant, or two are multiples of each other."""
        return bool(self.constant.any()) or len(np.unique(self.group)) < len(self.group)

    def where(self, mask: NDArray[np.bool_], other: Slices) -> Slices:
        """Return these slices, with those of `other` where the mask is set."""
        return Slices(np.where(mask, other.group, self.group), np.where(mask, other.factor, self.factor))

    def take(self, positions: Ints) -> Slices:
        """Return the slices of these positions."""
        return Slices(self.group[positions], self.factor[positions])


def constants(values: Any) -> Slices:
    """Return slices that equal these constants."""
    factor = np.asarray(values, np.float64)
    return Slices(np.zeros(len(factor), np.int64), factor)


class Groups:
    """Numbers for groups: what is computed alike from equal groups has one number."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._next = CONSTANT + 1

    def fresh(self, count: int) -> Ints:
        """Return group numbers that are in use nowhere else."""
        first, self._next = self._next, self._next + count
        return np.arange(first, first + count)

    def number(self, operation: Hashable, *columns: Array) -> Ints:
        """One number per row of the columns (group numbers, ratios of factors): equal rows, equal numbers.

        Args:
            operation: what is computed; rows of different operations have different numbers.
        """
        table = np.stack([_bits(column) for column in columns], 1)
        rows, inverse = np.unique(table, axis=0, return_inverse=True)
        found = np.array([self._of((operation, row.tobytes())) for row in rows], np.int64)
        return found[inverse.reshape(-1)]

    def _of(self, key: Hashable) -> int:
        if key not in self._numbers:
            self._numbers[key] = self._next
            self._next += 1
        return self._numbers[key]

    def joined(self, operation: Hashable, group: Ints, factor: Floats) -> Slices:
        """Slices that are each made of several: row p of the (positions, parts) arrays has the parts of slice p."""
        rows = np.arange(len(group))
        reference = factor[rows, (factor != 0).argmax(1)]
        level = (group == CONSTANT).all(1) & (factor == factor[:, :1]).all(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(reference[:, None] != 0, factor / reference[:, None], 0.0)
        nonzero = np.where(factor == 0, CONSTANT, group)
        found = self.number(operation, *nonzero.T, *ratio.T)
        return Slices(np.where(level, CONSTANT, found), np.where(level, factor[:, 0], reference))


def rounded(ratio: Floats) -> Floats:
    """Ratios as they are compared."""
    part, exponent = np.frexp(ratio)
    return np.asarray(np.ldexp(np.round(np.ldexp(part, BITS)), exponent - BITS))


def _bits(column: Array) -> Ints:
    """The bits of numbers as integers; negative zero is zero."""
    if column.dtype.kind == "f":
        return (column.astype(np.float64) + 0.0).view(np.int64)
    return column.astype(np.int64)


def multiples(rows: Array, eps: float) -> tuple[Ints, Floats]:
    """Which rows of a matrix are multiples of each other, to rounding.

    Args:
        eps: the distance from 1 to the next number of the type that the rows are stored in.
    Returns:
        (the first row that row r is a multiple of, -1 if it is zero; the factor of row r times that of its first row
        inverted gives the multiple).
    """
    scale, code, spread = _codes(rows)
    first = np.where(scale == 0, -1, np.arange(len(rows)))
    live = np.flatnonzero(scale != 0)
    order = live[np.argsort(code[live], kind="stable")]
    gaps = np.diff(code[order]) > 1e-6 * np.maximum(spread[order[1:]], spread[order[:-1]])
    for run in np.split(order, np.flatnonzero(gaps) + 1) if len(order) else ():
        if len(run) > 1:
            _match(rows, scale, np.sort(run), relative=RELATIVE * eps, first=first)
    return first, scale


def _codes(rows: Array) -> tuple[Floats, Floats, Floats]:
    """Per row: its largest element, the product of the row divided by that with a random vector, and the sum of the
    absolute terms of that product."""
    count, width = rows.shape
    scale, code, spread = np.zeros(count), np.zeros(count), np.zeros(count)
    direction = np.random.default_rng(0).standard_normal(width)
    step = max(1, CHUNK // max(width, 1))
    for low in range(0, count if width else 0, step):
        part = rows[low : low + step].astype(np.float64)
        size = np.abs(part)
        place = (size >= size.max(1, keepdims=True) * (1 - 1e-5)).argmax(1)
        scale[low : low + step] = top = part[np.arange(len(part)), place]
        divisor = np.where(top == 0, 1.0, top)
        code[low : low + step] = part @ direction / divisor
        spread[low : low + step] = size @ np.abs(direction) / np.abs(divisor)
    return scale, code, spread


def _match(rows: Array, scale: Floats, run: Ints, relative: float, first: Ints) -> None:
    """Sort rows of nearly equal code into those that are multiples of each other."""
    leaders: list[tuple[int, Floats]] = []
    for row in run.tolist():
        mine = rows[row].astype(np.float64) / scale[row]
        for leader, theirs in leaders:
            if (np.abs(mine - theirs) <= relative * np.maximum(np.abs(mine), np.abs(theirs))).all():
                first[row] = leader
                break
        else:
            leaders.append((row, mine))


def of_content(groups: Groups, name: str, array: Array, axis: int, eps: float) -> Slices:
    """Slices of a stored tensor."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    if rows.shape[1] == 1:
        return constants(rows[:, 0])
    first, scale = multiples(rows, eps)
    level = (rows == rows[:, :1]).all(1)
    found = groups.number(("content", name, axis), first)
    return Slices(np.where(level, CONSTANT, found), np.where(level, rows[:, 0].astype(np.float64), scale))
