"""Set up training for a model: gradient model, parameters, objective, batches, and validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from prunecli.arrays import Array, without
from prunecli.autodiff import DifferentiationOptions as GradientOptions
from prunecli.autodiff import GradientModel, differentiate
from prunecli.autodiff.losses import MeanSquaredError
from prunecli.calibration.objective import (
    Objective,
    ObjectiveOptions,
    answers,
    choose_objective,
    is_distribution,
    with_features,
)
from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import heads_of
from prunecli.evaluation.passes import BASELINE, MODEL, ReadingOptions, Runner, data_dims, run_pass
from prunecli.evaluation.robustness import is_image
from prunecli.model import Model, concrete_shapes, count_macs, load
from prunecli.model.constants import Holder, holders
from prunecli.model.shapes import input_specs
from prunecli.options.training import BATCH, FEW, SMALL_BATCH, TAUGHT_BATCH, FinetuneOptions
from prunecli.runtime import Session
from prunecli.training.blocks import block_ends
from prunecli.training.exchange import MovingMasks, movable
from prunecli.training.hyperparameters import Hyperparameters, settle, tuned
from prunecli.training.parameters import Parameters, put, trainable
from prunecli.training.supply import Supply, check_trainable, size_of_run
from prunecli.training.trainer import Score, Stepper, Steppers, Trainer
from prunecli.types import Progress, no_progress

SMALLEST_STATISTICS = 8  # samples in a batch below which its statistics are too noisy to normalise by


@dataclass(frozen=True)
class Training:
    """A trainer ready to run, and the model that it writes to."""

    model: Model
    trainer: Trainer
    graph: GradientModel
    shapes: Mapping[str, tuple[int, ...]]
    notes: list[str]

    def store(self) -> None:
        """Put weights and statistics into the model."""
        store(self.model, self.trainer.parameters, self.trainer.statistics)

    def tune(self, progress: Progress = no_progress) -> None:
        """Choose options that are left open by short runs, if there is validation data."""
        trainer = self.trainer
        taught = trainer.supply.teacher is not None and trainer.supply.data.labels is None
        if trainer.score is None or not taught or trainer.at.first_score == math.inf:
            return
        images = any(is_image(array) for array in next(trainer.supply.data.take(1).batches(1)).feed.values())

        def score(hyper: Hyperparameters) -> float:
            steps = hyper.trial().epochs * trainer.supply.steps
            bar: Iterator[int] = progress(iter(range(steps)), "trying a short run", steps)
            found = trainer.short(hyper, lambda _: next(bar, None))
            for _ in bar:
                pass
            return found

        best = tuned(trainer.hyper, trainer.options, images, score=score)
        trainer.at.tuned, trainer.at.hyper = trainer.options.rate is None, asdict(best)

    @property
    def score_name(self) -> str:
        """The name of the validation score."""
        reading = self.trainer.supply.objective.reading
        if reading is None:
            return "signal-to-noise ratio (dB)"
        return "negative mean absolute error" if reading.regression else "accuracy"


def prepare_training(
    model: Model,
    data: Dataset,
    validation: Dataset | None,
    options: FinetuneOptions,
    teacher: Runner | None = None,
) -> Training:
    """Everything for `Training.trainer.run()`.

    Args:
        model: its weights are read now and written by `store`.
        data: of the model's inputs, for training; `validation` scores the weights after each epoch. With a teacher,
            labels that no output answers, as of boxes, are not read.
        teacher: a session that answers in the model's names.
    Raises:
        PruneError: nothing to train, data or labels that do not fit, an operator without a gradient.
    """
    few = SMALL_BATCH if teacher is None or data.labels is not None else TAUGHT_BATCH
    asked = options.batch_size or (few if len(data) < FEW else BATCH)
    batch_size = check_trainable(data, asked)
    run_size, threads = size_of_run(batch_size, data.fixed_batch, model), options.execution.thread_count
    first = next(data.take(run_size).batches(run_size))
    outputs = Session.open(model.ir, threads=threads).run(first.feed)
    unread = teacher is not None and data.labels is not None and not answers(data, outputs, options.output_name)
    if unread:
        data, validation = data.without_labels(), None if validation is None else validation.without_labels()
    alone, work = teacher is not None and data.labels is None, _work(model, data)
    hyper = settle(options, len(data) // batch_size, alone, work=work)
    imitation = _Imitation.of(model, teacher, hyper, options=options, feed=first.feed)
    told = imitation.answer(first.feed, list(imitation.runner.outputs)) if imitation else None
    heads = heads_of(model.ir.graph)
    objective = choose_objective(data, outputs, told, options=objective_options(options), heads=heads)
    shapes = {name: tuple(a.shape) for name, a in first.feed.items()}
    build = _LossGradients(model, shapes, options, batch_size=batch_size, run_size=run_size)
    left: dict[str, str] = {}
    try:
        graph, parameters = build.first(objective)
    except PruneError:
        left = build.without_gradient(objective.imitated)
        if len(left) in (0, len(objective.imitated)):
            raise
        kept = {name: value for name, value in outputs.items() if name not in left}
        objective = choose_objective(data, kept, told, options=objective_options(options), heads=heads)
        graph, parameters = build.first(objective)
    _check_logits(objective, outputs[objective.output], graph)
    hidden = imitation.answer(first.feed, imitation.hidden) if imitation else {}
    steppers, objective = build.with_features(graph, parameters, objective, told=hidden, hyper=hyper)
    ask = None if imitation is None else partial(imitation.answer, names=[*objective.imitated, *objective.features])
    supply = Supply(
        data, objective, batch_size, run_size=run_size, like=outputs[objective.output], seed=options.seed, teacher=ask
    )
    score = None
    if validation is not None:
        score = _Validation(model, parameters, objective, data=validation, options=options, teacher=teacher).score
    moving = MovingMasks(options.exchange, options.pattern, movable(parameters, options.masked))
    trainer = Trainer(
        steppers, supply, options, hyper=hyper, score=score, moving=moving if score and moving.names else None
    )
    trainer.begin({n: _holder(model, n).tensor.numpy().astype(np.float32) for n in graph.statistics})
    notes = [f"the output {name} is not imitated: {reason}" for name, reason in left.items()]
    notes += ["the labels fit no output and are not read: the teacher alone is learned from"] if unread else []
    return Training(model, trainer, graph, shapes=shapes, notes=[*_notes(graph, batch_size, asked), *notes])


def _work(model: Model, data: Dataset) -> int:
    """Return the multiply-accumulates of one pass over the data; 0 where unknown."""
    one = concrete_shapes(model, data_dims(data, {}, input_specs(model.ir)))
    return len(data) * (count_macs(model, one).total or 0)


@dataclass(frozen=True)
class _Imitation:
    """A teacher: its outputs, and the values between its blocks that the model has, too, without the positions that the
    model has lost."""

    runner: Runner
    session: Session
    hidden: tuple[str, ...]
    removed: Mapping[str, Mapping[int, Array]]

    @classmethod
    def of(
        cls, model: Model, teacher: Runner | None, hyper: Hyperparameters, options: FinetuneOptions,
        feed: Mapping[str, Array],
    ) -> _Imitation | None:  # fmt: skip
        """Return the teacher; with hidden values if asked for, where both have values of one name and shape that have
        gradients."""
        if teacher is None:
            return None
        plain = cls(teacher, teacher.session, (), removed=options.removed)
        if options.teacher_path is None or not (hyper.features or hyper.blocks):
            return plain
        matrices = [w.name for w in trainable(model, options.freeze) if w.kind == "weight"]
        known = {value.name for node in load(options.teacher_path).ir.graph for value in node.outputs}
        known -= {value.name for value in model.ir.graph.outputs}  # those are imitated anyway
        ends = tuple(name for name in block_ends(model.ir, matrices) if name in known)
        if not ends:
            return plain
        start = partial(Session.open, threads=options.execution.thread_count, outputs=ends)
        found = replace(plain, session=start(options.teacher_path, provider=options.execution.provider), hidden=ends)
        theirs, ours = found.answer(feed, ends), start(model.ir).run(feed, ends)
        alike = tuple(n for n in ends if theirs[n].shape == ours[n].shape and np.issubdtype(ours[n].dtype, np.floating))
        return replace(found, hidden=alike)

    def answer(self, feed: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Outputs and hidden values by the model's names."""
        if not names:
            return {}
        own = [self.runner.outputs.get(name, name) for name in names]
        told = self.session.run(self.runner.feed(dict(feed)), own)
        return {name: without(told[its], self.removed.get(name, {})) for name, its in zip(names, own, strict=True)}


