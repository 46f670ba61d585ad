"""What `prune oneshot` knows of a model on its data: the layers that can be fitted, and what they read and should give.

A walk of the original alone measures (`oneshot_measure.py`), one of original and pruned model side by side fits
(`oneshot_fit.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.calibration.gradients import looked_at, relative_error
from prunecli.calibration.grams import Equations, Picker, collect
from prunecli.calibration.layers import HIDDEN, LinearLayer, layers_of, put
from prunecli.calibration.layerwise import Store, Walk, working_form
from prunecli.masks.decide import Recipe, Rewritten, decide
from prunecli.masks.patterns import Pattern, Windows
from prunecli.model import Model, find_weights
from prunecli.reconstruct.fit import FitTask, Fitted, Method, Recover, fit, scores
from prunecli.reconstruct.sparsegpt import Quota
from prunecli.runtime import Session
from prunecli.types import Progress, Skipped
from prunecli.zeros.allocate import LossCurve
from prunecli.zeros.zero import target_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Way:
    """How to prune: method, pattern, recovery, whether the weights of a row compete among themselves."""

    method: Method
    pattern: Pattern
    recover: Recover
    by_row: bool
    workers: int


@dataclass
class LayerStudy:
    """One model on its data. `layers`: what can be fitted, in the order in which it runs; `left`: what cannot."""

    way: Way
    original: ir.Model
    feeds: Sequence[Mapping[str, Any]]
    store: Store
    layers: list[LinearLayer]
    left: list[Skipped]
    model: Model
    open_session: Any
    per_unknown: int
    seed: int = 0
    fixed: frozenset[str] = frozenset()
    found: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(
        cls, file: Model, names: Sequence[str], feeds: Sequence[Mapping[str, Any]], way: Way, store: Store,
        open_session: Any, per_unknown: int, seed: int = 0, fixed: frozenset[str] = frozenset(),
    ) -> LayerStudy:  # fmt: skip
        """A study of the stored tensors `names` of the main graph; vectors in `fixed` stay as they are."""
        original = working_form(file.ir)
        layers, left = fittable(file, original, names, fixed)
        return cls(way, original, feeds, store, layers, left, file, open_session, per_unknown, seed, fixed)

    def tasks(self, layer: LinearLayer, sums: Equations) -> Iterator[FitTask]:
        """The least-squares problems of a layer, one per matrix, its rows multiplied by what follows: rows compete
        with each other, and a small one that is made large counts as a large one. `plain` undoes it."""
        sums.check(layer.name)
        free, taps = layer.offset is not None, layer.shape[2]
        bias, worth = layer.bias(), _worth(layer)
        for batch, weights in enumerate(layer.matrices()):
            found, offset = sums.problem(batch, free), bias[batch]
            cross, variance = found.cross, found.squares
            if not free:  # what is added stays: the product alone is to be fitted
                cross = cross - np.outer(offset, found.x)
                variance = variance - 2 * offset * found.y + offset**2
            g = worth[batch]
            yield FitTask(
                weights * g[:, None], found.gram, cross * g[:, None], found.x, found.y * g, variance * g**2,
                found.count, offset * g, free, taps,
            )  # fmt: skip

    def plain(self, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Array, Array, Array]:
        """Weights and mask as stored, and the shift of all rows."""
        worth = _worth(layer)
        weights = np.stack([one.weights for one in best]) / worth[..., None]
        drop = np.stack([one.drop for one in best])
        shift = np.stack([one.shift for one in best]) / worth
        return layer.stored(weights), layer.stored(drop), shift.reshape(-1)

    def sums(self, layer: LinearLayer, wanted: Walk, given: Walk, others: str | None = None) -> Equations:
        """Over all uses: what the layer reads in `given`, and what it is to give, by `wanted`. `others`: what the
        output is added to, whose own error it makes up for."""
        batch, rows, taps, cols = layer.shape
        total = Equations.empty(batch, rows, taps * cols)
        for use in layer.uses:
            extra = [] if others is None else [others]
            assert use.output is not None
            given.reach([use.data, *extra])
            wanted.reach([use.data, use.output, *extra])
            picker = Picker(wanted.batches, taps * cols, self.per_unknown, self.seed)
            for number in range(wanted.batches):
                target = wanted.read(use.output, number)
                if others is not None:
                    off = np.subtract(wanted.read(others, number), given.read(others, number), dtype=np.float32)
                    target = _plus(target, off, layer.affine()[0].reshape(-1))
                collect(use, picker, total, given.read(use.data, number), target)
        return total

    def release(self, layer: LinearLayer, *walks: Walk) -> None:
        """Let the walks go of what `sums` asked for."""
        for walk in walks:
            for use in layer.uses:
                walk.release(use.data)
                walk.release(use.output or "")

    def choose(self, layer: LinearLayer, tasks: Sequence[FitTask], amount: int) -> list[Array | Quota]:
        """Which weights go when `amount` of them do: per matrix a mask, or a number where the method chooses itself."""
        method, pattern = self.way.method, self.way.pattern
        if method.criterion is None:
            return [Quota(part, self.way.by_row) for part in _parts([task.gone for task in tasks], amount)]
        if layer.name not in self.found:
            each = scores(method, tasks, pattern, self.way.workers)
            scale = max(1.0, float(each.max(initial=0)) / float(np.finfo(np.float32).max))  # only their order counts
            self.found[layer.name] = (each.reshape(layer.shape) / scale).astype(np.float32)
        found = self.found[layer.name]
        sparsity = None if isinstance(pattern, Windows) else amount / layer.weight.size
        scope = None if isinstance(pattern, Windows) else "row" if self.way.by_row else "layer"
        recipe = Recipe(pattern.text, scope, method.criterion, sparsity)
        array = layer.weight.array()
        drop = decide([target_of(layer.weight, layer.stored(found))], recipe)[0].drop(array)
        return list(layer.matrices(drop.astype(np.float32)) > 0)

    def fitted(self, tasks: Sequence[FitTask], chosen: Sequence[Array | Quota], recover: Recover) -> list[Fitted]:
        way = self.way
        pairs = zip(tasks, chosen, strict=True)
        return [fit(way.method, recover, task, way.pattern, one, way.workers) for task, one in pairs]


def fittable(
    file: Model, work: ir.Model, names: Sequence[str], fixed: frozenset[str]
) -> tuple[list[LinearLayer], list[Skipped]]:
    """Of the stored tensors `names` of the main graph; of vectors, those that the file stores and that are not `fixed`
    may move."""
    found = find_weights(replace(file, ir=work))
    held = {w.holder.name: w for w in found.prunable if w.holder.graph is work.graph}
    layers, left = layers_of(work, [held[name] for name in names if name in held])
    vectors = {w.holder.name for w in found.others} - fixed
    left += [Skipped(name, HIDDEN) for name in names if name not in held]
    return [layer.moving_only(vectors) for layer in layers], left


def _parts(gone: Sequence[Array], amount: int) -> list[int]:
    """How many weights of each matrix go: what is zero already, and of the rest the same share of each."""
    zeros, sizes = np.array([one.sum() for one in gone]), np.array([one.size for one in gone])
    ever, live = int(zeros.sum()), sizes - zeros
    rest = live * (amount - ever) / max(int(live.sum()), 1) if amount > ever else zeros * (amount / max(ever, 1) - 1)
    ends = np.rint(np.cumsum(zeros + rest)).astype(int)
    return [int(part) for part in np.diff(ends, prepend=0)]


def _worth(layer: LinearLayer) -> Array:
    """(batch, rows) the size of the gain. One that is nearly closed is taken as a thousandth of the largest."""
    size = np.abs(layer.affine()[0])
    largest = size.max(initial=0.0)
    return np.maximum(size, 1e-3 * largest) if largest > 0 else np.ones_like(size)


def _plus(target: Array, off: Array, gain: Array) -> Array:
    """target + off / gain, gain per channel: what makes up for `off` after a normalisation. A channel that it all but
    closes makes up for nothing. Shapes that differ (broadcast additions) are left alone."""
    if off.shape != target.shape:
        return target
    axis = 1 if target.ndim > 2 else target.ndim - 1
    if target.shape[axis] != gain.size:
        return target if not (gain == 1).all() else target + off
    open_ = np.abs(gain) > 1e-2 * np.abs(gain).max()
    inverse = np.where(open_, 1 / np.where(open_, gain, 1), 0).astype(np.float32)
    shape = [1] * target.ndim
    shape[axis] = gain.size
    return np.asarray(target + off * inverse.reshape(shape), np.float32)


def opener(provider: str, threads: int) -> Any:
    return partial(Session.open, provider=provider, threads=threads)


LEVELS = (2.5, 1.4, 0.6, 0.3)
"""Densities at which a layer's loss is taken, in parts of the density that is asked for."""
ROUGHLY = 30
"""Positions per unknown for those losses, which need not be as exact as the fit."""
PROBED = (1, 2)
"""Of those, at which it is measured how much reaches the outputs."""


