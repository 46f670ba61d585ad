"""What each unit costs when the rest is refitted: curves of measured damage over the units that are gone.

Within a group, units are eliminated one by one from the least-squares problems of the layers that read them
(`select/elimination.py`). How much the model misses so many of a group is then measured: those units at zero, the
readers refitted, everything else as it was, the outputs compared on held-out samples. A unit's score is its step on the
curve's convex hull, so that ranking by score per cost solves the knapsack over groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.channels.catalogue import Catalogue, Group
from prunecli.channels.slices import WeightSlices
from prunecli.evidence.design import Linear, linear
from prunecli.evidence.pieces import OpenSession, Pieces, reads
from prunecli.runtime import Session
from prunecli.select.elimination import Elimination, Reader, convex, eliminate
from prunecli.types import Progress, no_progress

Array = np.ndarray[Any, Any]
Feeds = Sequence[Mapping[str, Array]]
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Of a group's units: where the damage is measured. In between it is interpolated."""
WIDEST = 6144
"""Inputs of a layer whose Gram matrix is inverted."""
CHUNK = 1 << 24
_TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Curve:
    """`order`: units of the group, the first to go first; `damage[k]`: of the outputs without the first k."""

    order: list[int]
    damage: Array

    def scores(self) -> Array:
        """One per unit, of which those that go later have larger ones; the unit that stays is infinite."""
        count = len(self.order) + 1
        out = np.full(count, np.inf)
        steps = np.diff(convex(np.maximum.accumulate(self.damage)))
        ties = np.arange(len(steps)) * (1e-9 * max(float(self.damage.max()), _TINY))
        out[self.order] = np.maximum(steps, 0) + ties
        return out


@dataclass
class Source:
    """The prepared model, what is cut of it, and the data: `feeds` to fit on, `held` to measure on."""

    model: ir.Model
    catalogue: Catalogue
    feeds: Feeds
    held: Feeds
    start: OpenSession = Session.open
    progress: Progress = no_progress
    outputs: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = [_logits(value) for value in self.model.graph.outputs]


def curves(source: Source, groups: Sequence[Group], most: Sequence[int]) -> list[Curve]:
    """A curve per group, up to `most` units gone.

    Raises:
        PruneError: onnxruntime cannot run a piece of the model.
    """
    layers = {name: layer for name, layer in _layers(source.model)}
    slices = WeightSlices(source.catalogue)
    wanted = {name for group in groups for name, _ in group.weights}
    grams = _grams(source, {name: layer for name, layer in layers.items() if name in wanted})
    held = Pieces(source.model, source.held, source.start)
    base = [held_copy for held_copy in _outputs(Pieces(source.model, source.held, source.start), source.outputs)]
    trials = [_Trial(source, group, layers, grams, slices) for group in groups]
    order = sorted(range(len(groups)), key=lambda number: trials[number].first)
    found: dict[int, Curve] = {}
    for number in source.progress(order, "measuring groups", len(order)):
        found[number] = trials[number].curve(held, base, most[number])
    return [found[number] for number in range(len(groups))]


def _layers(model: ir.Model) -> Iterator[tuple[str, Linear]]:
    for node in model.graph:
        layer = linear(node)
        weight = node.inputs[layer.weight] if layer is not None else None
        if layer is not None and weight is not None and len(list(weight.uses())) == 1:
            yield weight.name or "", layer


def _logits(value: ir.Value) -> str:
    """An output, or what its final Softmax or Sigmoid reads, which does not saturate."""
    node = value.producer()
    seen = node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid") and node.inputs[0] is not None
    return (node.inputs[0].name if seen else value.name) or ""  # type: ignore[union-attr]


def _grams(source: Source, layers: Mapping[str, Linear]) -> dict[str, Array]:
    """X^T X of each layer that is not too wide, (groups, d, d), with a last column of ones."""
    pieces = Pieces(source.model, source.feeds, source.start)
    out: dict[str, Array] = {}
    for name, layer in source.progress(layers.items(), "measuring inputs", len(layers)):
        groups, _, taps, cols = layer.layout.canonical_shape
        if cols < 2 or taps * cols >= WIDEST:
            continue
        data = layer.node.inputs[layer.data]
        width = taps * cols
        gram = np.zeros((groups, width + 1, width + 1))
        for batch in pieces.get((data.name or "") if data is not None else ""):
            for part in _parts(layer, batch):
                x = layer.x(part)
                gram[:, :width, :width] += x.transpose(0, 2, 1) @ x
                gram[:, width, :width] += x.sum(axis=1, dtype=np.float64)
                gram[:, width, width] += x.shape[1]
        gram[:, :width, width] = gram[:, width, :width]
        if np.isfinite(gram).all():
            out[name] = gram
        pieces.release()
    return out


