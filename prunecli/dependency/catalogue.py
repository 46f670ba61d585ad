"""What can be cut from a model, sorted into groups of like units, and why the rest cannot.

    unit    a minimal closed set of atoms (`units.py`): one channel everywhere it appears, one attention head
    group   units of the same structure: they touch the same axes in the same number of positions
    kind    channel, head, head_dim (the same dimension inside all heads) or width (an axis that a
            normalisation averages over, such as the hidden size: cutting it is an approximation)

Units of different groups never share atoms, except heads and the dimensions inside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from prunecli.dependency.analysis import Analysis
from prunecli.dependency.atoms import Ints
from prunecli.dependency.cut import Removed
from prunecli.errors import PruneError

Kind = Literal["channel", "head", "head_dim", "width", "block"]
KINDS: tuple[Kind, ...] = ("channel", "head", "head_dim", "width")
DEFAULT_KINDS: tuple[Kind, ...] = ("channel", "head")


@dataclass(frozen=True)
class Group:
    """Units `first` .. `first + count - 1` of the catalogue.

    `axes` are the representatives of the axes touched (atom table) and `per_unit` the positions that one unit
    has on each; `weights` are the (initializer, axis) slices, of which the first gives the name.
    """

    name: str
    kind: Kind
    first: int
    count: int
    axes: tuple[int, ...]
    per_unit: tuple[int, ...]
    weights: tuple[tuple[str, int], ...]
    approximation: str = ""

    @property
    def units(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True)
class Frozen:
    """An axis of a weight of which `positions` positions cannot be cut (of `size`), with the main reason."""

    tensor: str
    axis: int
    reason: str
    positions: int
    size: int


@dataclass
class Catalogue:
    """All units that may be cut, in groups. CSR: unit u has the atoms `atoms[start[u]:start[u + 1]]`."""

    analysis: Analysis
    groups: list[Group]
    start: Ints
    atoms: Ints
    frozen: list[Frozen]
    axis_of_atom: Ints

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.start) - 1

    @cached_property
    def group_of(self) -> Ints:
        """Group number of every unit."""
        return np.repeat(np.arange(len(self.groups)), [g.count for g in self.groups])

    def removed_atoms(self, units: np.ndarray) -> np.ndarray:
        """Mask over atoms for a mask over units."""
        out = np.zeros(len(self.axis_of_atom), bool)
        out[self.atoms[np.repeat(units, np.diff(self.start))]] = True
        return out

    def kept(self, units: np.ndarray) -> Ints:
        """Positions left on every axis (by representative) once the masked units are gone."""
        gone = np.bincount(self.axis_of_atom[self.removed_atoms(units)], minlength=len(self.sizes))
        return self.sizes - gone

    @cached_property
    def sizes(self) -> Ints:
        """Positions of every axis of the table, before."""
        return np.array([axis.size for axis in self.analysis.components.table.axes], np.int64)

    def removed(self, units: np.ndarray) -> Removed:
        """What `cut.remove` takes: positions per value and axis, for a mask over units."""
        return removed_positions(self.analysis, self.removed_atoms(units))


def removed_positions(analysis: Analysis, atoms: np.ndarray) -> Removed:
    """Positions per value and axis, for a mask over atoms."""
    solved = analysis.components
    hit = np.flatnonzero(np.bincount(axis_of_atoms(analysis)[atoms], minlength=len(solved.table.axes)))
    wanted = set(hit.tolist())
    out: Removed = {}
    for number, axis in enumerate(solved.table.axes):
        if axis.value is not None and solved.table.find(number) in wanted:
            out.setdefault(axis.value.name or "", {})[axis.index] = np.flatnonzero(atoms[solved.atoms(number)])
    return out


def split_of(analysis: Analysis, root: int) -> tuple[tuple[int, ...], dict[int, int]] | None:
    """An axis that factors of dynamic length take part in (channels x height x width), row-major: lengths, of which the
    dynamic one is -1, and which factor of the atom table the fixed ones are, by place. None if there are several -1."""
    table, geometry = analysis.components.table, analysis.geometry
    parts = next((parts for whole, parts in table.products if table.find(whole) == root), ())
    shown = [axis for axis in range(len(table.axes)) if table.axes[axis].value is not None]
    lengths, factors = list[int](), dict[int, int]()
    for part in parts:
        on = [table.axes[a] for a in shown if table.find(a) == table.find(part)]
        if on and all(a.value is not None and geometry.is_dynamic(a.value, a.index) for a in on):
            lengths += [] if lengths[-1:] == [-1] else [-1]
        else:
            factors[len(lengths)] = part
            lengths.append(table.size(part))
    return (tuple(lengths), factors) if lengths.count(-1) == 1 else None


def axis_of_atoms(analysis: Analysis) -> Ints:
    """The representative axis of every atom."""
    solved = analysis.components
    roots = [k for k in range(len(solved.table.axes)) if solved.table.find(k) == k]
    return np.repeat(np.array(roots, np.int64), [solved.table.size(k) for k in roots])


def parse_granularity(text: str) -> tuple[Kind, ...]:
    """`channel,head` or `all`; `block` is another matter (`blocks.py`). Raises PruneError."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if "block" in names:
        raise PruneError("--granularity block stands alone", "drop blocks first, then cut what is left")
    if "all" in names:
        return KINDS
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise PruneError(f"no granularity {unknown[0] if unknown else text!r}", "use channel, head, block or all")
    return tuple(kind for kind in KINDS if kind in names)
