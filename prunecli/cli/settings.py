"""Values given to options in files and by --set, each with the place where it was written; and the defaults that
`[tool.prune]` in the nearest pyproject.toml has.

Keys of `[tool.prune]` itself are for every command that has such an option, those of `[tool.prune.COMMAND]` for that
command, and win. The command line, and a recipe, win over both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecli.cli.commands import Role, Schema, Slot, entry_of, parameter_name, schema_of
from prunecli.cli.terminal import say, terminal
from prunecli.errors import InvalidValue, PruneError, did_you_mean
from prunecli.options.declare import declared_of
from prunecli.recipe.toml import Place, Toml, read_toml


@dataclass(frozen=True)
class Setting:
    """A value given to an option. `folder`: relative paths in it start there. `items`: where each item of a list is
    written."""

    key: str
    value: Any
    place: Place
    folder: Path = Path()
    items: tuple[Place, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Return the values as words of a command line."""
        values = self.value if isinstance(self.value, list) else [self.value]
        return [v if isinstance(v, str) else str(v).lower() if isinstance(v, bool) else repr(v) for v in values]

    def error(self, message: str, hint: str) -> PruneError:
        return PruneError(f"{self.place}: {self.key}: {message}", hint)

    def invalid(self, error: InvalidValue) -> PruneError:
        """Return the error with the place of the value that it is about, in place of the option's name."""
        return PruneError(f"{_item(error.reason, self) or self.place}: {self.key}: {error.reason}", error.hint)


Settings = dict[str, Setting]


def settings_in(toml: Toml, path: tuple[str | int, ...], table: Mapping[str, Any], folder: Path) -> Settings:
    """Return the settings of a table of the document; their names are not checked.

    Raises:
        PruneError: a value that no option could have: a table, a date, a list of lists.
    """
    return {key: _setting(toml, (*path, key), value, folder=folder) for key, value in table.items()}


def _setting(toml: Toml, path: tuple[str | int, ...], value: Any, folder: Path) -> Setting:
    place = toml.place(*path, value=True)
    items = tuple(toml.place(*path, at, value=True) for at in range(len(value))) if isinstance(value, list) else ()
    return checked(Setting(str(path[-1]), value, place, folder=folder, items=items))


def checked(setting: Setting) -> Setting:
    """Return the setting if some option could have its value.

    Raises:
        PruneError: it is not.
    """
    many = setting.value if isinstance(setting.value, list) else [setting.value]
    for item in many:
        if not isinstance(item, str | int | float) or (isinstance(item, bool) and isinstance(setting.value, list)):
            raise setting.error(
                "not a text, a number, true or false, or a list of texts or numbers",
                'write it as on the command line: 0.5, "50%", ["a", "b"]',
            )
    return setting


def check_key(setting: Setting, schema: Schema, owner: str, key_place: Place) -> Slot:
    """Return the slot of a setting.

    Raises:
        PruneError: there is none of that name.
    """
    if setting.key not in schema:
        hint = did_you_mean(setting.key, schema, f"`prune {owner} --help` lists its options")
        raise PruneError(f"{key_place}: {owner} has no option {setting.key!r}", hint)
    return schema[setting.key]


def check_shape(setting: Setting, slot: Slot) -> None:
    """Refuse a value of another form than the option takes. The command checks the value itself.

    Raises:
        PruneError: a flag that is not true or false, one value where a list is given, or the other way round.
    """
    truth = isinstance(setting.value, bool)
    if slot.shape == "flag" and not truth:
        raise setting.error("is a switch", f"write {setting.key} = true")
    if slot.shape != "flag" and truth and setting.value:
        raise setting.error("takes a value", f"write {setting.key} = ...; false leaves it out")
    if slot.shape == "one" and isinstance(setting.value, list):
        raise setting.error("takes one value, not a list", "leave out the brackets")


def given(settings: Settings) -> Settings:
    """Return the settings without those that are `false`, which count as not written."""
    return {key: setting for key, setting in settings.items() if setting.value is not False}


def of_use(command: str, found: Settings, own: Collection[str], raw: Collection[str] = ()) -> Settings:
    """Return the settings without those for every command or step that this one has no option for. `own`: keys of
    settings for it alone; `raw`: parameters that the command line gives."""
    schema, kind = schema_of(command), entry_of(command).options_class
    unused = kind.idle([*raw, *(schema[key].name for key in found)])
    idle = {parameter_name(declared) for declared in declared_of(kind) if declared.field in unused}
    return {key: setting for key, setting in found.items() if key in own or schema[key].name not in idle}


def resolve(text: str, role: Role, folder: Path) -> str:
    """Return a path relative to the working folder; texts that are not paths stay as they are."""
    if role == "other":
        return text
    if role == "code":
        *prefix, place = text.split(":", 1) if text.startswith("lower:") else (text,)
        return ":".join([*prefix, str(folder / place) if ".py:" in place else place])
    module, sign, function = text.rpartition(":")
    if role == "data" and sign and function.isidentifier() and not (folder / text).exists():
        return f"{folder / module}:{function}" if module.endswith(".py") else text
    return str(folder / text)


def resolved(text: str, slot: Slot, folder: Path) -> str:
    """Return the text that the command gets: a literal of the slot as it is, anything else as `resolve` returns it."""
    return text if text in slot.literals else resolve(text, slot.role, folder)


