"""Run a recipe, check it, or only plan it: what `prune run` and `prunecli.run` do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from prunecli.cli.commands import schema_of
from prunecli.cli.output import collected, draws, emit
from prunecli.cli.recipes.plan import CommandNamed, PlannedStep, RecipePlan, plan
from prunecli.cli.recipes.read import Change, RunRecipe, changes_of, read_recipe
from prunecli.cli.settings import Defaults, Setting, find_defaults, place_of_error, resolved
from prunecli.cli.terminal import WorkBegins, checking, explain, interrupted, say, terminal
from prunecli.errors import GateFailed, InvalidValue, PruneError
from prunecli.files import Scratch
from prunecli.recipe.options import RunOptions
from prunecli.recipe.result import (
    GateLine,
    RunResult,
    StepFailed,
    StepGateFailed,
    StepInterrupted,
    StepRun,
    Value,
)
from prunecli.report.result import ModelResult, Reported

Tell = Callable[[str], None]
FAILURES: dict[int, type[StepFailed]] = {1: StepGateFailed, 130: StepInterrupted}
"""What a failed step raises, by its exit code."""


class Interrupted(PruneError):  # noqa: N818 - the user's wish
    """Ctrl-C while a step runs, kept as its error until the report is made."""

    exit_code = 130


@contextmanager
def planned_recipe(
    path: Path, changes: tuple[Change, ...], isolated: bool, command_named: CommandNamed
) -> Iterator[RecipePlan]:
    """Read, plan and check a recipe. Temporary outputs lie in a folder that is removed at the end of the block."""
    recipe = read_recipe(path, Defaults() if isolated else find_defaults(path.parent), changes)
    with Scratch() as scratch:
        found = plan(recipe, scratch, command_named)
        check(found)
        yield found


def carry_out(found: RecipePlan, tell: Tell = lambda text: None, drawn: bool = False) -> RunResult:
    """Run the steps in their order, up to the first that fails. `tell` gets a line before each. `drawn`: the report has
    charts, whose values the steps must measure."""
    start = time.perf_counter()
    waiting = [replace(_planned(found.recipe, planned), status="not run") for planned in found.steps]
    done: list[StepRun] = []
    for at, planned in enumerate(found.steps):
        tell(f"step {at + 1} of {len(found.steps)}: {planned.step.title}")
        run, error = _carry_out(planned, waiting[at], drawn)
        done.append(run)
        if error is not None:
            result = _result(found.recipe, [*done, *waiting[at + 1 :]], start)
            raise FAILURES.get(error.exit_code, StepFailed)(error, result) from error
    return _result(found.recipe, done, start)


def planned_result(found: RecipePlan) -> RunResult:
    """Return the plan as a result, for --dry-run."""
    steps = [_planned(found.recipe, planned) for planned in found.steps]
    return RunResult(str(found.recipe.path), found.recipe.sha256, steps, dry_run=True)


def _result(recipe: RunRecipe, steps: list[StepRun], start: float) -> RunResult:
    return RunResult(str(recipe.path), recipe.sha256, steps, seconds=time.perf_counter() - start)


def _carry_out(planned: PlannedStep, waiting: StepRun, drawn: bool) -> tuple[StepRun, PruneError | None]:
    start, error = time.perf_counter(), None
    with collected(drawn) as results:
        try:
            invoke(planned)
        except (Exception, KeyboardInterrupt) as raised:
            error = _as_prune_error(raised, planned)
    result: Reported | None = results[-1] if results else None
    if isinstance(result, ModelResult) and result.unchanged and planned.output is not None:
        _pass_on(Path(result.model.path), planned.output)
    gates = [] if result is None else _gates(planned, result)
    if error is not None:
        error = _named(error, planned, gates)
    run = replace(
        waiting, status="failed" if error else "done", seconds=time.perf_counter() - start, result=result, gates=gates,
        error=error.message if error else "",
    )  # fmt: skip
    return run, error


def _pass_on(model: Path, target: Path) -> None:
    """Let later steps read the input of a step that changed nothing."""
    from prunecli.model import load, save

    save(load(model), target)


def _as_prune_error(raised: Exception | KeyboardInterrupt, planned: PlannedStep) -> PruneError:
    if isinstance(raised, KeyboardInterrupt):
        return Interrupted(*interrupted())
    if isinstance(raised, PruneError):
        return raised
    message, hint, _ = explain(raised, f"prune {planned.step.command}")
    error = PruneError(message, hint)
    error.__cause__ = raised
    return error


def _gates(planned: PlannedStep, result: Reported) -> list[GateLine]:
    """Return the gates of the command's result, each with the place where it is written."""
    setting = planned.step.settings.get("fail-if")
    found = result.to_json().get("gates", [])
    if setting is None or not found:
        return []
    items = setting.items or (setting.place,) * len(setting.texts)
    places = dict(zip(map(str.strip, setting.texts), items, strict=True))
    return [
        GateLine(
            g["expr"], g["value"], g["passed"],
            place=places.get(g["expr"], setting.place), reason=g.get("reason", ""),
        )
        for g in found
    ]  # fmt: skip


