"""Sensitivity and the path of a search as pictures."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from prunecli.report.document import Chart, ChartAxis, Mark, Panel, Series

if TYPE_CHECKING:
    from prunecli.search.adaptive import AdaptiveResult
    from prunecli.search.sensitivity import SensitivityResult, SensitivityRow


def sensitivity_chart(found: SensitivityResult) -> Chart:
    """Small multiples, the most sensitive layer first, all on the same axes: the loss, or what is predicted, by the
    fraction removed."""
    panels = [Panel([_curve(row)], row.knob.name) for row in found.rows]
    if found.ranking is not None:
        y = ChartAxis("predicted damage")
        return Chart("Predicted damage by layer", panels, ChartAxis("removed", "percent"), y, detail=True)
    y = ChartAxis(f"{found.metric.replace('_', ' ')} {found.change}")
    note = "bands: one standard error to both sides"
    return Chart("Loss by layer", panels, ChartAxis("removed", "percent"), y, note, detail=True)


def _curve(row: SensitivityRow) -> Series:
    x = [0.0, *(p.fraction for p in row.points)]
    if any(p.drop is None or p.error is None for p in row.points):
        return Series("", x, [0.0, *(p.damage for p in row.points)])
    pairs = [(p.drop or 0.0, p.error or 0.0) for p in row.points]
    return Series("", x, [0.0, *(d for d, _ in pairs)], low=[0.0, *(d - e for d, e in pairs)],
                  high=[0.0, *(d + e for d, e in pairs)])  # fmt: skip


def curves_chart(found: AdaptiveResult) -> Chart:
    """The damage by each layer cut alone, the most harmed first, and how much of it was removed in the end."""
    chosen = {one.knob.name: one.fraction for one in found.layers}
    finite = {c.knob: [(f, d) for f, d in zip(c.fractions.tolist(), c.damages.tolist(), strict=True) if isfinite(d)]
              for c in found.curves}  # fmt: skip
    order = sorted(finite, key=lambda name: -max(d for _, d in finite[name]))
    panels = [
        Panel([Series("", [f for f, _ in finite[name]], [d for _, d in finite[name]])], name,
              [Mark("x", chosen[name], "removed")] if name in chosen else [])
        for name in order
    ]  # fmt: skip
    note = "damage: how far the outputs move on average, with nothing else removed"
    return Chart(
        "Damage by each layer alone", panels, ChartAxis("removed", "percent"), ChartAxis("damage"), note, detail=True
    )


def path_chart(found: AdaptiveResult, name: str) -> Chart:
    """Every step by what it leaves and what it loses, the front as a line, and the limit."""
    limit, most = found.goal.max_drop, 10 * found.goal.max_drop
    shown = [step for step in found.steps if step.drop.value <= most]
    series = []
    for title, allowed in (("allowed", True), ("not allowed", False)):
        mine = [step for step in shown if step.allowed == allowed]  # also if empty: colours keep their meaning
        series.append(Series(title, [s.remains for s in mine], [s.drop.value for s in mine], "points",
                             labels=[f"step {s.number}" for s in mine]))  # fmt: skip
    front = [m.step for m in found.front if m.step.drop.value <= most]
    if front:
        series.append(Series("Pareto front", [s.remains for s in front], [s.drop.value for s in front], "line"))
    series += [Series("on held-out samples", [c.step.remains], [c.drop.value], "points", [c.low], [c.high])
               for c in found.confirmations if c.drop.value <= most]  # fmt: skip
    left_out = len(found.steps) - len(shown)
    note = f"steps that lost more than {most:g} are left out: {left_out}" if left_out else ""
    panel = Panel(series, marks=[Mark("y", limit, "limit")])
    return Chart("Steps", [panel], ChartAxis(f"{name} left", "percent"), ChartAxis(found.change), note, detail=True)
