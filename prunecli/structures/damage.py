"""What each unit costs when the rest is refitted: curves of measured damage over the units that are gone.

Within a group, units are eliminated one by one from the least-squares problems of the layers that read them
(`elimination.py`); experts, which no layer reads, in the order of what they add to their mixture (`experts.py`). How
much the model misses so many of a group is then measured: those units at zero, the readers refitted, everything else as
it was, the outputs compared on held-out samples. A unit's score is its step on the curve's convex hull, so that ranking
by score per cost solves the knapsack over groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.gradients import looked_at, mean_error, outputs_ahead
from prunecli.calibration.grams import Addend, Equations, Picker, add_each, batches_read
from prunecli.calibration.influence import EVERYWHERE, Influence
from prunecli.calibration.layers import LinearLayer, refittable
from prunecli.calibration.layerwise import Opener, Store, Walk
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.dependency.slices import Slice, WeightSlices
from prunecli.model.graphs import reads
from prunecli.runtime import Session
from prunecli.structures.elimination import Elimination, UnitCurve, UnitReader, eliminate
from prunecli.structures.experts import Closable
from prunecli.types import Progress, no_progress

Feeds = Sequence[Mapping[str, Array]]
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Fractions of a group at which the damage is measured, besides the largest allowed. Between them it follows the error
of the elimination."""
POSITIONS = 400
"""Positions per input of a layer that its Gram matrix is computed from."""
WIDEST = 6144
"""Most inputs of a layer whose Gram matrix is inverted."""
_TINY = float(np.finfo(float).tiny)


@dataclass
class DamageSource:
    """The prepared model, its units, and the data: `feeds` to fit on, `held` to measure on. `rank`: by weight and
    output, which dimension of its head that is in a model whose heads were turned (`reconstruct/turning.py`).
    `influence`: at which positions layers are fitted. `added`: by group of experts, what each adds to the output of its
    mixture. `doors`: of the model, closed without an expert."""

    model: ir.Model
    catalogue: Catalogue
    feeds: Feeds
    held: Feeds
    start: Opener = Session.open
    lanes: int = 1
    progress: Progress = no_progress
    rank: Mapping[tuple[str, int], int] = field(default_factory=dict)
    influence: Influence = EVERYWHERE
    added: Mapping[str, Array] = field(default_factory=dict)
    doors: Closable | None = None
    outputs: list[str] = field(init=False)
    sites: dict[str, LinearLayer] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = looked_at(self.model.graph.outputs)
        self.sites = {site.weight.name: site for site in refittable(self.model)[0]}

    def content(self, name: str) -> Array:
        tensor = self.model.graph.initializers[name].const_value
        assert tensor is not None
        return np.asarray(tensor.numpy())


def curves(source: DamageSource, asked: Sequence[tuple[Group, int, Sequence[int]]]) -> list[UnitCurve]:
    """Return a damage curve per group, up to its largest removal, measured at allowed widths near SHARES.

    Args:
        asked: per group, the most units that may be removed, and the numbers of units that may stay.
    Raises:
        PruneError: onnxruntime cannot run a piece of the model.
    """
    slices = WeightSlices(source.catalogue)
    groups = [group for group, _, _ in asked]
    wanted = {name for group in groups for name, axis in group.weights if slices.role(name, axis) == "in"}
    with Store() as store:
        _measure_inputs(source, wanted, store)
        held = Walk(source.model, source.held, store, open_session=source.start, keep=source.outputs)
        base = outputs_ahead(Walk(source.model, source.held, store, open_session=source.start), source.outputs)
        trials = [_Trial(source, group, slices, store=store) for group in groups]
        order = sorted(range(len(groups)), key=lambda number: trials[number].first)
        found: dict[int, UnitCurve] = {}
        for number in source.progress(order, "measuring groups", len(order)):
            _, most, widths = asked[number]
            found[number] = trials[number].curve(held, base, _counts(groups[number].count, most, widths))
    return [found[number] for number in range(len(groups))]


def _counts(count: int, most: int, widths: Sequence[int]) -> list[int]:
    """Return the numbers of removed units at which the damage is measured."""
    gone = [count - width for width in widths if 0 < count - width <= most]
    wanted = [min(max(round(share * count), 1), most) for share in SHARES]
    return sorted({min(gone, key=lambda n: abs(n - share)) for share in wanted} | {most} if gone else {most})


