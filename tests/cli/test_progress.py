"""Progress passes items through untouched, and is silent where it should be."""

from __future__ import annotations

import sys
import time
from pathlib import Path

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


# delay, file there, what is drawn: before the first bar, and with it
LOADED = [(-1.0, True, True), (1e9, True, False), (-1.0, False, False)]


@pytest.mark.parametrize(("delay", "there", "drawn"), LOADED)
def test_a_file_that_takes_long_to_load_is_named(
    delay: float, there: bool, drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "m.onnx"
    if there:
        path.write_bytes(b"x" * 3000)
        (tmp_path / "m.onnx.data").write_bytes(b"x" * 2_000_000)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "DELAY", max(delay, 0.0))
    with progress.loading(progress.progress_for(), [path]) as shown:
        time.sleep(0.2)
        before = capsys.readouterr().err
        assert list(shown(range(3), "measuring")) == [0, 1, 2]
        time.sleep(0.2)
        assert "loading" not in capsys.readouterr().err.split("measuring")[-1]
    assert ("loading m.onnx (2.00 MB)" in " ".join(before.split())) is drawn
    assert "done in" not in before


def test_nothing_is_named_where_there_are_no_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with progress.loading(no_progress, [tmp_path / "m.onnx"]) as shown:
        assert shown is no_progress


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
