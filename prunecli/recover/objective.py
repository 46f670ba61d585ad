"""What training minimises: the loss that fits the labels and the model's output, a teacher's, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.autodiff.losses import BinaryCrossEntropy, CrossEntropy, Distillation, Loss, MeanSquaredError, Weighted
from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.reading import IGNORED, Reading, choose_reading, float_outputs

Array = np.ndarray[Any, Any]
LABELS, TEACHER = "prune/labels", "prune/teacher"


@dataclass(frozen=True)
class ObjectiveOptions:
    """smoothing: of labels (Szegedy et al. 2016). soft: labels become distributions (mixup needs it).
    temperature and alpha: loss = (1 - alpha) hard + alpha T^2 KL(teacher || student) (Hinton et al. 2015)."""

    smoothing: float = 0.0
    soft: bool = False
    temperature: float = 4.0
    alpha: float = 0.9
    output_name: str | None = None


@dataclass(frozen=True)
class Objective:
    """`loss` for the gradient model; `output` it judges; `reading` of the labels, None with a teacher alone."""

    loss: Loss
    output: str
    reading: Reading | None
    soft: bool
    needs_logits: bool

    def targets(self, labels: Array | None, like: Array) -> dict[str, Array]:
        """The loss's own inputs for a batch of labels; `like`: an output of the model of that batch size."""
        if self.reading is None or labels is None:
            return {}
        truth = self.reading.truth(labels) if not self.reading.one_hot else labels
        if self.reading.kind == "scores":
            return {LABELS: self._classes(truth, like)}
        return {LABELS: truth.astype(np.float32).reshape(like.shape)}

    def _classes(self, truth: Array, like: Array) -> Array:
        assert self.reading is not None
        if self.reading.one_hot:
            return truth.astype(np.float32).reshape(like.shape)
        axis = self.reading.axis % like.ndim
        shape = (*like.shape[:axis], *like.shape[axis + 1 :])
        index = truth.astype(np.int64).reshape(shape)
        if not self.soft:
            return index
        classes = np.arange(like.shape[axis]).reshape([-1 if a == axis else 1 for a in range(like.ndim)])
        return np.asarray(np.expand_dims(index, axis) == classes, np.float32)


def choose_objective(
    data: Dataset,
    outputs: Mapping[str, Array],
    teacher: Mapping[str, Array] | None,
    options: ObjectiveOptions,
) -> Objective:
    """The objective for labelled data, a teacher, or both.

    Args:
        outputs: of the model for a first batch. teacher: the teacher's for the same batch, by the same names.
    Raises:
        PruneError: neither labels nor teacher; labels that fit no output; an output without a gradient.
    """
    labels = data.labels
    if labels is None and teacher is None:
        raise PruneError(f"{data.source} has no labels", "give labels, or --teacher ORIGINAL.onnx to learn from")
    if labels is None:
        return _from_teacher(outputs, options)
    reading = _reading(data, labels, outputs, options.output_name)
    hard = _hard_loss(reading, outputs[reading.output], options)
    soft = options.soft or reading.one_hot
    if teacher is None:
        return Objective(hard, reading.output, reading, soft, reading.kind == "scores")
    imitation = _imitation(reading, teacher[reading.output], options)
    both = Weighted(((1 - options.alpha, hard), (options.alpha, imitation)))
    return Objective(both, reading.output, reading, soft, reading.kind == "scores")


def _reading(data: Dataset, labels: Array, outputs: Mapping[str, Array], output_name: str | None) -> Reading:
    try:
        return choose_reading(labels, outputs, "auto", output_name, data.classes)
    except PruneError as error:
        if labels.dtype.kind == "f" and (labels % 1 != 0).any():
            problem = error.message.replace("labels of", "labels with fractions, of", 1)
            raise PruneError(
                problem, "classes are whole numbers from 0; other targets have an output's shape"
            ) from error
        raise PruneError(error.message, error.hint.split("; --task")[0]) from error


def _from_teacher(outputs: Mapping[str, Array], options: ObjectiveOptions) -> Objective:
    floats = float_outputs(outputs)
    name = options.output_name or (floats[0] if floats else None)
    if name is None or name not in floats:
        raise PruneError("the model has no floating-point output to imitate", "choose one with --output-name")
    return Objective(MeanSquaredError(name, TEACHER), name, None, False, False)


def _hard_loss(reading: Reading, output: Array, options: ObjectiveOptions) -> Loss:
    if reading.kind == "numbers":
        return MeanSquaredError(reading.output, LABELS)
    if reading.kind == "binary":
        return BinaryCrossEntropy(reading.output, LABELS)
    if reading.kind == "classes":
        raise PruneError(
            f"the output {reading.output} names classes, which has no gradient",
            "choose the scores with --output-name, or export the model without its ArgMax",
        )
    _check_class_axis(reading, output)
    soft = options.soft or reading.one_hot
    ignore = IGNORED if output.ndim > 2 and not soft else None
    return CrossEntropy(reading.output, LABELS, options.smoothing, soft, ignore)


def _check_class_axis(reading: Reading, output: Array) -> None:
    wanted = 1 if output.ndim >= 4 else output.ndim - 1
    if reading.axis % output.ndim != wanted:
        raise PruneError(
            f"the classes of {reading.output} lie along axis {reading.axis % output.ndim} of {output.ndim}",
            "training takes (N, C), (N, T, C) and (N, C, H, W)",
        )


def _imitation(reading: Reading, output: Array, options: ObjectiveOptions) -> Loss:
    if reading.kind == "numbers":
        return MeanSquaredError(reading.output, TEACHER)
    if reading.kind == "binary":
        return BinaryCrossEntropy(reading.output, TEACHER)
    return Distillation(reading.output, TEACHER, options.temperature, is_distribution(output, reading.axis))


def is_distribution(output: Array, axis: int) -> bool:
    """Whether scores are probabilities already."""
    total = output.astype(np.float64).sum(axis=axis)
    return bool((output >= 0).all() and np.abs(total - 1).max(initial=0) < 1e-2)
