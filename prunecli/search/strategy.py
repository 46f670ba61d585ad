"""How far a model can be pruned for a given loss of quality: two strategies, and what they share.

`search`: every layer's curve of damage is measured, the path of least damage per amount saved follows from the curves,
and the metric says how far along it is allowed. Then each layer is moved a little around that allocation, in the
company of all that is pruned by now: what it does there, compared with what it did alone, scales its curve, and the
path is drawn and followed anew, until that gains nothing. Layers that hurt more than they save are loosened so, others
tightened. What `feedback` finds is tried first: with scores that compare across layers it can be hard to beat.

`predicted`: as `search`, from curves that a graph neural network predicts from the file instead of measured ones, and
without what `feedback` would find: most trials of a search are for these. Only the scale of each curve, and with it the
order of the layers, is corrected by measurement, around the best so far.

`feedback`: one threshold for everything, up while the error allows it, down by half of the step when it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from prunecli.masks.allocations import LossCurve
from prunecli.predicted.features import Undescribed
from prunecli.search.metric import Drop
from prunecli.search.pruner import Allocation, Layer, Space, digest, snapped
from prunecli.search.runner import TrialRunner
from prunecli.search.tradeoff import DamageCurve, Path, Segment, best_path, costs_of, spread
from prunecli.search.trials import Outcome, TrialGroup

LEVELS = {"element": (0.3, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)}
UNIT_LEVELS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Removed fractions at which a layer's curve is measured."""
AROUND = (1.5, 0.65, 0.4)
"""What is left of a layer, as multiples of what is left now, when it is moved while the others are pruned."""
TRUSTED = 4.0
"""Largest factor, relative to all layers, by which a layer among pruned others may differ from the layer alone."""
POINTS, NARROWINGS = 3, 4
"""Allocations that are tried together, and how often the interval between two of them is divided."""
FINE_ENOUGH = 0.01
"""Relative difference of size below which two allocations count as equal."""
NEAR = 8.0
"""Factor of damage to both sides of the best step within which a refined path is followed."""
ROUNDS = 4
MOST_STEPS = 12
"""Steps along a path beyond what the search found, see `Search.follow`."""
FIRST_STEP, LAST_STEP = 0.16, 0.005
"""First and last step of the threshold in the feedback strategy, as a share of all units."""
THRESHOLD, CURVES, REFINED, RECOVERED, TRAINED = "threshold", "curves", "refined", "recovered", "trained"
MOST_PREDICTED = 0.99
"""The largest fraction of a layer at which a predicted curve is read."""
STAGES = {
    THRESHOLD: "the same for all layers",
    CURVES: "each layer by what it costs when it is cut alone",
    REFINED: "by what it costs beside all that was cut by then",
    RECOVERED: "what is left is fitted to the original",
    TRAINED: "what is left is trained",
}
"""Prefixes of a step's `stage`, and what they mean."""


@dataclass(frozen=True)
class Goal:
    """What a search must reach. `max_drop`: the largest drop of the metric on held-out data. `minimize`: a key of the
    space's costs. `held_out`: number of samples for confirmation. `sureness`: standard errors kept as a margin. 1.645
    would make 19 of 20 promises hold for an allocation named beforehand; the best of many tried was lucky, and needs
    more (benchmarks.md)."""

    max_drop: float
    minimize: str
    held_out: int
    sureness: float = 2.0

    def bound(self, drop: Drop) -> float:
        """Return the bound of the drop on the held-out data: its prediction plus `sureness` standard errors of the
        difference. A gain within noise counts as none, since otherwise lucky allocations would be chosen."""
        expected = drop.value if drop.value > 0 else min(drop.value + self.sureness * drop.error(), 0.0)
        return expected + self.sureness * drop.error(self.held_out)


@dataclass(frozen=True)
class SearchStep:
    """An allocation tried on all samples. `remains`: of the goal's amount, as a fraction; `bound`: see `Goal`."""

    number: int
    stage: str
    allocation: Mapping[str, float]
    remains: float
    damage: float
    metric: float
    drop: Drop
    bound: float
    allowed: bool
    decision: str = ""


