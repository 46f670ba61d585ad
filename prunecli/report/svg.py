"""A matplotlib figure -> SVG that stands inside a page: the page's colours and fonts, values where one points."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

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
    """matplotlib with our settings alone, whatever a matplotlibrc on this machine says, and without its chatter."""
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
    """The text of an <svg> element.

    Args:
        figure: its artists use the colours of this module.
        label: what a screen reader says.
        tips: by the gid of an artist, the text of each of its marks, shown where the reader points at it.
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
    """Give each mark of a group its title: the markers of a series, or else the one shape."""
    marks = list(_marks(group))
    if len(marks) != len(texts):
        raise AssertionError(f"{len(marks)} marks for {len(texts)} texts")
    for mark, text in zip(marks, texts, strict=True):
        ElementTree.SubElement(mark, "title").text = text


def _marks(group: Element) -> Iterator[Element]:
    markers = [element for element in group.iter() if _local(element.tag) == "use"]
    yield from markers or [element for element in group if _local(element.tag) == "path"]
