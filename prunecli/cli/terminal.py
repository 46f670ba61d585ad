"""What goes to stderr: errors, hints and notes in lines, progress in bars; and what global options say about both
streams."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock, Timer
from time import monotonic
from typing import IO, TYPE_CHECKING, TypeVar, cast

from prunecli.errors import PruneError, memory_hint, short_of_memory
from prunecli.files import appeared
from prunecli.report.document import Level
from prunecli.report.render_cells import cell_text, one_line
from prunecli.types import Progress, no_progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_TONES = {"error": "\x1b[31;1m", "warning": "\x1b[33;1m", "hint": "\x1b[36;1m", "note": "\x1b[2m"}


class ColorMode(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


@dataclass
class Terminal:
    """The settings of this process: one command line, one terminal."""

    color: ColorMode = ColorMode.auto
    quiet: bool = False
    verbose: bool = False
    isolated: bool = False
    """Whether defaults of pyproject.toml are ignored."""
    words: tuple[str, ...] = ()
    """The command line."""
    ended_by: int = signal.SIGINT
    """The signal, where one ended the command."""

    @property
    def level(self) -> Level:
        """How much of a report is printed."""
        return Level.HEADLINE if self.quiet else Level.DETAIL if self.verbose else Level.NORMAL

    def reset(self) -> None:
        """Set the defaults, for a new command line."""
        self.color, self.quiet, self.verbose, self.isolated = ColorMode.auto, False, False, False

    def use_color(self, stream: IO[str]) -> bool:
        """--color wins, then NO_COLOR (any non-empty value), then whether the stream is a terminal."""
        if self.color is not ColorMode.auto:
            return self.color is ColorMode.always
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


terminal = Terminal()


def say(kind: str, text: str) -> None:
    """Print `kind: text` on stderr, on one line. `note` and `warning` are silent under --quiet."""
    if terminal.quiet and kind in ("note", "warning"):
        return
    start, end = (_TONES[kind], "\x1b[0m") if terminal.use_color(sys.stderr) else ("", "")
    print(f"{start}{kind}:{end} {one_line(' '.join(text.split()))}", file=sys.stderr)


def explain(error: Exception, command: str) -> tuple[str, str, int]:
    """Return message, hint and exit code for an exception."""
    if isinstance(error, PruneError):
        return error.message, error.hint or f"`{command} --help` explains the options", error.exit_code
    if hasattr(error, "format_message"):  # Typer's own usage errors
        cause = error.__cause__
        message = error.format_message().strip().rstrip(".")
        own_hint = cause.hint if isinstance(cause, PruneError) else ""
        return message[:1].lower() + message[1:], own_hint or f"see `{command} --help`", 2
    if short_of_memory(error):
        return "out of memory", memory_hint(), 2
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}", "check the path, its permissions and the free space", 2
    what = f"internal: {type(error).__name__}: {error}"
    return what, "please report it, with the traceback that PRUNE_DEBUG=1 shows", 2


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C for so long, so that a second one does not stop what the first one has to say."""
    with suppress(ValueError):  # not the main thread, which alone is interrupted
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        with suppress(ValueError, NameError):
            signal.signal(signal.SIGINT, before)


def interrupted() -> tuple[str, str]:
    """Return message and hint after Ctrl-C or a signal to end: which files were written."""
    there = ", ".join(str(path) for path in dict.fromkeys(appeared) if path.exists())
    left = f"complete and in place: {there}" if there else "nothing was written"
    return f"interrupted; {left}", "unfinished files are removed; run the command again"


T = TypeVar("T")
DELAY = 0.5
"""Seconds before a bar appears."""


class WorkBegins(Exception):  # noqa: N818 - not an error: how a command that is only checked ends
    """Ends a command that is only checked: its options are built, and its work would begin."""


_checking: ContextVar[bool] = ContextVar("checking", default=False)


@contextmanager
def checking() -> Iterator[None]:
    """Make commands end with WorkBegins where their work would begin."""
    before = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(before)


def progress_for(disabled: bool = False) -> Progress:
    """Return the progress function for a command: silent with --no-progress, --quiet or off a terminal.

    Call it when all options are built and nothing is opened: the check of a recipe's step ends here.

    Raises:
        WorkBegins: within `checking()`.
    """
    if _checking.get():
        raise WorkBegins
    return no_progress if disabled or terminal.quiet or not sys.stderr.isatty() else _bar


class _Loading:
    """A line that says which file is read, from DELAY on until the first bar. A thread of its own starts it, since
    parsing and opening a model are single calls."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._label = "loading " + ", ".join(f"{path.name} ({cell_text(_size(path), 'bytes')})" for path in paths)
        self._lock, self._line, self._over = Lock(), cast("Bar | None", None), False
        self._timer = Timer(DELAY, self._begin)
        self._timer.daemon = True
        self._timer.start()

    def _begin(self) -> None:
        with self._lock:
            if not self._over:
                self._line = _start(self._label, None, counted=False)

    def stop(self) -> None:
        """Remove the line, or never show it."""
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._line is not None:
                self._line.stop()
                self._line = None


def _size(path: Path) -> int:
    """Return the bytes of a file, and of the data beside it where it is named after it as exporters do."""
    beside = (path, *(path.with_name(f"{path.name}{end}") for end in (".data", "_data")))
    return sum(each.stat().st_size for each in beside if each.is_file())


@contextmanager
def loading(progress: Progress, paths: Sequence[Path]) -> Iterator[Progress]:
    """Give a progress function in place of `progress` that says which files are loaded until it is first called."""
    there = [path for path in paths if path.is_file()]
    if progress is no_progress or not there:
        yield progress
        return
    line = _Loading(there)

    def first(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        line.stop()
        return progress(items, label, total)

    try:
        yield first
    finally:
        line.stop()


def _bar(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Pass items through and show a bar once they take longer than DELAY."""
    start, done = monotonic(), 0
    total = len(items) if total is None and isinstance(items, Sized) else total
    bar: Bar | None = None
    try:
        for item in items:
            if bar is None and monotonic() - start > DELAY:
                bar = _start(label, total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
            yield item
            done += 1
    finally:
        if bar is not None:
            bar.stop()


def _start(label: str, total: int | None, counted: bool = True) -> Bar:
    """`counted`: whether the number of items that are done is shown."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    known: list[ProgressColumn] = [MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True)]
    done: list[ProgressColumn] = [TextColumn("{task.completed} done in")] if counted else []
    unknown = [*done, TimeElapsedColumn()]
    columns = (TextColumn("{task.description}"), BarColumn(), *(unknown if total is None else known))
    console = Console(stderr=True, no_color=not terminal.use_color(sys.stderr))
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task(label, total=total)
    bar.start()
    return bar
