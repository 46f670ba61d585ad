"""A table of latencies per layer and width, measured in onnxruntime, that predicts the latency of any cut.

The model is cut evenly to a few widths, and at each of them every layer is timed where it stands: fused, in its
real layout, on the threads that will run it. What a layer takes at other widths is interpolated over the share of
its work that remains, which is the product of the kept fractions of the axes it depends on. Widths are multiples
of the blocks in which onnxruntime computes convolutions, because those in between save nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.dependency.analysis import Analysis
from prunecli.dependency.catalogue import Catalogue
from prunecli.dependency.costs import Costs, axes_of_outputs, costs
from prunecli.evaluation.profile import REST, key
from prunecli.structures.widths import Alignment

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Fractions of every group that are measured."""
NANOSECONDS = 1e6


@dataclass
class LatencyTable:
    """Implements `Costing` of `prunecli.structures.choose`, with the amount `latency` in nanoseconds.

    `points`: by layer (`latency_profile.key`), (share of its work that remains, milliseconds). `axes`: by layer, the
    axes (representatives in the atom table) to which its work is proportional.
    """

    catalogue: Catalogue
    base: Costs = field(init=False)
    axes: dict[str, tuple[int, ...]] = field(init=False)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _curves: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = costs(self.catalogue.analysis)
        self.axes = _axes_of_layers(self.catalogue.analysis)

    def learn(self, times: Mapping[str, float], kept: Array) -> None:
        """Add what was measured with `kept` positions left on each axis. A layer without a time of its own there was
        swallowed by another one: it took none."""
        for name in {*times, *self.points}:
            point = self.share(name, kept), times.get(name, 0.0)
            self.points.setdefault(name, []).append(point)
        self._curves = {name: _curve(points) for name, points in self.points.items()}

    def share(self, name: str, kept: Array) -> float:
        """Of a layer's work: the product of the kept fractions; of the rest: as of all work together."""
        fraction = self.base.fraction(kept)
        if name == REST or name not in self.axes:
            whole = self.base.of(self.base.sizes)["macs"]
            return self.base.of(kept)["macs"] / whole if whole else 1.0
        return float(fraction[list(self.axes[name])].prod())

    def of(self, kept: Array) -> dict[str, int]:
        """Parameters, multiply-accumulates, and the predicted latency in nanoseconds."""
        total = sum(float(np.interp(self.share(name, kept), *curve)) for name, curve in self._curves.items())
        return {**self.base.of(kept), "latency": round(total * NANOSECONDS)}


def _axes_of_layers(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    """Contractions: the axes of their work; other operators: those of their first output."""
    table = analysis.components.table
    out = {key(node): axes for node, axes in axes_of_outputs(analysis).items()}
    out.update({key(work.node): tuple(table.find(axis) for axis in work.axes) for work in analysis.work})
    return out


def _curve(points: Sequence[tuple[float, float]]) -> tuple[Array, Array]:
    """Milliseconds over shares, never falling: measurements at one share are averaged, those that contradict the
    order are pooled half way, and nothing takes no time."""
    shares = np.array(sorted({share for share, _ in points}))
    times = np.array([np.mean([ms for other, ms in points if other == share]) for share in shares])
    up = np.maximum.accumulate(times)
    down = np.minimum.accumulate(times[::-1])[::-1]
    return np.append(0.0, shares), np.append(0.0, (up + down) / 2)


def even_cut(catalogue: Catalogue, alignment: Alignment, allowed: Mask, share: float) -> Mask:
    """A mask over units that leaves about `share` of every allowed group, in widths that it may keep: which units those
    are does not matter to the clock."""
    removed = np.zeros(catalogue.count, bool)
    for group in (g for g, wanted in zip(catalogue.groups, allowed, strict=True) if wanted):
        widths = alignment.widths(catalogue, group)
        stay = min((width for width in widths if width >= round(share * group.count)), default=group.count)
        removed[group.first + stay : group.units.stop] = True
    return removed
