"""Write values as text, the same in every format."""

from __future__ import annotations

import math
from dataclasses import replace

from prunecli.report.document import Cell, Table

NOTHING = "–"


def cell_text(value: Cell, form: str) -> str:
    """Write a cell: None as a dash, strings as they are, numbers by the column's form (see Column)."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    if form in _WRITERS and math.isfinite(value):
        return _WRITERS[form](value)
    return str(value)


def how_many(count: int, what: str) -> str:
    """Return a number with its noun: `1 sample`, `2,000 samples`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def table_texts(table: Table) -> list[list[str]]:
    """Return the texts of all cells of a table."""
    forms = [column.form for column in table.columns]
    return [[cell_text(value, form) for value, form in zip(row, forms, strict=True)] for row in table.rows]


def filled(table: Table) -> Table:
    """Return the table without columns that are empty in every row; the first one stays."""
    empty = [place > 0 and all(row[place] in (None, "") for row in table.rows) for place in range(len(table.columns))]
    if not table.rows or not any(empty):
        return table
    columns = [column for column, gone in zip(table.columns, empty, strict=True) if not gone]
    rows = [[cell for cell, gone in zip(row, empty, strict=True) if not gone] for row in table.rows]
    return replace(table, columns=columns, rows=rows)


def is_number(form: str) -> bool:
    """Whether a column of this form is aligned to the right."""
    return form in _WRITERS


def one_line(text: str) -> str:
    """Return the text with control characters made visible: names in model files may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _count(value: float) -> str:
    return f"{round(value):,}" if abs(value) < 1e6 else _scaled(value, 1e3, ("", "K", "M", "G", "T", "P"))


def _bytes(value: float) -> str:
    return f"{round(value)} B" if abs(value) < 1e3 else _scaled(value, 1e3, ("B", "kB", "MB", "GB", "TB", "PB"))


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    """Return three significant digits and a unit; 999,999 becomes 1.00 M, not 1000 K."""
    power = 0
    while power + 1 < len(units) and abs(value) >= base * (1 - 0.0005):
        value, power = value / base, power + 1
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {units[power]}"


def _percent(value: float) -> str:
    """Return a percentage with one decimal; with two if one would show 0.0 or 100.0 for what is neither."""
    percent = 100 * value
    if percent != 0 and abs(percent) < 0.005:
        return "<0.01 %" if percent > 0 else ">-0.01 %"
    if 99.995 < percent < 100:
        return ">99.99 %"
    digits = 2 if 0 < abs(percent) < 0.05 or 99.95 <= percent < 100 else 1
    return f"{percent:.{digits}f} %"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


_WRITERS = {"count": _count, "bytes": _bytes, "percent": _percent, "number": _number, "ms": _ms}
