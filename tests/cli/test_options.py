"""The shared options say the same thing in every command, and the global ones work on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from prunecli.cli.app import COMMANDS, app
from prunecli.options.declare import declared_of
from tests.cli.conftest import SAMPLES, Prune

MODEL = SAMPLES / "digits-mlp.onnx"


def test_version(prune: Prune) -> None:
    from prunecli import __version__

    assert prune("--version").out == f"prune {__version__}\n"


@pytest.mark.parametrize("args", [("-h",), ("--help",), ("inspect", "--help")])
def test_help_goes_to_stdout(args: tuple[str, ...], prune: Prune) -> None:
    done = prune(*args)
    assert done.code == 0
    assert done.out.startswith("Usage: prune")
    assert done.err == ""


OWN = {"--scope", "--criterion", "--format", "--granularity", "--data", "--recover", "--threshold", "--train-data",
       "--allocate", "--batch-size"}  # fmt: skip
"""Each command lists its own: their values differ between weights and structures, `pack` takes coo besides, some data can be
made up, `adaptive` recovers before it judges, a threshold is of |w| or of another score, `evaluate` trains on nothing, what a sparsity
can be spread by differs from one-shot pruning to structures, and batches of training are steps."""


def test_options_of_one_name_have_one_help_text() -> None:
    """An option that several commands take was written once, in options.py."""
    group = typer.main.get_command(app)
    context = typer.Context(group)
    texts: dict[str, set[str]] = {}
    for name in COMMANDS:
        for param in group.get_command(context, name).params:
            if param.param_type_name == "option" and not OWN & set(param.opts):
                texts.setdefault(max(param.opts, key=len), set()).add(param.help or "")
    assert {option: help for option, help in texts.items() if len(help) > 1} == {}
    assert all(help != {""} for help in texts.values())


NO_FILE, NO_DATA = "inspect sensitivity evaluate compare", "inspect run pack unpack"
COMMON = {
    "format report no-progress": "",
    "provider threads": "inspect run",  # run nothing, or what steps say
    "dim input-shape": "finetune run",  # where the data fix the sizes, and steps do
    "data labels label-column limit batch-axis seed": NO_DATA,
    "preset resize mean std layout": NO_DATA,
    "output force external-data no-verify": f"{NO_FILE} run",
    "dry-run": f"{NO_FILE} finetune",
    "include": "inspect evaluate compare run shrink unpack",  # take all of a model
    "exclude": "inspect evaluate compare run shrink unpack finetune",  # --freeze
    "save-plan": f"{NO_FILE} run shrink unpack pack finetune quantize",  # choose nothing that a plan holds
}
"""Common options, and the commands that have no use for them."""


@pytest.mark.parametrize("names", COMMON)
def test_every_command_takes_the_common_options(names: str) -> None:
    lacking = {name for name, entry in COMMANDS.items()
               if not set(names.split()) <= {each.name for each in declared_of(entry.options_class)}}  # fmt: skip
    assert lacking == set(COMMON[names].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_of_one_value_is_given_once(command: str, prune: Prune) -> None:
    done = prune(command, MODEL, "--color", "always", "--color", "never")
    assert done.code == 2
    assert "--color is given more than once" in done.err and "it takes one value" in done.err


def test_every_report_is_written(prune: Prune, tmp_path: Path) -> None:
    names = [tmp_path / f"r.{suffix}" for suffix in ("json", "md", "html")]
    assert prune("inspect", MODEL, *(word for name in names for word in ("--report", name))).code == 0
    assert all(name.read_text() for name in names)
    done = prune("inspect", MODEL, "--report", names[0], "--report", tmp_path / "r.txt")
    assert done.code == 2 and "r.txt" in done.err


@pytest.mark.parametrize("args", [("-v", "inspect"), ("inspect", "-v"), ("inspect", "--verbose")])
def test_global_options_work_before_and_after_the_command(args: tuple[str, ...], prune: Prune) -> None:
    from prunecli.cli.terminal import terminal

    assert prune(*args, MODEL).code == 0
    assert terminal.verbose
    assert prune("inspect", MODEL).code == 0
    assert not terminal.verbose
