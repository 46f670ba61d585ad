"""The options of `prune run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from prunecli.options.declare import OUTPUT, Option
from prunecli.options.groups import Reporting


@dataclass(frozen=True, kw_only=True)
class RunOptions(Reporting):
    """Run a whole experiment that is written down in one file: steps, data, gates.

    A step is any command with its options. It is all checked before anything runs, and a mistake is named with its
    line; --dry-run stops there. A gate (fail-if) that fails ends the run with exit code 1. Paths are relative to the
    recipe. `prune COMMAND ... --print-recipe` writes a recipe to start from.
    """

    changes: Annotated[
        tuple[str, ...],
        Option(
            "override the recipe, for one step or all that have the option; repeatable",
            metavar="[STEP.]OPTION=VALUE",
            name="set",
        ),
    ] = ()
    dry_run: Annotated[bool, Option("the whole plan and report, nothing written", OUTPUT)] = False
