"""Cutting structures as a space to search: one knob per group of coupled units, the fraction of them that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.channels.analysis import Whole
from prunecli.channels.catalogue import Group
from prunecli.channels.costs import costs
from prunecli.errors import PruneError
from prunecli.model import Dims
from prunecli.model.facts import Shape
from prunecli.pipeline.structured_subject import Cuttable, open_cuttable
from prunecli.search.space import Knob, Setting
from prunecli.search.units import Costing, group_limit

Array = np.ndarray[Any, Any]


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