@dataclass
class Search:
    """A search under way: the steps so far, and the best of them. `curves`: of each layer alone, as measured first;
    `path`: the last that was followed.

    Interrupting it leaves the best so far in `best`."""

    runner: TrialRunner
    space: Space
    goal: Goal
    rounds: int = ROUNDS
    predict: Callable[[], Mapping[str, LossCurve]] | None = None
    steps: list[SearchStep] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curves: list[DamageCurve] = field(default_factory=list)
    path: Path = field(default_factory=lambda: Path({}, ()))
    best: SearchStep | None = None

    def __post_init__(self) -> None:
        self.whole = float(self.space.cost({})[self.goal.minimize])

    def remains(self, allocation: Allocation) -> float:
        return float(self.space.cost(allocation)[self.goal.minimize]) / max(self.whole, 1.0)

    def run(self, strategy: str) -> None:
        STRATEGIES[strategy](self)

    def candidates(self, limit: float) -> list[SearchStep]:
        """Steps whose bound is at most `limit`, the smallest model first."""
        mine = (step for step in self.steps if step.allowed and step.bound <= limit)
        return sorted(mine, key=lambda step: (step.remains, step.number))

    def closest(self) -> SearchStep | None:
        """The step nearest to being allowed."""
        return min(self.steps, key=lambda s: (s.bound, s.remains), default=None)

    # -- trying ------------------------------------------------------------------------------------

    def try_all(self, allocations: Sequence[Allocation], stage: str) -> list[SearchStep]:
        """Measure allocations, from the gentlest to the harshest, and keep them as steps. After one that is not
        allowed, no harsher one is: where a gentler one failed, passing is luck."""
        wanted = [snapped(self.space.layers, allocation) for allocation in allocations]
        outcomes = self.runner.try_all(list({digest(s): s for s in wanted}.values()), stage)
        known = {digest(step.allocation): step for step in self.steps}
        trusted = True
        for name, outcome in zip({digest(s): s for s in wanted}, outcomes, strict=True):
            if name not in known:
                allocation = next(s for s in wanted if digest(s) == name)
                known[name] = self._step(allocation, outcome, stage, trusted=trusted)
                self.steps.append(known[name])
            trusted = trusted and known[name].allowed
        found = [known[digest(allocation)] for allocation in wanted]
        good = list(takewhile(lambda step: step.allowed, found))
        if good and (self.best is None or good[-1].remains < self.best.remains):
            self.best = good[-1]
        return found

    def add(self, allocation: dict[str, float], outcome: Outcome, stage: str) -> SearchStep:
        """Record an allocation that was measured elsewhere as a step."""
        step = self._step(allocation, outcome, stage, trusted=True)
        self.steps.append(step)
        if step.allowed and (self.best is None or step.remains < self.best.remains):
            self.best = step
        return step

    def _step(self, allocation: dict[str, float], outcome: Outcome, stage: str, trusted: bool) -> SearchStep:
        metric = self.runner.workspace.samples.metric
        assert outcome.records is not None
        drop = metric.drop(outcome.records)
        bound = self.goal.bound(drop)
        if drop.value > self.goal.max_drop:
            decision = "loosen"
        elif bound > self.goal.max_drop:
            decision = "loosen: within the noise of the limit"
        else:
            decision = "tighten" if trusted else "loosen: a gentler one failed"
        return SearchStep(
            len(self.steps) + 1, stage, allocation, remains=self.remains(allocation), damage=outcome.damage,
            metric=metric.value(outcome.records), drop=drop, bound=bound,
            allowed=trusted and bound <= self.goal.max_drop, decision=decision,
        )  # fmt: skip

    # -- along a path --------------------------------------------------------------------------------

    def at_remains(self, wanted: float) -> dict[str, float]:
        """Return the gentlest allocation on the path that leaves at most the fraction `remains`."""
        low, high = 0.0, self.path.most
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.remains(self.path.at(middle)) <= wanted else (middle, high)
        return snapped(self.space.layers, self.path.at(high))

    def follow(self, attempt: Callable[[dict[str, float], int], SearchStep], pace: float, least_pace: float) -> None:
        """Continue along the path from the best step; `attempt` makes a step from an allocation and a number.
        `pace`: the fraction of what remains that a step removes, halved after one that is not allowed, until it is
        below `least_pace`."""
        remains, least = 1.0 if self.best is None else self.best.remains, self.remains(self.path.at(self.path.most))
        for number in range(1, MOST_STEPS + 1):
            if pace < least_pace or remains * (1 - pace) < least:
                return
            step = attempt(self.at_remains(remains * (1 - pace)), number)
            if step.allowed:
                remains = step.remains
            else:
                pace /= 2

    def locate(self, at: Callable[[float], Allocation], low: float, high: float, stage: str) -> None:
        """Narrow the interval between an allowed position and one that is not; `best` is the smallest allowed step."""
        for _ in range(NARROWINGS):
            positions, before = spread(low, high, POINTS), len(self.steps)
            steps = self.try_all([at(p) for p in positions], stage)
            allowed = next((i for i, step in enumerate(steps) if not step.allowed), len(steps))
            low = positions[allowed - 1] if allowed else low
            high = positions[allowed] if allowed < len(positions) else high
            apart = self.remains(at(low)) - self.remains(at(high))
            if len(self.steps) == before or apart < FINE_ENOUGH * self.remains(at(low)):
                return


def search(run: Search) -> None:
    """Search by measured curves of damage, the default strategy."""
    run.curves = list(measured_curves(run.runner, run.space, run.goal.minimize))
    feedback(run)
    _along(run)


def predicted(run: Search) -> None:
    """Search as `search` does, but by predicted curves."""
    assert run.predict is not None
    try:
        found = run.predict()
    except Undescribed as reason:
        run.notes.append(f"--strategy search in place of predicted: {reason}")
        search(run)
        return
    for layer in run.space.layers:
        if levels := levels_of(layer):
            damages = found[layer.name].at(1 - np.minimum(levels, MOST_PREDICTED)).tolist()
            cost = costs_of(run.space.cost, layer.name, run.goal.minimize)
            run.curves.append(DamageCurve.of(layer.name, [0.0, *levels], [0.0, *damages], cost=cost))
    _along(run)


