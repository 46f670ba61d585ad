"""The models of a search's steps: opened, written in their place, and kept as a Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunecli.files import copy
from prunecli.packing.after import pack_options, packed_after, told
from prunecli.runtime import Session
from prunecli.search.options import AdaptiveOptions
from prunecli.search.pruner import PrunerOutput, Result
from prunecli.search.setup import TrialSetup
from prunecli.search.strategy import SearchStep
from prunecli.search.training import Recovered, Trained, write_trained
from prunecli.types import Json, Progress

FRONT = 12
"""Models that --save-front keeps, at most."""


@dataclass(frozen=True)
class FrontModel:
    """A step that no other beats in both size and metric; `path` where it was saved."""

    step: SearchStep
    path: str | None = None


@dataclass(frozen=True)
class Models:
    """`trained`: by number, steps that cannot be built again from their setting. `recovered`: None without recovery."""

    setup: TrialSetup
    trained: Mapping[int, Trained]
    options: AdaptiveOptions
    recovered: Recovered | None = None

    def open(self, step: SearchStep) -> Session:
        """The model of a step, as it will be written."""
        made = self.trained.get(step.number)
        if made is not None:
            return self.setup.open(made.path)
        if self.recovered is not None:
            return self.setup.open(self.recovered.file(step.setting))
        return self.setup.open(self.setup.pruner.space.build(step.setting))

    def write(self, step: SearchStep, target: Path, said: Json, progress: Progress) -> Result:
        """Save the model of a step with proof, packed if asked for; of a trained one, the proof is of each cut before
        its training."""
        o = self.options
        if not o.pack:
            return self._written(step, target, said, progress)
        plain = replace(self, options=replace(o, dry_run=False))

        def make(place: Path) -> Result:
            return plain._written(step, place, said, progress)

        done, small = packed_after(target, pack_options(o), make, progress)
        return told(done, small, o.dry_run)

    def _written(self, step: SearchStep, target: Path, said: Json, progress: Progress) -> Result:
        o, made = self.options, self.trained.get(step.number)
        if made is not None:
            return write_trained(made, self.setup, o, target, o.force)
        saving = PrunerOutput(target, o.force, o.dry_run, o.verify, o.external_data, o.save_plan, o.spreads)
        return self.setup.pruner.finish(step.setting, said, saving, progress)

    def front(self, steps: Sequence[SearchStep], progress: Progress) -> Iterator[FrontModel]:
        """Steps that no other beats in both what remains and the drop; saved where asked for, evenly chosen if many.
        With recovery, of those that were judged recovered, as they are saved."""
        kept = pareto([s for s in steps if self._as_saved(s)])
        if self.options.save_front is None or self.options.dry_run:
            yield from map(FrontModel, kept)
            return
        self.options.save_front.mkdir(parents=True, exist_ok=True)
        count = min(FRONT, len(kept))
        some = {kept[round(i * (len(kept) - 1) / max(count - 1, 1))].number for i in range(count)}
        for step in kept:
            yield self._kept(step, progress) if step.number in some and step.setting else FrontModel(step)

    def _as_saved(self, step: SearchStep) -> bool:
        return self.recovered is None or step.number in self.recovered.judged or step.number in self.trained

    def _kept(self, step: SearchStep, progress: Progress) -> FrontModel:
        assert self.options.save_front is not None
        place, made = self.options.save_front / f"step-{step.number:03d}.onnx", self.trained.get(step.number)
        if made is not None:
            copy(made.path, place, force=True)
        else:
            saving = PrunerOutput(place, True, False, self.options.verify, self.options.external_data)
            self.setup.pruner.finish(step.setting, {"front": step.number}, saving, progress)
        return FrontModel(step, str(place))


def pareto(steps: Sequence[SearchStep]) -> list[SearchStep]:
    """Of finite drop, the smallest model first."""
    kept: list[SearchStep] = []
    for step in sorted(steps, key=lambda s: (s.remains, s.drop.value)):
        if math.isfinite(step.drop.value) and (not kept or step.drop.value < kept[-1].drop.value):
            kept.append(step)
    return kept
