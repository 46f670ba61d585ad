"""The `prune` program: a table of commands, each imported only when it is invoked, and one error form.

The table is in `commands.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from prunecli._version import __version__
from prunecli.cli.commands import COMMANDS, entry_of, function_of
from prunecli.cli.terminal import ColorMode, explain, interrupted, say, terminal, uninterrupted
from prunecli.errors import InvalidValue, OutOfMemoryError, PruneError
from prunecli.files import appeared

if TYPE_CHECKING:
    from prunecli.cli.settings import AppliedDefaults


MISTAKES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""Exceptions that an invalid model may cause where no check found it."""


class Command(TyperCommand):
    """A command. Its help lists options under the headings that the options class gives them."""

    used: AppliedDefaults | None = None
    to_print: str | None = None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; options that it lacks get the defaults of pyproject.toml."""
        words, name = list(args), str(self.name)
        parsed, _, order = self.make_parser(ctx).parse_args(args=list(args))
        _refuse_repeated(order)
        raw = {key: value for key, value in parsed.items() if isinstance(value, str | bool | list)}
        if not (terminal.isolated or {"isolated", "help"} & set(raw)):
            from prunecli.cli.settings import AppliedDefaults

            self.used = AppliedDefaults.on(name, raw)
            ctx.default_map = self.used.default_map(name)
        try:
            rest = super().parse_args(ctx, args)
        except InvalidValue as error:
            raise (self.used and self.used.placed(error)) or error from None
        if self.used is not None:
            self.used.tell()
        if "print_recipe" in raw:
            from prunecli.cli.recipes.printing import command_line_text

            defaults = self.used.settings if self.used else {}
            self.to_print = command_line_text(
                name, words, raw, defaults=defaults, params=ctx.params, command_named=command_named
            )
        return rest

    def invoke(self, ctx: Any) -> Any:
        if self.to_print is not None:
            print(self.to_print, end="")
            return None
        try:
            self._check_paths(ctx.params)
            return super().invoke(ctx)
        except PruneError as error:
            if self.used is not None:
                self.used.explain(error)
            raise
        except Exception as error:
            if _comes_of_interrupt(error):
                raise KeyboardInterrupt from error
            damage = self._damage(ctx.params) if isinstance(error, MISTAKES) else None
            if damage is None:
                raise
            raise damage from error

    def _damage(self, given: dict[str, Any]) -> PruneError | None:
        """Return an error that calls the model damaged, if onnxruntime cannot open a model that the command was
        given."""
        from prunecli.cli.commands import schema_of
        from prunecli.runtime import Session

        models = (given.get(slot.name) for slot in schema_of(str(self.name)).values() if slot.role == "model")
        for path in filter(None, models):
            try:
                Session.open(path, mode="plain")
            except OutOfMemoryError:
                return None
            except PruneError as error:
                return PruneError(f"the model is damaged: {error.message}", "export or download it again")
        return None

    def _check_paths(self, given: dict[str, Any]) -> None:
        """Refuse paths that would overwrite each other, and remove what killed runs left in the folders that this run
        uses."""
        from prunecli.files import check_paths, named, remove_leftovers

        written = {name: value for name, value in given.items() if name != "output" or not given.get("dry_run")}
        check_paths(written, force=given.get("force", False))
        folders = {Path(), *(path.parent for _, path in named(written))}
        with suppress(OSError):  # there is no folder for temporary files: whoever needs one says so
            folders.add(Path(gettempdir()))
        for folder in folders:
            remove_leftovers(folder)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for example in COMMANDS[str(self.name)].examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                if param.name == "help":
                    kind, record = "Global options", (record[0], "show this help")
                sections.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _refuse_repeated(order: list[Any]) -> None:
    """Refuse an option of one value that is given twice, since one of the values would be ignored.

    Args:
        order: the parameters of a command line, one entry per occurrence.
    Raises:
        PruneError: naming the option.
    """
    single = [param for param in order if param.param_type_name == "option" and not (param.multiple or param.is_flag)]
    for param in single:
        if single.count(param) > 1:
            raise PruneError(f"{max(param.opts, key=len)} is given more than once", "it takes one value: give it once")


def _comes_of_interrupt(error: BaseException | None) -> bool:
    """Return whether an interrupt caused this error: C modules turn it into an ImportError during import."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


