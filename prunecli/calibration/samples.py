"""The samples that a criterion or a fit is measured on: the user's own, or inputs made without data.

Made inputs are pictures of nothing, or noise, drawn towards the statistics that a model's normalisations have kept.
BatchNormalization stores the mean and variance of what it read in training. Gradient descent on the inputs finds some
under which it reads the same (DeepInversion, Yin et al. 2020; ZeroQ, Cai et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.autodiff import DifferentiationOptions, GradientModel, differentiate
from prunecli.autodiff.losses import LossScope
from prunecli.calibration.layerwise import working_form
from prunecli.data import Dataset
from prunecli.data.columns import is_float
from prunecli.data.options import DataOptions
from prunecli.data.synthetic import Feed, as_dataset, check_size, rows_and_runs, synthetic_feed
from prunecli.errors import PruneError
from prunecli.model import Dims, Model, concrete_shapes
from prunecli.model.constants import behind, is_constant
from prunecli.model.shapes import Shapes, input_specs
from prunecli.runtime import Execution, Session
from prunecli.types import Json, Progress, no_progress

BATCH = 64
STEPS = 40
FEWEST = 8
"""Samples of a run below which moments of the batch say little of the moments of the data."""
RATE = 0.1
"""Size of the first steps, in deviations of the input."""
RANGES = ((1.0, 0.0), (0.25, 0.45), (64.0, 115.0))
"""Scale and offset of inputs that are normalised, from 0 to 1, and from 0 to 255."""
WARNING = "the data is synthetic, not real: check the result on real data before you rely on it"


@dataclass(frozen=True)
class Moments:
    """What one BatchNormalization has stored of the value it reads: (C,) each; `floor`: the variance that counts as
    none, so that channels that are always zero do not drown the others."""

    value: str
    mean: Array
    variance: Array
    epsilon: float

    @property
    def scale(self) -> Array:
        floor = max(1e-3 * float(self.variance.mean()), self.epsilon, 1e-12)
        return np.sqrt(np.maximum(self.variance, floor))


@dataclass(frozen=True)
class MomentLoss:
    """L = mean over layers, mean over channels of [((m - mu) / s)^2 + ((d - sigma) / s)^2] / 2, with m, d the mean and
    deviation over samples and places in the batch, mu, sigma the stored ones, s = sigma but for dead channels.

    sqrt(L) is how far the moments are off, in stored deviations.
    """

    layers: Sequence[Moments]

    def build(self, scope: LossScope) -> ir.Value:
        ops = scope.ops
        terms = [self._term(scope, layer) for layer in self.layers]
        return ops.mul(ops.total(terms), 0.5 / len(terms))

    def _term(self, scope: LossScope, layer: Moments) -> ir.Value:
        ops, x = scope.ops, scope.output(layer.value)
        rank = ops.rank(x)
        axes, wide = [0, *range(2, rank)], (1, -1, *[1] * (rank - 2))
        mean = ops.mean(x, axes, keepdims=True)
        centred = ops.sub(x, mean)
        variance = ops.mean(ops.mul(centred, centred), axes, keepdims=True)
        deviation = ops.op("Sqrt", ops.add(variance, layer.epsilon))
        wanted = np.sqrt(layer.variance + layer.epsilon)
        parts = []
        for found, target in ((mean, layer.mean), (deviation, wanted)):
            off = ops.sub(found, ops.const(target.reshape(wide).astype(np.float32)))
            off = ops.mul(off, ops.const((1 / layer.scale).reshape(wide).astype(np.float32)))
            parts.append(ops.mean(ops.mul(off, off), list(range(rank))))
        return ops.op("Add", *parts)


def stored_moments(work: ir.Model) -> list[Moments]:
    """Of every BatchNormalization in inference mode of the main graph, whose statistics are stored and finite."""
    found = []
    for node in work.graph:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx") or len(node.inputs) < 5:
            continue
        stored = [behind(value) for value in node.inputs[3:5]]
        data = node.inputs[0]
        if None in stored or data is None or data.name is None or node.attributes.get_int("training_mode", 0) == 1:
            continue
        mean, variance = (s.array().astype(np.float32) for s in stored if s is not None)
        if (
            mean.ndim == 1
            and np.isfinite(mean).all()
            and np.isfinite(variance).all()
            and (variance >= 0).all()
            and variance.any()
        ):
            found.append(Moments(data.name, mean, variance, epsilon=node.attributes.get_float("epsilon", 1e-5)))
    return found


def synthetic_data(
    file: Model,
    shapes: Mapping[str, Sequence[int]],
    count: int,
    *,
    seed: int = 0,
    execution: Execution | None = None,
    progress: Progress = no_progress,
    steps: int = STEPS,
) -> Dataset:
    """About `count` samples (whole runs of one size) for a model, the same for the same seed.

    Args:
        shapes: of each input; the first axis is replaced where the model leaves it open and it counts samples.
        steps: of descent on the inputs of each run, where there are moments to match.
    Raises:
        PruneError: inputs that values cannot be made for, or that would not fit into memory.
    """
    execution = execution or Execution()
    session = execution.open(file.path)
    specs = session.inputs
    if not specs:
        raise PruneError("the model has no inputs, so it takes no data", "leave out --data")
    for spec in specs:
        if spec.name not in shapes:
            raise PruneError(f"the shape of the input {spec.name} is not known", "give it with --input-shape")
    rows, runs, by_sample = rows_and_runs(specs, count, BATCH)
    sizes = {s.name: (rows, *shapes[s.name][1:]) if by_sample else tuple(shapes[s.name]) for s in specs}
    check_size(specs, sizes, runs)
    feeds = [synthetic_feed(specs, sizes, seed + run, limits=session.limits) for run in range(runs)]
    names = [spec.name for spec in specs if spec.is_float]
    descent = _descent(file, names, feeds[0], rows=rows if by_sample else 0, threads=execution.thread_count)
    if isinstance(descent, str):
        return as_dataset(specs, feeds, by_sample, notes=[WARNING, descent])
    descent = replace(descent, steps=steps)
    done = [descent(feed) for feed in progress(feeds, "making synthetic data", runs)]
    before, after = (float(np.sqrt(np.mean([one[place] for one in done]))) for place in (1, 2))
    note = (
        f"inputs were fitted to the statistics of {descent.layers} BatchNormalizations: means and deviations are off by"
        f" {after:.2f} stored deviations, those of what they started from by {before:.2f}"
    )
    return as_dataset(specs, [one[0] for one in done], by_sample, notes=[WARNING, note])


Fitted = tuple[Feed, float, float]
"""Inputs of a run, and the loss before and after."""


@dataclass(frozen=True)
class _Descent:
    """Adam (Kingma and Ba 2015) on the inputs of one run, whose steps shrink along a half cosine.

    names: the inputs that are moved. `scale`, `offset`: the range that the model's statistics speak for.
    """

    graph: GradientModel
    session: Session
    names: Sequence[str]
    layers: int
    steps: int = STEPS
    scale: float = 1.0
    offset: float = 0.0

    def start(self, feed: Feed) -> Feed:
        """The run in single precision, in the range of the model's inputs."""
        moved = {name: feed[name].astype(np.float32) * self.scale + self.offset for name in self.names}
        single = {n: a.astype(np.float32) if is_float(a.dtype) else a for n, a in feed.items()}
        return {name: moved.get(name, single[name]) for name in self.graph.inputs}

    def loss(self, feed: Feed) -> float:
        return float(self.session.run(feed, [self.graph.loss])[self.graph.loss])

    def __call__(self, feed: Feed) -> Fitted:
        now = self.start(feed)
        first = {name: np.zeros_like(now[name]) for name in self.names}
        second = {name: np.zeros_like(now[name]) for name in self.names}
        sizes = {name: RATE * max(float(now[name].std()), 1e-12) for name in self.names}
        best, lowest, before = dict(now), np.inf, 0.0
        for step in range(self.steps + 1):
            found = self.session.run(now)
            loss = float(found[self.graph.loss])
            before = loss if step == 0 else before
            if loss < lowest:
                best, lowest = dict(now), loss
            for name in self.names:
                g = found[self.graph.gradients[name]]
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.99 * second[name] + 0.01 * g * g
                ahead = first[name] / (1 - 0.9 ** (step + 1))
                size = np.sqrt(second[name] / (1 - 0.99 ** (step + 1)))
                rate = sizes[name] * 0.5 * (1 + np.cos(np.pi * step / max(self.steps, 1)))
                now[name] = (now[name] - rate * ahead / (size + 1e-20)).astype(np.float32)
        return {name: best[name].astype(array.dtype) for name, array in feed.items()}, before, lowest


