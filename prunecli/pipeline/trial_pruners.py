"""What is searched over, by granularity: the space of settings, and how the chosen one is saved with proof."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from prunecli.apply.zero import target_of
from prunecli.errors import PruneError
from prunecli.model import Model, concrete_shapes, count_macs, find_weights, load
from prunecli.pipeline.choice import Choice, choose
from prunecli.pipeline.gradient_source import GradientOptions, open_source
from prunecli.pipeline.inspect import macs_by_weight
from prunecli.pipeline.judge import Judged
from prunecli.pipeline.magnitude import MagnitudeOptions, MagnitudeResult, magnitude
from prunecli.pipeline.structured import StructuredOptions, StructuredResult, carry_out
from prunecli.pipeline.structured_decide import nothing_to_cut
from prunecli.pipeline.structured_plan import Decided
from prunecli.pipeline.structured_subject import Cuttable, choose_groups, open_cuttable
from prunecli.pipeline.structured_units import measure
from prunecli.pipeline.trial_options import Part, TrialOptions
from prunecli.pipeline.trial_units import UnitLimits, UnitSpace, UnitsRecipe
from prunecli.search.elements import ElementRecipe, ElementSpace, decisions, target
from prunecli.search.proxy import Proxy
from prunecli.search.space import Setting, Space, SpaceRecipe, digest, normal
from prunecli.search.units import UnitRecipe, decide_units
from prunecli.select import CRITERIA, Recipe, decide, parse_pattern
from prunecli.select.patterns import Windows
from prunecli.types import Json, Progress, Skipped

Array = np.ndarray[Any, Any]
Result = MagnitudeResult | StructuredResult


@dataclass(frozen=True)
class Saving:
    """How the final model is written; see `MagnitudeOptions`."""

    target: Path
    force: bool = False
    dry_run: bool = False
    verify: bool = True
    external_data: Literal["auto", "always", "never"] = "auto"
    save_plan: Path | None = None


class Pruner(Protocol):
    """A space with a name, and a way to save its settings. `identity`: of all that decides what a setting means.
    `goals`: what can be minimised, the default first."""

    @property
    def recipe(self) -> SpaceRecipe: ...
    @property
    def space(self) -> Space: ...
    @property
    def identity(self) -> str: ...
    @property
    def goals(self) -> tuple[str, ...]: ...
    @property
    def skipped(self) -> list[Skipped]: ...
    @property
    def default_criterion(self) -> str: ...

    def proxy(self, progress: Progress) -> Proxy:
        """Damage predicted from gradients.

        Raises:
            PruneError: an operator has no gradient.
        """
        ...

    def finish(self, setting: Setting, said: Json, saving: Saving, progress: Progress) -> Result:
        """Prune the user's file by a setting and save it with proof. `said`: recorded in it."""
        ...


def open_pruner(path: Path, options: TrialOptions, data: Part, progress: Progress) -> Pruner:
    """The pruner of the granularity; what its criterion needs is measured on `data`.

    Raises:
        PruneError: an unknown name, or nothing can be pruned.
    """
    return (_open_elements if options.elements else _open_units)(path, options, data, progress)


# -- elements ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elements:
    """`choice`: the weights of `file`, as `prune magnitude` chooses them."""

    file: Model
    options: TrialOptions
    recipe: ElementRecipe
    space: ElementSpace
    skipped: list[Skipped]
    choice: Choice
    data: Part
    goals = ("params", "file_bytes", "macs")
    default_criterion = "l1"

    @property
    def identity(self) -> str:
        made = [(name, hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest())
                for name, a in sorted(self.recipe.evidence.items())]  # fmt: skip
        return digest("element", list(self.recipe.weights), self.recipe.criterion, self.recipe.pattern,
                      self.recipe.seed, made)  # fmt: skip

    def proxy(self, progress: Progress) -> Proxy:
        found = _evidence(self.file, self.choice, ("squared gradient",), self.options, self.data, progress)

        def predicted(knob: str, fraction: float) -> float:
            array = np.asarray(self.space.originals[knob].numpy())
            drop = decisions(self.space.targets, {knob: fraction}, self.recipe)[knob].drop(array)
            return float((np.square(array, dtype=np.float64) * found.get(knob, 0.0))[drop].sum() / 2)

        return predicted

    def finish(self, setting: Setting, said: Json, saving: Saving, progress: Progress) -> MagnitudeResult:
        o, total = self.options, sum(knob.count for knob in self.space.knobs)
        share = sum(setting.get(knob.name, 0.0) * knob.count for knob in self.space.knobs) / max(total, 1)
        wanted = MagnitudeOptions(
            Recipe(self.recipe.pattern, "layer", self.recipe.criterion, round(share, 6), None, self.recipe.seed),
            o.include, o.exclude, o.also, o.dims, o.execution, saving.target, saving.force, saving.dry_run,
            saving.verify, None, saving.save_plan, saving.external_data, None, BySetting(setting, self.recipe, said),
        )  # fmt: skip
        return magnitude(self.file.path, wanted, progress)


