"""Gradients of a model by its weights, over data: the figures that gradient criteria score with.

A `WeightGradients` runs gradient models over batches at the present values of the weights. Only one sum per weight is
held, however long the data.
A `GradientSource` says where the figures come from: data and what is differentiated on it, or the weights' own flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.autodiff import DifferentiationOptions, GradientModel, Loss, differentiate
from prunecli.autodiff.losses import Projection, Weighted
from prunecli.calibration.layerwise import Walk
from prunecli.calibration.objective import Objective, ObjectiveOptions, choose_objective
from prunecli.calibration.samples import about, calibration_samples, cautions, first_feed
from prunecli.data import Batch, Dataset
from prunecli.data.columns import is_float
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.reading import float_outputs
from prunecli.masks.criteria import Evidence
from prunecli.model import Dims, Model, Weight, concrete_shapes, find_weights
from prunecli.model.lossless import is_tensor
from prunecli.runtime import Execution, Session
from prunecli.types import Json, Progress, no_progress

Feed = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]
Gradients = dict[str, Array]
MOST_SHAPES = 8
"""Different shapes of batches for which a gradient model is built; each takes memory."""
_DIRECTION = "prune/direction/"


class GradientTask(Protocol):
    """What is differentiated."""

    @property
    def loss(self) -> Loss: ...

    def inputs(self, batch: Batch, shapes: Shapes, rng: np.random.Generator) -> dict[str, Array]:
        """What the loss wants besides the model's inputs, in the given shapes."""
        ...


@dataclass(frozen=True)
class OutputTask:
    """The outputs in random directions: with r of random signs E[(r^T J)^2] = diag(J^T J), J = dz / dw (Hutchinson
    1989), and w^2 diag / 2 is the damage that removing w alone does to the outputs (Optimal Brain Damage, LeCun et al.
    1990). Needs no labels, and does not vanish where the model is sure of its answer.

    scales: output -> factor of its direction, which makes outputs of different size comparable.
    """

    scales: Mapping[str, float]

    @property
    def loss(self) -> Loss:
        return Weighted(tuple((1.0, Projection(name, _DIRECTION + name)) for name in self.scales))

    def inputs(self, batch: Batch, shapes: Shapes, rng: np.random.Generator) -> dict[str, Array]:
        out = {}
        for name, scale in self.scales.items():
            shape = shapes[_DIRECTION + name]
            out[_DIRECTION + name] = rng.choice(np.array([-scale, scale], np.float32), shape)
        return out

    @classmethod
    def of(cls, outputs: Mapping[str, Array], names: Sequence[str]) -> OutputTask:
        """Directions of the inverse root mean square of each output, taken from one run."""
        sizes = {name: _root_mean_square(outputs[name]) for name in names}
        return cls({name: 1 / size if 1e-20 < size < 1e20 else 1.0 for name, size in sizes.items()})


def _root_mean_square(output: Array) -> float:
    """0 of an output that holds nothing, as of boxes where none was found."""
    return math.sqrt(float(np.square(output, dtype=np.float64).sum()) / max(output.size, 1))


@dataclass
class _Built:
    """A gradient model at one choice of shapes."""

    graph: GradientModel
    session: Session


