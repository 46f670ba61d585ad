"""One document, every format: nothing lost, nothing broken out of its place."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.report.document import Bars, Cell, Chart, ChartAxis, Column, Document, Level, Section, Table, Text
from prunecli.report.names import common_beginning, in_about, shortened
from prunecli.report.render import fit, to_markdown, to_terminal, top_rows
from prunecli.report.render_cells import cell_text, one_line
from prunecli.report.render_html import to_html

CELLS: list[tuple[Cell, str, str]] = [
    (None, "count", "–"),
    ("text", "count", "text"),
    (0, "count", "0"),
    (999_999, "count", "999,999"),
    (1_000_000, "count", "1.00 M"),
    (125_485_696, "count", "125 M"),
    (999_999_999, "count", "1.00 G"),
    (7e9, "count", "7.00 G"),
    (12, "bytes", "12 B"),
    (999, "bytes", "999 B"),
    (1000, "bytes", "1.00 kB"),
    (999_999, "bytes", "1.00 MB"),
    (3_490_000, "bytes", "3.49 MB"),
    (3 << 30, "bytes", "3.22 GB"),
    (0.0, "percent", "0.0 %"),
    (0.5, "percent", "50.0 %"),
    (1.0, "percent", "100.0 %"),
    (0.99999, "percent", ">99.99 %"),
    (0.9996, "percent", "99.96 %"),
    (0.00001, "percent", "<0.01 %"),
    (0.0004, "percent", "0.04 %"),
    (-0.012, "percent", "-1.2 %"),
    (0.123456, "number", "0.1235"),
    (1e-9, "number", "1e-09"),
    (0.0512, "ms", "0.0512 ms"),
    (12.345, "ms", "12.3 ms"),
    (12345, "ms", "12,345 ms"),
    (float("nan"), "percent", "nan"),
    (float("inf"), "count", "inf"),
    (3, "text", "3"),
]


@pytest.mark.parametrize(("value", "form", "text"), CELLS)
def test_cell(value: Cell, form: str, text: str) -> None:
    assert cell_text(value, form) == text


NAMES = [
    "plain",
    "a|b",
    "*x* _y_ `z`",
    "<script>alert(1)</script>",
    "line\nbreak",
    "\x1b[31mred",
    "[bold]x[/bold]",
]
NAMES += ['it\'s & "so"', "layer_1.weight_", "日本", "\\", ":smile:", "# x"]
COLUMNS = (
    Column("weight", "name"),
    Column("params", "count"),
    Column("zeros", "percent", drop=1),
    Column("art", "graph"),
)


def document(rows: list[tuple[Cell, ...]], **options: object) -> Document:
    table = Table("Layers", COLUMNS, rows, note="a note", level=Level.NORMAL, **options)  # type: ignore[arg-type]
    shares = [("", [1.0, 0.0, 4.0])]
    bars = Bars("Bars", ["first", "none", "last"], shares, "count", note="bar note", level=Level.NORMAL)
    sections: list[Section] = [table, Text("all good", "good"), Text("take care", "warning"), bars]
    return Document("The <title>", sections)


ROWS: list[tuple[Cell, ...]] = [(name, 1000 * i, 0.5, "▁█") for i, name in enumerate(NAMES)]


def test_terminal_output_is_plain_lines_with_every_name() -> None:
    text = to_terminal(document(ROWS))
    assert "\x1b" not in text
    assert [name for name in NAMES if one_line(name) not in text] == []
    for piece in ("The <title>", "Layers", "a note", "all good", "take care", "bar note", "params"):
        assert piece in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_colour_only_when_asked() -> None:
    assert "\x1b[33m" in to_terminal(document(ROWS), color=True)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_terminal_output_fits_its_width(width: int) -> None:
    rows: list[tuple[Cell, ...]] = [(f"/model/{'block/' * 9}conv{i}", i, 0.5, "▁▂▃") for i in range(9)]
    lines = to_terminal(document(rows), width=width).splitlines()
    assert max(map(len, lines)) <= width
    if width == 80:
        shown = [line for line in lines if re.match(r"conv\d ", line)]
        assert len(shown) == 9
        assert "weight: each name begins with /model/" in " ".join(lines)


def test_columns_are_left_out_before_names_become_unreadable() -> None:
    rows: list[tuple[Cell, ...]] = [("n" * 40, 10**5, 0.5, "▁" * 20)]
    assert "zeros" in to_terminal(document(rows), width=60)
    narrow = to_terminal(document(rows), width=50)
    assert "not shown at this width: zeros" in narrow
    assert "▁" * 20 in narrow


def test_top_shows_the_largest_in_reading_order() -> None:
    rows: list[tuple[Cell, ...]] = [(f"n{i}", size, 0.0, "") for i, size in enumerate([5, 9, None, 1, 9, 7])]
    shown = document(rows, top=3, top_by="params")
    text = to_terminal(shown, width=80)
    assert re.findall(r"^n\d", text, re.MULTILINE) == ["n1", "n4", "n5"]
    assert "and 3 more, smaller in params; --verbose shows all" in text
    assert len(re.findall(r"^n\d", to_terminal(shown, width=80, level=Level.DETAIL), re.MULTILINE)) == 6
    assert len(re.findall(r"^\| n\d", to_markdown(shown), re.MULTILINE)) == 6
    assert len(re.findall(r">n\d<", to_html(shown))) == 6


def test_top_without_a_column_shows_the_first() -> None:
    table = Table("", COLUMNS, [(str(i), 0, 0.0, "") for i in range(9)], top=2)
    assert list(top_rows(table)) == [0, 1]


def test_empty_tables_and_bars() -> None:
    table = Table("T", COLUMNS, [], level=Level.NORMAL)
    empty = Document("t", [table, Bars("B", [], []), Chart("C", [], ChartAxis("x"), ChartAxis("y"))])
    for text in (to_terminal(empty), to_terminal(empty, width=40), to_markdown(empty), to_html(empty)):
        assert "T" in text


def test_a_table_without_titles_has_no_header() -> None:
    rows = [("inputs", "x"), ("opset", "17")]
    facts = Document("t", [Table("", (Column(""), Column("")), rows, level=Level.NORMAL)])
    assert to_terminal(facts).splitlines()[2:] == ["inputs  x", "opset   17"]
    assert "<th" not in to_html(facts)


def test_markdown_keeps_its_shape_whatever_the_names() -> None:
    lines = to_markdown(document(ROWS)).splitlines()
    table = [line for line in lines if line.startswith("|")][: len(ROWS) + 2]
    assert table[1] == "| --- | ---: | ---: | --- |"
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [5] * len(table)
    unescaped = [re.sub(r"\\(.)", r"\1", line.split(" | ")[0][2:]) for line in table[2:]]
    kept = [name for name in NAMES if "|" not in name and "\\" not in one_line(name)]
    assert [name for name in kept if name not in unescaped] == []


class _Page(HTMLParser):
    """Collects texts and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.goes_on = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert all(value is None or value.startswith("#") for name, value in attrs if name in ("href", "src"))
        self.goes_on = tag == "wbr"
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.goes_on = False
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.goes_on:
            data = self.texts.pop() + data
        self.texts.append(data)


