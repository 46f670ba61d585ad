"""The commands: a table, and how the class of a command's options becomes a Typer command.

To add one: a class of options, a function of the library that takes them, and a line in COMMANDS.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from prunecli.errors import PruneError
from prunecli.options import Declared, Options
from prunecli.options.declare import declared_of


@dataclass(frozen=True)
class Entry:
    """A command. `options`: package, whose module `options` has it, and class. `arguments`: names in the library and in
    the usage line, and help."""

    summary: str
    options: str
    arguments: tuple[tuple[str, str, str], ...] = (("model", "MODEL", "the ONNX file"),)

    @property
    def options_class(self) -> type[Options]:
        module, _, name = self.options.partition(":")
        place = module if "." in module else f"{module}.options"
        return getattr(import_module(f"prunecli.{place}"), name)  # type: ignore[no-any-return]


COMMANDS = {
    "inspect": Entry("what is in a model, what can be pruned, what cannot and why", "inspection:InspectOptions"),
    "magnitude": Entry("zero the smallest weights, by threshold or to an exact sparsity", "zeros:MagnitudeOptions"),
    "gradient": Entry("zero the weights that the outputs would miss least, by gradients on data",
                      "zeros:GradientOptions"),
    "oneshot": Entry("zero weights and fit the others on a few unlabelled samples, without training",
                     "zeros:OneshotOptions"),
    "structured": Entry("remove channels, neurons and attention heads, and rewrite the graph",
                        "structures:StructuredOptions"),
    "adaptive": Entry("the smallest model that loses no more than is allowed, confirmed on held-out data",
                      "search:AdaptiveOptions"),
    "finetune": Entry("train a pruned model, keeping its zeros and structure", "options.training:FinetuneOptions"),
    "sensitivity": Entry("what each layer costs when it alone is cut", "search:SensitivityOptions"),
    "evaluate": Entry("quality, size and latency, alone or against the original", "evaluation:EvaluateOptions"),
    "compare": Entry("the outputs of two models on the same inputs", "evaluation:CompareOptions",
                     (("first", "A", "the reference"), ("second", "B", "the other model"))),
    "run": Entry("a whole experiment in one file: steps, data, gates", "recipe:RunOptions",
                 (("recipe", "RECIPE", "the recipe, a .toml file"),)),
    "pack": Entry("store sparse weights small, in a file that any onnxruntime opens", "packing:PackOptions"),
    "unpack": Entry("store the weights of a packed file densely again", "packing:UnpackOptions"),
}  # fmt: skip


def entry_of(name: str) -> Entry:
    """The entry of a command.

    Raises:
        PruneError: there is none of that name.
    """
    if name not in COMMANDS:
        raise PruneError(f"no such command: {name}", _meant(name))
    return COMMANDS[name]


def _meant(name: str) -> str:
    close = get_close_matches(name, COMMANDS)
    return f"did you mean `prune {close[0]}`?" if close else "`prune --help` lists the commands"


Action = Callable[[str, typer.Context, list[Any], Any], None]


def function_of(name: str, action: Action) -> Callable[..., None]:
    """The command as a function whose signature Typer reads: its arguments, then an option per declared field. It calls
    `action(name, context, arguments, options)`."""
    entry = COMMANDS[name]
    kind = entry.options_class
    declared = declared_of(kind)

    def command(ctx: typer.Context, **given: Any) -> None:
        arguments = [given[argument] for argument, _, _ in entry.arguments]
        options = options_of(kind, {one.field: given[parameter_name(one)] for one in declared})
        action(name, ctx, arguments, options)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for argument, shown, text in entry.arguments:
        hint = Annotated[Path, typer.Argument(metavar=shown, help=text, show_default=False)]
        parameters.append(inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, annotation=hint))
    parameters += [_parameter(one) for one in declared]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = kind.__doc__
    return command


def options_of(kind: type[Options], given: dict[str, Any]) -> Options:
    """From what Typer made of a command line: choices as texts, switches as what they mean."""
    values = {}
    for one in declared_of(kind):
        value = given[one.field]
        if isinstance(value, list | tuple) and one.many:
            value = tuple(_plain(item) for item in value)
        values[one.field] = not value if one.option.off else _plain(value)
    return kind(**values)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def parameter_name(declared: Declared) -> str:
    return declared.name.replace("-", "_") + ("_" if declared.name in ("set",) else "")


def _parameter(declared: Declared) -> inspect.Parameter:
    option, default = declared.option, declared.default
    names = [f"--{declared.name}", *([f"-{option.short}"] if option.short else [])]
    settings: dict[str, Any] = {"help": option.help, "rich_help_panel": option.section}
    if declared.metavar:
        settings["metavar"] = declared.metavar
    if not option.show_default or declared.many or option.read is not None:
        settings["show_default"] = False
    if option.read is not None:
        settings["parser"] = _reader(option.read)
    else:
        settings |= {key: value for key, value in (("min", option.least), ("max", option.most)) if value is not None}
    if option.check is not None:
        settings["callback"] = _checker(option.check, declared.many)
    hint: Any = _hint(declared)
    if option.off:
        default = False
    elif declared.many:
        hint, default = list[hint] | None, None
    elif default is None or option.read is not None:
        hint = hint | None if hint is not Any else hint
    if declared.choices and isinstance(default, str):
        default = hint(default) if isinstance(hint, type) else default
    return inspect.Parameter(
        parameter_name(declared), inspect.Parameter.KEYWORD_ONLY, default=default,
        annotation=Annotated[hint, typer.Option(*names, **settings)],
    )  # fmt: skip


def _hint(declared: Declared) -> Any:
    if declared.choices:
        return StrEnum("Choice", {name: name for name in declared.choices})
    if declared.option.read is not None:
        return Any
    return str if declared.kind is object else declared.kind


def _reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same, with errors in the form that names the option."""

    def value(text: Any) -> Any:
        if not isinstance(text, str):  # a default that is a value already
            return text
        with _named_by_typer():
            return read(text)

    return value


def _checker(check: Callable[[Any], None], many: bool) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        with _named_by_typer():
            if value is not None and not many:
                check(value)
        for item in (value or ()) if many else ():  # an error that quotes the item is placed by that
            check(item)
        return value

    return checked


class _named_by_typer:  # noqa: N801 - a context manager
    """Turns a PruneError into Typer's error, whose message names the option."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PruneError):
            raise typer.BadParameter(error.message) from error
