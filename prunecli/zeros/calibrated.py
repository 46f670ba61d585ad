"""Layers of a model that can be fitted, with what they read and should give on the samples: their equations, which of
their weights go for how much loss, and what the outputs lose when one layer alone is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, evenly_spread
from prunecli.calibration.gradients import looked_at, relative_error
from prunecli.calibration.grams import (
    APART,
    HELD,
    LARGE,
    PER_UNKNOWN,
    Addend,
    Equations,
    Folds,
    Picker,
    add_each,
    addends,
    is_held,
    subtract_product,
)
from prunecli.calibration.importance import LEAST, Importance
from prunecli.calibration.influence import EVERYWHERE, Influence
from prunecli.calibration.layers import HIDDEN, LinearLayer, layers_of
from prunecli.calibration.layerwise import Store, Walk, working_form
from prunecli.calibration.mixtures import Mixtures, restate
from prunecli.errors import OutOfMemoryError, PruneError
from prunecli.masks.allocations import LossCurve
from prunecli.masks.decide import Recipe, decide
from prunecli.masks.patterns import Pattern, Windows
from prunecli.model import Model, find_weights
from prunecli.operators import Contraction
from prunecli.reconstruct.admm import admm
from prunecli.reconstruct.fit import (
    FitTask,
    Fitted,
    Method,
    Recover,
    RidgeChoice,
    best_ridge,
    fit,
    scores,
    tried_rows,
)
from prunecli.reconstruct.sparsegpt import Quota
from prunecli.runtime import Session, lanes_of
from prunecli.types import Progress, Skipped
from prunecli.zeros.zero import target_of


@dataclass(frozen=True)
class Way:
    """How to prune: method, pattern, recovery, whether the weights of a row compete among themselves.

    start: opens a session. per_unknown: positions per unknown of a layer's equations.
    """

    method: Method
    pattern: Pattern
    recover: Recover
    by_row: bool
    workers: int
    seed: int
    start: Callable[..., Session]
    per_unknown: int = PER_UNKNOWN


@dataclass(frozen=True)
class Part:
    """Which batches are run: those from `first` on, of so many `batches`."""

    first: int
    batches: int


WHOLE = Part(0, 0)
"""All there are."""


@dataclass
class CalibratedLayers:
    """The layers of a model that can be fitted, in the order in which it runs, and what they read and should give on
    the samples. `names`: of the stored tensors, `mixtures`: in which of them several layers lie; `left`: what cannot be
    fitted; `fixed`: vectors that stay as they are; `original`: the working form of the file;
    `scores`: what the method's criterion asks for, once it was measured; `quick`: estimates do; `part`: of
    the batches, where others are run elsewhere; `inputs`: sums of what the last layer read, and what they are of;
    `importance`: of errors of their outputs; `influence`: which positions of these count at all."""

    file: Model
    original: ir.Model
    feeds: Sequence[Mapping[str, Any]]
    way: Way
    store: Store
    names: Sequence[str]
    mixtures: Mixtures
    all: list[LinearLayer]
    left: list[Skipped]
    fixed: frozenset[str]
    scores: dict[str, Array] = field(default_factory=dict)
    quick: bool = False
    part: Part = field(default_factory=lambda: WHOLE)
    inputs: tuple[object, Folds] | None = None
    importance: Importance | None = None
    influence: Influence = EVERYWHERE
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, file: Model, names: Sequence[str], feeds: Sequence[Mapping[str, Any]], way: Way, store: Store, *,
        fixed: frozenset[str],
    ) -> CalibratedLayers:  # fmt: skip
        """Of the stored tensors `names` of the main graph."""
        found = Fittable.of(file, names, fixed)
        return cls(
            file=file, original=found.model, feeds=feeds, way=way, store=store, names=names, mixtures=found.mixtures,
            all=found.layers, left=found.left, fixed=fixed,
        )  # fmt: skip

    def walk(self, model: ir.Model | None = None, keep: Iterable[str] | None = ()) -> Walk:
        """A run of the original, or of another model, from its start. `keep`: see `Walk`."""
        return Walk(model or self.original, self.feeds, self.store, open_session=self.way.start, keep=keep)

    def student(self) -> tuple[ir.Model, list[LinearLayer]]:
        """A copy to be pruned, and its layers."""
        found = Fittable.of(self.file, self.names, self.fixed)
        return found.model, found.layers

    def weigh(self) -> None:
        """Measure how far errors of each layer's output move those of the model, and at which positions they do at all.
        Where that cannot be had, a note says so."""
        way = self.way
        self.influence = Influence.of(self.original, self.all, self.feeds, start=way.start, seed=way.seed)
        self.notes += self.influence.notes
        try:
            self.importance = Importance.of(
                self.original, self.all, self.feeds, store=self.store, start=way.start, seed=way.seed
            )
        except OutOfMemoryError:
            raise
        except PruneError as error:
            self.notes.append(f"errors of layers are not weighed by what they do to the outputs: {error.message}")

    def worth(self, layer: LinearLayer) -> Array:
        """(batch, rows) what an error of each output counts, 1 on average: its importance, or else the size of the gain
        that follows, of which one that is nearly closed is taken as a hundredth of the largest."""
        size = None if self.importance is None else self.importance.of_rows(layer)
        if size is None:
            gain = np.abs(layer.affine()[0])
            size = np.maximum(gain, LEAST * gain.max(initial=0.0))
        return size / size.mean() if size.any() else np.ones_like(size)

    def ridge(self, layer: LinearLayer, folds: Folds, recover: Recover, density: float) -> RidgeChoice | None:
        """The ridge that held-out samples choose; None without any, or where there are none beside them: all are fitted
        on then."""
        if folds.held is None:
            return None
        if not (folds.held.positions and folds.fitted.positions):
            folds.whole()
            return None
        batch, rows = layer.shape[:2]
        some = evenly_spread(rows, tried_rows(batch, (rows, folds.held.gram.shape[1]), density))
        held, pattern = list(self.tasks(layer, folds.held, rows=some)), self.way.pattern
        return best_ridge(
            list(self.tasks(layer, folds.fitted, rows=some)), held, recover, pattern=pattern, density=density,
            workers=self.way.workers,
        )  # fmt: skip

    def tasks(
        self, layer: LinearLayer, sums: Equations, ridge: RidgeChoice | None = None, rows: Array | slice = slice(None),
        *, last: bool = False,
    ) -> Iterator[FitTask]:  # fmt: skip
        """The least-squares problems of a layer, one per matrix, its rows multiplied by what they are worth, as they
        compete with each other. `plain` undoes it. The `last` ones take the place of the sums."""
        sums.check(layer.name)
        free, taps = layer.offset is not None, layer.shape[2]
        bias, worth = layer.bias()[:, rows], self.worth(layer)[:, rows]
        for batch, weights in enumerate(layer.matrices(dtype=sums.gram.dtype)[:, rows]):
            found, offset = sums.problem(batch, free, rows, last=last), bias[batch]
            cross, variance = found.cross, found.squares
            if not free:  # what is added stays: the product alone is to be fitted
                subtract_product(cross, offset, found.x)
                variance = variance - 2 * offset * found.y + offset**2
            g, column = worth[batch], worth[batch][:, None].astype(weights.dtype)
            cross *= column
            yield FitTask(
                weights=weights * column, gram=found.gram, cross=cross, x=found.x, y=found.y * g,
                variance=variance * g**2, count=found.count, offset=offset * g, free=free, taps=taps,
                ridge=None if ridge is None else ridge.ridge,
            )  # fmt: skip

    def plain(self, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Array, Array, Array]:
        """Weights and mask as stored, and the shift of all rows."""
        worth = self.worth(layer)
        weights, drop = (_stacked([getattr(one, name) for one in best]) for name in ("weights", "drop"))
        weights = np.divide(weights, worth[..., None].astype(weights.dtype))
        shift = np.stack([one.shift for one in best]) / worth
        return layer.stored(weights), layer.stored(drop), shift.reshape(-1)

    def sums(self, layer: LinearLayer, wanted: Walk, given: Walk, others: str | None = None) -> Folds:
        """Over all uses: what the layer reads in `given`, and what it is to give, by `wanted`. `others`: what the
        output is added to, whose own error it makes up for."""
        batch, rows, taps, cols = layer.shape
        part = self.part if self.part.batches else Part(0, wanted.batches)
        held = part.batches >= HELD and (taps * cols) ** 2 <= LARGE and rows * taps * cols <= LARGEST_HELD
        folds = Folds.empty(batch, rows, taps * cols, held=held)
        key = self._shares(layer, given)
        known = key is not None and self.inputs is not None and self.inputs[0] == key
        if known and self.inputs is not None:
            folds = folds.with_inputs_of(self.inputs[1])
        self.inputs = self.inputs if known else None
        for use in layer.uses:
            self.reach(use, wanted, given, others=others)
            picker = Picker(part.batches, taps * cols, self.way.per_unknown, seed=self.way.seed + part.first)

            def read(use: Contraction = use, picker: Picker = picker) -> Iterator[Addend]:
                for number in range(wanted.batches):
                    target, place = wanted.read(use.output, number), part.first + number
                    if others is not None:
                        off = np.subtract(wanted.read(others, number), given.read(others, number), dtype=np.float32)
                        target = _plus(target, off, layer.affine()[0].reshape(-1))
                    into = folds.side(is_held(place, part.batches))
                    places, weights = self._weighed(use, given, number, count=use.positions(target.shape))
                    data = given.read(use.data, number)
                    yield from addends(use, picker.pick(places), into, data=data, wanted=target, weights=weights)

            add_each(read(), folds.fitted, lanes_of(self.way.workers), known=known)
        if key is not None and not known:
            self.inputs = key, folds.inputs()
        return folds

    def _weighed(self, use: Contraction, given: Walk, number: int, count: int) -> tuple[Array, Array | None]:
        """Those of so many positions of a batch at which an error counts anything, and for every position how much;
        None: all the same."""
        places = self.influence.places(use.result, self.feeds[number], count)
        weights = None
        if self.importance is not None:
            weights = self.importance.of_positions(use, number, count, places=places)
        if use.gate is not None:
            gates = np.square(given.read(use.gate.value, number), dtype=np.float32).reshape(-1)
            places, weights = places[gates[places] > 0], gates if weights is None else gates * weights
        return places, weights

    def _shares(self, layer: LinearLayer, given: Walk) -> tuple[object, ...] | None:
        """What names the sums of a layer's inputs, where another layer has the same: queries, keys and values, or both
        branches of a gated product."""
        use, (matrices, rows, taps, cols) = layer.found, layer.shape
        read = use.data, "MatMul", cols
        alike = [one for one in self.all if (one.found.data, one.node.op_type, one.shape[3]) == read]
        plain = layer.node.op_type == "MatMul" and len(layer.uses) == matrices == taps == 1
        weighed = self.importance is not None and self.importance.by_position  # by each layer anew
        if not plain or cols < APART or len(alike) < 2 or weighed:
            return None
        rule = self.influence.rules.get(use.result)
        large = max(cols, rows) * cols > LARGE
        return id(given), use.data, use.channel, use.gate, cols, large, self.way.per_unknown, rule

    def reach(self, use: Contraction, wanted: Walk, given: Walk, others: str | None) -> None:
        """Let the walks come to where a layer is read."""
        extra = [] if others is None else [others]
        assert use.output is not None
        given.reach([use.data, *extra, *([] if use.gate is None else [use.gate.value])])
        wanted.reach([use.data, use.output, *extra])

    def contents(
        self, layer: LinearLayer, best: Sequence[Fitted], rows: Array | slice = slice(None)
    ) -> dict[str, Array]:
        """What the weight, and the vector beside it, would hold, by their names. `rows`: those that were fitted; the
        others stay as they are."""
        values, _, shift = self.plain(layer, [self._with_others(layer, one, rows) for one in best])
        made = {layer.weight.holder.name: values.astype(layer.weight.dtype.numpy())}
        if layer.offset is not None and layer.offset.source is not None:
            made[layer.offset.name] = layer.offset.content(layer.offset.read(shift.size) + shift)
        return made

    def _with_others(self, layer: LinearLayer, best: Fitted, rows: Array | slice) -> Fitted:
        """The fit of some rows of a layer of one matrix as one of all."""
        if isinstance(rows, slice):
            return best
        weights = layer.matrices(dtype=best.weights.dtype)[0] * self.worth(layer)[0][:, None].astype(best.weights.dtype)
        drop, shift = np.zeros(weights.shape, np.bool_), np.zeros(len(weights))
        weights[rows], drop[rows], shift[rows] = best.weights, best.drop, best.shift
        return Fitted(weights, drop, shift)

    def release(self, layer: LinearLayer, *walks: Walk) -> None:
        """Let the walks go of what `sums` asked for."""
        for walk in walks:
            for use in layer.uses:
                for name in (use.data, use.output, *([] if use.gate is None else [use.gate.value])):
                    walk.release(name or "")

    def choose(self, layer: LinearLayer, tasks: Sequence[FitTask], amount: int) -> list[Array | Quota]:
        """Which weights go when `amount` of them do: per matrix a mask, or a number where the method chooses itself."""
        method, pattern = self.way.method, self.way.pattern
        several = self._is_several(layer)
        if self.is_swept(layer):
            return [Quota(part, self.way.by_row) for part in _parts([task.gone for task in tasks], amount)]
        if method.is_iterated(pattern, layer.shape) or several:
            weights, grams = np.stack([task.weights for task in tasks]), np.stack([task.damped for task in tasks])
            return list(admm(weights, grams, lambda each: self.lowest(layer, each.reshape(layer.shape), amount)))
        if layer.name not in self.scores:
            each = scores(method.evidence, tasks, pattern, workers=self.way.workers)
            scale = max(1.0, float(each.max(initial=0)) / float(np.finfo(np.float32).max))  # only their order counts
            self.scores[layer.name] = (each.reshape(layer.shape) / scale).astype(np.float32)
        return list(self.lowest(layer, self.scores[layer.name], amount))

    def is_swept(self, layer: LinearLayer) -> bool:
        """Whether what goes is chosen on the way by `sparsegpt`."""
        return self.way.method.criterion is None and not self._is_several(layer)

    def _is_several(self, layer: LinearLayer) -> bool:
        """Whether an estimate is of several matrices that compete with each other."""
        return self.quick and layer.shape[0] > 1 and self.way.pattern.text != "row"

    def rows_to_estimate(self, layer: LinearLayer) -> Array | slice:
        """Rows, evenly spread, whose losses stand for those of all: of large layers, whose rows are many and share one
        factor, as many as `ESTIMATED` allows."""
        batch, rows, taps, cols = layer.shape
        count = max(int(ESTIMATED / (taps * cols) ** 2), LEAST_ROWS)
        if batch > 1 or count >= rows or not self.is_swept(layer) or self.way.pattern.text != "element":
            return slice(None)
        return evenly_spread(rows, count)

    def lowest(self, layer: LinearLayer, scores: Array, amount: int) -> Array:
        """(matrices, rows, K): the `amount` weights of the least scores, which have the layer's shape, as the pattern
        allows."""
        return self._least(layer, self.way.method.criterion or "obs", layer.stored(scores), amount=amount)

    def smallest(self, layer: LinearLayer, amount: int) -> Array:
        """The same by magnitude."""
        return self._least(layer, "l1", None, amount=amount)

    def _least(self, layer: LinearLayer, criterion: str, evidence: Array | None, amount: int) -> Array:
        pattern = self.way.pattern
        sparsity = None if isinstance(pattern, Windows) else amount / layer.weight.size
        scope = None if isinstance(pattern, Windows) else "row" if self.way.by_row else "layer"
        recipe = Recipe(pattern.text, scope, criterion, sparsity=sparsity)
        drop = decide([target_of(layer.weight, evidence)], recipe)[0].drop(layer.weight.array())
        return layer.matrices(drop.astype(np.float32)) > 0

    def fitted(self, tasks: Sequence[FitTask], chosen: Sequence[Array | Quota], recover: Recover) -> list[Fitted]:
        way = self.way
        pairs = zip(tasks, chosen, strict=True)
        return [
            fit(way.method, recover, task, pattern=way.pattern, chosen=one, workers=way.workers, refine=not self.quick)
            for task, one in pairs
        ]


@dataclass(frozen=True)
class Fittable:
    """A working form of a file, in which each matrix of a mixture is a layer, with the layers that can be fitted, and
    why other stored tensors cannot."""

    model: ir.Model
    mixtures: Mixtures
    layers: list[LinearLayer]
    left: list[Skipped]

    @classmethod
    def of(cls, file: Model, names: Sequence[str], fixed: frozenset[str]) -> Fittable:
        """Of the stored tensors `names` of the main graph; of vectors, those that the file stores and that are not
        `fixed` may move."""
        model = working_form(file.ir)
        mixtures = restate(model)
        found = find_weights(replace(file, ir=model))
        held = {w.holder.name: w for w in found.prunable if w.holder.graph is model.graph}
        asked = mixtures.names(names)
        layers, left = layers_of(model, [held[name] for name in asked if name in held])
        vectors = {w.holder.name for w in found.others} - {*mixtures.names(fixed)}
        left += [Skipped(name, HIDDEN) for name in asked if name not in held]
        reasons = {mixtures.whole(skip.name): skip.reason for skip in left}
        reasons |= {name: reason for name, reason in mixtures.left.items() if name in reasons}
        left = [Skipped(name, reason) for name, reason in reasons.items()]
        return cls(model, mixtures, [layer.moving_only(vectors) for layer in layers], left)


def _stacked(arrays: Sequence[Array]) -> Array:
    """As `np.stack`, but one alone is not copied."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _parts(gone: Sequence[Array], amount: int) -> list[int]:
    """How many weights of each matrix go: what is zero already, and of the rest the same share of each."""
    zeros, sizes = np.array([one.sum() for one in gone]), np.array([one.size for one in gone])
    ever, live = int(zeros.sum()), sizes - zeros
    rest = live * (amount - ever) / max(int(live.sum()), 1) if amount > ever else zeros * (amount / max(ever, 1) - 1)
    ends = np.rint(np.cumsum(zeros + rest)).astype(int)
    return [int(part) for part in np.diff(ends, prepend=0)]


