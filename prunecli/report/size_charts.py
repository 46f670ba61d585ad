"""Sizes before and after, and charts of what was removed, that commands share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prunecli.report.document import Bars, Cell, Column, Section, Table
from prunecli.report.render_cells import cell_text
from prunecli.report.sections import share
from prunecli.types import Totals

MOST = 30
"""More distributions than that are not drawn: the largest layers' are."""
KEPT, ZEROED, REMOVED = "kept", "zeroed", "removed"


def layer_bars(rows: Iterable[tuple[str, int, int]], removed: str) -> Iterator[Section]:
    """`rows`: weight, elements before, elements left; largest first, since a bar shows its size."""
    ordered = sorted(rows, key=lambda row: -row[1])
    if ordered:
        names, before, after = zip(*ordered, strict=True)
        gone = [b - a for b, a in zip(before, after, strict=True)]
        series = [(KEPT, list(after)), (removed, gone)]
        yield Bars("Parameters by layer", names, series, "count", stacked=True, detail=True)


SIZES = {
    "params": "parameters",
    "nonzero": "not zero",
    "macs": "multiply-accumulates",
    "file_bytes": "file",
    "gzip_bytes": "file, gzipped",
}
"""Titles of the sizes of a model."""


def size_table(
    before: Totals,
    after: Totals,
    more: Sequence[Sequence[Cell]] = (),
    columns: tuple[str, str] = ("before", "after"),
    top: Sequence[Sequence[Cell]] = (),
) -> Table:
    """Sizes before and after, and what remains of each. `top`, `more`: rows of the same four cells above and below."""
    rows = []
    for name, title in SIZES.items():
        old, new = getattr(before, name), getattr(after, name)
        form = "bytes" if name.endswith("bytes") else "count"
        about = "about " if name == "gzip_bytes" and after.gzip_estimated else ""
        texts = [f"{about}{cell_text(value, form)}" for value in (old, new)]
        rows.append((title, *texts, share(new, old)))
    heads = (Column(""), Column(columns[0]), Column(columns[1]), Column("remains", "percent"))
    return Table("Size", heads, [*top, *rows, *more])


def size_bars(before: Totals, after: Totals) -> Section:
    """What remains of each size."""
    sizes = [(title, getattr(before, name), getattr(after, name)) for name, title in SIZES.items()]
    known = [(title, new / old) for title, old, new in sizes if old and new is not None]
    names, left = [title for title, _ in known], [share for _, share in known]
    return Bars("What remains of the original", names, [("", left)], "percent", detail=True, full=1.0)