@dataclass
class WeightGradients:
    """Gradients by `weights` of what `task` says, at the values in `values` (float32), which may be changed."""

    model: Model
    weights: Sequence[str]
    task: GradientTask
    threads: int = 0
    seed: int = 0
    values: Gradients = field(default_factory=dict)
    unreached: tuple[str, ...] = ()
    _built: dict[tuple[Any, ...], _Built] = field(default_factory=dict)

    def open(self, feed: Feed) -> None:
        """Build the gradient model for one batch, which settles `unreached`: weights the loss does not depend on.

        Raises:
            PruneError: an operator on the way has no gradient, or the loss depends on none of the weights.
        """
        self._at(feed)

    def runs(self, batches: Iterable[Batch]) -> Iterable[Gradients]:
        """The gradients of each batch.

        Raises:
            PruneError: onnxruntime fails, a gradient is not finite, or there are too many shapes.
        """
        rng = np.random.default_rng(self.seed)
        for batch in batches:
            built = self._at(batch.feed)
            shapes = {name: shape for name, (_, shape) in built.graph.loss_inputs.items()}
            feed = {**single(batch.feed), **self.values, **self.task.inputs(batch, shapes, rng)}
            found = built.session.run(feed, list(built.graph.gradients.values()))
            yield {name: self._checked(name, found[output]) for name, output in built.graph.gradients.items()}

    def _checked(self, name: str, gradient: Array) -> Array:
        if not np.isfinite(gradient).all():
            raise PruneError(f"the gradient of {name} is not finite", "look for NaN or huge values in the data")
        return gradient

    def _at(self, feed: Feed) -> _Built:
        key = tuple((name, array.shape) for name, array in sorted(feed.items()))
        if key not in self._built:
            if len(self._built) == MOST_SHAPES:
                raise PruneError(
                    f"the samples have more than {MOST_SHAPES} different shapes",
                    "bring them to one shape, or use fewer with --limit",
                )
            self._built[key] = self._build({name: tuple(array.shape) for name, array in feed.items()})
        return self._built[key]

    def _build(self, shapes: Shapes) -> _Built:
        wanted = [name for name in self.weights if name not in self.unreached]
        graph = self._graph(wanted, shapes)
        if graph.unreached:  # they would be inputs that nobody reads
            self.unreached += graph.unreached
            wanted = [name for name in wanted if name in graph.gradients]
            if not wanted:
                raise PruneError("the output depends on none of the chosen weights", "choose others with --include")
            graph = self._graph(wanted, shapes)
        for name, tensor in graph.weights.items():
            self.values.setdefault(name, np.ascontiguousarray(tensor.numpy(), dtype=np.float32))
        return _Built(graph, Session.open(graph.model, threads=self.threads, mode="training"))

    def _graph(self, wanted: Sequence[str], shapes: Shapes) -> GradientModel:
        return differentiate(self.model.ir, wanted, self.task.loss, shapes=shapes, options=DifferentiationOptions(True))


def single(feed: Feed) -> dict[str, Array]:
    """Gradient models compute in float32 whatever the model's own precision."""
    floats = {name for name, array in feed.items() if array.dtype.kind == "f" or array.dtype.name == "bfloat16"}
    return {name: array.astype(np.float32) if name in floats else array for name, array in feed.items()}


def mean_powers(gradients: WeightGradients, batches: Iterable[Batch], power: int) -> Gradients:
    """E|g|^power, g the gradient of one run: with 2 and runs of one sample, the diagonal of the (generalised) Fisher
    information."""
    sums: Gradients = {}
    count = 0
    for found in gradients.runs(batches):
        count += 1
        for name, gradient in found.items():
            value = np.square(gradient, dtype=np.float64) if power == 2 else np.abs(gradient).astype(np.float64)
            sums[name] = sums[name] + value if name in sums else value
    return {name: total / count for name, total in sums.items()}


def gates(gradients: WeightGradients, batches: Iterable[Batch]) -> dict[tuple[str, int], Array]:
    """By weight and axis, one row per run: sum over the other axes of w g, w as it is in `gradients.values`.

    Of the axis that a layer reads its input by, this is x dL/dx of each channel: the gradient by a gate on it.
    """
    rows: dict[tuple[str, int], list[Array]] = {}
    for found in gradients.runs(batches):
        for name, gradient in found.items():
            product = gradients.values[name] * gradient
            for axis in range(product.ndim):
                others = tuple(a for a in range(product.ndim) if a != axis)
                rows.setdefault((name, axis), []).append(product.sum(axis=others, dtype=np.float32))
    return {key: np.stack(own) for key, own in rows.items()}


_SUM = "prune/sum/"
_SMALL = (1.0, 1e-6, 1e-10, 1e-14, 1e-18)
"""Factors of input and outputs. Flow grows with depth beyond float32; for homogeneous networks a factor of R changes
no order."""
_MEANS = {("BatchNormalization", 2), ("BatchNormalization", 3), ("LayerNormalization", 2), ("GroupNormalization", 2),
          ("InstanceNormalization", 2)}  # fmt: skip
"""(operator, input) of normalisation parameters that are added, not multiplied."""


