"""What a search moves, whatever does the pruning: knobs, each a fraction to remove, and the model that they make.

A pruner plugs in as a `Space`: it builds the model of a `Setting`, and says what that costs. All that is measured of a
setting is measured on this model, so sensitivity, both strategies and every backend work for every pruner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import onnx

Setting = Mapping[str, float]
"""Fraction removed, by knob; knobs that are not named stay whole."""
DIGITS = 6
"""Decimals of a fraction: one millionth of the largest layers is a few weights."""


@dataclass(frozen=True)
class Knob:
    """Something that can be cut by a fraction of its own: the elements of a weight, or a group of coupled units.

    count: units in it. params, macs: in the weights that it touches. limit: the largest fraction. touches: weights.
    multiple: the number of units that stay is a multiple of it.
    """

    name: str
    kind: str
    count: int
    params: int
    macs: int | None
    touches: tuple[str, ...]
    limit: float = 1.0
    multiple: int = 1

    def gone(self, fraction: float) -> int:
        """Whole units that go."""
        most = min(round(fraction * self.count), int(self.limit * self.count + 1e-9))
        return max(self.count - -(-(self.count - most) // self.multiple) * self.multiple, 0)

    def snapped(self, fraction: float) -> float:
        """The fraction that whole units make."""
        return self.gone(fraction) / max(self.count, 1)


class Space(Protocol):
    """A model with everything that can be removed from it, in its order of importance within each knob."""

    @property
    def knobs(self) -> Sequence[Knob]: ...

    def build(self, setting: Setting) -> onnx.ModelProto:
        """The pruned model, complete, with the inputs and outputs of the original."""
        ...

    def cost(self, setting: Setting) -> Mapping[str, float]:
        """What remains, exact to a unit: `params`, and by the kind of pruner `macs`, `file_bytes`."""
        ...

    def by_threshold(self, share: float) -> Setting:
        """The setting that one threshold on all scores makes, such that `share` of all units go."""
        ...

    def thresholds(self, setting: Setting) -> Mapping[str, float]:
        """By knob, the largest score that goes."""
        ...


class SpaceRecipe(Protocol):
    """How a space is opened; can be pickled and sent to another machine."""

    def open(self, path: Path) -> Space: ...


def normal(setting: Setting) -> dict[str, float]:
    """Rounded, sorted, without what stays whole: equal settings are equal."""
    rounded = {name: round(float(value), DIGITS) for name, value in sorted(setting.items())}
    return {name: value for name, value in rounded.items() if value > 0}


def snapped(knobs: Sequence[Knob], setting: Setting) -> dict[str, float]:
    """The setting as whole units make it, normal: what it really does."""
    return normal({knob.name: knob.snapped(setting[knob.name]) for knob in knobs if knob.name in setting})


def digest(*parts: object) -> str:
    """A name for what JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


T = TypeVar("T")
Proxy = Callable[[str, float], float]
"""(knob, fraction) -> predicted damage, in any unit: half the sum of w^2 E[g^2] over what goes (Optimal Brain Damage,
LeCun et al. 1990), g the gradient of the outputs in random directions."""


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, ties at their mean; NaN where all of one are equal."""
    from scipy.stats import rankdata

    if len(one) < 2 or len(set(one)) < 2 or len(set(other)) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def sample_of(items: Sequence[T], count: int, seed: int) -> list[T]:
    """Some of them, drawn at random, in their order."""
    if len(items) <= count:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), count, replace=False)
    return [items[i] for i in sorted(chosen.tolist())]
