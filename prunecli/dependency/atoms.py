"""Atoms: every position of every axis of every tensor, and what ties them together.

Rules state facts about whole axes where they can (`tie`), about index maps where they must
(`tie_positions`), and about axes that are products of others (`product`). Nothing here knows operators.

A set R of atoms may be removed together if it is *closed*:

    tie       a in R  <=>  b in R
    freeze    a not in R
    product   for an axis P that a reshape splits into F1 x F2 x ...:
              p in R  <=>  some coordinate of p is in R
    interchange   positions of a factor are all alike, so that which of them go may differ by the coordinates before it:
              as many for each of those

The union of two closed sets is closed, so a cut is any union of minimal closed sets (`units.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from prunecli.errors import PruneError

Ints = NDArray[np.int64]
MOST_ATOMS = 1 << 27
"""Largest number of atoms: their indices take a gigabyte. Large models have a few hundred times fewer."""


Neutral = Literal["zero", "lowest"]
"""What stands for an absent position: zero, or the lowest number of the type."""


class LengthError(Exception):
    """Two axes that are said to be tied have different lengths."""


@dataclass(frozen=True)
class Axis:
    """One axis in the table. `value` is None for a virtual axis (a factor that no tensor shows)."""

    value: ir.Value | None
    index: int
    size: int


@dataclass(frozen=True)
class Freeze:
    axis: int
    reason: str
    positions: Ints | None = None


@dataclass(frozen=True)
class Absence:
    """To `reader`, a position of an axis is absent if it holds `neutral` (`neutral.py`)."""

    axis: int
    neutral: Neutral
    reader: ir.Node


@dataclass(frozen=True)
class LeastKept:
    """At least `count` positions of an axis stay, and why."""

    axis: int
    count: int
    reason: str


@dataclass
class AtomTable:
    """The relations stated by the rules. Axes are ints, `numbers` those of a tensor; `find` gives the representative of
    tied axes."""

    axes: list[Axis] = field(default_factory=list)
    numbers: dict[tuple[ir.Value, int], int] = field(default_factory=dict)
    freezes: list[Freeze] = field(default_factory=list)
    approximations: list[tuple[int, str]] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    quotas: list[LeastKept] = field(default_factory=list)
    products: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    alike: set[int] = field(default_factory=set)
    edges: list[tuple[int, Ints, int, Ints]] = field(default_factory=list)
    _parent: list[int] = field(default_factory=list)

    def axis(self, value: ir.Value, index: int, size: int) -> int:
        key = (value, index)
        if key not in self.numbers:
            self.numbers[key] = self._add(Axis(value, index, size))
        return self.numbers[key]

    def root(self, value: ir.Value, index: int) -> int | None:
        """Return the representative of an axis of a tensor; None where no rule has named it."""
        number = self.numbers.get((value, index))
        return None if number is None else self.find(number)

    def virtual(self, size: int) -> int:
        return self._add(Axis(None, 0, size))

    def _add(self, axis: Axis) -> int:
        self.axes.append(axis)
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def find(self, axis: int) -> int:
        root = axis
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[axis] != root:
            self._parent[axis], axis = root, self._parent[axis]
        return root

    def size(self, axis: int) -> int:
        return self.axes[axis].size

    def tie(self, a: int, b: int) -> None:
        """State that position i of a is position i of b. Sizes must be equal."""
        if self.size(a) != self.size(b):
            raise LengthError(f"axes of {self.size(a)} and {self.size(b)} positions meet")
        a, b = sorted((self.find(a), self.find(b)))
        self._parent[b] = a

    def tie_positions(self, a: int, ia: Ints, b: int, ib: Ints) -> None:
        """State that position ia[k] of a is position ib[k] of b, for each k."""
        self.edges.append((a, np.asarray(ia, np.int64), b, np.asarray(ib, np.int64)))

    def product(self, axis: int, factors: Sequence[int]) -> None:
        """State that position p of `axis` has the coordinates numpy.unravel_index(p, sizes of factors)."""
        live = tuple(f for f in factors if self.size(f) != 1)
        if len(live) == 1:
            self.tie(axis, live[0])
        elif live:
            self.products.append((axis, live))

    def interchange(self, axis: int) -> None:
        """State that all positions of an axis are alike: a tensor holds the same at each of them (copies that Expand
        makes), or an operator only counts them (the query heads that a key head serves)."""
        self.alike.add(axis)

    def freeze(self, axis: int, reason: str, positions: Ints | None = None) -> None:
        self.freezes.append(Freeze(axis, reason, positions))

    def approximate(self, axis: int, reason: str) -> None:
        """State that removing positions of this axis only approximates setting them to zero."""
        self.approximations.append((axis, reason))

    def mark(self, axis: int, kind: str) -> None:
        """Name the kind of the positions of this axis (`head`), for --granularity and the report."""
        self.marks.append((axis, kind))

    def absent(self, axis: int, neutral: Neutral, reader: ir.Node) -> None:
        """State that to this reader a position of a tensor's axis is absent if it holds `neutral`."""
        self.absences.append(Absence(axis, neutral, reader))

    def keep(self, axis: int, count: int, reason: str) -> None:
        """State that at least `count` positions of this axis stay."""
        self.quotas.append(LeastKept(axis, count, reason))


