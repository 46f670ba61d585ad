"""Trials of cut structures: which groups of units, their scores, and the file that `prune structured` would write."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.dependency.analysis import Whole
from prunecli.dependency.catalogue import Group
from prunecli.dependency.costs import costs
from prunecli.errors import PruneError
from prunecli.model import Dims
from prunecli.model.saving import SaveOptions, save
from prunecli.model.shape_inference import Shape
from prunecli.search.options import TrialOptions
from prunecli.search.pools import SampleSubset
from prunecli.search.pruner import PrunerOutput
from prunecli.search.space import Knob, Proxy, Setting, digest, normal
from prunecli.structures.calibrate import measure
from prunecli.structures.carry_out import StructuredResult, carry_out
from prunecli.structures.choose import Costing, UnitRecipe, decide_units, group_limit, group_multiple, resolve_criterion
from prunecli.structures.decide import nothing_to_cut
from prunecli.structures.decision import Decided, analysed_as
from prunecli.structures.gradual import expand
from prunecli.structures.latency_budget import LatencyBench as Timing
from prunecli.structures.latency_budget import layer_table
from prunecli.structures.options import CutOptions
from prunecli.structures.prunable import Cuttable, choose_groups, following, open_cuttable
from prunecli.types import Json, Progress, Skipped

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GroupPruner:
    """`left`: groups that --include and --exclude leave alone, and why."""

    subject: Cuttable
    options: TrialOptions
    data: SampleSubset
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
        self, trained: Path, gone: Setting, setting: Setting, saving: PrunerOutput, progress: Progress
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

    def finish(self, setting: Setting, said: Json, saving: PrunerOutput, progress: Progress) -> StructuredResult:
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


def open_units(
    path: Path, options: TrialOptions, data: SampleSubset, progress: Progress, minimize: str | None = None
) -> GroupPruner:
    subject, allowed, left = following(partial(_opened, path, options))
    scores = _scores(subject, options, data, progress, allowed)
    timing = Timing(subject, _cut_options(options, data), progress) if minimize == "latency" else None
    table = None if timing is None else layer_table(timing, allowed)
    multiples = {g.name: group_multiple(g, options.multiple, table) for g in subject.units.groups}
    recipe = UnitsRecipe(options.granularity, dict(subject.inputs), scores, options.largest_ratio, multiples,
                          subject.whole, subject.include)  # fmt: skip
    return GroupPruner(subject, options, data, recipe, UnitSpace(subject, recipe, table), left, timing)


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
    subject: Cuttable, options: TrialOptions, data: SampleSubset, progress: Progress, allowed: Array | None = None
) -> Array:
    asked = replace(_cut_options(options, data), threads=1)
    how = UnitRecipe("ratio", 0.5, criterion=asked.criterion, seed=options.seed)
    return decide_units(subject.units, how, allowed, measure(subject, asked, progress), progress).scores


def _cut_options(options: TrialOptions, data: SampleSubset) -> CutOptions:
    return options.part(CutOptions, data=data, criterion=options.criterion or "auto", threads=options.execution.threads)


@dataclass(frozen=True)
class UnitsRecipe:
    """A model's groups of units and the score of every unit, NaN in groups that stay whole. `shapes`: the input shapes
    that it is analysed at. `max_ratio`: the largest fraction of a group; `multiples`: by group, units that stay.
    `whole`: axes that stay whole, see `Cuttable`."""

    granularity: str
    shapes: Mapping[str, Shape]
    scores: Array
    max_ratio: float = 0.9
    multiples: Mapping[str, int] = field(default_factory=dict)
    whole: Whole = field(default_factory=dict)
    include: tuple[str, ...] = ()

    def open(self, path: Path) -> UnitSpace:
        return UnitSpace(open_cuttable(path, self.granularity, Dims(), self.shapes, self.whole, self.include), self)


class UnitSpace:
    """Every built model is really cut: what is measured is what will be saved.

    costing: knows `latency` besides parameters and work; only where costs are asked for.
    """

    def __init__(self, subject: Cuttable, recipe: UnitsRecipe, costing: Costing | None = None) -> None:
        if subject.units.count != len(recipe.scores):
            raise PruneError("internal: the model was analysed differently here", "use the same version everywhere")
        self.subject, self.recipe, self.costing = subject, recipe, costing
        self.groups = {g.name: g for g in subject.units.groups if not np.isnan(recipe.scores[g.units]).any()}

    @cached_property
    def knobs(self) -> Sequence[Knob]:
        prices = dict(zip((g.name for g in self.subject.units.groups), self.subject.prices, strict=True))
        return [self._knob(group, *prices[name]) for name, group in self.groups.items()]

    @cached_property
    def _knobs(self) -> dict[str, Knob]:
        return {knob.name: knob for knob in self.knobs}

    def _knob(self, group: Group, params: int, macs: int) -> Knob:
        touches = tuple(f"{name}[{axis}]" for name, axis in group.weights)
        limit = group_limit(group, self.recipe.max_ratio) / group.count
        return Knob(group.name, group.kind, group.count, params * group.count, macs * group.count, touches, limit,
                    self.recipe.multiples.get(group.name, 1))  # fmt: skip

    def mask(self, setting: Setting) -> Array:
        """Units that go: of each group the lowest scores, of equal ones the later."""
        out = np.zeros(self.subject.units.count, bool)
        for name, share in setting.items():
            group = self.groups[name]
            own = self.recipe.scores[group.units]
            gone = self._knobs[name].gone(share)
            out[group.first + np.lexsort((-np.arange(group.count), own))[:gone]] = True
        return out

    def build(self, setting: Setting) -> onnx.ModelProto:
        mask = self.mask(setting)
        if not mask.any():
            return ir.to_proto(self.subject.work)
        return ir.to_proto(self.subject.without(mask, self.subject.units.removed(mask)))

    def cost(self, setting: Setting) -> Mapping[str, float]:
        kept = self.subject.units.kept(self.mask(setting))
        found = self._costs.of(kept)
        saved = self._whole["params"] - found["params"]
        return {**found, "file_bytes": max(self._bytes - saved * self._width, 1)}

    @cached_property
    def _costs(self) -> Any:
        return self.costing or costs(self.subject.units.analysis)

    @cached_property
    def _whole(self) -> Mapping[str, int]:
        return dict(self._costs.of(self.subject.units.sizes))

    @cached_property
    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.subject.file.path, *self.subject.file.data_files))

    @cached_property
    def _width(self) -> float:
        """Bytes of a parameter."""
        held = [v.const_value for v in self.subject.work.graph.initializers.values() if v.const_value is not None]
        floats = [t for t in held if t.dtype.is_floating_point()]
        return sum(t.nbytes for t in floats) / max(sum(t.size for t in floats), 1)

    def by_threshold(self, share: float) -> Setting:
        order = np.argsort(np.where(np.isnan(self.recipe.scores), np.inf, self.recipe.scores), kind="stable")
        total = sum(group.count for group in self.groups.values())
        gone = np.zeros(self.subject.units.count, bool)
        gone[order[: round(share * total)]] = True
        return {name: float(gone[group.units].mean()) for name, group in self.groups.items()}

    def thresholds(self, setting: Setting) -> Mapping[str, float]:
        mask, scores = self.mask(setting), self.recipe.scores
        picked = {name: scores[g.units][mask[g.units]] for name, g in self.groups.items() if name in setting}
        return {name: float(own.max()) if own.size else 0.0 for name, own in picked.items()}
