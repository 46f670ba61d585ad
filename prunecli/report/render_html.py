"""Turn a document into one HTML page, light and dark, with charts as SVG. It has no scripts and no links to other
files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape as html_escape

from prunecli.report.document import Bars, Chart, Column, Document, Level, Section, Table, Text
from prunecli.report.render_cells import filled, is_number, one_line, table_texts
from prunecli.report.sketch import as_table

_STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --bg: #fff; --dim: #59636e; --line: #d8dee4; --head: #f3f5f7;
  --good: #1a7f37; --warning: #9a6700;
  --c0: #2a6fb5; --c1: #c8590b; --c2: #22806a; --c3: #8250c4; --c4: #b93269; --c5: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6edf3; --bg: #0f1419; --dim: #9aa5b1; --line: #2d353f;
  --head: #1a2129; --good: #4ac26b; --warning: #d4a72c;
  --c0: #62a8ea; --c1: #f0914a; --c2: #4fc0a2; --c3: #b794f0; --c4: #f07fae; --c5: #a3adba; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); margin: 2rem auto;
  max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; text-align: left; border-bottom: 1px solid var(--line); }
.name, .text { overflow-wrap: anywhere; min-width: 8rem; } .name { min-width: 10rem; }
.short { white-space: nowrap; }
tr:last-child td { border-bottom: 0; } th { background: var(--head); font-weight: 600; }
.n { text-align: right; white-space: nowrap; } .graph { font-family: monospace; white-space: nowrap; }
.note { color: var(--dim); font-size: .9rem; }
.good { color: var(--good); } .warning { color: var(--warning); } .dim { color: var(--dim); }
nav { margin: 1rem 0; font-size: .9rem; } nav a { color: var(--c0); margin-right: 1rem; white-space: nowrap; }
.chart { overflow-x: auto; } .chart svg { display: block; min-width: 56rem; max-width: 100%;
  height: auto; } svg text { font-family: inherit; paint-order: stroke; stroke: var(--bg);
  stroke-width: 3px; stroke-linejoin: round; }
details { margin: .3rem 0; color: var(--dim); font-size: .9rem; } summary { cursor: pointer; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(document: Document) -> str:
    """Return the page, with all rows and full names. Every text is escaped."""
    sections = document.by_importance()
    places = [place for place, section in enumerate(sections) if not isinstance(section, Text) and section.title]
    links = "\n".join(f'<a href="#s{place}">{escape(_title(sections[place]))}</a>' for place in places)
    contents = f"<nav>{links}</nav>" if len(places) > 1 else ""
    blocks = [_section(section, place) for place, section in enumerate(sections)]
    first = next((place for place, section in enumerate(sections) if section.level > Level.HEADLINE), len(sections))
    body = "\n".join([*blocks[:first], *filter(None, [contents]), *blocks[first:]])
    title = escape(document.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="generator" content="prunecli">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Return the text on one line, with all characters escaped that HTML would interpret."""
    return html_escape(one_line(text), quote=True)


def _title(section: Section) -> str:
    return "" if isinstance(section, Text) else section.title


def _section(section: Section, place: int) -> str:
    if isinstance(section, Text):
        return f'<p class="{section.tone}">{escape(section.body)}</p>'
    title = f'<h2 id="s{place}">{escape(section.title)}</h2>\n' if section.title else ""
    note = f'\n<p class="note">{escape(section.note)}</p>' if section.note else ""
    return f"{title}{_body(section)}{note}"


def _body(section: Table | Bars | Chart) -> str:
    """Return a table as HTML; of bars and charts, the drawing with its table folded below."""
    table = f'<div class="scroll"><table>\n{_table(filled(as_table(section)))}\n</table></div>'
    if isinstance(section, Table):
        return table
    if not (section.panels if isinstance(section, Chart) else section.labels):
        return '<p class="note">nothing to show</p>'
    from prunecli.report.draw import draw

    return f'<div class="chart">{draw(section)}</div>\n<details><summary>in figures</summary>{table}</details>'


_SHORT = 16
"""Columns whose longest cell has at most that many letters are not broken into lines."""


def _table(table: Table) -> str:
    texts = table_texts(table)
    kinds = [_kind(column, [row[place] for row in texts]) for place, column in enumerate(table.columns)]
    head = "".join(
        f'<th class="{kind}">{escape(column.title)}</th>' for kind, column in zip(kinds, table.columns, strict=True)
    )
    header = [f"<tr>{head}</tr>"] if any(column.title for column in table.columns) else []
    return "\n".join([*header, *(_row(kinds, row) for row in texts)])


def _kind(column: Column, texts: Sequence[str]) -> str:
    """Return the CSS class of the cells of a column."""
    if is_number(column.form):
        return "n"
    return "short" if max(map(len, [column.title, *texts])) <= _SHORT else column.form


def _row(kinds: list[str], texts: list[str]) -> str:
    cells = (f'<td class="{kind}">{_breakable(text, kind)}</td>' for kind, text in zip(kinds, texts, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _breakable(text: str, kind: str) -> str:
    """Return the text as HTML; a name may be broken into lines after a dot, slash or underscore."""
    return re.sub(r"(?<=\w)([._/]+)(?=[^\W\d])", r"\1<wbr>", escape(text)) if kind in ("name", "text") else escape(text)
