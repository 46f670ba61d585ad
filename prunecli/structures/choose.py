"""Choose the units to remove: normalised scores against a budget with exact costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np

from prunecli.arrays import Array, Mask
from prunecli.dependency.catalogue import ALL, Catalogue, Group
from prunecli.dependency.costs import costs
from prunecli.dependency.slices import Slice, WeightSlices
from prunecli.errors import PruneError, advice
from prunecli.masks.allocations import LossCurve
from prunecli.masks.criteria import Structures, UnitGroup, WeightPart, of_structures
from prunecli.structures.budget import (
    NEAR,
    BlockPools,
    Bundles,
    UnitPool,
    WidthProblem,
    bundle,
    by_cost,
    by_ratio,
    exchange,
    interleaved,
)
from prunecli.structures.elimination import UnitCurve
from prunecli.structures.normalisers import NORMALISERS
from prunecli.structures.options import CutOptions
from prunecli.structures.target import Budget
from prunecli.structures.widths import Alignment
from prunecli.types import Progress, no_progress

SLACK = 0.01
"""Relative difference of measured damage that counts as none: it is measured on a few dozen samples."""
UNMEASURED_SLACK = 0.2
"""Relative difference that counts as none for sums of other scores, which only estimate the damage."""
DEARER = 1.25
"""Largest ratio of the sum of scores at which faster widths are taken."""
MENDED = 0.2
"""Estimated share of the damage of dropped blocks that is left after a refit. The joint damage then decides whether any
are dropped."""
JOINTLY_DEARER = 1.1
"""Largest ratio of joint damage at which dropping blocks is preferred; the joint damage is measured on the whole cut,
and so known better than a sum."""


class Costing(Protocol):
    """Amounts as functions of the positions left on each axis, which never grow when more is removed; and the
    approximate time of a run, in any unit, as a function of the positions that are computed."""

    def of(self, kept: Array) -> Mapping[str, int]: ...
    def amount(self, kind: str, kept: Array) -> int: ...
    def time(self, kept: Array) -> float: ...


class OutOfReachError(PruneError):
    """No choice of units within the limits meets the budget; `least` is the fraction that must remain."""

    def __init__(self, message: str, hint: str, least: float) -> None:
        super().__init__(message, hint)
        self.least = least


@dataclass(frozen=True)
class UnitRecipe:
    """How units are chosen.

    budget: with `ratio` the fraction of units removed, with `macs`, `params` and `latency` the fraction that remains,
    or an absolute count if `absolute`.
    options: scores and limits. `criterion`: `auto` is `activation` where its evidence was measured, else `l2-in`.
    `normalize`: `auto` is what suits it. `scope`: `layer` cuts all groups alike; `global` ranks all units by score,
    with `macs` and `params` by score per amount saved (the greedy solution of the knapsack); `auto` is layer with
    `ratio`, else global.
    curves: by group, the damage of a fraction of it; scores then say which units of a group go first, and each counts
    by what it adds to that.
    widths: those that groups may keep, in place of those of the options. Looser ones take their place where they cannot
    meet the budget.
    stated: what messages multiply fractions of the whole by, since the user's are of the file: what is computed in the
    working form (shortcuts as convolutions, constants) may add to the whole, not to a count.
    """

    budget: Budget
    options: CutOptions
    curves: Mapping[str, LossCurve] = field(default_factory=dict)
    widths: Alignment | None = None
    stated: float = 1.0

    @property
    def alignment(self) -> Alignment:
        return self.options.alignment if self.widths is None else self.widths

    @property
    def everywhere(self) -> bool:
        """Whether all groups compete."""
        scope = self.options.scope
        return scope == "global" or (scope == "auto" and (bool(self.curves) or self.budget.kind != "ratio"))


@dataclass(frozen=True)
class Measurements:
    """Measurements for criteria that need them. moments: E[x^2] of the columns' inputs, by weight, one per
    position of the axis that is read. gates: by weight and axis, (samples, positions): sums of weight times gradient
    over all other axes. damage: by group, the measured damage that each unit adds. importance: by group, of
    each unit in the unit graph. added: by group, what each unit adds to what it is summed with, where that was measured
    as such. joint: of a mask over all units, the measured damage when they go together. blocks: of
    a mask over the residual blocks, their measured damage without any others."""

    moments: Mapping[str, Array] = field(default_factory=dict)
    damage: Mapping[str, Array] = field(default_factory=dict)
    gates: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    importance: Mapping[str, Array] = field(default_factory=dict)
    added: Mapping[str, Array] = field(default_factory=dict)
    joint: Callable[[Mask], float] | None = None
    blocks: Callable[[Mask], float] | None = None


Measure = Callable[[Mapping[str, Mapping[int, Array]]], Measurements]
"""Returns measurements of the model without some positions of its values."""


@dataclass(frozen=True)
class UnitDecision:
    """`removed`: mask over units. `scores`: normalised, of the uncut model. `before`, `after`: parameters and
    multiply-accumulates. `lost`: the sum of the scores of the units removed in this step."""

    removed: Mask
    scores: Array
    before: Mapping[str, int]
    after: Mapping[str, int]
    notes: list[str]
    lost: float


WayCut = tuple[Alignment, UnitDecision]
"""Allowed widths, and the decision under them."""
_MOST = 1e200
"""Cap of scores, so that sums stay finite."""


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
        costing: knows amounts besides `params` and `macs`, which need none, or more of the time that a run takes.
        gone: mask over units that were removed before; they count towards the target and stay removed.
    Raises:
        PruneError: a target that is no fraction or cannot be reached (with the
            closest that can).
    """
    criterion = of_structures()[resolve_criterion(recipe.options.criterion, evidence is not None)]
    if not recipe.budget.absolute and not 0 < recipe.budget.target < 1:
        raise PruneError(
            f"a {recipe.budget.kind} of {recipe.budget.target:g} leaves nothing to choose", "give a fraction in (0, 1)"
        )
    chooser = _Chooser(
        catalogue, recipe, allowed, evidence=evidence or Measurements(), costing=costing, criterion=criterion
    )
    return chooser.run(progress, gone)


