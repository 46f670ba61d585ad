"""`prune oneshot`: zero weights and fit the others on calibration data, without labels and without training.

The original alone is run to measure how much each layer may lose; original and pruned model side by side, layer by
layer, to fit what is left to what the original computes. Everything else (proof, plan, report) is that of
`prune magnitude`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from prunecli._version import __version__
from prunecli.arrays import Array
from prunecli.calibration.fitted import LayerJournal, identity_of
from prunecli.calibration.grams import HELD
from prunecli.calibration.layerwise import Store
from prunecli.calibration.mixtures import Mixtures
from prunecli.calibration.samples import about, calibration_samples, cautions, first_feed
from prunecli.data import Dataset
from prunecli.errors import PruneError, some
from prunecli.masks.allocations import ALLOCATIONS, LayerSize
from prunecli.masks.decide import Decision, Joined, Masked, Recipe, decide
from prunecli.masks.patterns import Windows, parse_pattern
from prunecli.model import Model, Weight, find_weights
from prunecli.options.training import DISTILL
from prunecli.predicted.predict import Undescribed, weight_curves
from prunecli.reconstruct.fit import (
    METHODS,
    Method,
    Recover,
)
from prunecli.runtime import version
from prunecli.types import Json, Progress, Skipped, no_progress
from prunecli.verify.prove import RUN_UP_TO
from prunecli.workers import InProcesses, InThisProcess, OnCluster, Workers
from prunecli.zeros.calibrated import CalibratedLayers, Way, losses, scored
from prunecli.zeros.layer_by_layer import TOKENS, LayerSums, LayerWalks, pruned
from prunecli.zeros.magnitude import zeroed
from prunecli.zeros.options import Fitting, OneshotOptions
from prunecli.zeros.recipes import ALLOCATION_OF_SCOPE
from prunecli.zeros.result import MagnitudeResult
from prunecli.zeros.select import FALLBACK, Selection, Selector, WeightChoice, check_numbers, matches
from prunecli.zeros.shards import ShardedWalks, shards_of
from prunecli.zeros.zero import target_of

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
    return zeroed(Path(model), options, Selector("oneshot", how.select, how.refit), progress=progress)


@dataclass(frozen=True)
class Oneshot:
    """The selection of `prune oneshot`, whose decisions carry new values."""

    options: Fitting

    def select(self, file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection:
        way = self._way(recipe)
        with Store(self.options.memory_bytes) as store:
            layers, data = self._layers(file, choice.chosen, way, store=store, progress=progress)
            choice = _measured(choice, layers, self.options.fallback)
            with self._journal(layers, recipe) as journal:
                amounts, allocation, told = self._settled(layers, recipe, journal, progress=progress)
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
            layers, data = self._layers(file, planned.choice.chosen, way, store=store, progress=progress)
            known = {w.name: d for w, d in zip(planned.choice.chosen, planned.decisions, strict=True)}
            masks = {w.holder.name: known[w.name].drop(w.array()) for w in planned.choice.chosen}
            with self._journal(layers, sorted(masks), *(masks[name] for name in sorted(masks))) as journal:
                chosen = layers.mixtures.divided(masks)
                done = self._fitted(planned.choice, layers, chosen, journal=journal, progress=progress,
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
            amounts = self._amounts(layers, recipe, allocation, sizes=sizes)
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
        feeds = data.feeds(_batch_size(data))
        fixed = frozenset(w.holder.name for w in find_weights(file).others if matches(w, o.exclude))
        layers = CalibratedLayers.of(file, names, feeds, way=way, store=store, fixed=fixed)
        layers.weigh()
        return layers, data

    def _allocation(self, recipe: Recipe) -> str:
        return ALLOCATION_OF_SCOPE.get(recipe.scope or "", self.options.allocate or "loss")

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
            names = [layers.mixtures.whole(layer.weight.name) for layer in layers.all]
            curves = weight_curves(layers.file, list(dict.fromkeys(names)))
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
        even = dict(
            zip((w.holder.name for w in weights), ALLOCATIONS.get("uniform").amounts(sizes, sparsity), strict=True)
        )
        told = [n for n, size in enumerate(sizes) if rule.losses is None or size.losses is not None]
        if not told:  # there is nothing to choose
            return even
        found = rule.amounts([sizes[n] for n in told], sparsity)
        return even | {weights[n].holder.name: amount for n, amount in zip(told, found, strict=True)}

    @contextmanager
    def _walks(self, layers: CalibratedLayers) -> Iterator[LayerSums]:
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
        graph, mixtures = layers.file.ir.graph, layers.mixtures
        decisions: dict[str, Decision] = {}
        vectors: dict[str, Decision] = {}
        details: dict[str, Json] = {}
        with self._walks(layers) as walks:
            for layer, done in pruned(layers, walks, chosen, journal=journal, progress=progress):
                name = layer.weight.holder.name
                decisions[name], details[name] = done.weight, dict(done.details)
                if (vector := done.moved) is not None and layer.offset is not None:
                    vectors[layer.offset.name] = vector
        held = {w.name: _joined(w, mixtures, decisions) for w in choice.chosen if w.holder.graph is graph}
        others = [w for w in find_weights(layers.file).others if w.holder.graph is graph]
        moved = [(w, one) for w in others if (one := _joined(w, mixtures, vectors)) is not None]
        told = [f"{len(moved)} biases or means of normalisations were refitted with the weights"] if moved else []
        told += [*_none_held(len(layers.feeds)), *_too_few(details), *_without_tokens(details)]
        every = [held.get(w.name) or by_value(w) for w in choice.chosen]
        said = {w.name: _details(w, mixtures, details) for w in choice.chosen if held.get(w.name)}
        return Selection(choice, every, {}, notes=told, moved=moved, details=said)


def _joined(weight: Weight, mixtures: Mixtures, found: Mapping[str, Decision]) -> Decision | None:
    """What becomes of a stored tensor, by what became of its parts; those of which nothing is said stay as they are.
    None where nothing is said of any."""
    name = weight.holder.name
    parts = mixtures.parts.get(name)
    if parts is None:
        return found.get(name)
    if found.keys().isdisjoint(parts):
        return None
    array = weight.array()
    return Joined([found.get(part) or _unchanged(each) for part, each in zip(parts, array, strict=True)])


def _unchanged(array: Array) -> Masked:
    return Masked(np.packbits(np.zeros(array.size, np.bool_)), array)


def _details(weight: Weight, mixtures: Mixtures, found: Mapping[str, Json]) -> Json:
    """What is reported of a stored tensor: of one that holds the matrices of experts, the mean error of those that were
    fitted, and what is reported of each."""
    name = weight.holder.name
    parts = mixtures.parts.get(name)
    if parts is None:
        return found[name]
    each = [found[part] for part in parts]
    errors = [one["reconstruction_error"] for one in each if "reconstruction_error" in one]
    mean = {"reconstruction_error": float(np.mean(errors))} if errors else {}
    return {**mean, "experts": each}


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
    with Store(options.memory_bytes) as store:
        layers, _ = Oneshot(options)._layers(file, chosen, way, store=store, progress=progress)
        found = {layer.weight.holder.name: each for layer, each in scored(layers, progress)}
    parts = {w.name: layers.mixtures.names([w.holder.name]) for w in chosen}
    told = {name: found.keys() & of for name, of in parts.items()}
    some_only = [Skipped(name, UNREACHED) for name, of in parts.items() if 0 < len(told[name]) < len(of)]
    whole = [w for w in chosen if len(told[w.name]) == len(parts[w.name])]
    choice = _measured(WeightChoice(list(chosen), [], []), layers, False)
    scores = {w.name: np.stack([found[part] for part in parts[w.name]]).reshape(w.shape) for w in whole}
    return scores, [*choice.skipped, *some_only]


def _by_magnitude(recipe: Recipe, weight: Weight) -> Decision:
    scope = "row" if recipe.scope == "row" else None
    plain = replace(recipe, scope=scope, criterion=None)
    return decide([target_of(weight)], plain)[0]


def _measured(choice: WeightChoice, layers: CalibratedLayers, fallback: bool) -> WeightChoice:
    """The choice without what has no evidence, unless that may fall back."""
    fitted = {layers.mixtures.whole(layer.weight.holder.name) for layer in layers.all}
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


def _none_held(batches: int) -> list[str]:
    """A note where nothing can tell whether layers err more on other samples."""
    if batches >= HELD:
        return []
    there = "there is 1 batch of them" if batches == 1 else f"there are {batches} batches of them"
    return [f"no samples are held out, since {there}: how far layers err on others is not known; more data would tell"]


UNREACHED = "some of its experts are given no token of the samples"


def _without_tokens(details: Mapping[str, Json]) -> list[str]:
    """A note on experts of which no sample tells."""
    names = [name for name, one in details.items() if one.get(TOKENS) == 0]
    if not names:
        return []
    said = f"{len(names)} matrices of experts that are given no token of the samples were zeroed by magnitude"
    return [f"{said} ({some(names, 5)}): more calibration data would reach them"]


def _notes(layers: CalibratedLayers, fallback: bool) -> list[str]:
    if not layers.left:
        return []
    if not fallback:
        return [
            f"{len(layers.left)} weights that cannot be fitted stay as they are; --fallback zeroes them by magnitude"
        ]
    return [f"{len(layers.left)} weights without evidence were zeroed by magnitude (--fallback): "
            + some([skip.name for skip in layers.left], 5)]  # fmt: skip