def _along(run: Search) -> None:
    """Follow the path of the curves, then the paths of curves corrected around the best step."""
    path = run.path = best_path(run.curves)
    run.locate(path.at, path.least / 4, path.most, stage=CURVES)
    for number in range(1, run.rounds):
        before = run.best
        if before is None or not path.segments:
            return
        path = run.path = best_path(in_company(run, before))
        here = path.position(before.allocation)
        low, high = max(here / NEAR, path.least / 4), min(here * NEAR, path.most)
        run.locate(path.at, low, high, stage=f"{REFINED} {number}")
        if run.best is None or before.remains - run.best.remains < FINE_ENOUGH * before.remains:
            return


def feedback(run: Search) -> None:
    """Raise the threshold while the drop is allowed, and lower it by half of the step otherwise."""
    share, step = 0.0, FIRST_STEP
    run.path = _straight(run)
    while step >= LAST_STEP:
        wanted = min(share + step, 1.0)
        [tried] = run.try_all([run.space.by_threshold(wanted)], THRESHOLD)
        if tried.allowed and wanted < 1:
            share = wanted
        else:
            step /= 2


def _straight(run: Search) -> Path:
    """Return allocations by one threshold as a path, for the steps after the search."""
    grid, segments, before = [i / 50 for i in range(1, 46)], [], run.space.by_threshold(0.0)
    for share in grid:
        allocation = run.space.by_threshold(share)
        segments += [
            Segment(k, before.get(k, 0.0), f, damage=1.0, saved=1.0)
            for k, f in allocation.items()
            if f > before.get(k, 0.0)
        ]
        before = allocation
    return Path({}, segments)


STRATEGIES: dict[str, Callable[[Search], None]] = {"search": search, "predicted": predicted, "feedback": feedback}


# -- curves ------------------------------------------------------------------------------------------


def levels_of(layer: Layer, wanted: Sequence[float] | None = None) -> list[float]:
    """Return the fractions at which a layer is measured: each a different number of units, none beyond its limit."""
    levels = wanted or LEVELS.get(layer.kind, UNIT_LEVELS)
    cut = {layer.gone(level): level for level in sorted(levels, reverse=True) if level <= layer.limit}
    return sorted(level for count, level in cut.items() if count > 0)


def curve_trials(layers: Iterable[Layer], levels: Sequence[float] | None = None) -> list[TrialGroup]:
    """Return one group per layer with all of its levels, which share the computation before the layer."""
    return [TrialGroup.of(*({layer.name: level} for level in levels_of(layer, levels)), probe=True) for layer in layers]


def measured_curves(runner: TrialRunner, space: Space, goal: str) -> Iterator[DamageCurve]:
    """Return the curve of damage of each layer cut alone."""
    layers = [layer for layer in space.layers if levels_of(layer)]
    found = runner.measure(curve_trials(layers), "measuring each layer alone")
    for layer, outcomes in zip(layers, found, strict=True):
        cost = costs_of(space.cost, layer.name, goal)
        yield DamageCurve.of(layer.name, [0.0, *levels_of(layer)], [0.0, *(o.damage for o in outcomes)], cost=cost)


def in_company(run: Search, at: SearchStep) -> list[DamageCurve]:
    """The curves, each scaled by what its layer does beside all that is pruned in a step: the least-squares factor
    between the changes of damage measured there and those that its own curve has, kept near that of the others."""
    base, curves = dict(at.allocation), {curve.layer: curve for curve in run.curves}
    around = {
        layer.name: _around(layer, base.get(layer.name, 0.0)) for layer in run.space.layers if layer.name in curves
    }
    moving = [name for name, fractions in around.items() if fractions]
    groups = [TrialGroup.of(base, probe=True)]
    groups += [TrialGroup.of(*({**base, name: f} for f in around[name]), probe=True) for name in moving]
    first, *rest = run.runner.measure(groups, "measuring around the best so far")
    factors = {}
    for name, outcomes in zip(moving, rest, strict=True):
        alone = np.array([curves[name].at(f) - curves[name].at(base.get(name, 0.0)) for f in around[name]])
        here = np.array([outcome.damage - first[0].damage for outcome in outcomes])
        known = np.isfinite(here) & np.isfinite(alone)
        if float(np.square(alone[known]).sum()) > 0:
            factors[name] = float((here[known] * alone[known]).sum() / np.square(alone[known]).sum())
    usual = float(np.median([f for f in factors.values() if f > 0] or [1.0]))
    near = {name: min(max(f, usual / TRUSTED), usual * TRUSTED) for name, f in factors.items()}
    return [curve.times(near.get(curve.layer, usual)) for curve in run.curves]


def _around(layer: Layer, fraction: float) -> list[float]:
    """Return fractions near the present one that cut different numbers of units, rising."""
    now, left = layer.gone(fraction), 1 - fraction
    wanted = {layer.gone(max(1 - left * factor, 0.0)) for factor in AROUND}
    return sorted(count / layer.count for count in wanted if count not in (0, now))
