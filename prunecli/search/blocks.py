"""Which residual blocks to drop: greedily, by the measured change of the outputs, measured anew as blocks go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.channels.blocks import Block, Dead, dead_without
from prunecli.errors import PruneError, advice
from prunecli.model.sizes import parameters
from prunecli.search.blocks_damage import Mask, Measure
from prunecli.search.units import OutOfReachError
from prunecli.types import Progress, no_progress

Array = np.ndarray[Any, Any]
REMEASURED = 8
"""After each block, so many of those that seemed least important are measured anew."""


@dataclass(frozen=True)
class BlockRecipe:
    """budget: `ratio`: `target` is the fraction of the blocks that goes; `macs`, `params`, `latency`: the fraction
    of that amount that remains. max_ratio: the largest fraction of the blocks that may go."""

    budget: str
    target: float
    max_ratio: float = 0.9


@dataclass(frozen=True)
class BlockCosts:
    """Exact amounts of a model without some of its blocks. `work`: by budget, what each node costs; `params` is counted
    from the initializers that nobody reads any more."""

    model: ir.Model
    blocks: Sequence[Block]
    work: Mapping[str, Mapping[ir.Node, float]] = field(default_factory=dict)
    _known: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def dead(self, removed: Mask) -> Dead:
        return dead_without(self.model, [b for b, gone in zip(self.blocks, removed, strict=True) if gone])

    def whole(self, kind: str) -> float:
        if kind == "params":
            return float(sum(holder.tensor.size for holder in parameters(self.model)))
        return sum(self.work[kind].values())

    def saved(self, kind: str, removed: Mask) -> float:
        """What goes with the masked blocks: with `ratio`, the number of blocks (those inside others included)."""
        key = kind, removed.tobytes()
        if key not in self._known:
            dead = self.dead(removed)
            if kind == "params":
                self._known[key] = dead.params
            elif kind == "ratio":
                self._known[key] = float(self.closed(removed, dead).sum())
            else:
                self._known[key] = sum(self.work[kind].get(node, 0) for node in dead.nodes)
        return self._known[key]

    def closed(self, removed: Mask, dead: Dead | None = None) -> Mask:
        """The mask with the blocks that lie inside removed ones."""
        nodes = (dead or self.dead(removed)).nodes
        inside: Mask = np.array([block.join in nodes for block in self.blocks], bool)
        return removed | inside


@dataclass(frozen=True)
class BlockDecision:
    """`scores`: the damage of each block's absence alone, NaN for those that may not go. `order`: as they went.
    `damage`: of all together."""

    removed: Mask
    scores: Array
    order: Sequence[int]
    damage: float
    notes: Sequence[str] = ()


def decide_blocks(
    costs: BlockCosts, damage: Measure, recipe: BlockRecipe, allowed: Mask, progress: Progress = no_progress
) -> BlockDecision:
    """Choose blocks to drop.

    With `ratio` the least damaging goes next; with a budget that which does least damage per amount saved, and what
    the budget turns out not to need comes back, the most damaging first.

    Args:
        damage: of a set of blocks (`Damage`).
        allowed: mask of blocks that may go.
    Raises:
        PruneError: the target is no fraction, or cannot be reached (with the closest that can).
    """
    if not 0 < recipe.target < 1 or not 0 < recipe.max_ratio <= 1:
        raise PruneError(
            f"a {recipe.budget} of {recipe.target:g} leaves nothing to choose", "give a fraction in (0, 1)"
        )
    search = _Greedy(costs, damage, recipe, allowed)
    search.measure_alone(progress)
    for _ in progress(search.steps(), "choosing blocks", search.limit):
        pass
    search.give_back()
    removed = costs.closed(search.mask)
    return BlockDecision(removed, search.alone, search.order, damage(removed) if removed.any() else 0.0)


class _Greedy:
    def __init__(self, costs: BlockCosts, damage: Measure, recipe: BlockRecipe, allowed: Mask) -> None:
        self.costs, self.damage, self.recipe, self.allowed = costs, damage, recipe, allowed
        count = len(costs.blocks)
        self.mask = np.zeros(count, bool)
        self.alone = np.full(count, np.nan)
        self.latest = np.full(count, np.inf)
        self.order: list[int] = []
        self.now = 0.0
        self.limit = int(np.floor(recipe.max_ratio * count + 1e-9))
        self.whole = float(count) if recipe.budget == "ratio" else costs.whole(recipe.budget)
        share = recipe.target if recipe.budget == "ratio" else 1 - recipe.target
        self.wanted = float(np.floor(share * count + 0.5)) if recipe.budget == "ratio" else share * self.whole

    def measure_alone(self, progress: Progress) -> None:
        places = np.flatnonzero(self.allowed)
        for number in progress(places, "measuring blocks", len(places)):
            self.alone[number] = self.damage(self._with(int(number)))
        self.latest = np.where(np.isnan(self.alone), np.inf, self.alone)

    def steps(self) -> Iterator[int]:
        """One block after the other, until enough is saved."""
        while not self.enough(self.mask):
            chosen = self._next()
            if chosen is None:
                self._refuse()
                return
            self.mask[chosen] = True
            self.now = self.latest[chosen]
            self.order.append(chosen)
            yield chosen

    def enough(self, removed: Mask) -> bool:
        return self.costs.saved(self.recipe.budget, removed) >= self.wanted - 1e-9 * self.whole

    def _next(self) -> int | None:
        """The best of the few that looked best before, measured with what is gone already."""
        gone = self.costs.closed(self.mask)
        free = [int(n) for n in np.flatnonzero(self.allowed & ~gone) if self._fits(int(n))]
        for number in sorted(free, key=self._price)[:REMEASURED]:
            self.latest[number] = self.damage(self._with(number)) if self.mask.any() else self.alone[number]
        few = sorted(free, key=self._price)
        return few[0] if few else None

    def _fits(self, number: int) -> bool:
        """Whether the limit and, for a number of blocks, the target leave room for it and those inside it."""
        count = self.costs.saved("ratio", self._with(number))
        return count <= (min(self.limit, self.wanted) if self.recipe.budget == "ratio" else self.limit)

    def _price(self, number: int) -> float:
        """Damage added per amount saved."""
        added = self.latest[number] - self.now if np.isfinite(self.latest[number]) else np.inf
        more = self.costs.saved(self.recipe.budget, self._with(number))
        saved = max(more - self.costs.saved(self.recipe.budget, self.mask), 1e-12 * self.whole) / self.whole
        return float(added if added <= 0 else added / saved)

    def _with(self, number: int) -> Mask:
        out = self.mask.copy()
        out[number] = True
        return out

    def _refuse(self) -> None:
        if self.recipe.budget == "ratio":
            return
        left = 1 - self.costs.saved(self.recipe.budget, self.mask) / max(self.whole, 1e-12)
        raise OutOfReachError(
            f"--{self.recipe.budget} {self.recipe.target:.3g} cannot be reached with blocks: {left:.3g} must remain",
            advice(
                ("raise --max-ratio", self.recipe.max_ratio < 1),
                ("leave fewer blocks out", not self.allowed.all()),
                ("cut channels as well", True),
            ),
            left,
        )

    def give_back(self) -> None:
        """Return what an amount does not need, the latest first."""
        for number in [] if self.recipe.budget == "ratio" else self.order[-2::-1]:
            fewer = self.mask.copy()
            fewer[number] = False
            if self.enough(fewer):
                self.mask = fewer
                self.order.remove(number)
