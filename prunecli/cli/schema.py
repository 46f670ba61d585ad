"""What a recipe and `[tool.prune]` may say of a command: read off the command itself, so there is nothing to keep up.

Typer's own classes are not named here: releases differ in where they keep them. What is asked of a parameter are
attributes that all of them have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

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
    from prunecli.cli.app import command_named

    slots = (_slot(param) for param in command_named(command).params if param.name not in GLOBAL)
    return {slot.key: slot for slot in slots}


def _slot(param: Any) -> Slot:
    argument = param.param_type_name == "argument"
    flag, many = bool(getattr(param, "is_flag", False)), bool(getattr(param, "multiple", False))
    key = str(param.metavar).lower() if argument else max(param.opts, key=len).removeprefix("--")
    alternatives = str(param.metavar).split("|")
    return Slot(
        key=key,
        name=param.name,
        shape="flag" if flag else "many" if many else "one",
        role=_role(param, argument, alternatives),
        argument=argument,
        numeric=str(param.type.name).startswith(("int", "float", "value")),
        literals=frozenset(word for word in alternatives if not word.isupper()),
        display=key == "no-progress" or (key == "format" and not many),
    )


def _role(param: Any, argument: bool, alternatives: list[str]) -> Role:
    kind = str(param.type.name)
    is_path = kind in ("path", "file", "directory")
    if argument and is_path:
        return "model"
    told = [_ROLES[word] for word in alternatives if word in _ROLES] if is_path or kind in ("str", "text") else []
    return told[0] if told else "path" if is_path else "other"
