"""Setting up training for a model: gradient model, parameters, objective, batches, and a judge of the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunecli.autodiff import DifferentiationOptions as GradientOptions
from prunecli.autodiff import GradientModel, differentiate
from prunecli.autodiff.losses import MeanSquaredError
from prunecli.calibration.objective import Objective, ObjectiveOptions, choose_objective, is_distribution
from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.passes import BASELINE, MODEL, Asked, Runner, run_pass
from prunecli.model import Model
from prunecli.model.constants import Holder, holders
from prunecli.options.training import FinetuneOptions
from prunecli.runtime import Session
from prunecli.training.parameters import Parameters, put, trainable
from prunecli.training.supply import Supply, Teacher, check_trainable
from prunecli.training.trainer import Stepper, Trainer

Array = np.ndarray[Any, Any]
SMALLEST_STATISTICS = 8  # samples in a batch below which its statistics are too noisy to normalise by


@dataclass(frozen=True)
class Training:
    """A trainer ready to run, and how to put what it learned into the model."""

    model: Model
    trainer: Trainer
    graph: GradientModel
    shapes: Mapping[str, tuple[int, ...]]
    notes: list[str]

    def store(self) -> None:
        """Put weights and statistics into the model."""
        store(self.model, self.trainer.parameters, self.trainer.statistics)

    @property
    def score_name(self) -> str:
        """What the validation part is judged by."""
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
        data: of the model's inputs, for training; `validation` judges the weights after each epoch.
        teacher: a session that answers in the model's names.
    Raises:
        PruneError: nothing to train, data or labels that do not fit, an operator without a gradient.
    """
    batch_size = check_trainable(data, options.batch_size)
    run_size, threads = data.fixed_batch or batch_size, options.execution.thread_count
    first = next(data.take(run_size).batches(run_size))
    outputs = Session.open(model.ir, threads=threads).run(first.feed)
    told = teacher.session.run(teacher.feed(first.feed)) if teacher is not None else None
    named = {ours: told[own] for ours, own in teacher.outputs.items()} if teacher and told else None
    objective = choose_objective(data, outputs, named, objective_options(options))
    shapes = {name: tuple(a.shape) for name, a in first.feed.items()}
    left: dict[str, str] = {}
    try:
        graph, parameters = _build(model, objective, shapes, options, run_size)
    except PruneError:
        left = _without_gradient(model, objective.imitated, shapes, options)
        if len(left) in (0, len(objective.imitated)):
            raise
        kept = {name: value for name, value in outputs.items() if name not in left}
        objective = choose_objective(data, kept, named, objective_options(options))
        graph, parameters = _build(model, objective, shapes, options, run_size)
    _check_logits(objective, outputs[objective.output], graph)
    ask = _ask(teacher, objective.imitated) if teacher is not None else None
    supply = Supply(data, objective, batch_size, outputs[objective.output], options, teacher=ask)
    score = None
    if validation is not None:
        score = _Judge(model, parameters, objective, validation, options, teacher=teacher).score
    trainer = Trainer(Stepper(graph, parameters, threads), supply, options, score)
    trainer.begin({n: _holder(model, n).tensor.numpy().astype(np.float32) for n in graph.statistics})
    notes = [f"the output {name} is not imitated: {reason}" for name, reason in left.items()]
    return Training(model, trainer, graph, shapes, [*_notes(graph, batch_size, options), *notes])


def _without_gradient(
    model: Model, outputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]], options: FinetuneOptions
) -> dict[str, str]:
    """Which of several outputs cannot be imitated, and why."""
    names, found = [w.name for w in trainable(model, options.freeze)], {}
    for name in outputs if len(outputs) > 1 else ():
        try:
            differentiate(model.ir, names, MeanSquaredError(name), shapes=shapes)
        except PruneError as error:
            found[name] = error.message
    return found


def _build(
    model: Model, objective: Objective, shapes: Mapping[str, tuple[int, ...]], options: FinetuneOptions, run_size: int
) -> tuple[GradientModel, Parameters]:
    weights = trainable(model, options.freeze)
    norm = any(node.op_type == "BatchNormalization" for node in model.ir.graph)
    update = options.bn == "update" or (options.bn == "auto" and norm and run_size >= SMALLEST_STATISTICS)
    how = GradientOptions(weights_as_inputs=True, batch_statistics=update)
    graph = differentiate(model.ir, [w.name for w in weights], objective.loss, shapes=shapes, options=how)
    reached = [w for w in weights if w.name in graph.gradients]
    if not reached:
        raise PruneError("the loss depends on no trainable tensor", "choose another --output-name")
    if graph.unreached:  # they would be inputs nobody reads
        names = [w.name for w in reached]
        graph = differentiate(model.ir, names, objective.loss, shapes=shapes, options=how)
    return graph, Parameters(reached)


def _check_logits(objective: Objective, output: Array, graph: GradientModel) -> None:
    """A cross entropy of probabilities taken for logits hardly moves: refuse it."""
    scores = objective.reading is not None and objective.reading.kind == "scores"
    if scores and not graph.before_end and is_distribution(output, -1):
        raise PruneError(
            f"{objective.output} holds probabilities, but no final Softmax was found to take the logits before it",
            "choose the logits with --output-name, or export the model with them as an output",
        )


def _notes(graph: GradientModel, batch_size: int, options: FinetuneOptions) -> list[str]:
    notes = list(graph.notes)
    if graph.statistics:
        notes.append("BatchNormalization used each batch's statistics and updated the stored ones")
    if batch_size != options.batch_size:
        notes.append(f"the batch size was {batch_size} (asked for {options.batch_size})")
    return notes


def _ask(teacher: Runner, outputs: Sequence[str]) -> Teacher:
    own = {name: teacher.outputs.get(name, name) for name in outputs}

    def answer(feed: Mapping[str, Array]) -> dict[str, Array]:
        told = teacher.session.run(teacher.feed(dict(feed)), list(own.values()))
        return {name: told[its] for name, its in own.items()}

    return answer


@dataclass(frozen=True)
class _Judge:
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
        asked = Asked(output_name=self.options.output_name)
        if self.objective.reading is None and self.teacher is not None:
            own = {name: self.teacher.outputs.get(name, name) for name in self.objective.imitated}
            pair = {MODEL: replace(runners[MODEL], outputs={name: name for name in own}),
                    BASELINE: replace(self.teacher, outputs=own)}  # fmt: skip
            done = run_pass(pair, self.data, self.options.batch_size, asked)
            assert done.fidelity is not None
            ratios = [done.fidelity.outputs[name]["snr_db"] for name in self.objective.imitated]
            known = [snr for snr in ratios if snr is not None and not math.isnan(snr)]
            return mean_ratio(known)
        done = run_pass(runners, self.data, self.options.batch_size, asked)
        return float(done.predictions[MODEL].goodness().mean())


def mean_ratio(decibels: Sequence[float]) -> float:
    """-10 log10 of the mean of noise over signal, from their signal-to-noise ratios in dB: one that is infinite leaves
    the others their say."""
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
    return ObjectiveOptions(o.smoothing, o.soft_labels, o.temperature, o.alpha, o.output_name)
