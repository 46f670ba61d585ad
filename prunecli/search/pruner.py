"""The interface between searches and pruners: layers, and allocations, which give the removed fraction of each.

A pruner knows one kind of unit. It lists its layers, builds the model of an allocation, counts its costs, and saves it
with proof. Everything that is measured of an allocation is measured on the model that it builds, so sensitivity, both
strategies and every backend work for every pruner. Workers only need its `Space`, which builds models.
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
    """A part of the model to which an allocation gives a fraction: the elements of a weight, or a group of coupled
    units.

    count: its units. params, macs: sums over the weights in `touches`. limit: the largest fraction that may be removed.
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
        """Return the number of units removed at this fraction."""
        most = min(round(fraction * self.count), int(self.limit * self.count + 1e-9))
        return self.count - min(width for width in self.widths if width >= self.count - most) if self.widths else most

    def snapped(self, fraction: float) -> float:
        """Return the fraction rounded to whole units."""
        return self.gone(fraction) / max(self.count, 1)


class Space(Protocol):
    """A model with everything that can be removed from it, in its order of importance within each layer."""

    @property
    def layers(self) -> Sequence[Layer]: ...

    def build(self, allocation: Allocation) -> onnx.ModelProto:
        """Return the pruned model, complete, with the inputs and outputs of the original."""
        ...

    def cost(self, allocation: Allocation) -> Mapping[str, float]:
        """Return what remains, exact to a unit: `params`, and the pruner's other `goals`."""
        ...

    def by_threshold(self, share: float) -> Allocation:
        """Return the allocation of one threshold on all scores, at which `share` of all units go."""
        ...

    def thresholds(self, allocation: Allocation) -> Mapping[str, float]:
        """Return, by layer, the largest score among the units that go."""
        ...


class Pruner(Space, Protocol):
    """A space that can save what it builds. `at`: opens the space from a file; it can be pickled for another machine.
    `identity`: digest of all that decides what an allocation means. `goals`: what can be minimised, default first."""

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
        """Return a function that predicts damage from gradients.

        Raises:
            PruneError: an operator has no gradient.
        """
        ...

    def predicted(self) -> Mapping[str, LossCurve]:
        """Return, by layer, the damage that a graph neural network predicts from the file.

        Raises:
            Undescribed: the model has operators that the network was not trained on.
        """
        ...

    def save(self, allocation: Allocation, saving: PrunedFile, said: Json, progress: Progress) -> Result:
        """Prune the user's file by an allocation and save it with proof to `saving.output`. `said`: recorded in it."""
        ...

    def cut_further(
        self, trained: Path, gone: Allocation, allocation: Allocation, saving: PrunedFile, progress: Progress
    ) -> Result:
        """Prune `trained`, a model that was cut by the gentler allocation `gone` and then trained; else as `save`."""
        ...


def normal(allocation: Allocation) -> dict[str, float]:
    """Return the allocation rounded, sorted and without zeros, so that equal allocations compare equal."""
    rounded = {name: round(float(value), DIGITS) for name, value in sorted(allocation.items())}
    return {name: value for name, value in rounded.items() if value > 0}


def snapped(layers: Sequence[Layer], allocation: Allocation) -> dict[str, float]:
    """Return the allocation rounded to whole units, in normal form."""
    return normal({layer.name: layer.snapped(allocation[layer.name]) for layer in layers if layer.name in allocation})


def digest(*parts: object) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of the parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


T = TypeVar("T")


def sample_of(items: Sequence[T], count: int, seed: int) -> list[T]:
    """Return at most `count` of the items, drawn at random, in their order."""
    if len(items) <= count:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), count, replace=False)
    return [items[i] for i in sorted(chosen.tolist())]
