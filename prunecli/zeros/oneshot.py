"""`prune oneshot`: zero weights and fit the others on calibration data, without labels and without training.

The original alone is run to measure how much each layer may lose; original and pruned model side by side, layer by
layer, to fit what is left to what the original computes. Everything else (proof, plan, report) is that of
`prune magnitude`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import onnx_ir as ir

from prunecli._version import __version__
from prunecli.calibration.fitted import FittedLayer, LayerJournal, identity_of
from prunecli.calibration.gradients import looked_at, relative_error
from prunecli.calibration.grams import APART, HELD, LARGE, PER_UNKNOWN, Equations, Folds, Picker, collect, is_held
from prunecli.calibration.importance import LEAST, Importance
from prunecli.calibration.layers import HIDDEN, LinearLayer, layers_of
from prunecli.calibration.layerwise import Store, Walk, working_form
from prunecli.calibration.samples import about, calibration_samples, cautions, first_feed
from prunecli.data import Dataset
from prunecli.errors import PruneError, some
from prunecli.files import Scratch
from prunecli.masks.allocations import ALLOCATIONS, LayerSize, LossCurve
from prunecli.masks.decide import Decision, Masked, Recipe, decide
from prunecli.masks.patterns import Pattern, Windows, parse_pattern
from prunecli.model import Model, Weight, find_weights, load
from prunecli.model.floating import floats_of, stored_as
from prunecli.model.graphs import refill
from prunecli.operators import Contraction
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
    spread,
    tried_rows,
)
from prunecli.reconstruct.sparsegpt import Quota
from prunecli.runtime import Session, version
from prunecli.types import Json, Progress, Skipped, no_progress
from prunecli.verify.prove import RUN_UP_TO
from prunecli.workers import InProcesses, InThisProcess, OnCluster, Workers
from prunecli.zeros.magnitude import zeroed
from prunecli.zeros.options import Fitting, OneshotOptions
from prunecli.zeros.result import MagnitudeResult
from prunecli.zeros.select import FALLBACK, Selection, Selector, WeightChoice, check_numbers, matches
from prunecli.zeros.zero import target_of

Array = np.ndarray[Any, Any]
LAYERWISE = "uniform"
"""The allocation of models that are too large to be run once more for each layer."""
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
            with self._journal(layers, recipe) as journal:
                amounts, allocation, told = self._settled(layers, recipe, journal, progress)
                done = self._fitted(choice, layers, amounts, journal=journal, progress=progress,
                                    by_value=partial(_by_magnitude, recipe))  # fmt: skip
        names = {"method": way.method.name, "recover": way.recover}
        allocated = {} if isinstance(way.pattern, Windows) else {"allocate": allocation}
        recipe_json = {"criterion": way.method.name, **names, **allocated, **about(data)}
        return replace(
            done, recipe=recipe_json,
            notes=[*done.notes, *told, *layers.notes, *_notes(layers, self.options.fallback), *cautions(data)],
            feed=first_feed(data),
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
            with self._journal(layers, sorted(masks), *(masks[name] for name in sorted(masks))) as journal:
                done = self._fitted(planned.choice, layers, masks, journal=journal, progress=progress,
                                    by_value=lambda weight: known[weight.name])  # fmt: skip
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

    def _journal(self, layers: CalibratedLayers, *decisive: object) -> LayerJournal:
        """Where layers that are done are kept."""
        path = self.options.state if isinstance(self.options, OneshotOptions) else None
        if path is None:
            return LayerJournal(None, "")
        way, o = layers.way, self.options
        assert isinstance(o, OneshotOptions)
        texts = [np.packbits(one).tobytes() if isinstance(one, np.ndarray) else one for one in decisive]
        how = (way.method, way.pattern.text, way.recover, way.by_row, way.workers, way.seed, way.per_unknown)
        limits = (o.allocate, o.memory_bytes, o.execution, o.shard_count, sorted(layers.fixed), __version__, version())
        return LayerJournal(path, identity_of(layers.file, layers.feeds, texts, how, limits))

    def _settled(
        self, layers: CalibratedLayers, recipe: Recipe, journal: LayerJournal, progress: Progress
    ) -> tuple[dict[str, int | Array], str, list[str]]:
        """How many weights of each layer go, by which allocation, and notes; as the journal has it, if it does."""
        known = journal.amounts
        if known is None:
            allocation, sizes, told = self._allocated(layers, recipe, progress)
            amounts = self._amounts(layers, recipe, allocation, sizes)
            known = {"of": amounts, "allocation": allocation, "told": told}
            journal.put_amounts(known)
        return dict(known["of"]), str(known["allocation"]), list(known["told"])

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
        layers = CalibratedLayers.of(file, names, feeds, way, store, fixed=fixed)
        layers.weigh()
        return layers, data

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
        if source == "measured" and (size := self._too_large(layers, recipe)):
            told = f"{size / 2**30:.1f} GiB of weights would have to be run again for each layer to measure its loss"
            ways = "--allocate predicted needs no run, --allocate loss measures all the same"
            return LAYERWISE, sizes, [f"--allocate {LAYERWISE}, since {told}; {ways}"]
        if source == "measured":
            found = losses(layers, 1 - sparsity, progress)
            return name, [replace(size, losses=curve) for size, curve in zip(sizes, found, strict=True)], []
        try:
            names = [layer.weight.name for layer in layers.all]
            curves = weight_curves(layers.file, names)
        except Undescribed as reason:
            return FALLBACK, sizes, [f"--allocate {FALLBACK} in place of predicted: {reason}"]
        return name, [replace(size, losses=curves[k]) for k, size in zip(names, sizes, strict=True)], []

    def _too_large(self, layers: CalibratedLayers, recipe: Recipe) -> int:
        """The bytes of the layers' weights, where nobody asked for a measured allocation and they are too many for one;
        else 0."""
        size = sum(layer.weight.nbytes for layer in layers.all)
        return size if size > RUN_UP_TO and recipe.scope != "global" and self.options.allocate is None else 0

    def _amounts(
        self, layers: CalibratedLayers, recipe: Recipe, allocation: str, sizes: list[LayerSize]
    ) -> dict[str, int]:
        """How many weights of each layer go."""
        pattern, weights = parse_pattern(recipe.pattern), [layer.weight for layer in layers.all]
        if isinstance(pattern, Windows):
            return {w.holder.name: round(w.size * (1 - pattern.keep / pattern.window)) for w in weights}
        rule, sparsity = ALLOCATIONS.get(allocation), recipe.sparsity or 0.0
        if rule.losses is not None and any(size.losses is None for size in sizes):  # there is nothing to choose
            rule = ALLOCATIONS.get("uniform")
        return {w.holder.name: n for w, n in zip(weights, rule.amounts(sizes, sparsity), strict=True)}

    @contextmanager
    def _walks(self, layers: CalibratedLayers, journal: LayerJournal) -> Iterator[LayerSums]:
        """What adds up the sums of each layer, in one part or several."""
        o = self.options
        count = min(o.shard_count, len(layers.feeds)) if isinstance(o, OneshotOptions) else 1
        if count == 1:
            found: LayerSums = LayerWalks(layers)
            workers: Workers = InThisProcess()
        else:
            assert isinstance(o, OneshotOptions)
            if o.backend == "dask":
                workers = OnCluster(str(o.address))
            else:
                jobs = min(o.jobs or 1, count)
                workers = InProcesses(jobs) if jobs > 1 else InThisProcess()
            shards = shards_of(layers, count, o, sent=o.backend == "dask")
            found = ShardedWalks(layers, shards, workers)
        try:
            yield found
        finally:
            found.close()
            workers.close()

    def _fitted(
        self, choice: WeightChoice, layers: CalibratedLayers, chosen: Mapping[str, int | Array], *,
        journal: LayerJournal, progress: Progress, by_value: Callable[[Weight], Decision],
    ) -> Selection:  # fmt: skip
        """Prune and fit. `chosen`: by the stored tensor's name, see `pruned`; `by_value`: decides on weights that are
        not among the layers."""
        graph = layers.file.ir.graph
        by_name = {w.holder.name: w.name for w in choice.chosen if w.holder.graph is graph}
        vectors = {w.holder.name: w for w in find_weights(layers.file).others if w.holder.graph is graph}
        decisions: dict[str, Decision] = {}
        moved: list[tuple[Weight, Decision]] = []
        details: dict[str, Json] = {}
        with self._walks(layers, journal) as walks:
            for layer, done in pruned(layers, walks, chosen, journal=journal, progress=progress):
                name = by_name[layer.weight.holder.name]
                decisions[name], details[name] = done.weight, dict(done.details)
                if (vector := done.moved) is not None and layer.offset is not None:
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
            + some([skip.name for skip in layers.left], 5)]  # fmt: skip


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
    the samples. `left`: what cannot be fitted; `fixed`: vectors that stay as they are; `original`: its working form;
    `scores`: what the method's criterion asks for, once it was measured; `quick`: estimates do; `part`: of
    the batches, where others are run elsewhere; `inputs`: sums of what the last layer read, and what they are of;
    `importance`: of errors of their outputs."""

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
    part: Part = field(default_factory=lambda: WHOLE)
    inputs: tuple[object, Folds] | None = None
    importance: Importance | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, file: Model, names: Sequence[str], feeds: Sequence[Mapping[str, Any]], way: Way, store: Store, *,
        fixed: frozenset[str],
    ) -> CalibratedLayers:  # fmt: skip
        """Of the stored tensors `names` of the main graph."""
        original = working_form(file.ir)
        layers, left = fittable(file, original, names, fixed)
        return cls(file=file, original=original, feeds=feeds, way=way, store=store, all=layers, left=left, fixed=fixed)

    def walk(self, model: ir.Model | None = None, keep: Iterable[str] | None = ()) -> Walk:
        """A run of the original, or of another model, from its start. `keep`: see `Walk`."""
        return Walk(model or self.original, self.feeds, self.store, self.way.start, keep)

    def student(self) -> tuple[ir.Model, list[LinearLayer]]:
        """A copy to be pruned, and its layers."""
        model = working_form(self.file.ir)
        return model, fittable(self.file, model, [layer.weight.holder.name for layer in self.all], self.fixed)[0]

    def weigh(self) -> None:
        """Measure how far errors of each layer's output move those of the model. Where that cannot be had, a note says
        so."""
        way = self.way
        try:
            self.importance = Importance.of(
                self.original, self.all, self.feeds, self.store, start=way.start, seed=way.seed
            )
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
        """The ridge that held-out samples choose; None without any."""
        if folds.held is None or not folds.held.count:
            return None
        batch, rows = layer.shape[:2]
        some = spread(rows, tried_rows(batch, (rows, folds.held.gram.shape[1]), density))
        held, pattern = list(self.tasks(layer, folds.held, rows=some)), self.way.pattern
        return best_ridge(list(self.tasks(layer, folds.fitted, rows=some)), held, recover, pattern, density)

    def tasks(
        self, layer: LinearLayer, sums: Equations, ridge: RidgeChoice | None = None, rows: Array | slice = slice(None)
    ) -> Iterator[FitTask]:
        """The least-squares problems of a layer, one per matrix, its rows multiplied by what they are worth, as they
        compete with each other. `plain` undoes it."""
        sums.check(layer.name)
        free, taps = layer.offset is not None, layer.shape[2]
        bias, worth = layer.bias()[:, rows], self.worth(layer)[:, rows]
        for batch, weights in enumerate(layer.matrices(dtype=sums.gram.dtype)[:, rows]):
            found, offset = sums.problem(batch, free, rows), bias[batch]
            cross, variance = found.cross, found.squares
            if not free:  # what is added stays: the product alone is to be fitted
                cross -= np.outer(offset, found.x)
                variance = variance - 2 * offset * found.y + offset**2
            g, column = worth[batch], worth[batch][:, None].astype(weights.dtype)
            yield FitTask(
                weights=weights * column, gram=found.gram, cross=cross * column, x=found.x, y=found.y * g,
                variance=variance * g**2, count=found.count, offset=offset * g, free=free, taps=taps,
                ridge=None if ridge is None else ridge.ridge,
            )  # fmt: skip

    def plain(self, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Array, Array, Array]:
        """Weights and mask as stored, and the shift of all rows."""
        worth = self.worth(layer)
        weights = np.stack([one.weights for one in best])
        weights /= worth[..., None].astype(weights.dtype)
        drop = np.stack([one.drop for one in best])
        shift = np.stack([one.shift for one in best]) / worth
        return layer.stored(weights), layer.stored(drop), shift.reshape(-1)

    def sums(self, layer: LinearLayer, wanted: Walk, given: Walk, others: str | None = None) -> Folds:
        """Over all uses: what the layer reads in `given`, and what it is to give, by `wanted`. `others`: what the
        output is added to, whose own error it makes up for."""
        batch, rows, taps, cols = layer.shape
        part = self.part if self.part.batches else Part(0, wanted.batches)
        held = part.batches >= HELD and (taps * cols) ** 2 <= LARGE  # trying ridges on wider ones takes long
        folds = Folds.empty(batch, rows, taps * cols, held=held)
        key = self._shares(layer, given)
        known = key is not None and self.inputs is not None and self.inputs[0] == key
        if known and self.inputs is not None:
            folds = folds.with_inputs_of(self.inputs[1])
        self.inputs = self.inputs if known else None
        for use in layer.uses:
            self.reach(use, wanted, given, others)
            picker = Picker(part.batches, taps * cols, self.way.per_unknown, self.way.seed + part.first)
            for number in range(wanted.batches):
                target, place = wanted.read(use.output, number), part.first + number
                if others is not None:
                    off = np.subtract(wanted.read(others, number), given.read(others, number), dtype=np.float32)
                    target = _plus(target, off, layer.affine()[0].reshape(-1))
                into = folds.side(is_held(place, part.batches))
                weights = None
                if self.importance is not None:
                    weights = self.importance.of_positions(use, number, use.positions(target.shape))
                collect(use, picker, into, given.read(use.data, number), target, known=known, weights=weights)
        if key is not None and not known:
            self.inputs = key, folds.inputs()
        return folds

    def _shares(self, layer: LinearLayer, given: Walk) -> tuple[object, ...] | None:
        """What names the sums of a layer's inputs, where another layer has the same: queries, keys and values, or both
        branches of a gated product."""
        use, (matrices, rows, taps, cols) = layer.found, layer.shape
        read = use.data, "MatMul", cols
        alike = [one for one in self.all if (one.found.data, one.node.op_type, one.shape[3]) == read]
        plain = layer.node.op_type == "MatMul" and len(layer.uses) == matrices == taps == 1
        if not plain or cols < APART or len(alike) < 2 or self.importance is not None:  # each weighs positions anew
            return None
        return id(given), use.data, use.channel, cols, max(cols, rows) * cols > LARGE, self.way.per_unknown

    def reach(self, use: Contraction, wanted: Walk, given: Walk, others: str | None) -> None:
        """Let the walks come to where a layer is read."""
        extra = [] if others is None else [others]
        assert use.output is not None
        given.reach([use.data, *extra])
        wanted.reach([use.data, use.output, *extra])

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
    walk = layers.walk(keep=None)
    probe = Probe.of(walk, looked_at(layers.original.graph.outputs), walk.batches)
    found = []
    for layer in progress(layers.all, "measuring layers", len(layers.all)):
        own = walk if len(layer.uses) == 1 else layers.walk()  # what lies between its uses is still to come
        folds = quick.sums(layer, own, own)
        ridge = quick.ridge(layer, folds, "bias", levels[len(levels) // 2])
        tasks = list(layers.tasks(layer, folds.fitted, ridge))
        judges = tasks if ridge is None or folds.held is None else list(layers.tasks(layer, folds.held))
        alone: list[float] = []
        variants: list[dict[str, Array]] = []
        for level in levels:
            amount = round((1 - level) * layer.weight.size)
            best = quick.fitted(tasks, quick.choose(layer, tasks, amount), "bias")
            alone.append(sum(judge.loss(one.weights, one.shift) for judge, one in zip(judges, best, strict=True)))
            if level in with_probe:
                variants.append(layers.contents(layer, best))
        far = probe.reaching(layer, walk, variants)
        layers.release(layer, own)
        if own is not walk:
            own.close()
        if not far:  # of no output is it known how it moves: as if all of the relative error came through
            total = sum(float(task.variance.sum()) for task in judges)
            far = [alone[levels.index(level)] / total if total > 0 else 0.0 for level in with_probe]
        found.append(LossCurve(levels, _scaled(levels, alone, with_probe, far)))
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


Solved = tuple[Masked, Array | None, dict[str, float]]
"""A weight as it will be saved, the vector beside it if that moves, and what is reported."""


@dataclass
class Solve:
    """A layer's equations, and which or how many of its weights go. `scores`: of its weights, where they were measured
    before."""

    folds: Folds | None
    goes: int | Array
    scores: Array | None

    def take(self) -> Folds:
        """The sums, which nobody holds then: they are as large as the layer."""
        found, self.folds = self.folds, None
        assert found is not None
        return found

    def run(self, layers: CalibratedLayers, layer: LinearLayer) -> Solved:
        """Fit the layer."""
        if self.scores is not None:
            layers.scores[layer.name] = self.scores
        amount = self.goes if isinstance(self.goes, int) else int(np.count_nonzero(self.goes))
        folds = self.take()
        ridge = layers.ridge(layer, folds, layers.way.recover, 1 - amount / max(layer.weight.size, 1))
        tasks = list(layers.tasks(layer, folds.whole(), ridge))
        del folds
        best = layers.fitted(tasks, _picked(layers, layer, tasks, self.goes), layers.way.recover)
        return *_contents(layers, layer, best), _report(tasks, best, ridge)


class LayerSums(Protocol):
    """Gives the sums of layer after layer, each with the layers before it as they were put."""

    def at_once(self, layers: Sequence[LinearLayer]) -> list[range]:
        """Runs of layers, all in order, of which those of one run are fitted before any of them is put."""
        ...

    def sums(self, number: int) -> Folds: ...

    def solved(self, given: dict[int, Solve]) -> dict[int, Solved]:
        """Layers fitted to their sums, by number. `given` is used up."""
        ...

    def put(self, number: int, done: FittedLayer) -> None:
        """Let what follows see a layer as it was fitted."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class LayerWalks:
    """Original and pruned model side by side. Layers that were put without a look at their sums are walked past on the
    same way, so that what follows is the same to the last bit."""

    def __init__(self, layers: CalibratedLayers) -> None:
        self._layers = layers
        student, self._mine = layers.student()
        self._wanted, self._given = layers.walk(), layers.walk(student)
        self._shared: dict[str, Folds] | None = None
        self.reached = self.placed = 0

    def at_once(self, layers: Sequence[LinearLayer]) -> list[range]:
        return [range(number, number + 1) for number in range(len(layers))]

    def solved(self, given: dict[int, Solve]) -> dict[int, Solved]:
        return {number: given.pop(number).run(self._layers, self._mine[number]) for number in list(given)}

    def sums(self, number: int) -> Folds:
        layer = self._mine[number]
        self.reached = number + 1
        if len(layer.uses) > 1:
            if self._shared is None:
                done = {one.name for one in self._mine[: self.placed]}
                self._shared = _shared(self._layers, self._mine, done)
            self._layers.release(layer, self._wanted, self._given)
            return self._shared.pop(layer.name)
        found = self._layers.sums(layer, self._wanted, self._given, _others(layer))
        self._layers.release(layer, self._wanted, self._given)
        return found

    def put(self, number: int, done: FittedLayer) -> None:
        layer = self._mine[number]
        if number >= self.reached:
            for use in layer.uses if len(layer.uses) == 1 else ():
                self._layers.reach(use, self._wanted, self._given, _others(layer))
            self._layers.release(layer, self._wanted, self._given)
            self.reached = number + 1
        _put(layer, done)
        self.placed = number + 1

    def close(self) -> None:
        self._wanted.close()
        self._given.close()


def pruned(
    layers: CalibratedLayers, walks: LayerSums, chosen: Mapping[str, int | Array], *, journal: LayerJournal,
    progress: Progress,
) -> Iterator[tuple[LinearLayer, FittedLayer]]:  # fmt: skip
    """Prune and fit layer after layer. Those that the journal has are taken from it.

    Args:
        chosen: by the name of the stored tensor, how many weights go, or which (a mask of the stored shape).
    """
    _, mine = layers.student()
    shown = iter(progress(mine, "pruning layers", len(mine)))
    for run in walks.at_once(mine):
        given: dict[int, Solve] = {}
        for number in run:
            layer = mine[number]
            if layer.name not in journal.layers:
                goes = chosen[layer.weight.holder.name]
                given[number] = Solve(walks.sums(number), goes, layers.scores.get(layer.name))
        found = walks.solved(given)
        for number in run:
            layer = next(shown)
            if number in found:
                done = FittedLayer.kept(journal, layer.name, *found.pop(number))
            else:
                done = FittedLayer.of(journal.layers[layer.name])
            _put(layer, done)
            walks.put(number, done)
            yield layer, done


def _others(layer: LinearLayer) -> str | None:
    """What the output of a layer is added to, whose errors it makes up for."""
    # in a transformer, whose sums follow an added bias, their errors drown the small outputs of the branches
    return layer.carried if layer.is_summed_plainly else None


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


def _shared(layers: CalibratedLayers, mine: Sequence[LinearLayer], done: Container[str]) -> dict[str, Folds]:
    """Layers whose weight is read in several places are fitted on what the original gives them in all of them. Nothing
    is added up for those that are `done`."""
    several = [layer for layer in mine if len(layer.uses) > 1]
    found: dict[str, Folds] = {}
    if all(layer.name in done for layer in several):
        return found
    walk = layers.walk()
    for layer in several:
        if layer.name in done:
            for use in layer.uses:
                layers.reach(use, walk, walk, None)
        else:
            found[layer.name] = layers.sums(layer, walk, walk)
    walk.close()
    return found


def _contents(layers: CalibratedLayers, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Masked, Array | None]:
    """The weight as it will be saved, and the vector beside it if that moves."""
    array = layer.weight.array()
    values, drop, shift = layers.plain(layer, best)
    integers = stored_as(layer.weight.tensor)
    if integers is not None:
        values = integers.array_of(integers.write(np.where(drop, 0, values)))
    new = Masked.rewritten(values, drop, array.dtype)
    offset = layer.offset
    if offset is None or offset.source is None or not shift.any():
        return new, None
    return new, offset.content(offset.read(shift.size) + shift)


def _put(layer: LinearLayer, done: FittedLayer) -> None:
    """Let the pruned model have what was fitted."""
    done.weight.content.put_into(layer.weight.holder, layer.weight.dtype)
    if done.vector is not None and layer.offset is not None and layer.offset.source is not None:
        refill(layer.offset.source.way[0], done.vector.read())


def _report(tasks: Sequence[FitTask], best: Sequence[Fitted], ridge: RidgeChoice | None) -> dict[str, float]:
    error = float(np.mean([task.error(one.weights, one.shift) for task, one in zip(tasks, best, strict=True)]))
    held = {} if ridge is None else {"held_out_error": ridge.held, "fitted_error": ridge.fitted, "ridge": ridge.ridge}
    return {"reconstruction_error": error, **held}


# -- parts of the samples, each on its own way -----------------------------------------------------


SENT = 1 << 30
"""Bytes of a model up to which it is sent to workers that do not have it."""


@dataclass(frozen=True)
class Shard:
    """A part of the samples, and all that the sums over it need. `files`: the model's content by name, the model first;
    empty: it is where `path` says."""

    name: str
    path: Path
    sha256: str
    files: Mapping[str, bytes]
    names: Sequence[str]
    fixed: frozenset[str]
    way: Way
    memory: int
    feeds: Sequence[Mapping[str, Any]]
    part: Part
    importance: Importance | None

    def open(self) -> _OpenShard:
        """Raises PruneError where the model is not there."""
        path, home = self.path, None
        if self.files:
            home = Scratch()
            for name, content in self.files.items():
                (home.path / name).write_bytes(content)
            path = home.path / next(iter(self.files))
        if not path.is_file() or (file := load(path)).sha256 != self.sha256:
            raise PruneError(f"a worker has no such model at {path}", "put it into a folder that all workers have")
        store = Store(self.memory)
        layers = CalibratedLayers.of(floats_of(file), self.names, self.feeds, self.way, store, fixed=self.fixed)
        layers.part = self.part
        if self.importance is not None:
            layers.importance = self.importance.of_part(
                layers.original, layers.all, self.feeds, store, start=self.way.start, seed=self.way.seed,
                first=self.part.first,
            )  # fmt: skip
        return _OpenShard(layers, home)


class _OpenShard(LayerWalks):
    """A shard that is on its way in some process."""

    def __init__(self, layers: CalibratedLayers, home: Scratch | None) -> None:
        super().__init__(layers)
        self._home, self._kept, self._store = home, LayerJournal(None, ""), layers.store

    def solve(self, number: int, given: Solve) -> Solved:
        """A layer fitted here, to sums over all shards."""
        return given.run(self._layers, self._mine[number])

    def put_arrays(self, values: Array, vector: Array | None) -> None:
        """As `put`, of what was sent."""
        empty = Masked(np.empty(0, np.uint8), values)
        self.put(self.placed, FittedLayer.kept(self._kept, str(self.placed), empty, vector, details={}))

    def close(self) -> None:
        super().close()
        self._kept.close()
        self._store.__exit__(None, None, None)


def shards_of(layers: CalibratedLayers, count: int, options: OneshotOptions, *, sent: bool) -> list[Shard]:
    """The samples in `count` parts of whole batches. `sent`: workers may be on other machines."""
    file, way = layers.file, replace(layers.way, start=replace(options.execution, threads=1).open)
    paths = [file.path, *file.data_files]
    small = sum(path.stat().st_size for path in paths) <= SENT
    files = {path.name: path.read_bytes() for path in paths} if sent and small else {}
    names = [layer.weight.holder.name for layer in layers.all]
    known = None if layers.importance is None else replace(layers.importance, store=Store(0))
    edges = [round(number * len(layers.feeds) / count) for number in range(count + 1)]
    name = f"{file.sha256}-{os.getpid()}-{time.time_ns()}"
    return [
        Shard(
            name=f"{name}-{start}", path=file.path.resolve(), sha256=file.sha256, files=files, names=names,
            fixed=layers.fixed, way=way, memory=layers.store.limit, feeds=list(layers.feeds[start:stop]),
            part=Part(start, len(layers.feeds)), importance=known,
        )
        for start, stop in pairwise(edges)
    ]  # fmt: skip


_OPEN: dict[str, _OpenShard] = {}
"""By the shard's name, in a worker."""


def _shard_sums(name: str, number: int, since: int, done: Sequence[Sent], shard: Shard | None) -> Folds | str:
    """The sums of a layer over a shard, after taking in the layers from `since` on. UNKNOWN where the shard is not open
    here, or not that far; with the `shard` itself it is opened."""
    if shard is not None:
        _close_shard(name)
        _OPEN[name] = shard.open()
    run = _OPEN.get(name)
    if run is None or run.placed != since or run.reached > number:
        return UNKNOWN
    for values, vector in done:
        run.put_arrays(values, vector)
    return run.sums(number)


def _solved(name: str, number: int, given: Solve) -> Solved | str:
    """A layer fitted where a shard is open."""
    run = _OPEN.get(name)
    return UNKNOWN if run is None else run.solve(number, given)


def _close_shard(name: str) -> None:
    if (run := _OPEN.pop(name, None)) is not None:
        run.close()


UNKNOWN = "unknown"
RESTARTS = 3
"""How often a shard is begun anew for one layer."""
Sent = tuple[Array, Array | None]
"""A layer's weight, and the vector beside it if that moved."""


class ShardedWalks:
    """Sums over shards, wherever they run, added up in the shards' order; layers that do not depend on each other are
    fitted at once, one for each shard. A shard whose worker died is begun anew, with the layers as they were put."""

    def __init__(self, layers: CalibratedLayers, shards: Sequence[Shard], workers: Workers) -> None:
        self._layers, self._shards, self._workers = layers, shards, workers
        self._mine = layers.student()[1]
        self._done: list[FittedLayer] = []
        self._since: dict[int, int] = {}  # layers that a shard has; not in it: it is not open

    def at_once(self, layers: Sequence[LinearLayer]) -> list[range]:
        """Layers that follow each other and read the same value, such as queries, keys and values."""
        most = min(self._workers.places, len(self._shards))
        starts = [0]
        for number, (before, layer) in enumerate(pairwise(layers), 1):
            plain = len(before.uses) == len(layer.uses) == 1 and _others(layer) is None
            if not plain or layer.found.data != before.found.data or number - starts[-1] >= most:
                starts.append(number)
        return [range(*ends) for ends in pairwise([*starts, len(layers)]) if ends[0] < ends[1]]

    def solved(self, given: dict[int, Solve]) -> dict[int, Solved]:
        if len(given) < 2:
            return {number: given.pop(number).run(self._layers, self._mine[number]) for number in list(given)}
        places = dict(enumerate(given))  # shard -> layer
        calls = {shard: partial(_solved, self._shards[shard].name, n, given[n]) for shard, n in places.items()}
        results = self._workers.run(calls)
        found: dict[int, Solved] = {}
        for shard, number in places.items():
            result, here = results[shard], given.pop(number)
            if not isinstance(result, tuple):  # its worker died
                self._since.pop(shard, None)
                result = here.run(self._layers, self._mine[number])
            found[number] = result
        return found

    def sums(self, number: int) -> Folds:
        found: dict[int, Folds] = {}
        for _ in range(RESTARTS + 1):
            asked = [shard for shard in range(len(self._shards)) if shard not in found]
            for shard, result in self._workers.run({shard: self._call(shard, number) for shard in asked}).items():
                if isinstance(result, Folds):
                    found[shard], self._since[shard] = result, len(self._done)
                else:
                    self._since.pop(shard, None)
            if len(found) == len(self._shards):
                total = found[0]
                for shard in range(1, len(self._shards)):
                    total += found.pop(shard)
                return total
        raise PruneError("the workers that run parts of the samples die again and again",
                         "use fewer --jobs, or look into the cluster's logs: memory may be short")  # fmt: skip

    def _call(self, shard: int, number: int) -> Callable[[], Any]:
        known = shard in self._since
        since = self._since.get(shard, 0)
        done = [(np.asarray(one.weight.values), None if one.vector is None else np.asarray(one.vector.read()))
                for one in self._done[since:]]  # fmt: skip
        given = self._shards[shard]
        return partial(_shard_sums, given.name, number, since, done=done, shard=None if known else given)

    def put(self, number: int, done: FittedLayer) -> None:
        self._done.append(done)

    def close(self) -> None:
        self._workers.run({n: partial(_close_shard, self._shards[n].name) for n in self._since})
