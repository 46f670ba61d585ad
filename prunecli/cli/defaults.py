"""`[tool.prune]` in the nearest pyproject.toml: defaults of options.

Keys of `[tool.prune]` itself are for every command that has such an option, those of `[tool.prune.COMMAND]` for that
command, and win. The command line, and a recipe, win over both.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecli.cli.schema import schema_of
from prunecli.cli.settings import (
    Setting,
    Settings,
    blame,
    check_key,
    check_shape,
    given,
    resolved,
    runs_code,
    settings_in,
)
from prunecli.cli.terminal import say, terminal
from prunecli.errors import PruneError, did_you_mean
from prunecli.recipe.toml import Toml, read_toml

FILE = "pyproject.toml"
_ISOLATED = "`prune --isolated` ignores that file"


@dataclass(frozen=True)
class Defaults:
    """`general`: for every command; `own`: by command."""

    general: Settings = field(default_factory=dict)
    own: dict[str, Settings] = field(default_factory=dict)

    def of(self, command: str) -> Settings:
        """Those that apply to a command, by key. `false` leaves a default out.

        Raises:
            PruneError: one has a form that the option does not take.
        """
        schema = schema_of(command)
        merged = {**self.general, **self.own.get(command, {})}
        found = {key: setting for key, setting in merged.items() if key in schema}
        for key, setting in found.items():
            check_shape(setting, schema[key])
        return given(found)


def find_defaults(start: Path) -> Defaults:
    """The defaults of the nearest pyproject.toml, in `start` or above it; none if that has no [tool.prune].

    Raises:
        PruneError: it cannot be read, names an option that no command has, or data that would run code.
    """
    folder = start.absolute()
    for above in (folder, *folder.parents):
        if (above / FILE).is_file():
            return _read(Path(os.path.relpath(above)))
    return Defaults()


def _read(folder: Path) -> Defaults:
    toml = read_toml(folder / FILE, needle="prune")
    tool = toml.values.get("tool")
    table = tool.get("prune") if isinstance(tool, dict) else None
    if not isinstance(table, dict):
        return Defaults()
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    rest = {key: value for key, value in table.items() if key not in tables}
    general = settings_in(toml, ("tool", "prune"), rest, folder)
    own = {name: _own(toml, name, values, folder) for name, values in tables.items()}
    for setting in general.values():
        _check_general(toml, setting)
    return Defaults(general, own)


def _own(toml: Toml, name: str, table: dict[str, Any], folder: Path) -> Settings:
    from prunecli.cli.commands import COMMANDS

    if name not in COMMANDS:
        place = toml.place("tool", "prune", name)
        raise PruneError(f"{place}: no such command: {name}", did_you_mean(name, COMMANDS, _ISOLATED))
    settings = settings_in(toml, ("tool", "prune", name), table, folder)
    for key, setting in settings.items():
        slot = check_key(setting, schema_of(name), name, toml.place("tool", "prune", name, key))
        _check_harmless(setting, slot.argument, slot.role)
    return settings


def _check_general(toml: Toml, setting: Setting) -> None:
    from prunecli.cli.commands import COMMANDS

    slots = [schema_of(name)[setting.key] for name in COMMANDS if setting.key in schema_of(name)]
    if not slots:
        known = {key for name in COMMANDS for key in schema_of(name)} | set(COMMANDS)
        place = toml.place("tool", "prune", setting.key)
        raise PruneError(f"{place}: no command has an option {setting.key!r}",
                         did_you_mean(setting.key, known, "`prune COMMAND --help` lists the options"))  # fmt: skip
    _check_harmless(setting, all(slot.argument for slot in slots), slots[0].role)


def _check_harmless(setting: Setting, argument: bool, role: str) -> None:
    """A folder's file must not choose the model, nor run code, behind the back of who types a command there."""
    if argument:
        raise setting.error("is an argument, which has no default", "give it on the command line or in a recipe")
    if role == "data" and any(runs_code(text, setting.folder) for text in setting.texts):
        raise setting.error("data that runs code cannot be a default", "give it on the command line or in a recipe")


@dataclass(frozen=True)
class Used:
    """The defaults that one command line falls back on, by the parameter's name. `files`: which of them decide what is
    written where."""

    settings: dict[str, Setting]
    files: frozenset[str] = frozenset()

    @classmethod
    def on(cls, command: str, raw: dict[str, Any]) -> Used:
        """`raw`: what the command line itself gives, by the parameter's name."""
        if (defaults := find_defaults(Path())) == Defaults():  # the usual case, which should cost nothing
            return cls({})
        schema, found = schema_of(command), defaults.of(command)
        files = {slot.name for key, slot in schema.items() if key == "force" or slot.role == "path"}
        settings = {schema[key].name: setting for key, setting in found.items() if schema[key].name not in raw}
        return cls(settings, frozenset(files & settings.keys()))

    def default_map(self, command: str) -> dict[str, Any]:
        """As Typer takes defaults from outside: flags as truth, all else as text."""
        slots = {slot.name: slot for slot in schema_of(command).values()} if self.settings else {}
        texts = {n: [resolved(t, slots[n], s.folder) for t in s.texts] for n, s in self.settings.items()}
        return {name: slots[name].value(words) for name, words in texts.items()}

    def placed(self, error: Any) -> PruneError | None:
        """Typer's error about a value, with the value's place if it is a default."""
        setting = self.settings.get(getattr(error.param, "name", None) or "")
        return setting.error(error.message, f"correct it there; {_ISOLATED}") if setting else None

    def tell(self) -> None:
        """Say which values are not the command line's: with --verbose all; always where a file above the working
        folder, which nobody may have in mind, decides what is written where, or over what."""
        for name, setting in self.settings.items():
            if terminal.verbose or (name in self.files and setting.folder != Path()):
                say("note", f"{setting.key} = {', '.join(setting.texts)} (from {setting.place})")

    def explain(self, error: PruneError) -> None:
        """Add to an error about options where the one it names comes from, if that is a default."""
        place = blame(error.message, error.hint, self.settings.values()) if error.exit_code == 2 else None
        if place is not None:
            error.hint = f"{error.hint}; a default is from {place}, and {_ISOLATED}".removeprefix("; ")
