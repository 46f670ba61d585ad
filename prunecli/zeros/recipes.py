"""Which recipes are those of gradient pruning and of one-shot pruning."""

from __future__ import annotations

from dataclasses import replace

from prunecli.errors import PruneError
from prunecli.masks.allocations import ALLOCATIONS
from prunecli.masks.criteria import of_elements
from prunecli.masks.decide import Recipe
from prunecli.masks.patterns import Windows, parse_pattern
from prunecli.reconstruct.fit import METHODS, check

ALLOCATION_OF_SCOPE = {"global": "loss", "erk": "erk"}
"""The allocation that a scope of one-shot pruning means."""


def command_of(criterion: str) -> str:
    """The command that zeroes weights by a criterion of elements."""
    evidence = of_elements(criterion).evidence
    if evidence is None:
        return f"`prune magnitude --criterion {criterion}`"
    if evidence.differentiates:
        return f"`prune gradient --criterion {criterion}`"
    is_method = criterion in [method.name for method in METHODS]
    return f"`prune oneshot --method {criterion}`" if is_method else f"`prune adaptive --criterion {criterion}`"


def with_defaults(recipe: Recipe, data: bool) -> Recipe:
    """The recipe with what gradient pruning does unless told otherwise. `data`: whether there are some.

    Raises:
        PruneError: a criterion of another command, or without its data.
    """
    recipe = replace(recipe, criterion=recipe.criterion or "smoothed")
    name = recipe.criterion or ""
    evidence = of_elements(name).evidence
    if evidence is None:
        raise PruneError(f"--criterion {name} is of the weights alone", f"use {command_of(name)}")
    if not evidence.differentiates:
        raise PruneError(f"--criterion {name} is not of gradients", f"use {command_of(name)}")
    if evidence.on_data and not data:
        raise PruneError("gradients are measured on data", "give --data, or use --criterion synflow, which needs none")
    windows = isinstance(parse_pattern(recipe.pattern), Windows)
    if windows or recipe.allocate or recipe.threshold is not None:
        return recipe
    return replace(recipe, scope=recipe.scope or "global")


def checked(recipe: Recipe, method: str, allocation: str | None) -> Recipe:
    """The recipe, if it is one of one-shot pruning. Its scope is what competes inside a layer; how
    layers compete is the allocation.

    Raises:
        PruneError: it is not.
    """
    pattern = parse_pattern(recipe.pattern)
    check(METHODS.get(method), pattern)
    if allocation is not None:
        ALLOCATIONS.get(allocation)
    implied = ALLOCATION_OF_SCOPE.get(recipe.scope or "")
    if implied and allocation not in (None, implied):
        raise PruneError(
            f"--scope {recipe.scope} and --allocate {allocation} contradict each other", "leave one of them out"
        )
    if isinstance(pattern, Windows) and allocation not in (None, "uniform"):
        raise PruneError(f"the pattern {pattern.text} says how much of each layer goes", "leave --allocate out")
    return recipe
