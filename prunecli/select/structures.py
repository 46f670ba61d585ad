"""Criteria for structures: one score per unit from the slices of all weights that the unit touches.

x_u are the elements that unit u has in the slices looked at, as one vector. Higher scores stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.errors import PruneError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """One weight's slices: `matrix` is (units, width). `role`: out (rows that compute the unit), in (columns
    that read it), bias, norm, or other; `scale`: the factors of a BatchNormalization. `evidence`: by name,
    arrays of the matrix's shape, or (units, 1)."""

    weight: str
    role: str
    matrix: Array
    scale: bool = False
    evidence: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitGroup:
    """What a criterion sees: the parts of one group of like units. `rng` draws for that group alone."""

    name: str
    count: int
    parts: Sequence[Part]
    rng: np.random.Generator

    def of(self, *roles: str) -> list[Part]:
        return [part for part in self.parts if part.role in roles]


@dataclass(frozen=True)
class UnitCriterion:
    """`evidence`: what has to be measured on data first, by name; None: the weights suffice."""

    score: Callable[[UnitGroup], Array]
    evidence: str | None = None


UNIT_CRITERIA: dict[str, UnitCriterion] = {}


def unit_criterion(
    name: str, evidence: str | None = None
) -> Callable[[Callable[[UnitGroup], Array]], Callable[[UnitGroup], Array]]:
    """Register a criterion: `score(group)` returns one float64 per unit."""

    def add(score: Callable[[UnitGroup], Array]) -> Callable[[UnitGroup], Array]:
        UNIT_CRITERIA[name] = UnitCriterion(score, evidence)
        return score

    return add


def matrices(group: UnitGroup) -> list[Part]:
    """The matrices and kernels; where a unit has none, everything it has."""
    return group.of("out", "in") or list(group.parts)


def _added(terms: Iterable[Array]) -> Array:
    return np.asarray(sum(terms), np.float64)


@unit_criterion("l1")
def l1(group: UnitGroup) -> Array:
    """sum over slices of mean |x|: how large the unit's weights are (Li et al. 2017), each matrix alike."""
    return _added(np.abs(part.matrix).mean(axis=1) for part in matrices(group))


@unit_criterion("l2")
def l2(group: UnitGroup) -> Array:
    """sqrt of the sum over slices of mean x^2."""
    return np.sqrt(_added(np.square(part.matrix).mean(axis=1) for part in matrices(group)))


@unit_criterion("lamp")
def lamp(group: UnitGroup) -> Array:
    """s_u^2 / sum of s_v^2 over the units v with s_v >= s_u, s the l2 score (Lee et al. 2021)."""
    square = np.square(l2(group))
    order = np.argsort(square, kind="stable")
    rest = np.cumsum(square[order][::-1])[::-1]
    out = np.empty_like(square)
    out[order] = square[order] / np.maximum(rest, np.finfo(float).tiny)
    return out


@unit_criterion("fpgm")
def fpgm(group: UnitGroup) -> Array:
    """sum over the other units of |x_u - x_v|_2 on the rows that compute them: far from the geometric median
    is hard to replace (He et al. 2019)."""
    rows = np.concatenate([part.matrix for part in group.of("out") or group.parts], axis=1)
    square = np.square(rows).sum(axis=1)
    gram = rows @ rows.T
    distance = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * gram, 0))
    np.fill_diagonal(distance, 0)
    return np.asarray(distance.sum(axis=1))


@unit_criterion("bn-scale")
def bn_scale(group: UnitGroup) -> Array:
    """sum of |gamma| over the BatchNormalizations of the unit (network slimming, Liu et al. 2017).

    Raises:
        PruneError: the units have none.
    """
    scales = [part for part in group.parts if part.scale]
    if not scales:
        raise PruneError(
            f"--criterion bn-scale: the units of {group.name} have no BatchNormalization",
            "choose another criterion, or --exclude what has none; exporters often fold it into the convolution",
        )
    return _added(np.abs(part.matrix).sum(axis=1) for part in scales)


@unit_criterion("random")
def random(group: UnitGroup) -> Array:
    """Uniform numbers from the seed: the baseline every criterion has to beat."""
    return group.rng.random(group.count)


@unit_criterion("activation", evidence="moments")
def activation(group: UnitGroup) -> Array:
    """sum over the slices that read the unit of E[x_j^2] |W_j|^2: the energy that unit j adds to its consumers'
    outputs (the structural form of Sun et al. 2024). Units that nothing measured reads: their l2 score's square
    has no place beside these, so they get the largest score of all and stay."""
    reading = [part for part in group.of("in") if "moments" in part.evidence]
    if not reading:
        return np.full(group.count, np.inf)
    return _added((part.evidence["moments"] * np.square(part.matrix)).sum(axis=1) for part in reading)
