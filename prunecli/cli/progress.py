"""Progress bars on stderr; rich.progress is imported only when a bar is really shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from prunecli.cli.terminal import terminal
from prunecli.types import Progress, no_progress

T = TypeVar("T")


def progress_for(disabled: bool = False) -> Progress:
    """The progress function to hand to the pipeline: silent with --no-progress, --quiet or off a terminal."""
    return no_progress if disabled or terminal.quiet or not sys.stderr.isatty() else _bar


def _bar(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, no_color=not terminal.use_color(sys.stderr))
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=label)
