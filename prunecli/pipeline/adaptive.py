"""`prune adaptive`: the smallest model that loses no more than is allowed, confirmed on data that chose nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from prunecli.data import Dataset
from prunecli.errors import GateFailed, PruneError
from prunecli.model.saving import check_target
from prunecli.pipeline.adaptive_report import to_document, to_json
from prunecli.pipeline.evaluate import DataOptions
from prunecli.pipeline.structured import default_output
from prunecli.pipeline.trial_options import TrialOptions
from prunecli.pipeline.trial_pruners import Pruner, Result, Saving
from prunecli.pipeline.trial_setup import Judged, Setup, open_model, set_up
from prunecli.report.document import Document
from prunecli.runtime import Session
from prunecli.search.adaptive import STRATEGIES, Goal, Search, Step
from prunecli.search.space import Knob, Setting
from prunecli.search.trials import outcome_on, serialised
from prunecli.search.yardstick import Drop
from prunecli.types import FileRef, Json, Progress, no_progress

Strategy = Literal["search", "feedback"]
ATTEMPTS = 5
"""Settings that may be confirmed; each one after the first is held to a stricter bound, and its interval is wider."""
LEVEL = 0.95
FRONT = 12
"""Models that --save-front keeps, at most."""


@dataclass(frozen=True)
class AdaptiveOptions:
    """`max_drop`: of the metric, on held-out data. `confirm_data`: those; None: the share `confirm_split` of the data,
    drawn at random. `minimize` None: params of elements, macs of structures. `rounds`: of the search."""

    trials: TrialOptions
    max_drop: float
    confirm_data: DataOptions | None = None
    confirm_split: float = 0.5
    minimize: str | None = None
    strategy: Strategy = "search"
    rounds: int = 4
    output: Path | None = None
    force: bool = False
    dry_run: bool = False
    verify: bool = True
    external_data: Literal["auto", "always", "never"] = "auto"
    save_plan: Path | None = None
    save_front: Path | None = None


@dataclass(frozen=True)
class Confirmation:
    """One setting on the held-out samples: the metric of the original and of the model, the drop with its interval,
    and whether the promise holds there. `level`: of the interval, after the correction for `attempt`."""

    step: Step
    baseline: float
    metric: float
    drop: Drop
    low: float
    high: float
    level: float
    attempt: int
    holds: bool


@dataclass(frozen=True)
class Layer:
    """What became of a knob. `threshold`: the largest score that went."""

    knob: Knob
    fraction: float
    threshold: float | None


@dataclass(frozen=True)
class FrontModel:
    """A step that no other beats in both size and metric; `path` where it was saved."""

    step: Step
    path: str | None = None


@dataclass(frozen=True)
class AdaptiveResult:
    """`result`: of the command that wrote the model, None if the goal was not reached. `confirmations`: in the order
    tried, the last one is of the model. `closest`: what came nearest, where nothing was allowed."""

    model: FileRef
    options: AdaptiveOptions
    goal: Goal
    metric: str
    change: str
    output_name: str
    baseline: float
    samples: tuple[int, int]
    source: str
    steps: Sequence[Step]
    confirmations: Sequence[Confirmation]
    layers: Sequence[Layer]
    front: Sequence[FrontModel]
    closest: Step | None
    result: Result | None
    measured: int
    reused: int
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def reached(self) -> bool:
        return self.result is not None

    def to_json(self) -> Json:
        return to_json(self)

    def to_document(self) -> Document:
        return to_document(self)


def adaptive(
    model: str | Path, options: AdaptiveOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> AdaptiveResult:
    """Find the smallest model within `max_drop`, and save it with proof once held-out data confirm it. `changes`
    override fields of the options and of `options.trials`: `adaptive("m.onnx", data="d.npz", max_drop=0.01)`.

    Where the goal cannot be reached nothing is written and `result` is None. Interrupting the search (Ctrl-C) ends it
    with the best so far.

    Raises:
        PruneError: the model, the data or an option is unusable, or the saved file is not what it should be.
    """
    start, options = time.perf_counter(), adaptive_options(options, **changes)
    _check(options)
    path = Path(model)
    target = options.output or default_output(path)
    file, session = open_model(path, options.trials)
    if not options.dry_run:
        check_target(file, target, options.force)
    tune, held = _split(options, session)
    confirming = Judged.of(held, session, options.trials)
    setup = set_up(file, session, tune, options.trials, progress)
    goal = Goal(options.max_drop, _minimised(setup.pruner, options.minimize), len(held))
    run = Search(setup.bench, setup.pruner.space, goal, options.rounds)
    with closing(setup.bench.pool):
        interrupted = _interruptible(run, options.strategy)
    confirmations = list(_confirm(run, confirming, setup))
    done = _finish(setup, options, goal, confirmations, target, progress)
    yardstick = setup.bench.workspace.yardstick
    return AdaptiveResult(
        file.ref, options, goal, yardstick.metric, yardstick.change, yardstick.output, yardstick.baseline,
        (len(tune), len(held)), tune.source, run.steps, confirmations, _layers(setup, confirmations),
        _front(run, setup, options, progress), run.closest(), done, setup.bench.measured, setup.bench.reused,
        interrupted, list(file.notes), time.perf_counter() - start,
    )  # fmt: skip


def adaptive_options(options: AdaptiveOptions | None = None, **changes: Any) -> AdaptiveOptions:
    """Options with changes, which may also name fields of the trial options; `data` may be a path."""
    known = AdaptiveOptions.__dataclass_fields__
    own = {name: changes.pop(name) for name in list(changes) if name in known and name != "trials"}
    for group, name in ((changes, "data"), (own, "confirm_data")):
        if isinstance(group.get(name), str | Path):
            group[name] = DataOptions(str(group[name]))
    if own.get("output") is not None:
        own["output"] = Path(own["output"])
    if options is None:
        if "data" not in changes or "max_drop" not in own:
            raise PruneError("what may be lost, and the data to measure it on, are not given",
                             "give --data and --max-drop 1%")  # fmt: skip
        options = AdaptiveOptions(TrialOptions(changes["data"]), own["max_drop"])
    return replace(options, trials=replace(options.trials, **changes), **own)


def raise_if_missed(found: AdaptiveResult) -> None:
    """To be called after the report was printed.

    Raises:
        GateFailed: the goal was not reached.
    """
    if not found.reached:
        raise GateFailed(
            f"no model within a {found.change} of {found.goal.max_drop:g} in {found.metric} was found",
            "allow more, give more data, or recover quality with --finetune-epochs" if not found.steps
            else "allow more, or give more data: the margin for noise shrinks with it",
        )  # fmt: skip


def _check(options: AdaptiveOptions) -> None:
    if not 0 < options.max_drop < math.inf:
        raise PruneError(f"--max-drop {options.max_drop:g} allows nothing", "write for example --max-drop 1%")
    if options.strategy not in STRATEGIES:
        raise PruneError(f"there is no strategy {options.strategy}", f"choose from {', '.join(STRATEGIES)}")
    if not 0 < options.confirm_split < 1:
        raise PruneError("--confirm-split is a fraction between 0 and 1", "leave it out: half is best")
    if options.save_front is not None and options.save_front.exists() and not options.save_front.is_dir():
        raise PruneError(f"--save-front {options.save_front} is not a folder", "name a folder")


def _split(options: AdaptiveOptions, session: Session) -> tuple[Dataset, Dataset]:
    """The samples to choose by, and those that only confirm."""
    data = options.trials.data.open(session.inputs)
    if options.confirm_data is not None:
        held = options.confirm_data.open(session.inputs)
        if held.has_labels != data.has_labels:
            raise PruneError("--data and --confirm-data must both have labels, or neither", "give labels for both")
        return data, held
    confirming, choosing = data.split(options.confirm_split, options.trials.seed)
    if not len(confirming) or not len(choosing):
        raise PruneError(f"{data.source} cannot be split: its samples have too many shapes", "give --confirm-data")
    return choosing, confirming


def _minimised(pruner: Pruner, wanted: str | None) -> str:
    if wanted is None:
        return pruner.goals[0]
    if wanted not in pruner.goals:
        hint = f"choose from {', '.join(pruner.goals)}"
        if wanted == "latency":
            raise PruneError("zeros do not make onnxruntime faster, so there is no latency to minimise",
                             "add --granularity channel,head")  # fmt: skip
        raise PruneError(f"--minimize {wanted} is not possible here", hint)
    return wanted


def _interruptible(run: Search, strategy: str) -> bool:
    """Search; whether it was cut short by Ctrl-C."""
    try:
        run.run(strategy)
    except KeyboardInterrupt:
        return True
    return False


def _confirm(run: Search, held: Judged, setup: Setup) -> Iterator[Confirmation]:
    """Settings on the held-out samples, the smallest allowed first; each that fails makes the next one stricter by
    what it was over, and what was looked at several times is told with a wider interval (Bonferroni)."""
    limit, tried = run.goal.max_drop, set[int]()
    for attempt in range(1, ATTEMPTS + 1):
        left = [step for step in run.candidates(limit) if step.number not in tried]
        if not left or not left[0].setting:
            return
        found = _confirmed(left[0], held, setup, run.goal, attempt)
        tried.add(left[0].number)
        yield found
        if found.holds:
            return
        limit = left[0].bound - max(found.drop.value - run.goal.max_drop, found.drop.error() / 2)


def _confirmed(step: Step, held: Judged, setup: Setup, goal: Goal, attempt: int) -> Confirmation:
    from scipy.special import ndtri

    session = Session.open(serialised(setup.pruner.space.build(step.setting)),
                           provider=setup.bench.workspace.provider, threads=1)  # fmt: skip
    outcome = outcome_on(session, held.batches, held.reference, held.yardstick)
    assert outcome.records is not None
    drop = held.yardstick.drop(outcome.records)
    level = 1 - (1 - LEVEL) / attempt
    half = float(ndtri((1 + level) / 2)) * drop.error()
    return Confirmation(step, held.yardstick.baseline, held.yardstick.value(outcome.records), drop, drop.value - half,
                        drop.value + half, level, attempt, drop.value <= goal.max_drop)  # fmt: skip


def _finish(
    setup: Setup, options: AdaptiveOptions, goal: Goal, confirmations: Sequence[Confirmation], target: Path,
    progress: Progress,
) -> Result | None:  # fmt: skip
    if not confirmations or not confirmations[-1].holds:
        return None
    saving = Saving(target, options.force, options.dry_run, options.verify, options.external_data, options.save_plan)
    return setup.pruner.finish(confirmations[-1].step.setting, _said(setup, options, goal), saving, progress)


def _said(setup: Setup, options: AdaptiveOptions, goal: Goal) -> Json:
    """What the saved model records of how it was chosen."""
    yardstick = setup.bench.workspace.yardstick
    return {"strategy": options.strategy, "max_drop": goal.max_drop, "metric": yardstick.metric,
            "minimize": goal.minimize, "data": options.trials.data.text, "seed": options.trials.seed}  # fmt: skip


def _layers(setup: Setup, confirmations: Sequence[Confirmation]) -> list[Layer]:
    """The final thresholds, in the model's order."""
    if not confirmations or not confirmations[-1].holds:
        return []
    setting: Setting = confirmations[-1].step.setting
    found = setup.pruner.space.thresholds(setting)
    return [Layer(k, setting.get(k.name, 0.0), found.get(k.name)) for k in setup.pruner.space.knobs]


def _front(run: Search, setup: Setup, options: AdaptiveOptions, progress: Progress) -> list[FrontModel]:
    """Steps that no other beats in both what remains and the drop; saved where asked for."""
    ranked = sorted(run.steps, key=lambda s: (s.remains, s.drop.value))
    kept: list[Step] = []
    for step in ranked:
        if math.isfinite(step.drop.value) and (not kept or step.drop.value < kept[-1].drop.value):
            kept.append(step)
    if options.save_front is None or options.dry_run:
        return [FrontModel(step) for step in kept]
    options.save_front.mkdir(parents=True, exist_ok=True)
    some = {kept[round(i * (len(kept) - 1) / max(min(FRONT, len(kept)) - 1, 1))].number
            for i in range(min(FRONT, len(kept)))}  # fmt: skip
    out = []
    for step in kept:
        place = options.save_front / f"step-{step.number:03d}.onnx"
        if step.number not in some or not step.setting:
            out.append(FrontModel(step))
            continue
        saving = Saving(place, True, False, options.verify, options.external_data)
        setup.pruner.finish(step.setting, {"front": step.number}, saving, progress)
        out.append(FrontModel(step, str(place)))
    return out
