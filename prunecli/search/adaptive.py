"""`prune adaptive`: the smallest model within an allowed loss, confirmed on held-out data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecli.errors import GateFailed
from prunecli.evaluation.fidelity import heads_of
from prunecli.files import Scratch
from prunecli.model.saving import check_target
from prunecli.options.sizes import at_data
from prunecli.report.result import Reported
from prunecli.search.metric import Drop
from prunecli.search.models import FrontModel, StepModels
from prunecli.search.options import AdaptiveOptions
from prunecli.search.pruner import Allocation, Layer, Result
from prunecli.search.setup import TrialSetup, both_parts, check_apart, open_model, set_up, split
from prunecli.search.strategy import Goal, Search, SearchStep
from prunecli.search.tradeoff import DamageCurve
from prunecli.search.trials import TrialSamples, outcome_on
from prunecli.structures.carry_out import default_output
from prunecli.training.gradual import left_out
from prunecli.types import FileRef, Json, Progress, no_progress

ATTEMPTS = 5
"""Most allocations that may be tested for confirmation; each one after the first is held to a stricter bound, and its
interval is wider."""
LEVEL = 0.95


@dataclass(frozen=True)
class Confirmation:
    """One allocation on the held-out samples: the metric of the original and of the model, the drop with its interval,
    and whether the promise holds there. `level`: of the interval, after the correction for `attempt`."""

    step: SearchStep
    baseline: float
    metric: float
    drop: Drop
    low: float
    high: float
    level: float
    attempt: int
    holds: bool


@dataclass(frozen=True)
class LayerThreshold:
    """The fraction that went from a layer, and the largest score among what went (`threshold`)."""

    layer: Layer
    fraction: float
    threshold: float | None


@dataclass(frozen=True)
class AdaptiveResult(Reported):
    """`result`: of the command that wrote the model, None if the goal was not reached. `confirmations`: in the order
    tried; the last one is of the model. `closest`: the step nearest to being allowed, where none was. `curves`: damage
    of each layer cut alone, where the strategy measured it."""

    reporter = "adaptive_report"

    model: FileRef
    options: AdaptiveOptions
    goal: Goal
    metric: str
    change: str
    output_name: str
    baseline: float
    samples: tuple[int, int]
    source: str
    steps: Sequence[SearchStep]
    confirmations: Sequence[Confirmation]
    layers: Sequence[LayerThreshold]
    curves: Sequence[DamageCurve]
    front: Sequence[FrontModel]
    closest: SearchStep | None
    result: Result | None
    measured: int
    reused: int
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def output(self) -> FileRef | None:
        """The file that was written; None if the goal was not reached."""
        return self.result.output if self.result is not None else None

    @property
    def reached(self) -> bool:
        return self.result is not None

    def raise_if_failed(self) -> None:
        """Raise GateFailed where the goal was not reached."""
        if self.interrupted:
            raise KeyboardInterrupt
        if not self.reached:
            said = f"no model within a {self.change} of {self.goal.max_drop:g} in {self.metric} was found"
            raise GateFailed(said, _remedy(self))


def adaptive(
    model: str | Path, options: AdaptiveOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> AdaptiveResult:
    """Find the smallest model within `max_drop`, and save it with proof once held-out data confirm it. `changes`
    override fields of the options: `adaptive("m.onnx", data="d.npz", max_drop=0.01)`.

    Where the goal cannot be reached nothing is written and `result` is None. Interrupting the search (Ctrl-C) ends it
    with the best so far.

    Raises:
        PruneError: the model, the data or an option is unusable, or the saved file is not what it should be.
    """
    start, options = time.perf_counter(), AdaptiveOptions.of(options, **changes)
    path = Path(model)
    target = options.output or default_output(path)
    options = at_data(path, options)
    file, session = open_model(path, options)
    check_target(file, target, options)
    tune, held = split(options, session)
    seen = check_apart(tune, held, session, options=options)
    choosing, confirming = both_parts(tune, held, session, options=options, heads=heads_of(file.ir.graph))
    setup = set_up(file, tune, choosing, options=options, progress=progress)
    goal = Goal(options.limit_of_drop, options.minimize or setup.pruner.goals[0], len(held))
    run = Search(setup.runner, setup.pruner, goal, rounds=options.rounds, predict=setup.pruner.predicted)
    with closing(setup.runner), Scratch() as folder:
        models = StepModels(setup, options, folder, progress=progress)
        interrupted = _interruptible(lambda: run.run(options.strategy))
        if options.recovers and not interrupted:
            interrupted = _interruptible(lambda: models.recover_further(run))
        if options.trains and not options.dry_run and not interrupted:
            interrupted = _interruptible(lambda: models.train_further(run))
        confirmations = list(_confirm(run, confirming, models))
        kept = confirmations[-1].step if confirmations and confirmations[-1].holds else None
        done = None if kept is None else models.write(kept, target, _said(setup, options, goal))
        front: list[FrontModel] = []
        interrupted = _interruptible(lambda: front.extend(models.front(run.steps))) or interrupted
    metric = setup.samples.metric
    return AdaptiveResult(
        model=file.ref, options=options, goal=goal, metric=metric.name, change=metric.change,
        output_name=metric.output, baseline=metric.baseline, samples=(len(tune), len(held)), source=tune.source,
        steps=run.steps, confirmations=confirmations, layers=_layers(setup, confirmations),
        curves=run.curves, front=front, closest=run.closest(), result=done, measured=setup.runner.measured,
        reused=setup.runner.reused, interrupted=interrupted,
        notes=[*file.notes, *setup.pruner.notes, *seen, *run.notes, *_notes(options)],
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def _remedy(found: AdaptiveResult) -> str:
    """Return what a user can do about a goal that was not reached."""
    ways = ["allow more", "give more data (the margin for noise shrinks with it)"]
    if not found.options.trains:
        recover = [] if found.options.recovers else ["--recover auto"]
        ways.append("make up for the cut with " + " or ".join([*recover, "--finetune-epochs"]))
    return ", or ".join([", ".join(ways[:-1]), ways[-1]])


def _interruptible(work: Callable[[], object]) -> bool:
    """Run the work; return whether Ctrl-C ended it."""
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False


def _notes(options: AdaptiveOptions) -> list[str]:
    return [left_out(options)] if options.trains and options.dry_run else []


def _confirm(run: Search, held: TrialSamples, models: StepModels) -> Iterator[Confirmation]:
    """Test steps on the held-out samples, the smallest allowed model first, until one passes. One that fails tightens
    the limit of the next by its excess. Later intervals are wider (Bonferroni: level 1 - 0.05 / attempt)."""
    limit, tried = run.goal.max_drop, set[int]()
    for attempt in range(1, ATTEMPTS + 1):
        left = [step for step in run.candidates(limit) if step.number not in tried]
        if not left or not left[0].allocation:
            return
        found = _confirmed(left[0], held, models, goal=run.goal, attempt=attempt)
        tried.add(left[0].number)
        yield found
        if found.holds:
            return
        limit = left[0].bound - max(found.drop.value - run.goal.max_drop, found.drop.error() / 2)


def _confirmed(step: SearchStep, held: TrialSamples, models: StepModels, goal: Goal, attempt: int) -> Confirmation:
    from scipy.special import ndtri

    session = models.open(step)
    outcome = outcome_on(session, held)
    assert outcome.records is not None
    drop = held.metric.drop(outcome.records)
    level = 1 - (1 - LEVEL) / attempt
    half = float(ndtri((1 + level) / 2)) * drop.error()
    return Confirmation(
        step, baseline=held.metric.baseline, metric=held.metric.value(outcome.records), drop=drop,
        low=drop.value - half, high=drop.value + half, level=level, attempt=attempt, holds=drop.value <= goal.max_drop,
    )  # fmt: skip


def _said(setup: TrialSetup, options: AdaptiveOptions, goal: Goal) -> Json:
    """Return what the saved model records of how it was chosen."""
    return {"strategy": options.strategy, "max_drop": goal.max_drop, "metric": setup.samples.metric.name,
            "minimize": goal.minimize, "data": options.tried.text, "seed": options.seed}  # fmt: skip


def _layers(setup: TrialSetup, confirmations: Sequence[Confirmation]) -> list[LayerThreshold]:
    """Return the thresholds of the confirmed step, in the model's order; none if no step was confirmed."""
    if not confirmations or not confirmations[-1].holds:
        return []
    allocation: Allocation = confirmations[-1].step.allocation
    found = setup.pruner.thresholds(allocation)
    return [LayerThreshold(k, allocation.get(k.name, 0.0), found.get(k.name)) for k in setup.pruner.layers]
