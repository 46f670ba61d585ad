"""Document -> one self-contained HTML page, light and dark, without scripts or links."""

from __future__ import annotations

from html import escape as html_escape

from prunecli.report.document import Bars, Document, Section, Table, Text
from prunecli.report.render_cells import cell_text, is_number, one_line, table_texts

_STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --bg: #fff; --dim: #59636e; --line: #d8dee4; --head: #f3f5f7;
  --bar: #3b82c4; --good: #1a7f37; --warning: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6edf3; --bg: #0f1419; --dim: #9aa5b1; --line: #2d353f;
  --head: #1a2129; --bar: #5aa2e0; --good: #4ac26b; --warning: #d4a72c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); margin: 2rem auto;
  max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; } th { background: var(--head); font-weight: 600; }
.n { text-align: right; } .graph { font-family: monospace; } .note { color: var(--dim); font-size: .9rem; }
.good { color: var(--good); } .warning { color: var(--warning); }
.bar { background: var(--bar); height: .8rem; border-radius: 2px; min-width: 1px; } .wide { width: 60%; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(document: Document) -> str:
    """All rows and full names, every text escaped; the page loads nothing from anywhere."""
    body = "\n".join(_section(section) for section in document.sections)
    title = escape(document.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """The text on one line, with no character that HTML would interpret."""
    return html_escape(one_line(text), quote=True)


def _section(section: Section) -> str:
    if isinstance(section, Text):
        return f'<p class="{section.tone}">{escape(section.body)}</p>'
    title = f"<h2>{escape(section.title)}</h2>\n" if section.title else ""
    note = f'\n<p class="note">{escape(section.note)}</p>' if section.note else ""
    table = _table(section) if isinstance(section, Table) else _bars(section)
    return f'{title}<div class="scroll"><table>\n{table}\n</table></div>{note}'


def _table(table: Table) -> str:
    kinds = ["n" if is_number(column.form) else column.form for column in table.columns]
    head = "".join(
        f'<th class="{kind}">{escape(column.title)}</th>' for kind, column in zip(kinds, table.columns, strict=True)
    )
    header = [f"<tr>{head}</tr>"] if any(column.title for column in table.columns) else []
    return "\n".join([*header, *(_row(kinds, row) for row in table_texts(table))])


def _row(kinds: list[str], texts: list[str]) -> str:
    cells = (f'<td class="{kind}">{escape(text)}</td>' for kind, text in zip(kinds, texts, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _bars(bars: Bars) -> str:
    largest = max((value for _, value in bars.rows), default=0) or 1
    return "\n".join(
        f'<tr><td>{escape(label)}</td><td class="n">{escape(cell_text(value, bars.form))}</td>'
        f'<td class="wide"><div class="bar" style="width:{100 * value / largest:.2f}%"></div></td></tr>'
        for label, value in bars.rows
    )
