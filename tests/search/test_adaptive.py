"""The strategies, on models whose damage is a formula: what they find is known, and no network has to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.masks.allocations import LossCurve
from prunecli.search.metric import Drop
from prunecli.search.pruner import Allocation, Layer
from prunecli.search.runner import Journal, TrialRunner
from prunecli.search.strategy import STRATEGIES, Goal, Search
from prunecli.search.trials import Outcome, TrialGroup, Workspace
from prunecli.types import no_progress

SAMPLES = 4000


@dataclass
class Formula:
    """`tolerance[k]`: how well a layer bears it; damages add up, and multiply in pairs of neighbours (`company`)."""

    tolerance: Sequence[float] = (1.0, 4.0, 16.0, 64.0)
    count: int = 1000
    company: float = 0.0

    @property
    def layers(self) -> Sequence[Layer]:
        return [Layer(f"k{i}", "element", self.count, self.count, None, ()) for i in range(len(self.tolerance))]

    def damage(self, allocation: Allocation) -> float:
        own = [(np.exp(4 * allocation.get(f"k{i}", 0.0)) - 1) / t / 100 for i, t in enumerate(self.tolerance)]
        return float(sum(own) + self.company * sum(a * b for a, b in pairwise(own)) * 100)

    def cost(self, allocation: Allocation) -> Mapping[str, float]:
        return {"params": sum(self.count * (1 - allocation.get(k.name, 0.0)) for k in self.layers)}

    def by_threshold(self, share: float) -> Allocation:
        return {layer.name: share for layer in self.layers}

    def thresholds(self, allocation: Allocation) -> Mapping[str, float]:
        return dict(allocation)

    def predicted(self) -> dict[str, LossCurve]:
        """Right but for a factor of each layer, in turn 2 and 1/2."""
        levels, factors = (0.3, 0.6, 0.9), (2.0, 0.5)
        return {
            layer.name: LossCurve(
                [1 - f for f in levels], [self.damage({layer.name: f}) * factors[i % 2] for f in levels]
            )
            for i, layer in enumerate(self.layers)
        }

    def build(self, allocation: Allocation) -> onnx.ModelProto:
        raise AssertionError("nothing is built")


@dataclass
class Metric:
    """The metric falls as damage grows; `noise` of an allocation is its own, and always the same."""

    noise: float = 0.0

    def drop(self, records: dict[str, Any]) -> Drop:
        return Drop(float(records["drop"]), 0.01, SAMPLES)

    def value(self, records: dict[str, Any]) -> float:
        return 1 - float(records["drop"])


@dataclass
class Calculated:
    """A pool that computes instead of measuring."""

    space: Formula
    noise: float = 0.0
    jobs: list[TrialGroup] = field(default_factory=list)
    stop_after: int = 10**9

    def run(self, workspace: Workspace, jobs: Sequence[TrialGroup]) -> Iterator[tuple[int, list[Outcome]]]:
        for number, job in reversed(list(enumerate(jobs))):  # any order will do
            if len(self.jobs) == self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            yield number, [self._one(allocation, job.probe) for allocation in job.allocations]

    def _one(self, allocation: Allocation, probe: bool) -> Outcome:
        damage = self.space.damage(allocation)
        seed = abs(hash(tuple(round(v * 1000) for v in allocation.values()))) % 2**32
        error = self.noise * np.random.default_rng(seed).normal()
        return Outcome(damage, 0.0, None if probe else {"drop": np.array(damage * 0.1 + error)})


def searched(strategy: str, space: Formula, noise: float = 0.0, limit: float = 0.02, stop: int = 10**9) -> Search:
    pool = Calculated(space, noise, stop_after=stop)
    workspace: Any = SimpleNamespace(samples=SimpleNamespace(metric=Metric(noise)))
    runner = TrialRunner(workspace, pool, Journal(None, ""), no_progress)
    run = Search(runner, space, Goal(limit, "params", SAMPLES), predict=space.predicted)
    run.run(strategy)
    return run


def best_possible(space: Formula, allowed: float) -> float:
    """The smallest cost at a damage, where it only adds up: each layer's marginal damage is equal (Lagrange)."""

    def allocation(rate: float) -> Allocation:
        shares = [np.clip(np.log(max(rate * t * 25, 1e-9)) / 4, 0, 1) for t in space.tolerance]
        return {f"k{i}": float(s) for i, s in enumerate(shares)}

    rates = np.exp(np.linspace(-12, 4, 4000))
    return min(space.cost(allocation(r))["params"] for r in rates if space.damage(allocation(r)) <= allowed)