@dataclass(frozen=True)
class FlowTask:
    """The sum of the outputs, times `scale`."""

    outputs: tuple[str, ...]
    scale: float = 1.0

    @property
    def loss(self) -> Loss:
        return Weighted(tuple((1.0, Projection(name, _SUM + name)) for name in self.outputs))

    def inputs(self, batch: Batch, shapes: Shapes, rng: np.random.Generator) -> dict[str, Array]:
        return {_SUM + name: np.full(shapes[_SUM + name], self.scale, np.float32) for name in self.outputs}


def flow(gradients: WeightGradients, feed: dict[str, Array], others: Sequence[Weight]) -> Gradients:
    """|dR / d|w|| at the present values.

    Args:
        gradients: of a FlowTask, by the chosen weights and `others`; its values are used as they are, apart from signs.
        feed: inputs of ones.
        others: biases and normalisation parameters: what is added is taken as zero.
    Raises:
        PruneError: nothing flows, as through normalisation by statistics of the input itself, or float32 is too
            narrow.
    """
    given, added = dict(gradients.values), {w.holder.name: _added(w) for w in others}
    gradients.values = {n: np.zeros_like(v) if added.get(n) else np.abs(v) for n, v in given.items()}
    try:
        for scale in _SMALL:
            found = _scaled(gradients, feed, scale)
            if found is not None:
                return {name: np.abs(g).astype(np.float64) for name, g in found.items() if name not in added}
    finally:
        gradients.values = given
    raise PruneError(
        "no synaptic flow reaches the outputs, or more than float32 holds",
        "normalisation by the input's own statistics stops it; use --criterion taylor",
    )


def _scaled(gradients: WeightGradients, feed: dict[str, Array], scale: float) -> Gradients | None:
    assert isinstance(gradients.task, FlowTask)
    gradients.task = FlowTask(gradients.task.outputs, scale)
    ones = {n: a * np.asarray(scale, a.dtype) if a.dtype.kind == "f" else a for n, a in feed.items()}
    with np.errstate(all="ignore"):
        try:
            found = next(iter(gradients.runs([Batch(ones, 1)])))
        except PruneError as error:
            if "not finite" in error.message:
                return None
            raise
    total = sum(float(np.abs(g).sum(dtype=np.float64)) for g in found.values())
    return found if 0 < total < np.inf else None


def _added(weight: Weight) -> bool:
    return weight.kind == "bias" or any((use.op, use.index) in _MEANS for use in weight.uses)


RUINED = 1e9
"""The error of outputs that are no longer finite, or have another size."""
_TINY = float(np.finfo(float).tiny)
_HIDING = ("Softmax", "LogSoftmax", "Sigmoid", "Identity")


def looked_at(outputs: Sequence[ir.Value]) -> list[str]:
    """The values whose change counts: computed floats. Of outputs that are none (classes, indices, maps), the floats
    they are made from; before a Softmax or Sigmoid, which would hide a change."""
    names: dict[str, None] = {}
    stack, seen = list(reversed(outputs)), set()
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op_type in _HIDING or not _is_float(value):
            stack.extend(v for v in reversed(node.inputs) if v is not None)
        elif value.name:
            names[value.name] = None
    return list(names)


def _is_float(value: ir.Value) -> bool:
    return is_tensor(value) and (value.dtype is None or value.dtype.is_floating_point())


def outputs_ahead(walk: Walk, names: Sequence[str], contents: Mapping[str, Array] | None = None) -> list[Array]:
    """Each value over all batches as one float64 vector; see `Walk.ahead`. Values whose type the graph does not tell,
    and that are no floating-point numbers (names of classes), are left out."""
    runs = [run for (run,) in walk.ahead(names, [contents or {}])]
    floats = [name for name in names if is_float(np.asarray(runs[0][name]).dtype)]
    return [np.concatenate([np.asarray(run[name], np.float64).reshape(-1) for run in runs]) for name in floats]


def relative_error(wanted: Array, found: Array) -> float:
    """sum (y' - y)^2 / sum (y - mean y)^2 where the wanted y is finite, or / sum y^2 where it does not vary; `RUINED`
    at most."""
    sums = OutputError()
    sums.add(wanted, found)
    return sums.relative


