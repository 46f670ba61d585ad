"""Making the scores of different groups comparable: one function per choice of --normalize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prunecli.channels.catalogue import Catalogue, Group

Array = np.ndarray[Any, Any]
Normaliser = Callable[[Catalogue, Sequence[Group], Array], Array]
NORMALISERS: dict[str, Normaliser] = {}
_TINY = np.finfo(float).tiny


def normaliser(name: str) -> Callable[[Normaliser], Normaliser]:
    """Register: `function(catalogue, groups, scores)` returns new scores, in the same order inside each group."""

    def add(function: Normaliser) -> Normaliser:
        NORMALISERS[name] = function
        return function

    return add


@normaliser("none")
def none(catalogue: Catalogue, groups: Sequence[Group], scores: Array) -> Array:
    """The scores as they are."""
    return scores


def _by(groups: Sequence[Group], scores: Array, size: Callable[[Array], float]) -> Array:
    out = scores.copy()
    for group in groups:
        own = scores[group.units]
        finite = own[np.isfinite(own)]
        out[group.units] = own / max(size(finite), _TINY) if len(finite) else own
    return out


@normaliser("mean")
def mean(catalogue: Catalogue, groups: Sequence[Group], scores: Array) -> Array:
    """s / mean of the group: 1 is the average unit everywhere (Molchanov et al. 2019 normalise per layer alike)."""
    return _by(groups, scores, lambda own: float(own.mean()))


@normaliser("max")
def largest(catalogue: Catalogue, groups: Sequence[Group], scores: Array) -> Array:
    """s / max of the group."""
    return _by(groups, scores, lambda own: float(own.max()))


@normaliser("isomorphic")
def isomorphic(catalogue: Catalogue, groups: Sequence[Group], scores: Array) -> Array:
    """Groups of one structure compete by their scores, others by rank: (rank + 1/2) / units among all units of
    groups that touch the same operators' axes in the same way (after Fang et al. 2024)."""
    pools: dict[object, list[Group]] = {}
    for group in groups:
        pools.setdefault(_structure(catalogue, group), []).append(group)
    out = scores.copy()
    for pool in pools.values():
        index = np.concatenate([np.arange(g.first, g.first + g.count) for g in pool])
        order = np.argsort(scores[index], kind="stable")
        rank = np.empty(len(index))
        rank[order] = np.arange(len(index))
        out[index] = (rank + 0.5) / len(index)
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
