"""From weights and a recipe to one decision per weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunecli.errors import PruneError
from prunecli.masks.criteria import CRITERIA
from prunecli.masks.decisions import ByBits, ByUnits, Decision, InRows, InWindows
from prunecli.masks.keys import key_of
from prunecli.masks.patterns import Tiles, Windows, element, parse_pattern
from prunecli.masks.scopes import SCOPES
from prunecli.masks.stream import CutPoint, count_below
from prunecli.masks.units import Target, Units
from prunecli.quantity import Quantity, did_you_mean_percent
from prunecli.types import Json, Progress, no_progress


@dataclass(frozen=True)
class Recipe:
    """What is asked for. One of `sparsity`, `threshold`, or an N:M pattern, which implies its sparsity.

    Raises:
        PruneError: on construction, if the parts do not make sense together.
    """

    pattern: str = "element"
    scope: str | None = None
    criterion: str | None = None
    sparsity: float | None = None
    threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        form = parse_pattern(self.pattern)
        object.__setattr__(self, "pattern", form.text)
        if self.criterion is not None:
            CRITERIA.get(self.criterion)
        if self.scope is not None:
            SCOPES.get(self.scope)
        if isinstance(form, Windows):
            _check_windows(self, form)
        elif self.threshold is not None:
            _check_threshold(self)
        else:
            _check_sparsity(self, form)

    def to_json(self) -> Json:
        """What was asked for, with the defaults that apply."""
        windows = isinstance(parse_pattern(self.pattern), Windows)
        scope = None if windows or self.threshold is not None else self.scope or "layer"
        named = {"pattern": self.pattern, "scope": scope, "criterion": self.criterion or "l1"}
        numbers = {"sparsity": self.sparsity, "threshold": self.threshold, "seed": self.seed}
        return {key: value for key, value in {**named, **numbers}.items() if value is not None}


def _check_windows(recipe: Recipe, form: Windows) -> None:
    if recipe.threshold is not None:
        raise PruneError(
            f"--threshold makes no sense with the pattern {form.text}, which fixes how many weights go",
            "leave --threshold out, or use --pattern element",
        )
    implied = 1 - form.keep / form.window
    if recipe.sparsity is not None and not math.isclose(recipe.sparsity, implied, abs_tol=1e-9):
        raise PruneError(
            f"the pattern {form.text} means a sparsity of {implied:g}, not {recipe.sparsity:g}",
            "leave --sparsity out, or choose another N:M",
        )
    if recipe.scope not in (None, "layer"):
        raise PruneError(
            f"--scope {recipe.scope} makes no sense with the pattern {form.text}: only the weights of one"
            " window compete",
            "leave --scope out",
        )


def _check_threshold(recipe: Recipe) -> None:
    threshold = recipe.threshold or 0.0
    if recipe.sparsity is not None:
        raise PruneError("--threshold and --sparsity contradict each other", "give one of them")
    if not 0 <= threshold < math.inf:
        raise PruneError(f"a threshold of {threshold} is not a number from 0 up", "give a small number such as 0.01")
    if recipe.scope is not None:
        raise PruneError(
            "--scope makes no sense with --threshold, which looks at each weight by itself",
            "leave --scope out, or use --sparsity",
        )
    if recipe.criterion not in (None, "l1"):
        raise PruneError(
            f"--threshold compares |w| (of units: its mean), not {recipe.criterion}",
            "leave --criterion out, or use --sparsity",
        )


def _check_sparsity(recipe: Recipe, form: Tiles) -> None:
    if recipe.sparsity is None:
        raise PruneError("how much to prune is not given", "give --sparsity 0.5, --threshold 0.01, or --pattern 2:4")
    if not 0 <= recipe.sparsity <= 1:
        hint = did_you_mean_percent(Quantity(recipe.sparsity), "write 0.5 or 50%")
        raise PruneError(f"a sparsity of {recipe.sparsity} is outside 0 to 1", hint)
    if recipe.scope == "row" and not form.rows_compete:
        raise PruneError(
            f"--scope row makes no sense with the pattern {form.text}: no two of its units lie in one row",
            "use --scope layer or global",
        )


def decide(targets: Sequence[Target], recipe: Recipe, progress: Progress = no_progress) -> list[Decision]:
    """One decision per weight. Reads every weight about once, or not at all where pools lie inside weights.

    Raises:
        PruneError: a weight holds NaN or infinity; where pools lie in weights, once a decision is applied.
    """
    live = [target for target in targets if target.size]
    found = dict(zip((target.name for target in live), _decide(live, recipe, progress), strict=True))
    return [found.get(target.name, ByBits(CutPoint(0))) for target in targets]  # an empty weight stays as it is


def _decide(targets: Sequence[Target], recipe: Recipe, progress: Progress) -> Sequence[Decision]:
    pattern = parse_pattern(recipe.pattern)
    criterion = CRITERIA.get(recipe.criterion or "l1")
    if isinstance(pattern, Windows):
        single = Units(element(), criterion, recipe.seed)
        return [InWindows(target, single, pattern.keep, pattern.window) for target in targets]
    units = Units(pattern, criterion, recipe.seed)
    if recipe.threshold is not None:
        return [_below(target, units, recipe.threshold) for target in progress(targets, "comparing", len(targets))]
    cuts = SCOPES.get(recipe.scope or "layer").cuts
    sparsity = recipe.sparsity or 0.0
    if cuts is None:
        return [InRows(target, units, sparsity) for target in targets]
    found = cuts([units.source(target) for target in targets], sparsity, progress)
    return [
        ByBits(cut) if units.by_bits else ByUnits(target, units, cut)
        for target, cut in zip(targets, found, strict=True)
    ]


def _below(target: Target, units: Units, threshold: float) -> Decision:
    """|w| < T as numpy compares: T is rounded to the weight's own type. Units: mean |w| < T in float64."""
    source = units.source(target)
    cut = count_below(source, key_of(threshold, source.dtype))
    return ByBits(cut) if units.by_bits else ByUnits(target, units, cut)
