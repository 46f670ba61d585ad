"""Which units to remove: scores, normalised so that groups can compete, against a budget with exact costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any, Literal

import numpy as np

from prunecli.channels.catalogue import Catalogue, Group
from prunecli.channels.costs import Costs, costs
from prunecli.channels.slices import Slice, WeightSlices
from prunecli.errors import PruneError
from prunecli.search.normalise import NORMALISERS
from prunecli.select.budget import Bundles, Mask, Pool, bundle, by_cost, by_ratio, interleaved
from prunecli.select.structures import UNIT_CRITERIA, Part, UnitGroup
from prunecli.types import Progress, no_progress

Array = np.ndarray[Any, Any]
BudgetKind = Literal["ratio", "macs", "params"]


@dataclass(frozen=True)
class UnitRecipe:
    """How units are chosen.

    target: with `ratio` the fraction of units removed, with `macs` and `params` the fraction that remains, or an
    absolute count if `absolute`. max_ratio: largest fraction of a group that may go. round_to: the positions
    that stay on the group's axes are a multiple of it. steps: how often scores are taken anew on what is left.
    """

    budget: BudgetKind
    target: float
    absolute: bool = False
    criterion: str = "l2"
    normalize: str = "mean"
    scope: Literal["layer", "global"] = "global"
    max_ratio: float = 0.9
    round_to: int = 1
    steps: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Evidence:
    """Measurements for criteria that need them. moments: E[x^2] of the columns' inputs, by weight, one per
    position of the axis that is read. elements: arrays of a weight's own shape by name of the evidence, then weight
    (gradient statistics)."""

    moments: Mapping[str, Array] = field(default_factory=dict)
    elements: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitDecision:
    """`removed`: mask over units. `scores`: the criterion's, of the intact model. `before`, `after`: params and
    macs. `step_of`: the step that removed each unit, -1 for those that stay."""

    removed: Mask
    scores: Array
    before: Mapping[str, int]
    after: Mapping[str, int]
    step_of: Array
    notes: list[str]


def decide_units(
    catalogue: Catalogue,
    recipe: UnitRecipe,
    allowed: Array | None = None,
    evidence: Evidence | None = None,
    progress: Progress = no_progress,
) -> UnitDecision:
    """Choose the units to remove.

    Args:
        allowed: mask over groups; others stay whole.
        evidence: what the criterion needs to have been measured.
    Raises:
        PruneError: an unknown name, missing evidence, a target that is no fraction or cannot be reached (with the
            closest that can).
    """
    _check(recipe, evidence)
    return _Chooser(catalogue, recipe, allowed, evidence or Evidence()).run(progress)


def _check(recipe: UnitRecipe, evidence: Evidence | None) -> None:
    for value, known, option in (
        (recipe.criterion, UNIT_CRITERIA, "--criterion"),
        (recipe.normalize, NORMALISERS, "--normalize"),
        (recipe.scope, ("layer", "global"), "--scope"),
    ):
        if value not in known:
            raise PruneError(f"{option} {value!r} is unknown for structures", f"choose from {', '.join(known)}")
    if UNIT_CRITERIA[recipe.criterion].evidence and evidence is None:
        raise PruneError(f"--criterion {recipe.criterion} needs data", "give --data")
    if not 0 < recipe.max_ratio <= 1 or recipe.round_to < 1 or recipe.steps < 1:
        raise PruneError("--max-ratio is in (0, 1], --round-to and --steps are at least 1", "correct the option")
    if not recipe.absolute and not 0 < recipe.target < 1:
        raise PruneError(
            f"a {recipe.budget} of {recipe.target:g} leaves nothing to choose", "give a fraction in (0, 1)"
        )


class _Chooser:
    def __init__(self, catalogue: Catalogue, recipe: UnitRecipe, allowed: Array | None, evidence: Evidence) -> None:
        self.catalogue, self.recipe, self.evidence = catalogue, recipe, evidence
        self.slices = WeightSlices(catalogue)
        self.costs: Costs = costs(catalogue.analysis)
        self.notes: list[str] = []
        use = np.ones(len(catalogue.groups), bool) if allowed is None else np.asarray(allowed, bool)
        self.groups = [group for group, wanted in zip(catalogue.groups, use, strict=True) if wanted]
        self.pools = [self._pool(group) for group in self.groups]
        self.before = self.costs.of(catalogue.sizes)

    def _pool(self, group: Group) -> Pool:
        r = self.recipe
        limit = min(group.count - 1, int(np.floor(r.max_ratio * group.count + 1e-9)))
        multiple = r.round_to // gcd(r.round_to, max(group.per_unit)) if group.kind in ("channel", "width") else 1
        if multiple > 1 and group.count <= multiple:
            self.notes.append(
                f"--round-to {r.round_to}: {group.name} has only {group.count} {group.kind}s and stays whole"
            )
        return Pool(group.first, group.count, limit, multiple)

    def run(self, progress: Progress) -> UnitDecision:
        total = self.catalogue.count
        removed, step_of = np.zeros(total, bool), np.full(total, -1, np.int64)
        first = np.full(total, np.nan)
        for step in progress(range(self.recipe.steps), "choosing units", self.recipe.steps):
            raw = self.scores(removed)
            if step == 0:
                first = raw
            chosen = self._choose(raw, removed, (step + 1) / self.recipe.steps)
            step_of[chosen & ~removed] = step
            removed |= chosen
        after = self.costs.of(self.catalogue.kept(removed))
        return UnitDecision(removed, first, self.before, after, step_of, self.notes)

    # -- scores -----------------------------------------------------------------------------------

    def scores(self, removed: Mask) -> Array:
        """The criterion's score of every unit of the groups in question, on what is left; NaN elsewhere."""
        out = np.full(self.catalogue.count, np.nan)
        gone = self.catalogue.removed(removed) if removed.any() else {}
        criterion = UNIT_CRITERIA[self.recipe.criterion]
        for number, group in enumerate(self.groups):
            rng = np.random.default_rng([self.recipe.seed, number])
            parts = [self._part(piece, gone) for piece in self.slices.of(group)]
            score = criterion.score(UnitGroup(group.name, group.count, parts, rng))
            if np.isnan(score).any():
                raise PruneError(f"a weight of {group.name} holds NaN", "`prune inspect` lists the weights")
            out[group.units] = score
        return out

    def _part(self, piece: Slice, gone: Mapping[str, Mapping[int, Array]]) -> Part:
        array = self.slices.array(piece.name)
        for axis, positions in gone.get(piece.name, {}).items():
            if axis != piece.axis:
                array = np.delete(array, positions, axis)
        evidence = {}
        if piece.role == "in" and piece.name in self.evidence.moments:
            evidence["moments"] = self.evidence.moments[piece.name][piece.index].repeat(
                array.size // array.shape[piece.axis], axis=1
            )
        for name, arrays in self.evidence.elements.items():
            if piece.name in arrays:
                evidence[name] = piece.take(self._left(arrays[piece.name], piece, gone))
        scale = piece.name in self.slices.norm_scales
        return Part(piece.name, piece.role, piece.take(array), scale, evidence)

    def _left(self, array: Array, piece: Slice, gone: Mapping[str, Mapping[int, Array]]) -> Array:
        for axis, positions in gone.get(piece.name, {}).items():
            if axis != piece.axis:
                array = np.delete(array, positions, axis)
        return array

    # -- choice -----------------------------------------------------------------------------------

    def _choose(self, raw: Array, removed: Mask, share: float) -> Mask:
        """All units that are gone after this step: those before stay gone, because they score lowest."""
        scores = NORMALISERS[self.recipe.normalize](self.catalogue, self.groups, raw)
        scores = np.where(removed, -np.inf, np.where(np.isnan(scores), np.inf, scores))
        bundles = bundle(self.pools, scores)
        total = self.catalogue.count
        if self.recipe.budget == "ratio":
            chosen = by_ratio(self.pools, bundles, self.recipe.target * share, self.recipe.scope == "global")
        else:
            chosen = self._by_cost(bundles, share)
        return bundles.mask(chosen, total)

    def _by_cost(self, bundles: Bundles, share: float) -> Array:
        kind, total = self.recipe.budget, self.catalogue.count
        whole = self.before[kind]
        wanted = self.recipe.target if self.recipe.absolute else self.recipe.target * whole
        if wanted >= whole:
            raise PruneError(f"the model has only {whole:,} {kind}", "ask for fewer")
        least = self.cost(bundles.mask(np.arange(len(bundles)), total))
        if least > wanted:
            raise PruneError(
                f"--{kind} {wanted / whole:.3g} cannot be reached: {least / whole:.3g} ({least:,.0f}) must remain",
                "raise --max-ratio, widen --include, or use --granularity all",
            )
        global_scope = self.recipe.scope == "global"
        order = np.argsort(bundles.score, kind="stable") if global_scope else interleaved(self.pools, bundles)
        goal = whole * (wanted / whole) ** share
        return by_cost(bundles, order, self.cost, goal, total)

    def cost(self, removed: Mask) -> float:
        """What remains of the budgeted amount without the masked units."""
        return float(self.costs.of(self.catalogue.kept(removed))[self.recipe.budget])
