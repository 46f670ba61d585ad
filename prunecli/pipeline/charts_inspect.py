"""Charts of an inspection: where parameters and work are, and how weights are distributed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from prunecli.report.document import Axis, Bars, Chart, Panel, Section, Series

if TYPE_CHECKING:
    from prunecli.pipeline.distribution import Distribution
    from prunecli.pipeline.inspect import Inspection

MOST = 30


def share_bars(found: Inspection) -> Iterator[Section]:
    """Each layer's part of all parameters and of all work."""
    layers = [layer for layer in found.layers if layer.kind in ("weight", "none")]
    totals = found.totals
    if layers:
        names = [layer.weight or f"({layer.name})" for layer in layers]
        series = [("parameters", [layer.params / totals.params if totals.params else None for layer in layers])]
        if totals.macs:
            series.append(("MACs", [None if layer.macs is None else layer.macs / totals.macs for layer in layers]))
        yield Bars("Share of the model", names, series, "percent", detail=True)


def distribution_charts(found: Inspection, measured: Distribution) -> Iterator[Section]:
    """Zeros over thresholds, and |w| of the largest weights."""
    steps = [step for step in measured.steps if step.value > 0]
    if steps:
        curve = Series("", [0.0, *(s.value for s in steps)], [0.0, *(s.sparsity for s in steps)])
        yield Chart("Zeros by threshold", [Panel([curve])], Axis("--threshold"), Axis("zeros", "percent"), detail=True)
    layers = [layer for layer in found.prunable if layer.weight in measured.spreads]
    largest = sorted(layers, key=lambda layer: -layer.params)[:MOST]
    panels = []
    for layer in (layer for layer in layers if layer in largest):
        spread = measured.spreads[layer.weight]
        edges = np.linspace(0, spread.largest or 1.0, len(spread.picture) + 1).tolist()
        panels.append(Panel([Series("weights", edges, spread.picture, "histogram")], layer.weight))
    note = "" if len(panels) == len(layers) else f"The {len(panels)} largest of {len(layers)} weights."
    yield Chart("|w| in each weight", panels, Axis("|w|"), Axis("weights", "count"), note, False, detail=True)
