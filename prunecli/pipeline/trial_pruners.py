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
from prunecli.evidence.gradients import STATISTICS
from prunecli.model import Dims, Model, concrete_shapes, count_macs, find_weights, load
from prunecli.model.saving import SaveOptions, save
from prunecli.pipeline.choice import Choice, choose
from prunecli.pipeline.gradient_source import GradientOptions, open_source
from prunecli.pipeline.gradual_structured import expand
from prunecli.pipeline.inspect import macs_by_weight
from prunecli.pipeline.judge import Judged
from prunecli.pipeline.magnitude import MagnitudeOptions, MagnitudeResult, magnitude
from prunecli.pipeline.structured import StructuredOptions, StructuredResult, carry_out
from prunecli.pipeline.structured_decide import nothing_to_cut
from prunecli.pipeline.structured_latency import Bench as Timing
from prunecli.pipeline.structured_latency import layer_table
from prunecli.pipeline.structured_plan import Decided
from prunecli.pipeline.structured_subject import Cuttable, choose_groups, open_cuttable
from prunecli.pipeline.structured_units import measure
from prunecli.pipeline.trial_options import Part, TrialOptions
from prunecli.pipeline.trial_units import UnitSpace, UnitsRecipe
from prunecli.search.elements import ElementRecipe, ElementSpace, decisions, target
from prunecli.search.proxy import Proxy
from prunecli.search.space import Setting, Space, SpaceRecipe, digest, normal
from prunecli.search.units import UnitRecipe, decide_units, group_multiple, resolve_criterion
from prunecli.select import CRITERIA, Criterion, Recipe, decide, parse_pattern
from prunecli.select.patterns import Windows
from prunecli.types import Json, Progress, Skipped

