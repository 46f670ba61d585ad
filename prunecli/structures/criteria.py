"""Criteria for structures: one score per unit from the slices of all weights that the unit touches.

x_u are the elements that unit u has in the slices looked at, as one vector. Higher scores stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.errors import PruneError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class WeightPart:
    """One weight's slices: `matrix` is (units, width). `role`: out (rows that compute the unit), in (columns
    that read it), bias, norm, or other; `scale`: the factors of a BatchNormalization. `evidence`: by name, arrays of
    the matrix's shape, or (units, samples)."""

    weight: str
    role: str
    matrix: Array
    scale: bool = False
    evidence: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitGroup:
    """What a criterion sees: the parts of one group of like units. `rng` draws for that group alone. `damage`: that
    each unit adds, where it was measured."""

    name: str
    count: int
    parts: Sequence[WeightPart]
    rng: np.random.Generator
    damage: Array | None = None

    def of(self, *roles: str) -> list[WeightPart]:
        return [part for part in self.parts if part.role in roles]


@dataclass(frozen=True)
class UnitCriterion:
    """`score`: group -> one row of units per slice looked at, float64, at least one row; how rows become one
    score per unit is the normaliser's choice. `evidence`: what has to be measured on data first, by name.
    `normalize`: the normaliser that suits it; `none` where scores mean the same in every group. `anew`: the evidence is
    of the model as it is by then, so each step measures again."""

    score: Callable[[UnitGroup], list[Array]]
    evidence: str | None = None
    normalize: str = "share"
    anew: bool = False


UNIT_CRITERIA: dict[str, UnitCriterion] = {}


def unit_criterion(
    name: str, evidence: str | None = None, normalize: str = "share", anew: bool = False
) -> Callable[[Callable[[UnitGroup], list[Array]]], Callable[[UnitGroup], list[Array]]]:
    """Register a criterion: `score(group)` returns rows of one float64 per unit."""

    def add(score: Callable[[UnitGroup], list[Array]]) -> Callable[[UnitGroup], list[Array]]:
        UNIT_CRITERIA[name] = UnitCriterion(score, evidence, normalize, anew)
        return score

    return add


def matrices(group: UnitGroup) -> list[WeightPart]:
    """The matrices and kernels; where a unit has none, everything it has."""
    return group.of("out", "in") or list(group.parts)


@unit_criterion("l1")
def l1(group: UnitGroup) -> list[Array]:
    """Per slice sum |x|: how large the unit's weights are (Li et al. 2017)."""
    return [np.abs(part.matrix).sum(axis=1) for part in matrices(group)]


@unit_criterion("l2")
def l2(group: UnitGroup) -> list[Array]:
    """Per slice sum x^2, the squared l2 norm: squares of different slices add up to the unit's energy."""
    return [np.square(part.matrix).sum(axis=1) for part in matrices(group)]


@unit_criterion("l2-in")
def l2_in(group: UnitGroup) -> list[Array]:
    """Per slice that reads unit j, |W_j|^2: how strongly its consumers would miss it, if all units were equally
    active. Where nothing reads it through a matrix, all of its slices."""
    return [np.square(part.matrix).sum(axis=1) for part in group.of("in") or group.parts]


@unit_criterion("lamp")
def lamp(group: UnitGroup) -> list[Array]:
    """Per slice s_u / sum of s_v over the units v with s_v >= s_u, s = sum x^2 (Lee et al. 2021)."""
    return [_lamp(row) for row in l2(group)]


def _lamp(square: Array) -> Array:
    order = np.argsort(square, kind="stable")
    rest = np.cumsum(square[order][::-1])[::-1]
    out = np.empty_like(square)
    out[order] = square[order] / np.maximum(rest, np.finfo(float).tiny)
    return out


@unit_criterion("fpgm")
def fpgm(group: UnitGroup) -> list[Array]:
    """sum over the other units of |x_u - x_v|_2, x the rows that compute them: what is far from the geometric
    median is hard to replace (He et al. 2019)."""
    rows = np.concatenate([part.matrix for part in group.of("out") or group.parts], axis=1)
    square = np.square(rows).sum(axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distance, 0)
    return [np.asarray(distance.sum(axis=1))]


@unit_criterion("bn-scale")
def bn_scale(group: UnitGroup) -> list[Array]:
    """Per BatchNormalization of the unit |gamma| (network slimming, Liu et al. 2017).

    Raises:
        PruneError: the units have none.
    """
    scales = [part for part in group.parts if part.scale]
    if not scales:
        raise PruneError(
            f"--criterion bn-scale: the units of {group.name} have no BatchNormalization",
            "choose another criterion, or --exclude what has none; exporters often fold it into the convolution",
        )
    return [np.abs(part.matrix).sum(axis=1) for part in scales]


@unit_criterion("random")
def random(group: UnitGroup) -> list[Array]:
    """Uniform numbers from the seed: the baseline every criterion has to beat."""
    return [group.rng.random(group.count)]


@unit_criterion("activation", evidence="moments")
def activation(group: UnitGroup) -> list[Array]:
    """Per slice that reads unit j, E[x_j^2] |W_j|^2: the energy that it adds to the consumer's output (the
    structural form of Sun et al. 2024). A unit that nothing measured reads has no such figure and stays."""
    reading = [part for part in group.of("in") if "moments" in part.evidence]
    rows = [(part.evidence["moments"] * np.square(part.matrix)).sum(axis=1) for part in reading]
    return rows or [np.full(group.count, np.inf)]


