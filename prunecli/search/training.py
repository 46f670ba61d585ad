"""Adaptive pruning with training between steps: further along the path that the search drew, a little at a time.

Each step cuts what the last accepted one left, trains it with the unpruned model as teacher, and is judged as any other
setting, on samples that it was not trained on. A step that costs too much is backed out, and the next one is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from prunecli.files import copy
from prunecli.options.training import Retraining
from prunecli.search.pruner import PrunerOutput, Result
from prunecli.search.setup import TrialSetup
from prunecli.search.space import Setting, digest
from prunecli.search.strategy import RECOVERED, TRAINED, Search, SearchStep
from prunecli.training.finetune import FinetuneResult, finetune
from prunecli.training.gradual import Round, proof_of, retrained, training_of
from prunecli.types import Progress
from prunecli.zeros.result import MagnitudeResult

PACE, LEAST_PACE = 0.25, 0.05
"""The fraction of what remains that a step removes: at first, and when it is no longer worth training."""


@dataclass(frozen=True)
class Trained:
    """A model made by cuts and training: its file, and the rounds that led to it."""

    path: Path
    setting: Setting
    rounds: tuple[Round[Result], ...]


def train_further(
    run: Search, setup: TrialSetup, options: Retraining, made: dict[int, Trained], folder: Path, progress: Progress
) -> None:
    """Go on from the best so far. Every step is added to the search's, and its model to `made` by its number."""
    last: Trained | None = None

    def attempt(setting: dict[str, float], number: int) -> SearchStep:
        nonlocal last
        new = _round(setup, setting, last, options, folder / str(number), progress)
        step = run.add(setting, setup.outcome(new.path), f"{TRAINED} {number}")
        made[step.number] = new
        last = new if step.allowed else last
        return step

    run.follow(attempt, PACE, LEAST_PACE)


def _round(
    setup: TrialSetup, setting: Setting, last: Trained | None, options: Retraining, folder: Path, progress: Progress
) -> Trained:
    folder.mkdir()
    rounds, saving = () if last is None else last.rounds, PrunerOutput(folder / "cut.onnx")
    if last is None:
        cut = setup.pruner.finish(setting, {}, saving, progress)
    else:
        cut = setup.pruner.cut_further(last.path, last.setting, setting, saving, progress)
    training = training_of(options, setup.file.path, folder / "trained.onnx", keep_start=True)
    done: FinetuneResult = finetune(folder / "cut.onnx", training, progress)
    return Trained(folder / "trained.onnx", setting, (*rounds, Round(1.0, cut, done)))


def write_trained(made: Trained, setup: TrialSetup, options: Retraining, target: Path, force: bool) -> Result:
    """Put the trained file in its place, complete, and say what led to it."""
    rounds: Sequence[Round[Result]] = made.rounds
    copy(made.path, target, force)
    training = retrained(setup.file.path, options, list(rounds))
    output = None if training.output is None else replace(training.output, path=str(target))
    first, last = rounds[0].cut, rounds[-1].cut
    same: dict[str, Any] = {"model": setup.file.ref, "output": output, "before": first.before,
            "after": training.totals(), "verification": proof_of(list(rounds)), "training": training}  # fmt: skip
    late = {row.weight: row.nonzero for row in training.last.layers}
    if isinstance(last, MagnitudeResult):
        assert isinstance(first, MagnitudeResult)
        early = {layer.weight: layer.nonzero_before for layer in first.layers}
        layers = [replace(layer, nonzero_before=early[layer.weight], nonzero=late.get(layer.weight, layer.nonzero))
                  for layer in last.layers]  # fmt: skip
        return replace(last, layers=layers, **same)
    return replace(last, layers=[replace(r, nonzero=late.get(r.weight, r.nonzero)) for r in last.layers], **same)


PACE, LEAST_PACE = 0.2, 0.02
"""The fraction of what remains that a step removes: at first, and when it is no longer worth trying."""


@dataclass
class Recovered:
    """Files of recovered settings in a folder, each made once. `judged`: the numbers of their steps."""

    setup: TrialSetup
    folder: Path
    progress: Progress
    made: dict[str, Path] = field(default_factory=dict)
    judged: set[int] = field(default_factory=set)

    def file(self, setting: Setting) -> Path:
        name = digest(setting)
        if name not in self.made:
            place = self.folder / f"recovered-{len(self.made)}.onnx"
            self.setup.pruner.finish(setting, {}, PrunerOutput(place, verify=False), self.progress)
            self.made[name] = place
        return self.made[name]

    def step(self, run: Search, setting: dict[str, float], number: int) -> SearchStep:
        """Judged on the samples of the search, and added to its steps."""
        step = run.add(setting, self.setup.outcome(self.file(setting)), f"{RECOVERED} {number}")
        self.judged.add(step.number)
        return step

    def further(self, run: Search) -> None:
        """Go on from the best so far."""
        run.follow(partial(self.step, run), PACE, LEAST_PACE)
