"""`--print-recipe`: a command line, or a recipe with all defaults, as the text of a recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.cli.commands import Role, Slot, schema_of
from prunecli.cli.recipes.plan import CommandNamed
from prunecli.cli.recipes.read import RESERVED, changes_of
from prunecli.cli.recipes.run import planned_recipe
from prunecli.cli.settings import Setting, resolve, resolved
from prunecli.cli.terminal import terminal
from prunecli.recipe.toml import number_or_text, toml_text
from prunecli.report.render_cells import one_line

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_WHERE = "# Run it with `prune run FILE`. Paths are relative to the folder that FILE is in: save it in this one."


@dataclass(frozen=True)
class Line:
    """One `key = value`; `note` says where the value is from, if not from the command line."""

    key: str
    value: Any
    note: str = ""

    def __str__(self) -> str:
        key = self.key if _BARE.fullmatch(self.key) else toml_text(self.key)
        return f"{key} = {toml_text(self.value)}" + (f"  # {one_line(self.note)}" if self.note else "")


Block = tuple[str, str, list[Line]]
"""Command, name and settings of a step."""


def command_line_text(
    command: str,
    args: list[str],
    raw: Mapping[str, Any],
    defaults: Mapping[str, Setting],
    params: Mapping[str, Any],
    command_named: CommandNamed,
) -> str:
    """Return a command line as a recipe of one step. For `run`, return its recipe with all defaults and changes
    applied.

    `raw`: what the command line gives, `defaults`: what it falls back on, by the parameter's name.
    """
    head = [f"# prune {one_line(shlex.join([command, *(word for word in args if word != '--print-recipe')]))}", _WHERE]
    if command == "run":
        return _text(head, *_of_recipe(Path(params["recipe"]), params["set_"] or [], command_named))
    schema = schema_of(command)
    lines = [line for slot in schema.values() if (line := _line(slot, raw, defaults)) is not None]
    before = {line.key for line in lines if line.key == "model" or schema[line.key].display}
    top, own = ([line for line in lines if (line.key in before) is first] for first in (True, False))
    return _text(head, top, [], steps=[(command, "", own)])


def _line(slot: Slot, raw: Mapping[str, Any], defaults: Mapping[str, Setting]) -> Line | None:
    if slot.name in raw:
        return Line(slot.key, _value(slot, raw[slot.name]))
    if slot.name not in defaults:
        return None
    setting = defaults[slot.name]
    texts = [resolved(text, slot, setting.folder) for text in setting.texts]
    return Line(slot.key, _value(slot, slot.value(texts)), f"from {setting.place}")


def _value(slot: Slot, given: Any) -> Any:
    """Return the value for TOML: a number where the option takes one; `./previous` for a file with the name of a
    reference."""
    if isinstance(given, list):
        return [_value(slot, text) for text in given]
    if slot.role == "model" and given in RESERVED:
        return f"./{given}"
    return number_or_text(given) if slot.numeric and isinstance(given, str) else given


def _of_recipe(
    path: Path, texts: Sequence[str], command_named: CommandNamed
) -> tuple[list[Line], list[Line], list[Block]]:
    """Return the lines before the tables, those of [data], and command, name and lines of every step."""
    with planned_recipe(path, changes_of(texts), terminal.isolated, command_named=command_named) as plan:
        recipe = plan.recipe
        model = [] if recipe.model is None else [Line("model", _resolve(recipe.model, "model"))]
        top = [*model, *(_moved(setting, schema_of("run")[key], []) for key, setting in recipe.shown.items())]
        data = [Line(setting.key, _resolve(setting, "data")) for setting in recipe.data.values()]
        names = {"model": [*RESERVED, *(step.name for step in recipe.steps)], "data": list(recipe.data)}
        steps = []
        for step in (planned.step for planned in plan.steps):
            slots = [(schema_of(step.command)[key], setting) for key, setting in step.settings.items()]
            lines = [_moved(setting, slot, names.get(slot.role, [])) for slot, setting in slots]
            steps.append((step.command, step.name, lines))
        return top, data, steps


def _resolve(setting: Setting, role: Role) -> str:
    return resolve(setting.texts[0], role, setting.folder)


def _moved(setting: Setting, slot: Slot, names: list[str]) -> Line:
    """Return a setting with paths relative to this folder. Names of steps and data of the recipe stay."""

    def moved(value: Any) -> Any:
        return resolved(value, slot, setting.folder) if isinstance(value, str) and value not in names else value

    many = isinstance(setting.value, list)
    return Line(setting.key, [moved(value) for value in setting.value] if many else moved(setting.value))


def _text(head: Iterable[str], top: list[Line], data: list[Line], steps: Iterable[Block]) -> str:
    blocks = [list(head)]
    if top:
        blocks.append([str(line) for line in top])
    if data:
        blocks.append(["[data]", *map(str, data)])
    for command, name, lines in steps:
        named = [f"name = {toml_text(name)}"] if name and name != command else []
        blocks.append(["[[step]]", f"command = {toml_text(command)}", *named, *map(str, lines)])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"
