"""The pruner of structures: each group of coupled units is a layer. It saves models as `prune structured` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.arrays import Array, content_digest
from prunecli.data.options import DataOptions
from prunecli.dependency.analysis import Whole
from prunecli.dependency.catalogue import Group
from prunecli.dependency.costs import costs
from prunecli.dependency.cut import following
from prunecli.errors import PruneError
from prunecli.evaluation.speed import MeasuredSpeed
from prunecli.masks.allocations import LossCurve
from prunecli.model import Dims
from prunecli.model.floating import as_stored
from prunecli.model.saving import SaveOptions, save
from prunecli.predicted.predict import group_curves
from prunecli.search.options import PrunedFile, TrialOptions
from prunecli.search.pruner import Allocation, Layer, Proxy, digest, normal
from prunecli.structures.calibrate import measure
from prunecli.structures.carry_out import StructuredResult, carry_out
from prunecli.structures.choose import Costing, UnitRecipe, decide_units, group_limit, resolve_criterion
from prunecli.structures.decide import nothing_to_cut
from prunecli.structures.decision import Decided
from prunecli.structures.gradual import expand
from prunecli.structures.latency import CutTimer as Timing
from prunecli.structures.latency import layer_table, timed_widths
from prunecli.structures.options import CutOptions
from prunecli.structures.prunable import AnalysedAs, Cuttable, LeftOut, choose_groups, open_cuttable
from prunecli.structures.ranking import ranked
from prunecli.structures.target import Budget
from prunecli.structures.widths import Alignment
from prunecli.types import Json, Progress, Skipped


@dataclass(frozen=True)
class UnitRanking:
    """The scores of a model's units, by which they are removed.

    how: what the model is analysed as. scores: one per unit, NaN in groups that stay whole. most: by group, the largest
    number of units that may go. widths: by group, the numbers of units that may stay.
    """

    how: AnalysedAs
    scores: Array
    most: Mapping[str, int]
    widths: Mapping[str, tuple[int, ...]]

    def at(self, path: Path) -> UnitSpace:
        return UnitSpace(open_cuttable(path, self.how, Dims()), self)


class UnitSpace:
    """The models that can be cut from one. Each is built by a real cut, so what is measured is what will be saved.

    costing: counts `latency` besides parameters and work; needed only for `cost`.
    """

    def __init__(self, cuttable: Cuttable, ranking: UnitRanking, costing: Costing | None = None) -> None:
        if cuttable.units.count != len(ranking.scores):
            raise PruneError("internal: the model was analysed differently here", "use the same version everywhere")
        self.cuttable, self.ranking, self.costing = cuttable, ranking, costing
        self.groups = {g.name: g for g in cuttable.units.groups if not np.isnan(ranking.scores[g.units]).any()}

    @cached_property
    def layers(self) -> Sequence[Layer]:
        prices = dict(zip((g.name for g in self.cuttable.units.groups), self.cuttable.prices, strict=True))
        return [self._layer(group, *prices[name]) for name, group in self.groups.items()]

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    def _layer(self, group: Group, params: int, macs: int) -> Layer:
        return Layer(
            group.name, group.kind, group.count,
            params=params * group.count, macs=macs * group.count,
            touches=tuple(f"{name}[{axis}]" for name, axis in group.weights),
            limit=self.ranking.most[group.name] / group.count, widths=self.ranking.widths[group.name],
        )  # fmt: skip

    def mask(self, allocation: Allocation) -> Array:
        """Return a mask over the units that an allocation removes: the lowest scores of each group, of equal ones the
        later."""
        out = np.zeros(self.cuttable.units.count, bool)
        for name, share in allocation.items():
            group = self.groups[name]
            own = self.ranking.scores[group.units]
            gone = self._layers[name].gone(share)
            out[group.first + np.lexsort((-np.arange(group.count), own))[:gone]] = True
        return out

    def build(self, allocation: Allocation) -> onnx.ModelProto:
        mask = self.mask(allocation)
        if not mask.any():
            return ir.to_proto(self.cuttable.stored)
        return ir.to_proto(self.cuttable.without(mask, self.cuttable.units.removed(mask)))

    def cost(self, allocation: Allocation) -> Mapping[str, float]:
        found = self._costs.of(self.cuttable.units.kept(self.mask(allocation)))
        saved = self._whole["params"] - found["params"]
        return {**found, "file_bytes": max(self._bytes - saved * self._width, 1)}

    @cached_property
    def _costs(self) -> Any:
        return self.costing or costs(self.cuttable.units)

    @cached_property
    def _whole(self) -> Mapping[str, int]:
        return dict(self._costs.of(self.cuttable.units.sizes))

    @cached_property
    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.cuttable.file.path, *self.cuttable.file.data_files))

    @cached_property
    def _width(self) -> float:
        """Mean bytes of a floating-point parameter as it is stored."""
        held = [v.const_value for v in self.cuttable.work.graph.initializers.values() if v.const_value is not None]
        floats = [t for t in held if t.dtype.is_floating_point()]
        return sum(as_stored(t).nbytes for t in floats) / max(sum(t.size for t in floats), 1)

    def by_threshold(self, share: float) -> Allocation:
        order = np.argsort(np.where(np.isnan(self.ranking.scores), np.inf, self.ranking.scores), kind="stable")
        total = sum(group.count for group in self.groups.values())
        gone = np.zeros(self.cuttable.units.count, bool)
        gone[order[: round(share * total)]] = True
        return {name: float(gone[group.units].mean()) for name, group in self.groups.items()}

    def thresholds(self, allocation: Allocation) -> Mapping[str, float]:
        mask, scores = self.mask(allocation), self.ranking.scores
        picked = {name: scores[g.units][mask[g.units]] for name, g in self.groups.items() if name in allocation}
        return {name: float(own.max()) if own.size else 0.0 for name, own in picked.items()}


class StructurePruner(UnitSpace):
    """The pruner of structures. `left`: by group that --include and --exclude leave alone, the reason; `timing`:
    measures latency, if that is the goal."""

    goals = ("macs", "params", "file_bytes", "latency")
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, options: TrialOptions, samples: DataOptions | None, progress: Progress) -> None:
        self.options, self.samples = options, samples
        cuttable, allowed, self.left = following(partial(_opened, path, options))
        cuttable = ranked(cuttable, self._cut_options(options.criterion, threads=1), progress)
        scores = self._scores(cuttable, options.criterion, progress, allowed=allowed)
        latency = options.goal == "latency"
        self.timing = Timing(cuttable, self._cut_options(options.criterion), progress) if latency else None
        table = None if self.timing is None else layer_table(self.timing, allowed)
        alignment = options.alignment if table is None else timed_widths(options)
        groups = cuttable.units.groups
        most = {group.name: group_limit(group, options.largest_ratio) for group in groups}
        widths = {group.name: alignment.widths(cuttable.units, group) for group in groups}
        super().__init__(cuttable, UnitRanking(cuttable.how, scores, most, widths=widths), table)

    def _cut_options(self, criterion: str | None, **changes: Any) -> CutOptions:
        o = self.options
        given = {"data": self.samples, "criterion": criterion or "auto", "threads": o.execution.threads, "state": None}
        return o.part(CutOptions, **given | changes)

    def _scores(
        self, cuttable: Cuttable, criterion: str | None, progress: Progress, allowed: Array | None = None
    ) -> Array:
        asked = self._cut_options(criterion, threads=1)
        how = UnitRecipe(Budget("ratio", 0.5), replace(asked, max_ratio=None), widths=Alignment())
        return decide_units(
            cuttable.units, how, allowed, evidence=measure(cuttable, asked, progress), progress=progress
        ).scores

    @property
    def at(self) -> Callable[[Path], UnitSpace]:
        return self.ranking.at

    @property
    def identity(self) -> str:
        ranking = self.ranking
        scores = content_digest({"scores": np.nan_to_num(ranking.scores, nan=-1.0)})
        return digest(ranking.how.granularity, ranking.how.to_json(), scores, dict(ranking.most), dict(ranking.widths))

    @property
    def criterion(self) -> str:
        return resolve_criterion(self.options.criterion or "auto", self.samples is not None)

    @property
    def skipped(self) -> list[Skipped]:
        return [Skipped(name, one.reason) for name, one in self.left.items()]

    def proxy(self, progress: Progress) -> Proxy:
        scores = self._scores(self.cuttable, "fisher", progress)

        def predicted(layer: str, fraction: float) -> float:
            return float(np.nansum(scores[self.mask({layer: fraction})]) / 2)

        return predicted

    def predicted(self) -> Mapping[str, LossCurve]:
        return group_curves(replace(self.cuttable.file, ir=self.cuttable.work), self.cuttable.units)

    def save(self, allocation: Allocation, saving: PrunedFile, said: Json, progress: Progress) -> StructuredResult:
        return self._save(self.cuttable, allocation, saving, said=said, progress=progress)

    def cut_further(
        self, trained: Path, gone: Allocation, allocation: Allocation, saving: PrunedFile, progress: Progress
    ) -> StructuredResult:
        assert saving.output is not None
        work, place = expand(self.cuttable, self.mask(gone), trained), saving.output.with_name("expanded.onnx")
        save(replace(self.cuttable.file, ir=work), place, SaveOptions(force=True))
        return self._save(
            open_cuttable(place, self.ranking.how, self.options.dims), allocation, saving, said={}, progress=progress
        )

    def _save(
        self, cuttable: Cuttable, allocation: Allocation, saving: PrunedFile, said: Json, progress: Progress
    ) -> StructuredResult:
        o, start = self.options, time.perf_counter()
        assert saving.output is not None
        kept = {name: getattr(saving, name) for name in ("force", "dry_run", "verify", "save_plan", "external_data")}
        timed = {"timing": saving.timed, "timed_threads": o.execution.thread_count}
        wanted = self._cut_options(o.criterion, threads=1, recover=o.recovery, **kept, **timed)
        how = {"granularity": o.granularity, "criterion": self.criterion, "ratios": normal(allocation),
               **o.recorded(["include", "exclude"]), **cuttable.how.to_json()}  # fmt: skip
        decided = Decided(self.mask(allocation), self.ranking.scores, {**how, **said}, left=self.left)
        found = carry_out(cuttable, decided, saving.output, options=wanted, progress=progress, start=start)
        return found if self.timing is None else replace(found, latency=_remaining(found.speed))


def _remaining(speed: MeasuredSpeed | None) -> Json | None:
    """Return the fraction of the time that remains, as JSON; None if it was not measured."""
    if speed is None or speed.pair is None:
        return None
    gain = speed.pair.gain
    remains = None if gain.reason else 1 / gain.speedup
    return {"remains": remains, "threads": speed.pair.model.how.threads, "speedup": gain.to_json()}


def _opened(path: Path, options: TrialOptions, whole: Whole) -> tuple[Cuttable, Array, dict[str, LeftOut]]:
    """Analyse the model; return it, a mask over the groups that may be cut, and the reasons of the others.

    Each group is cut once alone, then all are cut together, so that no trial meets an axis that cannot follow.
    """
    how = AnalysedAs(options.granularity, whole=whole, include=options.include, convolved=options.convolved)
    cuttable = open_cuttable(path, how, options.dims)
    allowed, left = choose_groups(cuttable, options.include, options.exclude)
    if not allowed.any():
        raise nothing_to_cut(cuttable, left)
    groups = [group for group, wanted in zip(cuttable.units.groups, allowed, strict=True) if wanted]
    for some in (*([group] for group in groups), groups):
        mask = np.zeros(cuttable.units.count, bool)
        for group in some:
            mask[group.first : group.first + group_limit(group, 0.5)] = True
        cuttable.without(mask, cuttable.units.removed(mask))
    return cuttable, allowed, left
