"""Curves of a training run, or of several in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prunecli.recover.trainer import Epoch
from prunecli.report.document import Axis, Chart, Mark, Panel, Section, Series


def training_charts(runs: Sequence[Sequence[Epoch]], score: str, before: Sequence[float | None]) -> Iterator[Section]:
    """Loss and score over the epochs.

    Args:
        runs: the epochs of each run; a mark stands where each but the first begins.
        score: the name of the score.
        before: each run's score before its first epoch; it is that run's point before its first epoch.
    """
    epochs = [epoch for run in runs for epoch in run]
    if not epochs:
        return
    starts = [0, *accumulate(len(run) for run in runs)][: len(runs)]
    marks = [Mark("x", start + 0.5, f"cut {number}") for number, start in enumerate(starts[1:], 2)]
    over = list(range(1, len(epochs) + 1))
    panels = [Panel([Series("loss", over, [epoch.loss for epoch in epochs])], "", marks, y=Axis("loss"))]
    if any(epoch.score is not None for epoch in epochs):
        series = Series(score, over, [epoch.score for epoch in epochs])
        known = [(start + 0.5, value) for start, value in zip(starts, before, strict=True) if value is not None]
        first = Series(f"{score} before training", [x for x, _ in known], [y for _, y in known], "points")
        panels.append(Panel([series, first], "", marks, y=Axis(f"{score}, held out")))
    yield Chart("Training curves", panels, Axis("epoch", "count"), Axis("loss"), shared="x", detail=True)
