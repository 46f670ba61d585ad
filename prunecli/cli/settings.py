"""One value given to one option, with the place where it was written: in a recipe, in pyproject.toml, or by --set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.cli.schema import Role, Schema, Slot
from prunecli.errors import PruneError, did_you_mean
from prunecli.recipe.places import Place
from prunecli.recipe.toml import Toml


@dataclass(frozen=True)
class Setting:
    """`folder`: what relative paths in it are relative to. `items`: where each item of a list is written."""

    key: str
    value: Any
    place: Place
    folder: Path = Path()
    items: tuple[Place, ...] = ()

    @property
    def texts(self) -> list[str]:
        """As words of a command line."""
        values = self.value if isinstance(self.value, list) else [self.value]
        return [v if isinstance(v, str) else str(v).lower() if isinstance(v, bool) else repr(v) for v in values]

    def error(self, message: str, hint: str) -> PruneError:
        return PruneError(f"{self.place}: {self.key}: {message}", hint)


Settings = dict[str, Setting]


def settings_in(toml: Toml, path: tuple[str | int, ...], table: Mapping[str, Any], folder: Path) -> Settings:
    """The settings of a table of the document, without judging their names.

    Raises:
        PruneError: a value that no option could have: a table, a date, a list of lists.
    """
    return {key: _setting(toml, (*path, key), value, folder) for key, value in table.items()}


def _setting(toml: Toml, path: tuple[str | int, ...], value: Any, folder: Path) -> Setting:
    place = toml.place(*path, value=True)
    items = tuple(toml.place(*path, at, value=True) for at in range(len(value))) if isinstance(value, list) else ()
    return checked(Setting(str(path[-1]), value, place, folder, items))


def checked(setting: Setting) -> Setting:
    """The setting, if its value is one that some option could have.

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
    """The slot a setting is for.

    Raises:
        PruneError: there is none of that name.
    """
    if setting.key not in schema:
        hint = did_you_mean(setting.key, schema, f"`prune {owner} --help` lists its options")
        raise PruneError(f"{key_place}: {owner} has no option {setting.key!r}", hint)
    return schema[setting.key]


def check_shape(setting: Setting, slot: Slot) -> None:
    """Whether the value has the form that the option takes; what it says is for the command to judge.

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
    """Without those that are `false`: as if they had not been written anywhere."""
    return {key: setting for key, setting in settings.items() if setting.value is not False}


def resolve(text: str, role: Role, folder: Path) -> str:
    """A path as it is from here; texts that are not paths stay as they are."""
    if role == "other":
        return text
    module, sign, function = text.rpartition(":")
    if role == "data" and sign and function.isidentifier() and not (folder / text).exists():
        return f"{folder / module}:{function}" if module.endswith(".py") else text
    return str(folder / text)


def resolved(text: str, slot: Slot, folder: Path) -> str:
    """What the slot's command is given for a text: as it is if that means something of its own, else `resolve`."""
    return text if text in slot.literals else resolve(text, slot.role, folder)


def runs_code(text: str, folder: Path) -> bool:
    """Whether data is a function of the user's own: `loader.py:function` or `package.module:function`."""
    module, sign, function = text.rpartition(":")
    return bool(sign and module) and function.isidentifier() and not (folder / text).exists()


def blame(message: str, hint: str, settings: Iterable[Setting]) -> Place | None:
    """Where what an error speaks of was written: the first option it names as --option, or the value it quotes. The
    hint may name an option; what it proposes instead of a value is not what was written."""
    by_key = {setting.key: setting for setting in settings}
    for key in re.findall(r"--([a-z][a-z0-9-]*)", f"{message} {hint}"):
        if key in by_key:
            return _item(message, by_key[key]) or by_key[key].place
    quoted = set(re.findall(r"'([^']+)'", message))
    found = [setting.place for setting in by_key.values() if quoted & set(setting.texts)]
    return found[0] if len(found) == 1 else None


def _item(message: str, setting: Setting) -> Place | None:
    """Of a list, the item that the message quotes whole, or the only one that has a word of it."""
    words = {word for word in re.findall(r"[\w.]+", message) if len(word) > 3}
    items = list(zip(setting.items, setting.texts, strict=False))
    whole = [place for place, text in items if text in message]
    some = [place for place, text in items if any(word in text for word in words)]
    return whole[0] if whole else some[0] if len(some) == 1 else None
