"""Recipes as a function of the library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecli.cli.app import command_named
from prunecli.cli.recipes.read import Change
from prunecli.cli.recipes.run import carry_out, planned_recipe, planned_result
from prunecli.errors import keywords
from prunecli.recipe.result import RunResult


@keywords
def run(
    recipe: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    changes: Mapping[str, Any] | None = None,
    isolated: bool = False,
) -> RunResult:
    """Run a recipe file, as `prune run` does, and return what its steps reported.

    Args:
        dry_run: check it and return its plan; no model and no data is opened.
        changes: `{"STEP.OPTION": value}` for one step, `{"OPTION": value}` for all that have it, or for `model`;
            paths in them are relative to the current folder.
        isolated: ignore `[tool.prune]` in pyproject.toml.

    Raises:
        StepGateFailed: a gate failed; its `result` has the steps that were done.
        StepFailed: a step refused its input; likewise. StepInterrupted: by Ctrl-C.
        PruneError: the recipe has a mistake, named with its line; nothing was run.
    """
    made = tuple(Change.of(name, value) for name, value in (changes or {}).items())
    with planned_recipe(Path(recipe), made, isolated, command_named=command_named) as found:
        return planned_result(found) if dry_run else carry_out(found)
