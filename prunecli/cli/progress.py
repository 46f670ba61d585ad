"""Progress bars on stderr; rich.progress is imported only when a bar is really shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from prunecli.cli.terminal import terminal
from prunecli.types import Progress, no_progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

T = TypeVar("T")
DELAY = 0.5
"""Seconds before a bar appears."""


class WorkBegins(Exception):  # noqa: N818 - not an error: how a command that is only checked ends
    """A command's options are all built, and what follows would open files."""


_checking: ContextVar[bool] = ContextVar("checking", default=False)


@contextmanager
def checking() -> Iterator[None]:
    """Within it a command ends with WorkBegins where its work would begin."""
    before = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(before)


def progress_for(disabled: bool = False) -> Progress:
    """The progress function to hand to the pipeline: silent with --no-progress, --quiet or off a terminal.

    To be called when all options are built and nothing was opened yet: a recipe's step is checked up to here.

    Raises:
        WorkBegins: within `checking()`.
    """
    if _checking.get():
        raise WorkBegins
    return no_progress if disabled or terminal.quiet or not sys.stderr.isatty() else _bar


def _bar(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Pass items through; what takes less than DELAY shows nothing."""
    start, done = monotonic(), 0
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


def _start(label: str, total: int | None) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, no_color=not terminal.use_color(sys.stderr))
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task(label, total=total)
    bar.start()
    return bar
