"""`prune oneshot`: zero weights and fit the others on calibration data, without labels and without training.

The original alone is run to measure how much each layer may lose; original and pruned model side by side, layer by
layer, to fit what is left to what the original computes. Everything else (proof, plan, report) is that of
`prune magnitude`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir

from prunecli.calibration.gradients import looked_at, relative_error
from prunecli.calibration.grams import HELD, PER_UNKNOWN, Equations, Folds, Picker, collect, is_held
from prunecli.calibration.layers import HIDDEN, LinearLayer, layers_of
from prunecli.calibration.layerwise import Store, Walk, working_form
from prunecli.calibration.samples import about, calibration_samples, cautions, first_feed
from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.masks.allocations import ALLOCATIONS, LayerSize, LossCurve
from prunecli.masks.decide import Decision, Masked, Recipe, decide
from prunecli.masks.patterns import Pattern, Windows, parse_pattern
from prunecli.model import Model, Weight, find_weights
from prunecli.model.floating import stored_as
from prunecli.model.graphs import refill
from prunecli.options.training import DISTILL
from prunecli.predicted.predict import Undescribed, weight_curves
from prunecli.reconstruct.admm import admm
from prunecli.reconstruct.fit import (
    METHODS,
    FitTask,
    Fitted,
    Method,
    Recover,
    RidgeChoice,
    best_ridge,
    fit,
    scores,
)
from prunecli.reconstruct.sparsegpt import Quota
from prunecli.runtime import Session
from prunecli.types import Json, Progress, Skipped, no_progress
from prunecli.zeros.magnitude import zeroed
from prunecli.zeros.options import Fitting, OneshotOptions
from prunecli.zeros.result import MagnitudeResult
from prunecli.zeros.select import FALLBACK, Selection, Selector, WeightChoice, check_numbers, matches
from prunecli.zeros.zero import target_of

Array = np.ndarray[Any, Any]
SAMPLES = 512
BATCH = 64
BATCHES = 16
"""At least so many batches, where there are samples enough: some of them judge."""
BATCH_BYTES = 8 << 20
"""Of the inputs that are run together: what a network makes of an image can be thirty times as large."""


def oneshot(
    model: str | Path, options: OneshotOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> MagnitudeResult:
    """Prune weights and refit the others layer by layer on unlabelled data, and save the model with proof.

    `changes` override fields of `options`: `oneshot("model.onnx", data="calib.npz", sparsity=0.8)`.

    Raises:
        PruneError: as `magnitude`; no data, or an option that does not fit the method.
    """
    options = OneshotOptions.of(options, **changes)
    how = Oneshot(options)
    return zeroed(Path(model), options, Selector("oneshot", how.select, how.refit), progress)


@dataclass(frozen=True)
class Oneshot:
    """The selection of `prune oneshot`, whose decisions carry new values."""

    options: Fitting

    def select(self, file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection:
        way = self._way(recipe)
        with Store(self.options.memory_bytes) as store:
            layers, data = self._layers(file, choice.chosen, way, store, progress)
            choice = _measured(choice, layers, self.options.fallback)
            allocation, sizes, told = self._allocated(layers, recipe, progress)
            amounts = self._amounts(layers, recipe, allocation, sizes)
            done = self._fitted(choice, layers, amounts, progress, by_value=partial(_by_magnitude, recipe))
        names = {"method": way.method.name, "recover": way.recover}
        allocated = {} if isinstance(way.pattern, Windows) else {"allocate": allocation}
        recipe_json = {"criterion": way.method.name, **names, **allocated, **about(data)}
        return replace(
            done, recipe=recipe_json,
            notes=[*done.notes, *told, *_notes(layers, self.options.fallback), *cautions(data)], feed=first_feed(data),
        )  # fmt: skip

    def refit(self, file: Model, planned: Selection, progress: Progress) -> Selection:
        """Fit what a plan leaves, on this data."""
        pattern = str(planned.recipe.get("pattern", "element"))
        recipe = Recipe(pattern, sparsity=None if ":" in pattern else 0.0)
        with Store(self.options.memory_bytes) as store:
            way = self._replayed(planned.recipe, recipe)
            layers, data = self._layers(file, planned.choice.chosen, way, store, progress)
            known = {w.name: d for w, d in zip(planned.choice.chosen, planned.decisions, strict=True)}
            masks = {w.holder.name: known[w.name].drop(w.array()) for w in planned.choice.chosen}
            done = self._fitted(planned.choice, layers, masks, progress, by_value=lambda weight: known[weight.name])
        asked = about(data) | {"recover": way.recover}
        return replace(done, recipe=planned.recipe | asked, notes=[*done.notes, *cautions(data)], feed=first_feed(data))

    def _replayed(self, planned: Json, recipe: Recipe) -> Way:
        """The way of a plan: its own method, and its recovery unless another one is asked for."""
        way = self._way(recipe)
        if planned.get("method") in [method.name for method in METHODS]:
            way = replace(way, method=METHODS.get(str(planned["method"])))
        if self.options.recover in ("auto", DISTILL) and planned.get("recover") in get_args(Recover):
            way = replace(way, recover=planned["recover"])
        return way

    def _way(self, recipe: Recipe) -> Way:
        o = self.options
        return Way(
            METHODS.get(o.method), parse_pattern(recipe.pattern), o.closed_form,
            by_row=recipe.scope == "row", workers=o.execution.thread_count or 1, seed=o.seed,
            start=o.execution.open,
        )  # fmt: skip

    def _layers(
        self, file: Model, chosen: Sequence[Weight], way: Way, store: Store, progress: Progress
    ) -> tuple[CalibratedLayers, Dataset]:
        o = self.options
        assert o.source is not None
        check_numbers(file)
        data = calibration_samples(
            file, o.source, SAMPLES, seed=o.seed, dims=o.dims, execution=o.execution, progress=progress
        )
        names = [w.holder.name for w in chosen if w.holder.graph is file.ir.graph]
        feeds = [batch.feed for batch in data.batches(_batch_size(data))]
        fixed = frozenset(w.holder.name for w in find_weights(file).others if matches(w, o.exclude))
        return CalibratedLayers.of(file, names, feeds, way, store, fixed=fixed), data

    def _allocation(self, recipe: Recipe) -> str:
        return {"global": "loss", "erk": "erk"}.get(recipe.scope or "", self.options.allocate or "loss")

    def _allocated(
        self, layers: CalibratedLayers, recipe: Recipe, progress: Progress
    ) -> tuple[str, list[LayerSize], list[str]]:
        """The allocation, the layers with what it reads of them, and notes: where predictions are not to be had,
        `FALLBACK` takes their place."""
        name, sparsity = self._allocation(recipe), recipe.sparsity or 0.0
        sizes = [LayerSize(layer.weight.shape, layer.weight.size) for layer in layers.all]
        trivial = not 0 < sparsity < 1 or len(sizes) < 2
        source = ALLOCATIONS.get(name).losses
        if source is None or trivial or isinstance(parse_pattern(recipe.pattern), Windows):
            return name, sizes, []
        if source == "measured":
            found = losses(layers, 1 - sparsity, progress)
            return name, [replace(size, losses=curve) for size, curve in zip(sizes, found, strict=True)], []
        try:
            names = [layer.weight.name for layer in layers.all]
            curves = weight_curves(layers.file, names)
        except Undescribed as reason:
            return FALLBACK, sizes, [f"--allocate {FALLBACK} in place of predicted: {reason}"]
        return name, [replace(size, losses=curves[k]) for k, size in zip(names, sizes, strict=True)], []

    def _amounts(
        self, layers: CalibratedLayers, recipe: Recipe, allocation: str, sizes: list[LayerSize]
    ) -> dict[str, int | Array]:
        """How many weights of each layer go."""
        pattern, weights = parse_pattern(recipe.pattern), [layer.weight for layer in layers.all]
        if isinstance(pattern, Windows):
            return {w.holder.name: round(w.size * (1 - pattern.keep / pattern.window)) for w in weights}
        rule, sparsity = ALLOCATIONS.get(allocation), recipe.sparsity or 0.0
        if rule.losses is not None and any(size.losses is None for size in sizes):  # there is nothing to choose
            rule = ALLOCATIONS.get("uniform")
        return {w.holder.name: n for w, n in zip(weights, rule.amounts(sizes, sparsity), strict=True)}

    def _fitted(
        self, choice: WeightChoice, layers: CalibratedLayers, chosen: Mapping[str, int | Array], progress: Progress, *,
        by_value: Callable[[Weight], Decision],
    ) -> Selection:  # fmt: skip
        """Prune and fit. `chosen`: by the stored tensor's name, see `pruned`; `by_value`: decides on weights that are
        not among the layers."""
        graph = layers.file.ir.graph
        by_name = {w.holder.name: w.name for w in choice.chosen if w.holder.graph is graph}
        vectors = {w.holder.name: w for w in find_weights(layers.file).others if w.holder.graph is graph}
        decisions: dict[str, Decision] = {}
        moved: list[tuple[Weight, Decision]] = []
        details: dict[str, Json] = {}
        for layer, matrix, vector, found in pruned(layers, chosen, progress):
            name = by_name[layer.weight.holder.name]
            decisions[name], details[name] = matrix, found
            if vector is not None and layer.offset is not None:
                moved.append((vectors[layer.offset.name], vector))
        told = [f"{len(moved)} biases or means of normalisations were refitted with the weights"] if moved else []
        told += _too_few(details)
        every = [decisions[w.name] if w.name in decisions else by_value(w) for w in choice.chosen]
        return Selection(choice, every, {}, told, moved, details=details)


def _batch_size(data: Dataset) -> int:
    """Samples that are run together."""
    size = sum(array.nbytes for array in next(data.batches(1)).feed.values())
    return max(1, min(BATCH, -(-len(data) // BATCHES), BATCH_BYTES // max(size, 1)))


def measured_scores(
    file: Model, chosen: Sequence[Weight], criterion: str, pattern: str, *, options: Fitting, progress: Progress
) -> tuple[dict[str, Array], list[Skipped]]:
    """What a criterion of activations or Gram matrices needs of each weight that can be measured, of the stored shape,
    on what the original model gives its layer; and why others cannot.

    Raises:
        PruneError: none can be measured.
    """
    method, form = Method(criterion, "", criterion, updates=False), parse_pattern(pattern)
    way = Way(method, form, "none", by_row=False, workers=1, seed=options.seed, start=options.execution.open)
    names = {w.holder.name: w.name for w in chosen}
    with Store(options.memory_bytes) as store:
        layers, _ = Oneshot(options)._layers(file, chosen, way, store, progress)
        found = {names[layer.weight.holder.name]: each for layer, each in scored(layers, progress)}
    choice = _measured(WeightChoice(list(chosen), [], []), layers, False)
    return found, list(choice.skipped)


def _by_magnitude(recipe: Recipe, weight: Weight) -> Decision:
    scope = "row" if recipe.scope == "row" else None
    plain = replace(recipe, scope=scope, criterion=None)
    return decide([target_of(weight)], plain)[0]


def _measured(choice: WeightChoice, layers: CalibratedLayers, fallback: bool) -> WeightChoice:
    """The choice without what has no evidence, unless that may fall back."""
    fitted = {layer.weight.holder.name for layer in layers.all}
    reasons = {skip.name: skip.reason for skip in layers.left}
    without = [w for w in choice.chosen if w.holder.name not in fitted or w.holder.name in reasons]
    if not layers.all and not fallback:
        reason = next(iter(reasons.values()), "none lies in the main graph")
        raise PruneError(f"no chosen weight can be measured: {reason}", "use `prune magnitude`, or --fallback")
    if fallback:
        return choice
    told = [Skipped(w.name, reasons.get(w.holder.name, "it lies in a sub-graph or a function")) for w in without]
    kept = [w for w in choice.chosen if w not in without]
    return WeightChoice(kept, [*choice.left, *without], [*choice.skipped, *told])


FEW = 2.0
"""Times the error of fitted samples, from which on that of held-out ones says that there are too few."""
_SLIGHT = 0.01


def _too_few(details: Mapping[str, Json]) -> list[str]:
    """A note on layers that err far more on samples that they were not fitted on."""
    judged = {name: one for name, one in details.items() if "held_out_error" in one}
    names = [name for name, one in judged.items() if one["held_out_error"] > max(FEW * one["fitted_error"], _SLIGHT)]
    if not names:
        return []
    which = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    far = f"{len(names)} of {len(details)} layers err more than twice as much on held-out samples as on fitted ones"
    return [f"{far} ({which}): the samples are too few for them, and more calibration data would help"]


def _notes(layers: CalibratedLayers, fallback: bool) -> list[str]:
    if not layers.left:
        return []
    if not fallback:
        return [
            f"{len(layers.left)} weights that cannot be fitted stay as they are; --fallback zeroes them by magnitude"
        ]
    return [f"{len(layers.left)} weights without evidence were zeroed by magnitude (--fallback): "
            + ", ".join(skip.name for skip in layers.left[:5])]  # fmt: skip


# -- the layers and their data -----------------------------------------------------------------------


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


@dataclass
class CalibratedLayers:
    """The layers of a model that can be fitted, in the order in which it runs, and what they read and should give on
    the samples. `left`: what cannot be fitted; `fixed`: vectors that stay as they are; `original`: its working form;
    `scores`: what the method's criterion asks for, once it was measured; `quick`: estimates do."""

    file: Model
    original: ir.Model
    feeds: Sequence[Mapping[str, Any]]
    way: Way
    store: Store
    all: list[LinearLayer]
    left: list[Skipped]
    fixed: frozenset[str]
    scores: dict[str, Array] = field(default_factory=dict)
    quick: bool = False

    @classmethod
    def of(
        cls, file: Model, names: Sequence[str], feeds: Sequence[Mapping[str, Any]], way: Way, store: Store, *,
        fixed: frozenset[str],
    ) -> CalibratedLayers:  # fmt: skip
        """Of the stored tensors `names` of the main graph."""
        original = working_form(file.ir)
        layers, left = fittable(file, original, names, fixed)
        return cls(file=file, original=original, feeds=feeds, way=way, store=store, all=layers, left=left, fixed=fixed)

    def walk(self, model: ir.Model | None = None) -> Walk:
        """A run of the original, or of another model, from its start."""
        return Walk(model or self.original, self.feeds, self.store, self.way.start)

    def ridge(self, layer: LinearLayer, folds: Folds, recover: Recover, density: float) -> RidgeChoice | None:
        """The ridge that held-out samples choose, None without any."""
        if folds.held is None or not folds.held.count:
            return None
        fitted, held = list(self.tasks(layer, folds.fitted)), list(self.tasks(layer, folds.held))
        return best_ridge(fitted, held, recover, self.way.pattern, density)

    def tasks(self, layer: LinearLayer, sums: Equations, ridge: RidgeChoice | None = None) -> Iterator[FitTask]:
        """The least-squares problems of a layer, one per matrix, its rows multiplied by what follows: rows compete
        with each other, and a small one that is made large counts as a large one. `plain` undoes it."""
        sums.check(layer.name)
        free, taps = layer.offset is not None, layer.shape[2]
        bias, worth = layer.bias(), _worth(layer)
        for batch, weights in enumerate(layer.matrices()):
            found, offset = sums.problem(batch, free), bias[batch]
            cross, variance = found.cross, found.squares
            if not free:  # what is added stays: the product alone is to be fitted
                cross = cross - np.outer(offset, found.x)
                variance = variance - 2 * offset * found.y + offset**2
            g = worth[batch]
            yield FitTask(
                weights=weights * g[:, None], gram=found.gram, cross=cross * g[:, None], x=found.x, y=found.y * g,
                variance=variance * g**2, count=found.count, offset=offset * g, free=free, taps=taps,
                ridge=None if ridge is None else ridge.ridge,
            )  # fmt: skip

    def plain(self, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Array, Array, Array]:
        """Weights and mask as stored, and the shift of all rows."""
        worth = _worth(layer)
        weights = np.stack([one.weights for one in best]) / worth[..., None]
        drop = np.stack([one.drop for one in best])
        shift = np.stack([one.shift for one in best]) / worth
        return layer.stored(weights), layer.stored(drop), shift.reshape(-1)

    def sums(self, layer: LinearLayer, wanted: Walk, given: Walk, others: str | None = None) -> Folds:
        """Over all uses: what the layer reads in `given`, and what it is to give, by `wanted`. `others`: what the
        output is added to, whose own error it makes up for."""
        batch, rows, taps, cols = layer.shape
        folds = Folds.empty(batch, rows, taps * cols, held=wanted.batches >= HELD)
        for use in layer.uses:
            extra = [] if others is None else [others]
            assert use.output is not None
            given.reach([use.data, *extra])
            wanted.reach([use.data, use.output, *extra])
            picker = Picker(wanted.batches, taps * cols, self.way.per_unknown, self.way.seed)
            for number in range(wanted.batches):
                target = wanted.read(use.output, number)
                if others is not None:
                    off = np.subtract(wanted.read(others, number), given.read(others, number), dtype=np.float32)
                    target = _plus(target, off, layer.affine()[0].reshape(-1))
                into = folds.side(is_held(number, wanted.batches))
                collect(use, picker, into, given.read(use.data, number), target)
        return folds

    def contents(self, layer: LinearLayer, best: Sequence[Fitted]) -> dict[str, Array]:
        """What the weight, and the vector beside it, would hold, by their names."""
        values, _, shift = self.plain(layer, best)
        made = {layer.weight.holder.name: values.astype(layer.weight.dtype.numpy())}
        if layer.offset is not None and layer.offset.source is not None:
            made[layer.offset.name] = layer.offset.content(layer.offset.read(shift.size) + shift)
        return made

    def release(self, layer: LinearLayer, *walks: Walk) -> None:
        """Let the walks go of what `sums` asked for."""
        for walk in walks:
            for use in layer.uses:
                walk.release(use.data)
                walk.release(use.output or "")

    def choose(self, layer: LinearLayer, tasks: Sequence[FitTask], amount: int) -> list[Array | Quota]:
        """Which weights go when `amount` of them do: per matrix a mask, or a number where the method chooses itself."""
        method, pattern = self.way.method, self.way.pattern
        several = self.quick and len(tasks) > 1 and pattern.text != "row"
        if method.criterion is None and not several:
            return [Quota(part, self.way.by_row) for part in _parts([task.gone for task in tasks], amount)]
        if method.is_iterated(pattern, layer.shape) or several:
            weights, grams = np.stack([task.weights for task in tasks]), np.stack([task.damped for task in tasks])
            return list(admm(weights, grams, lambda each: self.lowest(layer, each.reshape(layer.shape), amount)))
        if layer.name not in self.scores:
            each = scores(method.evidence, tasks, pattern, self.way.workers)
            scale = max(1.0, float(each.max(initial=0)) / float(np.finfo(np.float32).max))  # only their order counts
            self.scores[layer.name] = (each.reshape(layer.shape) / scale).astype(np.float32)
        return list(self.lowest(layer, self.scores[layer.name], amount))

    def lowest(self, layer: LinearLayer, scores: Array, amount: int) -> Array:
        """(matrices, rows, K): the `amount` weights of the least scores, which have the layer's shape, as the pattern
        allows."""
        method, pattern = self.way.method, self.way.pattern
        sparsity = None if isinstance(pattern, Windows) else amount / layer.weight.size
        scope = None if isinstance(pattern, Windows) else "row" if self.way.by_row else "layer"
        recipe = Recipe(pattern.text, scope, method.criterion or "obs", sparsity)
        array = layer.weight.array()
        drop = decide([target_of(layer.weight, layer.stored(scores))], recipe)[0].drop(array)
        return layer.matrices(drop.astype(np.float32)) > 0

    def fitted(self, tasks: Sequence[FitTask], chosen: Sequence[Array | Quota], recover: Recover) -> list[Fitted]:
        way = self.way
        pairs = zip(tasks, chosen, strict=True)
        return [
            fit(way.method, recover, task, way.pattern, one, workers=way.workers, refine=not self.quick)
            for task, one in pairs
        ]


