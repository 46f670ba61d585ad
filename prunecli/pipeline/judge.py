"""Who decides what becomes of each weight: the one thing that differs between commands that zero weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from prunecli.apply.zero import target_of
from prunecli.errors import PruneError
from prunecli.model import Model, Weight
from prunecli.pipeline.choice import Choice
from prunecli.select import Decision, Recipe, decide
from prunecli.select.criteria import CRITERIA
from prunecli.types import Json, Progress

BY_EVIDENCE = ("wanda", "obs")
"""Criteria whose evidence `prune oneshot` takes; that of the others that need some is gradients."""


@dataclass(frozen=True)
class Judged:
    """What a judge says: which weights, what becomes of each, its part of the recorded recipe, and what to tell.
    `moved`: other tensors that change with them, such as biases. `details`: for the report, by weight. `feed`: inputs
    that the model ran on."""

    choice: Choice
    decisions: Sequence[Decision]
    recipe: Json
    notes: Sequence[str] = ()
    moved: Sequence[tuple[Weight, Decision]] = ()
    details: Mapping[str, Json] = field(default_factory=dict)
    feed: Mapping[str, Any] | None = None


class Judge(Protocol):
    """Decides which elements go from more than the weights' values. `command`: whose report it is."""

    @property
    def command(self) -> str: ...

    def __call__(self, file: Model, choice: Choice, recipe: Recipe, progress: Progress) -> Judged: ...


@runtime_checkable
class Fits(Protocol):
    """A judge that also fits what is left, to zeros that were decided on before."""

    def fitted(self, file: Model, planned: Judged, progress: Progress) -> Judged: ...


class ByValue:
    """The judge of `prune magnitude`: the stored values alone."""

    command = "magnitude"

    def __call__(self, file: Model, choice: Choice, recipe: Recipe, progress: Progress) -> Judged:
        found = CRITERIA.get(recipe.criterion or "l1")
        if found.needs:
            command = "oneshot --method" if found.name in BY_EVIDENCE else "gradient --criterion"
            raise PruneError(
                f"--criterion {found.name} needs the {found.needs[0]}, which magnitude does not measure",
                f"use `prune {command} {found.name}`",
            )
        return Judged(choice, decide([target_of(weight) for weight in choice.chosen], recipe, progress), {})
