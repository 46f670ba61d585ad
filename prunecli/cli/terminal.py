"""What the global options decided about stdout and stderr, and the lines that go to stderr."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import IO

from prunecli.errors import PruneError
from prunecli.files import appeared
from prunecli.report.render_cells import one_line

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
    ended_by: int = signal.SIGINT
    """The signal, where one ended the command."""

    def reset(self) -> None:
        """Back to the defaults: a new command line."""
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
    """(what, what to do, exit code) for anything that was raised."""
    if isinstance(error, PruneError):
        return error.message, error.hint or f"`{command} --help` explains the options", error.exit_code
    if hasattr(error, "format_message"):  # Typer's own usage errors
        cause = error.__cause__
        message = error.format_message().strip().rstrip(".")
        own_hint = cause.hint if isinstance(cause, PruneError) else ""
        return message[:1].lower() + message[1:], own_hint or f"see `{command} --help`", 2
    if isinstance(error, MemoryError):
        return "out of memory", "close other programs, or use a smaller --batch-size", 2
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}", "check the path, its permissions and the free space", 2
    what = f"internal: {type(error).__name__}: {error}"
    return what, "please report it, with the traceback that PRUNE_DEBUG=1 shows", 2


def interrupted() -> tuple[str, str]:
    """(what became of the files, what to do) after Ctrl-C or a signal to end."""
    there = ", ".join(str(path) for path in dict.fromkeys(appeared) if path.exists())
    left = f"complete and in place: {there}" if there else "nothing was written"
    return f"interrupted; {left}", "unfinished files are removed; run the command again"
