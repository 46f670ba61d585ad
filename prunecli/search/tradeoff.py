"""How much is removed from each layer: the least damage for what is saved, from a curve of damage per layer.

If damages add up, the allocations that no other beats in both size and damage are found by one exchange rate lambda
between them: each layer takes the fraction that minimises cost + damage / lambda (Everett 1963). On the lower convex
hull of each layer's curve that is a greedy choice: segments in the order of damage per amount saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from prunecli.arrays import Array
from prunecli.masks.allocations import lower_hull
from prunecli.search.pruner import Allocation

FINE = 8
"""Points between two measured ones at which a curve is interpolated."""
POWER = 2.0
"""Exponent of the damage between zero and the first measured fraction."""
TINY = 1e-12


@dataclass(frozen=True)
class DamageCurve:
    """Damage of one layer moved alone: `fractions` rise, from the least that the layer may have; `damages` are above
    that at the first, and never fall. cost: what remains of the goal's amount at a fraction."""

    layer: str
    fractions: Array
    damages: Array
    cost: Callable[[float], float]

    @classmethod
    def of(
        cls, layer: str, fractions: Sequence[float], damages: Sequence[float], cost: Callable[[float], float]
    ) -> DamageCurve:
        """Return the curve of measurements in any order, made monotone, because a gain is noise."""
        order = np.argsort(fractions, kind="stable")
        rising = np.maximum.accumulate(np.asarray(damages, float)[order])
        return cls(layer, np.asarray(fractions, float)[order], rising - rising[0], cost=cost)

    def fine(self) -> tuple[Array, Array]:
        """Fractions in small steps, and damages: exponential between measured points, a power law from zero."""
        finite = np.isfinite(self.damages)
        fractions, damages = self.fractions[finite], self.damages[finite]
        f, d = [fractions[:1]], [damages[:1]]
        for i in range(len(fractions) - 1):
            t = np.arange(1, FINE + 1) / FINE
            low, high = damages[i], damages[i + 1]
            f.append(fractions[i] + t * (fractions[i + 1] - fractions[i]))
            d.append(high * t**POWER if low <= TINY else low * (high / low) ** t)
        return np.concatenate(f), np.concatenate(d)

    def at(self, fraction: float) -> float:
        """The damage at a fraction, as `fine` reads it."""
        return float(np.interp(fraction, *self.fine()))

    def times(self, factor: float) -> DamageCurve:
        return replace(self, damages=self.damages * factor)


@dataclass(frozen=True)
class Segment:
    """A step of one layer along the hull of its curve."""

    layer: str
    start: float
    stop: float
    damage: float
    saved: float

    @property
    def rate(self) -> float:
        return self.damage / self.saved


@dataclass(frozen=True)
class Path:
    """Settings from the gentlest to the harshest, as one line: `at(position)`, position in damage as predicted."""

    start: Allocation
    segments: Sequence[Segment]

    @property
    def least(self) -> float:
        """Return the damage of the first segment that exceeds TINY, else TINY."""
        return next((s.damage for s in self.segments if s.damage > TINY), TINY)

    @property
    def most(self) -> float:
        return sum(s.damage for s in self.segments)

    def position(self, allocation: Allocation) -> float:
        """The predicted damage of an allocation that lies on the path."""
        done = [s.damage * min(max((allocation.get(s.layer, 0.0) - s.start) / (s.stop - s.start), 0.0), 1.0)
                for s in self.segments]  # fmt: skip
        return float(sum(done))

    def at(self, position: float) -> Allocation:
        """The allocation whose predicted damage, above that of the start, is `position`."""
        allocation, left = dict(self.start), position
        for segment in self.segments:
            share = 1.0 if segment.damage <= left else left / segment.damage
            allocation[segment.layer] = segment.start + share * (segment.stop - segment.start)
            left -= segment.damage
            if left < 0:
                break
        return allocation


def best_path(curves: Sequence[DamageCurve]) -> Path:
    """The path of least damage for what is saved. It starts where every curve does."""
    segments = [segment for curve in curves for segment in _hull(curve)]
    segments.sort(key=lambda s: (s.rate, s.layer, s.start))
    return Path({curve.layer: float(curve.fractions[0]) for curve in curves}, segments)


def _hull(curve: DamageCurve) -> list[Segment]:
    """Return the segments of the lower convex hull of damage over what is saved."""
    fractions, damages = curve.fine()
    saved = curve.cost(float(fractions[0])) - np.array([curve.cost(float(f)) for f in fractions])
    rising = [0]
    for i in range(1, len(fractions)):
        if saved[i] > saved[rising[-1]] + TINY:
            rising.append(i)
    corners = [rising[i] for i in lower_hull(saved[rising], damages[rising])]
    return [
        Segment(curve.layer, float(fractions[a]), float(fractions[b]), damage=float(damages[b] - damages[a]),
                saved=float(saved[b] - saved[a]))
        for a, b in pairwise(corners)
    ]  # fmt: skip


def spread(low: float, high: float, count: int) -> list[float]:
    """Return positions between two, evenly spaced in the logarithm of damage, without the ends."""
    start, stop = np.log(max(low, TINY)), np.log(max(high, TINY))
    return [float(np.exp(start + (stop - start) * i / (count + 1))) for i in range(1, count + 1)]


def costs_of(
    space_cost: Callable[[Allocation], Mapping[str, float]], layer: str, goal: str
) -> Callable[[float], float]:
    """Return what remains of the goal's amount as a function of one layer's fraction, the others being whole."""
    return lambda fraction: float(space_cost({layer: fraction})[goal])
