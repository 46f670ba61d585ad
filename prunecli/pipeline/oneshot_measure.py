"""What each layer loses at several sparsities, and how much of that reaches the outputs, on the original model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prunecli.evidence.layers import Layer
from prunecli.evidence.outputs import looked_at, relative_error
from prunecli.evidence.walk import Walk
from prunecli.pipeline.oneshot_study import Study
from prunecli.recover.fit import Task, scores
from prunecli.search.allocate import Curve
from prunecli.types import Progress

Array = np.ndarray[Any, Any]
LEVELS = (2.5, 1.4, 0.6, 0.3)
"""Densities at which a layer's loss is taken, in parts of the density that is asked for."""
ROUGHLY = 30
"""Positions per unknown for those losses, which need not be as exact as the fit."""
PROBED = (1, 2)
"""Of those, at which it is measured how much reaches the outputs."""


def scored(study: Study, progress: Progress) -> Iterator[tuple[Layer, Array]]:
    """What the method's criterion needs of each weight, layer by layer, as the original model runs."""
    walk, way = Walk(study.original, study.feeds, study.store, study.open_session), study.way
    for layer in progress(study.layers, "measuring layers", len(study.layers)):
        tasks = list(study.tasks(layer, study.sums(layer, walk, walk)))
        study.release(layer, walk)
        yield layer, layer.stored(scores(way.method, tasks, way.pattern, way.workers))
    walk.close()


def losses(study: Study, density: float, progress: Progress) -> list[Curve]:
    """What the outputs lose when one layer alone is pruned, for each layer."""
    levels = sorted({min(max(density * part, 0.005), 0.97) for part in LEVELS}, reverse=True)
    with_probe = [levels[min(place, len(levels) - 1)] for place in PROBED]
    way = study.way
    quick = replace(study, way=replace(way, method=way.method.stand_in(way.pattern)), per_unknown=ROUGHLY)
    walk = Walk(study.original, study.feeds, study.store, study.open_session)
    base = _numbers(walk, looked_at(study.original.graph.outputs))
    found = []
    for layer in progress(study.layers, "measuring layers", len(study.layers)):
        sums = quick.sums(layer, walk, walk)
        tasks = list(study.tasks(layer, sums))
        own, variants = [], []
        for level in levels:
            amount = round((1 - level) * layer.weight.size)
            best = quick.fitted(tasks, quick.choose(layer, tasks, amount), "none")
            own.append(sum(_moved(task, one.weights) for task, one in zip(tasks, best, strict=True)))
            if level in with_probe:
                variants.append(study.plain(layer, best)[0].astype(layer.weight.dtype.numpy()))
        far = _reaching(study, layer, walk, variants, base)
        study.release(layer, walk)
        if not far:  # of no output is it known how it moves: as if all of the relative error came through
            total = sum(float(task.variance.sum()) for task in tasks)
            far = [own[levels.index(level)] / total if total > 0 else 0.0 for level in with_probe]
        found.append(Curve(layer.weight.size, levels, _scaled(levels, own, with_probe, far)))
    walk.close()
    return found


def _reaching(
    study: Study, layer: Layer, walk: Walk, variants: Sequence[Array], base: Mapping[str, Array]
) -> list[float]:
    """How much of each variant's change reaches the outputs; empty if it reaches none that is looked at."""
    name = layer.weight.holder.name
    moved = walk.moved(name, list(base))
    if not moved:
        return []
    found = next(walk.ahead(moved, [{name: variant} for variant in variants], [0]))
    return [sum(relative_error(base[output], one[output]) for output in moved) for one in found]


def _numbers(walk: Walk, names: Sequence[str]) -> dict[str, Array]:
    """Those of the values that are numbers, on the first batch."""
    [found] = next(walk.ahead(names, batches=[0]))
    return {n: v for n, v in found.items() if isinstance(v, np.ndarray) and v.dtype.kind not in "OUS"}


def _moved(task: Task, weights: Array) -> float:
    """The mean square of what changes in the output, its mean put right where that is possible."""
    change = weights - task.weights
    return max(float(np.einsum("ij,ij->", change @ task.gram, change)), 0.0)


def _scaled(
    levels: Sequence[float], own: Sequence[float], probed: Sequence[float], far: Sequence[float]
) -> list[float]:
    """Losses of the layer's own output, times how much of them was seen to reach the outputs; between the probes the
    factor follows a straight line in the logarithms, outside it stays."""
    places = [list(levels).index(level) for level in probed]
    ratios = [far[i] / own[place] if own[place] > 0 and far[i] > 0 else 0.0 for i, place in enumerate(places)]
    if not all(ratios):
        return [max(value, 0.0) * max(ratios) for value in own]
    order = np.argsort(probed)
    factor = np.interp(np.log(levels), np.log(probed)[order], np.log(ratios)[order])
    return [float(value * np.exp(f)) for value, f in zip(own, factor, strict=True)]
