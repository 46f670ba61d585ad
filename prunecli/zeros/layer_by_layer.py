"""Layer after layer is pruned and fitted, each on what the layers before it, pruned and fitted, give it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prunecli.arrays import Array
from prunecli.calibration.fitted import FittedLayer, LayerJournal
from prunecli.calibration.grams import Folds
from prunecli.calibration.layers import LinearLayer
from prunecli.masks.decide import Masked
from prunecli.model.floating import stored_as
from prunecli.model.graphs import refill
from prunecli.reconstruct.fit import (
    FitTask,
    Fitted,
    RidgeChoice,
)
from prunecli.reconstruct.sparsegpt import Quota
from prunecli.types import Progress
from prunecli.zeros.calibrated import CalibratedLayers, unreached

Solved = tuple[Masked, Array | None, dict[str, float]]
"""A weight as it will be saved, the vector beside it if that moves, and what is reported."""
TOKENS = "tokens"
"""What is reported of an expert's layer: positions that it was fitted on; none: its weights go by magnitude."""


@dataclass
class Solve:
    """A layer's equations, and which or how many of its weights go. `scores`: of its weights, where they were measured
    before."""

    folds: Folds | None
    goes: int | Array
    scores: Array | None

    def take(self) -> Folds:
        """Hand over the sums and drop the own reference, to free their memory."""
        found, self.folds = self.folds, None
        assert found is not None
        return found

    def run(self, layers: CalibratedLayers, layer: LinearLayer) -> Solved:
        """Fit the layer."""
        if self.scores is not None:
            layers.scores[layer.name] = self.scores
        folds = self.take()
        tokens = {} if layer.found.gate is None else {TOKENS: float(folds.positions)}
        if unreached(layer, folds):
            return _as_it_is(layers, layer, self.goes), None, tokens
        if isinstance(self.goes, int) and layers.way.pattern.text != "element":
            # whole units are another number of weights than was asked for, and the ridge is that of what goes, which is
            # all that a plan says
            tasks, chosen, _ = self._chosen(layers, layer, deepcopy(folds))
            drop = [one.drop for one in layers.fitted(tasks, chosen, layers.way.recover)]
            self.goes = layer.stored(np.stack(drop).astype(np.float32)) > 0
            del tasks, chosen, drop
        tasks, chosen, ridge = self._chosen(layers, layer, folds)
        del folds
        best = layers.fitted(tasks, chosen, layers.way.recover)
        return *_contents(layers, layer, best), _report(tasks, best, ridge) | tokens

    def _chosen(
        self, layers: CalibratedLayers, layer: LinearLayer, folds: Folds
    ) -> tuple[list[FitTask], list[Array | Quota], RidgeChoice | None]:
        """The problems of the layer, in place of the sums, what goes of each, and the ridge for so much."""
        amount = self.goes if isinstance(self.goes, int) else int(np.count_nonzero(self.goes))
        ridge = layers.ridge(layer, folds, layers.way.recover, density=1 - amount / max(layer.weight.size, 1))
        tasks = list(layers.tasks(layer, folds.whole(), ridge, last=True))
        return tasks, _picked(layers, layer, tasks, amount=self.goes), ridge


