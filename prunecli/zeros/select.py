"""Which weights are worked on, and who decides what becomes of each: in that commands that zero weights differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np

from prunecli.errors import PruneError, advice, did_you_mean
from prunecli.masks.allocations import ALLOCATIONS
from prunecli.masks.criteria import of_elements
from prunecli.masks.decide import Decision, Recipe, decide
from prunecli.masks.stream import not_finite
from prunecli.model import Model, Weight, Weights, find_weights
from prunecli.model.constants import INTERFACE, release
from prunecli.model.sizes import is_finite
from prunecli.predicted.predict import Undescribed, weight_curves
from prunecli.types import Json, Progress, Skipped
from prunecli.zeros.recipes import command_of
from prunecli.zeros.zero import target_of


@dataclass(frozen=True)
class Selection:
    """Which weights, what becomes of each, the selector's part of the recorded recipe, and what to tell.
    `moved`: other tensors that change with them, such as biases. `details`: for the report, by weight. `feed`: inputs
    that the model ran on."""

    choice: WeightChoice
    decisions: Sequence[Decision]
    recipe: Json
    notes: Sequence[str] = ()
    moved: Sequence[tuple[Weight, Decision]] = ()
    details: Mapping[str, Json] = field(default_factory=dict)
    feed: Mapping[str, Any] | None = None


class Select(Protocol):
    """Turns a choice of weights into decisions."""

    def __call__(self, file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection: ...


@dataclass(frozen=True)
class Selector:
    """Who decides which elements go. `command`: whose report it is. `refit`: fits what is left by zeros that were
    decided on before, as by a plan; None where nothing is fitted."""

    command: str
    select: Select
    refit: Callable[[Model, Selection, Progress], Selection] | None = None


def allocated(file: Model, choice: WeightChoice, recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with the losses that its allocation reads, and notes. Where the network that predicts them does not
    know a layer, the allocation is `FALLBACK`, which is told."""
    if recipe.allocate is None or ALLOCATIONS.get(recipe.allocate).losses != "predicted":
        return recipe, []
    try:
        return replace(recipe, losses=weight_curves(file, [weight.name for weight in choice.chosen])), []
    except Undescribed as reason:
        return replace(recipe, allocate=FALLBACK), [f"--allocate {FALLBACK} in place of predicted: {reason}"]


FALLBACK = "erk"


