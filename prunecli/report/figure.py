"""Shared parts of drawings: colours, figures in inches, axes of numbers, legends, and the SVG of a page."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from prunecli.report.document import ChartAxis, NumberForm
from prunecli.report.render_cells import cell_text, one_line

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


# matplotlib only knows fixed colours. These stand for the page's variables, which differ in light and dark.
FOREGROUND, DIM, LINE = "#010200", "#010201", "#010202"
SERIES = tuple(f"#01030{i}" for i in range(6))
_VARIABLES = {FOREGROUND: "--fg", DIM: "--dim", LINE: "--line", **{c: f"--c{i}" for i, c in enumerate(SERIES)}}
_SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",  # text stays text: the reader can select and search it
    "svg.hashsalt": "prune",  # the same report is the same file
    "text.parse_math": False,  # names in a model file may hold dollar signs
    "path.simplify": False,
}
_DEFINED = re.compile(r"[a-z][0-9a-f]{10}")  # what matplotlib refers to: a hash of the thing itself
_FONT = re.compile(r"font-family: [^;]*;?")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Use matplotlib with the settings of this module alone, whatever a matplotlibrc says, and without its log
    messages."""
    import matplotlib as mpl

    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that it builds a cache of fonts
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that the measuring font lacks is drawn by the browser's
        mpl.rcdefaults()
        mpl.rcParams.update(dict[Any, Any](_SETTINGS))
        yield
    logger.setLevel(level)


def to_svg(figure: Figure, label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """Return the text of an <svg> element.

    Args:
        figure: its artists use the colours of this module.
        label: what a screen reader says.
        tips: by the gid of an artist, the tooltip of each of its marks.
    """
    file = io.StringIO()
    unsaid = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    return _inline(ElementTree.fromstring(file.getvalue()), label, tips)


def _inline(root: Element, label: str, tips: Mapping[str, Sequence[str]]) -> str:
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): value for name, value in element.attrib.items()}
        if "style" in element.attrib:
            element.attrib["style"] = _FONT.sub("", element.attrib["style"])
        if element.attrib.get("id") in tips:
            _tell(element, tips[element.attrib["id"]])
        if not _DEFINED.fullmatch(element.attrib.get("id", "")):  # numbered from 1 in every figure of the page
            element.attrib.pop("id", None)
        for child in [child for child in element if _local(child.tag) == "style"]:
            element.remove(child)  # it would hold for the whole page
    root.attrib |= {"role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return re.sub(r"\s*\n\s*", " ", text)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _tell(group: Element, texts: Sequence[str]) -> None:
    """Give each mark of a group its title: each marker of a series, or the one shape of the group."""
    marks = list(_marks(group))
    if len(marks) != len(texts):
        raise AssertionError(f"{len(marks)} marks for {len(texts)} texts")
    for mark, text in zip(marks, texts, strict=True):
        ElementTree.SubElement(mark, "title").text = text


def _marks(group: Element) -> Iterator[Element]:
    markers = [element for element in group.iter() if _local(element.tag) == "use"]
    yield from markers or [element for element in group if _local(element.tag) == "path"]


Tips = dict[str, list[str]]

WIDTH = 12.0  # inches, as wide as the page
LINE_HEIGHT, LETTER = 0.2, 0.078  # inches of a line of text, and of a letter in the widest font that browsers use


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float, **shared: Any) -> Axes:
    """Add axes to a figure, their place in inches. `sharex`, `sharey`: other axes that have the same range."""
    across, up = figure.get_size_inches()
    box = (left / across, bottom / up, width / across, height / up)
    axes: Axes = figure.add_axes(box, **shared)
    return axes


def color(number: int) -> str:
    return SERIES[number % len(SERIES)]


def label_axis(axis: Axis, text: ChartAxis) -> None:
    """Write the ticks of an axis in its form, with whole numbers only if it counts things, and its title."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    formatter = FuncFormatter(lambda value, _: tick_text(value, text.form))
    formatter.format_ticks = lambda values: tick_texts(values, text.form)  # type: ignore[method-assign]
    axis.set_major_formatter(formatter)
    if text.log:
        low, high = axis.get_view_interval()
        steps = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=steps, numticks=6))
        axis.set_minor_locator(NullLocator())
    else:
        whole = text.form in ("count", "bytes")
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1))
    axis.set_label_text(one_line(text.title), color=DIM, fontsize=10)


def tick_texts(values: Sequence[float], form: NumberForm) -> list[str]:
    """Return the texts of ticks, with as many digits as it takes to tell all values apart."""
    for digits in range(4, 17):
        texts = [tick_text(value, form, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def tick_text(value: float, form: NumberForm, digits: int = 4) -> str:
    """Return the text of a tick without trailing zeros: 20 % and 0.5, not 20.0 % and 0.5000."""
    if form == "percent":
        return f"{100 * value:.{digits}g} %"
    if form == "ms":
        return f"{value:.{digits}g} ms"
    if digits == 4:
        return cell_text(value, form)
    return f"{value:,.{digits}g}{' B' if form == 'bytes' else ''}"


def style(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Give axes thin lines in the colours of the page, and a grid."""
    axes.grid(axis=grid, color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=LINE, labelcolor=FOREGROUND, labelsize=9.5, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)


def add_legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """Add one legend above all axes, names in the order of first appearance; no legend if there are fewer than two."""
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
