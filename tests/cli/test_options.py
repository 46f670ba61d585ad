"""The shared options say the same thing in every command, and the global ones work on both sides."""

from __future__ import annotations

import pytest
import typer

from prunecli.cli.app import COMMANDS, app
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


@pytest.mark.parametrize("args", [("-v", "inspect"), ("inspect", "-v"), ("inspect", "--verbose")])
def test_global_options_work_before_and_after_the_command(args: tuple[str, ...], prune: Prune) -> None:
    from prunecli.cli.terminal import terminal

    assert prune(*args, MODEL).code == 0
    assert terminal.verbose
    assert prune("inspect", MODEL).code == 0
    assert not terminal.verbose