@unit_criterion("taylor", evidence="gates", normalize="none", anew=True)
def taylor(group: UnitGroup) -> list[Array]:
    """E|sum w g| over the weights that read the unit, g the gradient of one sample: the first-order change of the
    outputs without it (Molchanov et al. 2019)."""
    return _by_gates(group, lambda gate: np.abs(gate).mean(axis=1))


@unit_criterion("fisher", evidence="gates", normalize="none", anew=True)
def fisher(group: UnitGroup) -> list[Array]:
    """E[(sum w g)^2] over the weights that read the unit, g the gradient of one sample (Theis et al. 2018)."""
    return _by_gates(group, lambda gate: np.square(gate).mean(axis=1))


@unit_criterion("obs", evidence="damage", normalize="none")
def obs(group: UnitGroup) -> list[Array]:
    """The damage to the outputs that the unit adds when it goes in its turn, the layers that read it refitted by least
    squares each time (Optimal Brain Surgeon for units, measured; see `prunecli.structures.damage`)."""
    return [np.full(group.count, np.inf) if group.damage is None else group.damage]


def _by_gates(group: UnitGroup, score: Callable[[Array], Array]) -> list[Array]:
    """Sums of all readers come before the square: what one adds another may take away. Where nothing measured reads
    the unit, the weights that compute it; where none does, it stays."""
    reading = [part for part in group.of("in") if "gates" in part.evidence]
    found = reading or [part for part in group.of("out", "bias") if "gates" in part.evidence]
    if not found:
        return [np.full(group.count, np.inf)]
    return [score(np.sum([part.evidence["gates"] for part in found], axis=0))]


Rows = Sequence[Array]
Normaliser = Callable[[Catalogue, Sequence[Group], Sequence[Rows]], list[Array]]
NORMALISERS: dict[str, Normaliser] = {}
_TINY = np.finfo(float).tiny


def normaliser(name: str) -> Callable[[Normaliser], Normaliser]:
    """Register: `function(catalogue, groups, rows)` returns one score per unit for each group, from the rows (one
    per slice) that the criterion gave for it."""

    def add(function: Normaliser) -> Normaliser:
        NORMALISERS[name] = function
        return function

    return add


def _over(row: Array, size: float) -> Array:
    """row / size; what is infinite stays so."""
    return np.where(np.isfinite(row), row / max(size, _TINY), row)


def _finite(row: Array) -> Array:
    finite = row[np.isfinite(row)]
    return finite if len(finite) else np.zeros(1)


def _summed(rows: Rows) -> Array:
    return np.asarray(sum(rows), np.float64)


@normaliser("none")
def none(catalogue: Catalogue, groups: Sequence[Group], rows: Sequence[Rows]) -> list[Array]:
    """The sum over slices, as it is."""
    return [_summed(own) for own in rows]


@normaliser("share")
def share(catalogue: Catalogue, groups: Sequence[Group], rows: Sequence[Rows]) -> list[Array]:
    """sum over slices of s / sum of the slice: with l2 the fractions of every touched weight's energy that go
    with the unit. Units that touch many layers weigh accordingly, whatever the layers' scales."""
    return [_summed([_over(row, float(_finite(row).sum())) for row in own]) for own in rows]


@normaliser("mean")
def mean(catalogue: Catalogue, groups: Sequence[Group], rows: Sequence[Rows]) -> list[Array]:
    """s / mean of the group, s the sum over slices: 1 is the average unit everywhere."""
    return [_over(row, float(_finite(row).mean())) for row in map(_summed, rows)]


@normaliser("max")
def largest(catalogue: Catalogue, groups: Sequence[Group], rows: Sequence[Rows]) -> list[Array]:
    """s / max of the group, s the sum over slices."""
    return [_over(row, float(_finite(row).max())) for row in map(_summed, rows)]


@normaliser("isomorphic")
def isomorphic(catalogue: Catalogue, groups: Sequence[Group], rows: Sequence[Rows]) -> list[Array]:
    """Units of groups of one structure compete by their scores, others by rank: (rank + 1/2) / units among all
    units of the groups that are read by the same operators in the same way (after Fang et al. 2024)."""
    pools: dict[object, list[int]] = {}
    for number, group in enumerate(groups):
        pools.setdefault(_structure(catalogue, group), []).append(number)
    out: list[Array] = [np.zeros(0)] * len(groups)
    for pool in pools.values():
        scores = [_summed(rows[number]) for number in pool]
        order = np.argsort(np.concatenate(scores), kind="stable")
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        ends = np.cumsum([len(s) for s in scores])[:-1]
        for number, part in zip(pool, np.split((rank + 0.5) / len(order), ends), strict=True):
            out[number] = part
    return out


def _structure(catalogue: Catalogue, group: Group) -> object:
    """Kind, and the operators and input numbers that read each weight slice, as a sorted list."""
    initializers = catalogue.analysis.model.graph.initializers
    touched = sorted(
        (node.op_type, index, axis)
        for name, axis in group.weights
        for node, index in initializers[name].uses()
        if len(initializers[name].const_value.shape) > 1  # type: ignore[union-attr]
    )
    return group.kind, tuple(touched)