def _descent(file: Model, names: Sequence[str], feed: Feed, rows: int, threads: int) -> _Descent | str:
    """How the inputs of these names are fitted; or why they cannot be, as a sentence for the report."""
    work = working_form(file.ir)
    layers = stored_moments(work)
    if not layers:
        return "the model has no BatchNormalization (or it is folded), so the made inputs follow no statistics of data"
    if rows < FEWEST:
        return f"runs of fewer than {FEWEST} samples do not match statistics of BatchNormalization: inputs follow none"
    shapes = {name: tuple(array.shape) for name, array in feed.items()}
    try:
        graph = differentiate(work, names, MomentLoss(layers), shapes=shapes, options=DifferentiationOptions(False))
    except PruneError as error:
        return f"inputs were not fitted to the statistics of BatchNormalization: {error.message}"
    moved = [name for name in names if name in graph.gradients]
    if not moved:
        return "no BatchNormalization depends on an input that can be fitted: they follow no statistics"
    session = Session.open(graph.model, threads=threads, mode="training")
    tries = [
        _Descent(graph, session, moved, layers=len(layers), scale=scale, offset=offset) for scale, offset in RANGES
    ]
    return min(tries, key=lambda one: one.loss(one.start(feed)))


RUN_BYTES = 32 << 20
"""Of the largest value of a run: several of them are alive at once, in the session and as they are summed up, and what
fits into a processor's caches is run faster."""


