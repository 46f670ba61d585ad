"""Turn charts into tables for renderers of text: bars become block characters, lines become sparklines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from prunecli.report.document import Bars, Cell, Chart, ChartAxis, Column, NumberForm, Panel, Series, Table
from prunecli.report.render_cells import NOTHING, cell_text

WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_SHADES = "█▒░▓"
_LEVELS = "▁▂▃▄▅▆▇█"


def as_table(section: Table | Bars | Chart) -> Table:
    """Return a section as a table; a table is returned unchanged."""
    if isinstance(section, Bars):
        return bars_table(section)
    return chart_table(section) if isinstance(section, Chart) else section


def bars_table(bars: Bars) -> Table:
    """Return one row per label: the values, then a bar for each."""
    stacked = bars.stacked and len(bars.series) > 1
    columns, rows = _stacked(bars) if stacked else _side_by_side(bars)
    return Table(bars.title, columns, rows, note=bars.note)


def chart_table(chart: Chart) -> Table:
    """Return one row per series and mark: where it starts and ends, its extremes, and a sparkline."""
    titled = any(panel.title for panel in chart.panels)
    rows = [[[panel.title, *row] if titled else row for row in _panel(chart, panel)] for panel in chart.panels]
    titles = ("first", "last", "least", "most")
    columns = [
        *([Column("", "name")] if titled else []),
        Column(""),
        Column(chart.x.title, drop=2),
        Column(chart.y.title, "graph"),
        *(Column(title, chart.y.form, drop=1 if title in titles[:2] else 0) for title in titles),
    ]
    return Table(chart.title, columns, [row for panel in rows for row in panel], note=chart.note)


def bar(length: float) -> str:
    """Return a bar in eighths of a character; a length above zero gives at least one eighth."""
    eighths = max(round(length * 8), 1 if length > 0 else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _side_by_side(bars: Bars) -> tuple[list[Column], list[list[Cell]]]:
    finite = [v for _, values in bars.series for v in values if v is not None and math.isfinite(v)] + [bars.full or 0.0]
    scale = max(8, WIDTH // max(len(bars.series), 1)) / (max(finite, default=0) or 1)
    columns = [Column("", "name")]
    cells: list[list[Cell]] = [[label] for label in bars.labels]
    for name, values in bars.series:
        columns += [Column(name or "value", bars.form), Column("", "graph")]
        for row, value in zip(cells, values, strict=True):
            row += [value, bar((value or 0) * scale) if math.isfinite(value or 0) else ""]
    return columns, cells


def _stacked(bars: Bars) -> tuple[list[Column], list[list[Cell]]]:
    shades = [_SHADES[i % len(_SHADES)] for i in range(len(bars.series))]
    parts = [[values[i] or 0 for _, values in bars.series] for i in range(len(bars.labels))]
    largest = max([bars.full or 0.0, *map(sum, parts)]) or 1
    named = [Column(f"{name} {shade}", bars.form) for (name, _), shade in zip(bars.series, shades, strict=True)]
    rows: list[list[Cell]] = []
    for i, (label, part) in enumerate(zip(bars.labels, parts, strict=True)):
        ends = [round(sum(part[: k + 1]) / largest * WIDTH) for k in range(len(part))]
        drawn = "".join(s * (end - start) for s, start, end in zip(shades, [0, *ends], ends, strict=False))
        rows.append([label, *(values[i] for _, values in bars.series), sum(part), drawn])
    return [Column("", "name"), *named, Column("total", bars.form, drop=1), Column("", "graph")], rows


@dataclass(frozen=True)
class _Scale:
    """Maps numbers linearly (or by their logarithm) to 0..1 between the least and the largest."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float | None], axis: ChartAxis) -> _Scale:
        usable = [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not axis.log)]
        return cls(min(usable, default=1), max(usable, default=1), axis.log)

    def share(self, value: float | None) -> float | None:
        if value is None or not math.isfinite(value) or (self.log and value <= 0):
            return None
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5


def _panel(chart: Chart, panel: Panel) -> Iterator[list[Cell]]:
    x, y = chart.axes(panel)
    across = _Scale.of([v for s in _seen(chart, panel, "x") for v in s.x], x)
    up_to = _seen(chart, panel, "y")
    base = [0.0 for s in up_to if s.draw == "histogram" and not y.log]
    up = _Scale.of([*base, *(v for s in up_to for v in s.y)], y)
    for series in panel.series:
        known = [v for v in series.y if v is not None]
        ends = (known[0], known[-1]) if known and series.draw != "histogram" else (None, None)
        figures = [*ends, min(known, default=None), max(known, default=None)]
        drawn = sparkline(series, across, up)
        yield [series.name, _span(series.x, x.form), drawn, *(_own(v, chart.y, y) for v in figures)]
    for mark in panel.marks:
        at = f"at {cell_text(mark.at, x.form)}" if mark.axis == "x" else NOTHING
        value = _own(mark.at, chart.y, y) if mark.axis == "y" else None
        yield [mark.name, at, "", None, None, value, value]


def _seen(chart: Chart, panel: Panel, axis: Literal["x", "y"]) -> list[Series]:
    """Return the series whose values decide the range of a panel's axis."""
    return [s for p in (chart.panels if chart.shares(axis) else [panel]) for s in p.series]


def _own(value: float | None, column: ChartAxis, axis: ChartAxis) -> Cell:
    """Return a value as the cell of a column: as text if its axis is written in another form than the column."""
    return value if value is None or axis.form == column.form else cell_text(value, axis.form)


def _span(x: Sequence[float], form: NumberForm) -> str:
    return f"{cell_text(min(x), form)} to {cell_text(max(x), form)}" if x else NOTHING


def sparkline(series: Series, across: _Scale, up: _Scale) -> str:
    """Return WIDTH characters over the range of x, each as high as the mean of the values in its part of the range.

    In a part without values a line is interpolated, a step keeps its height, and points leave a dot.
    """
    columns: list[list[float]] = [[] for _ in range(WIDTH)]
    for left, right, y in _extents(series):
        start, end, height = across.share(left), across.share(right), up.share(y)
        if start is not None and end is not None and height is not None:
            first = min(int(start * WIDTH), WIDTH - 1)
            for column in columns[first : max(first + 1, round(end * WIDTH))]:
                column.append(height)
    heights = [sum(column) / len(column) if column else None for column in columns]
    if series.draw in ("line", "steps"):
        heights = _filled(heights, series.draw == "steps")
    return "".join("·" if h is None else _LEVELS[min(int(h * 8), 7)] for h in heights)


def _extents(series: Series) -> Iterator[tuple[float, float, float | None]]:
    """Yield (left, right, y) of each bin of a histogram, or of each point."""
    ends = series.x[1:] if series.draw == "histogram" else series.x
    yield from zip(series.x, ends, series.y, strict=False)


def _filled(heights: list[float | None], hold: bool) -> list[float | None]:
    known = [i for i, height in enumerate(heights) if height is not None]
    result = list(heights)
    for left, right in itertools.pairwise(known):
        start, end = heights[left] or 0.0, heights[right] or 0.0
        for i in range(left + 1, right):
            result[i] = start if hold else start + (end - start) * (i - left) / (right - left)
    return result
