"""What running a recipe, or planning it, gave: for JSON and for reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from prunecli.errors import GateFailed, PruneError
from prunecli.recipe.toml import Place
from prunecli.report.contract import envelope
from prunecli.report.document import Cell, Column, Document, Level, Section, Table, Text
from prunecli.report.result import Reported
from prunecli.report.sections import headline
from prunecli.types import Json

Status = Literal["planned", "done", "failed", "not run"]


@dataclass(frozen=True)
class Value:
    """An option of a step as it is written, with its place."""

    key: str
    text: str
    place: Place


@dataclass(frozen=True)
class GateLine:
    """One gate of a step and where it is written. `reason`: why there is no value."""

    expr: str
    value: float | None
    passed: bool
    place: Place
    reason: str = ""


@dataclass(frozen=True)
class NamedStep:
    """A step of a recipe and the place where it begins."""

    name: str
    command: str
    place: Place

    @property
    def title(self) -> str:
        return self.name if self.name == self.command else f"{self.name} ({self.command})"


@dataclass(frozen=True)
class StepRun(NamedStep):
    """A step, planned or run. `reads`: the model that it works on, as the recipe calls it. `writes`: the model that it
    writes, "temporary", or None. `result`: of its command; a command may report and then fail."""

    values: Sequence[Value]
    reads: str
    writes: str | None
    status: Status = "planned"
    seconds: float = 0.0
    result: Reported | None = None
    gates: Sequence[GateLine] = ()
    error: str = ""


@dataclass(frozen=True)
class RunResult(Reported):
    """All steps of a recipe. With `dry_run` none was run."""

    path: str
    sha256: str
    steps: Sequence[StepRun]
    dry_run: bool = False
    seconds: float = 0.0
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether every step was done and every gate passed."""
        return all(step.status == "done" for step in self.steps)

    def to_json(self) -> Json:
        return {
            **envelope("run", self.seconds),
            "recipe": {"path": self.path, "sha256": self.sha256},
            "dry_run": self.dry_run,
            "passed": None if self.dry_run else self.passed,
            "steps": [_step_json(step) for step in self.steps],
            "gates": [{"step": step.name, **_gate_json(gate)} for step in self.steps for gate in step.gates],
            "notes": list(self.notes),
        }

    def to_document(self) -> Document:
        title = f"{'Plan of' if self.dry_run else 'Recipe'} {self.path}"
        sections: list[Section] = [*self._verdict(), self._overview(), *map(Text, self.notes)]
        for step in self.steps:
            sections += _step_sections(step)
        return Document(title, sections)

    def _overview(self) -> Table:
        columns = [Column("step"), Column("works on"), Column("writes"), Column("line", "count", drop=1)]
        rows: list[list[Cell]] = [[step.title, step.reads, step.writes, step.place.line] for step in self.steps]
        if not self.dry_run:
            columns += [Column("status"), Column("seconds", "number")]
            rows = [[*row, step.status, round(step.seconds, 1)] for row, step in zip(rows, self.steps, strict=True)]
        return Table("Steps", columns, rows, level=Level.NORMAL)

    def _verdict(self) -> list[Section]:
        if self.dry_run:
            return [headline("Nothing was run: the recipe is in order, as far as can be told without its models.")]
        gates = [gate for step in self.steps for gate in step.gates]
        errors: list[Section] = [headline(step.error, "warning") for step in self.steps if step.error]
        if self.passed and gates:
            return [headline(f"All {len(gates)} gates passed." if len(gates) > 1 else "The gate passed.", "good")]
        return errors or [headline(f"{len(self.steps)} step{'s' * (len(self.steps) != 1)} done.", "good")]


class StepFailed(PruneError):  # noqa: N818 - one of its kind is a gate, see below
    """A step of a recipe failed. `result`: what was done until then, that step included."""

    def __init__(self, error: PruneError, result: RunResult) -> None:
        super().__init__(error.message, error.hint)
        self.result = result


class StepGateFailed(StepFailed, GateFailed):
    """A gate of a step failed, or a goal was not reached. Exit code 1."""

    exit_code = 1


class StepInterrupted(StepFailed):
    """Ctrl-C in the middle of a step. Exit code 130, as a shell has it."""

    exit_code = 130


def _step_json(step: StepRun) -> Json:
    return {
        "name": step.name,
        "command": step.command,
        "line": step.place.line,
        "status": step.status,
        "seconds": round(step.seconds, 3),
        "options": {v.key: {"value": v.text, "from": str(v.place)} for v in step.values},
        "reads": step.reads,
        "writes": step.writes,
        "error": step.error or None,
        "result": None if step.result is None else step.result.to_json(),
    }


def _gate_json(gate: GateLine) -> Json:
    return {"expr": gate.expr, "value": gate.value, "passed": gate.passed, "from": str(gate.place)}


def _step_sections(step: StepRun) -> list[Section]:
    """Return a table of the step's options and the sections of its command's report, all titled by the step's name."""
    columns = (Column("option"), Column("value"), Column("from"))
    rows = [[value.key, value.text, str(value.place)] for value in step.values]
    sections: list[Section] = [Table(f"Step {step.title}", columns, rows)]
    if step.result is not None:
        sections += [_under(step.name, section) for section in step.result.to_document().sections]
    return sections


def _under(name: str, section: Section) -> Section:
    """A section of a step's report, a level further down."""
    level = Level(min(section.level + 1, Level.DETAIL))
    if isinstance(section, Text):
        return replace(section, body=f"{name}: {section.body}", level=level)
    return replace(section, title=f"{name}: {section.title}" if section.title else "", level=level)