def _named(error: PruneError, planned: PlannedStep, gates: list[GateLine]) -> PruneError:
    failed = [gate for gate in gates if not gate.passed]
    if not isinstance(error, GateFailed) or not failed:
        return placed(error, planned)
    first, *rest = [f"{gate.expr} ({gate.reason or f'it is {gate.value:.6g}'})" for gate in failed]
    others = "".join(f"; {gate.place}: {text}" for gate, text in zip(failed[1:], rest, strict=True))
    return GateFailed(f"{failed[0].place}: {planned.step.title}: gate failed: {first}{others}", error.hint)


def _planned(recipe: RunRecipe, planned: PlannedStep) -> StepRun:
    step, settings = planned.step, planned.step.settings
    values = [Value(setting.key, ", ".join(setting.texts), setting.place) for setting in settings.values()]
    models = [_model(recipe, planned, key) for key in settings if key in planned.sources or key in ("model", "a", "b")]
    writes = {"kept": str(planned.output), "default": "beside the model", "temporary": "temporary", "none": None}
    return StepRun(
        step.name, step.command, step.place, values=values, reads=", ".join(models), writes=writes[planned.output_kind]
    )


def _model(recipe: RunRecipe, planned: PlannedStep, key: str) -> str:
    """Return the file or the name of the step that a setting refers to."""
    source = planned.sources.get(key)
    if source is None:
        return planned.step.settings[key].texts[0]
    return recipe.steps[source].name if source >= 0 else str(recipe.model.value if recipe.model else "")


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
    except InvalidValue as error:
        raise planned.step.settings[error.option].invalid(error) from error
    except typer.BadParameter as error:
        raise _missing(error, planned) from error
    finally:
        terminal.isolated = isolated  # a step is, this process need not be
    with context:
        command.invoke(context)


def _missing(error: Any, planned: PlannedStep) -> PruneError:
    step = planned.step
    key = next(slot.key for slot in schema_of(step.command).values() if slot.name == error.param.name)
    return PruneError(f"{step.place}: {step.title} needs {key}", f"`prune {step.command} --help` explains the options")


def placed(error: PruneError, planned: PlannedStep) -> PruneError:
    """Add to an error the place of the option that it names, or of the step."""
    settings: list[Setting] = list(planned.step.settings.values())
    if any(error.message.startswith(f"{place}: ") for setting in settings for place in (setting.place, *setting.items)):
        return error
    place = place_of_error(error.message, error.hint, settings) or planned.step.place
    error.args = (f"{place}: {planned.step.title}: {error.message}",)
    error.message = error.args[0]
    return error


def run_recipe(ctx: typer.Context, recipe: Path, options: RunOptions, command_named: CommandNamed) -> None:
    """Run, or with --dry-run only check, the recipe, and report on it.

    Raises:
        StepFailed: a step failed; the report is out by then.
        PruneError: the recipe has a mistake.
    """
    with planned_recipe(recipe, changes_of(options.changes), terminal.isolated, command_named=command_named) as plan:
        shown = _from_recipe(ctx, plan)
        format = str(shown.get("format", options.format))
        reports = tuple(map(Path, shown["report"])) if "report" in shown else options.report
        if options.dry_run:
            emit(planned_result(plan), format, reports)
            return
        try:
            result = carry_out(plan, lambda text: say("note", text), draws(reports))
        except StepFailed as failed:
            emit(failed.result, format, reports)
            raise
    emit(result, format, reports)


def _from_recipe(ctx: typer.Context, plan: RecipePlan) -> dict[str, Any]:
    """Return the recipe's settings of the report that the command line does not give."""
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
        except InvalidValue as error:
            raise setting.invalid(error) from error
    return found
