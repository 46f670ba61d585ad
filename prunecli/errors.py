"""The errors a user may see: one line of cause, one line of what to do next."""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class PruneError(Exception):
    """Bad usage, bad input, or a refusal. The command line prints it and exits with `exit_code` (2).

    Args:
        message: what is wrong and where, one line, no trailing full stop.
        hint: what the user can do about it, one line.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class GateFailed(PruneError):  # noqa: N818 - a gate that fails is an outcome, not a defect
    """A `--fail-if` gate or a promised limit was not met. Exit code 1."""

    exit_code = 1


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """A hint: the names nearest to one that is unknown, or what to do else. Hyphens and underscores are alike."""
    plain = {each.replace("_", "-"): each for each in known}
    asked = name.replace("_", "-").lstrip("-")
    close = get_close_matches(asked, plain, 3, 0.6) or [each for each in plain if asked and asked in each][:3]
    return f"did you mean {' or '.join(plain[each] for each in close)}?" if close else otherwise


def keywords(*known: type | str, **parts: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function that users call: a keyword that is no parameter of it, and neither a field of the dataclasses nor
    one of the names in `known`, is a PruneError. `parts`: parameters that are dataclasses, given as a whole."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        own = [p.name for p in signature(function).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        names = {*own, *(name for kind in known for name in ([kind] if isinstance(kind, str) else fields_of(kind)))}
        inside = {name: f"{part}={kind.__name__}(..., {name}=...)" for part, kind in parts.items()
                  for name in fields_of(kind)}  # fmt: skip

        @wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> R:
            for name in given:
                if name not in names:
                    hint = did_you_mean(name, sorted(names), f"it has {', '.join(sorted(names))}")
                    hint = f"write {inside[name]}" if name in inside else hint
                    raise PruneError(f"{function.__name__} has no option {name!r}", hint)
            return function(*args, **given)

        return call

    return wrap


def fields_of(kind: Any) -> Collection[str]:
    """Names of a dataclass's fields."""
    return tuple(kind.__dataclass_fields__)
