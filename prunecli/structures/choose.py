"""Which units to remove: scores, normalised so that groups can compete, against a budget with exact costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import gcd, lcm
from typing import Any, Literal, Protocol

import numpy as np

from prunecli.dependency.catalogue import ALL, Catalogue, Group
from prunecli.dependency.costs import Costs, costs
from prunecli.dependency.slices import Slice, WeightSlices
from prunecli.errors import PruneError, advice
from prunecli.masks.criteria import UnitGroup, WeightPart, of_structures
from prunecli.structures.budget import Bundles, Mask, UnitPool, bundle, by_cost, by_ratio, interleaved
from prunecli.structures.normalisers import NORMALISERS
from prunecli.types import Progress, no_progress

Array = np.ndarray[Any, Any]
BudgetKind = Literal["ratio", "macs", "params", "latency"]


class Costing(Protocol):
    """Amounts as functions of the positions left on each axis; they never grow when more is removed."""

    def of(self, kept: Array) -> Mapping[str, int]: ...

    def multiple(self, group: Group) -> int:
        """Units go in such numbers that a multiple of this stays."""
        ...


class OutOfReachError(PruneError):
    """A budget that no choice of units within the limits meets; `least` is the fraction that must remain."""

    def __init__(self, message: str, hint: str, least: float) -> None:
        super().__init__(message, hint)
        self.least = least


@dataclass(frozen=True)
class UnitRecipe:
    """How units are chosen.

    criterion: `auto` is `activation` where its evidence was measured, else `l2-in`. normalize: `auto` is what suits it.
    scope: `layer` cuts all groups alike; `global` ranks all units by score, with `macs` and `params` by score per
    amount saved (the greedy solution of the knapsack); `auto` is layer with `ratio`, else global.
    target: with `ratio` the fraction of units removed, with `macs`, `params` and `latency` the fraction that remains,
    or an absolute count if `absolute`. max_ratio: largest fraction of a group that may go. round_to: the positions
    that stay on the group's axes are a multiple of it. steps: how often scores are taken anew on what is left.
    """

    budget: BudgetKind
    target: float
    absolute: bool = False
    criterion: str = "auto"
    normalize: str = "auto"
    scope: Literal["auto", "layer", "global"] = "auto"
    max_ratio: float = 0.9
    round_to: int = 1
    steps: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Measurements:
    """Measurements for criteria that need them. moments: E[x^2] of the columns' inputs, by weight, one per
    position of the axis that is read. gates: by weight and axis, (samples, positions): sums of weight times gradient
    over all other axes. damage: by group, the measured damage that each unit adds."""

    moments: Mapping[str, Array] = field(default_factory=dict)
    damage: Mapping[str, Array] = field(default_factory=dict)
    gates: Mapping[tuple[str, int], Array] = field(default_factory=dict)


Measure = Callable[[Mapping[str, Mapping[int, Array]]], Measurements]
"""Measurements of the model without some positions of its values."""


@dataclass(frozen=True)
class UnitDecision:
    """`removed`: mask over units. `scores`: normalised, of the intact model. `before`, `after`: params and
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
    evidence: Measurements | Measure | None = None,
    progress: Progress = no_progress,
    costing: Costing | None = None,
    gone: Mask | None = None,
) -> UnitDecision:
    """Choose the units to remove.

    Args:
        allowed: mask over groups; others stay whole.
        evidence: what the criterion needs to have been measured, or what measures it.
        costing: knows amounts besides `params` and `macs`, which need none.
        gone: mask over units that were removed before; they count towards the target and stay removed.
    Raises:
        PruneError: an unknown name, missing evidence, a target that is no fraction or cannot be reached (with the
            closest that can).
    """
    check_choices(recipe.criterion, recipe.normalize, recipe.scope)
    recipe = replace(recipe, criterion=resolve_criterion(recipe.criterion, evidence is not None))
    if recipe.normalize == "auto":
        recipe = replace(recipe, normalize=of_structures()[recipe.criterion].normalize)
    _check(recipe, evidence)
    return _Chooser(catalogue, recipe, allowed, evidence or Measurements(), costing).run(progress, gone)


def resolve_criterion(name: str, data: bool) -> str:
    """The criterion that `auto` stands for."""
    return name if name != "auto" else "activation" if data else "l2-in"


