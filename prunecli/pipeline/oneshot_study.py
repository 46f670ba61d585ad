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

from prunecli.apply.zero import target_of
from prunecli.evidence.grams import Equations, Picker, collect
from prunecli.evidence.layers import HIDDEN, Layer, layers_of
from prunecli.evidence.store import Store
from prunecli.evidence.walk import Walk, working_form
from prunecli.model import Model, find_weights
from prunecli.recover.fit import Fitted, Method, Recover, Task, fit, scores
from prunecli.recover.sparsegpt import Quota
from prunecli.runtime import Session
from prunecli.select import Recipe, decide
from prunecli.select.patterns import Pattern, Windows
from prunecli.types import Skipped

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
class Study:
    """One model on its data. `layers`: what can be fitted, in the order in which it runs; `left`: what cannot."""

    way: Way
    original: ir.Model
    feeds: Sequence[Mapping[str, Any]]
    store: Store
    layers: list[Layer]
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
    ) -> Study:  # fmt: skip
        """A study of the stored tensors `names` of the main graph; vectors in `fixed` stay as they are."""
        original = working_form(file.ir)
        layers, left = fittable(file, original, names, fixed)
        return cls(way, original, feeds, store, layers, left, file, open_session, per_unknown, seed, fixed)

    def tasks(self, layer: Layer, sums: Equations) -> Iterator[Task]:
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
            yield Task(
                weights * g[:, None], found.gram, cross * g[:, None], found.x, found.y * g, variance * g**2,
                found.count, offset * g, free, taps,
            )  # fmt: skip

    def plain(self, layer: Layer, best: Sequence[Fitted]) -> tuple[Array, Array, Array]:
        """Weights and mask as stored, and the shift of all rows."""
        worth = _worth(layer)
        weights = np.stack([one.weights for one in best]) / worth[..., None]
        drop = np.stack([one.drop for one in best])
        shift = np.stack([one.shift for one in best]) / worth
        return layer.stored(weights), layer.stored(drop), shift.reshape(-1)

    def sums(self, layer: Layer, wanted: Walk, given: Walk, others: str | None = None) -> Equations:
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

    def release(self, layer: Layer, *walks: Walk) -> None:
        """Let the walks go of what `sums` asked for."""
        for walk in walks:
            for use in layer.uses:
                walk.release(use.data)
                walk.release(use.output or "")

    def choose(self, layer: Layer, tasks: Sequence[Task], amount: int) -> list[Array | Quota]:
        """Which weights go when `amount` of them do: per matrix a mask, or a number where the method chooses itself."""
        method, pattern = self.way.method, self.way.pattern
        if method.criterion is None:
            return [Quota(part, self.way.by_row) for part in _parts([task.gone for task in tasks], amount)]
        if layer.name not in self.found:
            each = scores(method, tasks, pattern, self.way.workers)
            self.found[layer.name] = each.reshape(layer.shape).astype(np.float32)
        found = self.found[layer.name]
        need = {"wanda": "input norm", "obs": "removal loss"}[method.criterion]
        sparsity = None if isinstance(pattern, Windows) else amount / layer.weight.size
        scope = None if isinstance(pattern, Windows) else "row" if self.way.by_row else "layer"
        recipe = Recipe(pattern.text, scope, method.criterion, sparsity)
        array = layer.weight.array()
        drop = decide([target_of(layer.weight, {need: lambda: found})], recipe)[0].drop(array)
        return list(layer.matrices(drop.astype(np.float32)) > 0)

    def fitted(self, tasks: Sequence[Task], chosen: Sequence[Array | Quota], recover: Recover) -> list[Fitted]:
        way = self.way
        pairs = zip(tasks, chosen, strict=True)
        return [fit(way.method, recover, task, way.pattern, one, way.workers) for task, one in pairs]


def fittable(
    file: Model, work: ir.Model, names: Sequence[str], fixed: frozenset[str]
) -> tuple[list[Layer], list[Skipped]]:
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


def _worth(layer: Layer) -> Array:
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
