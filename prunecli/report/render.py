"""Document -> text for a terminal or a pipe, by rich."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunecli.errors import some
from prunecli.report.document import Column, Document, Level, Section, Table, Text
from prunecli.report.names import common_beginning, least_width, shortened
from prunecli.report.render_cells import filled, is_number, one_line, table_texts
from prunecli.report.sketch import as_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text as RichText

UNLIMITED = 100_000
PIPED = 120
"""Columns of a table where no terminal limits the width."""
MORE = 4
"""Most titles of hidden sections that are listed."""
_MIN_NAME, _MIN_TEXT = 16, 24
_GAP = 2
_TONES = {"plain": "", "good": "green", "warning": "yellow", "dim": "dim"}


def to_terminal(
    document: Document, width: int | None = None, color: bool = False, level: Level = Level.NORMAL
) -> str:  # fmt: skip
    """Render for reading on a terminal.

    Args:
        document: what to show.
        width: columns of the terminal; None (a pipe or a file): tables have PIPED columns, lines of text any length.
        color: whether to write escape sequences.
        level: which sections are shown; with DETAIL tables have all rows, with HEADLINE the title is left out.
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
    if level > Level.HEADLINE:
        console.print(one_line(document.title), style="bold")
    before: Section = Text("")
    for section in document.at(level):
        if not (isinstance(before, Text) and isinstance(section, Text)):
            console.print()
        _render(console, section, width or PIPED, complete=level >= Level.DETAIL)
        before = section
    if level == Level.NORMAL and (more := _titles(document)):
        console.print(f"-v shows more: {some(more, MORE)}", style="dim")
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _titles(document: Document) -> list[str]:
    """Return the titles of the tables that only --verbose shows."""
    hidden = [section for section in document.sections if section.level > Level.NORMAL]
    return [
        one_line(section.title) for section in hidden if isinstance(section, Table) and section.rows and section.title
    ]


def _render(console: Console, section: Section, width: int, complete: bool) -> None:
    if isinstance(section, Text):
        console.print(one_line(section.body), style=_TONES[section.tone])
        return
    table = filled(as_table(section))
    if table.title and not (table.columns and not table.columns[0].title and any(c.title for c in table.columns)):
        console.print(one_line(table.title), style="bold")
    elif table.columns:  # the title stands above the names of the rows
        table = replace(table, columns=[replace(table.columns[0], title=one_line(table.title)), *table.columns[1:]])
    _render_table(console, table, width, complete=complete)
    if section.note:
        console.print(one_line(section.note), style="dim")


