"""Groups of options that several commands take: one function's parameters, added to a command's by a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any, get_type_hints

Command = Callable[..., None]


def option_group(template: Callable[..., Any], name: str) -> Callable[[Command], Command]:
    """A decorator that appends the parameters of `template` to a command's; the command gets what `template` makes
    of their values as its keyword argument `name`."""
    group = inspect.signature(template)

    def decorate(command: Command) -> Command:
        own = inspect.signature(command)

        @wraps(command)
        def wrapped(**given: Any) -> None:
            mine = {parameter: given.pop(parameter) for parameter in group.parameters}
            command(**given, **{name: template(**mine)})

        kept = [parameter for key, parameter in own.parameters.items() if key != name]
        hints = _hints(command) | _hints(template)
        parameters = [
            parameter.replace(annotation=hints.get(parameter.name, Any), kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in (*kept, *group.parameters.values())
        ]
        del wrapped.__wrapped__  # the signature is no longer the command's
        wrapped.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations as objects, but for those of other groups, `*, name: Type`, whose types are costly to import."""
    groups = {name for name, p in inspect.signature(function).parameters.items()
              if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty}  # fmt: skip
    needed = {
        n: h for n, h in function.__annotations__.items() if not (isinstance(h, str) and n in {"return", *groups})
    }
    return get_type_hints(SimpleNamespace(__annotations__=needed), function.__globals__, include_extras=True)