def check_choices(criterion: str, normalize: str, scope: str) -> None:
    """Refuse names that nothing has; needs no model.

    Raises:
        PruneError: naming the option.
    """
    for value, known, option in (
        (criterion, ("auto", *of_structures()), "--criterion"),
        (normalize, ("auto", *NORMALISERS), "--normalize"),
        (scope, ("auto", "layer", "global"), "--scope"),
    ):
        if value not in known:
            raise PruneError(f"{option} {value!r} is unknown for structures", f"choose from {', '.join(known)}")


def _check(recipe: UnitRecipe, evidence: Measurements | Measure | None) -> None:
    if of_structures()[recipe.criterion].evidence and evidence is None:
        raise PruneError(f"--criterion {recipe.criterion} needs data", "give --data")
    if not 0 < recipe.max_ratio <= 1 or recipe.round_to < 1 or recipe.steps < 1:
        raise PruneError("--max-ratio is in (0, 1], --round-to and --steps are at least 1", "correct the option")
    if not recipe.absolute and not 0 < recipe.target < 1:
        raise PruneError(
            f"a {recipe.budget} of {recipe.target:g} leaves nothing to choose", "give a fraction in (0, 1)"
        )


def group_limit(group: Group, max_ratio: float) -> int:
    """Most units of a group that may go: never all."""
    return min(group.count - 1, int(np.floor(max_ratio * group.count + 1e-9)))


def group_multiple(group: Group, round_to: int, costing: Costing | None = None) -> int:
    """Units go in such numbers that a multiple of this stays."""
    multiple = round_to // gcd(round_to, max(group.per_unit)) if group.kind in ("channel", "width") else 1
    return multiple if costing is None else lcm(multiple, costing.multiple(group))


