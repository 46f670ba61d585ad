"""Document -> text for a terminal or a pipe, by rich."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunecli.report.document import Bars, Chart, Column, Document, Section, Table, Text
from prunecli.report.render_cells import is_number, one_line, shorten, table_texts
from prunecli.report.sketch import as_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text as RichText

UNLIMITED = 100_000
_MIN_TEXT = 16
_GAP = 2
_TONES = {"plain": "", "good": "green", "warning": "yellow"}


def to_terminal(
    document: Document, width: int | None = None, color: bool = False, complete: bool = False, details: bool = False
) -> str:
    """Render for reading on a terminal.

    Args:
        document: what to show.
        width: columns of the terminal; None (a pipe or a file): nothing is shortened or left out.
        color: whether to write escape sequences.
        complete: show all rows of what asks to be cut to its top.
        details: show what is a detail, too.
    """
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file,
        width=width or UNLIMITED,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(one_line(document.title), style="bold")
    for section in document.sections:
        if details or not (isinstance(section, Bars | Chart) and section.detail):
            console.print()
            _render(console, section, width, complete)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _render(console: Console, section: Section, width: int | None, complete: bool) -> None:
    if isinstance(section, Text):
        console.print(one_line(section.body), style=_TONES[section.tone])
        return
    if section.title:
        console.print(one_line(section.title), style="bold")
    _render_table(console, as_table(section), width, complete)
    if section.note:
        console.print(one_line(section.note), style="dim")


def _render_table(console: Console, table: Table, width: int | None, complete: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    rows = range(len(table.rows)) if complete else top_rows(table)
    texts = [[one_line(text) for text in row] for row in table_texts(table)]
    columns, texts, dropped = fit(table.columns, [texts[row] for row in rows], width)
    rich = RichTable(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        show_header=any(column.title for column in columns),
    )
    for column in columns:
        rich.add_column(column.title, justify="right" if is_number(column.form) else "left", no_wrap=True)
    for row in texts:
        rich.add_row(*map(_literal, row))
    console.print(rich)
    if len(rows) < len(table.rows):
        largest = f", smaller in {table.top_by}" if table.top_by else ""
        console.print(f"and {len(table.rows) - len(rows)} more{largest}; --verbose shows all", style="dim")
    if dropped:
        console.print(f"not shown at this width: {', '.join(dropped)}", style="dim")


def top_rows(table: Table) -> Sequence[int]:
    """The rows a terminal shows, in reading order."""
    if table.top is None or len(table.rows) <= table.top:
        return range(len(table.rows))
    titles = [column.title for column in table.columns]
    if table.top_by not in titles:
        return range(table.top)
    values = [row[titles.index(table.top_by)] for row in table.rows]
    size = [value if isinstance(value, int | float) else -1.0 for value in values]
    return sorted(sorted(range(len(size)), key=lambda row: -size[row])[: table.top])


def fit(
    columns: Sequence[Column], texts: list[list[str]], width: int | None
) -> tuple[list[Column], list[list[str]], list[str]]:
    """Make a table fit: leave out columns that allow it, then shorten the longest texts in the middle.

    Returns:
        the columns and cells to show, and the titles of the columns left out.
    """
    shown = list(columns)
    if width is None:
        return shown, texts, []
    dropped: list[str] = []
    while _total(_least(shown, texts)) > width and (candidate := max(shown, key=lambda c: c.drop)).drop > 0:
        position = shown.index(candidate)
        dropped.append(candidate.title)
        shown = shown[:position] + shown[position + 1 :]
        texts = [row[:position] + row[position + 1 :] for row in texts]
    widths = _shrunk(shown, texts, width)
    return shown, [[shorten(t, w) for t, w in zip(row, widths, strict=True)] for row in texts], dropped


def _widths(columns: Sequence[Column], texts: list[list[str]]) -> list[int]:
    return [max(len(c.title), *(len(row[i]) for row in texts), 0) for i, c in enumerate(columns)]


def _least(columns: Sequence[Column], texts: list[list[str]]) -> list[int]:
    """The widths below which a column is no longer worth reading: numbers and graphs in full."""
    widths = _widths(columns, texts)
    return [
        min(width, max(_MIN_TEXT, len(column.title))) if column.form == "text" else width
        for column, width in zip(columns, widths, strict=True)
    ]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _shrunk(columns: Sequence[Column], texts: list[list[str]], width: int) -> list[int]:
    """Take one character at a time from the widest text column until the table fits, down to its least."""
    widths, least = _widths(columns, texts), _least(columns, texts)
    while _total(widths) > width:
        spare = [w if w > m else -1 for w, m in zip(widths, least, strict=True)]
        widest = spare.index(max(spare))
        if spare[widest] < 0:
            break
        widths[widest] -= 1
    return widths


def _literal(text: str) -> RichText:
    from rich.text import Text as RichText

    return RichText(text)


# `_` inside a word is plain text in GitHub's Markdown, and most tensor names are full of them.
_SPECIAL = re.compile(r"([\\`*|<>\[\]#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_MARKS = {"plain": "", "good": "✅ ", "warning": "⚠️ "}


def to_markdown(document: Document) -> str:
    """All rows and full names; nothing in a name can break out of its cell."""
    blocks = [f"## {escape(document.title)}"]
    for section in document.sections:
        blocks += _blocks(section)
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """The text on one line with every character that Markdown would interpret escaped."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def _blocks(section: Section) -> list[str]:
    if isinstance(section, Text):
        return [_MARKS[section.tone] + escape(section.body)]
    title = [f"### {escape(section.title)}"] if section.title else []
    note = [f"*{escape(section.note)}*"] if section.note else []
    return [*title, _table(as_table(section)), *note]


def _table(table: Table) -> str:
    head = [escape(column.title) for column in table.columns]
    rule = ["---:" if is_number(column.form) else "---" for column in table.columns]
    rows = [[escape(text) for text in row] for row in table_texts(table)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
