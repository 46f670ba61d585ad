"""What all drawings share: figures measured in inches, number axes, colours, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from prunecli.report.document import ChartAxis as AxisText
from prunecli.report.document import NumberForm
from prunecli.report.render_cells import cell_text, one_line
from prunecli.report.svg import DIM, FOREGROUND, LINE, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Tips = dict[str, list[str]]

WIDTH = 12.0  # inches, as wide as the page
LINE_HEIGHT, LETTER = 0.2, 0.078  # inches of a line of text, and of a letter in the widest font that browsers use


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float, **shared: Any) -> Axes:
    """A coordinate system at a place given in inches; `sharex`, `sharey`: with the range of another."""
    across, up = figure.get_size_inches()
    box = (left / across, bottom / up, width / across, height / up)
    axes: Axes = figure.add_axes(box, **shared)
    return axes


def color(number: int) -> str:
    return SERIES[number % len(SERIES)]


def label_axis(axis: Axis, text: AxisText) -> None:
    """Ticks written by the form, whole numbers where it counts things, and the title."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value, text.form)))
    if text.log:
        low, high = axis.get_view_interval()
        steps = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=steps, numticks=6))
        axis.set_minor_locator(NullLocator())
    else:
        whole = text.form in ("count", "bytes")
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1))
    axis.set_label_text(one_line(text.title), color=DIM, fontsize=10)


def tick_text(value: float, form: NumberForm) -> str:
    """Short: 20 % and 0.5, not 20.0 % and 0.5000."""
    if form == "percent":
        return f"{100 * value:.4g} %"
    return f"{value:.4g} ms" if form == "ms" else cell_text(value, form)


def style(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Thin lines in the page's colours, and a grid."""
    axes.grid(axis=grid, color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=LINE, labelcolor=FOREGROUND, labelsize=9.5, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)


def add_legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """One legend above everything, in the order of first appearance; none where there is one name or none."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        handles, names = axes.get_legend_handles_labels()
        for handle, name in zip(handles, names, strict=True):
            found.setdefault(name, handle)
    if len(found) > 1:
        figure.legend(
            list(found.values()), list(found), loc="upper left", ncols=6, frameon=False, labelcolor=FOREGROUND,
            fontsize=10, borderaxespad=0.1, handlelength=1.5,
        )  # fmt: skip