def resolve_criterion(name: str, data: bool) -> str:
    """Return the criterion that `auto` stands for."""
    return name if name != "auto" else "activation" if data else "l2-in"


def group_limit(group: Group, max_ratio: float) -> int:
    """Return the most units of a group that may be removed: all but those that have to stay, or all of a block."""
    most = int(np.floor(max_ratio * group.count + 1e-9))
    return 1 if group.kind == "block" else min(group.count - group.least, most)


class _Chooser:
    def __init__(
        self, catalogue: Catalogue, recipe: UnitRecipe, allowed: Array | None, evidence: Measurements | Measure,
        costing: Costing | None, criterion: Structures,
    ) -> None:  # fmt: skip
        self.catalogue, self.recipe, self.criterion = catalogue, recipe, criterion
        self.budget, self.options = recipe.budget, recipe.options
        self.measure = None if isinstance(evidence, Measurements) else evidence
        self.evidence = evidence if isinstance(evidence, Measurements) else None
        self.slices = WeightSlices(catalogue)
        self.costs: Costing = costing or costs(catalogue)
        self.scope = "global" if recipe.everywhere else "layer"
        use = np.ones(len(catalogue.groups), bool) if allowed is None else np.asarray(allowed, bool)
        self.groups = [group for group, wanted in zip(catalogue.groups, use, strict=True) if wanted]
        self.alignment, self.pools = recipe.alignment, self._pools(recipe.alignment)
        self.first: Array | None = None
        self.before = self.costs.of(catalogue.sizes)

    def _pools(self, alignment: Alignment) -> list[UnitPool]:
        limits = [group_limit(group, self.options.largest_ratio) for group in self.groups]
        return [
            UnitPool(group.first, alignment.widths(self.catalogue, group, limit))
            for group, limit in zip(self.groups, limits, strict=True)
        ]

    def run(self, progress: Progress, gone: Mask | None = None) -> UnitDecision:
        """Decide with the widths asked for. Finer ones take their place where these spoil a network that has few widths
        to choose from (`_fastest`); looser ones where none of these meet the budget. Where blocks may be dropped, each
        is decided with all of them left, too."""
        asked = self.recipe.alignment
        ways = [asked, *asked.finer()]
        if self.catalogue.blocks:
            ways = [replace(way, mended=mended) for mended in (MENDED, None) for way in ways]
        found = self._cuts(ways, progress, gone)
        for way in asked.looser():
            found = found or self._cuts([way], progress, gone)
        found = found or [(self.alignment, self._decided(progress, gone))]
        (self.alignment, best), why = self._fastest(found, progress)
        self.pools = self._pools(self.alignment)
        first = replace(found[0][0], mended=asked.mended)
        told = self._width_notes(asked, why if first == asked else "cannot be met")
        return replace(best, notes=[*told, *best.notes, *self._budget_notes(best), *self._quota_notes(best)])

    def _fastest(self, found: Sequence[WayCut], progress: Progress) -> tuple[WayCut, str]:
        """Return the fastest of these cuts, the coarsest widths first, whose damage is not much larger than the least;
        and why the first one is not taken.

        Sums of the damage of groups say little about their joint damage, so that is measured where data are given. With
        a table of times the same choice is made many times, and sums decide.
        """
        different: dict[bytes, WayCut] = {}
        for pair in found:
            different.setdefault(pair[1].removed.tobytes(), pair)
        distinct = list(different.values())
        joint = None if self.evidence is None or self.budget.kind == "latency" else self.evidence.joint
        if joint is None or len(distinct) == 1:
            bound = DEARER * min(decision.lost for _, decision in distinct)
            chosen = next(pair for pair in distinct if pair[1].lost <= bound)
            return chosen, f"would cost more than {DEARER:g} times the score"
        damage = [joint(cut.removed) for _, cut in progress(distinct, "measuring choices", len(distinct))]
        good = [pair for pair, own in zip(distinct, damage, strict=True) if own <= JOINTLY_DEARER * min(damage)]
        chosen = min(good, key=lambda pair: self.time(pair[1].removed))
        dear = f"would change the outputs more than {JOINTLY_DEARER:g} times as much"
        return chosen, "is no faster" if distinct[0] in good else dear

    def _cuts(self, ways: Iterable[Alignment], progress: Progress, gone: Mask | None) -> list[WayCut]:
        """Return the choice under each of these widths; widths that cannot meet the budget or remove nothing are left
        out."""
        found = []
        for way in ways:
            self.alignment, self.pools = way, self._pools(way)
            with suppress(OutOfReachError):
                found.append((way, self._decided(progress, gone)))
        return [(way, decision) for way, decision in found if decision.removed.any()]

    def _decided(self, progress: Progress, gone: Mask | None) -> UnitDecision:
        given = np.zeros(self.catalogue.count, bool) if gone is None else gone
        removed = given.copy()
        self.first = first = self.scores(removed) if self.first is None else self.first
        for step in progress(range(self.options.step_count), "choosing units", self.options.step_count):
            scores = self.scores(removed) if step else first
            removed |= self._choose(scores, removed, (step + 1) / self.options.step_count)
        after = self.costs.of(self.catalogue.kept(removed))
        lost = self._lost(first, removed & ~given)
        return UnitDecision(removed, first, self.before, after=after, notes=[], lost=lost)

    def _lost(self, scores: Array, units: Mask) -> float:
        """Return the sum of the scores of the units, with the joint damage of dropped blocks."""
        dropped = self.catalogue.dropped(units)
        alone = self.catalogue.outside(units) if dropped.any() else units
        lost = float(np.clip(scores[alone], 0, _MOST).sum())
        return lost + self._block_damage(dropped) if dropped.any() else lost

    def _block_damage(self, dropped: Mask) -> float:
        """Return the joint damage of the dropped blocks, once the rest is refitted."""
        assert self.evidence is not None and self.evidence.blocks is not None
        return self.evidence.blocks(dropped) * (self.alignment.mended or 0.0)

    def _width_notes(self, asked: Alignment, why: str) -> Iterator[str]:
        """Say which widths were used in place of those asked for, and which groups are too narrow for them.

        Args:
            why: what the budget would do with the widths that were asked for.
        """
        if replace(self.alignment, mended=asked.mended) != asked:
            told = f"--round-to auto: {self._named(self.budget.target)} {why} with {asked.words}"
            yield f"{told}; widths are {self.alignment.words}"
        if asked.given and asked.block > 1:
            for group, pool in zip(self.groups, self.pools, strict=True):
                if (
                    group.kind != "block"
                    and group.count <= asked.multiple(self.catalogue, group)
                    and len(pool.widths) == 1
                ):
                    told = f"{group.name} has only {group.count} {group.kind}s and stays whole"
                    yield f"--round-to {asked.block}: {told}"

    def _budget_notes(self, found: UnitDecision) -> Iterator[str]:
        """Say how far below the target the cut ends, if by more than NEAR."""
        kind, target = self.budget.kind, self.budget.target
        if kind == "ratio":
            whole = sum(pool.count for pool in self.pools)
            asked, reached, what = target, found.removed.sum() / whole, "of the units go"
            missed = reached < (1 - NEAR) * target - 0.5 * len(self.pools) / whole
        else:
            asked = target / self.before[kind] if self.budget.absolute else target
            reached, what = found.after[kind] / self.before[kind], "remains"
            missed = reached < (1 - NEAR) * asked
        if missed:
            reached *= self.recipe.stated
            alike = " when all layers are cut alike" * (self.scope == "layer" and kind != "ratio")
            told = f"{self._named(asked)}: {reached:.4g} {what}, the nearest below{alike}"
            yield f"{told} with widths in {self.alignment.words}" if self.alignment.block > 1 else told

    def _quota_notes(self, found: UnitDecision) -> Iterator[str]:
        """Name the groups that are as narrow as they may be, where more than one unit has to stay."""
        for group in self.groups:
            left = group.count - int(found.removed[group.units].sum())
            if group.quota and left == group.least:
                yield f"{group.name}: {left} of {group.count} {group.kind}s stay, and no fewer can: {group.quota}"

    def _named(self, target: float) -> str:
        """Name the budget. A latency budget is the present aim of the search, not what the user asked for."""
        if self.budget.kind == "latency":
            return f"{target:.4g} of the layers' times (what --latency aims at)"
        return f"--{self.budget.kind} {target * self.recipe.stated:.4g}"

    # -- scores -----------------------------------------------------------------------------------

    def scores(self, removed: Mask) -> Array:
        """Return the normalised score of every unit of these groups in the present model; NaN elsewhere."""
        gone = self.catalogue.removed(removed) if removed.any() else {}
        measured = self.criterion.evidence
        anew = measured is not None and measured.anew
        if self.measure is not None and (self.evidence is None or anew):
            self.evidence = self.measure(gone)
        rows = []
        if self.catalogue.blocks and (self.evidence is None or self.evidence.blocks is None):
            raise PruneError("blocks compete with channels and heads by measured damage",
                             "give --data, and leave --criterion out or say obs")  # fmt: skip
        for number, group in enumerate(self.groups):
            rng = np.random.default_rng([self.options.seed, number])
            parts = [] if group.kind == "block" else [self._part(piece, gone) for piece in self.slices.of(group)]
            found = self.evidence or Measurements()
            damage, importance = found.damage.get(group.name), found.importance.get(group.name)
            units = UnitGroup(group.name, group.count, parts, rng=rng, damage=damage, importance=importance,
                              added=found.added.get(group.name))  # fmt: skip
            rows.append(self.criterion.score(units))
            if any(np.isnan(row).any() for row in rows[-1]):
                raise PruneError(f"a weight of {group.name} holds NaN", "`prune inspect` lists the weights")
        out = np.full(self.catalogue.count, np.nan)
        named = self.options.normalize
        normalise = NORMALISERS[self.criterion.normalize if named == "auto" else named]
        normalised = normalise(self.catalogue, self.groups, rows)
        for group, score in zip(self.groups, normalised, strict=True):
            curve = self.recipe.curves.get(group.name)
            out[group.units] = score if curve is None else _steps(curve, score)
        return out

    def _part(self, piece: Slice, gone: Mapping[str, Mapping[int, Array]]) -> WeightPart:
        lost = gone.get(piece.name, {})
        evidence: dict[str, Array] = {}
        assert self.evidence is not None
        if piece.role == "in" and piece.name in self.evidence.moments:
            moments = self.evidence.moments[piece.name][piece.index]
            evidence["moments"] = moments.repeat(self.slices.width(piece, lost), axis=1)
        if (piece.name, piece.axis) in self.evidence.gates:
            gates = self.evidence.gates[piece.name, piece.axis]
            evidence["gates"] = gates[:, piece.index].sum(axis=2, dtype=np.float64).T
        scale = piece.name in self.slices.norm_scales
        return WeightPart(
            piece.name, piece.role, partial(self.slices.matrix, piece, lost), scale=scale, evidence=evidence
        )

    # -- choice -----------------------------------------------------------------------------------

    def _choose(self, scores: Array, removed: Mask, share: float) -> Mask:
        """Return all units that are removed after this step. Those removed before stay so, because their scores are
        lowest."""
        kind, everywhere = self.budget.kind, self.scope == "global"
        scores = scores.copy()
        scores[len(scores) - len(self.catalogue.blocks) :] *= self.alignment.mended or 0.0
        ranked = scores / self._savings() if kind != "ratio" and everywhere else scores
        ranked, scores = (np.where(removed, -np.inf, np.where(np.isnan(s), np.inf, s)) for s in (ranked, scores))
        bundles = bundle(self.pools, ranked)
        total = self.catalogue.count
        if kind == "ratio":
            return bundles.mask(by_ratio(self.pools, bundles, self.budget.target * share, everywhere=everywhere), total)
        goal = self._goal(bundles, share)
        order = np.argsort(bundles.score, kind="stable") if everywhere else interleaved(self.pools, bundles)
        blocks = self._pools_of_blocks()
        found = bundles.mask(by_cost(bundles, order, self.cost, target=goal, total=total), total)
        met = self.alignment.block == 1 and blocks is None and self.cost(found) >= (1 - NEAR) * goal
        if met or not everywhere:
            return found
        starts = [found]
        if blocks is not None:  # a block weighs much: from either end of the trade
            rest = order[~np.isin(bundles.pool[order], blocks.pools)]
            other = bundles.mask(by_cost(bundles, rest, self.cost, target=goal, total=total), total)
            starts += [other] * (self.cost(other) <= goal)
        return self._exchanged(scores, starts, removed, goal=goal)

    def _exchanged(self, scores: Array, starts: Sequence[Mask], removed: Mask, goal: float) -> Mask:
        """Return the best choice that trades between groups reach from choices within the goal, if the exact cost
        confirms it."""
        lengths = _KeptAxes(self.catalogue, self.groups, self.pools)
        orders = [pool.order(scores) for pool in self.pools]
        damage = [
            np.append(0.0, np.cumsum(np.clip(scores[order], 0, _MOST)))[lost]
            for order, lost in zip(orders, lengths.gone, strict=True)
        ]

        def reached(mask: Mask) -> Array:
            """Return the first index at which at least the masked units are removed."""
            lost = [int(mask[pool.units].sum()) for pool in self.pools]
            return np.array([np.searchsorted(own, n) for own, n in zip(lengths.gone, lost, strict=True)])

        known: dict[bytes, float] = {}  # trades come by the same states again and again

        def cost(state: Array) -> float:
            key = state.tobytes()
            if key not in known:
                known[key] = float(self.costs.amount(self.budget.kind, lengths.kept(state)))
            return known[key]

        def time(state: Array) -> float:
            return self.costs.time(lengths.kept(state, self.alignment))

        problem = WidthProblem(
            damage, reached(removed), cost, time=time, target=goal, slack=self._slack, blocks=self._pools_of_blocks()
        )
        ends = [exchange(problem, reached(start)) for start in starts]
        best = min(range(len(ends)), key=lambda n: (problem.short(ends[n]), problem.total(ends[n])))
        state, found = ends[best], starts[best]
        other = np.zeros(self.catalogue.count, bool)
        for order, lost, index in zip(orders, lengths.gone, state, strict=True):
            other[order[: lost[index]]] = True
        return self.catalogue.closed(other if self.cost(other) <= goal else found)

    def _pools_of_blocks(self) -> BlockPools | None:
        """Return the pools that are blocks and the pools inside each; None where no block may be removed."""
        numbers = {group.name: number for number, group in enumerate(self.catalogue.groups)}
        mine, first = np.array([numbers[g.name] for g in self.groups]), len(numbers) - len(self.catalogue.blocks)
        pools = np.flatnonzero(mine >= first)
        if not len(pools) or self.alignment.mended is None:
            return None
        blocks = mine[pools] - first

        def damage(gone: Mask) -> float:
            dropped = np.zeros(len(self.catalogue.blocks), bool)
            dropped[blocks[gone]] = True
            return self._block_damage(dropped)

        return BlockPools(pools, self.catalogue.within[np.ix_(blocks, mine)], damage)

    @property
    def _slack(self) -> float:
        measured = self.criterion.evidence
        return SLACK if measured is not None and measured.name == "damage" else UNMEASURED_SLACK

    def _savings(self) -> Array:
        """Return, per unit, the fraction of the budgeted amount that its removal alone saves; where the amount falls in
        steps, its share of what all removable units of its group save."""
        out = np.ones(self.catalogue.count)
        whole = self.before[self.budget.kind]
        if not whole:
            raise PruneError(f"the model has no {self.budget.kind} at these sizes", "budget something else")
        for group, pool in zip(self.groups, self.pools, strict=True):
            several = max(pool.count - pool.widths[-1], 1) if self.budget.kind == "latency" else 1
            kept = self.catalogue.sizes.copy()
            kept[list(group.axes)] -= several * np.array(group.per_unit)
            out[group.units] = max(whole - self.costs.amount(self.budget.kind, kept), 1) / whole / several
        return out

    def _goal(self, bundles: Bundles, share: float) -> float:
        """Return the amount that is to remain after a step at which `share` of all steps are done.

        Raises:
            PruneError: the whole is no more than that, or no choice of bundles leaves as little (OutOfReachError).
        """
        kind, total = self.budget.kind, self.catalogue.count
        whole = self.before[kind]
        wanted = self.budget.target if self.budget.absolute else self.budget.target * whole
        if wanted >= whole:
            raise PruneError(f"the model has only {whole:,} {kind}", "ask for fewer")
        least = self.cost(bundles.mask(np.arange(len(bundles)), total))
        if least > wanted:
            asked, left = (amount / whole * self.recipe.stated for amount in (wanted, least))
            raise OutOfReachError(
                f"--{kind} {asked:.3g} ({wanted:,.0f}) cannot be reached: {left:.3g} ({least:,.0f}) must remain",
                advice(
                    ("lower --round-to", self.alignment.given and self.alignment.block > 1),
                    ("raise --max-ratio", self.options.largest_ratio < 1),
                    ("leave fewer layers out", len(self.groups) < len(self.catalogue.groups)),
                    ("use --granularity all", any(ALL in axis.reason for axis in self.catalogue.frozen)),
                    ("ask for less", True),
                ),
                least / whole,
            )
        return float(whole * (wanted / whole) ** share)

    def cost(self, removed: Mask) -> float:
        """Return what remains of the budgeted amount without the masked units."""
        return float(self.costs.amount(self.budget.kind, self.catalogue.kept(removed)))

    def time(self, removed: Mask) -> float:
        """Return the approximate time of a run without the masked units."""
        kept = self.catalogue.kept(removed).astype(float)
        axes = np.unique([axis for group in self.groups if group.kind != "block" for axis in group.axes])
        kept[axes] = self.recipe.alignment.effective(kept[axes])
        return self.costs.time(kept)