@dataclass(frozen=True)
class _LossGradients:
    """Gradient models of one model at given shapes."""

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    options: FinetuneOptions
    batch_size: int
    run_size: int

    def first(self, objective: Objective) -> tuple[GradientModel, Parameters]:
        """Return the gradients of the objective on the outputs, by all parameters that it depends on."""
        weights = trainable(self.model, self.options.freeze)
        graph = self._graph([w.name for w in weights], objective)
        reached = [w for w in weights if w.name in graph.gradients]
        if not reached:
            raise PruneError("the loss depends on no trainable tensor", "choose another --output-name")
        if graph.unreached:  # they would be unread inputs
            graph = self._graph([w.name for w in reached], objective)
        return graph, Parameters(reached)

    def _graph(self, names: Sequence[str], objective: Objective, detached: Sequence[str] = ()) -> GradientModel:
        norm = any(node.op_type == "BatchNormalization" for node in self.model.ir.graph)
        enough = norm and self.batch_size >= SMALLEST_STATISTICS
        update = self.options.bn == "update" or (self.options.bn == "auto" and enough and objective.reading is not None)
        how = GradientOptions(weights_as_inputs=True, batch_statistics=update, detached=tuple(detached))
        return differentiate(self.model.ir, names, objective.loss, shapes=self.shapes, options=how)

    def without_gradient(self, outputs: Sequence[str]) -> dict[str, str]:
        """Return the outputs that cannot be imitated, and why."""
        names, found = [w.name for w in trainable(self.model, self.options.freeze)], {}
        for name in outputs if len(outputs) > 1 else ():
            try:
                differentiate(self.model.ir, names, MeanSquaredError(name), shapes=self.shapes)
            except PruneError as error:
                found[name] = error.message
        return found

    def with_features(
        self, graph: GradientModel, parameters: Parameters, objective: Objective, told: Mapping[str, Array],
        hyper: Hyperparameters,
    ) -> tuple[Steppers, Objective]:  # fmt: skip
        """Return the losses of the run: of outputs and hidden values, and of each block where blocks learn alone."""
        threads, replicas = self.options.execution.thread_count, self.batch_size // self.run_size
        start = partial(Stepper, parameters=parameters, threads=threads, replicas=replicas)
        if not told:
            return Steppers(start(graph)), objective
        names = [item.name for item in parameters.items]
        both = with_features(objective, told, hyper.features or 1.0)
        whole = self._graph(names, both) if hyper.features else graph
        alone = start(self._graph(names, both, detached=list(told))) if hyper.blocks else None
        return Steppers(start(whole), alone), both