def scored(study: LayerStudy, progress: Progress) -> Iterator[tuple[LinearLayer, Array]]:
    """What the method's criterion needs of each weight, layer by layer, as the original model runs."""
    walk, way = Walk(study.original, study.feeds, study.store, study.open_session), study.way
    for layer in progress(study.layers, "measuring layers", len(study.layers)):
        tasks = list(study.tasks(layer, study.sums(layer, walk, walk)))
        study.release(layer, walk)
        yield layer, layer.stored(scores(way.method, tasks, way.pattern, way.workers))
    walk.close()


def losses(study: LayerStudy, density: float, progress: Progress) -> list[LossCurve]:
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
        found.append(LossCurve(layer.weight.size, levels, _scaled(levels, own, with_probe, far)))
    walk.close()
    return found


def _reaching(
    study: LayerStudy, layer: LinearLayer, walk: Walk, variants: Sequence[Array], base: Mapping[str, Array]
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


def _moved(task: FitTask, weights: Array) -> float:
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


def pruned(
    study: LayerStudy, chosen: Mapping[str, int | Array], progress: Progress
) -> Iterator[tuple[LinearLayer, Rewritten, Rewritten | None, dict[str, float]]]:
    """Prune and fit layer after layer.

    Args:
        chosen: by layer, how many weights go, or which (a mask of the stored shape).
    """
    student = working_form(study.model.ir)
    mine, _ = fittable(study.model, student, [layer.weight.holder.name for layer in study.layers], study.fixed)
    wanted = Walk(study.original, study.feeds, study.store, study.open_session)
    given = Walk(student, study.feeds, study.store, study.open_session)
    shared = _shared(study, mine)
    for layer in progress(mine, "pruning layers", len(mine)):
        # in a transformer, whose sums follow an added bias, their errors drown the small outputs of the branches
        others = layer.carried if layer.is_summed_plainly else None
        sums = shared.get(layer.name) or study.sums(layer, wanted, given, others)
        study.release(layer, wanted, given)
        tasks = list(study.tasks(layer, sums))
        picks = _picked(study, layer, tasks, chosen[layer.name])
        best = study.fitted(tasks, picks, study.way.recover)
        yield layer, *_put(study, layer, best), _report(tasks, best)
    wanted.close()
    given.close()


def _picked(
    study: LayerStudy, layer: LinearLayer, tasks: Sequence[FitTask], amount: int | Array
) -> list[Array | Quota]:
    """What goes, by losses on what the pruned layers before give, from the best weights for that."""
    if not isinstance(amount, int):
        return list(layer.matrices(amount) > 0)
    if study.way.method.updates and study.way.recover == "lstsq" and study.way.method.criterion:
        study.found.pop(layer.name, None)
        return study.choose(layer, [task.optimum() for task in tasks], amount)
    return study.choose(layer, tasks, amount)


def _shared(study: LayerStudy, layers: Sequence[LinearLayer]) -> dict[str, Equations]:
    """Layers whose weight is read in several places are fitted on what the original gives them in all of them."""
    several = [layer for layer in layers if len(layer.uses) > 1]
    if not several:
        return {}
    walk = Walk(study.original, study.feeds, study.store, study.open_session)
    found = {layer.name: study.sums(layer, walk, walk) for layer in several}
    walk.close()
    return found


def _put(study: LayerStudy, layer: LinearLayer, best: Sequence[Fitted]) -> tuple[Rewritten, Rewritten | None]:
    """Store the weights in the pruned model, rounded as they will be saved."""
    array = layer.weight.array()
    values, drop, shift = study.plain(layer, best)
    new = Rewritten.of(values, drop, array.dtype)
    layer.weight.holder.put(ir.Tensor(new.values, dtype=layer.weight.dtype, name=layer.weight.holder.name))
    offset, source = layer.offset, layer.offset.source if layer.offset is not None else None
    if offset is None or source is None or not shift.any():
        return new, None
    moved = offset.content(offset.read(shift.size) + shift)
    put(source, moved)
    return new, Rewritten(moved, np.packbits(np.zeros(moved.size, np.bool_)))


def _report(tasks: Sequence[FitTask], best: Sequence[Fitted]) -> dict[str, float]:
    error = float(np.mean([task.error(one.weights, one.shift) for task, one in zip(tasks, best, strict=True)]))
    return {"reconstruction_error": error}
