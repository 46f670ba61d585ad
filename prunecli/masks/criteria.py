"""Criteria: one score per unit, higher = more important.

A criterion sees only a `Block`: units as rows, their weights (and evidence of equal shape) as columns. So
every criterion works with every pattern and every scope. Scores are means, not sums, so that units of
different sizes compare. To add one:

    @criterion("wanda", "|w| times the norm of its input", needs=("input_norm",))
    def wanda(block: Block) -> Array:
        return np.mean(np.abs(block.weights) * block.evidence["input_norm"], axis=1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prunecli.masks.keys import Array
from prunecli.registry import Registry

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Some units of one tensor.

    weights: (units, width), float64, so that sums hardly depend on their order and equal units tie.
    evidence: arrays of the same shape, by name; those that the criterion `needs`.
    rng: seeded by the user's seed and the tensor's name.
    """

    weights: Floats
    evidence: Mapping[str, Floats] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=np.random.default_rng)


@dataclass(frozen=True)
class Criterion:
    """A named score.

    needs: names of the evidence it reads.
    by_magnitude: single elements rank as |w| does, which allows selecting on the stored bits.
    """

    name: str
    help: str
    score: Callable[[Block], Array]
    needs: tuple[str, ...] = ()
    by_magnitude: bool = False


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str, help: str, needs: tuple[str, ...] = (), by_magnitude: bool = False
) -> Callable[[Callable[[Block], Array]], Callable[[Block], Array]]:
    """Register a scoring function: Block -> (units,) floats, finite and not negative."""

    def register(score: Callable[[Block], Array]) -> Callable[[Block], Array]:
        CRITERIA.add(Criterion(name, help, score, needs, by_magnitude))
        return score

    return register


@criterion("l1", "mean |w| of the unit", by_magnitude=True)
def l1(block: Block) -> Array:
    """mean(|w|) over the unit; of a single element, its magnitude."""
    scores: Array = np.mean(np.abs(block.weights), axis=1)
    return scores


@criterion("l2", "root mean square of the unit", by_magnitude=True)
def l2(block: Block) -> Array:
    """sqrt(mean(w^2)) over the unit; of a single element, its magnitude."""
    scores: Array = np.sqrt(np.mean(np.square(block.weights), axis=1))
    return scores


@criterion("fisher", "w^2 E[g^2]: what the outputs lose without w, to second order", needs=("squared gradient",))
def fisher(block: Block) -> Array:
    """mean(w^2 E[g^2]) over the unit, g the gradient of one sample (LeCun et al. 1990; Theis et al. 2018)."""
    scores: Array = np.mean(np.square(block.weights) * block.evidence["squared gradient"], axis=1)
    return scores


@criterion("taylor", "|w| E|g|: what the outputs lose without w, to first order", needs=("absolute gradient",))
def taylor(block: Block) -> Array:
    """mean(|w| E|g|) over the unit, g the gradient of one sample (Molchanov et al. 2017)."""
    scores: Array = np.mean(np.abs(block.weights) * block.evidence["absolute gradient"], axis=1)
    return scores


@criterion("smoothed", "|w| (E|g| + its mean over the tensor): taylor, steadied", needs=("smoothed absolute gradient",))
def smoothed(block: Block) -> Array:
    """mean(|w| (E|g| + m)) over the unit, m the mean of E|g| over the tensor's weights that are not gone."""
    scores: Array = np.mean(np.abs(block.weights) * block.evidence["smoothed absolute gradient"], axis=1)
    return scores


@criterion("snip", "|w| E|g|, g of a batch: connection sensitivity", needs=("absolute batch gradient",))
def snip(block: Block) -> Array:
    """mean(|w| E|g|) over the unit, g the gradient of a batch (Lee et al. 2019)."""
    scores: Array = np.mean(np.abs(block.weights) * block.evidence["absolute batch gradient"], axis=1)
    return scores


@criterion("synflow", "|w dR/dw|, R what passes through all |w| from inputs of one; no data", needs=("flow",))
def synflow(block: Block) -> Array:
    """mean(|w| |dR / d|w||) over the unit (Tanaka et al. 2020)."""
    scores: Array = np.mean(np.abs(block.weights) * block.evidence["flow"], axis=1)
    return scores


@criterion("wanda", "|w| times the norm of its input: what it adds to the output", needs=("input norm",))
def wanda(block: Block) -> Array:
    """mean(|w| sqrt(E[x^2])) over the unit, x the input that w multiplies (Sun et al. 2024)."""
    scores: Array = np.mean(np.abs(block.weights) * block.evidence["input norm"], axis=1)
    return scores


@criterion("obs", "what the layer's output loses when w goes and the rest makes up for it", needs=("removal loss",))
def obs(block: Block) -> Array:
    """mean over the unit of the loss at which exact Optimal Brain Surgeon removes it (Frantar and Alistarh 2022)."""
    scores: Array = np.mean(block.evidence["removal loss"], axis=1)
    return scores


@criterion("random", "seeded random scores, the baseline that others must beat")
def random(block: Block) -> Array:
    """Uniform in [0, 1); the same for the same seed and tensor name."""
    return block.rng.random(len(block.weights))