def fittable(
    file: Model, work: ir.Model, names: Sequence[str], fixed: frozenset[str]
) -> tuple[list[LinearLayer], list[Skipped]]:
    """Of the stored tensors `names` of the main graph; of vectors, those that the file stores and that are not `fixed`
    may move."""
    found = find_weights(replace(file, ir=work))
    held = {w.holder.name: w for w in found.prunable if w.holder.graph is work.graph}
    layers, left = layers_of(work, [held[name] for name in names if name in held])
    vectors = {w.holder.name for w in found.others} - fixed
    left += [Skipped(name, HIDDEN) for name in names if name not in held]
    return [layer.moving_only(vectors) for layer in layers], left


def _parts(gone: Sequence[Array], amount: int) -> list[int]:
    """How many weights of each matrix go: what is zero already, and of the rest the same share of each."""
    zeros, sizes = np.array([one.sum() for one in gone]), np.array([one.size for one in gone])
    ever, live = int(zeros.sum()), sizes - zeros
    rest = live * (amount - ever) / max(int(live.sum()), 1) if amount > ever else zeros * (amount / max(ever, 1) - 1)
    ends = np.rint(np.cumsum(zeros + rest)).astype(int)
    return [int(part) for part in np.diff(ends, prepend=0)]


def _worth(layer: LinearLayer) -> Array:
    """(batch, rows) the size of the gain. One that is nearly closed is taken as a thousandth of the largest."""
    size = np.abs(layer.affine()[0])
    largest = size.max(initial=0.0)
    return np.maximum(size, 1e-3 * largest) if largest > 0 else np.ones_like(size)


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


