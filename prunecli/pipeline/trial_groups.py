"""Trials of cut structures: which groups of units, their scores, and the file that `prune structured` would write."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.channels.analysis import Whole
from prunecli.model.saving import SaveOptions, save
from prunecli.pipeline.gradual_structured import expand
from prunecli.pipeline.structured import StructuredResult, carry_out
from prunecli.pipeline.structured_decide import nothing_to_cut
from prunecli.pipeline.structured_latency import Bench as Timing
from prunecli.pipeline.structured_latency import layer_table
from prunecli.pipeline.structured_plan import Decided, analysed_as
from prunecli.pipeline.structured_subject import Cuttable, choose_groups, following, open_cuttable
from prunecli.pipeline.structured_units import measure
from prunecli.pipeline.trial_options import Part
from prunecli.pipeline.trial_pruner import Saving
from prunecli.pipeline.trial_units import UnitSpace, UnitsRecipe
from prunecli.search.options import TrialOptions
from prunecli.search.proxy import Proxy
from prunecli.search.space import Setting, digest, normal
from prunecli.search.units import UnitRecipe, decide_units, group_limit, group_multiple, resolve_criterion
from prunecli.structures.options import CutOptions
from prunecli.types import Json, Progress, Skipped

Array = np.ndarray[Any, Any]


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
        subject = open_cuttable(
            place,
            self.options.granularity,
            self.options.dims,
            self.subject.inputs,
            self.subject.whole,
            self.subject.include,
        )
        return replace(self, subject=subject).finish(setting, {}, saving, progress)

    def finish(self, setting: Setting, said: Json, saving: Saving, progress: Progress) -> StructuredResult:
        o, start = self.options, time.perf_counter()
        wanted = replace(
            _cut_options(o, self.data), threads=1, recover=o.recovery, force=saving.force, dry_run=saving.dry_run,
            verify=saving.verify, save_plan=saving.save_plan, external_data=saving.external_data,
        )  # fmt: skip
        how = {"granularity": o.granularity, "criterion": self.criterion, "ratios": normal(setting),
               "include": list(o.include), "exclude": list(o.exclude), **analysed_as(self.subject)}  # fmt: skip
        mask = self.space.mask(setting)
        notes, timed = self._timed(mask) if self.timing is not None else ((), None)
        decided = Decided(mask, self.recipe.scores, {**how, **said}, self.left, notes, timed)
        return carry_out(self.subject, decided, saving.target, wanted, progress, start)

    def _timed(self, mask: Array) -> tuple[list[str], Json]:
        """The model beside the original, where latency is the goal."""
        assert self.timing is not None
        gain, threads = self.timing.compare(self.timing.build(mask)), self.options.execution.thread_count
        remains = None if gain.reason else 1 / gain.speedup
        measured = {"remains": remains, "threads": threads, "speedup": gain.to_json()}
        return [f"measured on {threads} thread{'s' * (threads > 1)}: {gain.words()}"], measured


def open_units(path: Path, options: TrialOptions, data: Part, progress: Progress, minimize: str | None = None) -> Units:
    subject, allowed, left = following(partial(_opened, path, options))
    scores = _scores(subject, options, data, progress, allowed)
    timing = Timing(subject, _cut_options(options, data), progress) if minimize == "latency" else None
    table = None if timing is None else layer_table(timing, allowed)
    multiples = {g.name: group_multiple(g, options.multiple, table) for g in subject.units.groups}
    recipe = UnitsRecipe(options.granularity, dict(subject.inputs), scores, options.largest_ratio, multiples,
                          subject.whole, subject.include)  # fmt: skip
    return Units(subject, options, data, recipe, UnitSpace(subject, recipe, table), left, timing)


def _opened(path: Path, options: TrialOptions, whole: Whole) -> tuple[Cuttable, Array, dict[str, str]]:
    """The model, its groups that may be cut, and why the others may not. Each is cut alone, then all are together: a
    trial that cannot follow would end the search."""
    subject = open_cuttable(path, options.granularity, options.dims, whole=whole, include=options.include)
    allowed, left = choose_groups(subject, options.include, options.exclude)
    if not allowed.any():
        raise nothing_to_cut(subject, left)
    groups = [group for group, wanted in zip(subject.units.groups, allowed, strict=True) if wanted]
    for some in (*([group] for group in groups), groups):
        mask = np.zeros(subject.units.count, bool)
        for group in some:
            mask[group.first : group.first + group_limit(group, 0.5)] = True
        subject.without(mask, subject.units.removed(mask))
    return subject, allowed, left


def _scores(
    subject: Cuttable, options: TrialOptions, data: Part, progress: Progress, allowed: Array | None = None
) -> Array:
    asked = replace(_cut_options(options, data), threads=1)
    how = UnitRecipe("ratio", 0.5, criterion=asked.criterion, seed=options.seed)
    return decide_units(subject.units, how, allowed, measure(subject, asked, progress), progress).scores


def _cut_options(options: TrialOptions, data: Part) -> CutOptions:
    return options.part(CutOptions, data=data, criterion=options.criterion or "auto", threads=options.execution.threads)
