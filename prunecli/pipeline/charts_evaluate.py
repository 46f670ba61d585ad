"""Charts of an evaluation: quality, latency, robustness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from prunecli.evaluation.quality import METRICS
from prunecli.report.document import Axis, Bars, Chart, Mark, NumberForm, Panel, Section, Series

if TYPE_CHECKING:
    from prunecli.evaluation.stress import Stress
    from prunecli.pipeline.evaluate import Evaluation


def quality_bars(found: Evaluation) -> Iterator[Section]:
    """The metrics that are fractions, before and after."""
    names = [n for n, value in found.model.metrics.items() if METRICS[n].fraction and np.isfinite(value)]
    if names:
        series = [(s.role, [s.metrics.get(name) for name in names]) for s in reversed(found.models)]
        yield Bars("Quality side by side", [n.replace("_", " ") for n in names], series, "percent", detail=True)


def latency_chart(found: Evaluation) -> Iterator[Section]:
    """The share of runs that were as fast or faster, for each model: left is better, steep is steady."""
    timed = [(s.role, np.sort(s.latency.times)) for s in reversed(found.models) if s.latency is not None]
    if not timed:
        return
    series = [
        Series(role, times.tolist(), (np.arange(1, len(times) + 1) / len(times)).tolist(), "steps")
        for role, times in timed
    ]
    marks = [Mark("x", float(np.median(times)), f"{role} {np.median(times):.3g} ms") for role, times in timed]
    panel = Panel(series, marks=marks)
    note = "The share of runs that took so long or less; a mark is at each median."
    yield Chart("Latency of single runs", [panel], Axis("time", "ms"), Axis("runs", "percent"), note, detail=True)


def robustness_chart(stress: Stress) -> Section:
    """Quality over severity, one panel per corruption; severity 0 is the clean data."""
    form: NumberForm = "percent" if stress.metric not in METRICS or METRICS[stress.metric].fraction else "number"
    panels = []
    for name in dict.fromkeys(row.corruption for row in stress.rows):
        rows = [row for row in stress.rows if row.corruption == name]
        x = [0.0, *(row.severity for row in rows)]
        series = [Series(role, x, [clean, *(row.values[role] for row in rows)])
                  for role, clean in reversed(list(stress.clean.items()))]  # fmt: skip
        panels.append(Panel(series, name.replace("_", " "), x=Axis(f"severity, {rows[0].unit}")))
    y = Axis(stress.metric.replace("_", " "), form)
    return Chart("Robustness curves", panels, Axis("severity"), y, shared="y", detail=True)


def class_bars(found: Evaluation) -> Iterator[Section]:
    """F1 of each class."""
    asked = [s for s in reversed(found.models) if s.classes]
    if asked:
        f1 = {s.role: {str(row["class"]): row["f1"] for row in s.classes} for s in asked}
        names = list(dict.fromkeys(name for values in f1.values() for name in values))
        series = [(role, [values.get(name) for name in names]) for role, values in f1.items()]
        yield Bars("F1 of each class", names, series, "percent", detail=True)