def runs_code(text: str, folder: Path) -> bool:
    """Whether the text names a function of the user: `loader.py:function` or `package.module:function`."""
    module, sign, function = text.rpartition(":")
    return bool(sign and module) and function.isidentifier() and not (folder / text).exists()


def place_of_error(message: str, hint: str, settings: Iterable[Setting]) -> Place | None:
    """Return the place of the setting that an error is about: the first option that message or hint name as --option,
    or the one value that the message quotes. Values in the hint are proposals, so they do not count."""
    by_key = {setting.key: setting for setting in settings}
    for key in re.findall(r"--([a-z][a-z0-9-]*)", f"{message} {hint}"):
        if key in by_key:
            return _item(message, by_key[key]) or by_key[key].place
    quoted = set(re.findall(r"'([^']+)'", message))
    found = [setting.place for setting in by_key.values() if quoted & set(setting.texts)]
    return found[0] if len(found) == 1 else None


def _item(message: str, setting: Setting) -> Place | None:
    """Return the place of the list item that the message quotes whole, or of the only one that shares a word with
    it."""
    words = {word for word in re.findall(r"[\w.]+", message) if len(word) > 3}
    items = list(zip(setting.items, setting.texts, strict=False))
    whole = [place for place, text in items if text in message]
    some = [place for place, text in items if any(word in text for word in words)]
    return whole[0] if whole else some[0] if len(some) == 1 else None


FILE = "pyproject.toml"
_ISOLATED = "`prune --isolated` ignores that file"


@dataclass(frozen=True)
class Defaults:
    """The defaults of a file. `general`: for every command; `own`: by command."""

    general: Settings = field(default_factory=dict)
    own: dict[str, Settings] = field(default_factory=dict)

    def of(self, command: str) -> Settings:
        """Return the defaults of a command by key. `false` removes a default.

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
    general = settings_in(toml, ("tool", "prune"), rest, folder=folder)
    own = {name: _own(toml, name, values, folder=folder) for name, values in tables.items()}
    for setting in general.values():
        _check_general(toml, setting)
    return Defaults(general, own)


def _own(toml: Toml, name: str, table: dict[str, Any], folder: Path) -> Settings:
    from prunecli.cli.commands import COMMANDS

    if name not in COMMANDS:
        place = toml.place("tool", "prune", name)
        raise PruneError(f"{place}: no such command: {name}", did_you_mean(name, COMMANDS, _ISOLATED))
    settings = settings_in(toml, ("tool", "prune", name), table, folder=folder)
    for key, setting in settings.items():
        slot = check_key(setting, schema_of(name), name, key_place=toml.place("tool", "prune", name, key))
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
    """Refuse defaults that choose the model or run code: the file may be of somebody else than who types the
    command."""
    if argument:
        raise setting.error("is an argument, which has no default", "give it on the command line or in a recipe")
    if role in ("data", "code") and any(runs_code(text, setting.folder) for text in setting.texts):
        what = "data" if role == "data" else "a metric"
        raise setting.error(f"{what} that runs code cannot be a default", "give it on the command line or in a recipe")


@dataclass(frozen=True)
class AppliedDefaults:
    """The defaults that a command line uses, by the parameter's name. `files`: those of them that decide what is
    written, and where."""

    settings: dict[str, Setting]
    files: frozenset[str] = frozenset()

    @classmethod
    def on(cls, command: str, raw: dict[str, Any]) -> AppliedDefaults:
        """Return the defaults of a command line. `raw`: the values that it gives itself, by the parameter's name."""
        if (defaults := find_defaults(Path())) == Defaults():  # the usual case, which should cost nothing
            return cls({})
        schema = schema_of(command)
        found = of_use(command, defaults.of(command), defaults.own.get(command, {}), raw=raw)
        files = {slot.name for key, slot in schema.items() if key == "force" or slot.role == "path"}
        settings = {schema[key].name: setting for key, setting in found.items() if schema[key].name not in raw}
        return cls(settings, frozenset(files & settings.keys()))

    def default_map(self, command: str) -> dict[str, Any]:
        """Return Typer's map of defaults: flags as True, all else as text."""
        slots = {slot.name: slot for slot in schema_of(command).values()} if self.settings else {}
        texts = {n: [resolved(t, slots[n], s.folder) for t in s.texts] for n, s in self.settings.items()}
        return {name: slots[name].value(words) for name, words in texts.items()}

    def placed(self, error: InvalidValue) -> PruneError | None:
        """Return an error about a value with the place of the value, if that is a default."""
        for setting in self.settings.values():
            if setting.key == error.option:
                found = setting.invalid(error)
                return PruneError(found.message, f"{found.hint}; {_ISOLATED}")
        return None

    def tell(self) -> None:
        """Print the defaults in use: all with --verbose; else those that decide what is written or replaced and stand
        in a file above the working folder, which a user may not think of."""
        for name, setting in self.settings.items():
            if terminal.verbose or (name in self.files and setting.folder != Path()):
                say("note", f"{setting.key} = {', '.join(setting.texts)} (from {setting.place})")

    def explain(self, error: PruneError) -> None:
        """Add to an error the place of the option that it names, if that is a default."""
        place = place_of_error(error.message, error.hint, self.settings.values()) if error.exit_code == 2 else None
        if place is not None:
            error.hint = f"{error.hint}; a default is from {place}, and {_ISOLATED}".removeprefix("; ")
