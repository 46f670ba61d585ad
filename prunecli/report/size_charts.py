"""Charts of what was removed that commands share: layers and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prunecli.report.document import Bars, Section
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


def size_bars(before: Totals, after: Totals) -> Section:
    """What remains of each size."""
    titles = {
        "params": "parameters",
        "nonzero": "not zero",
        "macs": "multiply-accumulates",
        "file_bytes": "file",
        "gzip_bytes": "file, gzipped",
    }
    sizes = [(title, getattr(before, name), getattr(after, name)) for name, title in titles.items()]
    known = [(title, new / old) for title, old, new in sizes if old and new is not None]
    names, left = [title for title, _ in known], [share for _, share in known]
    return Bars("What remains of the original", names, [("", left)], "percent", detail=True, full=1.0)