def _plus(target: Array, off: Array, gain: Array) -> Array:
    """target + off / gain, gain per channel: what makes up for `off` after a normalisation. A channel that it all but
    closes makes up for nothing. Shapes that differ (broadcast additions) are left alone."""
    if off.shape != target.shape:
        return target
    axis = 1 if target.ndim > 2 else target.ndim - 1
    if target.shape[axis] != gain.size:
        return target if not (gain == 1).all() else target + off
    open_ = np.abs(gain) > 1e-2 * np.abs(gain).max()
    inverse = np.where(open_, 1 / np.where(open_, gain, 1), 0).astype(np.float32)
    shape = [1] * target.ndim
    shape[axis] = gain.size
    return np.asarray(target + off * inverse.reshape(shape), np.float32)


LARGEST_HELD = 4 * LARGE
"""Elements of a weight up to which some samples are held out to choose a ridge: their sums take as much memory as those
of all. Inputs whose Gram matrix is `LARGE` take too long to try ridges on."""
ESTIMATED = 4e9
"""Rows times inputs squared of a layer, up to which its loss is taken on all rows."""
LEAST_ROWS = 256
"""At least so many rows stand for all: where losses of rows differ by half, the mean of so many is off by 3 %."""
LEVELS = (2.5, 1.4, 0.6, 0.3)
"""Densities at which a layer's loss is taken, in parts of the density that is asked for."""
ROUGHLY = 30
"""Positions per unknown for those losses, which need not be as exact as the fit."""
PROBED_SAMPLES = 64
"""At most, on which it is measured how much reaches the outputs."""
PROBED = (1, 2)
"""Of those, at which it is measured how much reaches the outputs."""


