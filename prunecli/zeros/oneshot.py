"""`prune oneshot`: zero weights and fit the others on calibration data, without labels and without training.

Everything else (proof, plan, report) is that of `prune magnitude`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from prunecli.calibration.grams import PER_UNKNOWN
from prunecli.calibration.layerwise import Store
from prunecli.calibration.samples import about, calibration_samples, cautions, first_feed
from prunecli.data import Dataset
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.masks.decide import Decision, Recipe, decide
from prunecli.masks.patterns import Windows, parse_pattern
from prunecli.model import Dims, Model, Weight, find_weights
from prunecli.reconstruct.fit import METHODS, Recover, check
from prunecli.runtime import Execution
from prunecli.types import Json, Progress, Skipped, no_progress
from prunecli.zeros.allocate import allocate
from prunecli.zeros.magnitude import zeroed
from prunecli.zeros.oneshot_layers import LayerStudy, Way, losses, opener, pruned, scored
from prunecli.zeros.options import MEMORY, OneshotOptions
from prunecli.zeros.result import MagnitudeResult
from prunecli.zeros.selector import Selection, WeightChoice, check_numbers, matches
from prunecli.zeros.zero import target_of

Array = np.ndarray[Any, Any]
SAMPLES = 512
BATCH = 64


@dataclass(frozen=True)
class Fitting:
    """How weights are chosen and fitted.

    data: calibration samples; labels are not read. method: see `recover.fit.METHODS`. allocate: None is `loss`, of
    patterns and scopes that leave a choice. recover: auto is lstsq. samples: drawn at random where there are more,
    unless the data has its own limit. fallback: whether weights without evidence are zeroed by magnitude instead of
    being left alone. memory: bytes of activations held in memory; more lies in temporary files.
    """

    data: DataOptions | None = None
    method: str = "obs"
    allocate: str | None = None
    recover: Literal["auto", "none", "bias", "bn", "lstsq"] = "auto"
    samples: int = SAMPLES
    fallback: bool = False
    memory: int = MEMORY
    seed: int = 0
    exclude: Sequence[str] = ()
    dims: Dims = field(default_factory=Dims)
    execution: Execution = field(default_factory=Execution)


def oneshot(
    model: str | Path, options: OneshotOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> MagnitudeResult:
    """Prune weights and refit the others layer by layer on unlabelled data, and save the model with proof.

    `changes` override fields of `options`: `oneshot("model.onnx", data="calib.npz", sparsity=0.8)`.

    Raises:
        PruneError: as `magnitude`; no data, or an option that does not fit the method.
    """
    options = OneshotOptions.of(options, **changes)
    how = Fitting(
        options.source, options.method, options.allocate, options.recover, SAMPLES, options.fallback,
        options.memory_bytes, options.seed, options.exclude, options.dims, options.execution,
    )  # fmt: skip
    return zeroed(Path(model), options, ByEvidence(how), progress)


@dataclass(frozen=True)
class ByEvidence:
    """The judge of `prune oneshot`."""

    options: Fitting
    command = "oneshot"

    def __call__(self, file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection:
        way = self._way(recipe)
        with Store(self.options.memory) as store:
            study, data = self._study(file, choice.chosen, way, store, progress)
            choice = _measured(choice, study, self.options.fallback)
            amounts = self._amounts(study, recipe, progress)
            done = self._fitted(file, choice, study, amounts, recipe, progress)
        names = {"method": way.method.name, "recover": way.recover}
        allocated = {} if isinstance(way.pattern, Windows) else {"allocate": self._allocation(recipe)}
        recipe_json = {"criterion": way.method.name, **names, **allocated, **about(data)}
        return replace(
            done, recipe=recipe_json, notes=[*done.notes, *_notes(study, self.options.fallback), *cautions(data)],
            feed=first_feed(data),
        )  # fmt: skip

    def fitted(self, file: Model, planned: Selection, progress: Progress) -> Selection:
        """Fit what a plan leaves, on this data."""
        recipe = Recipe(str(planned.recipe.get("pattern", "element")), None, None, 0.0 if ":" not in str(
            planned.recipe.get("pattern", "")) else None)  # fmt: skip
        with Store(self.options.memory) as store:
            way = self._replayed(planned.recipe, recipe)
            study, data = self._study(file, planned.choice.chosen, way, store, progress)
            masks = {w.name: d.drop(w.array()) for w, d in zip(planned.choice.chosen, planned.decisions, strict=True)}
            done = self._fitted(file, planned.choice, study, masks, recipe, progress, planned.decisions)
        asked = about(data) | {"recover": study.way.recover}
        return replace(done, recipe=planned.recipe | asked, notes=[*done.notes, *cautions(data)], feed=first_feed(data))

    def _replayed(self, planned: Json, recipe: Recipe) -> Way:
        """The way of a plan: its own method, and its recovery unless another one is asked for."""
        way = self._way(recipe)
        if planned.get("method") in [method.name for method in METHODS]:
            way = replace(way, method=METHODS.get(str(planned["method"])))
        if self.options.recover == "auto" and planned.get("recover") in get_args(Recover):
            way = replace(way, recover=planned["recover"])
        return way

    def _way(self, recipe: Recipe) -> Way:
        recover: Recover = "lstsq" if self.options.recover == "auto" else self.options.recover
        method = METHODS.get(self.options.method)
        workers = self.options.execution.thread_count or 1
        return Way(method, parse_pattern(recipe.pattern), recover, recipe.scope == "row", workers)

    def _study(
        self, file: Model, chosen: Sequence[Weight], way: Way, store: Store, progress: Progress
    ) -> tuple[LayerStudy, Dataset]:
        options = self.options
        assert options.data is not None
        check_numbers(file)
        data = calibration_samples(
            file, options.data, options.samples, options.seed, options.dims, options.execution, progress
        )
        names = [w.holder.name for w in chosen if w.holder.graph is file.ir.graph]
        feeds = _feeds(data)
        open_session = opener(options.execution.provider, options.execution.thread_count)
        fixed = frozenset(w.holder.name for w in find_weights(file).others if matches(w, options.exclude))
        study = LayerStudy.of(file, names, feeds, way, store, open_session, PER_UNKNOWN, options.seed, fixed)
        return study, data

    def _allocation(self, recipe: Recipe) -> str:
        return {"global": "loss", "erk": "erk"}.get(recipe.scope or "", self.options.allocate or "loss")

    def _amounts(self, study: LayerStudy, recipe: Recipe, progress: Progress) -> dict[str, int | Array]:
        """How many weights of each layer go."""
        pattern, sizes = parse_pattern(recipe.pattern), [layer.weight.size for layer in study.layers]
        if isinstance(pattern, Windows):
            return {
                layer.name: round(layer.weight.size * (1 - pattern.keep / pattern.window)) for layer in study.layers
            }
        mode, sparsity = self._allocation(recipe), recipe.sparsity or 0.0
        is_measured = mode == "loss" and 0 < sparsity < 1 and len(sizes) > 1
        curves = losses(study, 1 - sparsity, progress) if is_measured else []
        mode = "uniform" if mode == "loss" and not curves else mode
        amounts = allocate(mode, [layer.weight.shape for layer in study.layers], sizes, curves, sparsity)
        return {layer.name: amount for layer, amount in zip(study.layers, amounts, strict=True)}

    def _fitted(
        self, file: Model, choice: WeightChoice, study: LayerStudy, amounts: Mapping[str, int | Array], recipe: Recipe,
        progress: Progress, planned: Sequence[Decision] | None = None,
    ) -> Selection:  # fmt: skip
        by_name = {w.holder.name: w for w in choice.chosen if w.holder.graph is file.ir.graph}
        vectors = {w.holder.name: w for w in find_weights(file).others if w.holder.graph is file.ir.graph}
        decisions: dict[str, Decision] = {}
        moved: list[tuple[Weight, Decision]] = []
        details: dict[str, Json] = {}
        masks = {layer.name: amounts[by_name[layer.weight.holder.name].name] if planned else amounts[layer.name]
                 for layer in study.layers}  # fmt: skip
        for layer, matrix, vector, found in pruned(study, masks, progress):
            name = by_name[layer.weight.holder.name].name
            decisions[name], details[name] = matrix, found
            if vector is not None and layer.offset is not None:
                moved.append((vectors[layer.offset.name], vector))
        for number, weight in enumerate(choice.chosen):
            if weight.name not in decisions:
                decisions[weight.name] = planned[number] if planned else _by_magnitude(weight, recipe)
        told = [f"{len(moved)} biases or means of normalisations were refitted with the weights"] if moved else []
        return Selection(choice, [decisions[w.name] for w in choice.chosen], {}, told, moved, details)


def measured_scores(
    file: Model, chosen: Sequence[Weight], pattern: str, options: Fitting, progress: Progress
) -> tuple[dict[str, Array], list[Skipped]]:
    """What the method's criterion needs of each weight that can be measured, of the stored shape, on what the original
    model gives its layer; and why others cannot.

    Raises:
        PruneError: the pattern does not fit the method, or none can be measured.
    """
    method, form = METHODS.get(options.method), parse_pattern(pattern)
    check(method, form)
    way, names = Way(method, form, "none", False, 1), {w.holder.name: w.name for w in chosen}
    with Store(options.memory) as store:
        study, _ = ByEvidence(options)._study(file, chosen, way, store, progress)
        found = {names[layer.weight.holder.name]: each for layer, each in scored(study, progress)}
    choice = _measured(WeightChoice(list(chosen), [], []), study, False)
    return found, list(choice.skipped)


def _by_magnitude(weight: Weight, recipe: Recipe) -> Decision:
    scope = "row" if recipe.scope == "row" else None
    plain = replace(recipe, scope=scope, criterion=None)
    return decide([target_of(weight)], plain)[0]


def _measured(choice: WeightChoice, study: LayerStudy, fallback: bool) -> WeightChoice:
    """The choice without what has no evidence, unless that may fall back."""
    fitted = {layer.weight.holder.name for layer in study.layers}
    reasons = {skip.name: skip.reason for skip in study.left}
    without = [w for w in choice.chosen if w.holder.name not in fitted or w.holder.name in reasons]
    if not study.layers and not fallback:
        reason = next(iter(reasons.values()), "none lies in the main graph")
        raise PruneError(f"no chosen weight can be measured: {reason}", "use `prune magnitude`, or --fallback")
    if fallback:
        return choice
    told = [Skipped(w.name, reasons.get(w.holder.name, "it lies in a sub-graph or a function")) for w in without]
    kept = [w for w in choice.chosen if w not in without]
    return WeightChoice(kept, [*choice.left, *without], [*choice.skipped, *told])


def _notes(study: LayerStudy, fallback: bool) -> list[str]:
    if not (study.left and fallback):
        return []
    return [f"{len(study.left)} weights without evidence were zeroed by magnitude (--fallback): "
            + ", ".join(skip.name for skip in study.left[:5])]  # fmt: skip


def _feeds(data: Dataset) -> list[Mapping[str, Array]]:
    return [batch.feed for batch in data.batches(BATCH)]