Array = np.ndarray[Any, Any]
Result = MagnitudeResult | StructuredResult
AUTO = "auto"


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
    def criterion(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def proxy(self, progress: Progress) -> Proxy:
        """Damage predicted from gradients.

        Raises:
            PruneError: an operator has no gradient.
        """
        ...

    def finish(self, setting: Setting, said: Json, saving: Saving, progress: Progress) -> Result:
        """Prune the user's file by a setting and save it with proof. `said`: recorded in it."""
        ...

    def cut_further(self, trained: Path, gone: Setting, setting: Setting, saving: Saving, progress: Progress) -> Result:
        """As `finish`, of what training made of a cut by the gentler setting `gone`, which stays gone."""
        ...


def open_pruner(
    path: Path, options: TrialOptions, data: Part, progress: Progress, minimize: str | None = None
) -> Pruner:
    """The pruner of the granularity; what its criterion needs is measured on `data`, and what the goal needs.

    Raises:
        PruneError: an unknown name, or nothing can be pruned.
    """
    return (_open_elements if options.elements else _open_units)(path, options, data, progress, minimize)


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
        found = _evidence(self.file, self.choice, ("squared gradient",), self.options, self.data, progress)

        def predicted(knob: str, fraction: float) -> float:
            array = np.asarray(self.space.originals[knob].numpy())
            drop = decisions(self.space.targets, {knob: fraction}, self.recipe)[knob].drop(array)
            return float((np.square(array, dtype=np.float64) * found.get(knob, 0.0))[drop].sum() / 2)

        return predicted

    def cut_further(
        self, trained: Path, gone: Setting, setting: Setting, saving: Saving, progress: Progress
    ) -> MagnitudeResult:
        by_value = replace(self.recipe, criterion="l1", evidence={})  # zeros are the least there, and stay
        return replace(self, file=load(trained), recipe=by_value).finish(setting, {}, saving, progress)

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


def _open_elements(
    path: Path, options: TrialOptions, data: Part, progress: Progress, minimize: str | None = None
) -> Elements:
    file = load(path)
    form = parse_pattern(options.pattern)
    if isinstance(form, Windows):
        raise PruneError(f"the pattern {form.text} fixes how many weights go", "use `prune magnitude --pattern`")
    choice = choose(find_weights(file), options.include, options.exclude, options.also)
    criterion, evidence, notes = _ranked(file, choice, options, data, progress)
    chosen = [w for w in choice.chosen if w.size and (not criterion.needs or w.name in evidence)]
    work = macs_by_weight(chosen, count_macs(file, concrete_shapes(file, options.dims)))
    recipe = ElementRecipe(
        {w.name: work.get(w.name) for w in chosen}, criterion.name, form.text, options.seed, evidence
    )
    return Elements(file, options, recipe, ElementSpace(load(path), recipe), choice.skipped, choice, data, notes)


def _ranked(
    file: Model, choice: Choice, options: TrialOptions, data: Part, progress: Progress
) -> tuple[Criterion, dict[str, Array], tuple[str, ...]]:
    """The criterion and its evidence. `auto` is taylor where the model has gradients, else l1, which is told."""
    automatic = options.criterion in (None, AUTO)
    criterion = CRITERIA.get("taylor" if automatic else str(options.criterion))
    if not criterion.needs:
        return criterion, {}, ()
    if criterion.needs[0] not in (*STATISTICS, "flow"):
        problem = f"--criterion {criterion.name} needs the {criterion.needs[0]}, which trials do not measure"
        raise PruneError(problem, f"use `prune oneshot --method {criterion.name}`, or --criterion taylor")
    try:
        return criterion, _evidence(file, choice, criterion.needs, options, data, progress), ()
    except PruneError as error:
        if not automatic:
            raise
        return CRITERIA.get("l1"), {}, (f"weights are ranked by l1, because gradients failed: {error.message}",)


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
    timing: Timing | None = None
    notes: tuple[str, ...] = ()
    goals = ("macs", "params", "file_bytes", "latency")

    @property
    def identity(self) -> str:
        scores = hashlib.sha256(np.nan_to_num(self.recipe.scores, nan=-1.0).tobytes()).hexdigest()
        return digest(self.recipe.granularity, {n: list(s) for n, s in self.recipe.shapes.items()}, scores,
                      self.recipe.max_ratio, dict(self.recipe.multiples))  # fmt: skip

    @property
    def criterion(self) -> str:
        return resolve_criterion(self.options.criterion or "auto", True)

    @property
    def skipped(self) -> list[Skipped]:
        return [Skipped(name, reason) for name, reason in self.left.items()]

    def proxy(self, progress: Progress) -> Proxy:
        scores = _scores(self.subject, replace(self.options, criterion="fisher"), self.data, progress)

        def predicted(knob: str, fraction: float) -> float:
            return float(np.nansum(scores[self.space.mask({knob: fraction})]) / 2)

        return predicted

    def cut_further(
        self, trained: Path, gone: Setting, setting: Setting, saving: Saving, progress: Progress
    ) -> StructuredResult:
        work, place = expand(self.subject, self.space.mask(gone), trained), saving.target.with_name("expanded.onnx")
        save(replace(self.subject.file, ir=work), place, SaveOptions(force=True))
        subject = open_cuttable(place, self.options.granularity, Dims(), self.subject.inputs)
        return replace(self, subject=subject).finish(setting, {}, saving, progress)

    def finish(self, setting: Setting, said: Json, saving: Saving, progress: Progress) -> StructuredResult:
        o, start = self.options, time.perf_counter()
        wanted = StructuredOptions(
            granularity=o.granularity, seed=o.seed, include=o.include, exclude=o.exclude, data=self.data,
            batch_size=o.batch_size, dims=o.dims, execution=o.execution, force=saving.force, dry_run=saving.dry_run,
            verify=saving.verify, save_plan=saving.save_plan, external_data=saving.external_data,
        )  # fmt: skip
        how = {"granularity": o.granularity, "criterion": self.criterion, "ratios": normal(setting),
               "include": list(o.include), "exclude": list(o.exclude),
               "inputs": {name: list(shape) for name, shape in self.subject.inputs.items()}}  # fmt: skip
        mask = self.space.mask(setting)
        notes, timed = self._timed(mask) if self.timing is not None else ((), None)
        decided = Decided(mask, self.recipe.scores, {**how, **said}, self.left, notes, timed)
        return carry_out(self.subject, decided, saving.target, wanted, progress, start)

    def _timed(self, mask: Array) -> tuple[list[str], Json]:
        """The model beside the original, where latency is the goal."""
        assert self.timing is not None
        gain, threads = self.timing.compare(self.timing.build(mask)), self.options.execution.thread_count
        measured = {"remains": 1 / gain.speedup, "threads": threads,
                    "speedup": {"speedup": gain.speedup, "low": gain.low, "high": gain.high}}  # fmt: skip
        return [f"measured on {threads} thread{'s' * (threads > 1)}: {gain.words()}"], measured


def _open_units(
    path: Path, options: TrialOptions, data: Part, progress: Progress, minimize: str | None = None
) -> Units:
    subject = open_cuttable(path, options.granularity, options.dims)
    allowed, left = choose_groups(subject, options.include, options.exclude)
    if not allowed.any():
        raise nothing_to_cut(subject, left)
    scores = _scores(subject, options, data, progress, allowed)
    timing = Timing(subject, _structured(options, data), progress) if minimize == "latency" else None
    table = None if timing is None else layer_table(timing, allowed)
    multiples = {g.name: group_multiple(g, options.round_to, table) for g in subject.units.groups}
    most = UnitRecipe.max_ratio if options.max_ratio is None else options.max_ratio
    recipe = UnitsRecipe(options.granularity, dict(subject.inputs), scores, most, multiples)
    return Units(subject, options, data, recipe, UnitSpace(subject, recipe, table), left, timing)


def _scores(
    subject: Cuttable, options: TrialOptions, data: Part, progress: Progress, allowed: Array | None = None
) -> Array:
    asked = _structured(options, data)
    how = UnitRecipe("ratio", 0.5, criterion=asked.criterion, seed=options.seed)
    return decide_units(subject.units, how, allowed, measure(subject, asked, progress), progress).scores


def _structured(options: TrialOptions, data: Part) -> StructuredOptions:
    return StructuredOptions(
        criterion=options.criterion or "auto", data=data, batch_size=options.batch_size, dims=options.dims,
        execution=options.execution, seed=options.seed, granularity=options.granularity,
    )  # fmt: skip