@dataclass(frozen=True)
class Product:
    """A product relation over components: `whole` has the factors' shape, `factors[i]` one entry a position. `alike`:
    the factor whose positions are interchangeable, -1 where none is."""

    whole: Ints
    factors: tuple[Ints, ...]
    alike: int = -1


@dataclass
class Components:
    """The solved table: one component per set of atoms that ties alone connect."""

    table: AtomTable
    offset: Ints  # first atom of each axis (tied axes share their atoms)
    component: Ints  # per atom
    count: int
    frozen: Ints  # per component: index into `reasons`, or -1
    approximate: Ints  # the same for approximations
    reasons: list[str]
    products: list[Product]

    def atoms(self, axis: int) -> Ints:
        start = int(self.offset[self.table.find(axis)])
        return np.arange(start, start + self.table.size(axis))

    def of_axis(self, axis: int) -> Ints:
        return self.component[self.atoms(axis)]


def solve(table: AtomTable) -> Components:
    """Connected components of the ties, with the freezes and products restated over components."""
    offset, total = _offsets(table)

    def atoms(axis: int, positions: Ints | None = None) -> Ints:
        start = offset[table.find(axis)]
        chosen: Ints = start + (np.arange(table.size(axis)) if positions is None else positions)
        return chosen

    left = [atoms(a, ia) for a, ia, _, _ in table.edges]
    right = [atoms(b, ib) for _, _, b, ib in table.edges]
    component, count = connected_components(total, _concat(left), _concat(right))
    reasons: list[str] = []
    frozen = np.full(count, -1, np.int64)
    approximate = np.full(count, -1, np.int64)
    for freeze in table.freezes:
        _note(frozen, component[atoms(freeze.axis, freeze.positions)], freeze.reason, reasons=reasons)
    for axis, entry in enumerate(table.axes):
        if entry.size == 1:
            _note(frozen, component[atoms(axis)], "the only position of its axis", reasons=reasons)
    for axis, reason in table.approximations:
        _note(approximate, component[atoms(axis)], reason, reasons=reasons)
    alike = _alike(table)
    products = [
        Product(
            component[atoms(whole)].reshape([table.size(f) for f in factors]),
            tuple(component[atoms(f)] for f in factors),
            next((k for k, f in enumerate(factors) if table.find(f) in alike), -1),
        )
        for whole, factors in table.products
    ]
    return Components(
        table,
        offset,
        component,
        count=count,
        frozen=frozen,
        approximate=approximate,
        reasons=reasons,
        products=products,
    )


def _alike(table: AtomTable) -> set[int]:
    """Return the representatives of the axes whose positions are interchangeable in every tensor that shows them."""
    others = {table.find(k) for k, axis in enumerate(table.axes) if axis.value is not None and k not in table.alike}
    return {table.find(axis) for axis in table.alike} - others


def _offsets(table: AtomTable) -> tuple[Ints, int]:
    offset = np.zeros(len(table.axes), np.int64)
    total = 0
    for axis in range(len(table.axes)):
        if table.find(axis) == axis:
            offset[axis] = total
            total += table.size(axis)
            if total > MOST_ATOMS:
                raise PruneError(f"the tensors of the model have more than {MOST_ATOMS:,} positions along their axes",
                                 "--input-shape and --dim state smaller sizes")  # fmt: skip
    return offset, total


def _note(where: Ints, components: Ints, reason: str, reasons: list[str]) -> None:
    """Record the reason of components that have none yet: reports give the first."""
    new = components[where[components] < 0]
    if new.size:
        reasons.append(reason)
        where[new] = len(reasons) - 1


def _concat(arrays: list[Ints]) -> Ints:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def ranges(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """(length of each range low[k] .. high[k] - 1, the numbers in all of them, one range after the other)."""
    lengths = high - low
    ends = np.cumsum(lengths)
    return lengths, np.arange(ends[-1] if len(ends) else 0) + np.repeat(low - ends + lengths, lengths)


def connected_components(n: int, left: Ints, right: Ints) -> tuple[Ints, int]:
    """Label the connected components of n nodes and the edges left[k] - right[k].

    Returns:
        (label of each node in 0..count-1, numbered by each component's first node; count).
    """
    from scipy.sparse import coo_array, csgraph

    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(n, n))
    count, labels = csgraph.connected_components(graph, directed=False)
    return labels.astype(np.int64), count