class Commands(TyperGroup):
    """Imports a command's module when it is invoked, so that `prune --help` imports none of them."""

    invoked = "prune"

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = command_named(cmd_name)
        self.invoked = f"prune {cmd_name}"
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # of which Typer would make an exit code and nothing else
            raise typer.Abort from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def build(name: str, function: Callable[..., None]) -> Any:
    """Return the Typer command of one function, whose signature holds all that Typer needs."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, cls=Command)(function)
    return typer.main.get_command(single)


def command_named(name: str) -> Any:
    """Return the command of that name, with the options that every command has, as for a run of its own: what a
    command line has set in it is in no other.

    Raises:
        PruneError: there is none of that name.
    """
    return copy(_built(name))


@cache
def _built(name: str) -> Any:
    entry_of(name)
    command = build(name, function_of(name, carry_out))
    command.params += [param for param in typer.main.get_command(app).params if param.name in ON_BOTH_SIDES]
    command.params.append(
        TyperOption(
            param_decls=["--print-recipe"], is_flag=True, expose_value=False, rich_help_panel="Global options",
            help="this command line as a recipe for `prune run`, and nothing else",
        )
    )  # fmt: skip
    return command


ON_BOTH_SIDES = ("quiet", "verbose", "color", "isolated")

app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print(f"prune {__version__}")
        raise typer.Exit


def _set(setting: str) -> Callable[[Any], None]:
    """Return the callback of a global option. The option may stand before the command or after it; where it is absent
    nothing is set."""

    def keep(value: Any) -> None:
        if value:
            setattr(terminal, setting, value)

    return keep


def _option(*names: str, callback: Callable[..., None], text: str, eager: bool = False) -> Any:
    return typer.Option(
        *names,
        callback=callback,
        help=text,
        is_eager=eager,
        expose_value=False,
        rich_help_panel="Global options",
    )


@app.callback(invoke_without_command=True)
def prune(
    ctx: typer.Context,
    version: Annotated[
        bool, _option("--version", callback=_print_version, text="print the version", eager=True)
    ] = False,
    quiet: Annotated[bool, _option("-q", "--quiet", callback=_set("quiet"), text="only results and errors")] = False,
    verbose: Annotated[
        bool, _option("-v", "--verbose", callback=_set("verbose"), text="show everything, no shortened tables")
    ] = False,
    color: Annotated[
        ColorMode | None, _option("--color", callback=_set("color"), text="auto: on terminals without NO_COLOR")
    ] = None,
    isolated: Annotated[
        bool, _option("--isolated", callback=_set("isolated"), text="ignore [tool.prune] in pyproject.toml")
    ] = False,
) -> None:
    """Make ONNX models smaller and faster by pruning, with proof of what was done.

    Exit codes: 0 done, 1 a gate failed, 2 bad usage or bad input.
    """
    if ctx.invoked_subcommand is None:
        raise PruneError("no command given", "`prune --help` lists the commands")


def carry_out(name: str, ctx: typer.Context, arguments: list[Any], options: Any) -> None:
    """Run a command of the library and report its result.

    Raises:
        PruneError: the command's own, or once the result is out, that a gate failed.
    """
    import prunecli
    from prunecli.cli.output import draws, emit
    from prunecli.cli.terminal import loading, progress_for

    if name == "run":
        from prunecli.cli.recipes.run import run_recipe

        run_recipe(ctx, arguments[0], options, command_named=command_named)
        return
    progress = progress_for(not options.progress)
    if hasattr(options, "spreads"):
        object.__setattr__(options, "spreads", draws(options.report))
    with loading(progress, arguments) as shown:
        result = getattr(prunecli, name)(*arguments, options=options, progress=shown)
    emit(result, getattr(options, "shown", None) or options.format, options.report, seed=getattr(options, "seed", None))
    raise_if_failed = getattr(result, "raise_if_failed", None)
    if raise_if_failed is not None:
        raise_if_failed()


def run(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code. Prints errors; raises nothing but SystemExit."""
    terminal.reset()
    terminal.words = tuple(sys.argv[1:] if args is None else args)
    appeared.clear()
    group = typer.main.get_command(app)
    try:
        code = group.main(args=args, prog_name="prune", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        with uninterrupted():
            message, hint = interrupted()
            say("error", message)
            say("hint", hint)
        return 128 + terminal.ended_by
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        from prunecli.cli.output import drop_stdout

        drop_stdout()
        return 0
    except Exception as error:
        if os.environ.get("PRUNE_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        message, hint, code = explain(error, getattr(group, "invoked", "prune"))
        say("error", message)
        say("hint", hint)
        return code


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):  # a name the terminal cannot show is not a reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores one
    for number in numbers:
        signal.signal(number, _end)
    code = run()
    for number in (signal.SIGINT, *numbers):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # nothing is left to tidy up: the end of processes may be cut short
    sys.exit(code)


def _end(number: int, frame: Any) -> None:
    """End as Ctrl-C does. A second signal is ignored, so that the clean-up is not stopped."""
    signal.signal(number, signal.SIG_IGN)
    terminal.ended_by = number
    raise KeyboardInterrupt
