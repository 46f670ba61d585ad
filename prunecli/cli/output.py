"""The only printer to stdout: a command's result as a table, JSON or Markdown, and as a report file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunecli._version import __version__
from prunecli.cli.terminal import terminal
from prunecli.files import written
from prunecli.report.document import MARKS, Column, Document, Table
from prunecli.report.result import Reported

_collected: ContextVar[list[Reported] | None] = ContextVar("collected", default=None)
_drawn: ContextVar[bool] = ContextVar("drawn", default=False)


@contextmanager
def collected(drawn: bool = False) -> Iterator[list[Reported]]:
    """Collect results in the list instead of printing them, as for the steps of a recipe. `drawn`: the report that will
    show them has charts."""
    results: list[Reported] = []
    before, drawn_before = _collected.set(results), _drawn.set(drawn)
    try:
        yield results
    finally:
        _collected.reset(before)
        _drawn.reset(drawn_before)


def emit(
    result: Reported, format: str = "table", reports: Sequence[Path] = (), seed: int | None = None
) -> None:  # fmt: skip
    """Print the result on stdout in the chosen format, and write the report files, which say also how they were made.
    `seed`: of the command's random choices, where it has any.

    Raises:
        PruneError: a report cannot be written.
    """
    for path in reports:
        with written(path, "report") as file:
            file.write(_report_text(result, path.suffix.lower(), seed))
    if (results := _collected.get()) is not None:
        results.append(result)
        return
    if format == "table":
        _print_table(result.to_document())
    elif format == "json":
        _print(to_json_text(result))
    else:
        from prunecli.report.render import to_markdown

        _print(to_markdown(result.to_document()))


def draws(reports: Sequence[Path]) -> bool:
    """Whether a report will show charts, whose values a command must then measure."""
    return _drawn.get() or any(path.suffix.lower() in (".md", ".html") for path in reports)


def to_json_text(result: Reported) -> str:
    """Return the JSON of the contract. Numbers stay numbers (numpy's too); NaN and infinity become null."""
    found = result.to_json()
    first = {key: found[key] for key in ("schema",) if key in found}  # by which a report is known
    return json.dumps(plain(first | found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Reduce a value to what JSON has: dict, list, str, bool, int, finite float, null.

    Raises:
        TypeError: a value with no JSON meaning; a defect of the command, so not a PruneError.
    """
    if value is None or isinstance(value, str | bool | int):
        return int(value) if type(value) not in (str, bool, type(None)) and isinstance(value, int) else value
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def drop_stdout() -> None:
    """Discard further output: the reader of stdout has closed it (`prune inspect m.onnx | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_text(result: Reported, suffix: str, seed: int | None) -> str:
    if suffix == ".json":
        return to_json_text(result)
    document = result.to_document()
    document.sections.append(_origin(seed))
    if suffix == ".md":
        from prunecli.report.render import to_markdown

        return f"{MARKS[suffix]}\n{to_markdown(document)}"
    from prunecli.report.render_html import to_html

    return to_html(document)


def _origin(seed: int | None) -> Table:
    """By which command, program and machine a report was made, and when."""
    rows = [("command", shlex.join(["prune", *terminal.words])), ("version", f"prunecli {__version__}")]
    rows.append(("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")))
    rows += [] if seed is None else [("seed", str(seed))]
    machine = f"{cpu_name()}, {os.cpu_count()} logical CPUs, {platform.system()} {platform.release()}"
    rows.append(("machine", f"{machine}; onnxruntime {version('onnxruntime')}, Python {platform.python_version()}"))
    return Table("How this was made", (Column(""), Column("")), rows)


def cpu_name() -> str:
    """The processor as the system names it."""
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _print_table(document: Document) -> None:
    from prunecli.report.render import to_terminal

    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
    text = to_terminal(document, width=width, color=terminal.use_color(sys.stdout), level=terminal.level)
    _print(text)


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