@dataclass
class OutputError:
    """`relative_error` of an output of which batch after batch is seen, all of the same number of axes. Sums are taken
    about the mean of the first batch, so that a small spread about a large mean is not lost."""

    about: float | None = None
    count: int = 0
    first: float = 0.0
    second: float = 0.0
    energy: float = 0.0
    wrong: float = 0.0
    unlike: bool = False

    def add(self, wanted: Array, found: Array) -> None:
        if found.shape != wanted.shape:
            self.unlike = True
            return
        y = np.asarray(wanted, np.float64)
        finite = np.isfinite(y)
        y, other = y[finite], np.asarray(found, np.float64)[finite]
        if not y.size:
            return
        self.about = float(y.mean()) if self.about is None else self.about
        self.count += y.size
        self.energy += float(np.square(y).sum())
        self.wrong += float(np.square(other - y).sum())
        y -= self.about
        self.first += float(y.sum())
        self.second += float(np.square(y).sum())

    @property
    def relative(self) -> float:
        """The error over all batches."""
        if self.unlike or not self.count:
            return RUINED if self.unlike else 0.0
        spread = max(self.second - self.first**2 / self.count, 0.0)
        scale = spread if spread > 1e-9 * self.energy else self.energy
        fine = np.isfinite(self.wrong) and scale > _TINY
        return min(self.wrong / scale, RUINED) if fine else RUINED * (self.wrong != 0)


