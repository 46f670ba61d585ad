"""Damage predicted without trials, and how well it ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

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