def _render_table(console: Console, table: Table, width: int, complete: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    rows = range(len(table.rows)) if complete else top_rows(table)
    texts = [[one_line(text) for text in row] for row in table_texts(table)]
    fitted = fit(table.columns, [texts[row] for row in rows], width)
    rich = RichTable(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        show_header=any(column.title for column in fitted.columns),
    )
    for column, columns_of_it in zip(fitted.columns, fitted.widths, strict=True):
        wraps = column.form in ("text", "name")
        rich.add_column(
            column.title,
            justify="right" if is_number(column.form) else "left",
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
            width=columns_of_it if wraps else None,
        )
    for row in fitted.texts:
        rich.add_row(*map(_literal, row))
    console.print(rich)
    if len(rows) < len(table.rows):
        largest = f", smaller in {table.top_by}" if table.top_by else ""
        console.print(f"and {len(table.rows) - len(rows)} more{largest}; --verbose shows all", style="dim")
    for said in fitted.left_out:
        console.print(said, style="dim")


def top_rows(table: Table) -> Sequence[int]:
    """Return the rows that a terminal shows, in reading order."""
    if table.top is None or len(table.rows) <= table.top:
        return range(len(table.rows))
    titles = [column.title for column in table.columns]
    if table.top_by not in titles:
        return range(table.top)
    values = [row[titles.index(table.top_by)] for row in table.rows]
    size = [value if isinstance(value, int | float) else -1.0 for value in values]
    return sorted(sorted(range(len(size)), key=lambda row: -size[row])[: table.top])


@dataclass(frozen=True)
class FittedTable:
    """A table as a terminal shows it. `left_out`: sentences about omitted parts."""

    columns: list[Column]
    texts: list[list[str]]
    widths: list[int]
    left_out: list[str]


def fit(columns: Sequence[Column], texts: list[list[str]], width: int) -> FittedTable:
    """Make a table fit: leave out what names begin with, then columns that allow it, then cut names and wrap texts.
    Different names stay different; where that takes more than the width, they go on in further lines."""
    shown, cells = list(columns), [[row[i] for row in texts] for i in range(len(columns))]
    said: list[str] = []
    if _total(_widths(shown, cells)) > width:
        _leave_out_beginnings(shown, cells, said)
    dropped: list[str] = []
    while _total(_least(shown, cells)) > width and (candidate := max(shown, key=lambda c: c.drop)).drop > 0:
        position = shown.index(candidate)
        dropped.append(candidate.title)
        del shown[position], cells[position]
    widths = _shrunk(shown, cells, width)
    for place, column in enumerate(shown):
        if column.form == "name":
            room = range(widths[place], 0, -1)
            cells[place] = next((found for w in room if (found := shortened(cells[place], w))), cells[place])
    said += [f"not shown at this width: {', '.join(dropped)}"] if dropped else []
    return FittedTable(shown, [list(row) for row in zip(*cells, strict=True)], widths, left_out=said)


def _leave_out_beginnings(columns: Sequence[Column], cells: list[list[str]], said: list[str]) -> None:
    """Shorten every column of names by what they have in common."""
    for place, column in enumerate(columns):
        if column.form == "name" and (start := common_beginning(cells[place])):
            cells[place] = [name[len(start) :] for name in cells[place]]
            said.append(f"{column.title}: each name begins with {start}")


def _widths(columns: Sequence[Column], cells: list[list[str]]) -> list[int]:
    return [max(len(c.title), *map(len, own), 0) for c, own in zip(columns, cells, strict=True)]


def _least(columns: Sequence[Column], cells: list[list[str]]) -> list[int]:
    """Return the least readable widths: numbers and graphs in full, names as long as they stay different, texts in
    lines of a few words."""
    least = []
    for column, own, width in zip(columns, cells, _widths(columns, cells), strict=True):
        if column.form == "name":
            width = max(len(column.title), least_width(own, _MIN_NAME))
        elif column.form == "text":
            width = min(width, max(_MIN_TEXT, len(column.title)))
        least.append(width)
    return least


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _shrunk(columns: Sequence[Column], cells: list[list[str]], width: int) -> list[int]:
    """Take one character at a time from the widest column of names or texts until the table fits: down to its least,
    and where that is not enough, to lines of a few letters."""
    widths = _widths(columns, cells)
    few = [min(w, _MIN_NAME) if c.form in ("name", "text") else w for c, w in zip(columns, widths, strict=True)]
    for least in (_least(columns, cells), few):
        while _total(widths) > width:
            spare = [w if w > m else -1 for w, m in zip(widths, least, strict=True)]
            widest = spare.index(max(spare, default=-1)) if spare else 0
            if not spare or spare[widest] < 0:
                break
            widths[widest] -= 1
    return widths


def _literal(text: str) -> RichText:
    from rich.text import Text as RichText

    return RichText(text)


# `_` inside a word is plain text in GitHub's Markdown, and most tensor names are full of them.
_SPECIAL = re.compile(r"([\\`*|<>\[\]#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_MARKS = {"plain": "", "good": "✅ ", "warning": "⚠️ ", "dim": ""}


def to_markdown(document: Document) -> str:
    """All rows and full names; nothing in a name can break out of its cell."""
    blocks = [f"## {escape(document.title)}"]
    for section in document.by_importance():
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
    return [*title, _table(filled(as_table(section))), *note]


def _table(table: Table) -> str:
    head = [escape(column.title) for column in table.columns]
    rule = ["---:" if is_number(column.form) else "---" for column in table.columns]
    rows = [[escape(text) for text in row] for row in table_texts(table)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