def mean_error(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """`relative_error` averaged over the outputs."""
    return float(np.mean([relative_error(*pair) for pair in zip(wanted, found, strict=True)])) if wanted else 0.0


def smooth(values: Gradients, alive: Mapping[str, Array]) -> Gradients:
    """Each value plus the mean over its tensor's weights that are not gone, which steadies estimates from few samples
    and keeps small tensors from being emptied."""
    return {name: value + (value[alive[name]].mean() if alive[name].any() else 0.0) for name, value in values.items()}


LossName = Literal["auto", "output", "labels"]
SAMPLES = 256


@dataclass(frozen=True)
class GradientSamples:
    """What is differentiated, and on what.

    data: None only for a criterion that needs none. loss: `output` the outputs in random directions, `labels` the loss
    that fits the labels; `auto` is `output`. output_name: None is every floating-point
    output. samples: drawn at random where there are more, unless the data has its own limit.
    """

    data: DataOptions | None = None
    loss: LossName = "auto"
    output_name: str | None = None
    samples: int = SAMPLES
    seed: int = 0
    dims: Dims = field(default_factory=Dims)
    execution: Execution = field(default_factory=Execution)


@dataclass
class GradientSource:
    """Evidence by the name of the stored tensor. `take(label, progress)` measures at the values that `gradients` has;
    `asked`: its part of the recorded recipe; `feed`: inputs that the model runs on; `smoothed`: see `smooth`."""

    gradients: WeightGradients
    take: Callable[[str, Progress], Mapping[str, Array]]
    asked: Json
    notes: Sequence[str] = ()
    feed: Mapping[str, Array] | None = None
    smoothed: bool = False

    def measure(
        self, weights: Sequence[Weight], alive: Mapping[str, Array], label: str, progress: Progress
    ) -> dict[str, Array]:
        """By weight; zero for what is gone, so that it stays gone."""
        found = self.take(label, progress)
        values = {w.name: found[w.holder.name] for w in weights}
        values = smooth(values, alive) if self.smoothed else values
        return {name: np.where(alive[name], value, 0.0) for name, value in values.items()}


@dataclass(frozen=True)
class LabelTask:
    """The loss that fits the labels. `like`: an output of the model for one batch."""

    objective: Objective
    like: Array

    @property
    def loss(self) -> Loss:
        return self.objective.loss

    def inputs(self, batch: Batch, shapes: Shapes, rng: np.random.Generator) -> dict[str, Array]:
        return self.objective.targets(batch.labels, self.like)


@dataclass(frozen=True)
class Batches:
    """The same batches as often as they are wanted; of several, an incomplete one is left out."""

    data: Dataset
    size: int
    progress: Progress
    label: str

    def __len__(self) -> int:
        return self.data.batch_count(self.size)

    def __iter__(self) -> Iterator[Batch]:
        whole = self.data.fixed_batch or self.size
        for number, batch in enumerate(self.progress(self.data.batches(self.size), self.label, len(self))):
            if number == 0 or batch.count == whole or batch.unbatched:
                yield batch


def open_source(
    file: Model, evidence: Evidence, weights: Sequence[str], options: GradientSamples, progress: Progress = no_progress
) -> GradientSource:
    """A source for the weights, which are names of stored tensors of the main graph.

    Raises:
        PruneError: no data for evidence that needs it, labels that fit no output, no floating-point output, an
            operator without a gradient.
    """
    if evidence.source == "flow":
        return _flow_source(file, options.execution.open(file.path), weights, options=options)
    gradients, data = open_gradients(file, weights, options, batch=evidence.batch, progress=progress)
    asked = {
        "loss": "labels" if isinstance(gradients.task, LabelTask) else "output",
        **about(data),
    }

    def take(label: str, progress: Progress) -> Mapping[str, Array]:
        return mean_powers(gradients, Batches(data, evidence.batch, progress, label=label), evidence.power)

    return GradientSource(
        gradients, take, asked, notes=cautions(data), feed=first_feed(data), smoothed=evidence.smoothed
    )


def open_gradients(
    file: Model,
    weights: Sequence[str],
    options: GradientSamples,
    batch: int = 1,
    progress: Progress = no_progress,
) -> tuple[WeightGradients, Dataset]:
    """Gradients of a model by some of its weights, and the samples for it, `batch` of them in a run.

    Args:
        file: the model, whose `ir` may be a working form of what is at its path.
    Raises:
        PruneError: as `open_source`.
    """
    assert options.data is not None
    session = options.execution.open(file.path)
    data = calibration_samples(
        file,
        options.data,
        options.samples,
        seed=options.seed,
        dims=options.dims,
        execution=options.execution,
        progress=progress,
    )
    first = next(data.batches(batch))
    task = _task(session, data, first, options=options)
    gradients = WeightGradients(file, weights, task, threads=options.execution.thread_count, seed=options.seed)
    gradients.open(first.feed)
    return gradients, data


def _task(session: Session, data: Dataset, first: Batch, options: GradientSamples) -> GradientTask:
    outputs = session.run(first.feed)
    if options.loss == "labels":
        if not data.has_labels:
            raise PruneError(f"--loss labels: {data.source} has no labels", "give labels, or --loss output")
        objective = choose_objective(data, outputs, None, options=ObjectiveOptions(output_name=options.output_name))
        return LabelTask(objective, outputs[objective.output])
    return OutputTask.of(outputs, _looked_at(outputs, options.output_name))


def _looked_at(outputs: Mapping[str, Array], name: str | None) -> Sequence[str]:
    floats = float_outputs(outputs)
    if name is not None and name not in floats:
        raise PruneError(f"--output-name {name} is no floating-point output", f"choose from {', '.join(floats)}")
    if not floats:
        raise PruneError("the model has no floating-point output", "export it with its scores as an output")
    return [name] if name is not None else floats


def _flow_source(file: Model, session: Session, weights: Sequence[str], options: GradientSamples) -> GradientSource:
    shapes = concrete_shapes(file, options.dims)
    feed = session.random_inputs(shapes=shapes.inputs)
    outputs = _looked_at(session.run(feed), options.output_name)
    ones = {name: np.ones_like(a) if a.dtype.kind == "f" else a for name, a in feed.items()}
    main = [w for w in find_weights(file).others if w.holder.graph is file.ir.graph and w.kind in ("bias", "norm")]
    others = [w for w in main if w.holder.name not in weights]
    names = [*weights, *(w.holder.name for w in others)]
    gradients = WeightGradients(file, names, FlowTask(tuple(outputs)), threads=options.execution.thread_count)
    gradients.open(ones)

    def take(label: str, progress: Progress) -> Mapping[str, Array]:
        return flow(gradients, ones, others)

    return GradientSource(gradients, take, {"samples": 0})
