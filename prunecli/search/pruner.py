"""What a search moves, whatever does the pruning: layers, and an allocation that says which fraction of each goes.

A pruner knows one kind of unit. It lists its layers, builds the model of an allocation, says what that costs, and saves
it with proof. All that is measured of an allocation is measured on the model that it builds, so sensitivity, both
strategies and every backend work for every pruner. Workers have its `Space` alone: what builds models.
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

from prunecli.masks.allocations import LossCurve
from prunecli.search.options import PrunedFile
from prunecli.structures.carry_out import StructuredResult
from prunecli.types import Json, Progress, Skipped
from prunecli.zeros.result import MagnitudeResult

Allocation = Mapping[str, float]
"""Fraction removed, by layer; layers that are not named stay whole."""
DIGITS = 6
"""Decimals of a fraction: one millionth of the largest layers is a few weights."""
Result = MagnitudeResult | StructuredResult
Proxy = Callable[[str, float], float]
"""(layer, fraction) -> predicted damage, in any unit: half the sum of w^2 E[g^2] over what goes (Optimal Brain Damage,
LeCun et al. 1990), g the gradient of the outputs in random directions."""


@dataclass(frozen=True)
class Layer:
    """Something that can be cut by a fraction of its own: the elements of a weight, or a group of coupled units.

    count: units in it. params, macs: in the weights that it touches. limit: the largest fraction. touches: weights.
    widths: numbers of units that may stay, from all of them down; empty: any.
    """

    name: str
    kind: str
    count: int
    params: int
    macs: int | None
    touches: tuple[str, ...]
    limit: float = 1.0
    widths: tuple[int, ...] = ()

    def gone(self, fraction: float) -> int:
        """Whole units that go."""
        most = min(round(fraction * self.count), int(self.limit * self.count + 1e-9))
        return self.count - min(width for width in self.widths if width >= self.count - most) if self.widths else most

    def snapped(self, fraction: float) -> float:
        """The fraction that whole units make."""
        return self.gone(fraction) / max(self.count, 1)


class Space(Protocol):
    """A model with everything that can be removed from it, in its order of importance within each layer."""

    @property
    def layers(self) -> Sequence[Layer]: ...

    def build(self, allocation: Allocation) -> onnx.ModelProto:
        """The pruned model, complete, with the inputs and outputs of the original."""
        ...

    def cost(self, allocation: Allocation) -> Mapping[str, float]:
        """What remains, exact to a unit: `params`, and by the kind of pruner `macs`, `file_bytes`."""
        ...

    def by_threshold(self, share: float) -> Allocation:
        """The allocation that one threshold on all scores makes, such that `share` of all units go."""
        ...

    def thresholds(self, allocation: Allocation) -> Mapping[str, float]:
        """By layer, the largest score that goes."""
        ...


class Pruner(Space, Protocol):
    """A space that saves what it builds. `at`: opens it from a file; can be pickled and sent to another machine.
    `identity`: of all that decides what an allocation means. `goals`: what can be minimised, the default first."""

    @property
    def at(self) -> Callable[[Path], Space]: ...
    @property
    def identity(self) -> str: ...
    @property
    def goals(self) -> tuple[str, ...]: ...
    @property
    def skipped(self) -> list[Skipped]: ...
    @property
    def criterion(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def proxy(self, progress: Progress) -> Proxy:
        """Damage predicted from gradients.

        Raises:
            PruneError: an operator has no gradient.
        """
        ...

    def predicted(self) -> Mapping[str, LossCurve]:
        """By layer, the damage that a graph neural network predicts from the file.

        Raises:
            Undescribed: the model has what it was not trained on.
        """
        ...

    def save(self, allocation: Allocation, saving: PrunedFile, said: Json, progress: Progress) -> Result:
        """Prune the user's file by an allocation and save it with proof to `saving.output`. `said`: recorded in it."""
        ...

    def cut_further(
        self, trained: Path, gone: Allocation, allocation: Allocation, saving: PrunedFile, progress: Progress
    ) -> Result:
        """As `save`, of what training made of a cut by the gentler allocation `gone`, which stays gone."""
        ...


def normal(allocation: Allocation) -> dict[str, float]:
    """Rounded, sorted, without what stays whole: equal allocations are equal."""
    rounded = {name: round(float(value), DIGITS) for name, value in sorted(allocation.items())}
    return {name: value for name, value in rounded.items() if value > 0}


def snapped(layers: Sequence[Layer], allocation: Allocation) -> dict[str, float]:
    """The allocation as whole units make it, normal: what it really does."""
    return normal({layer.name: layer.snapped(allocation[layer.name]) for layer in layers if layer.name in allocation})


def digest(*parts: object) -> str:
    """A name for what JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


T = TypeVar("T")


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