def _measure_inputs(source: DamageSource, wanted: set[str], store: Store) -> None:
    """Store X X^T of each layer, by the weight's name; centred if there is an offset to refit."""
    walk = Walk(source.model, source.feeds, store, open_session=source.start)
    sites = [site for name, site in source.sites.items() if name in wanted and site.shape[2] * site.shape[3] <= WIDEST]
    for site in source.progress(sites, "measuring inputs", len(sites)):
        batch, _, taps, cols = site.shape
        sums = Equations.empty(batch, 0, taps * cols)
        walk.reach([site.found.data, site.output])
        numbers = _batches_read(walk, site)
        add_each(_read_of(source, walk, site, numbers=numbers, into=sums), sums, source.lanes)
        walk.release(site.found.data)
        walk.release(site.output)
        if np.isfinite(sums.gram).all():
            problems = [sums.problem(one, intercept=_is_free(site)) for one in range(batch)]
            store.put(("gram", site.weight.name), np.stack([problem.gram for problem in problems]))
            store.put(("mean", site.weight.name), np.stack([problem.x for problem in problems]))
    walk.close()


def _read_of(
    source: DamageSource, walk: Walk, site: LinearLayer, numbers: Sequence[int], into: Equations
) -> Iterator[Addend]:
    """What a layer reads in these batches."""
    batch, _, taps, cols = site.shape
    picker = Picker(len(numbers), taps * cols, POSITIONS)
    for number in numbers:
        data, output = walk.read(site.found.data, number), walk.read(site.output, number)
        count = site.found.positions(output.shape)
        for places in picker.pick(source.influence.places(site.output, source.feeds[number], count)):
            columns = partial(site.found.columns, data, output.shape, places)
            yield Addend(into, columns, partial(np.zeros, (batch, 0, len(places)), np.float32))


def _batches_read(walk: Walk, site: LinearLayer) -> Sequence[int]:
    """Return all batches where the layer's inputs are held in memory, else some."""
    if walk.is_held(site.found.data) and walk.is_held(site.output):
        return range(walk.batches)
    positions = site.found.positions(walk.read(site.output, 0).shape)
    return [*map(int, batches_read(walk.batches, positions, site.shape[2] * site.shape[3], per_unknown=POSITIONS))]


def _is_free(site: LinearLayer) -> bool:
    """Return whether a trial can change the layer's constant."""
    source = site.offset.source if site.offset is not None else None
    return source is not None and source.is_own


