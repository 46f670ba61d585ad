"""Where gradient evidence comes from: data and what is differentiated on it, or the weights' own flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from prunecli.autodiff import Loss
from prunecli.calibration.gradients import (
    FlowTask,
    GradientStudy,
    GradientTask,
    OutputTask,
    Shapes,
    flow,
    mean_powers,
    smooth,
)
from prunecli.calibration.objective import Objective, ObjectiveOptions, choose_objective
from prunecli.calibration.samples import about, calibration_samples, cautions, first_feed
from prunecli.data import Batch, Dataset
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.reading import float_outputs
from prunecli.masks.criteria import Evidence
from prunecli.model import Dims, Model, Weight, concrete_shapes, find_weights
from prunecli.runtime import Execution, Session
from prunecli.types import Json, Progress, no_progress

Array = np.ndarray[Any, Any]
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
    """Evidence by the name of the stored tensor. `take(label, progress)` measures at the values in `study`; `asked`:
    its part of the recorded recipe; `feed`: inputs that the model runs on; `smoothed`: see `smooth`."""

    study: GradientStudy
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
        return _flow_source(file, options.execution.open(file.path), weights, options)
    study, data = open_study(file, weights, options, evidence.batch, progress)
    asked = {
        "loss": "labels" if isinstance(study.task, LabelTask) else "output",
        **about(data),
    }

    def take(label: str, progress: Progress) -> Mapping[str, Array]:
        return mean_powers(study, Batches(data, evidence.batch, progress, label), evidence.power)

    return GradientSource(study, take, asked, cautions(data), first_feed(data), evidence.smoothed)


def open_study(
    file: Model,
    weights: Sequence[str],
    options: GradientSamples,
    batch: int = 1,
    progress: Progress = no_progress,
) -> tuple[GradientStudy, Dataset]:
    """A study of a model by some of its weights, and the samples for it, `batch` of them in a run.

    Args:
        file: the model, whose `ir` may be a working form of what is at its path.
    Raises:
        PruneError: as `open_source`.
    """
    if options.data is None:
        raise PruneError("gradients are measured on data", "give --data, or use --criterion synflow, which needs none")
    session = options.execution.open(file.path)
    data = calibration_samples(
        file, options.data, options.samples, options.seed, options.dims, options.execution, progress
    )
    first = next(data.batches(batch))
    task = _task(session, data, first, options)
    study = GradientStudy(file, weights, task, options.execution.thread_count, options.seed)
    study.open(first.feed)
    return study, data


def _task(session: Session, data: Dataset, first: Batch, options: GradientSamples) -> GradientTask:
    outputs = session.run(first.feed)
    if options.loss == "labels":
        if not data.has_labels:
            raise PruneError(f"--loss labels: {data.source} has no labels", "give labels, or --loss output")
        objective = choose_objective(data, outputs, None, ObjectiveOptions(output_name=options.output_name))
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
    study = GradientStudy(file, names, FlowTask(tuple(outputs)), options.execution.thread_count)
    study.open(ones)

    def take(label: str, progress: Progress) -> Mapping[str, Array]:
        return flow(study, ones, others)

    return GradientSource(study, take, {"samples": 0})
