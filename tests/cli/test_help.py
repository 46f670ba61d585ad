"""What `--help` shows first: two examples that parse, and the options that most people need."""

from __future__ import annotations

import re
import shlex

import pytest

from prunecli.cli.app import command_named, run
from prunecli.cli.commands import COMMANDS, USUAL
from prunecli.cli.terminal import WorkBegins, checking
from prunecli.options.declare import declared_of

MOST = 16
"""Usual options of a command."""


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run([name, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_usual_options_come_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    usual = COMMANDS[name].usual.split()
    declared = {one.name for one in declared_of(COMMANDS[name].options_class)}
    assert set(usual) <= declared
    assert len(usual) == len(set(usual)) <= MOST
    text = shown(name, capsys)
    panels = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert panels[:3] == ["Examples", "Arguments", USUAL]
    listed = text.partition(f"{USUAL}:")[2]
    first, option = listed.partition("\n\n")[0], re.compile(r"^  (?:-\w, )?--([a-z-]+)", re.MULTILINE)
    assert option.findall(first) == usual
    assert [one for one in usual if option.findall(listed).count(one) != 1] == []
    assert all(f"--{one}" in text for one in declared)


@pytest.mark.parametrize("example", [example for entry in COMMANDS.values() for example in entry.examples])
def test_examples_parse(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(example)
    assert program == "prune"
    name = next(word for word in words if word in COMMANDS)
    rest = words[words.index(name) + 1 :]
    if name == "run":  # it would read the recipe
        return
    with checking(), pytest.raises(WorkBegins):
        command_named(name).main(args=["--isolated", *rest], standalone_mode=False)
    assert example in shown(name, capsys)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("prune struc", ["structured"]),
        ("prune structured --rec", ["--recover"]),
        ("prune evaluate m.onnx --format ", ["table", "json", "markdown"]),
    ],
)
def test_a_shell_completes_commands_options_and_choices(
    words: str, offered: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORDS": words, "CWORD": str(words.count(" "))}.items():
        monkeypatch.setenv(f"COMP_{name}", value)
    monkeypatch.setenv("_PRUNE_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == offered
