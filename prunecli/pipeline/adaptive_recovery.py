"""Adaptive pruning with closed-form recovery: the search's path, followed further with every setting recovered.

The search itself tries settings as they are cut, which is quick, and finds out what each layer can spare. What is left
then depends on how much recovery brings back, so from there on each setting is written as it would be for the user,
fitted on the samples of the search, and judged as that file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prunecli.pipeline.trial_pruner import Saving
from prunecli.pipeline.trial_setup import Setup
from prunecli.search.adaptive import RECOVERED, Search, Step
from prunecli.search.space import Setting, digest
from prunecli.types import Progress

PACE, LEAST_PACE = 0.2, 0.02
"""The fraction of what remains that a step removes: at first, and when it is no longer worth trying."""


@dataclass
class Recovered:
    """Files of recovered settings in a folder, each made once. `judged`: the numbers of their steps."""

    setup: Setup
    folder: Path
    progress: Progress
    made: dict[str, Path] = field(default_factory=dict)
    judged: set[int] = field(default_factory=set)

    def file(self, setting: Setting) -> Path:
        name = digest(setting)
        if name not in self.made:
            place = self.folder / f"recovered-{len(self.made)}.onnx"
            self.setup.pruner.finish(setting, {}, Saving(place, verify=False), self.progress)
            self.made[name] = place
        return self.made[name]

    def step(self, run: Search, setting: dict[str, float], number: int) -> Step:
        """Judged on the samples of the search, and added to its steps."""
        step = run.add(setting, self.setup.outcome(self.file(setting)), f"{RECOVERED} {number}")
        self.judged.add(step.number)
        return step

    def further(self, run: Search) -> None:
        """Go on from the best so far."""
        run.follow(partial(self.step, run), PACE, LEAST_PACE)