def test_html_is_self_contained_and_escaped() -> None:
    page = _Page()
    html = to_html(document(ROWS))
    page.feed(html)
    assert page.open == []
    assert [name for name in NAMES if one_line(name) not in page.texts] == []
    assert page.tags.isdisjoint({"script", "link", "img", "iframe"})
    assert "http" not in html.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in html
    assert html.count("<svg") == 1


SECTIONS: list[Section] = [
    Text("done", "good", Level.HEADLINE),
    Table("Small", (Column(""), Column("value", "count")), [("a", 1)], level=Level.NORMAL),
    Text("proved"),
    Table("Every layer", (Column("weight", "name"),), [(f"w{i}",) for i in range(50)]),
    Text("by the way", level=Level.DETAIL),
]
LEVELS = [
    (Level.HEADLINE, ["done"], ["t", "Small", "proved", "Every layer", "by the way"]),
    (Level.NORMAL, ["t", "done", "Small", "proved", "-v shows more: Every layer"], ["w7", "by the way"]),
    (Level.DETAIL, ["t", "done", "Small", "proved", "Every layer", "w49", "by the way"], ["-v shows more"]),
]


@pytest.mark.parametrize(("level", "there", "not_there"), LEVELS)
def test_a_level_shows_its_sections(level: Level, there: list[str], not_there: list[str]) -> None:
    lines = to_terminal(Document("t", SECTIONS), level=level).splitlines()
    assert [text for text in there if not any(line.startswith(text) for line in lines)] == []
    assert [text for text in not_there if any(line.startswith(text) for line in lines)] == []


