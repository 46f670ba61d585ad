"""Bars as a matplotlib figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunecli.report.document import Bars, ChartAxis
from prunecli.report.figure import (
    LETTER,
    LINE_HEIGHT,
    WIDTH,
    Tips,
    add_axes,
    add_legend,
    color,
    label_axis,
    new_figure,
    style,
)
from prunecli.report.render_cells import cell_text, one_line, shorten
from prunecli.report.svg import DIM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL = 44  # letters of a label that are shown; pointing at the bar tells all of it
_VALUE = 0.9  # inches for the value at a bar's end


def draw_bars(bars: Bars) -> tuple[Figure, Tips]:
    """The figure, and what each bar says when pointed at."""
    labels = [shorten(one_line(label), _LABEL) for label in bars.labels]
    thick = 1 if bars.stacked else max(len(bars.series), 1)
    left = 0.25 + LETTER * max(map(len, labels), default=0)
    height = max(len(labels), 1) * LINE_HEIGHT * (0.8 * thick + 0.4)
    top = 1.5 * LINE_HEIGHT if len(bars.series) > 1 else 0.05
    figure = new_figure(WIDTH, height + 0.35 + top)
    axes = add_axes(figure, left, 0.35, WIDTH - left - _VALUE, height)
    tips: Tips = {}
    starts = [0.0] * len(labels)
    for number in range(len(bars.series)):
        starts = _draw_series(axes, bars, number, starts, tips)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    axes.set_xlim(0, max(axes.get_xlim()[1], (bars.full or 0) * 1.05) if _any(bars) else bars.full or 1)
    label_axis(axes.xaxis, ChartAxis("", bars.form))
    style(axes, "x")
    add_legend(figure, [axes])
    return figure, tips


def _draw_series(axes: Axes, bars: Bars, number: int, starts: list[float], tips: Tips) -> list[float]:
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