@dataclass(frozen=True)
class BySetting:
    """The judge that has decided already: a sparsity per weight."""

    setting: Setting
    how: ElementRecipe
    said: Json
    command = "adaptive"

    def __call__(self, file: Model, choice: Choice, recipe: Recipe, progress: Progress) -> Judged:
        known = [w for w in choice.chosen if w.name in self.how.weights]
        found = decisions({w.name: target(w, self.how) for w in known}, self.setting, self.how)
        whole = Recipe("element", "layer", "l1", 0.0)
        left = [found[w.name] if w.name in found else decide([target_of(w)], whole)[0] for w in known]
        gone = [w for w in choice.chosen if w.name not in self.how.weights]
        reasons = [Skipped(w.name, "no output that is looked at depends on it") for w in gone]
        chosen = Choice(known, [*choice.left, *gone], [*choice.skipped, *reasons])
        return Judged(chosen, left, {"scope": "adaptive", "sparsities": normal(self.setting), **self.said})


def _open_elements(path: Path, options: TrialOptions, data: Part, progress: Progress) -> Elements:
    file = load(path)
    form = parse_pattern(options.pattern)
    if isinstance(form, Windows):
        raise PruneError(f"the pattern {form.text} fixes how many weights go", "use `prune magnitude --pattern`")
    criterion = CRITERIA.get(options.criterion or "l1")
    choice = choose(find_weights(file), options.include, options.exclude, options.also)
    evidence = _evidence(file, choice, criterion.needs, options, data, progress) if criterion.needs else {}
    chosen = [w for w in choice.chosen if w.size and (not criterion.needs or w.name in evidence)]
    work = macs_by_weight(chosen, count_macs(file, concrete_shapes(file, options.dims)))
    recipe = ElementRecipe(
        {w.name: work.get(w.name) for w in chosen}, criterion.name, form.text, options.seed, evidence
    )
    return Elements(file, options, recipe, ElementSpace(load(path), recipe), choice.skipped, choice, data)


def _evidence(
    file: Model, choice: Choice, needs: tuple[str, ...], options: TrialOptions, data: Part, progress: Progress
) -> dict[str, Array]:
    names = {w.name: w.holder.name for w in choice.chosen if w.holder.graph is file.ir.graph}
    wanted = GradientOptions(data, seed=options.seed, dims=options.dims, execution=options.execution)
    source = open_source(file, needs[0], list(names.values()), wanted)
    reached = [w for w in choice.chosen if names.get(w.name) and names[w.name] not in source.study.unreached]
    alive = {w.name: np.ones(w.shape, np.bool_) for w in reached}
    return source.measure(reached, alive, "measuring gradients", progress)


# -- structures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """`left`: groups that --include and --exclude leave alone, and why."""

    subject: Cuttable
    options: TrialOptions
    data: Part
    recipe: UnitsRecipe
    space: UnitSpace
    left: Mapping[str, str]
    goals = ("macs", "params", "file_bytes")
    default_criterion = "activation"

    @property
    def identity(self) -> str:
        scores = hashlib.sha256(np.nan_to_num(self.recipe.scores, nan=-1.0).tobytes()).hexdigest()
        limits = self.recipe.limits
        return digest(self.recipe.granularity, {n: list(s) for n, s in self.recipe.shapes.items()}, scores,
                      limits.max_ratio, limits.round_to)  # fmt: skip

    @property
    def skipped(self) -> list[Skipped]:
        return [Skipped(name, reason) for name, reason in self.left.items()]

    def proxy(self, progress: Progress) -> Proxy:
        scores = _scores(self.subject, replace(self.options, criterion="fisher"), self.data, progress)

        def predicted(knob: str, fraction: float) -> float:
            return float(np.nansum(scores[self.space.mask({knob: fraction})]) / 2)

        return predicted

    def finish(self, setting: Setting, said: Json, saving: Saving, progress: Progress) -> StructuredResult:
        o, start = self.options, time.perf_counter()
        wanted = StructuredOptions(
            granularity=o.granularity, seed=o.seed, include=o.include, exclude=o.exclude, data=self.data,
            batch_size=o.batch_size, dims=o.dims, execution=o.execution, force=saving.force, dry_run=saving.dry_run,
            verify=saving.verify, save_plan=saving.save_plan, external_data=saving.external_data,
        )  # fmt: skip
        how = {"granularity": o.granularity, "criterion": o.criterion or "auto", "ratios": normal(setting),
               "include": list(o.include), "exclude": list(o.exclude),
               "inputs": {name: list(shape) for name, shape in self.subject.inputs.items()}}  # fmt: skip
        decided = Decided(self.space.mask(setting), self.recipe.scores, {**how, **said}, self.left)
        return carry_out(self.subject, decided, saving.target, wanted, progress, start)


def _open_units(path: Path, options: TrialOptions, data: Part, progress: Progress) -> Units:
    subject = open_cuttable(path, options.granularity, options.dims)
    allowed, left = choose_groups(subject, options.include, options.exclude)
    if not allowed.any():
        raise nothing_to_cut(subject, left)
    scores = _scores(subject, options, data, progress, allowed)
    limits = UnitLimits(UnitRecipe.max_ratio if options.max_ratio is None else options.max_ratio, options.round_to)
    recipe = UnitsRecipe(options.granularity, dict(subject.inputs), scores, limits)
    return Units(subject, options, data, recipe, UnitSpace(subject, recipe), left)


def _scores(
    subject: Cuttable, options: TrialOptions, data: Part, progress: Progress, allowed: Array | None = None
) -> Array:
    asked = StructuredOptions(
        criterion=options.criterion or "auto", data=data, batch_size=options.batch_size, dims=options.dims,
        execution=options.execution, seed=options.seed, granularity=options.granularity,
    )  # fmt: skip
    how = UnitRecipe("ratio", 0.5, criterion=asked.criterion, seed=options.seed)
    return decide_units(subject.units, how, allowed, measure(subject, asked, progress), progress).scores
