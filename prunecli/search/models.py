"""The models of a search's steps as they are written: recovered, trained between steps, and kept as a Pareto front.

With recovery or training the search continues from its best step along its path in small steps: each cuts the result of
the last accepted one, is fitted or trained with the unpruned model as teacher, and is evaluated as any other, on
samples that it was not trained on. A step that costs too much is undone, and the next one is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunecli.data.dataset import hold_out
from prunecli.files import copy
from prunecli.options.training import FinetuneOptions
from prunecli.packing.after import pack_options, packed_after, with_packed
from prunecli.runtime import Session
from prunecli.search.options import AdaptiveOptions, PrunedFile
from prunecli.search.pruner import Allocation, Result, digest
from prunecli.search.setup import SampleSubset, TrialSetup
from prunecli.search.strategy import RECOVERED, TRAINED, Search, SearchStep
from prunecli.structures.carry_out import measured
from prunecli.training.finetune import FinetuneResult, finetune
from prunecli.training.gradual import Round, proof_of, retrained, training_of
from prunecli.types import Json, Progress
from prunecli.zeros.result import MagnitudeResult

FRONT = 12
"""Most models that --save-front keeps."""
PACE, LEAST_PACE = 0.2, 0.02
"""The fraction of what remains that a step removes: at first, and the least that is tried."""


@dataclass(frozen=True)
class FrontModel:
    """A step that no other beats in both size and metric; `path` where it was saved."""

    step: SearchStep
    path: str | None = None


@dataclass(frozen=True)
class Trained:
    """A model made by cuts and training: its file, and the rounds that led to it."""

    path: Path
    allocation: Allocation
    rounds: tuple[Round[Result], ...]


@dataclass
class StepModels:
    """The models of steps; those made during the search are files in `folder`. `trained`: by the step's number.
    `recovered`: by allocation, each made once. `as_saved`: numbers of the steps that were evaluated as saved files."""

    setup: TrialSetup
    options: AdaptiveOptions
    folder: Path
    progress: Progress
    trained: dict[int, Trained] = field(default_factory=dict)
    recovered: dict[str, Path] = field(default_factory=dict)
    as_saved: set[int] = field(default_factory=set)

    # -- further than the search went ----------------------------------------------------------------

    def recover_further(self, run: Search) -> None:
        """Cut further from the best step so far; each step is refitted, then evaluated on the samples of the search."""

        def attempt(allocation: dict[str, float], number: int) -> SearchStep:
            outcome = self.setup.outcome(self._recovered(allocation))
            step = run.add(allocation, outcome, f"{RECOVERED} {number}")
            self.as_saved.add(step.number)
            return step

        run.follow(attempt, PACE, LEAST_PACE)

    def train_further(self, run: Search) -> None:
        """Cut further from the best step so far; each step is trained, then evaluated."""
        last: Trained | None = None

        def attempt(allocation: dict[str, float], number: int) -> SearchStep:
            nonlocal last
            new = self._round(allocation, last, self.folder / str(number))
            step = run.add(allocation, self.setup.outcome(new.path), f"{TRAINED} {number}")
            self.trained[step.number] = new
            self.as_saved.add(step.number)
            last = new if step.allowed else last
            return step

        run.follow(attempt, PACE, LEAST_PACE)

    def _recovered(self, allocation: Allocation) -> Path:
        name = digest(allocation)
        if name not in self.recovered:
            place = self.folder / f"recovered-{len(self.recovered)}.onnx"
            self.setup.pruner.save(allocation, PrunedFile(output=place, verify=False), {}, progress=self.progress)
            self.recovered[name] = place
        return self.recovered[name]

    def _round(self, allocation: Allocation, last: Trained | None, folder: Path) -> Trained:
        folder.mkdir()
        rounds, pruner = () if last is None else last.rounds, self.setup.pruner
        saving = PrunedFile(output=folder / "cut.onnx")
        if last is None:
            cut = pruner.save(allocation, saving, {}, progress=self.progress)
        else:
            cut = pruner.cut_further(last.path, last.allocation, allocation, saving=saving, progress=self.progress)
        training = self._training(cut, folder / "trained.onnx")
        done: FinetuneResult = finetune(folder / "cut.onnx", training, self.progress)
        return Trained(folder / "trained.onnx", allocation, (*rounds, Round(1.0, cut, done)))

    def _training(self, cut: Result, output: Path) -> FinetuneOptions:
        """Return the options of the training. Distillation on the samples of the search is validated on samples that
        neither search nor confirmation uses."""
        o = self.options
        training = training_of(o, self.setup.file.path, output, cut=cut, keep_start=True)
        if not o.distills or o.train_data is not None:
            return training
        validation = o.validation
        if validation is None and o.training_data is not None:
            session = self.setup.open(self.setup.file.path)
            held = hold_out(o.training_data.open(session.inputs, session.outputs), o.val_split, o.seed)[1]
            validation = None if held is None else SampleSubset.of_data(o.training_data, held)
        return replace(training, data=self.setup.data, validation=validation)

    # -- opened and written --------------------------------------------------------------------------

    def open(self, step: SearchStep) -> Session:
        """Open the model of a step as it will be written: trained, recovered or as it is cut."""
        if step.number in self.trained:
            return self.setup.open(self.trained[step.number].path)
        if self.options.recovers:
            return self.setup.open(self._recovered(step.allocation))
        return self.setup.open(self.setup.pruner.build(step.allocation))

    def write(self, step: SearchStep, target: Path, said: Json) -> Result:
        """Save the model of a step with proof, packed if asked for. For a trained model, the proof is of each cut
        before its training."""
        o = self.options
        if not o.pack:
            return self._written(step, target, said, dry_run=o.dry_run)
        done, small = packed_after(
            target,
            pack_options(o),
            lambda place: self._written(step, place, said, dry_run=False),
            progress=self.progress,
        )
        return with_packed(done, small, o.dry_run)

    def _written(self, step: SearchStep, target: Path, said: Json, dry_run: bool) -> Result:
        if step.number in self.trained:
            return self._timed(self._write_trained(self.trained[step.number], target), target)
        saving = self.options.part(PrunedFile, output=target, dry_run=dry_run, timed=self.options.timing)
        return self.setup.pruner.save(step.allocation, saving, said, progress=self.progress)

    def _write_trained(self, made: Trained, target: Path) -> Result:
        """Copy the trained file to its place; return the result, with the rounds that led to it."""
        file, rounds = self.setup.file, list(made.rounds)
        copy(made.path, target, self.options.force)
        training = retrained(file.path, self.options, rounds)
        output = None if training.output is None else replace(training.output, path=str(target))
        first, last = rounds[0].cut, rounds[-1].cut
        same: dict[str, Any] = {"model": file.ref, "output": output, "before": first.before,
                "after": training.totals(), "verification": proof_of(rounds), "training": training}  # fmt: skip
        late = {row.weight: row.nonzero for row in training.last.layers}
        if isinstance(last, MagnitudeResult):
            assert isinstance(first, MagnitudeResult)
            early = {layer.weight: layer.nonzero_before for layer in first.layers}
            layers = [replace(layer, nonzero_before=early[layer.weight], nonzero=late.get(layer.weight, layer.nonzero))
                      for layer in last.layers]  # fmt: skip
            return replace(last, layers=layers, **same)
        return replace(last, layers=[replace(r, nonzero=late.get(r.weight, r.nonzero)) for r in last.layers], **same)

    def _timed(self, done: Result, place: Path) -> Result:
        """Return the result with the speedup of the file over the original, if structures were cut."""
        if isinstance(done, MagnitudeResult) or not self.options.timing:
            return done
        return replace(done, speed=measured(place, self.setup.file.path, self.options, progress=self.progress))

    def front(self, steps: Sequence[SearchStep]) -> Iterator[FrontModel]:
        """Return the steps that no other beats in both what remains and the drop. With --save-front save them, evenly
        chosen if many. With recovery, only steps evaluated as saved count."""
        kept = pareto([s for s in steps if not self.options.recovers or s.number in self.as_saved])
        folder = self.options.save_front
        if folder is None or self.options.dry_run:
            yield from map(FrontModel, kept)
            return
        folder.mkdir(parents=True, exist_ok=True)
        count = min(FRONT, len(kept))
        some = {kept[round(i * (len(kept) - 1) / max(count - 1, 1))].number for i in range(count)}
        for step in kept:
            is_saved = step.number in some and step.allocation
            yield self._kept(step, folder / f"step-{step.number:03d}.onnx") if is_saved else FrontModel(step)

    def _kept(self, step: SearchStep, place: Path) -> FrontModel:
        if step.number in self.trained:
            copy(self.trained[step.number].path, place, force=True)
        else:
            saving = PrunedFile(output=place, force=True, verify=self.options.verify,
                                external_data=self.options.external_data)  # fmt: skip
            self.setup.pruner.save(step.allocation, saving, {"front": step.number}, progress=self.progress)
        return FrontModel(step, str(place))


def pareto(steps: Sequence[SearchStep]) -> list[SearchStep]:
    """Return the steps that no other beats in both size and drop, the smallest first; infinite drops are left out."""
    kept: list[SearchStep] = []
    for step in sorted(steps, key=lambda s: (s.remains, s.drop.value)):
        if math.isfinite(step.drop.value) and (not kept or step.drop.value < kept[-1].drop.value):
            kept.append(step)
    return kept