def by_value(file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection:
    """The selection of `prune magnitude`: by the stored values alone.

    Raises:
        PruneError: the criterion needs more.
    """
    name = recipe.criterion or "l1"
    evidence = of_elements(name).evidence
    if evidence is not None:
        raise PruneError(
            f"--criterion {name} needs the {evidence.name}, which magnitude does not measure",
            f"use {command_of(name)}",
        )
    recipe, notes = allocated(file, choice, recipe)
    decisions = decide([target_of(weight) for weight in choice.chosen], recipe, progress)
    return Selection(choice, decisions, {"allocate": recipe.allocate} if recipe.allocate else {}, notes=notes)


KINDS = {"bias": "biases", "norm": "normalisation parameters", "embedding": "embeddings"}


@dataclass(frozen=True)
class WeightChoice:
    """`chosen`: to be worked on, in the model's order. `left`: weights that could be, and why they are not.
    `skipped`: everything that is not worked on, as reports list it."""

    chosen: list[Weight]
    left: list[Weight]
    skipped: list[Skipped]


def check_numbers(file: Model) -> None:
    """For what rests on running the model.

    Raises:
        PruneError: a weight holds NaN, or a matrix infinity. Masks, which may be among the biases, may be infinite.
    """
    for weight in find_weights(file).all():
        if not is_finite(weight.tensor) and (weight.kind == "weight" or np.isnan(weight.array()).any()):
            hint = "repair the model or export it again: what it computes are no numbers"
            raise PruneError(not_finite(weight.name, weight.array()).message, hint)


def names_of(weight: Weight) -> list[str]:
    """What a pattern may match: the stored tensor, the nodes that read it, their outputs if unnamed."""
    nodes = [use.node.name or (use.node.outputs[0].name or "") for use in weight.uses]
    return [weight.name, *dict.fromkeys(nodes)]


def matches(weight: Weight, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names_of(weight))


def choose(
    weights: Weights, include: Sequence[str] = (), exclude: Sequence[str] = (), also: Sequence[str] = ()
) -> WeightChoice:
    """Weights of the prunable kind, and of the kinds in `also`, that match `include` and not `exclude`.

    Raises:
        PruneError: a pattern that matches nothing, or nothing is left.
    """
    candidates = [*weights.prunable, *(weight for weight in weights.others if weight.kind in also)]
    for pattern in include:
        _check_include(pattern, candidates, weights)
    for pattern in exclude:
        _check_exclude(pattern, weights)
    for weight in weights.all():
        if weight.holder.overridable and any(fnmatchcase(weight.holder.name, pattern) for pattern in include):
            release(weight.holder.value)
    reasons = {
        w.name: _reason(w, w.kind == "weight" or w.kind in also, include, exclude=exclude) for w in weights.all()
    }
    chosen = [w for w in candidates if not reasons[w.name]]
    if not chosen:
        raise _nothing(weights, candidates, include, exclude=exclude)
    left = [w for w in weights.all() if reasons[w.name]]
    return WeightChoice(chosen, left, [Skipped(w.name, reasons[w.name]) for w in left] + weights.skipped)


def _reason(weight: Weight, candidate: bool, include: Sequence[str], exclude: Sequence[str]) -> str:
    """Why a weight is left alone; empty if it is not."""
    if weight.holder.overridable:
        return INTERFACE
    if not candidate:
        return f"{KINDS[weight.kind]} are left alone unless --also {weight.kind} is given"
    if include and not matches(weight, include):
        return "not matched by --include"
    return "left out by --exclude" if matches(weight, exclude) else ""


def _check_include(pattern: str, candidates: Sequence[Weight], weights: Weights) -> None:
    if any(matches(weight, [pattern]) for weight in candidates):
        return
    for weight in weights.others:
        if matches(weight, [pattern]):
            raise PruneError(
                f"--include {pattern!r} matches {weight.name}, and {KINDS[weight.kind]} are left alone",
                f"add --also {weight.kind}",
            )
    for skipped in weights.skipped:
        if fnmatchcase(skipped.name, pattern):
            raise PruneError(
                f"--include {pattern!r} matches {skipped.name}, which cannot be pruned: {skipped.reason}",
                "`prune inspect` lists what can be pruned",
            )
    raise PruneError(f"--include {pattern!r} matches nothing", _close(pattern, candidates))


def _check_exclude(pattern: str, weights: Weights) -> None:
    known = any(matches(weight, [pattern]) for weight in weights.all())
    if not known and not any(fnmatchcase(skipped.name, pattern) for skipped in weights.skipped):
        raise PruneError(f"--exclude {pattern!r} matches nothing", _close(pattern, weights.all()))


def _close(pattern: str, candidates: Sequence[Weight]) -> str:
    names = [name for weight in candidates for name in names_of(weight)]
    return did_you_mean(pattern.strip("*?"), names, "`prune inspect` lists the names; quote patterns such as '*fc*'")


def _nothing(
    weights: Weights, candidates: Sequence[Weight], include: Sequence[str], exclude: Sequence[str]
) -> PruneError:
    if candidates and all(weight.holder.overridable for weight in candidates):
        return PruneError(
            "every prunable weight is also a graph input, so that a caller may feed other values",
            "--include '*' prunes them all the same; or keep initializers out of the inputs when exporting",
        )
    if candidates:
        named = [option for option, given in (("--include", include), ("--exclude", exclude)) if given]
        ways = advice(("widen --include", bool(include)), ("exclude less", bool(exclude)))
        return PruneError(f"{' and '.join(named)} leave{'s' if len(named) == 1 else ''} no weight to prune", ways)
    if weights.skipped:
        first = next((one for one in weights.skipped if one.reason.startswith("quantised to")), weights.skipped[0])
        return PruneError(
            f"the model has no prunable weights: {first.name}: {first.reason}",
            "`prune inspect` lists what is in it",
        )
    return PruneError("the model has no prunable weights", "`prune inspect` lists what is in it")
