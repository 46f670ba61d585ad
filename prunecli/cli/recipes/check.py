"""Whether every step would start: its command line is parsed and its options are built, and there it ends."""

from __future__ import annotations

from typing import Any

import typer

from prunecli.cli.progress import WorkBegins, checking
from prunecli.cli.recipes.plan import PlannedStep, RecipePlan
from prunecli.cli.schema import schema_of
from prunecli.cli.settings import Setting, blame
from prunecli.cli.terminal import terminal
from prunecli.errors import PruneError


def check(plan: RecipePlan) -> None:
    """Check all steps. No model and no data is opened, and no code of the user's is run.

    Raises:
        PruneError: the first mistake, with its place.
    """
    for planned in plan.steps:
        with checking():
            try:
                invoke(planned)
            except WorkBegins:
                pass
            except PruneError as error:
                raise placed(error, planned) from error


def invoke(planned: PlannedStep) -> None:
    """Run the step's command line.

    Raises:
        PruneError: its own, or that a value is not what the option takes, with its place.
    """
    command, isolated = planned.command, terminal.isolated
    try:
        context = command.make_context(planned.step.command, list(planned.words))
    except typer.BadParameter as error:
        raise _bad_value(error, planned) from error
    finally:
        terminal.isolated = isolated  # a step is, this process need not be
    with context:
        command.invoke(context)


def _bad_value(error: Any, planned: PlannedStep) -> PruneError:
    name, step = getattr(error.param, "name", None), planned.step
    slot = next((slot for slot in schema_of(step.command).values() if slot.name == name), None)
    cause = error.__cause__.hint if isinstance(error.__cause__, PruneError) else ""
    hint = cause or f"`prune {step.command} --help` explains the options"
    if slot is None or slot.key not in step.settings:
        missing = f"{step.title} needs {slot.key}" if slot else error.format_message()
        return PruneError(f"{step.place}: {missing}", hint)
    return step.settings[slot.key].error(error.message.rstrip("."), hint)


def placed(error: PruneError, planned: PlannedStep) -> PruneError:
    """The error with the place of the option it speaks of, or else of the step."""
    settings: list[Setting] = list(planned.step.settings.values())
    if any(error.message.startswith(f"{setting.place}: ") for setting in settings):
        return error
    place = blame(error.message, error.hint, settings) or planned.step.place
    error.args = (f"{place}: {planned.step.title}: {error.message}",)
    error.message = error.args[0]
    return error
