"""What can be cut from a model, sorted into groups of like units, and why the rest cannot.

    unit    a minimal closed set of atoms (`units.py`): one channel everywhere it appears, one attention head
    group   units of the same structure: they touch the same axes in the same number of positions
    kind    channel, head, head_dim (the same dimension inside all heads), width (an axis that a normalisation averages
            over, such as the hidden size: cutting it is an approximation, unless it has no mean), expert (a whole one
            of a mixture, with what the router has of it), or block (a whole residual block)

Units of different groups never share atoms, except heads and the dimensions inside them. Groups within a block go
with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir

from prunecli.dependency.analysis import Analysis
from prunecli.dependency.atoms import Axis, Ints, ranges
from prunecli.dependency.blocks import Dead, ResidualBlock, dead_without, find_blocks
from prunecli.dependency.cut import Removed
from prunecli.dependency.prepare import plan_names
from prunecli.dependency.units import Family
from prunecli.errors import PruneError

Kind = Literal["channel", "head", "head_dim", "width", "expert", "vocabulary", "block"]
KINDS: tuple[Kind, ...] = ("channel", "head", "head_dim", "width", "expert", "vocabulary", "block")
DEFAULT_KINDS: tuple[Kind, ...] = ("channel", "head")
Orders = Mapping[str, Sequence[Sequence[int]]]
"""By name of a group, for each part of its units: of which unit every unit takes it."""


@dataclass(frozen=True)
class Group:
    """Units `first` .. `first + count - 1` of the catalogue; a residual block is a group of count 1.

    `axes` are the representatives of the axes touched (atom table) and `per_unit` the positions that one unit
    has on each; `weights` are the (initializer, axis) slices, of which the first gives the name. At least `least` of
    its units stay (none of a block, which may be dropped whole); `quota` says why, where it is more than one. Of the
    `parts` of a unit (0: it has none) each may be exchanged for the same part of another (`Catalogue.regrouped`): a
    query head of each key head.
    """

    name: str
    kind: Kind
    first: int
    count: int
    axes: tuple[int, ...]
    per_unit: tuple[int, ...]
    weights: tuple[tuple[str, int], ...]
    approximation: str = ""
    least: int = 1
    quota: str = ""
    parts: int = 0

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
    """All units that may be cut, in groups. CSR: unit u has the atoms `atoms[start[u]:start[u + 1]]`, of which each
    belongs to a part of the unit, `part_of`, or -1 to none.

    `blocks`: residual blocks, which the last groups are. A block is a unit without atoms on an axis of its own, of one
    position, behind those of the atom table: whatever its branch holds and computes is proportional to that axis, too.
    """

    analysis: Analysis
    groups: list[Group]
    start: Ints
    atoms: Ints
    frozen: list[Frozen]
    axis_of_atom: Ints
    part_of: Ints
    blocks: Sequence[ResidualBlock] = ()

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.start) - 1

    def rows(self, group: Group) -> tuple[Ints, Ints]:
        """Return (the atoms of each unit of a group, their parts), each (units, atoms)."""
        where = slice(self.start[group.first], self.start[group.units.stop])
        return self.atoms[where].reshape(group.count, -1), self.part_of[where].reshape(group.count, -1)

    def regrouped(self, orders: Orders) -> Catalogue:
        """Return the same groups with other units: unit j has, of its part p, what unit orders[group][p][j] had.

        Raises:
            PruneError: there is no such group, or its units have other parts.
        """
        shapes = {group.name: [group.count] * group.parts for group in self.groups if group.parts}
        for name, order in orders.items():
            if list(map(len, order)) != shapes.get(name):
                raise PruneError(f"units of {name} have no such parts", "make the plan anew for this model")
        atoms, part_of = self.atoms.copy(), self.part_of.copy()
        for group in self.groups:
            if group.name not in orders:
                continue
            own, parts = self.rows(group)
            new, new_parts = own.copy(), parts.copy()
            for part, taken in enumerate(orders[group.name]):
                new[parts == part] = own[parts == part].reshape(group.count, -1)[list(taken)].ravel()
            place = np.argsort(new, axis=1)
            where = slice(self.start[group.first], self.start[group.units.stop])
            atoms[where] = np.take_along_axis(new, place, 1).ravel()
            part_of[where] = np.take_along_axis(new_parts, place, 1).ravel()
        return replace(self, atoms=atoms, part_of=part_of)

    def apart(self) -> Catalogue:
        """Return the parts of units as units, those of part 0 first; groups without parts are left out. Of each kind of
        parts as many can be cut."""
        groups, starts, atoms = list[Group](), [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
        for group in (group for group in self.groups if group.parts):
            own, parts = self.rows(group)
            rows = np.concatenate([own[parts == part].reshape(group.count, -1) for part in range(group.parts)])
            axes, counts = np.unique(self.axis_of_atom[rows[0]], return_counts=True)
            first = groups[-1].units.stop if groups else 0
            groups.append(replace(group, first=first, count=len(rows), axes=tuple(axes.tolist()),
                                  per_unit=tuple(counts.tolist()), least=1, quota="", parts=0))  # fmt: skip
            starts.append(starts[-1][-1] + rows.shape[1] * np.arange(1, len(rows) + 1))
            atoms.append(rows.ravel())
        flat = np.concatenate(atoms)
        return replace(self, groups=groups, start=np.concatenate(starts), atoms=flat, part_of=np.full(len(flat), -1),
                       blocks=())  # fmt: skip

    def telling(self, removed: Removed) -> Removed:
        """Return a cut without the axes that only count the units of groups with parts: their positions are alike, so
        it does not matter which of them go."""
        table, roots = self.analysis.components.table, set[int]()
        for group in self.groups:
            atoms, parts = self.rows(group)
            roots |= set(self.axis_of_atom[atoms[parts < 0]].tolist()) if group.parts else set()
        alike = {((axis.value.name or ""), axis.index) for number, axis in enumerate(table.axes)
                 if axis.value is not None and table.find(number) in roots}  # fmt: skip
        out = {name: {a: gone for a, gone in axes.items() if (name, a) not in alike} for name, axes in removed.items()}
        return {name: axes for name, axes in out.items() if axes}

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
        left: Ints = self.sizes - gone
        left[len(left) - len(self.blocks) :] -= self.dropped(units)
        return left

    def dropped(self, units: np.ndarray) -> np.ndarray:
        """Mask over blocks."""
        return np.asarray(units[self.count - len(self.blocks) :], bool)

    @cached_property
    def computed(self) -> frozenset[int]:
        """Axes (by representative) that operators with stored weights read or write, which a target computes."""
        table = self.analysis.components.table
        stored = {value: uses for value in self.analysis.model.graph.initializers.values() if (uses := value.uses())}
        values = {
            value
            for weight, uses in stored.items()
            if _rank(weight) > 1
            for use in uses
            for value in (*use.node.inputs, *use.node.outputs)
            if value is not None and value.const_value is None
        }
        return frozenset(table.find(number) for (value, _), number in table.numbers.items() if value in values)

    @cached_property
    def dead(self) -> list[Dead]:
        """By block, what is unused without it."""
        return [dead_without([block]) for block in self.blocks]

    @cached_property
    def within(self) -> np.ndarray:
        """(blocks, groups): whether a group is the block, or is removed with it, since the block holds all its
        weights."""
        held, first = self.analysis.model.graph.initializers, len(self.groups) - len(self.blocks)
        out = np.zeros((len(self.blocks), len(self.groups)), bool)
        for row, own, dead in zip(out, self.blocks, self.dead, strict=True):
            row[:first] = [all(held[name] in dead.initializers for name, _ in g.weights) for g in self.groups[:first]]
            row[first:] = [block is own or block.join in dead.nodes for block in self.blocks]
        return out

    def _inner(self, units: np.ndarray) -> np.ndarray:
        """Return the mask over units inside the dropped blocks, the blocks included."""
        return np.asarray(self.within[self.dropped(units)].any(axis=0)[self.group_of], bool)

    def closed(self, units: np.ndarray) -> np.ndarray:
        """Return the mask with all units added that are inside the dropped blocks."""
        return np.asarray(units | self._inner(units), bool)

    def outside(self, units: np.ndarray) -> np.ndarray:
        """Return the mask without the dropped blocks and everything inside them."""
        return np.asarray(units & ~self._inner(units), bool)

    def empties(self, units: np.ndarray) -> bool:
        """Return whether an axis keeps no position, or fewer than it has to, other than by the drop of its block."""
        least, table = np.minimum(self.sizes, 1), self.analysis.components.table
        for quota in table.quotas:
            root = table.find(quota.axis)
            least[root] = max(least[root], quota.count)
        return bool((self.kept(self.outside(units)) < least).any())

    @cached_property
    def sizes(self) -> Ints:
        """Positions of every axis of the table, and of blocks, before."""
        return np.array([axis.size for axis in self.analysis.components.table.axes] + [1] * len(self.blocks), np.int64)

    def removed(self, units: np.ndarray) -> Removed:
        """Return the input of `cut.remove` for a mask over units: positions per value and axis; for blocks all
        positions of one axis of their branches' values."""
        out = removed_positions(self.analysis, self.removed_atoms(self.outside(units)))
        for block in itertools.compress(self.blocks, self.dropped(units)):
            for name, axes in block.positions.items():
                out.setdefault(name, {}).update(axes)
        return out


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
    """`channel,head`, `channel,head,block` or `all`, which categories of inputs and whole blocks are no part of. Raises
    PruneError."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if "all" in names:
        names += [kind for kind in KINDS if kind not in ("vocabulary", "block")]
        names.remove("all")
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise PruneError(
            f"no granularity {unknown[0] if unknown else text!r}",
            "use channel, head, head_dim, expert, block, vocabulary or all",
        )
    return tuple(kind for kind in KINDS if kind in names)


ALL = "--granularity all"
COUPLED = "all its positions are coupled: nothing would remain"


def catalogue(analysis: Analysis, kinds: Collection[Kind] = DEFAULT_KINDS) -> Catalogue:
    """Choose families that do not overlap and sort their units into groups.

    Where families overlap (the heads of a layer, the dimensions inside its heads) the heads win if they are
    asked for, else the family with the most units; head_dim is used beside them where it is asked for.
    """
    found = _Builder(analysis).build(tuple(kinds))
    return _with_blocks(found) if "block" in kinds else found


def _with_blocks(found: Catalogue) -> Catalogue:
    """Add the residual blocks, except those whose value the user's file does not name (inside local functions): a plan
    could not name them."""
    model, geometry = found.analysis.model, found.analysis.geometry
    blocks = [b for b in find_blocks(model, geometry) if plan_names(model, b.positions, geometry)]
    groups, axes = list(found.groups), len(found.analysis.components.table.axes)
    for number, block in enumerate(blocks):
        dead = dead_without([block]).initializers
        weights = tuple((name, 0) for name, value in model.graph.initializers.items() if value in dead)
        groups.append(
            Group(block.name, "block", first=found.count + number, count=1, axes=(axes + number,), per_unit=(1,),
                  weights=weights, least=0)
        )  # fmt: skip
    start = np.append(found.start, np.repeat(found.start[-1], len(blocks)))
    return replace(found, groups=groups, start=start, blocks=blocks)


@dataclass
class _Batch:
    """The live units of one family that share a structure."""

    family: int
    kind: Kind
    units: Ints  # numbers inside the family
    axes: tuple[int, ...]
    per_unit: tuple[int, ...]
    weights: tuple[tuple[str, int], ...]
    approximation: str
    least: int
    quota: str


class _Builder:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.solved = analysis.components
        self.table = self.solved.table
        self.axis_of_atom = axis_of_atoms(analysis)
        order = np.argsort(self.solved.component, kind="stable")
        self.atom_order = order
        self.atom_start = np.searchsorted(self.solved.component[order], np.arange(self.solved.count + 1))
        self.slices = self._weight_slices()
        self.marked = {
            kind: {self.table.find(axis) for axis, own in self.table.marks if own == kind}
            for kind in ("expert", "head", "vocabulary", "width")
        }

    def build(self, kinds: tuple[Kind, ...]) -> Catalogue:
        batches = [b for number, f in enumerate(self.analysis.families) for b in self._batches(number, f)]
        self._name_head_dims(batches)
        chosen = self._choose([b for b in batches if b.kind in kinds])
        usable = [b for b in chosen if len(b.units) > b.least]
        groups: list[Group] = []
        starts, atoms, parts = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        names: dict[str, int] = {}
        for batch in usable:
            first = groups[-1].units.stop if groups else 0
            name = _unique(batch.weights[0][0], names)
            lengths, flat, own = self._unit_atoms(batch)
            groups.append(Group(name=name, kind=batch.kind, first=first, count=len(batch.units), axes=batch.axes,
                                per_unit=batch.per_unit, weights=batch.weights,
                                approximation=batch.approximation, least=batch.least, quota=batch.quota,
                                parts=int(own.max(initial=-1)) + 1))  # fmt: skip
            starts.append(starts[-1][-1] + np.cumsum(lengths))
            atoms.append(flat)
            parts.append(own)
        return Catalogue(
            self.analysis, groups, np.concatenate(starts), atoms=np.concatenate(atoms),
            frozen=self._frozen(batches, usable), axis_of_atom=self.axis_of_atom, part_of=np.concatenate(parts),
        )  # fmt: skip

    # -- structure --------------------------------------------------------------------------------

    def _weight_slices(self) -> dict[int, list[tuple[str, int]]]:
        """Representative axis -> the floating-point (initializer, axis) pairs on it."""
        found: dict[int, list[tuple[str, int]]] = {}
        for number, axis in enumerate(self.table.axes):
            if _is_weight(axis):
                found.setdefault(self.table.find(number), []).append((axis.value.name or "", axis.index))  # type: ignore[union-attr]
        return found

    def _expand(self, components: Ints) -> tuple[Ints, Ints]:
        """(number of atoms of each component, all their atoms)."""
        lengths, places = ranges(self.atom_start[components], self.atom_start[components + 1])
        return lengths, self.atom_order[places]

    def _batches(self, number: int, family: Family) -> Iterable[_Batch]:
        """Sort the units of one family by structure: the sum of one random number per touched axis identifies a
        structure."""
        lengths, atoms = self._expand(family.components)
        unit = np.repeat(family.labels, lengths)
        code = np.random.default_rng(0).integers(0, 1 << 62, len(self.table.axes), dtype=np.uint64)
        signature = np.zeros(family.count, np.uint64)
        np.add.at(signature, unit, code[self.axis_of_atom[atoms]])
        live = np.flatnonzero(family.frozen < 0)
        first: dict[tuple[int, int], int] = {}
        keys = [(int(signature[u]), int(family.approximate[u])) for u in live]
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        which = np.array([first[key] for key in keys], np.int64)
        by_unit = np.argsort(unit, kind="stable")
        edges = np.searchsorted(unit[by_unit], np.arange(family.count + 1))
        for leader in first.values():
            sample = int(live[leader])
            mine = atoms[by_unit[edges[sample] : edges[sample + 1]]]
            axes, counts = np.unique(self.axis_of_atom[mine], return_counts=True)
            weights = tuple(self._ordered(axes))
            if weights:
                least, quota = self._quota(axes)
                yield _Batch(
                    family=number, kind=self._kind(family, sample, axes), units=live[which == leader],
                    axes=tuple(axes.tolist()), per_unit=tuple(counts.tolist()), weights=weights,
                    approximation=self._reason(int(family.approximate[sample])), least=least, quota=quota,
                )  # fmt: skip

    def _quota(self, axes: Ints) -> tuple[int, str]:
        """Return how many units on these axes have to stay, and why, if more than one; frozen positions count."""
        found = 1, ""
        for quota in self.table.quotas:
            root = self.table.find(quota.axis)
            stuck = int((self.solved.frozen[self.solved.of_axis(root)] >= 0).sum())
            if root in axes.tolist() and quota.count - stuck > found[0]:
                found = quota.count - stuck, quota.reason
        return found

    def _ordered(self, axes: Ints) -> list[tuple[str, int]]:
        """The weight slices on these axes: matrices before vectors, producers (in order of use) first."""
        found = [w for axis in axes.tolist() for w in self.slices.get(axis, ())]
        initializers = self.analysis.model.graph.initializers
        return sorted(
            found,
            key=lambda w: (_rank(initializers[w[0]]) < 2, self.first_use.get(w[0], len(initializers)), w[1]),
        )

    @cached_property
    def first_use(self) -> dict[str, int]:
        """Number of the first node that reads each value."""
        found: dict[str, int] = {}
        for number, node in enumerate(self.analysis.model.graph):
            for value in node.inputs:
                if value is not None:
                    found.setdefault(value.name or "", number)
        return found

    def _kind(self, family: Family, unit: int, axes: Ints) -> Kind:
        if not self.marked["vocabulary"].isdisjoint(axes.tolist()):
            return "vocabulary"
        if not self.marked["expert"].isdisjoint(axes.tolist()):
            return "expert"
        if family.approximate[unit] >= 0 or not self.marked["width"].isdisjoint(axes.tolist()):
            return "width"
        return "head" if family.factor and not self.marked["head"].isdisjoint(axes.tolist()) else "channel"

    def _reason(self, index: int) -> str:
        return self.solved.reasons[index] if index >= 0 else ""

    def _members(self, family: int) -> np.ndarray:
        out = np.zeros(self.solved.count, bool)
        out[self.analysis.families[family].components] = True
        return out

    # -- choice -----------------------------------------------------------------------------------

    def _name_head_dims(self, batches: list[_Batch]) -> None:
        """Name a factor family that overlaps with heads `head_dim`."""
        heads = {b.family for b in batches if b.kind == "head"}
        if not heads:
            return
        covered = np.logical_or.reduce([self._members(f) for f in heads])
        for batch in batches:
            family = self.analysis.families[batch.family]
            if batch.kind == "channel" and family.factor and covered[family.components].any():
                batch.kind = "head_dim"

    def _choose(self, batches: list[_Batch]) -> list[_Batch]:
        """Choose heads first, then the family of most units; leave out families that overlap with a chosen one."""
        sizes: dict[int, int] = {}
        for batch in batches:
            sizes[batch.family] = sizes.get(batch.family, 0) + len(batch.units)
        rank = {b.family: (b.kind != "head", -sizes[b.family], b.family) for b in batches}
        taken: dict[bool, np.ndarray] = {inner: np.zeros(self.solved.count, bool) for inner in (False, True)}
        chosen: set[int] = set()
        for family in sorted(rank, key=rank.__getitem__):
            inner = all(b.kind == "head_dim" for b in batches if b.family == family)
            members = self._members(family)
            if not (taken[inner] & members).any():
                taken[inner] |= members
                chosen.add(family)
        return [b for b in batches if b.family in chosen]

    def _unit_atoms(self, batch: _Batch) -> tuple[Ints, Ints, Ints]:
        """(atoms per unit, all their atoms, their parts) in the order of the batch's units."""
        family = self.analysis.families[batch.family]
        order = np.full(family.count, -1, np.int64)
        order[batch.units] = np.arange(len(batch.units))
        mine = order[family.labels]
        components = family.components[mine >= 0]
        lengths, atoms = self._expand(components)
        unit = np.repeat(mine[mine >= 0], lengths)
        by_unit = np.lexsort((atoms, unit))
        counts, atoms = np.bincount(unit, minlength=len(batch.units)), atoms[by_unit]
        parts = np.full(len(atoms), -1, np.int64)
        if family.parts is not None:
            found = np.repeat(family.parts[mine >= 0], lengths)[by_unit]
            axes = self.axis_of_atom[atoms].reshape(len(counts), -1)
            parts = found if _exchangeable(found.reshape(axes.shape), axes) else parts
        return counts, atoms, parts

    # -- what is left -----------------------------------------------------------------------------

    def _frozen(self, batches: list[_Batch], usable: list[_Batch]) -> list[Frozen]:
        reason = self._reasons(batches, usable)
        out = []
        for number, axis in enumerate(self.table.axes):
            if not _is_weight(axis) or axis.size == 1:
                continue
            reasons = [r for r in (reason[c] for c in self.solved.of_axis(number).tolist()) if r]
            if reasons and reasons[0] != "kernel":
                main = max(sorted(set(reasons)), key=reasons.count)
                out.append(Frozen(axis.value.name or "", axis.index, main, positions=len(reasons), size=axis.size))  # type: ignore[union-attr]
        return out + self._unseen()

    def _reasons(self, batches: list[_Batch], usable: list[_Batch]) -> list[str]:
        """Return, per component, why no usable unit holds it, or nothing."""
        out = [""] * self.solved.count
        free = np.zeros(self.solved.count, bool)
        for batch in usable:
            free[self._components(batch)] = True
        for batch in batches:
            other = {"width": f"{batch.approximation or 'a normalisation runs over this axis'} ({ALL} cuts it)",
                     "head_dim": f"inside attention heads ({ALL} cuts it)",
                     "expert": "whole experts of a mixture (--granularity expert cuts them)",
                     "vocabulary": "categories of an input (--granularity vocabulary cuts them)"}  # fmt: skip
            why = COUPLED if len(batch.units) == 1 else other.get(batch.kind, f"{batch.kind}: not asked for")
            if batch.quota and len(batch.units) <= batch.least:
                why = f"{batch.quota}, and there are no more"
            for component in self._components(batch)[~free[self._components(batch)]].tolist():
                out[component] = why
        for family in self.analysis.families:
            stuck = family.frozen[family.labels]
            for component, index in zip(family.components.tolist(), stuck.tolist(), strict=True):
                if index >= 0 and not free[component] and not out[component]:
                    out[component] = self.solved.reasons[index]
        return out

    def _components(self, batch: _Batch) -> Ints:
        family = self.analysis.families[batch.family]
        mine = np.zeros(family.count, bool)
        mine[batch.units] = True
        return family.components[mine[family.labels]]

    def _unseen(self) -> list[Frozen]:
        """Return floating-point tensors that no rule has named."""
        seen = {axis.value.name for axis in self.table.axes if axis.value is not None}
        return [
            Frozen(name, axis, "no operator that reads it relates its positions to others", positions=size, size=size)
            for name, value in self.analysis.model.graph.initializers.items()
            if name not in seen and value.const_value is not None and value.const_value.dtype.is_floating_point()
            for axis, size in enumerate(value.const_value.shape.numpy())
            if size > 1
        ]


def _exchangeable(parts: Ints, axes: Ints) -> bool:
    """Return whether every part of every unit has as many atoms of each axis. `parts` and `axes`: (units, atoms)."""
    names, axis = np.unique(axes, return_inverse=True)
    most = int(parts.max()) + 1
    counts = np.zeros((len(parts), most, len(names)), np.int64)
    unit = np.arange(len(parts))[:, None].repeat(parts.shape[1], axis=1)
    on = parts >= 0
    np.add.at(counts, (unit[on], parts[on], axis.reshape(parts.shape)[on]), 1)
    return most > 0 and bool((counts == counts[:1, :1]).all())


def _is_weight(axis: Axis) -> bool:
    tensor = axis.value.const_value if axis.value is not None else None
    return tensor is not None and tensor.dtype.is_floating_point()


def _rank(value: ir.Value) -> int:
    return len(value.const_value.shape) if value.const_value is not None else 0


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
