"""`prune run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from prunecli.cli.terminal import say, terminal

if TYPE_CHECKING:
    from prunecli.cli.recipes.plan import CommandNamed, RecipePlan
    from prunecli.cli.recipes.read import Change
    from prunecli.recipe.options import RunOptions


def run(ctx: typer.Context, recipe: Path, options: RunOptions, command_named: CommandNamed) -> None:
    """Run, or with --dry-run only check, the recipe, and report on it.

    Raises:
        StepFailed: a step failed; the report is out by then.
        PruneError: the recipe has a mistake.
    """
    from prunecli.cli.output import draws, emit
    from prunecli.cli.recipes.carry_out import carry_out, planned_result, settled
    from prunecli.recipe.result import StepFailed

    with settled(recipe, changes_of(options.changes), terminal.isolated, command_named) as plan:
        shown = _from_recipe(ctx, plan)
        format = str(shown.get("format", options.format))
        report = Path(shown["report"]) if "report" in shown else options.report
        if options.dry_run:
            emit(planned_result(plan), format, report)
            return
        try:
            result = carry_out(plan, lambda text: say("note", text), draws(report))
        except StepFailed as failed:
            emit(failed.result, format, report)
            raise
    emit(result, format, report)


def changes_of(texts: Sequence[str]) -> tuple[Change, ...]:
    """What --set says.

    Raises:
        PruneError: it is not [STEP.]OPTION=VALUE.
    """
    from prunecli.cli.recipes.read import Change
    from prunecli.errors import PruneError
    from prunecli.recipe.toml import value_of

    found = []
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise PruneError(f"--set {text!r} is not [STEP.]OPTION=VALUE", "write for example --set half.macs=0.4")
        found.append(Change.of(name.strip(), value_of(value)))
    return tuple(found)


def _from_recipe(ctx: typer.Context, plan: RecipePlan) -> dict[str, Any]:
    """What the recipe says of the report, where this command line does not."""
    from prunecli.cli.schema import schema_of
    from prunecli.cli.settings import resolved

    found = {}
    for key, setting in plan.recipe.shown.items():
        slot = schema_of("run")[key]
        source = ctx.get_parameter_source(slot.name)
        if source is not None and source.name == "COMMANDLINE":
            continue
        param = next(param for param in ctx.command.params if param.name == slot.name)
        texts = [resolved(text, slot, setting.folder) for text in setting.texts]
        try:
            found[key] = param.process_value(ctx, slot.value(texts))
        except typer.BadParameter as error:
            raise setting.error(error.message, "`prune run --help` explains it") from error
    return found
