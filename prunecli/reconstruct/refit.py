"""Recovery without training: every layer of a cut model is fitted, in order, to what the original computes.

Both models run side by side, piece by piece. When a layer's turn comes, all before it are done: it is fitted on what it
really receives, towards what the original has at the positions that are left, errors of the residual stream included.
Where dimensions inside heads went, both models are turned before (`reconstruct.turning`), which changes neither.
A closed form computes new weights and a new offset of a linear layer from sums over data (`calibration.grams`):

bias    b = E[y] - W E[x]: what the removed inputs added on average is added as a constant
bn      W and b scaled and moved per output so that its mean and variance are those wanted: what re-estimating a
        BatchNormalization does, whether it is folded or not
lstsq   W = W0 + (C - W0 G) (G + r d I)^-1, b = E[y] - W E[x]: least squares with a ridge towards the weights as they
        are; G, C of the centred data, d the mean of G's diagonal
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, without
from prunecli.calibration.batches import CalibrationBatches
from prunecli.calibration.fitted import LayerJournal, StoredLayer
from prunecli.calibration.gradients import OutputError, looked_at
from prunecli.calibration.grams import Addend, Equations, Picker, add_each, batches_read
from prunecli.calibration.layers import LinearLayer, refittable
from prunecli.calibration.layerwise import Store, Walk
from prunecli.data.columns import is_float
from prunecli.errors import PruneError
from prunecli.reconstruct.fit import with_diagonal
from prunecli.reconstruct.obs import suited
from prunecli.reconstruct.turning import Turned, turn
from prunecli.registry import into
from prunecli.types import Progress, Skipped, no_progress

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 0.4, 1.5, 6.0, 25.0)
"""Shares of the mean of G's diagonal, of which held-out data choose one. The least are far below those of zeros:
what the inputs that are left can make up for exactly is made up for to rounding."""
_SMALLEST = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Fit:
    """`weights` (batch, rows, K) and `constant` (batch, rows), float64."""

    method: str
    weights: Array
    constant: Array
    ridge: float | None = None

    def error(self, sums: Equations) -> float:
        """Mean over positions of the summed |W x + b - y|^2."""
        mixed = self.weights @ sums.gram - 2 * sums.cross
        both = np.einsum("bij,bij->", mixed, self.weights) + sums.squares.sum()
        off = 2 * (np.einsum("bij,bj->bi", self.weights, sums.x) - sums.y)
        total = (both + (self.constant * off).sum()) / max(sums.count, 1) + np.square(self.constant).sum()
        return max(float(total), 0.0)


Former = Callable[[Equations, Fit, bool], Iterator[Fit]]
FORMERS: dict[str, Former] = {}


former = into(FORMERS)
"""Registers `function(sums, present, free)`, which yields candidates. `free`: the layer has a place for an offset."""


@former("bias")
def bias(sums: Equations, present: Fit, free: bool) -> Iterator[Fit]:
    """The mean of every output."""
    if free:
        mean = np.einsum("gmk,gk->gm", present.weights, sums.x)
        yield Fit("bias", present.weights, (sums.y - mean) / max(sums.count, 1))


@former("bn")
def bn(sums: Equations, present: Fit, free: bool) -> Iterator[Fit]:
    """Mean and variance of every output. What does not vary keeps its scale."""
    if not free:
        return
    found, old = sums.problems(intercept=True), present.weights
    variance = np.einsum("bij,bij->bi", old @ found.gram, old)
    alive = (variance > 1e-10 * found.squares) & (found.squares > _SMALLEST)
    factor = np.where(alive, np.sqrt(found.squares / np.where(alive, variance, 1.0)), 1.0)
    weights = old * factor[..., None]
    yield Fit("bn", weights, found.y - _products(weights, found.x))


@former("lstsq")
def lstsq(sums: Equations, present: Fit, free: bool) -> Iterator[Fit]:
    """Least squares at each of RIDGES."""
    found = sums.problems(intercept=free)
    wanted = found.cross - present.weights @ found.gram
    for ridge in RIDGES:
        weights = present.weights + _solved(found.gram, wanted, ridge)
        if np.isfinite(weights).all():
            constant = found.y - _products(weights, found.x) if free else present.constant
            yield Fit("lstsq", weights, constant, ridge=ridge)


def _products(weights: Array, x: Array) -> Array:
    """(batch, rows, K) times (batch, K): (batch, rows)."""
    return np.asarray(np.matmul(weights, x[..., None])[..., 0])


def _solved(grams: Array, wanted: Array, ridge: float) -> Array:
    """wanted (G + ridge d I)^-1, of each matrix; nothing where all inputs are dead, NaN where G is not positive."""
    from scipy.linalg import get_lapack_funcs

    means = np.trace(grams, axis1=1, axis2=2) / max(grams.shape[1], 1)
    alive = means > _SMALLEST
    if len(grams) > 1:
        damped = np.where(alive[:, None, None], grams, 0.0)
        damped += np.where(alive, ridge * means, 1.0)[:, None, None] * np.eye(grams.shape[1])
        try:
            np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            return np.full_like(wanted, np.nan)
        solved = np.linalg.solve(damped, wanted.swapaxes(1, 2)).swapaxes(1, 2)
        return np.where(alive[:, None, None], solved, 0.0)
    if not alive[0]:
        return np.zeros_like(wanted)
    damped = with_diagonal(grams[0], ridge * float(means[0]))
    (solve,) = get_lapack_funcs(("posv",), (damped, wanted))
    _, found, info = solve(damped, wanted[0].T, lower=True, overwrite_a=True)
    return np.full_like(wanted, np.nan) if info else np.asarray(found).T[None]


def choose(
    method: str, fitted: Equations, held: Equations | None, present: Fit, free: bool
) -> tuple[Fit, float, float]:
    """(the fit that errs least, its error, that of the weights as they are). What is there already always competes.

    Args:
        method: a name of FORMERS, or `auto` for any of them.
        held: sums over data that the fits do not see, which judge; None: the fitting data do, of `lstsq` at the middle
            ridge alone.
    """
    candidates = [present]
    with suited(fitted.gram.shape[1]):
        for name in FORMERS if method == "auto" else [method]:
            found = list(FORMERS[name](fitted, present, free))
            candidates += found if held is not None else found[len(found) // 2 : len(found) // 2 + 1]
        errors = [fit.error(fitted if held is None else held) for fit in candidates]
    best = int(np.argmin(errors))
    return candidates[best], errors[best], errors[0]


Positions = Mapping[str, Mapping[int, Array]]
METHODS = ("none", *FORMERS, "auto")
TURNING = ("lstsq", "auto")
"""Methods that mix what layers read, and so dimensions inside heads as well."""
WIDEST = 8192
"""Inputs of one output; beyond that a Gram matrix would take more than half a gigabyte."""
POSITIONS = 400
"""Per input of a layer that are looked at: errors of many fits in a row add up."""
SAME = 1e-4
"""Of the largest element: values no further apart, as rounding leaves them, are those of the original."""
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class LayerFit:
    """What was done to one layer. Errors: squared differences from its aim over the spread of the aim, on held-out data
    if there are any."""

    name: str
    weight: str
    method: str
    ridge: float | None
    error_before: float
    error_after: float


@dataclass
class Refit:
    """`layers` that were visited; `left`, those that could not be fitted, with the reason; `turned`, heads of which
    dimensions were turned before."""

    layers: list[LayerFit] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)
    turned: list[Turned] = field(default_factory=list)


def refit(
    original: ir.Model, cut: ir.Model, removed: Positions, data: CalibrationBatches, method: str = "auto", *,
    journal: LayerJournal | None = None, progress: Progress = no_progress,
) -> Refit:  # fmt: skip
    """Fit the layers of `cut`, in place. Layers whose inputs are the original's are left as they are.

    Args:
        original: in working form.
        cut: a copy of it without the positions `removed` (of every value, by its name).
        method: see `prunecli.reconstruct.refit`; `auto`: held-out data choose, layer by layer.
        journal: where layers are kept once they are done; what it has is taken from it.
    Raises:
        PruneError: an unknown method, or onnxruntime cannot run a piece of the model.
    """
    if method not in METHODS:
        raise PruneError(f"--recover {method!r} is unknown", f"choose from {', '.join(METHODS)}")
    out = Refit()
    if method == "none":
        return out
    if method in TURNING:
        heads = turn(original, cut, removed, data=data)
        original, out.turned = heads.model, heads.done
    layers, left = refittable(cut)
    before = {layer.output: layer for layer in refittable(original)[0]}
    with Store() as store, journal or LayerJournal(None, "") as kept:
        walks = [Walk(model, data.feeds, store, open_session=data.start, keep=()) for model in (original, cut)]
        pair = _Pair(walks[0], walks[1], removed, data=data)
        for layer in progress(layers, "refitting", len(layers)):
            if layer.output in before:
                known = kept.layers.get(layer.name)
                found = (
                    _visit(layer, before[layer.output], pair, method=method, journal=kept) if known is None else known
                )
                if known is not None:
                    pair.reach(layer, before[layer.output])
                    pair.leave(layer, before[layer.output])
                _take(layer, found, cut.graph, out=out)
    out.left += left
    return out


def _take(layer: LinearLayer, found: StoredLayer, graph: ir.Graph, out: Refit) -> None:
    """Let the model have what was fitted, and the result what was said."""
    if "left" in found.details:
        out.left.append(Skipped(layer.weight.name, found.details["left"]))
    elif found.details:
        out.layers.append(LayerFit(**found.details))
    if found.arrays:
        weights, constant = found.arrays
        weights.put_into(layer.weight.holder, layer.weight.dtype)
        layer.put_constant(graph, constant.read())


@dataclass
class _Pair:
    original: Walk
    cut: Walk
    removed: Positions
    data: CalibrationBatches

    def reach(self, layer: LinearLayer, before: LinearLayer) -> None:
        self.original.reach([*_read(before), layer.target, layer.branch])
        self.cut.reach(_read(layer))

    def leave(self, layer: LinearLayer, before: LinearLayer) -> None:
        for name in (*_read(before), layer.target, layer.branch):
            self.original.release(name)
        for name in _read(layer):
            self.cut.release(name)

    def read(self, layer: LinearLayer, part: range) -> Sequence[int]:
        """The batches of a part of the data that a layer is fitted on: all that are held, of others some."""
        if self.original.is_held(layer.target) and all(map(self.cut.is_held, _read(layer))):
            return part
        shape = self.original.read(layer.target, part[0]).shape
        positions, size = layer.found.positions(shape), layer.shape[2] * layer.shape[3]
        return [part[place] for place in batches_read(len(part), positions, size, per_unknown=POSITIONS)]

    def is_repeated(self, layer: LinearLayer) -> bool:
        """Whether the sum in which a branch ends is larger than the branch: no element of it is one of the layer's."""
        return bool(self.original.read(layer.target, 0).shape != self.original.read(layer.branch, 0).shape)

    def kept(self, name: str, batch: int) -> Array:
        """A value of the original without the removed positions."""
        array, removed = self.original.read(name, batch), self.removed.get(name, {})
        if any(len(gone) and gone[-1] >= array.shape[axis] for axis, gone in removed.items()):
            raise _UnlikeError
        return without(array, removed)

    def is_same(self, layer: LinearLayer, before: LinearLayer) -> bool:
        """Whether what the layer reads, and what is added to it, is to rounding what the original has."""
        pairs = list(zip(_read(before), _read(layer), strict=False))
        return len(_read(before)) == len(_read(layer)) and all(self._are_same(a, b) for a, b in pairs)

    def _are_same(self, name: str, now_name: str) -> bool:
        kept, now = self.kept(name, 0).astype(np.float64), self.cut.read(now_name, 0)
        if kept.shape != now.shape:
            return False
        return bool(np.abs(kept - now).max(initial=0.0) <= SAME * np.abs(kept).max(initial=0.0))