def run_size(shapes: Shapes, most: int) -> int:
    """How many samples run at once: `most`, fewer where a value would take more than `RUN_BYTES`."""
    samples = min((shape[0] for shape in shapes.inputs.values() if shape), default=1)
    made = (shape for value, shape in shapes.facts.shapes.items() if not is_constant(value))
    largest = 4 * max(map(math.prod, made), default=1) // max(samples, 1)
    return max(1, min(most, RUN_BYTES // max(largest, 1)))


FEW = 8


def calibration_samples(
    file: Model,
    wanted: DataOptions,
    samples: int,
    *,
    seed: int,
    dims: Dims,
    execution: Execution,
    progress: Progress,
) -> Dataset:
    """`samples` samples, drawn at random where there are more; all of them if the user gave a limit.

    Args:
        file: the model, whose `ir` may be a working form of what is at its path.
    Raises:
        PruneError: as `DataOptions.open` and `synthetic_data`; labels of synthetic data.
    """
    if wanted.synthetic:
        wanted.check_synthetic(True)
        shapes, count = concrete_shapes(file, dims).inputs, wanted.limit or samples
        return synthetic_data(file, shapes, count, seed=seed, execution=execution, progress=progress)
    data = wanted.open(input_specs(file.ir))
    if wanted.limit is None and len(data) > samples:
        data = data.shuffled(seed).take(samples)
    return data


def first_feed(data: Dataset) -> Mapping[str, Any]:
    """A few samples, for a proof."""
    return next(data.batches(FEW)).feed


def about(data: Dataset) -> Json:
    """The data's part of a recorded recipe."""
    notes = {"data_notes": list(data.notes)} if data.notes else {}
    return {"samples": len(data), "data": data.source, **notes}


def cautions(data: Dataset) -> list[str]:
    """What readers of the report have to know of how the data came about."""
    return list(data.notes)
