"""What README, the pages of docs/ and the demo tell people to type exists, and the demo does what README says of it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from prunecli.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "sample_models" / "demo.sh", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[tuple[str, list[str]]]:
    """(where, words) of every `prune COMMAND ...` in code blocks, tables and the demo."""
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for match in re.finditer(r"(?:^|run |`|\$ )prune ([a-z]+ [^`\n]*)", text, re.MULTILINE):
            line = match[1].split(" #")[0].split(" >>")[0]
            words = shlex.split(line.replace("$", ""))
            if words[0].islower() and words[0].isalpha() and len(words) > 1 and "." in words[1]:
                found.append((path.name, words))
    return found


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 25
    assert {words[0] for _, words in commands()} <= set(COMMANDS)


@pytest.mark.parametrize(("where", "words"), commands(), ids=[" ".join(words) for _, words in commands()])
def test_every_option_that_is_told_of_exists(where: str, words: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.get_command(typer.Context(group), words[0])
    options = {name for param in command.params for name in param.opts}
    assert {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= options


def test_readme_speaks_of_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"prune {name}" in text for name in COMMANDS)


@pytest.mark.slow
def test_the_demo_runs_and_ends_well(tmp_path: Path) -> None:
    copy = tmp_path / "clone"
    shutil.copytree(ROOT / "sample_models", copy / "sample_models")
    (copy / "bin").mkdir()
    shim = copy / "bin" / "prune"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m prunecli "$@"\n')
    shim.chmod(0o755)
    path = os.pathsep.join([str(copy / "bin"), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", copy / "sample_models" / "demo.sh"], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "The gate passed." in done.stdout and "proved: equals" in done.stdout
    assert sorted(p.name for p in (copy / "demo-output").iterdir()) == [
        "digits-70.onnx", "digits-half.onnx", "digits-tuned.onnx",
    ]  # fmt: skip
