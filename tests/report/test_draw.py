"""Drawings: well-formed, complete, in the page's colours, the same every time, whatever the names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from prunecli.report.document import Bars, Chart, ChartAxis, Document, Mark, Panel, Section, Series
from prunecli.report.draw import draw
from prunecli.report.render_html import to_html

NAMES = ["plain", "$x_1$ $\\frac{1}{2}$", "<b>&\"'", "\x1b[31m\x00", "日本", "n" * 300, ""]


def chart(draw: str = "line", count: int = 5, panels: int = 1, **options: object) -> Chart:
    x = list(range(count + (draw == "histogram")))
    series = Series("value", x, [1.0 + i for i in range(count)], draw)  # type: ignore[arg-type]
    return Chart("C", [Panel([series], f"panel {k}") for k in range(panels)], ChartAxis("x"), ChartAxis("y"), **options)  # type: ignore[arg-type]


def titles(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("title")]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


SECTIONS: list[tuple[str, Bars | Chart, list[str]]] = [
    # name, section, what its marks say
    ("line", chart("line", 2), ["value: y 1, x 0", "value: y 2, x 1"]),
    ("steps", chart("steps", 2), ["value: y 1, x 0", "value: y 2, x 1"]),
    ("points", chart("points", 2), ["value: y 1, x 0", "value: y 2, x 1"]),
    ("path", chart("path", 2), ["value: y 1, x 0", "value: y 2, x 1"]),
    ("long line", chart("line", 100), []),
    ("many points", chart("points", 100), [f"value: y {i + 1}, x {i}" for i in range(100)]),
    ("histogram", chart("histogram"), []),
    ("panels", chart("line", 1, 2), ["value: y 1, x 0"] * 2),
    ("own ranges", chart("line", 1, 2, shared=False), ["value: y 1, x 0"] * 2),
    ("gap", Chart("C", [Panel([Series("s", [1, 2, 3], [1, None, float("nan")])])], ChartAxis("x"), ChartAxis("y")), ["s: y 1, x 1"]),
    ("log", Chart("C", [Panel([Series("s", [0, 1, 1], [1, 0, 2])])], ChartAxis("x", log=True), ChartAxis("y", log=True)), ["s: y 2, x 1"]),
    ("nothing", Chart("C", [Panel([Series("s", [], []), Series("t", [1], [None])])], ChartAxis("x"), ChartAxis("y")), []),
    ("whiskers", Chart("C", [Panel([Series("", [1], [2], "points", [1], [3], ["name"])])], ChartAxis("x"), ChartAxis("y")), ["name: y 2, x 1"]),
    ("band", Chart("C", [Panel([Series("s", [1, 2], [2, 2], "line", [1, 1], [3, 3])])], ChartAxis("x"), ChartAxis("")), ["s: 2, x 1", "s: 2, x 2"]),
    ("bars", Bars("B", ["a", "b"], [("", [1, None])], "percent"), ["a: 100.0 %", "b: –"]),
    ("two series", Bars("B", ["a"], [("before", [2]), ("after", [1])], "ms"), ["a: before: 2 ms", "a: after: 1 ms"]),
    ("stacked", Bars("B", ["a"], [("kept", [2]), ("gone", [1])], stacked=True), ["a: kept: 2", "a: gone: 1"]),
    ("zeros", Bars("B", ["a"], [("", [0])]), ["a: 0"]),
]  # fmt: skip


@pytest.mark.parametrize(("section", "said"), [case[1:] for case in SECTIONS], ids=[case[0] for case in SECTIONS])
def test_every_mark_is_drawn_and_tells_its_value(section: Bars | Chart, said: list[str]) -> None:
    svg = draw(section)
    assert sorted(titles(svg)) == sorted(said)
    assert svg == draw(section)
    assert "#01" not in svg  # every stand-in became a variable of the page
    assert not re.search(r"<style|http|font-family|<script", svg)


def test_bars_are_proportional_and_in_place() -> None:
    svg = draw(Bars("B", ["a", "b"], [("kept", [3, 1]), ("gone", [1, 0.5])], stacked=True))
    boxes = []
    for path in ElementTree.fromstring(svg).iter("path"):
        if path.find("title") is not None:
            x = [float(v) for v in re.findall(r"[ML] ([\d.]+) ", path.attrib["d"])]
            boxes.append((min(x), max(x)))
    left, unit = boxes[0][0], (boxes[0][1] - boxes[0][0]) / 3
    expected = [(0, 3), (0, 1), (3, 4), (1, 1.5)]
    # matplotlib writes six decimals
    assert [pytest.approx(((a - left) / unit, (b - left) / unit), abs=1e-4) for a, b in boxes] == expected


def test_a_mark_is_within_the_range_and_named() -> None:
    panel = Panel([Series("s", [0, 1], [0, 1])], marks=[Mark("x", 5, "the cut"), Mark("y", 3, "promise")])
    said = texts(draw(Chart("C", [panel], ChartAxis("x"), ChartAxis("y"))))
    assert {"the cut", "promise", "4", "3"} <= set(said)


def test_names_of_marks_do_not_cover_each_other() -> None:
    marks = [Mark("x", 0.5, "one of two"), Mark("x", 0.51, "the other")]
    svg = draw(Chart("C", [Panel([Series("s", [0, 1], [0, 1])], marks=marks)], ChartAxis("x"), ChartAxis("y")))
    heights = [
        float(e.attrib["y"]) for e in ElementTree.fromstring(svg).iter("text") if e.text in {m.name for m in marks}
    ]
    assert abs(heights[0] - heights[1]) >= 9  # the size of the letters


def test_ticks_are_short() -> None:
    said = texts(
        draw(Chart("C", [Panel([Series("s", [0, 1], [0, 2e6])])], ChartAxis("x", "percent"), ChartAxis("y", "count")))
    )
    assert {"0 %", "50 %", "100 %", "1.00 M"} <= set(said)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_is_text(name: str) -> None:
    panel = Panel(
        [Series(name, [1], [1], "points", labels=[name]), Series("other", [1], [1])], name, [Mark("x", 1, name)]
    )
    sections: list[Section] = [
        Chart(name, [panel], ChartAxis(name), ChartAxis(name)),
        Bars(name, [name], [(name, [1]), ("o", [1])]),
    ]
    html = to_html(Document("t", sections))
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert not any("\x1b" in text or "\x00" in text for text in texts(svg))
    assert "<b>" not in html


def test_ids_of_several_drawings_on_a_page_do_not_differ_in_meaning() -> None:
    html = to_html(Document("t", [chart("line"), chart("points", 7), Bars("B", ["a"], [("", [1])])]))
    meant: dict[str, set[str]] = {}
    for tag, name, rest in re.findall(r'<(\w+) id="([^"]+)"(.*?)</\1>', html):
        meant.setdefault(f"{tag}#{name}", set()).add(rest)
    assert meant
    assert all(len(contents) == 1 for contents in meant.values())


def test_no_file_of_this_machine_changes_a_drawing(tmp_path: object) -> None:
    """matplotlib reads a matplotlibrc in the working folder; a drawing must not depend on it, nor print anything."""
    script = (
        "from prunecli.report.document import *\nfrom prunecli.report.draw import draw\n"
        "import sys; sys.stdout.write(draw(Bars('B', ['日'], [('', [1])])))"
    )

    def run(folder: str) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "MPLCONFIGDIR": folder}
        return subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, check=True)

    plain = run(str(tmp_path))
    (tmp_path / "matplotlibrc").write_text("font.size: 30\ntext.color: red\nsvg.fonttype: path\n")  # type: ignore[operator]
    changed = run(str(tmp_path))
    assert plain.stdout == changed.stdout
    assert plain.stderr == changed.stderr == b""


def test_matplotlib_is_loaded_by_a_page_only() -> None:
    script = (
        "import sys\nfrom prunecli.report.document import *\nfrom prunecli.report.render import to_terminal\n"
        "from prunecli.report import render_html\nd = Document('t', [Bars('B', ['a'], [('', [1])])])\nto_terminal(d)\n"
        "render_html.to_html(Document('t', []))\nassert 'matplotlib' not in sys.modules\n"
        "render_html.to_html(d)\nassert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
