"""What a report says, independent of how it is shown: a title and a list of sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A table column. `form` says how numbers are written; strings are shown as they are.

    count: 12,345 or 1.23 M; bytes: 1.2 MB; percent: 0.5 -> 50.0 %; number: four significant digits;
    graph: text drawn as a picture, never shortened.
    On a terminal too narrow for the table, columns with drop > 0 are left out, the largest first.
    """

    title: str
    form: Literal["text", "graph", "count", "bytes", "percent", "number", "ms"] = "text"
    drop: int = 0


@dataclass(frozen=True)
class Table:
    """Rows in reading order. With `top`, a terminal shows only the `top` rows with the largest value in the
    column titled `top_by` (without it, the first ones), in the given order, and says how many it left out.
    Markdown, HTML and --verbose show all."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    top: int | None = None
    top_by: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone` colours it: a warning, a passed check, or plain."""

    body: str
    tone: Literal["plain", "good", "warning"] = "plain"


@dataclass(frozen=True)
class Bars:
    """A horizontal bar chart: one (label, value) per bar, values >= 0."""

    title: str
    rows: Sequence[tuple[str, float]]
    form: Literal["count", "percent", "number"] = "number"
    note: str = ""


Section = Table | Text | Bars


@dataclass
class Document:
    title: str
    sections: list[Section] = field(default_factory=list)