def unreached(layer: LinearLayer, folds: Folds) -> bool:
    """Whether a layer is of an expert that is given no position of the samples."""
    return layer.found.gate is not None and not folds.positions


def scored(layers: CalibratedLayers, progress: Progress) -> Iterator[tuple[LinearLayer, Array]]:
    """What the method's criterion needs of each weight, layer by layer, as the original model runs; nothing of those of
    which no sample tells."""
    walk, way = layers.walk(), layers.way
    for layer in progress(layers.all, "measuring layers", len(layers.all)):
        folds = layers.sums(layer, walk, walk)
        layers.release(layer, walk)
        if unreached(layer, folds):
            continue
        tasks = list(layers.tasks(layer, folds.whole()))
        yield layer, layer.stored(scores(way.method.evidence, tasks, way.pattern, workers=way.workers))
    walk.close()


def losses(layers: CalibratedLayers, density: float, progress: Progress) -> list[LossCurve | None]:
    """What the outputs lose when one layer alone is pruned, for each layer, on samples that it was not fitted on; None
    of those of which no sample tells."""
    levels = sorted({min(max(density * part, 0.005), 0.97) for part in LEVELS}, reverse=True)
    with_probe = [levels[min(place, len(levels) - 1)] for place in PROBED]
    way = layers.way
    rough = replace(way, method=way.method.stand_in(way.pattern), per_unknown=ROUGHLY)
    quick = replace(layers, way=rough, quick=True)
    walk = layers.walk(keep=None)
    probe = Probe.of(walk, looked_at(layers.original.graph.outputs), walk.batches)
    found: list[LossCurve | None] = []
    for layer in progress(layers.all, "measuring layers", len(layers.all)):
        own = walk if len(layer.uses) == 1 else layers.walk()  # what lies between its uses is still to come
        folds = quick.sums(layer, own, own)
        if unreached(layer, folds):
            layers.release(layer, own)
            found.append(None)
            continue
        ridge = quick.ridge(layer, folds, "bias", density=levels[len(levels) // 2])
        some = quick.rows_to_estimate(layer)
        tasks = list(layers.tasks(layer, folds.fitted, ridge, rows=some))
        tasks = [task.factored(way.pattern) for task in tasks] if quick.is_swept(layer) else tasks
        judges = tasks if ridge is None or folds.held is None else list(layers.tasks(layer, folds.held, rows=some))
        alone: list[float] = []
        variants: list[dict[str, Array]] = []
        part = len(tasks[0].weights) / layer.shape[1]
        for level in levels:
            amount = round((1 - level) * part * layer.weight.size)
            best = quick.fitted(tasks, quick.choose(layer, tasks, amount), "bias")
            alone.append(sum(judge.loss(one.weights, one.shift) for judge, one in zip(judges, best, strict=True)))
            if level in with_probe:
                variants.append(layers.contents(layer, best, some))
        far = probe.reaching(layer, walk, variants)
        layers.release(layer, own)
        if own is not walk:
            own.close()
        if not far:  # of no output is it known how it moves: as if all of the relative error came through
            total = sum(float(task.variance.sum()) for task in judges)
            far = [alone[levels.index(level)] / total if total > 0 else 0.0 for level in with_probe]
        scaled = _scaled(levels, alone, with_probe, far=far)
        found.append(LossCurve(levels, [loss / part for loss in scaled]))  # errors of rows add up
    walk.close()
    return found


@dataclass(frozen=True)
class Probe:
    """What the original's outputs are on some batches that judge, by name, batch by batch."""

    batches: list[int]
    base: list[dict[str, Array]]

    @classmethod
    def of(cls, walk: Walk, names: Sequence[str], own: int) -> Probe:
        """Of the values that are numbers, on some of the first `own` batches."""
        held = [number for number in range(own) if is_held(number, own)] or [0]
        base, seen = [], 0
        for [found] in walk.ahead(names, batches=held):
            base.append({n: v for n, v in found.items() if isinstance(v, np.ndarray) and v.dtype.kind not in "OUS"})
            seen += max((len(v) for v in base[-1].values() if v.ndim), default=1)
            if seen >= PROBED_SAMPLES:
                break
        return cls(held[: len(base)], base)

    def reaching(self, layer: LinearLayer, walk: Walk, variants: Sequence[Mapping[str, Array]]) -> list[float]:
        """How much of each variant's change reaches the outputs; empty if it reaches none that is looked at."""
        moved = walk.moved(layer.weight.holder.name, list(self.base[0]))
        if not moved:
            return []
        far = np.zeros(len(variants))
        for base, runs in zip(self.base, walk.ahead(moved, variants, self.batches), strict=True):
            far += [sum(relative_error(base[output], one[output]) for output in moved) for one in runs]
        return [float(value) for value in far / len(self.base)]


def _scaled(
    levels: Sequence[float], own: Sequence[float], probed: Sequence[float], far: Sequence[float]
) -> list[float]:
    """Losses of the layer's own output, times how much of them was seen to reach the outputs; between the probes the
    factor follows a straight line in the logarithms, outside it stays."""
    places = [list(levels).index(level) for level in probed]
    ratios = [far[i] / own[place] if own[place] > 0 and far[i] > 0 else 0.0 for i, place in enumerate(places)]
    if not all(ratios):
        return [max(value, 0.0) * max(ratios) for value in own]
    order = np.argsort(probed)
    factor = np.interp(np.log(levels), np.log(probed)[order], np.log(ratios)[order])
    return [float(value * np.exp(f)) for value, f in zip(own, factor, strict=True)]
