"""What a recipe and `[tool.prune]` may say of a command: read off the class of its options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from prunecli.cli.commands import entry_of, parameter_name
from prunecli.options import Declared
from prunecli.options.declare import declared_of

GLOBAL = {"help", "version", "quiet", "verbose", "color", "isolated", "print_recipe"}
"""Options about the terminal and about this command line, which no file can set."""
Shape = Literal["flag", "one", "many"]
Role = Literal["model", "data", "path", "other"]
_ROLES: dict[str, Role] = {"ORIGINAL": "model", "D": "data", "PATH": "path", "DIR": "path", "FILE": "path"}
"""What a metavar, or one of its alternatives as in `sorted|numbers|FILE`, tells of a text."""


@dataclass(frozen=True)
class Slot:
    """One parameter. `key`: its long option without the dashes, or an argument's name in the usage line.

    `role`: `model` and `data` may name something in the recipe; they and `path` are relative to where they are written,
    but for `literals`, texts that mean something of their own. `display`: what stdout carries, which in a recipe is of
    the whole run.
    """

    key: str
    name: str
    shape: Shape
    role: Role
    argument: bool
    numeric: bool
    literals: frozenset[str]
    display: bool

    def value(self, texts: list[str]) -> bool | str | list[str]:
        """As Typer takes it before conversion."""
        return True if self.shape == "flag" else texts if self.shape == "many" else texts[0]

    def words(self, texts: list[str]) -> list[str]:
        """What stands for it on a command line."""
        if self.argument:
            return texts
        return [f"--{self.key}"] if self.shape == "flag" else [f"--{self.key}={text}" for text in texts]


Schema = dict[str, Slot]


@cache
def schema_of(command: str) -> Schema:
    """The slots of a command, by key, in the order of its help.

    Raises:
        PruneError: there is no such command.
    """
    entry = entry_of(command)
    arguments = [
        Slot(shown.lower(), name, "one", "model", True, False, frozenset(), False) for name, shown, _ in entry.arguments
    ]
    slots = [*arguments, *map(_slot, declared_of(entry.options_class))]
    return {slot.key: slot for slot in slots}


def _slot(declared: Declared) -> Slot:
    flag, alternatives = declared.kind is bool, declared.metavar.split("|")
    texts = declared.kind in (str, object) and declared.option.read is None and not declared.choices
    told = [_ROLES[word] for word in alternatives if word in _ROLES] if texts or declared.kind is Path else []
    key = declared.name
    return Slot(
        key=key,
        name=parameter_name(declared),
        shape="flag" if flag else "many" if declared.many else "one",
        role=told[0] if told else "path" if declared.kind is Path else "other",
        argument=False,
        numeric=declared.kind in (int, float) or declared.option.read is not None,
        literals=frozenset(word for word in alternatives if not word.isupper()),
        display=key == "no-progress" or (key == "format" and not declared.many),
    )
