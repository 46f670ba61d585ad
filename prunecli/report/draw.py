"""Draw bars and charts as SVG, by matplotlib. Only a module that writes a page imports this one: matplotlib is slow to
load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from prunecli.report.document import Bars, Chart, ChartAxis, Mark, Panel, Series
from prunecli.report.figure import (
    DIM,
    FOREGROUND,
    LETTER,
    LINE_HEIGHT,
    SERIES,
    WIDTH,
    Tips,
    add_axes,
    add_legend,
    color,
    drawing,
    label_axis,
    new_figure,
    style,
    to_svg,
)
from prunecli.report.names import in_about
from prunecli.report.render_cells import cell_text, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LABEL = 44  # letters of a label that are shown; pointing at the bar tells all of it
_VALUE = 0.9  # inches for the value at a bar's end


def draw_bars(bars: Bars) -> tuple[Figure, Tips]:
    """Return the figure and the tooltip of each bar."""
    labels = in_about([one_line(label) for label in bars.labels], _LABEL)
    thick = 1 if bars.stacked else max(len(bars.series), 1)
    left = 0.25 + LETTER * max(map(len, labels), default=0)
    height = max(len(labels), 1) * LINE_HEIGHT * (0.8 * thick + 0.4)
    top = 1.5 * LINE_HEIGHT if len(bars.series) > 1 else 0.05
    figure = new_figure(WIDTH, height + 0.35 + top)
    axes = add_axes(figure, left, 0.35, width=WIDTH - left - _VALUE, height=height)
    tips: Tips = {}
    starts = [0.0] * len(labels)
    for number in range(len(bars.series)):
        starts = _draw_bars_of(axes, bars, number, starts=starts, tips=tips)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    axes.set_xlim(0, max(axes.get_xlim()[1], (bars.full or 0) * 1.05) if _any(bars) else bars.full or 1)
    label_axis(axes.xaxis, ChartAxis("", bars.form))
    style(axes, "x")
    add_legend(figure, [axes])
    return figure, tips


def _draw_bars_of(axes: Axes, bars: Bars, number: int, starts: list[float], tips: Tips) -> list[float]:
    """Draw one series from `starts`; return where the next one starts."""
    name, values = bars.series[number]
    sizes = [_size(value) for value in values]
    texts = [cell_text(value, bars.form) for value in values]
    thick = 0.8 if bars.stacked else 0.8 / len(bars.series)
    shift = 0 if bars.stacked else (number - (len(bars.series) - 1) / 2) * thick
    places = [row + shift for row in range(len(sizes))]
    drawn = axes.barh(places, sizes, thick * 0.9, left=starts, color=color(number), label=one_line(name))
    for row, bar in enumerate(drawn):
        bar.set_gid(f"bar-{number}-{row}")
        parts = (bars.labels[row], name, texts[row])
        tips[f"bar-{number}-{row}"] = [one_line(": ".join(part for part in parts if part))]
    if not bars.stacked:
        axes.bar_label(drawn, texts, padding=4, fontsize=9, color=DIM)
        return starts
    return [start + size for start, size in zip(starts, sizes, strict=True)]


def _any(bars: Bars) -> bool:
    return any(_size(value) for _, values in bars.series for value in values)


def _size(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


_COLUMNS = 3
_HEIGHTS = {1: 3.4, 2: 3.0, 3: 2.3}  # inches of a panel, by the number of columns
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.85, 0.35, 0.55, 0.3  # inches around a panel
_MARKERS = 60  # a line of more points than that is drawn without markers
_XY: tuple[Literal["x"], Literal["y"]] = ("x", "y")
_DASHES = ("-", "--", ":")


def draw_chart(chart: Chart) -> tuple[Figure, Tips]:
    """Return the figure and the tooltip of each point."""
    columns = min(max(len(chart.panels), 1), _COLUMNS)
    rows = math.ceil(len(chart.panels) / columns)
    wide, high = WIDTH / columns, _HEIGHTS[columns]
    above = _ABOVE if any(panel.title for panel in chart.panels) else 0.1
    names = list(dict.fromkeys(series.name for panel in chart.panels for series in panel.series))
    figure = new_figure(WIDTH, rows * high + (1.5 * LINE_HEIGHT if len(names) > 1 else 0))
    titles = in_about([one_line(panel.title) for panel in chart.panels], int((wide - _LEFT - _RIGHT) / LETTER))
    drawn: list[Axes] = []
    tips: Tips = {}
    for number, panel in enumerate(chart.panels):
        left, bottom = number % columns * wide + _LEFT, (rows - 1 - number // columns) * high + _BELOW
        twins = {f"share{a}": drawn[0] if drawn and chart.shares(a) else None for a in _XY}
        axes = add_axes(figure, left, bottom, width=wide - _LEFT - _RIGHT, height=high - _BELOW - above, **twins)
        drawn.append(axes)
        _draw_panel(axes, chart, panel, names=names)
        axes.set_title(titles[number], fontsize=10, color=FOREGROUND, loc="left", pad=5)
        _collect_tips(axes, chart, panel, number=number, tips=tips)
    for axes, panel in zip(drawn, chart.panels, strict=True):
        for line, mark in enumerate(panel.marks):  # last, when the ranges are known
            _name_mark(axes, mark, line)
    add_legend(figure, drawn)
    return figure, tips


def _draw_panel(axes: Axes, chart: Chart, panel: Panel, names: list[str]) -> None:
    x, y = chart.axes(panel)
    for scale, text in ((axes.set_xscale, x), (axes.set_yscale, y)):
        if text.log:
            scale("log", nonpositive="mask")
    for series in panel.series:
        _draw_series(axes, series, names.index(series.name))
    for mark in panel.marks:  # the ranges include the marks
        (axes.axvline if mark.axis == "x" else axes.axhline)(mark.at, color=DIM, linestyle="--", linewidth=1)
    label_axis(axes.xaxis, x)
    label_axis(axes.yaxis, y)
    style(axes, "both")


def _draw_series(axes: Axes, series: Series, number: int) -> None:
    name, tint, points = one_line(series.name), color(number), series.draw == "points"
    y, low, high = (_numbers(values) for values in (series.y, series.low, series.high))
    if series.draw == "histogram":
        axes.stairs(y, series.x, fill=True, color=tint, alpha=0.75, label=name)
        return
    if low and points:
        axes.vlines(series.x, low, high, color=tint, alpha=0.6, linewidth=1.2)
    elif low:
        step: Literal["post"] | None = "post" if series.draw == "steps" else None
        axes.fill_between(series.x, low, high, color=tint, alpha=0.2, linewidth=0, step=step)
    axes.plot(
        series.x,
        y,
        label=name,
        color=tint,
        linewidth=series.width or 1.6,
        linestyle="none" if points else _DASHES[number // len(SERIES) % len(_DASHES)],
        drawstyle="steps-post" if series.draw == "steps" else "default",
        marker="o" if _marked(series) else "none",
        markersize=(series.width or 5) if points else 3.5,
    )


def _marked(series: Series) -> bool:
    if series.draw == "points":
        return True
    return not series.width and (series.draw == "path" or len(series.y) <= _MARKERS)


def _collect_tips(axes: Axes, chart: Chart, panel: Panel, number: int, tips: Tips) -> None:
    lines = iter(axes.lines)
    for place, series in enumerate(panel.series):
        line = None if series.draw == "histogram" else next(lines)
        if line is not None and _marked(series):
            texts = [text for i in range(len(series.y)) if (text := _tip(series, i, *chart.axes(panel)))]
            if texts:
                line.set_gid(f"points-{number}-{place}")
                tips[f"points-{number}-{place}"] = texts


def _tip(series: Series, i: int, across: ChartAxis, up: ChartAxis) -> str:
    """Return the tooltip of a point; empty if it is not drawn."""
    x, y = series.x[i], series.y[i]
    if y is None or not (_drawn(x, across) and _drawn(y, up)):
        return ""
    named = [series.labels[i] if series.labels else "", series.name]
    values = [f"{axis.title} {cell_text(v, axis.form)}".strip() for axis, v in ((up, y), (across, x))]
    return one_line(": ".join([*filter(None, named), ", ".join(values)]))


def _drawn(value: float, axis: ChartAxis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _name_mark(axes: Axes, mark: Mark, line: int) -> None:
    """Write the name of a mark beside its line, on the side with more room; `line` numbers the marks, so that names do
    not overlap."""
    text, along_x = one_line(mark.name), mark.axis == "x"
    transform = axes.get_xaxis_transform() if along_x else axes.get_yaxis_transform()
    place = transform.transform((mark.at, 1) if along_x else (1, mark.at))
    late = axes.transAxes.inverted().transform(place)[0 if along_x else 1] > 0.6
    if along_x:
        across, up, pad = ("right", "top", (-4, -2 - 12 * line)) if late else ("left", "top", (4, -2 - 12 * line))
    else:
        across, up, pad = ("right", "top", (-2, -3)) if late else ("right", "bottom", (-2, 3))
    axes.annotate(
        text, (mark.at, 1) if along_x else (1, mark.at), pad, xycoords=transform, textcoords="offset points",
        ha=across, va=up, color=DIM, fontsize=9,
    )  # fmt: skip


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def draw(section: Bars | Chart) -> str:
    """Return an <svg> element in the light and dark colours of the page, with a tooltip for each point and bar."""
    with drawing():
        figure, tips = draw_bars(section) if isinstance(section, Bars) else draw_chart(section)
        return to_svg(figure, one_line(section.title), tips)