def _read(layer: LinearLayer) -> list[str]:
    return [layer.found.data, *([layer.carried] if layer.carried is not None else [])]


class _UnlikeError(Exception):
    """The two models' values do not correspond, position by position."""


def _visit(
    layer: LinearLayer, before: LinearLayer, pair: _Pair, method: str, journal: LayerJournal
) -> StoredLayer:  # fmt: skip
    """Fit one layer, unless it lost no inputs and nothing before it changed, and keep what came of it: nothing, why it
    was left, or a `LayerFit` with the new weight and constant."""
    pair.reach(layer, before)
    held_by = layer, before
    try:
        if pair.is_repeated(layer):
            layer, before = layer.alone(), before.alone()
        if before.shape[3] == layer.shape[3] and pair.is_same(layer, before):
            return journal.put(layer.name, {})
        if layer.shape[2] * layer.shape[3] > WIDEST:
            return journal.put(layer.name, {"left": f"it has more than {WIDEST} inputs"})
        fitted, held = _equations(layer, pair)
    except _UnlikeError:
        return journal.put(layer.name, {"left": "its values do not correspond to the original's one by one"})
    finally:
        pair.leave(*held_by)
    if not all(np.isfinite(part).all() for part in (fitted.gram, fitted.cross, fitted.squares)):
        return journal.put(layer.name, {"left": "what it reads or should yield is not finite"})
    present = Fit("none", layer.matrices(), layer.constant())
    free = layer.offset is not None
    fit, after, error = choose(method, fitted, held, present=present, free=free)
    judge = fitted if held is None else held
    scale = max(judge.spread, _TINY)
    name, errors = layer.node.name or layer.output, {"error_before": error / scale, "error_after": after / scale}
    done = LayerFit(name, layer.weight.name, fit.method, ridge=fit.ridge, **errors)
    changed = [] if fit.method == "none" else [layer.cast(fit.weights), fit.constant]
    return journal.put(layer.name, asdict(done), changed)