def _check_logits(objective: Objective, output: Array, graph: GradientModel) -> None:
    """Refuse probabilities that are taken for logits: their cross entropy hardly changes."""
    scores = objective.reading is not None and objective.reading.kind == "scores"
    if scores and not graph.before_end and is_distribution(output, -1):
        raise PruneError(
            f"{objective.output} holds probabilities, but no final Softmax was found to take the logits before it",
            "choose the logits with --output-name, or export the model with them as an output",
        )


def _notes(graph: GradientModel, batch_size: int, asked: int) -> list[str]:
    notes = list(graph.notes)
    if graph.statistics:
        notes.append("BatchNormalization used each batch's statistics and updated the stored ones")
    if batch_size != asked:
        notes.append(f"the batch size was {batch_size} (asked for {asked})")
    return notes


@dataclass(frozen=True)
class _Validation:
    """Scores the present parameters on held-out data, higher is better: mean goodness with labels, else the
    signal-to-noise ratio to the teacher in dB: that of the mean of noise over signal, of the outputs imitated."""

    model: Model
    parameters: Parameters
    objective: Objective
    data: Dataset
    options: FinetuneOptions
    teacher: Runner | None

    def score(self, statistics: Mapping[str, Array]) -> float:
        store(self.model, self.parameters, statistics)
        runners = {MODEL: Runner(Session.open(self.model.ir, threads=self.options.execution.thread_count))}
        asked = ReadingOptions(output_name=self.options.output_name)
        if self.objective.reading is None and self.teacher is not None:
            own = {name: self.teacher.outputs.get(name, name) for name in self.objective.imitated}
            pair = {MODEL: replace(runners[MODEL], outputs={name: name for name in own}),
                    BASELINE: replace(self.teacher, outputs=own)}  # fmt: skip
            done = run_pass(pair, self.data, BATCH, asked=asked)
            assert done.fidelity is not None
            ratios = [done.fidelity.outputs[name]["snr_db"] for name in self.objective.imitated]
            known = [snr for snr in ratios if snr is not None and not math.isnan(snr)]
            return mean_ratio(known)
        done = run_pass(runners, self.data, BATCH, asked=asked)
        found = done.predictions[MODEL]
        score = float(found.goodness().mean())
        return score if found.log_prob is None else Score.of(score, float(found.log_prob.mean()))


def mean_ratio(decibels: Sequence[float]) -> float:
    """Return -10 log10 of the mean of noise over signal, from signal-to-noise ratios in dB. Infinite ones count as no
    noise."""
    with np.errstate(over="ignore", divide="ignore"):
        return float(-10 * np.log10(np.mean(10 ** (-np.asarray(decibels) / 10)))) if decibels else -math.inf


def store(model: Model, parameters: Parameters, statistics: Mapping[str, Array]) -> None:
    """Put trained values into the model's own tensors, in their types."""
    parameters.store()
    for name, array in statistics.items():
        put(_holder(model, name), array)


def _holder(model: Model, name: str) -> Holder:
    return next(h for h in holders(model.ir) if h.name == name and h.graph is model.ir.graph)


def objective_options(options: FinetuneOptions) -> ObjectiveOptions:
    o = options
    return ObjectiveOptions(o.smoothing, o.soft_labels, o.temperature, alpha=o.alpha, output_name=o.output_name)
