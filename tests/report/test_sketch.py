"""Bars and charts as text: proportional, in order, nothing lost."""

from __future__ import annotations

import pytest

from prunecli.report.document import Bars, Chart, ChartAxis, Document, Level, Mark, Panel, Series
from prunecli.report.render import to_markdown, to_terminal
from prunecli.report.sketch import WIDTH, as_table, bar

LINE, PERCENT = ChartAxis("x"), ChartAxis("y", "percent")


@pytest.mark.parametrize(
    ("length", "text"),
    [(0, ""), (0.001, "▏"), (0.5, "▌"), (1, "█"), (2.25, "██▎"), (1.99, "██")],
)
def test_bar(length: float, text: str) -> None:
    assert bar(length) == text


def test_bars_are_proportional() -> None:
    rows = as_table(Bars("B", ["a", "b", "c"], [("v", [1.0, 0.0, 4.0])], "count")).rows
    assert [list(row) for row in rows] == [["a", 1.0, "█" * (WIDTH // 4)], ["b", 0.0, ""], ["c", 4.0, "█" * WIDTH]]


def test_bars_side_by_side_have_one_scale() -> None:
    table = as_table(Bars("B", ["a", "b"], [("before", [4.0, 2.0]), ("after", [2.0, None])], "ms"))
    assert [column.title for column in table.columns] == ["", "before", "", "after", ""]
    assert [list(row) for row in table.rows] == [["a", 4.0, "█" * 12, 2.0, "█" * 6], ["b", 2.0, "█" * 6, None, ""]]


def test_stacked_bars_are_parts_of_one() -> None:
    table = as_table(Bars("B", ["a", "b"], [("kept", [6.0, 3.0]), ("gone", [2.0, None])], stacked=True))
    assert [column.title for column in table.columns] == ["", "kept █", "gone ▒", "total", ""]
    assert [list(row) for row in table.rows] == [["a", 6, 2, 8, "█" * 18 + "▒" * 6], ["b", 3, None, 3, "█" * 9]]


LINES = [
    # draw, x, y -> what is drawn
    ("line", [0, 1], [0.0, 1.0], "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███"),
    ("steps", [0, 1, 2], [0.0, 1.0, 0.5], "▁" * 12 + "█" * 11 + "▅"),
    ("points", [0, 2], [1.0, 0.0], "█" + "·" * 22 + "▁"),
    ("points", [2, 0], [0.0, 1.0], "█" + "·" * 22 + "▁"),
    ("line", [0, 1, 2], [1.0, None, 1.0], "▅" * 24),
    ("histogram", [0, 1, 2, 3], [1, 2, 4], "▃" * 8 + "▅" * 8 + "█" * 8),
    ("line", [], [], "·" * 24),
    ("points", [0, 1], [float("nan"), 1.0], "·" * 23 + "▅"),
]


@pytest.mark.parametrize(("draw", "x", "y", "drawn"), LINES)
def test_sparkline(draw: str, x: list[float], y: list[float | None], drawn: str) -> None:
    series = Series("s", x, y, draw)  # type: ignore[arg-type]
    (row,) = as_table(Chart("C", [Panel([series])], LINE, PERCENT)).rows
    assert row[2] == drawn


def test_log_axes() -> None:
    chart = Chart(
        "C", [Panel([Series("s", [1, 10, 100], [1, 10, 100])])], ChartAxis("x", log=True), ChartAxis("y", log=True)
    )
    straight = as_table(Chart("C", [Panel([Series("s", [0, 1, 2], [0, 1, 2])])], LINE, PERCENT)).rows[0][2]
    assert as_table(chart).rows[0][2] == straight
    negative = Chart("C", [Panel([Series("s", [1, 2], [-1, 0])])], LINE, ChartAxis("y", log=True))
    assert as_table(negative).rows[0][2] == "·" * WIDTH


def small_multiples(**options: object) -> Chart:
    panels = [Panel([Series("s", [0, 1], [0, k])], f"layer{k}", [Mark("x", 0.5, "cut")]) for k in (1, 2, 3)]
    return Chart("Many", panels, ChartAxis("share", "percent"), LINE, **options)  # type: ignore[arg-type]


def test_panels_share_their_range_or_not() -> None:
    shared = [str(row[3])[-1] for row in as_table(small_multiples()).rows[::2]]
    assert shared == ["▃", "▆", "█"]
    assert {str(row[3])[-1] for row in as_table(small_multiples(shared=False)).rows[::2]} == {"█"}


def test_rows_tell_ends_extremes_and_marks() -> None:
    table = as_table(
        Chart("C", [Panel([Series("s", [0, 1, 2], [3, 1, 2])], "", [Mark("y", 2.5, "promise")])], LINE, LINE)
    )
    assert [c.title for c in table.columns] == ["", "x", "x", "first", "last", "least", "most"]
    assert [list(row)[3:] for row in table.rows] == [[3, 2, 1, 3], [None, None, 2.5, 2.5]]
    assert table.rows[0][1] == "0 to 2"
    assert as_table(small_multiples()).rows[1][:3] == ["layer1", "cut", "at 50.0 %"]


def test_details_are_for_files_and_verbose() -> None:
    detail = Document("t", [small_multiples(), Bars("B", ["a"], [("", [1])])])
    assert to_terminal(detail, 100) == "t\n"
    for text in (to_terminal(detail, 100, level=Level.DETAIL), to_markdown(detail)):
        assert "layer3" in text
        assert "B" in text


BAD = [
    lambda: Series("s", [1, 2], [1]),
    lambda: Series("s", [1], [1], "histogram"),
    lambda: Series("s", [1], [1], low=[1]),
    lambda: Series("s", [1], [1], low=[1, 2], high=[1, 2]),
    lambda: Series("s", [1], [1], labels=["a", "b"]),
    lambda: Bars("B", ["a"], [("v", [1, 2])]),
    lambda: Bars("B", ["a"], [("v", [-1])]),
]


@pytest.mark.parametrize("make", BAD)
def test_sections_that_do_not_agree_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"^[sB]: "):
        make()  # type: ignore[operator]