def test_files_have_everything_the_most_important_first() -> None:
    mixed = Document("t", SECTIONS[::-1])
    for text in (to_markdown(mixed), to_html(mixed)):
        places = [text.rindex(word) for word in ("done", "proved", "Every layer")]
        assert places == sorted(places)


def test_columns_without_content_are_left_out() -> None:
    columns = (Column("weight", "name"), Column("note"), Column("MACs", "count"))
    table = Table("T", columns, [("a", "", None), ("b", "", 3)], level=Level.NORMAL)
    for text in (
        to_terminal(Document("t", [table])),
        to_markdown(Document("t", [table])),
        to_html(Document("t", [table])),
    ):
        assert "note" not in text.replace('class="note"', "").replace(".note", "")
        assert "MACs" in text


name = st.text("ab/._…0", min_size=1, max_size=60)


@given(st.lists(name, min_size=1, max_size=12), st.integers(1, 80))
def test_different_names_stay_different(names: list[str], width: int) -> None:
    short = shortened(names, width)
    near = in_about(names, width)
    for found in (near, short or near):
        assert len(set(found)) == len(set(names))
        assert len(set(zip(names, found, strict=True))) == len(set(names))
    assert short is None or max(map(len, short)) <= width
    start = common_beginning(names)
    assert all(each.startswith(start) for each in names)
    assert len({each[len(start) :] for each in names}) == len(set(names))


@given(st.lists(name.map(lambda text: f"/model/encoder/{text}"), min_size=1, max_size=12, unique=True), st.booleans())
def test_names_can_be_told_apart_at_80_columns(names: list[str], notes: bool) -> None:
    columns = [Column("weight", "name"), Column("op", drop=2), Column("MACs", "count"), Column("zeros", "percent")]
    rows: list[list[Cell]] = [[each, "ConvTranspose", 123_456, 0.5] for each in names]
    if notes:
        columns, rows = [*columns, Column("note", drop=1)], [[*row, "of a " + "long " * 20 + "note"] for row in rows]
    fitted = fit(columns, [[str(cell) for cell in row] for row in rows], 80)
    assert len({row[0] for row in fitted.texts}) == len(names)
    lines = to_terminal(Document("t", [Table("T", columns, rows, level=Level.NORMAL)]), width=80).splitlines()
    assert max(map(len, lines)) <= 80


@given(
    st.lists(st.lists(st.text("abc", max_size=40), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(45, 200),
)
def test_fit_never_exceeds_the_width_when_texts_can_shrink(texts: list[list[str]], width: int) -> None:
    columns = [Column("one"), Column("two", drop=2), Column("three", drop=1), Column("four", drop=3)]
    fitted = fit(columns, texts, width)
    titles = {column.title for column in fitted.columns}
    assert sum(fitted.widths) + 2 * (len(titles) - 1) <= width
    left_out = fitted.left_out[-1].rpartition(": ")[2].split(", ") if len(titles) < 4 else []
    assert titles | set(left_out) == {"one", "two", "three", "four"}
    assert "one" not in left_out


def test_piped_tables_have_120_columns() -> None:
    rows: list[tuple[Cell, ...]] = [(f"/model/{'block/' * 19}{i}/conv", i, 0.5, "▁▂▃" * 9) for i in range(9)]
    lines = to_terminal(document(rows)).splitlines()
    assert max(len(line) for line in lines if "▁" in line) <= 120
