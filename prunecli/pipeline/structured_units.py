"""What choosing units needs: the recipe, and what the criterion must have been told of the data."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prunecli.evidence.moments import second_moments
from prunecli.model.shapes import input_specs
from prunecli.pipeline.structured_subject import Cuttable
from prunecli.runtime import Session
from prunecli.search.units import Evidence, UnitRecipe, resolve_criterion
from prunecli.select.structures import UNIT_CRITERIA
from prunecli.types import Progress

if TYPE_CHECKING:
    from prunecli.pipeline.structured import StructuredOptions


def measure(subject: Cuttable, options: StructuredOptions, progress: Progress) -> Evidence | None:
    """What the criterion needs to know of the data; None where the weights suffice."""
    criterion = UNIT_CRITERIA.get(resolve_criterion(options.criterion, options.data is not None))
    if criterion is None or criterion.evidence != "moments" or options.data is None:
        return None
    data = options.data.open(input_specs(subject.file.ir))
    feeds = (batch.feed for batch in progress(data.batches(options.batch_size), "measuring activations"))
    ranks = {name: len(shape) for name, shape in subject.shapes.items()}
    start = partial(Session.open, provider=options.execution.provider, threads=options.execution.thread_count)
    return Evidence(moments=second_moments(subject.work, ranks, feeds, start))


def unit_recipe(options: StructuredOptions, target: float) -> UnitRecipe:
    """The options with a target that is a fraction."""
    assert options.budget is not None
    return UnitRecipe(
        budget=options.budget.kind, target=target, absolute=False, criterion=options.criterion, scope=options.scope,
        normalize=options.normalize, max_ratio=options.max_ratio, round_to=options.round_to, steps=options.steps,
        seed=options.seed,
    )  # fmt: skip
