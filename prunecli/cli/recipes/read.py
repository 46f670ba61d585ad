"""Read a recipe file: steps with their effective settings, every name checked against the commands' options."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunecli.cli.commands import Schema, Slot, schema_of
from prunecli.cli.settings import (
    Defaults,
    Setting,
    Settings,
    check_key,
    check_shape,
    checked,
    given,
    of_use,
    settings_in,
)
from prunecli.errors import PruneError, did_you_mean
from prunecli.recipe.result import NamedStep
from prunecli.recipe.toml import Place, Toml, read_toml, value_of

TABLES = ("data", "defaults", "step")
OF_THE_RUN = ("report", "format", "no-progress")
"""Options of `prune run` itself that a recipe may give, before its first table."""
OWN_KEYS = ("command", "name")
RESERVED = ("previous", "original")
MAX_STEPS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_EXAMPLE = 'begin a step with [[step]] and command = "magnitude"'


@dataclass(frozen=True)
class RecipeStep(NamedStep):
    """A step. `settings`: those in effect, of the step, [defaults], pyproject.toml and --set. `place`: where it
    begins."""

    settings: Settings


@dataclass(frozen=True)
class RunRecipe:
    """A recipe. `model`: the file that `original` means. `data`: data by the names that steps use. `shown`: the
    settings of OF_THE_RUN."""

    path: Path
    sha256: str
    model: Setting | None
    data: Settings
    steps: tuple[RecipeStep, ...]
    shown: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One `--set STEP.OPTION=VALUE`, or OPTION=VALUE for the recipe's model and every step with such an option."""

    step: str | None
    setting: Setting

    @classmethod
    def of(cls, name: str, value: Any) -> Change:
        step, dot, key = name.rpartition(".")
        return cls(step if dot else None, checked(Setting(key, _plain(value), Place(f"--set {name}"))))


def changes_of(texts: Sequence[str]) -> tuple[Change, ...]:
    """Parse the texts of --set.

    Raises:
        PruneError: it is not [STEP.]OPTION=VALUE.
    """
    found = []
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise PruneError(f"--set {text!r} is not [STEP.]OPTION=VALUE", "write for example --set half.macs=0.4")
        found.append(Change.of(name.strip(), value_of(value)))
    return tuple(found)


def _plain(value: Any) -> Any:
    """Return a value of Python code as TOML has it: paths as texts, tuples as lists, numpy's numbers as Python's."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value


def read_recipe(path: Path, defaults: Defaults, changes: tuple[Change, ...] = ()) -> RunRecipe:
    """Read and check names and forms; `changes` win over the recipe, which wins over `defaults`.

    Raises:
        PruneError: with the place of the first mistake.
    """
    toml = read_toml(path)
    _check_top(toml)
    data = settings_in(toml, ("data",), _table(toml, "data"), folder=path.parent)
    for setting in data.values():
        if not isinstance(setting.value, str):
            raise setting.error("names data", 'write it as on the command line: "calib.npz"')
    steps = _steps(toml, path.parent, defaults, changes=changes)
    top = settings_in(toml, (), {k: v for k, v in toml.values.items() if k not in TABLES}, folder=path.parent)
    model = _changed(top.pop("model", None), changes)
    for key, setting in top.items():
        check_shape(setting, schema_of("run")[key])
    _check_changes(steps, changes)
    digest = hashlib.sha256(toml.text.encode()).hexdigest()
    return RunRecipe(path, digest, model, data=data, steps=steps, shown=given(top))


def _check_top(toml: Toml) -> None:
    for key in toml.values:
        if key not in ("model", *TABLES, *OF_THE_RUN):
            hint = did_you_mean(key, ("model", *TABLES, *OF_THE_RUN), "options of a step stand below its [[step]]")
            raise PruneError(f"{toml.place(key)}: a recipe has no {key!r}", hint)
    if not isinstance(toml.values.get("model", ""), str):
        raise PruneError(f"{toml.place('model', value=True)}: model: not a path", 'write model = "model.onnx"')


def _table(toml: Toml, key: str) -> dict[str, Any]:
    table = toml.values.get(key, {})
    if not isinstance(table, dict):
        raise PruneError(f"{toml.place(key)}: {key} is a table", f"write [{key}] above its lines")
    return table


def _steps(toml: Toml, folder: Path, defaults: Defaults, changes: tuple[Change, ...]) -> tuple[RecipeStep, ...]:
    tables = toml.values.get("step", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PruneError(f"{toml.place('step')}: steps are a list", "write [[step]], with two brackets")
    if not tables:
        raise PruneError(f"{toml.name} has no steps", _EXAMPLE)
    if len(tables) > MAX_STEPS:
        raise PruneError(f"{toml.place('step', MAX_STEPS)}: more than {MAX_STEPS} steps", "split the recipe up")
    heads = [_head(toml, at, table) for at, table in enumerate(tables)]
    common = _common(toml, {command for command, _ in heads}, folder)
    steps: list[RecipeStep] = []
    for at, (table, (command, name)) in enumerate(zip(tables, heads, strict=True)):
        name = name or _fresh(command, [step.name for step in steps] + [other for _, other in heads])
        if any(step.name == name for step in steps):
            raise PruneError(f"{toml.place('step', at, 'name', value=True)}: two steps are called {name}",
                             "give each a name of its own")  # fmt: skip
        own = _own(toml, at, table, command=command, folder=folder)
        fitting = {key: setting for key, setting in common.items() if key in schema_of(command)}
        merged = {**defaults.of(command), **fitting, **own, **_wanted(changes, name, command)}
        mine = {*defaults.own.get(command, ()), *own, *(c.setting.key for c in changes if c.step == name)}
        merged = of_use(command, merged, mine)
        in_order = {key: merged[key] for key in keys_of_steps({command}) if key in merged}
        steps.append(RecipeStep(name, command, toml.place("step", at), settings=given(in_order)))
    return tuple(steps)


def _head(toml: Toml, at: int, table: Mapping[str, Any]) -> tuple[str, str]:
    """Return command and name of a step; the name is empty where none is given."""
    from prunecli.cli.commands import COMMANDS

    command, name = table.get("command"), table.get("name", "")
    place = toml.place("step", at, "command", value=True)
    if not isinstance(command, str):
        raise PruneError(f"{place}: a step without a command", 'write command = "magnitude", or another')
    if command == "run":
        raise PruneError(f"{place}: a recipe cannot run recipes", "put its steps into this one")
    if command not in COMMANDS:
        raise PruneError(f"{place}: no such command: {command}", did_you_mean(command, COMMANDS, "see `prune --help`"))
    if name != "" and not (isinstance(name, str) and _NAME.fullmatch(name) and name not in RESERVED):
        place = toml.place("step", at, "name", value=True)
        raise PruneError(f"{place}: {name!r} cannot be a step's name",
                         f"use letters, digits, - and _; {' and '.join(RESERVED)} are taken")  # fmt: skip
    return command, str(name)


def keys_of_steps(commands: set[str]) -> Schema:
    """Return the slots that steps of these commands may fill: all but those of the whole run."""
    schemas = [schema_of(command) for command in sorted(commands)]
    return {key: slot for schema in schemas for key, slot in schema.items() if not slot.display}


def _fresh(command: str, taken: list[str]) -> str:
    """Return a name that is not taken: the command's, or that with a number (evaluate, evaluate-2, ...)."""
    names = [command, *(f"{command}-{n}" for n in range(2, MAX_STEPS + 2))]
    return next(name for name in names if name not in taken)