class LayerSums(Protocol):
    """Gives the sums of layer after layer, each with the layers before it as they were put."""

    def at_once(self, layers: Sequence[LinearLayer]) -> list[range]:
        """Runs of layers, all in order, of which those of one run are fitted before any of them is put."""
        ...

    def sums(self, number: int) -> Folds: ...

    def solved(self, given: dict[int, Solve]) -> dict[int, Solved]:
        """Layers fitted to their sums, by number. `given` is used up."""
        ...

    def put(self, number: int, done: FittedLayer) -> None:
        """Let what follows see a layer as it was fitted."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class LayerWalks:
    """Original and pruned model side by side. Layers that were put without a look at their sums are walked past on the
    same way, so that what follows is the same to the last bit."""

    def __init__(self, layers: CalibratedLayers) -> None:
        self._layers = layers
        student, self._mine = layers.student()
        self._wanted, self._given = layers.walk(), layers.walk(student)
        self._shared: dict[str, Folds] | None = None
        self.reached = self.placed = 0

    def at_once(self, layers: Sequence[LinearLayer]) -> list[range]:
        return [range(number, number + 1) for number in range(len(layers))]

    def solved(self, given: dict[int, Solve]) -> dict[int, Solved]:
        return {number: given.pop(number).run(self._layers, self._mine[number]) for number in list(given)}

    def sums(self, number: int) -> Folds:
        layer = self._mine[number]
        self.reached = number + 1
        if len(layer.uses) > 1:
            if self._shared is None:
                done = {one.name for one in self._mine[: self.placed]}
                self._shared = _shared(self._layers, self._mine, done)
            self._layers.release(layer, self._wanted, self._given)
            return self._shared.pop(layer.name)
        found = self._layers.sums(layer, self._wanted, self._given, others=others_of(layer))
        self._layers.release(layer, self._wanted, self._given)
        return found

    def put(self, number: int, done: FittedLayer) -> None:
        layer = self._mine[number]
        if number >= self.reached:
            for use in layer.uses if len(layer.uses) == 1 else ():
                self._layers.reach(use, self._wanted, self._given, others=others_of(layer))
            self._layers.release(layer, self._wanted, self._given)
            self.reached = number + 1
        _put(layer, done)
        self.placed = number + 1

    def close(self) -> None:
        self._wanted.close()
        self._given.close()


def pruned(
    layers: CalibratedLayers, walks: LayerSums, chosen: Mapping[str, int | Array], *, journal: LayerJournal,
    progress: Progress,
) -> Iterator[tuple[LinearLayer, FittedLayer]]:  # fmt: skip
    """Prune and fit layer after layer. Those that the journal has are taken from it.

    Args:
        chosen: by the name of the stored tensor, how many weights go, or which (a mask of the stored shape).
    """
    _, mine = layers.student()
    shown = iter(progress(mine, "pruning layers", len(mine)))
    for run in walks.at_once(mine):
        given: dict[int, Solve] = {}
        for number in run:
            layer = mine[number]
            if layer.name not in journal.layers:
                goes = chosen[layer.weight.holder.name]
                given[number] = Solve(walks.sums(number), goes, layers.scores.get(layer.name))
        found = walks.solved(given)
        for number in run:
            layer = next(shown)
            if number in found:
                done = FittedLayer.kept(journal, layer.name, *found.pop(number))
            else:
                done = FittedLayer.of(journal.layers[layer.name])
            _put(layer, done)
            walks.put(number, done)
            yield layer, done


def others_of(layer: LinearLayer) -> str | None:
    """What the output of a layer is added to, whose errors it makes up for."""
    # in a transformer, whose sums follow an added bias, their errors drown the small outputs of the branches
    return layer.carried if layer.is_summed_plainly else None


def _picked(
    layers: CalibratedLayers, layer: LinearLayer, tasks: Sequence[FitTask], amount: int | Array
) -> list[Array | Quota]:
    """What goes, by losses on what the pruned layers before give, from the best weights for that."""
    if not isinstance(amount, int):
        return list(layer.matrices(amount) > 0)
    if layers.way.method.updates and layers.way.recover == "lstsq" and layers.way.method.criterion:
        layers.scores.pop(layer.name, None)
        return layers.choose(layer, [task.optimum() for task in tasks], amount)
    return layers.choose(layer, tasks, amount)


def _as_it_is(layers: CalibratedLayers, layer: LinearLayer, goes: int | Array) -> Masked:
    """The smallest weights at zero, or those that are named, the others as they are."""
    drop = layers.smallest(layer, goes) if isinstance(goes, int) else layer.matrices(goes) > 0
    array = layer.weight.array()
    return Masked.rewritten(array, layer.stored(drop), array.dtype)


def _shared(layers: CalibratedLayers, mine: Sequence[LinearLayer], done: Container[str]) -> dict[str, Folds]:
    """Layers whose weight is read in several places are fitted on what the original gives them in all of them. Nothing
    is added up for those that are `done`."""
    several = [layer for layer in mine if len(layer.uses) > 1]
    found: dict[str, Folds] = {}
    if all(layer.name in done for layer in several):
        return found
    walk = layers.walk()
    for layer in several:
        if layer.name in done:
            for use in layer.uses:
                layers.reach(use, walk, walk, others=None)
        else:
            found[layer.name] = layers.sums(layer, walk, walk)
    walk.close()
    return found


def _contents(layers: CalibratedLayers, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Masked, Array | None]:
    """The weight as it will be saved, and the vector beside it if that moves."""
    array = layer.weight.array()
    values, drop, shift = layers.plain(layer, best)
    integers = stored_as(layer.weight.tensor)
    if integers is not None:
        values = integers.array_of(integers.write(np.where(drop, 0, values)))
    new = Masked.rewritten(values, drop, array.dtype)
    offset = layer.offset
    if offset is None or offset.source is None or not shift.any():
        return new, None
    return new, offset.content(offset.read(shift.size) + shift)


def _put(layer: LinearLayer, done: FittedLayer) -> None:
    """Let the pruned model have what was fitted."""
    done.weight.content.put_into(layer.weight.holder, layer.weight.dtype)
    if done.vector is not None and layer.offset is not None and layer.offset.source is not None:
        refill(layer.offset.source.way[0], done.vector.read())


def _report(tasks: Sequence[FitTask], best: Sequence[Fitted], ridge: RidgeChoice | None) -> dict[str, float]:
    error = float(np.mean([task.error(one.weights, one.shift) for task, one in zip(tasks, best, strict=True)]))
    held = {} if ridge is None else {"held_out_error": ridge.held, "fitted_error": ridge.fitted, "ridge": ridge.ridge}
    return {"reconstruction_error": error, **held}
