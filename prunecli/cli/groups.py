"""Groups of options that several commands take: written once, as a data class or a function, and passed on as one
value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any, get_type_hints

Command = Callable[..., None]


def takes(**templates: Callable[..., Any]) -> Callable[[Command], Command]:
    """A decorator that puts the parameters of each template in place of the command's parameter of that name, which
    gets what the template makes of their values."""
    groups = {name: inspect.signature(template).parameters for name, template in templates.items()}

    def decorate(command: Command) -> Command:
        own = inspect.signature(command).parameters

        @wraps(command)
        def wrapped(**given: Any) -> None:
            made = {name: templates[name](**{p: given.pop(p) for p in group}) for name, group in groups.items()}
            command(**given, **made)

        hints = _hints(command)
        for template in templates.values():
            hints |= _hints(template)
        spread = [p for name, one in own.items() for p in (groups[name].values() if name in groups else [one])]
        parameters = [
            parameter.replace(annotation=hints.get(parameter.name, Any), kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in spread
        ]
        del wrapped.__wrapped__  # the signature is no longer the command's
        wrapped.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def _hints(made: Callable[..., Any]) -> dict[str, Any]:
    """The annotations as objects, but for those of groups, `*, name: Type`, whose types are costly to import."""
    if isinstance(made, type):
        return get_type_hints(made, include_extras=True)
    groups = {name for name, p in inspect.signature(made).parameters.items()
              if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty}  # fmt: skip
    needed = {n: h for n, h in made.__annotations__.items() if not (isinstance(h, str) and n in {"return", *groups})}
    return get_type_hints(SimpleNamespace(__annotations__=needed), made.__globals__, include_extras=True)
