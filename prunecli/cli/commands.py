"""The table of commands, and what is derived from the class of a command's options: the Typer command, and the slots
that recipes and `[tool.prune]` may fill.

To add one: a class of options, a function of the library that takes them, and a line in COMMANDS.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prunecli.errors import PruneError
from prunecli.options import Declared, Options
from prunecli.options.declare import declared_of


@dataclass(frozen=True)
class Entry:
    """A command. `options`: the package whose module `options` has its class of options, and that class. `usual`: the
    options that most people need, in the order of its help, where they come first. `examples`: command lines.
    `arguments`: for each its name in the library, its name in the usage line, and its help."""

    summary: str
    options: str
    usual: str = ""
    examples: tuple[str, ...] = ()
    arguments: tuple[tuple[str, str, str], ...] = (("model", "MODEL", "the ONNX file"),)

    @property
    def options_class(self) -> type[Options]:
        module, _, name = self.options.partition(":")
        place = module if "." in module else f"{module}.options"
        return getattr(import_module(f"prunecli.{place}"), name)  # type: ignore[no-any-return]


_OUTPUT = "output force dry-run format report"
_ZEROS = f"scope pattern include exclude recover finetune-epochs shrink pack {_OUTPUT}"
COMMANDS = {
    "inspect": Entry(
        "what is in a model, what can be pruned, what cannot and why", "inspection:InspectOptions",
        "histogram nm dim input-shape format report",
        examples=("prune inspect model.onnx", "prune -v inspect model.onnx --input-shape image:1,3,320,320"),
    ),
    "magnitude": Entry(
        "zero the smallest weights, by threshold or to an exact sparsity", "zeros:MagnitudeOptions",
        f"sparsity threshold {_ZEROS}",
        examples=("prune magnitude model.onnx --sparsity 50%",
         "prune magnitude model.onnx --sparsity 0.5 --pattern 2:4 -o sparse.onnx"),
    ),
    "gradient": Entry(
        "zero the weights that the outputs would miss least, by gradients on data", "zeros:GradientOptions",
        f"data sparsity criterion {_ZEROS}",
        examples=("prune gradient model.onnx --data samples.npz --sparsity 70%",
         "prune gradient model.onnx --data samples.npz --sparsity 70% --criterion taylor --scope layer"),
    ),
    "oneshot": Entry(
        "zero weights and fit the others on a few unlabelled samples, without training", "zeros:OneshotOptions",
        f"data sparsity method {_ZEROS}",
        examples=("prune oneshot model.onnx --data samples.npz --sparsity 70%",
         "prune oneshot model.onnx --data synthetic --sparsity 50% --pack -o small.onnx"),
    ),
    "structured": Entry(
        "remove channels, neurons and attention heads, and rewrite the graph", "structures:StructuredOptions",
        f"macs params ratio latency data recover granularity include exclude finetune-epochs {_OUTPUT}",
        examples=("prune structured model.onnx --macs 50% --data samples.npz",
         "prune structured model.onnx --latency 70% --data samples.npz --finetune-epochs 10 -o fast.onnx"),
    ),
    "shrink": Entry(
        "what a model carries for nothing: dead units, equal ones, tokens, outputs", "shrinking:ShrinkOptions",
        f"outputs last-token vocabulary tokenizer data tolerance {_OUTPUT}",
        examples=("prune shrink pruned.onnx",
                  "prune shrink encoder.onnx --vocabulary words.txt --tokenizer tokenizer.json"),
    ),
    "quantize": Entry(
        "weights and activations as small integers, fitted on a few unlabelled samples", "quantization:QuantizeOptions",
        f"data weights activations keep-float test include exclude {_OUTPUT}",
        examples=("prune quantize model.onnx --data samples.npz",
         "prune quantize encoder.onnx --data samples.npz --weights int4-block32 -o small.onnx"),
    ),
    "adaptive": Entry(
        "the smallest model that loses no more than is allowed, confirmed on held-out data", "search:AdaptiveOptions",
        f"data labels max-drop metric minimize granularity recover finetune-epochs state {_OUTPUT}",
        examples=("prune adaptive model.onnx --data test.npz --max-drop 1%",
         "prune adaptive model.onnx --data test.npz --max-drop 1% --granularity channel --recover auto"),
    ),
    "finetune": Entry(
        "train a pruned model, keeping its zeros and structure", "options.training:FinetuneOptions",
        "data labels teacher epochs batch-size lr val-data output force format report",
        examples=("prune finetune pruned.onnx --data train.npz --teacher model.onnx",
         "prune finetune pruned.onnx --data train.npz --epochs 10 --lr 1e-4 -o tuned.onnx"),
    ),
    "sensitivity": Entry(
        "what each layer costs when it alone is cut", "search:SensitivityOptions",
        "data labels metric levels fast granularity criterion include exclude state format report",
        examples=("prune sensitivity model.onnx --data test.npz",
         "prune sensitivity model.onnx --data test.npz --fast --granularity channel"),
    ),
    "evaluate": Entry(
        "quality, size and latency, alone or against the original", "evaluation:EvaluateOptions",
        "baseline data labels label-column metric fail-if per-class robustness threads limit format report",
        examples=("prune evaluate pruned.onnx --baseline model.onnx --data test.npz",
         "prune evaluate pruned.onnx --baseline model.onnx --data test.npz --fail-if 'accuracy.drop>1%'"),
    ),
    "compare": Entry(
        "the outputs of two models on the same inputs", "evaluation:CompareOptions",
        "data samples limit seed fail-if dim input-shape format report",
        examples=("prune compare model.onnx pruned.onnx",
         "prune compare model.onnx pruned.onnx --data samples.npz --fail-if 'cosine<0.99'"),
        arguments=(("first", "A", "the reference"), ("second", "B", "the other model")),
    ),
    "run": Entry(
        "a whole experiment in one file: steps, data, gates", "recipe:RunOptions",
        "set dry-run format report",
        examples=("prune run recipe.toml --dry-run", "prune run recipe.toml --report report.html"),
        arguments=(("recipe", "RECIPE", "the recipe, a .toml file"),),
    ),
    "pack": Entry(
        "store sparse weights small, in a file that any onnxruntime opens", "packing:PackOptions",
        f"values max-error include exclude {_OUTPUT}",
        examples=("prune pack sparse.onnx", "prune pack sparse.onnx --values float16 -o small.onnx"),
    ),
    "unpack": Entry(
        "store the weights of a packed file densely again", "packing:UnpackOptions", _OUTPUT,
        examples=("prune unpack small.onnx", "prune unpack small.onnx -o dense.onnx --force"),
    ),
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


USUAL = "Usual options"
Action = Callable[[str, typer.Context, list[Any], Any], None]


def function_of(name: str, action: Action) -> Callable[..., None]:
    """The command as a function whose signature Typer reads: its arguments, then an option per declared field. It calls
    `action(name, context, arguments, options)`."""
    entry = COMMANDS[name]
    kind = entry.options_class
    declared, usual = declared_of(kind), entry.usual.split()
    order = sorted(declared, key=lambda one: usual.index(one.name) if one.name in usual else len(usual))

    def command(ctx: typer.Context, **given: Any) -> None:
        arguments = [given[argument] for argument, _, _ in entry.arguments]
        options = options_of(kind, {one.field: given[parameter_name(one)] for one in declared})
        action(name, ctx, arguments, options)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for argument, shown, text in entry.arguments:
        hint = Annotated[Path, typer.Argument(metavar=shown, help=text, show_default=False)]
        parameters.append(inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, annotation=hint))
    parameters += [_parameter(one, USUAL if one.name in usual else one.option.section) for one in order]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = kind.__doc__
    return command


def options_of(kind: type[Options], given: dict[str, Any]) -> Options:
    """Build the options from the values that Typer parsed: --no-X switches become False."""
    return kind(**{one.field: given[one.field] != one.option.off if one.kind is bool else given[one.field]
                   for one in declared_of(kind)})  # fmt: skip


def parameter_name(declared: Declared) -> str:
    return declared.name.replace("-", "_") + ("_" if declared.name in ("set",) else "")


def _parameter(declared: Declared, panel: str) -> inspect.Parameter:
    """`panel`: the heading of the help that the option stands under."""
    names = [f"--{declared.name}", *([f"-{declared.option.short}"] if declared.option.short else [])]
    told: dict[str, Any] = {"help": _help(declared), "show_default": False, "rich_help_panel": panel}
    hint: Any = Any
    if declared.kind is bool:
        setting, hint, default = typer.Option(*names, **told), bool, declared.default and not declared.option.off
    else:
        told |= {"autocompletion": _completer(declared.choices)} if declared.choices else {}
        setting = typer.Option(*names, parser=_reader(declared), metavar=declared.metavar or None, **told)
        hint, default = (list[Any] | None, None) if declared.many else (Any, declared.default)
    return inspect.Parameter(
        parameter_name(declared), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, setting]
    )


def _help(declared: Declared) -> str:
    """The help with the default and the bounds."""
    option, default = declared.option, declared.default
    plain = option.show_default and not declared.many and option.read is None
    shown = plain and default is not None and declared.kind is not bool
    notes = [*([f"default: {default}"] if shown else []), *([declared.bounds] if declared.bounds else [])]
    return f"{option.help}  [{'; '.join(notes)}]" if notes else option.help


def _reader(declared: Declared) -> Callable[[Any], Any]:
    """Return what makes a value of the text of a command line; defaults are values already."""

    def value(text: Any) -> Any:
        return declared.single(text) if isinstance(text, str) else text

    return value


def _completer(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Return what a shell offers for the beginning of a value."""

    def offered(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return offered


Shape = Literal["flag", "one", "many"]
Role = Literal["model", "data", "path", "code", "other"]
_ROLES: dict[str, Role] = {
    "ORIGINAL": "model", "D": "data", "PATH": "path", "DIR": "path", "FILE": "path", "FILE.py:FUNCTION": "code",
}  # fmt: skip
"""Roles of a text, by its metavar or one alternative of it, as in `sorted|numbers|FILE`."""


@dataclass(frozen=True)
class Slot:
    """One parameter. `key`: its long option without the dashes, or an argument's name in the usage line.

    `role`: `model` and `data` may name something in the recipe; they, `path` and the file of `code` (a function of the
    user's) are relative to where they are written, but for `literals`, texts that mean something of their own.
    `display`: what stdout carries, which in a recipe is of the whole run.
    """

    key: str
    name: str
    shape: Shape = "one"
    role: Role = "other"
    argument: bool = False
    numeric: bool = False
    literals: frozenset[str] = frozenset()
    display: bool = False

    def value(self, texts: list[str]) -> bool | str | list[str]:
        """Return the value as Typer takes it before conversion."""
        return True if self.shape == "flag" else texts if self.shape == "many" else texts[0]

    def words(self, texts: list[str]) -> list[str]:
        """Return the words that give these values on a command line."""
        if self.argument:
            return texts
        return [f"--{self.key}"] if self.shape == "flag" else [f"--{self.key}={text}" for text in texts]


Schema = dict[str, Slot]


@cache
def schema_of(command: str) -> Schema:
    """Return the slots of a command by key, in the order of its help.

    Raises:
        PruneError: there is no such command.
    """
    entry = entry_of(command)
    arguments = [Slot(shown.lower(), name, role="model", argument=True) for name, shown, _ in entry.arguments]
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
        numeric=declared.kind in (int, float) or declared.option.read is not None,
        literals=frozenset(word for word in alternatives if not word.isupper()),
        display=key == "no-progress" or (key == "format" and not declared.many),
    )