def _steps(curve: LossCurve, scores: Array) -> Array:
    """Return, per unit, the damage that it adds to its group on the convex hull of the curve. Units of the lowest
    scores are removed first, of equal ones the later."""
    count = len(scores)
    order = np.lexsort((-np.arange(count), scores))
    damage = curve.at(1 - np.arange(1, count) / count)
    return UnitCurve(count, order[: count - 1].tolist(), np.append(0.0, np.maximum.accumulate(damage))).scores()


class _KeptAxes:
    """Positions left on every axis, for an index into the widths of every pool: exact where groups share no positions.

    gone: by pool, the units that go at each index.
    """

    def __init__(self, catalogue: Catalogue, groups: Sequence[Group], pools: Sequence[UnitPool]) -> None:
        self._sizes = catalogue.sizes
        self._axes = np.unique([axis for group in groups for axis in group.axes])
        self._blocks = len(catalogue.sizes) - len(catalogue.blocks)
        self._per_unit = np.zeros((len(groups), len(self._axes)))
        for row, group in zip(self._per_unit, groups, strict=True):
            np.add.at(row, np.searchsorted(self._axes, group.axes), group.per_unit)
        self.gone = [pool.count - np.array(pool.widths) for pool in pools]

    def kept(self, state: Array, as_computed: Alignment | None = None) -> Array:
        """Return the lengths; `as_computed`: rounded as the target computes them."""
        lost = np.array([own[index] for own, index in zip(self.gone, state, strict=True)], float) @ self._per_unit
        left = self._sizes.astype(float)
        lengths = np.maximum(left[self._axes] - lost, 0)
        if as_computed is not None:
            lengths = np.where(self._axes < self._blocks, as_computed.effective(lengths), lengths)
        left[self._axes] = lengths
        return left
