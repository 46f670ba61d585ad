"""Document -> GitHub-flavoured Markdown, fit for a CI job summary."""

from __future__ import annotations

import re

from prunecli.report.document import Document, Section, Table, Text
from prunecli.report.render_cells import is_number, one_line, table_texts
from prunecli.report.sketch import as_table

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
