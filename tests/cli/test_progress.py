"""Progress passes items through untouched, and is silent where it should be."""

from __future__ import annotations

import sys

import pytest

from prunecli.cli import terminal as progress
from prunecli.cli.terminal import terminal
from prunecli.types import no_progress


@pytest.fixture(autouse=True)
def fresh_terminal() -> None:
    terminal.reset()


@pytest.mark.parametrize(
    ("tty", "disabled", "quiet"), [(False, False, False), (True, True, False), (True, False, True)]
)
def test_no_bar(tty: bool, disabled: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    terminal.quiet = quiet
    assert progress.progress_for(disabled) is no_progress


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert progress.progress_for() is not no_progress


@pytest.mark.parametrize(("delay", "drawn"), [(-1.0, True), (1e9, False)])
def test_bar_draws_only_what_takes_long(
    delay: float, drawn: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "DELAY", delay)
    assert list(progress.progress_for()(range(3), "measuring", 3)) == [0, 1, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("measuring" in captured.err) is drawn


def test_bar_stops_when_the_loop_is_left_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "DELAY", -1.0)
    stopped: list[bool] = []
    start = progress._start

    def watched(label: str, total: int | None) -> object:
        bar = start(label, total)
        stop = bar.stop
        monkeypatch.setattr(bar, "stop", lambda: (stopped.append(True), stop()))
        return bar

    monkeypatch.setattr(progress, "_start", watched)
    for item in progress.progress_for()(iter(range(9)), "measuring"):
        if item == 2:
            break
    import gc

    gc.collect()
    assert stopped == [True]
