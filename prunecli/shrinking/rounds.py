"""Removing surplus units, round by round: what goes may leave others without a reader, until nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.analysis import Analysis, analyse, analysed_shapes
from prunecli.dependency.catalogue import KINDS, Catalogue, catalogue
from prunecli.dependency.cut import UnfollowedError, remove
from prunecli.dependency.prepare import prepare, restore
from prunecli.errors import PruneError
from prunecli.model import Dims, Model, concrete_shapes
from prunecli.shrinking.folding import Branch, drop_unused, fold, fold_branches, join_constants
from prunecli.shrinking.numbering import Measured, SliceNumbering
from prunecli.shrinking.surplus import Finder, Surplus
from prunecli.types import Progress

MOST_ROUNDS = 100
UNREAD, ZERO, CONSTANT, EQUAL = "unread", "zero", "constant", "equal"
"""Why a unit goes: every weight that reads it is zero; it is always zero; it is always the same; it is a multiple of
another."""


@dataclass(frozen=True)
class UnitRow:
    """Units of one group that went in one round. `before`: how many there were; `reasons`: how many for which."""

    name: str
    kind: str
    before: int
    removed: int
    reasons: dict[str, int]


@dataclass
class Shrunk:
    """What the rounds did. `model` is None where nothing changed; `rounded`: whether weights were added up, so that
    results may differ in their last place."""

    model: ir.Model | None = None
    rows: list[UnitRow] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    rounded: bool = False


Measure = Callable[[Model, Finder], Measured]
"""Looks at the values of a model where units meet, on data."""


def remove_surplus(file: Model, dims: Dims, progress: Progress, measure: Measure | None = None) -> Shrunk:
    """Remove every unit that can be told to change nothing.

    Args:
        file: the model; its `ir` is not changed.
        measure: what is constant on data, if that counts as constant.
    """
    found, rounds = Shrunk(), _Rounds(file, dims, measure)
    for _ in progress(range(MOST_ROUNDS), "looking for what nothing needs"):
        if not rounds.one(found):
            break
    return found


@dataclass
class _Rounds:
    """The state between rounds. `whole`: axes that cannot follow a cut; `reasons`: of units whose constants or
    multiples went elsewhere in the last round, so that now nothing reads them."""

    file: Model
    dims: Dims
    measure: Measure | None
    whole: dict[tuple[str, int], str] = field(default_factory=dict)
    reasons: dict[tuple[str, int], str] = field(default_factory=dict)

    def one(self, found: Shrunk) -> bool:
        """Whether another round may find more."""
        work = prepare(self.file.ir if found.model is None else found.model)
        join_constants(work)
        file = replace(self.file, ir=work)
        shapes = analysed_shapes(file, self.dims, concrete_shapes(file, self.dims))
        analysis = analyse(work, shapes, whole=self.whole)
        finder = self._finder(file, analysis)
        if branches := fold_branches(finder.numbering):
            found.branches += branches
            found.rounded = found.rounded or not all(one.zero for one in branches)
            drop_unused(work.graph)
            restore(work)
            found.model = work
            return True
        surplus = finder.find(np.ones(finder.units.count, bool))
        if not surplus.removed.any():
            return False
        told = reasons_of(finder, surplus)
        moved = fold(finder, surplus)
        if moved.constants or moved.columns:
            self.reasons = {_key(finder.units, unit): why for unit, why in told.items()}
            found.rounded = True
            restore(work)
            found.model = work
            return True
        return self._cut(found, finder, surplus, told=told)

    def _finder(self, file: Model, analysis: Analysis) -> Finder:
        units = catalogue(analysis, KINDS)
        finder = Finder(units, SliceNumbering(analysis))
        return finder if self.measure is None else Finder(units, SliceNumbering(analysis, self.measure(file, finder)))

    def _cut(self, found: Shrunk, finder: Finder, surplus: Surplus, told: dict[int, str]) -> bool:
        analysis, units = finder.units.analysis, finder.units
        try:
            remove(analysis.model, units.removed(surplus.removed), analysis.inputs, other_inputs=analysis.other_inputs)
        except UnfollowedError as error:
            if error.axes.keys() <= self.whole.keys():
                raise
            self.whole |= error.axes
            return True
        for unit in told:
            told[unit] = self.reasons.get(_key(units, unit), told[unit])
        found.rows += _rows(units, surplus.removed, told)
        self.reasons = {}
        drop_unused(analysis.model.graph)
        found.model = analysis.model
        return True


def _key(units: Catalogue, unit: int) -> tuple[str, int]:
    group = units.groups[int(units.group_of[unit])]
    return group.name, unit - group.first


def reasons_of(finder: Finder, surplus: Surplus) -> dict[int, str]:
    """Why each unit goes."""
    merged = {one.unit for one in surplus.merges}
    out: dict[int, str] = {}
    for group in finder.units.groups:
        mine = np.flatnonzero(surplus.removed[group.units])
        zero, level = np.ones(group.count, bool), np.zeros(group.count, bool)
        for end in finder.ends if len(mine) else ():
            positions = finder.positions(group, end.value, end.axis)
            if positions is None or (end.heads and group.kind == "head"):
                continue
            slices = finder.numbering.of(end.value, end.axis)
            zero &= slices.zero[positions].all(1)
            level |= (end.excused & ~slices.zero)[positions].any(1)
        for number in mine.tolist():
            unit = group.first + number
            why = ZERO if zero[number] else CONSTANT if level[number] else UNREAD
            out[unit] = EQUAL if unit in merged else why
    return out


def _rows(units: Catalogue, removed: Array, told: dict[int, str]) -> Iterator[UnitRow]:
    for group in units.groups:
        mine = (np.flatnonzero(removed[group.units]) + group.first).tolist()
        if mine:
            whys = [told[unit] for unit in mine]
            counts = {why: whys.count(why) for why in dict.fromkeys(whys)}
            yield UnitRow(group.name, group.kind, group.count, removed=len(mine), reasons=counts)


def check_finite(file: Model) -> None:
    """Raise PruneError where a weight is NaN or infinite: zero times that is not zero."""
    from prunecli.model import find_weights
    from prunecli.model.sizes import is_finite

    for weight in find_weights(file).all():
        if not is_finite(weight.tensor):
            raise PruneError(f"the weight {weight.name!r} holds NaN or infinity, and zero times that is not zero",
                             "repair the model or export it again")  # fmt: skip
