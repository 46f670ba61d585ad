"""Units: the minimal closed sets of atoms, each of which can be removed without the others.

Where ties alone decide, a unit is a component. An axis that a reshape splits into factors (heads x head size)
can be cut along either factor: each factor is followed through the graph in a run of its own, and every axis
it meets is cut in whole slabs of one factor. A run gives a *family* of units (`the heads of this layer`); two
families may cover the same atoms (`the dimensions inside these heads`), and any union of units is a valid cut.

Where a run follows a factor of interchangeable positions (the query heads of each key head), its units fall apart: one
part for each coordinate before that factor (each key head). Any choice of as many parts of every kind is a valid cut.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from prunecli.dependency.atoms import Components, Ints, Product, connected_components, ranges


@dataclass
class Family:
    """Units that compete with one another: one structure of the network.

    `labels[k]` is the unit of `components[k]`; units are 0..count-1. `frozen[u]` is an index into the
    components' reasons or -1; `factor` says whether the family came from following a factor. `parts[k]` is the part of
    its unit that `components[k]` belongs to, -1 what only counts units; None where units do not fall apart.
    """

    components: Ints
    labels: Ints
    count: int
    frozen: Ints
    approximate: Ints
    factor: bool = False
    parts: Ints | None = None


@dataclass
class _Run:
    """The labels of one run. Labels that meet become one."""

    solved: Components
    label: Ints
    parent: Ints
    dead: np.ndarray  # per label: it holds a frozen component

    def root(self, labels: Ints) -> Ints:
        """Current label of each entry; -1 stays."""
        out = np.where(labels >= 0, self.parent[labels], -1)
        return out.astype(np.int64)

    def merge(self, a: Ints, b: Ints) -> None:
        a, b = self.root(a), self.root(b)
        if np.array_equal(a, b):
            return
        labels = np.arange(len(self.parent))
        roots, _ = connected_components(len(labels), np.concatenate([labels, a]), np.concatenate([self.parent, b]))
        self.parent = np.unique(roots, return_index=True)[1][roots]

    def assign(self, components: Ints, labels: Ints) -> Ints:
        """Give components their labels; returns those that changed."""
        old = self.root(self.label[components])
        new = self.root(labels)
        clash = (old >= 0) & (old != new)
        if clash.any():
            self.merge(old[clash], new[clash])
        fresh = old < 0
        self.label[components[fresh]] = labels[fresh]
        self.dead[labels[fresh][self.solved.frozen[components[fresh]] >= 0]] = True
        # one component may have been given two labels at once
        kept = self.label[components[fresh]]
        self.merge(kept, labels[fresh])
        return components[fresh]

    def hopeless(self) -> bool:
        """Whether every unit of this run is frozen."""
        return bool(np.isin(self.parent, self.parent[self.dead]).all())


def find_families(solved: Components) -> list[Family]:
    """Return all families: that of the plain components, then one per factor that can be followed."""
    families = [_plain(solved)]
    index = _product_index(solved)
    done: set[tuple[int, int]] = set()
    seen: set[tuple[bytes, bytes]] = set()
    for number, product in enumerate(solved.products):
        for factor in range(len(product.factors)):
            if (number, factor) in done:
                continue
            run, used = _follow(solved, index, number, factor=factor)
            if not run.hopeless():  # a factor may fare better by itself than coupled to a frozen one
                done |= {pair for pair in used if _told_apart(run, pair)}
            family = _family(solved, run)
            if not run.hopeless():
                family.parts = _parts(run, index, family, used=used)
            key = (family.components.tobytes(), family.labels.tobytes())
            if key not in seen:
                families.append(family)
            seen.add(key)
    return families


def _plain(solved: Components) -> Family:
    """Return components without a product: each is a unit by itself."""
    free = np.ones(solved.count, bool)
    for product in solved.products:
        free[product.whole.ravel()] = False
        for factor in product.factors:
            free[factor] = False
    members = np.flatnonzero(free)
    labels = np.arange(len(members))
    return Family(members, labels, len(members), frozen=solved.frozen[members], approximate=solved.approximate[members])


def _product_index(solved: Components) -> tuple[Ints, Ints]:
    """(components sorted, product of each): which products a component takes part in."""
    pairs = [np.zeros((0, 2), np.int64)]
    for number, product in enumerate(solved.products):
        members = np.unique(np.concatenate([product.whole.ravel(), *product.factors]))
        pairs.append(np.stack([members, np.full(len(members), number)], 1))
    table = np.concatenate(pairs)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0], table[:, 1]


def _touching(index: tuple[Ints, Ints], components: Ints) -> set[int]:
    keys, products = index
    low, high = (np.searchsorted(keys, components, side) for side in ("left", "right"))
    hit = np.bincount(products[ranges(low, high)[1]], minlength=1)
    return set(np.flatnonzero(hit).tolist())


def _follow(
    solved: Components, index: tuple[Ints, Ints], number: int, factor: int
) -> tuple[_Run, set[tuple[int, int]]]:
    """Follow one factor through every product it reaches; the second result is the factors that slabs lie along.

    It ends early where every unit turns out frozen: the result is then not closed, and only gives the reason.
    """
    seed = solved.products[number].factors[factor]
    run = _started(solved, seed, np.arange(len(seed)))
    along = _spread(run, index, seed, first=number)
    return run, along | {(number, factor)}


def _started(solved: Components, seed: Ints, labels: Ints) -> _Run:
    """Return a run in which only the seed has labels, 0 and up."""
    count = int(labels.max(initial=-1)) + 1
    run = _Run(solved, np.full(solved.count, -1, np.int64), np.arange(count), dead=np.zeros(count, bool))
    run.assign(seed, labels)
    return run


def _spread(
    run: _Run, index: tuple[Ints, Ints], seed: Ints, first: int = -1, left_out: Collection[int] = ()
) -> set[tuple[int, int]]:
    """Close a run under all products but those left out; return the (product, factor) that slabs lie along."""
    along: set[tuple[int, int]] = set()
    queue = _touching(index, seed).difference(left_out)
    current = first if first >= 0 else min(queue, default=-1)
    while queue:
        queue.discard(current)
        changed, used = _close(run, run.solved.products[current])
        along |= {(current, f) for f in used}
        if run.hopeless():
            break
        if changed.size:
            queue |= _touching(index, changed).difference(left_out)
        current = min(queue, default=-1)
    return along


def _parts(run: _Run, index: tuple[Ints, Ints], family: Family, used: set[tuple[int, int]]) -> Ints | None:
    """Return the part of its unit that each component of a family belongs to (`Family.parts`).

    Parts are found by a run that starts from single positions of a whole with an interchangeable factor and leaves all
    such products out. They are parts if no two of them meet, other than as all those of one coordinate do, and if all
    that has no part are positions that are alike.
    """
    solved = run.solved
    split = sorted(number for number, factor in used if solved.products[number].alike == factor)
    if not split:
        return None
    wholes = [_by_coordinate(solved.products[number]) for number in split]
    before, copies, after = wholes[0].shape
    labels = np.arange(before * copies).repeat(after)
    fine = _started(solved, wholes[0].ravel(), labels)
    _spread(fine, index, np.unique(wholes[0]), left_out=split)
    tables = [fine.root(fine.label[whole]) for whole in wholes]
    rows = [np.unique(np.sort(table[:, :, 0], axis=1), axis=0) for table in tables]
    apart = all((table >= 0).all() and (table == table[:, :, :1]).all() for table in tables)
    if not apart or any(len(np.unique(row)) != row.size or not np.array_equal(row, rows[0]) for row in rows):
        return None
    part = np.full(len(fine.parent), -1, np.int64)
    part[rows[0]] = np.arange(len(rows[0]))[:, None]
    label = fine.root(fine.label[family.components])
    found = np.where(label >= 0, part[label], -1)
    alike = np.concatenate([solved.products[number].factors[solved.products[number].alike] for number in split])
    covered = int((fine.label >= 0).sum()) == int((label >= 0).sum())
    inside = covered and np.isin(family.components[found < 0], alike).all()
    units = np.unique(np.stack([label, found, family.labels], 1)[label >= 0], axis=0)
    once = len(units) == rows[0].size == len(np.unique(units[:, 1:], axis=0))
    return found if inside and once and len(rows[0]) > 1 else None


def _by_coordinate(product: Product) -> Ints:
    """Return the whole as (coordinates before the interchangeable factor, that factor, coordinates after it)."""
    shape = product.whole.shape
    before = int(np.prod(shape[: product.alike]))
    return product.whole.reshape(before, shape[product.alike], -1)


def _told_apart(run: _Run, pair: tuple[int, int]) -> bool:
    """Return whether every position of a factor has a unit of its own: following the factor itself would find no
    more."""
    factor = run.solved.products[pair[0]].factors[pair[1]]
    labels = run.root(run.label[factor])
    return bool((labels >= 0).all()) and len(np.unique(labels)) == len(np.unique(factor))


def _close(run: _Run, product: Product) -> tuple[Ints, set[int]]:
    """Make the labels on one product closed: whole slabs along the factors in use."""
    changed: list[Ints] = []
    used: set[int] = set()
    covered = np.zeros(product.whole.shape, bool)
    for axis, factor in enumerate(product.factors):
        if (run.label[factor] >= 0).any():
            changed.append(_slabs(run, product, axis, covered=covered))
            used.add(axis)
    rest = (run.label[product.whole] >= 0) & ~covered
    while rest.any():
        axis = _best_factor(run, product, rest)
        _label_factor(run, product, axis, rest=rest, changed=changed)
        changed.append(_slabs(run, product, axis, covered=covered))
        used.add(axis)
        rest = (run.label[product.whole] >= 0) & ~covered
    return (np.concatenate(changed) if changed else np.zeros(0, np.int64)), used


def _slabs(run: _Run, product: Product, axis: int, covered: np.ndarray) -> Ints:
    """factor coordinate labelled -> its whole slab gets that label."""
    labels = run.root(run.label[product.factors[axis]])
    on = np.flatnonzero(labels >= 0)
    slab = np.moveaxis(product.whole, axis, 0)[on]
    np.moveaxis(covered, axis, 0)[on] = True
    spread = np.broadcast_to(labels[on].reshape(-1, *[1] * (slab.ndim - 1)), slab.shape)
    return run.assign(slab.ravel(), spread.ravel())


def _label_factor(run: _Run, product: Product, axis: int, rest: np.ndarray, changed: list[Ints]) -> None:
    """labelled positions -> the coordinates of the chosen factor; labels inside one slab become one."""
    labels = np.where(rest, run.root(run.label[product.whole]), -1)
    coordinate = np.broadcast_to(
        np.arange(product.whole.shape[axis]).reshape([-1 if i == axis else 1 for i in range(labels.ndim)]),
        labels.shape,
    )
    on = labels >= 0
    changed.append(run.assign(product.factors[axis][coordinate[on]], labels[on]))


def _best_factor(run: _Run, product: Product, rest: np.ndarray) -> int:
    """The factor along which the labelled positions are slabs, or nearly: frozen ones last, most units first."""
    labels = np.where(rest, run.root(run.label[product.whole]), -1)
    scores = []
    for axis, factor in enumerate(product.factors):
        flat = np.moveaxis(labels, axis, 0).reshape(len(factor), -1)
        on = flat >= 0
        rows = np.flatnonzero(on.any(1))
        coordinate = np.repeat(np.arange(len(factor)), flat.shape[1]).reshape(flat.shape)
        edges_a, edges_b = coordinate[on], flat[on] + len(factor)
        total = len(factor) + len(run.parent)
        group, _ = connected_components(total, edges_a, edges_b)
        units = len(np.unique(group[rows]))
        growth = int((~on[rows]).sum())
        alive = int((run.solved.frozen[factor[rows]] < 0).any())
        scores.append((alive, units, -growth, -axis))
    return -max(scores)[3]


def _family(solved: Components, run: _Run) -> Family:
    members = np.flatnonzero(run.label >= 0)
    roots, labels = np.unique(run.root(run.label[members]), return_inverse=True)
    frozen, approximate = (_worst(of[members], labels, len(roots)) for of in (solved.frozen, solved.approximate))
    return Family(members, labels.astype(np.int64), len(roots), frozen=frozen, approximate=approximate, factor=True)


def _worst(reasons: Ints, labels: Ints, count: int) -> Ints:
    """Return the reason of each unit: that of any of its components."""
    out = np.full(count, -1, np.int64)
    on = reasons >= 0
    np.maximum.at(out, labels[on], reasons[on])
    return out
