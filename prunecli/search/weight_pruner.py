"""Trials of zeroed weights: which weights, how they are ranked, and the file that `prune magnitude` would write."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.calibration.gradient_source import GradientSamples, open_source
from prunecli.errors import PruneError
from prunecli.masks.criteria import SQUARED, Evidence, of_elements
from prunecli.masks.decide import Recipe, decide
from prunecli.masks.patterns import Windows, parse_pattern
from prunecli.model import Model, concrete_shapes, count_macs, find_weights, load
from prunecli.model.sizes import macs_by_weight
from prunecli.search.options import TrialOptions
from prunecli.search.pools import SampleSubset
from prunecli.search.pruner import PrunerOutput
from prunecli.search.space import Proxy, Setting, digest, normal
from prunecli.search.weights import ElementRecipe, ElementSpace, decisions, target
from prunecli.types import Json, Progress, Skipped
from prunecli.zeros.magnitude import zeroed
from prunecli.zeros.oneshot import ByEvidence, Fitting, measured_scores
from prunecli.zeros.options import MagnitudeOptions
from prunecli.zeros.result import MagnitudeResult
from prunecli.zeros.selector import Selection, Selector, WeightChoice, choose
from prunecli.zeros.zero import target_of

Array = np.ndarray[Any, Any]
AUTO = "auto"


@dataclass(frozen=True)
class WeightPruner:
    """`choice`: the weights of `file`, as `prune magnitude` chooses them."""

    file: Model
    options: TrialOptions
    recipe: ElementRecipe
    space: ElementSpace
    skipped: list[Skipped]
    choice: WeightChoice
    data: SampleSubset
    notes: tuple[str, ...] = ()
    goals = ("params", "file_bytes", "macs")

    @property
    def identity(self) -> str:
        made = [(name, hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest())
                for name, a in sorted(self.recipe.evidence.items())]  # fmt: skip
        return digest("element", list(self.recipe.weights), self.recipe.criterion, self.recipe.pattern,
                      self.recipe.seed, made)  # fmt: skip

    @property
    def criterion(self) -> str:
        return self.recipe.criterion

    def proxy(self, progress: Progress) -> Proxy:
        found = _evidence(self.file, self.choice, SQUARED, self.options, self.data, progress)

        def predicted(knob: str, fraction: float) -> float:
            array = np.asarray(self.space.originals[knob].numpy())
            drop = decisions(self.space.targets, {knob: fraction}, self.recipe)[knob].drop(array)
            return float((np.square(array, dtype=np.float64) * found.get(knob, 0.0))[drop].sum() / 2)

        return predicted

    def cut_further(
        self, trained: Path, gone: Setting, setting: Setting, saving: PrunerOutput, progress: Progress
    ) -> MagnitudeResult:
        by_value = replace(self.recipe, criterion="l1", evidence={})  # zeros are the least there, and stay
        return replace(self, file=load(trained), recipe=by_value).finish(setting, {}, saving, progress)

    def finish(self, setting: Setting, said: Json, saving: PrunerOutput, progress: Progress) -> MagnitudeResult:
        o, total = self.options, sum(knob.count for knob in self.space.knobs)
        share = sum(setting.get(knob.name, 0.0) * knob.count for knob in self.space.knobs) / max(total, 1)
        wanted = MagnitudeOptions(
            pattern=self.recipe.pattern, scope="layer", criterion=self.recipe.criterion, sparsity=round(share, 6),
            seed=self.recipe.seed, include=o.include, exclude=o.exclude, also=o.also, dim=o.dim,
            input_shape=o.input_shape, provider=o.provider, threads=1 if o.recovers else o.execution.threads,
            output=saving.target, force=saving.force, dry_run=saving.dry_run, verify=saving.verify,
            save_plan=saving.save_plan, external_data=saving.external_data, spreads=saving.spreads,
        )  # fmt: skip
        return zeroed(self.file.path, wanted, self._judge(setting, said), progress)

    def _judge(self, setting: Setting, said: Json) -> Selector:
        o, plain = self.options, BySetting(setting, self.recipe, said)
        if not o.recovers:
            return plain
        measured = Fitting(
            self.data, recover=o.recovery, seed=o.seed, exclude=o.exclude, dims=o.dims,
            execution=o.one_thread,
        )  # fmt: skip
        return BySettingFitted(plain, ByEvidence(measured))


@dataclass(frozen=True)
class BySettingFitted:
    """What `by` decides, and the weights that are left fitted to it as `prune oneshot` fits them to a plan."""

    by: BySetting
    fits: ByEvidence
    command = "adaptive"

    def __call__(self, file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection:
        return self.fits.fitted(file, self.by(file, choice, recipe, progress), progress)


@dataclass(frozen=True)
class BySetting:
    """The judge that has decided already: a sparsity per weight."""

    setting: Setting
    how: ElementRecipe
    said: Json
    command = "adaptive"

    def __call__(self, file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection:
        known = [w for w in choice.chosen if w.name in self.how.weights]
        found = decisions({w.name: target(w, self.how) for w in known}, self.setting, self.how)
        whole = Recipe("element", "layer", "l1", 0.0)
        left = [found[w.name] if w.name in found else decide([target_of(w)], whole)[0] for w in known]
        gone = [w for w in choice.chosen if w.name not in self.how.weights]
        reasons = [Skipped(w.name, "no output that is looked at depends on it") for w in gone]
        chosen = WeightChoice(known, [*choice.left, *gone], [*choice.skipped, *reasons])
        return Selection(chosen, left, {"scope": "adaptive", "sparsities": normal(self.setting), **self.said})


def open_elements(
    path: Path, options: TrialOptions, data: SampleSubset, progress: Progress, minimize: str | None = None
) -> WeightPruner:
    file = load(path)
    form = parse_pattern(options.pattern)
    if isinstance(form, Windows):
        raise PruneError(f"the pattern {form.text} fixes how many weights go", "use `prune magnitude --pattern`")
    choice = choose(find_weights(file), options.include, options.exclude, options.also)
    criterion, evidence, notes = _ranked(file, choice, options, data, progress)
    chosen = [w for w in choice.chosen if w.size and (not of_elements(criterion).evidence or w.name in evidence)]
    work = macs_by_weight(chosen, count_macs(file, concrete_shapes(file, options.dims)))
    recipe = ElementRecipe({w.name: work.get(w.name) for w in chosen}, criterion, form.text, options.seed, evidence)
    return WeightPruner(file, options, recipe, ElementSpace(load(path), recipe), choice.skipped, choice, data, notes)


def _ranked(
    file: Model, choice: WeightChoice, options: TrialOptions, data: SampleSubset, progress: Progress
) -> tuple[str, dict[str, Array], tuple[str, ...]]:
    """The criterion and its evidence. `auto` is smoothed where the model has gradients, else l1, which is told."""
    automatic = options.criterion in (None, AUTO)
    criterion = "smoothed" if automatic else str(options.criterion)
    needed = of_elements(criterion).evidence
    if needed is None:
        return criterion, {}, ()
    if not needed.differentiates:
        how = Fitting(data, criterion, seed=options.seed, exclude=options.exclude, dims=options.dims,
                             execution=options.one_thread)  # fmt: skip
        found, left = measured_scores(file, choice.chosen, options.pattern, how, progress)
        return criterion, found, tuple(f"{skip.name} is left alone: {skip.reason}" for skip in left)
    try:
        return criterion, _evidence(file, choice, needed, options, data, progress), ()
    except PruneError as error:
        if not automatic:
            raise
        return "l1", {}, (f"weights are ranked by l1, because gradients failed: {error.message}",)


def _evidence(
    file: Model,
    choice: WeightChoice,
    needed: Evidence,
    options: TrialOptions,
    data: SampleSubset,
    progress: Progress,
) -> dict[str, Array]:
    names = {w.name: w.holder.name for w in choice.chosen if w.holder.graph is file.ir.graph}
    wanted = GradientSamples(data, seed=options.seed, dims=options.dims, execution=options.one_thread)
    source = open_source(file, needed, list(names.values()), wanted)
    reached = [w for w in choice.chosen if names.get(w.name) and names[w.name] not in source.study.unreached]
    alive = {w.name: np.ones(w.shape, np.bool_) for w in reached}
    return source.measure(reached, alive, "measuring gradients", progress)
