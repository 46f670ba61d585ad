"""Bars and charts as SVG, drawn by matplotlib: imported here only, where a page is written."""

from __future__ import annotations

from prunecli.report.document import Bars, Chart
from prunecli.report.draw_bars import draw_bars
from prunecli.report.draw_chart import draw_chart
from prunecli.report.render_cells import one_line
from prunecli.report.svg import drawing, to_svg


def draw(section: Bars | Chart) -> str:
    """An <svg> element in the page's colours, light and dark; points and bars tell their values when pointed at."""
    with drawing():
        figure, tips = draw_bars(section) if isinstance(section, Bars) else draw_chart(section)
        return to_svg(figure, one_line(section.title), tips)
