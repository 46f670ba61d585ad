"""Scopes: which units compete with each other. Between layers that is an allocation, or one ranking of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prunecli.masks.allocations import ALLOCATIONS, LayerSize, LossCurve, budget_of
from prunecli.masks.lamp import lowest_lamp
from prunecli.masks.stream import CutPoint, ScoreSource, lowest
from prunecli.registry import Registry
from prunecli.types import Progress

Cutter = Callable[[Sequence[ScoreSource], float, Progress], list[CutPoint]]


@dataclass(frozen=True)
class Scope:
    """`cuts`: (sources, sparsity, progress) -> one cut per source; None if the pools lie inside tensors."""

    name: str
    help: str
    cuts: Cutter | None


def by_allocation(name: str, losses: Mapping[str, LossCurve] | None = None) -> Cutter:
    """The lowest scores of each source, as many as an allocation says. `losses`: by source, what it reads."""
    known = losses or {}

    def cuts(sources: Sequence[ScoreSource], sparsity: float, progress: Progress) -> list[CutPoint]:
        sizes = [LayerSize(one.shape, one.weights, known.get(one.name)) for one in sources]
        amounts = ALLOCATIONS.get(name).amounts(sizes, sparsity)
        pairs = list(zip(sources, amounts, strict=True))
        return [lowest([source], amount)[0] for source, amount in progress(pairs, "choosing", len(pairs))]

    return cuts


def by_ranking(lowest_of: Callable[[Sequence[ScoreSource], int, Progress], list[CutPoint]]) -> Cutter:
    """round(S * n) of the whole model: the lowest, wherever they are."""

    def cuts(sources: Sequence[ScoreSource], sparsity: float, progress: Progress) -> list[CutPoint]:
        return lowest_of(sources, budget_of(sum(source.weights for source in sources), sparsity), progress)

    return cuts


SCOPES: Registry[Scope] = Registry("scope")
for _scope in (
    Scope("layer", "every weight tensor loses the same fraction", by_allocation("uniform")),
    Scope("row", "every row (neuron, filter) loses the same fraction", None),
    Scope("global", "all weights of the model compete", by_ranking(lowest)),
    Scope("lamp", "all compete by LAMP: w^2 over the sum of the squares not below it in its tensor",
          by_ranking(lowest_lamp)),
    Scope("erk", "layer densities follow sum(shape) / prod(shape), so that small layers stay denser",
          by_allocation("erk")),
):  # fmt: skip
    SCOPES.add(_scope)
