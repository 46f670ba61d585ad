"""Charts of what was removed and why: layers, sizes, and the distributions that a cut went through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prunecli.report.document import Axis, Bars, Chart, Mark, Panel, Section, Series
from prunecli.types import Totals

if TYPE_CHECKING:
    from prunecli.pipeline.structured_plan import GroupRow
    from prunecli.pipeline.zeroed_spread import ZeroedSpread

MOST = 30
"""More distributions than that are not drawn: the largest layers' are."""
BINS = 24
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


def spread_charts(spreads: Mapping[str, ZeroedSpread], sizes: Mapping[str, int]) -> Iterator[Section]:
    """|w| of what was zeroed and kept, over all weights and in each; `sizes`: elements by weight."""
    if not spreads:
        return
    x, y = Axis("|w|", log=True), Axis("weights", "count")
    note = "The leftmost bar also holds what is smaller."
    yield Chart("What was zeroed: |w| over all weights", [_spread_panel(spreads[""], "")], x, y, note, detail=True)
    largest = sorted((name for name in spreads if name), key=lambda name: -sizes[name])[:MOST]
    panels = [_spread_panel(spreads[name], name) for name in spreads if name in largest]
    if len(largest) < len(spreads) - 1:
        note += f" The {len(largest)} largest of {len(spreads) - 1} weights."
    yield Chart("What was zeroed: |w| in each weight", panels, x, y, note, shared="x", detail=True)


def _spread_panel(spread: ZeroedSpread, title: str) -> Panel:
    both = ((KEPT, spread.kept), (ZEROED, spread.zeroed))
    series = [Series(name, spread.edges, counts, "histogram") for name, counts in both]
    name = f"{'cut' if spread.sharp else 'largest zeroed'} {spread.cut:.3g}" if spread.cut else ""
    return Panel(series, title, [Mark("x", spread.cut, name)] if spread.cut else [])


def score_charts(groups: Sequence[GroupRow]) -> Iterator[Section]:
    """Scores of the units that stayed and went, group by group."""
    scored = [group for group in groups if group.before > 1 and len(group.kept) + len(group.removed) > 0]
    largest = sorted(scored, key=lambda group: -group.before * max(group.params, 1))[:MOST]
    panels = [_score_panel(group) for group in scored if group in largest]
    if panels:
        more = "" if len(panels) == len(scored) else f" The {len(panels)} largest of {len(scored)} groups."
        note = f"A unit is what must go together; which go is decided by score per cost.{more}"
        x, y = Axis("score"), Axis("units", "count")
        yield Chart("Scores of units, by group", panels, x, y, note, shared=False, detail=True)


def _score_panel(group: GroupRow) -> Panel:
    both = np.array([*group.kept, *group.removed])
    log = bool(both.min() > 0 and both.max() > 100 * both.min())
    low, high = (float(np.log(v)) if log else float(v) for v in (both.min(), both.max()))
    edges = np.linspace(low, high if high > low else low + (abs(low) or 1.0) * 1e-3, BINS + 1)
    edges = np.exp(edges) if log else edges
    edges[0], edges[-1] = min(edges[0], both.min()), max(edges[-1], both.max())
    series = [
        Series(name, edges.tolist(), np.histogram(scores, edges)[0].tolist(), "histogram")
        for name, scores in ((KEPT, group.kept), (REMOVED, group.removed))
    ]
    last = max(group.removed, default=math.inf)
    clean = last <= min(group.kept, default=math.inf) and math.isfinite(last)
    return Panel(series, group.name, [Mark("x", last, f"cut {last:.3g}")] if clean else [], x=Axis("score", log=log))


def group_bars(groups: Sequence[GroupRow]) -> Iterator[Section]:
    """Units kept and removed, by group."""
    if groups:
        names, after = [group.name for group in groups], [group.after for group in groups]
        series = [(KEPT, after), (REMOVED, [group.before - group.after for group in groups])]
        yield Bars("Units by coupled group", names, series, "count", stacked=True, detail=True)
