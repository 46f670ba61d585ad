"""Curves of damage per layer, or per group of coupled units, by the network in `damage.onnx`.

The damage is that of `prune sensitivity`: the Kullback-Leibler divergence of class scores, elsewhere the squared error
of the outputs over their power. How the network was made is in `sample_models/damage.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from prunecli.dependency.catalogue import Catalogue
from prunecli.masks.allocations import LossCurve
from prunecli.model import Model
from prunecli.predicted.features import (
    ELEMENT_LEVELS,
    UNIT_LEVELS,
    DescribedGraph,
    Undescribed,
    describe_groups,
    describe_weights,
)
from prunecli.runtime import Session

NETWORK = Path(__file__).with_name("damage.onnx")
Curves = dict[str, LossCurve]

__all__ = ["Curves", "Undescribed", "group_curves", "weight_curves"]


def weight_curves(model: Model, only: Sequence[str] | None = None) -> Curves:
    """By weight: the damage when a fraction of its elements is zeroed by magnitude. `only`: what must be known.

    Raises:
        Undescribed: one of them is nothing that the network was trained on.
    """
    graph = describe_weights(model, only)
    missing = sorted(set(only or ()) - set(graph.names))
    if missing:
        raise Undescribed(f"{missing[0]}: the network that predicts damage knows matrices and kernels alone")
    return _curves(graph, ELEMENT_LEVELS)


def group_curves(model: Model, catalogue: Catalogue) -> Curves:
    """By group of a catalogue, `model` its working form: the damage when a fraction of its units is cut, those first
    that are read the least.

    Raises:
        Undescribed: as `weight_curves`.
    """
    return _curves(describe_groups(model, catalogue), UNIT_LEVELS)


def _curves(graph: DescribedGraph, levels: Sequence[float]) -> Curves:
    present = np.ones((1, len(graph.names), 1), np.float32)
    damage = np.exp(_network().run({**graph.feed, "present": present})["log_damage"][0].astype(np.float64))
    densities = [1 - level for level in levels]
    return {name: LossCurve(densities, row.tolist()) for name, row in zip(graph.names, damage, strict=True)}


@cache
def _network() -> Session:
    return Session.open(NETWORK, threads=1)
