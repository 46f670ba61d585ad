"""What is settled before a weight of a model becomes zero, and the look at the file that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from prunecli.masks.decide import Recipe
from prunecli.model import Model, Shapes, concrete_shapes, find_weights, load, totals
from prunecli.model.saving import check_target
from prunecli.model.sizes import EXACT_UP_TO, gzip_bytes
from prunecli.model.stored_tensors import release
from prunecli.runtime import Session
from prunecli.types import Json, Progress, Skipped, Totals, Verification
from prunecli.verify.inputs import sizes_to_try
from prunecli.zeros.options import OtherKinds, ZeroingOptions
from prunecli.zeros.plans import load_plan
from prunecli.zeros.selector import Fits, Selection, Selector, WeightChoice, choose
from prunecli.zeros.zero import Zeroed
from prunecli.zeros.zero_proof import ZeroProof


@dataclass(frozen=True)
class ZeroingJob:
    """Everything that is settled before a weight changes."""

    file: Model
    shapes: Shapes
    before: Totals
    choice: WeightChoice
    zeroed: list[Zeroed]
    recipe: Json
    command: str
    notes: Sequence[str]
    moved: list[Zeroed]
    details: Mapping[str, Json]
    feed: Mapping[str, Any] | None = None

    @property
    def changed(self) -> list[Zeroed]:
        """Every tensor that the saved file has in another form: the pruned ones, and what moves with them."""
        return [*self.zeroed, *self.moved]


def prepare(
    path: Path, target: Path, options: ZeroingOptions, recipe: Recipe | None, judge: Selector, progress: Progress
) -> ZeroingJob:
    """Raises PruneError: what `magnitude` refuses before it writes."""
    if options.verify:
        options.execution.check()
    file = load(path)
    check_target(file, None if options.dry_run else target, options.force, options)
    shapes = concrete_shapes(file, options.dims)
    found = _judged(file, options, recipe, judge, progress)
    zeroed = [Zeroed(w, one, w.tensor) for w, one in zip(found.choice.chosen, found.decisions, strict=True)]
    counted = {id(one.original): one.counts[0] for one in zeroed if one.counts is not None}
    before = totals(file, shapes, counted)
    moved = [Zeroed(w, one, w.tensor) for w, one in found.moved]
    return ZeroingJob(
        file, shapes, before, found.choice, zeroed, found.recipe, judge.command, found.notes, moved, found.details,
        found.feed,
    )  # fmt: skip


def _judged(
    file: Model, options: ZeroingOptions, recipe: Recipe | None, judge: Selector, progress: Progress
) -> Selection:
    """Which weights, what becomes of each, and the recipe as it is recorded."""
    found = find_weights(file)
    if options.plan is not None:
        plan = load_plan(options.plan, file, found.all())
        chosen = [weight for weight in found.all() if weight.name in plan.decisions]
        for weight in chosen:
            release(weight.holder.value)
        left = [weight for weight in found.all() if weight.name not in plan.decisions]
        choice = WeightChoice(chosen, left, [Skipped(w.name, "not in the plan") for w in left] + found.skipped)
        planned = Selection(choice, [plan.decisions[weight.name] for weight in chosen], plan.recipe)
        return judge.fitted(file, planned, progress) if isinstance(judge, Fits) else planned
    assert recipe is not None
    also = options.also if isinstance(options, OtherKinds) else ()
    choice = choose(found, options.include, options.exclude, also)
    said = judge(file, choice, recipe, progress)
    patterns = {"include": options.include, "exclude": options.exclude, "also": also}
    asked = {**recipe.to_json(), **{name: list(given) for name, given in patterns.items()}}
    return replace(said, recipe=asked | said.recipe)


@dataclass
class ZeroInspector:
    """Takes the staged file: `save` calls it before the file appears. Afterwards `after` are its sizes."""

    job: ZeroingJob
    options: ZeroingOptions
    progress: Progress
    verification: Verification = field(default_factory=lambda: Verification("none", detail="left out by --no-verify"))
    after: Totals | None = None

    def __call__(self, staged: Path) -> None:
        if self.options.verify:
            self.verification = self._proof()(staged)
        files = [staged, *load(staged).data_files]
        dropped = sum(one.nonzero_before - one.nonzero_after for one in self.job.changed)
        self.after = replace(
            self.job.before,
            nonzero=self.job.before.nonzero - dropped,
            file_bytes=sum(file.stat().st_size for file in files),
            gzip_bytes=sum(gzip_bytes(file) for file in files),
            gzip_estimated=any(file.stat().st_size > EXACT_UP_TO for file in files),
        )

    def _proof(self) -> ZeroProof:
        job, execution = self.job, self.options.execution
        opener = partial(Session.open, provider=execution.provider, threads=execution.thread_count)
        sizes = sizes_to_try(job.file, job.shapes.inputs, self.options.dims)
        return ZeroProof(job.file, job.changed, sizes, opener, self.progress, job.feed)
