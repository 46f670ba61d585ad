"""Whatever goes wrong: one line `error:`, one line `hint:` on stderr, nothing on stdout, the exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunecli.cli import app
from prunecli.errors import GateFailed, PruneError
from tests.cli.conftest import ROOT, SAMPLES, Prune, in_new_process

MODEL = str(SAMPLES / "digits-mlp.onnx")

# command line -> a piece of the error line, a piece of the hint line
BAD_USAGE = [
    ("", "no command given", "--help"),
    ("frobnicate", "no such command: frobnicate", "--help"),
    ("inspct", "no such command: inspct", "prune inspect"),
    ("--frobnicate", "no such option: --frobnicate", "prune --help"),
    ("--color pink inspect", "'pink' is not one of", "prune --help"),
    ("inspect", "missing argument 'MODEL'", "prune inspect --help"),
    ("inspect a.onnx b.onnx", "b.onnx", "prune inspect --help"),
    ("inspect {model} --histgram", "no such option: --histgram", "prune inspect --help"),
    ("inspect {model} --nm", "--nm", "prune inspect --help"),
    ("inspect {model} --nm 4:2", "'4:2' is not an N:M pattern", "2:4"),
    ("inspect {model} --nm x", "'x' is not an N:M pattern", "2:4"),
    ("inspect {model} --format xml", "'xml' is unknown", "choose from table, json, markdown"),
    ("inspect {model} --report out.pdf", "out.pdf", ".json, .md or .html"),
    ("inspect {model} --report no/such/folder/out.json", "no/such/folder", "existing folder"),
    ("inspect {model} --dim batch", "--dim batch", "batch=1"),
    ("inspect {model} --dim batch=0", "--dim batch=0", "batch=1"),
    ("inspect {model} --dim width=3", "width", "batch"),
    ("inspect {model} --input-shape image", "--input-shape image", "x:1,3,224,224"),
    ("inspect {model} --input-shape image:1,2", "(1, 2)", "4 numbers"),
    ("inspect {model} --input-shape nothing:1", "nothing", "image"),
    ("inspect no-such-file.onnx", "no-such-file.onnx", ""),
    ("inspect {root}", "is a folder", ""),
    ("inspect {root}/pyproject.toml", "pyproject.toml", ""),
]


@pytest.mark.parametrize(("line", "error", "hint"), BAD_USAGE)
def test_bad_usage_is_two_lines_and_exit_2(line: str, error: str, hint: str, prune: Prune) -> None:
    done = prune(*line.format(model=MODEL, root=ROOT).split())
    assert done.code == 2
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


# what a command raises -> exit code, error line, a piece of the hint
RAISED = [
    (PruneError("bad weight 'w'", "do this"), 2, "error: bad weight 'w'", "do this"),
    (PruneError("bad weight 'w'"), 2, "error: bad weight 'w'", "prune --help"),
    (PruneError("two\nlines \x1b[31mred"), 2, "error: two lines \\x1b[31mred", ""),
    (GateFailed("gate failed: accuracy 0.5 < 0.9", "x"), 1, "error: gate failed: accuracy 0.5 < 0.9", "x"),
    (ValueError("what?"), 2, "error: internal: ValueError: what?", "PRUNE_DEBUG=1"),
    (MemoryError(), 2, "error: out of memory", "--batch-size"),
    (OSError(12, "Cannot allocate memory"), 2, "error: out of memory", "--batch-size"),
    (RuntimeError("can't start new thread"), 2, "error: out of memory", "--batch-size"),
    (OSError(28, "No space left on device", "m.onnx"), 2, "error: No space left on device: m.onnx", "space"),
]


def _raise(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def inspect() -> None:
        raise error

    command = app.build("inspect", inspect)
    monkeypatch.setattr(app.Commands, "get_command", lambda self, ctx, name: command)


@pytest.mark.parametrize(("error", "code", "line", "hint"), RAISED)
def test_what_a_command_raises(
    error: Exception, code: int, line: str, hint: str, prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    _raise(monkeypatch, error)
    done = prune("inspect")
    first, second = done.err.splitlines()
    assert (done.code, first, done.out) == (code, line, "")
    assert second.startswith("hint: ")
    assert hint in second


def test_interrupt_says_what_became_of_the_files(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise(monkeypatch, KeyboardInterrupt())
    done = prune("inspect")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[0] == "error: interrupted; nothing was written"


def test_traceback_only_with_prune_debug(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise(monkeypatch, ValueError("what?"))
    monkeypatch.setenv("PRUNE_DEBUG", "1")
    done = prune("inspect")
    assert done.err.startswith("Traceback")
    assert done.err.splitlines()[-2] == "error: internal: ValueError: what?"
    assert done.code == 2


COLOURS = [
    (["--color", "always"], {}, True),
    (["--color", "never"], {}, False),
    ([], {}, False),  # not a terminal
    (["--color", "always"], {"NO_COLOR": "1"}, True),  # the option was typed just now
]


@pytest.mark.parametrize(("args", "environment", "coloured"), COLOURS)
def test_colour_of_errors(args: list[str], environment: dict[str, str], coloured: bool) -> None:
    code = f"from prunecli.cli.app import run; raise SystemExit(run({[*args, 'nothing']!r}))"
    done = in_new_process(code, **environment)
    assert done.returncode == 2
    assert ("\x1b[" in done.stderr) is coloured


@pytest.mark.parametrize(
    "args", [["inspect", MODEL], ["inspect", MODEL, "--format", "json"], ["--help"], ["--version"]]
)
def test_a_reader_that_leaves_is_no_error(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "prunecli", *args],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigint_ends_a_real_run_without_a_traceback(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, signal, time\nfrom prunecli.cli import app\n"
        "def inspect() -> None:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "command = app.build('inspect', inspect)\n"
        "app.Commands.get_command = lambda self, ctx, name: command\n"
        "raise SystemExit(app.run(['inspect']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, len(err.splitlines())) == (130, 2)


def test_an_interrupt_that_became_another_error_is_one(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    _raise(monkeypatch, error)
    assert prune("inspect").code == 130