def _parts(layer: Linear, data: Array) -> Iterator[Array]:
    if layer.node.op_type not in ("Conv", "ConvTranspose"):
        yield data
        return
    taps = layer.layout.canonical_shape[2]
    step = max(CHUNK // max(int(np.prod(data.shape[1:])) * taps, 1), 1)
    yield from (data[start : start + step] for start in range(0, len(data), step))


def _outputs(pieces: Pieces, names: Sequence[str], changed: Mapping[str, Array] | None = None) -> list[Array]:
    """Each output over all batches, float64."""
    found = list(pieces.outputs(list(dict.fromkeys(names)), changed or {}))
    return [np.concatenate([np.asarray(one[name], np.float64).reshape(-1) for one in found]) for name in names]


class _Trial:
    """One group: its readers, and what the model does without some of its units."""

    def __init__(
        self, source: Source, group: Group, layers: Mapping[str, Linear], grams: Mapping[str, Array],
        slices: WeightSlices,
    ) -> None:  # fmt: skip
        self.source, self.group = source, group
        self.owners: list[tuple[str, Linear]] = []
        self.readers: list[Reader] = []
        touched = {name for name, _ in group.weights}
        model = source.model
        self.nodes = [node for node in model.graph if any(v.name in touched for v in reads(node))]
        places = {node: number for number, node in enumerate(model.graph)}
        self.first = min((places[node] for node in self.nodes), default=0)
        self.norms: list[Array] = []
        for piece in slices.of(group):
            if piece.role == "in" and piece.name in grams:
                self._read(layers[piece.name], piece.name, piece.axis, piece.index, grams[piece.name])
            else:
                norm = np.square(piece.take(slices.array(piece.name))).sum(axis=1)
                self.norms.append(norm / max(float(norm.sum()), _TINY))

    def _read(self, layer: Linear, name: str, axis: int, index: Array, grams: Array) -> None:
        """One reader per group of the layer; a unit's rows are its columns at every tap."""
        shape = layer.layout.shape
        label = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        columns = layer.layout.canonical(np.broadcast_to(label, shape).copy())[:, 0, 0, :]
        _, _, taps, cols = layer.layout.canonical_shape
        matrix = layer.matrix(_content(self.source.model, name))
        for number in range(len(matrix)):
            place = np.full(shape[axis], -1)
            place[columns[number]] = np.arange(cols)
            mine = place[index]
            units = np.flatnonzero((mine >= 0).all(axis=1))
            rows = (np.arange(taps)[None, :, None] * cols + mine[units][:, None, :]).reshape(len(units), -1)
            full = np.concatenate([matrix[number], np.zeros((1, matrix.shape[2]))])
            reader = Reader(grams[number], full, units, rows)
            reader.weight = 1 / max(_spread(reader), _TINY)
            self.readers.append(reader)
            self.owners.append((name, layer))

    def curve(self, held: Pieces, base: Sequence[Array], most: int) -> Curve:
        count = self.group.count
        counts = sorted({min(max(round(share * count), 1), most) for share in SHARES} | {most})
        found = eliminate(self.readers, count, most, counts) if self.readers else self._by_norm(most)
        node = self.nodes[0]
        held.need(v.name or "" for v in reads(node) if v.producer() is not None)
        held.release()
        damage = [0.0] + [self._damage(held, base, found, k) for k in counts]
        along = found.errors + np.arange(most + 1) * max(float(found.errors[-1]), _TINY) * 1e-6
        measured = np.interp(along, along[[0, *counts]], np.maximum.accumulate(damage))
        order, rest = found.order[:most], sorted(set(range(count)) - set(found.order[:most]))
        padded = np.concatenate([measured, np.full(len(rest) - 1, measured[-1] + 1)])
        return Curve(order + rest[:-1], padded)

    def _by_norm(self, most: int) -> Elimination:
        """Where no layer reads the units linearly: the smallest weights first."""
        score = np.sum(self.norms, axis=0)
        return Elimination(np.argsort(score, kind="stable")[:most].tolist(), np.zeros(most + 1), {})

    def _damage(self, held: Pieces, base: Sequence[Array], found: Elimination, gone: int) -> float:
        mask = np.zeros(self.source.catalogue.count, bool)
        mask[self.group.first + np.array(found.order[:gone])] = True
        changed = self._zeroed(mask)
        changed |= self._refitted(found.snapshots[gone]) if self.readers else {}
        now = _outputs(held, self.source.outputs, changed)
        ratios = [np.square(a - b).sum() / max(np.square(b - b.mean()).sum(), _TINY) for a, b in zip(now, base, strict=True)]
        return float(np.nan_to_num(np.mean(ratios), nan=1e6, posinf=1e6))

    def _zeroed(self, mask: Array) -> dict[str, Array]:
        """The group's weights with zeros where the units are."""
        out: dict[str, Array] = {}
        removed, touched = self.source.catalogue.removed(mask), {name for name, _ in self.group.weights}
        for name in touched & set(removed):
            array = np.array(_content(self.source.model, name))
            for axis, positions in removed[name].items():
                np.moveaxis(array, axis, 0)[positions] = 0
            out[name] = array
        return out

    def _refitted(self, matrices: Sequence[Array]) -> dict[str, Array]:
        parts: dict[str, list[Array]] = {}
        layers = dict(self.owners)
        for (name, _), matrix in zip(self.owners, matrices, strict=True):
            parts.setdefault(name, []).append(matrix[:-1])
        out = {}
        for name, rows in parts.items():
            old = _content(self.source.model, name)
            out[name] = np.ascontiguousarray(layers[name].stored(np.stack(rows), old.shape).astype(old.dtype))
        return out


def _spread(reader: Reader) -> float:
    """sum (Y - mean Y)^2, or sum Y^2 where Y hardly varies."""
    total = reader.gram[-1] @ reader.matrix
    varies = reader.energy() - float(np.square(total).sum()) / max(float(reader.gram[-1, -1]), 1.0)
    return varies if varies > 1e-9 * reader.energy() else reader.energy()


def _content(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())