LEVELS = (2.5, 1.4, 0.6, 0.3)
"""Densities at which a layer's loss is taken, in parts of the density that is asked for."""
ROUGHLY = 30
"""Positions per unknown for those losses, which need not be as exact as the fit."""
PROBED_SAMPLES = 64
"""At most, on which it is measured how much reaches the outputs."""
PROBED = (1, 2)
"""Of those, at which it is measured how much reaches the outputs."""


def scored(layers: CalibratedLayers, progress: Progress) -> Iterator[tuple[LinearLayer, Array]]:
    """What the method's criterion needs of each weight, layer by layer, as the original model runs."""
    walk, way = layers.walk(), layers.way
    for layer in progress(layers.all, "measuring layers", len(layers.all)):
        tasks = list(layers.tasks(layer, layers.sums(layer, walk, walk).whole()))
        layers.release(layer, walk)
        yield layer, layer.stored(scores(way.method.evidence, tasks, way.pattern, way.workers))
    walk.close()


def losses(layers: CalibratedLayers, density: float, progress: Progress) -> list[LossCurve]:
    """What the outputs lose when one layer alone is pruned, for each layer, on samples that it was not fitted on."""
    levels = sorted({min(max(density * part, 0.005), 0.97) for part in LEVELS}, reverse=True)
    with_probe = [levels[min(place, len(levels) - 1)] for place in PROBED]
    way = layers.way
    rough = replace(way, method=way.method.stand_in(way.pattern), per_unknown=ROUGHLY)
    quick = replace(layers, way=rough, quick=True)
    walk = layers.walk()
    probe = Probe.of(walk, looked_at(layers.original.graph.outputs))
    found = []
    for layer in progress(layers.all, "measuring layers", len(layers.all)):
        folds = quick.sums(layer, walk, walk)
        ridge = quick.ridge(layer, folds, "bias", levels[len(levels) // 2])
        tasks = list(layers.tasks(layer, folds.fitted, ridge))
        judges = tasks if ridge is None or folds.held is None else list(layers.tasks(layer, folds.held))
        own: list[float] = []
        variants: list[dict[str, Array]] = []
        for level in levels:
            amount = round((1 - level) * layer.weight.size)
            best = quick.fitted(tasks, quick.choose(layer, tasks, amount), "bias")
            own.append(sum(judge.loss(one.weights, one.shift) for judge, one in zip(judges, best, strict=True)))
            if level in with_probe:
                variants.append(layers.contents(layer, best))
        far = probe.reaching(layer, walk, variants)
        layers.release(layer, walk)
        if not far:  # of no output is it known how it moves: as if all of the relative error came through
            total = sum(float(task.variance.sum()) for task in judges)
            far = [own[levels.index(level)] / total if total > 0 else 0.0 for level in with_probe]
        found.append(LossCurve(levels, _scaled(levels, own, with_probe, far)))
    walk.close()
    return found


@dataclass(frozen=True)
class Probe:
    """What the original's outputs are on some batches that judge, by name, batch by batch."""

    batches: list[int]
    base: list[dict[str, Array]]

    @classmethod
    def of(cls, walk: Walk, names: Sequence[str]) -> Probe:
        """Of the values that are numbers."""
        held = [number for number in range(walk.batches) if is_held(number, walk.batches)] or [0]
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


def pruned(
    layers: CalibratedLayers, chosen: Mapping[str, int | Array], progress: Progress
) -> Iterator[tuple[LinearLayer, Masked, Masked | None, dict[str, float]]]:
    """Prune and fit layer after layer.

    Args:
        chosen: by the name of the stored tensor, how many weights go, or which (a mask of the stored shape).
    """
    student = working_form(layers.file.ir)
    mine, _ = fittable(layers.file, student, [layer.weight.holder.name for layer in layers.all], layers.fixed)
    wanted = layers.walk()
    given = layers.walk(student)
    shared = _shared(layers, mine)
    for layer in progress(mine, "pruning layers", len(mine)):
        # in a transformer, whose sums follow an added bias, their errors drown the small outputs of the branches
        others = layer.carried if layer.is_summed_plainly else None
        folds = shared.get(layer.name) or layers.sums(layer, wanted, given, others)
        layers.release(layer, wanted, given)
        goes = chosen[layer.weight.holder.name]
        amount = goes if isinstance(goes, int) else int(np.count_nonzero(goes))
        ridge = layers.ridge(layer, folds, layers.way.recover, 1 - amount / max(layer.weight.size, 1))
        tasks = list(layers.tasks(layer, folds.whole(), ridge))
        best = layers.fitted(tasks, _picked(layers, layer, tasks, goes), layers.way.recover)
        yield layer, *_put(layers, layer, best), _report(tasks, best, ridge)
    wanted.close()
    given.close()


def _picked(
    layers: CalibratedLayers, layer: LinearLayer, tasks: Sequence[FitTask], amount: int | Array
) -> list[Array | Quota]:
    """What goes, by losses on what the pruned layers before give, from the best weights for that."""
    if not isinstance(amount, int):
        return list(layer.matrices(amount) > 0)
    if layers.way.method.updates and layers.way.recover == "lstsq" and layers.way.method.criterion:
        layers.scores.pop(layer.name, None)
        return layers.choose(layer, [task.optimum() for task in tasks], amount)
    return layers.choose(layer, tasks, amount)


def _shared(layers: CalibratedLayers, mine: Sequence[LinearLayer]) -> dict[str, Folds]:
    """Layers whose weight is read in several places are fitted on what the original gives them in all of them."""
    several = [layer for layer in mine if len(layer.uses) > 1]
    if not several:
        return {}
    walk = layers.walk()
    found = {layer.name: layers.sums(layer, walk, walk) for layer in several}
    walk.close()
    return found


def _put(layers: CalibratedLayers, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Masked, Masked | None]:
    """Store the weights in the pruned model, rounded as they will be saved."""
    array = layer.weight.array()
    values, drop, shift = layers.plain(layer, best)
    integers = stored_as(layer.weight.tensor)
    if integers is not None:
        values = integers.array_of(integers.write(np.where(drop, 0, values)))
    new = Masked.rewritten(values, drop, array.dtype)
    layer.weight.holder.put(ir.Tensor(new.apply(array), dtype=layer.weight.dtype, name=layer.weight.holder.name))
    offset, source = layer.offset, layer.offset.source if layer.offset is not None else None
    if offset is None or source is None or not shift.any():
        return new, None
    moved = offset.content(offset.read(shift.size) + shift)
    refill(source.way[0], moved)
    return new, Masked(np.packbits(np.zeros(moved.size, np.bool_)), moved)


def _report(tasks: Sequence[FitTask], best: Sequence[Fitted], ridge: RidgeChoice | None) -> dict[str, float]:
    error = float(np.mean([task.error(one.weights, one.shift) for task, one in zip(tasks, best, strict=True)]))
    held = {} if ridge is None else {"held_out_error": ridge.held, "fitted_error": ridge.fitted, "ridge": ridge.ridge}
    return {"reconstruction_error": error, **held}
