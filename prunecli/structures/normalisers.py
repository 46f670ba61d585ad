"""Normalisers: from the rows of scores that a criterion gives, one per slice, to one score per unit, so that units of
different groups can compete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunecli.arrays import Array
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.registry import into

Rows = Sequence[Array]
Normaliser = Callable[[Catalogue, Sequence[Group], Sequence[Rows]], list[Array]]
NORMALISERS: dict[str, Normaliser] = {}
_TINY = np.finfo(float).tiny


normaliser = into(NORMALISERS)
"""Register: `function(catalogue, groups, rows)` returns one score per unit for each group, from the rows (one per
slice) that the criterion gave for it."""


def _over(row: Array, size: float) -> Array:
    """Return row / size; infinite values stay infinite."""
    return np.where(np.isfinite(row), row / max(size, _TINY), row)


def _finite(row: Array) -> Array:
    finite = row[np.isfinite(row)]
    return finite if len(finite) else np.zeros(1)


def _summed(rows: Rows) -> Array:
    return np.asarray(sum(rows), np.float64)


@normaliser("none")
def none(catalogue: Catalogue, groups: Sequence[Group], rows: Sequence[Rows]) -> list[Array]:
    """The sum over slices."""
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
