"""The content of a report, independent of its form: a title and a list of sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

MARKS = {
    ".json": '{\n  "schema": "prunecli/1"',
    ".md": "<!-- report of prunecli -->",
    ".html": '<meta name="generator" content="prunecli">',
}
"""First characters of a report, by suffix, so that only reports are replaced."""


class Level(IntEnum):
    """How much a reader asks for. A section is shown to whoever asks for its level or a higher one.

    HEADLINE: the result in a line (`--quiet`). NORMAL: one small table, the proof, what was written, notes that matter.
    DETAIL: everything (`--verbose`, report files), in full length.
    """

    HEADLINE = 0
    NORMAL = 1
    DETAIL = 2


Cell = str | int | float | None
Tone = Literal["plain", "good", "warning", "dim"]
NumberForm = Literal["count", "bytes", "percent", "number", "ms"]


@dataclass(frozen=True)
class Column:
    """A table column. `form` says how numbers are written; strings are shown as they are.

    count: 12,345 or 1.23 M; bytes: 1.2 MB; percent: 0.5 -> 50.0 %; number: four significant digits;
    graph: text drawn as a picture, never shortened; name: a name of the model, of which only as much is left out as
    leaves different names different; text: prose, which is wrapped.
    On a terminal too narrow for the table, columns with drop > 0 are left out, the largest first.
    """

    title: str
    form: Literal["text", "name", "graph"] | NumberForm = "text"
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
    level: Level = Level.DETAIL


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone` colours it: a warning, a gain or a passed check, what is within noise (dim), or plain."""

    body: str
    tone: Tone = "plain"
    level: Level = Level.NORMAL


@dataclass(frozen=True)
class Bars:
    """Horizontal bars: for each label one bar of each series, or with `stacked` one bar of all series in a row.

    Args:
        labels: what the bars stand for, in reading order.
        series: (name, values): one value >= 0 per label; None where there is none.
        form: how values are written, see Column.
        stacked: the series are parts of a whole.
        full: the value of a bar of full length; None: the largest.

    Raises:
        ValueError: a series does not have one value per label, or a value is negative.
    """

    title: str
    labels: Sequence[str]
    series: Sequence[tuple[str, Sequence[float | None]]]
    form: NumberForm = "number"
    stacked: bool = False
    note: str = ""
    full: float | None = None
    level: Level = Level.DETAIL

    def __post_init__(self) -> None:
        for name, values in self.series:
            if len(values) != len(self.labels):
                raise ValueError(f"{self.title}: {len(values)} values of {name} for {len(self.labels)} labels")
            if any(value is not None and value < 0 for value in values):
                raise ValueError(f"{self.title}: negative values of {name}")


@dataclass(frozen=True)
class ChartAxis:
    """What is along one side of a chart. `form` says how its numbers are written, see Column."""

    title: str
    form: NumberForm = "number"
    log: bool = False


@dataclass(frozen=True)
class Series:
    """Values y over x. In a chart of several panels, series of one name have one colour.

    Args:
        name: for the legend; a chart whose only name is "" has none.
        x: positions, in drawing order; for a histogram the len(y) + 1 edges of its bins, ascending.
        y: values; None is a gap.
        draw: a line, a line in steps (y holds until the next x), points, points joined in their order
            (a path), or a histogram.
        low, high: an interval around each y: a band around lines, whiskers at points. Empty: none.
        labels: a name for each point, shown where the reader points at it. Empty: none.
        width: of lines, which then have no markers, or of points; 0: the usual one.

    Raises:
        ValueError: lengths that do not agree.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    draw: Literal["line", "steps", "points", "path", "histogram"] = "line"
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    labels: Sequence[str] = ()
    width: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.y) + (self.draw == "histogram")
        if len(self.x) != count:
            raise ValueError(f"{self.name}: {len(self.x)} positions for {len(self.y)} values")
        if len(self.low) != len(self.high) or any(len(p) not in (0, len(self.y)) for p in (self.low, self.labels)):
            raise ValueError(f"{self.name}: low, high and labels need one entry per value, or none")


@dataclass(frozen=True)
class Mark:
    """A straight line across a panel with a name: a cut at some x, a promise at some y."""

    axis: Literal["x", "y"]
    at: float
    name: str


@dataclass(frozen=True)
class Panel:
    """One coordinate system of a chart. `x`, `y`: its own axes, where they are not the chart's."""

    series: Sequence[Series]
    title: str = ""
    marks: Sequence[Mark] = ()
    x: ChartAxis | None = None
    y: ChartAxis | None = None


@dataclass(frozen=True)
class Chart:
    """Lines, points or histograms over numbers; several panels are small multiples, in reading order.

    Args:
        shared: all panels have the same range of x and y, so that they can be compared; "x" or "y": of that alone.
    """

    title: str
    panels: Sequence[Panel]
    x: ChartAxis
    y: ChartAxis
    note: str = ""
    shared: bool | Literal["x", "y"] = True
    level: Level = Level.DETAIL

    def axes(self, panel: Panel) -> tuple[ChartAxis, ChartAxis]:
        """x and y of a panel."""
        return panel.x or self.x, panel.y or self.y

    def shares(self, axis: Literal["x", "y"]) -> bool:
        """Whether all panels have one range of that axis."""
        return self.shared is True or self.shared == axis


Section = Table | Text | Bars | Chart


@dataclass
class Document:
    title: str
    sections: list[Section] = field(default_factory=list)

    def at(self, level: Level) -> list[Section]:
        """The sections for whoever asks for so much, in reading order."""
        return [section for section in self.sections if section.level <= level]

    def by_importance(self) -> list[Section]:
        """All sections, headlines first and details last."""
        return sorted(self.sections, key=lambda section: section.level)