class _Trial:
    """One group: the layers that read it, and the model without some of its units."""

    def __init__(self, source: DamageSource, group: Group, slices: WeightSlices, store: Store) -> None:
        self.source, self.group, self.store = source, group, store
        self.pieces = list(slices.of(group))
        self.readers = [p for p in self.pieces if p.role == "in" and ("gram", p.name) in store]
        touched = {name for name, _ in group.weights}
        nodes = [node for node in source.model.graph if any(v.name in touched for v in reads(node))]
        places = {node: number for number, node in enumerate(source.model.graph)}
        self.first = min((places[node] for node in nodes), default=0)
        self.inputs = [v.name or "" for v in reads(nodes[0]) if v.producer() is not None] if nodes else []
        self.norm = np.sum([_share(slices.matrix(p)) for p in self.pieces], axis=0)

    def curve(self, held: Walk, base: Sequence[Array], counts: Sequence[int]) -> UnitCurve:
        """Measure the damage for each number of removed units. Groups come in the order of the graph, so that memory
        holds the values that are computed before them."""
        count, most = self.group.count, counts[-1]
        found = self._eliminated(most, counts)
        held.reach(self.inputs)
        damage = np.maximum.accumulate([0.0, *(self._damage(held, base, found, gone=gone) for gone in counts)])
        along = found.errors + np.arange(most + 1) * max(float(found.errors[-1]), _TINY) * 1e-6
        return UnitCurve(count, found.order, np.interp(along, along[[0, *counts]], damage))

    def _eliminated(self, most: int, counts: Sequence[int]) -> Elimination:
        """Return the order of removal. Where no layer reads the units linearly, those that add least, of the lowest
        rank in their heads or of the smallest weights are first."""
        readers = [reader for piece in self.readers for reader in self._reading(piece)]
        if readers:
            return eliminate(readers, self.group.count, most, snapshots=counts)
        if (added := self.source.added.get(self.group.name)) is not None:
            first = np.argsort(added, kind="stable")[:most]
            return Elimination(first.tolist(), np.append(0.0, np.cumsum(added[first])), {})
        ranks = next((ranks for piece in self.pieces if (ranks := self._ranks(piece)) is not None), None)
        order = np.argsort(self.norm if ranks is None else -ranks, kind="stable")[:most].tolist()
        return Elimination(order, np.concatenate([[0.0], np.cumsum(self.norm[order])]), {})

    def _ranks(self, piece: Slice) -> Array | None:
        """Return the ranks of the units in their heads, if they are dimensions of heads."""
        if piece.role != "out" or any((piece.name, int(place)) not in self.source.rank for place in piece.index.flat):
            return None
        ranks = np.array([[self.source.rank[piece.name, int(place)] for place in unit] for unit in piece.index])
        return None if (ranks != ranks[:, :1]).any() else ranks[:, 0]

    def _reading(self, piece: Any) -> list[UnitReader]:
        """Return one reader per matrix of the layer; the columns of a unit are its inputs at every tap."""
        site = self.source.sites[piece.name]
        shape, layout = site.weight.shape, site.weight.layout
        label = np.arange(shape[piece.axis]).reshape([-1 if a == piece.axis else 1 for a in range(len(shape))])
        inputs = layout.canonical(np.broadcast_to(label, shape).copy())[:, 0, 0, :]
        _, _, taps, cols = site.shape
        grams, out = self.store.get(("gram", piece.name)), []
        for gram, matrix, own in zip(grams, site.matrices(), inputs, strict=True):
            place = np.full(shape[piece.axis], -1)
            place[own] = np.arange(cols)
            mine = place[piece.index]
            units = np.flatnonzero((mine >= 0).all(axis=1))
            rows = (np.arange(taps)[None, :, None] * cols + mine[units][:, None, :]).reshape(len(units), -1)
            reader = UnitReader(np.asarray(gram), matrix.T.copy(), units, rows=rows)
            energy = reader.energy()
            reader.weight = 1 / energy if energy > _TINY else 0.0  # what does not vary has nothing to lose
            out.append(reader)
        return out

    def _damage(self, held: Walk, base: Sequence[Array], found: Elimination, gone: int) -> float:
        mask = np.zeros(self.source.catalogue.count, bool)
        mask[self.group.first + np.array(found.order[:gone])] = True
        changed = self._zeroed(mask) | (self._refitted(found.snapshots[gone]) if found.snapshots else {})
        return mean_error(base, outputs_ahead(held, self.source.outputs, changed))

    def _zeroed(self, mask: Array) -> dict[str, Array]:
        """Return the group's weights with zeros at the removed units, and doors that are closed there."""
        removed = self.source.catalogue.removed(mask)
        out = {} if self.source.doors is None else dict(self.source.doors.closed(removed))
        for name in {name for name, _ in self.group.weights} & set(removed):
            array = np.array(self.source.content(name))
            for axis, positions in removed[name].items():
                np.moveaxis(array, axis, 0)[positions] = 0
            out[name] = array
        return out

    def _refitted(self, matrices: Sequence[Array]) -> dict[str, Array]:
        """Return the readers' weights, and the offsets that keep the means of their outputs."""
        out, rest = {}, list(matrices)
        for piece in self.readers:
            site = self.source.sites[piece.name]
            mine, rest = rest[: site.shape[0]], rest[site.shape[0] :]
            weights = np.stack([matrix.T for matrix in mine])
            out[piece.name] = site.cast(weights)
            if site.offset is not None and _is_free(site):
                moved = np.einsum("gmk,gk->gm", site.matrices() - weights, self.store.get(("mean", piece.name)))
                out[site.offset.name] = site.offset.content((site.constant() + moved).reshape(-1))
        return out


def _share(slices: Array) -> Array:
    """Return sum x^2 per unit over that of all units."""
    squares = np.square(slices).sum(axis=1)
    return np.asarray(squares / max(float(squares.sum()), _TINY))
