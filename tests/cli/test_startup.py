"""What `--help` imports: nothing heavy, whatever the command."""

from __future__ import annotations

import pytest

import prunecli
from prunecli.cli.app import COMMANDS
from tests.cli.conftest import in_new_process

HEAVY = ["numpy", "onnx", "onnx_ir", "onnxruntime", "sklearn", "scipy", "ml_dtypes", "google.protobuf"]
HEAVY += ["rich", "rich.progress", "rich.table", "prunecli.model", "prunecli.pipeline", "prunecli.runtime"]

SCRIPT = """
import sys
from prunecli.cli.app import run
code = run({args!r})
print("LOADED", code, [name for name in {heavy!r} if name in sys.modules])
"""


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    done = in_new_process(SCRIPT.format(args=args, heavy=HEAVY))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED 0 []"


def test_the_import_check_sees_what_a_command_does_import() -> None:
    args = ["inspect", "no-such-file.onnx"]
    done = in_new_process(SCRIPT.format(args=args, heavy=HEAVY))
    assert "'onnx_ir'" in done.stdout.splitlines()[-1]


def test_help_lists_every_command_without_importing_them() -> None:
    done = in_new_process(
        "import sys; from prunecli.cli.app import run; run(['--help']);"
        "print([m for m in sys.modules if m.startswith('prunecli.cli.')])"
    )
    *text, modules = done.stdout.splitlines()
    listed = {line.split()[0] for line in text if line.startswith("  ") and line.split()}
    assert set(COMMANDS) <= listed
    assert not any(f"prunecli.cli.{name}'" in modules for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_the_table_exists(name: str) -> None:
    assert COMMANDS[name].options_class.__doc__ and (name in prunecli.__all__)