def test_search_comes_close_to_the_best_there_is() -> None:
    space = Formula()
    found = searched("search", space).best
    assert found is not None and found.allowed
    goal = Goal(0.02, "params", SAMPLES)
    margin = goal.bound(Drop(0.0, 0.01, SAMPLES))
    best = best_possible(space, (0.02 - margin) / 0.1) / 4000
    assert best <= found.remains <= best + 0.02


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.01, 0.01), (0.0, 0.0), (-0.01, 0.0), (-0.05, -0.03)],  # the error of 1,000 samples of variance 0.1 is 0.01
)
def test_a_gain_that_noise_explains_counts_as_none(value: float, expected: float) -> None:
    drop = Drop(value, 0.1, 1000)
    margin = 2 * drop.error(1000)
    assert Goal(0.02, "params", 1000).bound(drop) == pytest.approx(expected + margin)  # exact but for rounding


@pytest.mark.parametrize("company", [0.0, 2.0])
def test_search_beats_one_threshold_for_all(company: float) -> None:
    space = Formula(company=company)
    ours, theirs = searched("search", space).best, searched("feedback", space).best
    assert ours is not None and theirs is not None
    assert ours.remains < 0.8 * theirs.remains  # the layers differ by a factor of 64


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_ends_below_the_limit_with_its_margin(strategy: str) -> None:
    run = searched(strategy, Formula())
    assert run.best is not None and run.best.bound <= 0.02 < max(step.bound for step in run.steps)
    assert [step.number for step in run.steps] == list(range(1, len(run.steps) + 1))
    assert run.candidates(0.02)[0] is run.best
    assert all(step.allowed == (step.bound <= 0.02) for step in run.steps)  # without noise no luck is needed


def test_predicted_curves_that_are_wrong_by_factors_are_corrected_by_measurement() -> None:
    """Nothing is measured of a layer alone; what is found is within a tenth of what measured curves give."""
    predicted, measured = (searched(way, Formula()) for way in ("predicted", "search"))
    assert predicted.best is not None and measured.best is not None
    assert predicted.best.remains <= 1.1 * measured.best.remains
    assert predicted.runner.measured < measured.runner.measured


def test_feedback_halves_its_step_down_to_the_last() -> None:
    tried = [step.allocation["k0"] for step in searched("feedback", Formula()).steps]
    moves = np.abs(np.diff(tried))
    assert max(moves) <= 0.16 + 1e-9 and tried[-1] == pytest.approx(max(t for t in tried if t <= tried[-1]), abs=0.01)


def test_luck_after_a_failure_is_not_trusted() -> None:
    """With noise, some harsh allocations pass while gentler ones of the same batch failed."""
    run = searched("search", Formula(), noise=0.01)
    lucky = [step for step in run.steps if step.bound <= 0.02 and not step.allowed]
    assert lucky and all("gentler" in step.decision for step in lucky)
    assert run.best is not None and run.best.allowed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_nothing_is_allowed_the_closest_is_known(strategy: str) -> None:
    run = searched(strategy, Formula(), limit=1e-4)
    closest = run.closest()
    assert run.best is None and closest is not None and not run.candidates(1e-4)
    assert closest.bound == min(step.bound for step in run.steps)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_the_same_every_time(strategy: str) -> None:
    one, two = (searched(strategy, Formula(), noise=0.002) for _ in range(2))
    assert one.steps == two.steps and one.best == two.best


def test_an_interruption_leaves_the_best_so_far() -> None:
    space = Formula()
    pool = Calculated(space, stop_after=12)
    workspace: Any = SimpleNamespace(samples=SimpleNamespace(metric=Metric()))
    run = Search(TrialRunner(workspace, pool, Journal(None, "")), space, Goal(0.02, "params", SAMPLES))
    with pytest.raises(KeyboardInterrupt):
        run.run("search")
    assert run.best is not None and run.best in run.steps


def test_what_was_measured_is_not_measured_again() -> None:
    space = Formula()
    journal = Journal(None, "")
    workspace: Any = SimpleNamespace(samples=SimpleNamespace(metric=Metric()))
    found = []
    for _ in range(2):
        pool = Calculated(space)
        run = Search(TrialRunner(workspace, pool, journal), space, Goal(0.02, "params", SAMPLES))
        run.run("search")
        found.append((run.best, len(pool.jobs)))
    assert found[0][0] == found[1][0] and found[0][1] > 0 == found[1][1]