class _Chooser:
    def __init__(
        self, catalogue: Catalogue, recipe: UnitRecipe, allowed: Array | None, evidence: Measurements | Measure,
        costing: Costing | None,
    ) -> None:  # fmt: skip
        self.catalogue, self.recipe, self.costing = catalogue, recipe, costing
        self.measure = None if isinstance(evidence, Measurements) else evidence
        self.evidence = evidence if isinstance(evidence, Measurements) else None
        self.slices = WeightSlices(catalogue)
        self.costs: Costing | Costs = costing or costs(catalogue.analysis)
        self.scope = ("layer" if recipe.budget == "ratio" else "global") if recipe.scope == "auto" else recipe.scope
        self.notes: list[str] = []
        use = np.ones(len(catalogue.groups), bool) if allowed is None else np.asarray(allowed, bool)
        self.groups = [group for group, wanted in zip(catalogue.groups, use, strict=True) if wanted]
        self.pools = [self._pool(group) for group in self.groups]
        self.before = self.costs.of(catalogue.sizes)

    def _pool(self, group: Group) -> UnitPool:
        r = self.recipe
        if group.count <= group_multiple(group, r.round_to) > 1:
            self.notes.append(
                f"--round-to {r.round_to}: {group.name} has only {group.count} {group.kind}s and stays whole"
            )
        multiple = group_multiple(group, r.round_to, self.costing)
        return UnitPool(group.first, group.count, group_limit(group, r.max_ratio), multiple)

    def run(self, progress: Progress, gone: Mask | None = None) -> UnitDecision:
        total = self.catalogue.count
        removed, step_of = np.zeros(total, bool) if gone is None else gone.copy(), np.full(total, -1, np.int64)
        first = np.full(total, np.nan)
        for step in progress(range(self.recipe.steps), "choosing units", self.recipe.steps):
            scores = self.scores(removed)
            if step == 0:
                first = scores
            chosen = self._choose(scores, removed, (step + 1) / self.recipe.steps)
            step_of[chosen & ~removed] = step
            removed |= chosen
        after = self.costs.of(self.catalogue.kept(removed))
        return UnitDecision(removed, first, self.before, after, step_of, self.notes)

    # -- scores -----------------------------------------------------------------------------------

    def scores(self, removed: Mask) -> Array:
        """The normalised score of every unit of the groups in question, on what is left; NaN elsewhere."""
        gone = self.catalogue.removed(removed) if removed.any() else {}
        criterion = of_structures()[self.recipe.criterion]
        anew = criterion.evidence is not None and criterion.evidence.anew
        if self.measure is not None and (self.evidence is None or anew):
            self.evidence = self.measure(gone)
        rows = []
        for number, group in enumerate(self.groups):
            rng = np.random.default_rng([self.recipe.seed, number])
            parts = [self._part(piece, gone) for piece in self.slices.of(group)]
            damage = self.evidence.damage.get(group.name) if self.evidence is not None else None
            rows.append(criterion.score(UnitGroup(group.name, group.count, parts, rng, damage)))
            if any(np.isnan(row).any() for row in rows[-1]):
                raise PruneError(f"a weight of {group.name} holds NaN", "`prune inspect` lists the weights")
        out = np.full(self.catalogue.count, np.nan)
        normalised = NORMALISERS[self.recipe.normalize](self.catalogue, self.groups, rows)
        for group, score in zip(self.groups, normalised, strict=True):
            out[group.units] = score
        return out

    def _part(self, piece: Slice, gone: Mapping[str, Mapping[int, Array]]) -> WeightPart:
        array = self.slices.array(piece.name)
        for axis, positions in gone.get(piece.name, {}).items():
            if axis != piece.axis:
                array = np.delete(array, positions, axis)
        evidence: dict[str, Array] = {}
        assert self.evidence is not None
        if piece.role == "in" and piece.name in self.evidence.moments:
            evidence["moments"] = self.evidence.moments[piece.name][piece.index].repeat(
                array.size // array.shape[piece.axis], axis=1
            )
        if (piece.name, piece.axis) in self.evidence.gates:
            gates = self.evidence.gates[piece.name, piece.axis]
            evidence["gates"] = gates[:, piece.index].sum(axis=2, dtype=np.float64).T
        scale = piece.name in self.slices.norm_scales
        return WeightPart(piece.name, piece.role, piece.take(array), scale, evidence)

    # -- choice -----------------------------------------------------------------------------------

    def _choose(self, scores: Array, removed: Mask, share: float) -> Mask:
        """All units that are gone after this step: those before stay gone, because they score lowest."""
        budget = self.recipe.budget
        if budget != "ratio" and self.scope == "global":
            scores = scores / self._savings()
        scores = np.where(removed, -np.inf, np.where(np.isnan(scores), np.inf, scores))
        bundles = bundle(self.pools, scores)
        total = self.catalogue.count
        if budget == "ratio":
            chosen = by_ratio(self.pools, bundles, self.recipe.target * share, self.scope == "global")
        else:
            chosen = self._by_cost(bundles, share)
        return bundles.mask(chosen, total)

    def _savings(self) -> Array:
        """Per unit, what the removal of that unit alone saves of the budgeted amount, as a fraction of it all; of
        amounts that fall in steps, its part of what all removable units of its group save."""
        out = np.ones(self.catalogue.count)
        whole = self.before[self.recipe.budget]
        if not whole:
            raise PruneError(f"the model has no {self.recipe.budget} at these sizes", "budget something else")
        for group, pool in zip(self.groups, self.pools, strict=True):
            several = 1 if self.costing is None else max(pool.limit, 1)
            kept = self.catalogue.sizes.copy()
            kept[list(group.axes)] -= several * np.array(group.per_unit)
            out[group.units] = max(whole - self.costs.of(kept)[self.recipe.budget], 1) / whole / several
        return out

    def _by_cost(self, bundles: Bundles, share: float) -> Array:
        kind, total = self.recipe.budget, self.catalogue.count
        whole = self.before[kind]
        wanted = self.recipe.target if self.recipe.absolute else self.recipe.target * whole
        if wanted >= whole:
            raise PruneError(f"the model has only {whole:,} {kind}", "ask for fewer")
        least = self.cost(bundles.mask(np.arange(len(bundles)), total))
        if least > wanted:
            raise OutOfReachError(
                f"--{kind} {wanted / whole:.3g} cannot be reached: {least / whole:.3g} ({least:,.0f}) must remain",
                advice(
                    ("raise --max-ratio", self.recipe.max_ratio < 1),
                    ("leave fewer layers out", len(self.groups) < len(self.catalogue.groups)),
                    ("use --granularity all", any(ALL in axis.reason for axis in self.catalogue.frozen)),
                    ("ask for less", True),
                ),
                least / whole,
            )
        everywhere = self.scope == "global"
        order = np.argsort(bundles.score, kind="stable") if everywhere else interleaved(self.pools, bundles)
        goal = whole * (wanted / whole) ** share
        return by_cost(bundles, order, self.cost, goal, total)

    def cost(self, removed: Mask) -> float:
        """What remains of the budgeted amount without the masked units."""
        return float(self.costs.of(self.catalogue.kept(removed))[self.recipe.budget])