def _equations(layer: LinearLayer, pair: _Pair) -> tuple[Equations, Equations | None]:
    """Sums over the fitting data, and over the held-out data if there are any."""
    batch, rows, taps, cols = layer.shape
    scale, shift = layer.affine()
    scale = np.where(np.abs(scale) > 1e-6 * np.abs(scale).max(initial=_TINY), scale, 1.0)
    sides = [Equations.empty(batch, rows, taps * cols) for _ in range(2)]
    parts = [range(pair.data.fitted), range(pair.data.fitted, len(pair.data.feeds))]

    def targets(aim: Array, places: Array) -> Array:
        with np.errstate(invalid="ignore"):  # infinite aims are found in the sums
            wanted = (layer.found.targets(aim, places) - shift[:, :, None]) / scale[:, :, None]
        return wanted.astype(np.float32)

    def of(side: int, part: range) -> Iterator[Addend]:
        numbers = pair.read(layer, part) if part else ()
        picker = Picker(len(numbers), taps * cols, POSITIONS)
        for number in numbers:
            aim = pair.kept(layer.target, number).astype(np.float32)
            if layer.carried is not None:
                aim = aim - pair.cut.read(layer.carried, number)
            available = pair.data.places(layer.found, number, aim.shape)
            data = pair.cut.read(layer.found.data, number)
            for places in picker.pick(available):
                columns = partial(layer.found.columns, data, aim.shape, places)
                yield Addend(sides[side], columns, partial(targets, aim, places))

    given = chain.from_iterable(of(side, part) for side, part in enumerate(parts))
    add_each(given, sides[0], pair.data.lanes)
    return sides[0], sides[1] if pair.data.held else None


def output_error(original: ir.Model, others: Sequence[ir.Model], data: CalibrationBatches) -> list[float]:
    """`mean_error` per model on the batches that judge, or all if none do, of the values that are `looked_at`.

    Raises:
        PruneError: onnxruntime cannot run a model.
    """
    feeds = data.feeds[data.fitted :] if data.held else data.feeds
    names = looked_at(original.graph.outputs)
    with Store() as store:
        base, *walks = (Walk(model, feeds, store, open_session=data.start, keep=()) for model in (original, *others))
        base.reach(names)
        names = [name for name in names if is_float(np.asarray(base.read(name, 0)).dtype)]
        found = []
        for walk in walks:
            walk.reach(names)
            sums = [OutputError() for _ in names]
            for number in range(walk.batches):
                for name, one in zip(names, sums, strict=True):
                    one.add(base.read(name, number), walk.read(name, number))
            walk.close()
            found.append(float(np.mean([one.relative for one in sums])) if sums else 0.0)
    return found