def _common(toml: Toml, commands: set[str], folder: Path) -> Settings:
    """Return the settings of [defaults], each of which must be an option of some step's command."""
    settings = settings_in(toml, ("defaults",), _table(toml, "defaults"), folder=folder)
    known = keys_of_steps(commands)
    for key, setting in settings.items():
        place = toml.place("defaults", key)
        if key not in known:
            hint = did_you_mean(key, known, f"steps here are of {', '.join(sorted(commands))}")
            raise PruneError(f"{place}: no step here has an option {key!r}", hint)
        check_shape(setting, known[key])
    return settings


def _own(toml: Toml, at: int, table: Mapping[str, Any], command: str, folder: Path) -> Settings:
    rest = {key: value for key, value in table.items() if key not in OWN_KEYS}
    settings = settings_in(toml, ("step", at), rest, folder=folder)
    for key, setting in settings.items():
        _check_option(setting, command, toml.place("step", at, key))
    return settings


def _check_option(setting: Setting, command: str, place: Place) -> Slot:
    asked = schema_of(command).get(setting.key)
    if asked is not None and asked.display:
        raise PruneError(f"{place}: {setting.key} is of the whole run", "write it before the first table")
    slot = check_key(setting, schema_of(command), command, key_place=place)
    check_shape(setting, slot)
    return slot


def _wanted(changes: tuple[Change, ...], name: str, command: str) -> Settings:
    """Return the settings that --set gives to a step. `--set model=...` changes the recipe's model, not the step's."""
    found: Settings = {}
    for change in changes:
        key = change.setting.key
        if change.step == name or (change.step is None and key != "model" and key in schema_of(command)):
            _check_option(change.setting, command, change.setting.place)
            found[key] = change.setting
    return found


def _changed(model: Setting | None, changes: tuple[Change, ...]) -> Setting | None:
    for change in changes:
        if change.step is None and change.setting.key == "model":
            model = replace(change.setting, value=str(change.setting.value))
    return model


def _check_changes(steps: tuple[RecipeStep, ...], changes: tuple[Change, ...]) -> None:
    names = [step.name for step in steps]
    for change in changes:
        place, key = change.setting.place, change.setting.key
        if change.step is not None and change.step not in names:
            raise PruneError(f"{place}: no step is called {change.step}",
                             did_you_mean(change.step, names, f"steps are {', '.join(names)}"))  # fmt: skip
        known = {"model", *keys_of_steps({step.command for step in steps})}
        if change.step is None and key not in known:
            raise PruneError(f"{place}: no step has an option {key!r}", did_you_mean(key, known, "see --dry-run"))
