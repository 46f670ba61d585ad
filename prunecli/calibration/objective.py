"""What training minimises: the loss that fits the labels and the model's output, a teacher's, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunecli.arrays import Array
from prunecli.autodiff.losses import BinaryCrossEntropy, CrossEntropy, Distillation, Loss, MeanSquaredError, Weighted
from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import LogitMoments, are_scores
from prunecli.evaluation.reading import IGNORED, Reading, UnansweredLabelsError, choose_reading, float_outputs

LABELS, TEACHER = "prune/labels", "prune/teacher/"


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
    """`loss` for the gradient model; `output` it judges; `reading` of the labels, None with a teacher alone;
    `imitated`: outputs that are compared with the teacher's, `features`: hidden values that are, too. `ignoring`: some
    labels are IGNORED."""

    loss: Loss
    output: str
    reading: Reading | None
    soft: bool
    imitated: tuple[str, ...] = ()
    ignoring: bool = False
    features: tuple[str, ...] = ()

    @property
    def outputs(self) -> list[str]:
        """What the loss is of, without repetition."""
        return list(dict.fromkeys([self.output, *self.imitated]))

    def targets(self, labels: Array | None, like: Array) -> dict[str, Array]:
        """The loss's own inputs for a batch of labels; `like`: an output of the model of that batch size."""
        if self.reading is None or labels is None:
            return {}
        truth = self.reading.truth(labels) if not self.reading.one_hot else labels
        if self.reading.kind == "scores":
            return {LABELS: self._classes(truth, like)}
        return {LABELS: self._uncounted(truth.astype(np.float32), truth).reshape(like.shape)}

    def answers(self, told: Mapping[str, Array], labels: Array | None) -> dict[str, Array]:
        """The teacher's outputs as the loss's inputs; NaN where the label says not to count."""
        found = {TEACHER + name: np.asarray(told[name], np.float32) for name in (*self.imitated, *self.features)}
        if self.ignoring and self.reading is not None and labels is not None:
            answer, truth = found[TEACHER + self.output], self.reading.truth(labels)
            spread = np.expand_dims(truth, self.reading.axis) if self.reading.kind == "scores" else truth
            shape = [1 if self.reading.kind == "scores" and axis == self.reading.axis % answer.ndim else size
                     for axis, size in enumerate(answer.shape)]  # fmt: skip
            found[TEACHER + self.output] = self._uncounted(answer, spread.reshape(shape))
        return found

    def _uncounted(self, target: Array, truth: Array) -> Array:
        """NaN, which the losses leave out and mixtures keep, where the label is IGNORED."""
        return np.asarray(np.where(truth == IGNORED, np.float32("nan"), target)) if self.ignoring else target

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
        index = np.expand_dims(index, axis)
        return self._uncounted(np.asarray(index == classes, np.float32), index)


def choose_objective(
    data: Dataset,
    outputs: Mapping[str, Array],
    teacher: Mapping[str, Array] | None,
    options: ObjectiveOptions,
    heads: Mapping[str, bool] | None = None,
) -> Objective:
    """The objective for labelled data, a teacher, or both.

    Args:
        outputs: of the model for a first batch. teacher: the teacher's for the same batch, by the same names. heads: of
            `heads_of`, by which logits are told.
    Raises:
        PruneError: neither labels nor teacher; labels that fit no output; an output without a gradient.
    """
    labels = data.labels
    if labels is None and teacher is None:
        raise PruneError(f"{data.source} has no labels", "give labels, or --teacher ORIGINAL.onnx to learn from")
    if labels is None:
        names = _imitated(outputs, options.output_name)
        return Objective(
            _alone(names, teacher or {}, options, heads=heads or {}), names[0], None, soft=False, imitated=names
        )
    reading = _reading(data, labels, outputs, output_name=options.output_name)
    ignoring = reading.kind in ("scores", "binary") and labels.dtype.kind != "U" and bool((labels == IGNORED).any())
    if ignoring and (labels == IGNORED).all():
        raise PruneError(f"every label is {IGNORED}, which says not to count it", "check the labels")
    hard = _hard_loss(reading, outputs[reading.output], options, ignoring=ignoring)
    made = Objective(hard, reading.output, reading, soft=options.soft or reading.one_hot, ignoring=ignoring)
    if teacher is None:
        return made
    main = _imitation(reading, teacher[reading.output], options, ignoring=ignoring)
    others = tuple(n for n in _imitated(outputs, options.output_name) if n != reading.output)
    terms = [(1 - options.alpha, hard), (options.alpha, main)]
    terms += [(options.alpha, _squares(others, teacher))] if others else []
    return replace(made, loss=Weighted(tuple(terms)), imitated=(reading.output, *others))


def answers(data: Dataset, outputs: Mapping[str, Array], output_name: str | None) -> bool:
    """Whether the data have labels that an output answers, at least in form; boxes, texts and the like are others."""
    try:
        return data.labels is not None and _reading(data, data.labels, outputs, output_name=output_name) is not None
    except UnansweredLabelsError:
        return False


def with_features(made: Objective, told: Mapping[str, Array], weight: float) -> Objective:
    """The objective plus `weight` times the mean over hidden values of the squared difference from the teacher's, each
    over its variance (FitNets, Romero et al. 2015).

    Args:
        told: the teacher's hidden values for a first batch, by the model's names.
    """
    terms: list[tuple[float, Loss]] = [(1.0, made.loss)]
    for name, value in told.items():
        spread = float(np.square(value - value.mean(0), dtype=np.float64).mean()) if value.ndim else 0.0
        scale = 1 / spread if 1e-20 < spread < 1e20 else 1.0
        terms.append((weight * scale / len(told), MeanSquaredError(name, TEACHER + name)))
    return replace(made, loss=Weighted(tuple(terms)), features=tuple(told))


def _imitated(outputs: Mapping[str, Array], name: str | None) -> tuple[str, ...]:
    """The floating-point outputs, or the one that was named."""
    floats = float_outputs(outputs)
    if not floats or name not in (None, *floats):
        raise PruneError("the model has no floating-point output to imitate", "choose one with --output-name")
    return tuple(floats) if name is None else (name,)


def _alone(
    names: Sequence[str], teacher: Mapping[str, Array], options: ObjectiveOptions, heads: Mapping[str, bool]
) -> Loss:
    """What is learned from a teacher alone: of probabilities the divergence, whose gradient does not vanish where the
    teacher is sure, of other outputs the squared difference, and of logits both: squares alone shrink the few that are
    large, which decide. T^2 KL tends to half the mean square of the centred difference for a large T, and is scaled as
    squares are."""
    sure = [name for name in names if _is_classes(teacher[name])]
    others = [name for name in names if name not in sure]
    logits = [name for name in others if _are_logits(name, teacher[name], heads)]
    weights = dict.fromkeys(sure, 1.0) | {name: _over_power(teacher[name]) for name in logits}
    terms: list[tuple[float, Loss]] = [
        (weight, Distillation(name, TEACHER + name, options.temperature, probabilities=name in sure))
        for name, weight in weights.items()
    ]
    return Weighted((*terms, *([(1.0, _squares(others, teacher))] if others else [])))


def _are_logits(name: str, output: Array, heads: Mapping[str, bool]) -> bool:
    """Whether an output is scores of classes that no Softmax follows."""
    found = are_scores(name, output)
    if found is None and name in heads:
        moments = LogitMoments(heads[name])
        moments.add(output.astype(np.float64))
        found = moments.of_logits
    return bool(found)


def _is_classes(output: Array) -> bool:
    """Whether an output holds probabilities of several classes, where the losses look for classes."""
    axis = 1 if output.ndim >= 4 else output.ndim - 1
    return output.ndim >= 2 and output.shape[axis] > 1 and is_distribution(output, axis)


def _squares(names: Sequence[str], teacher: Mapping[str, Array]) -> Loss:
    """The sum of the mean squared differences, each over the teacher's mean square, so that all outputs count alike."""
    return Weighted(tuple((_over_power(teacher[name]), MeanSquaredError(name, TEACHER + name)) for name in names))


def _over_power(values: Array) -> float:
    """1 over the mean square; 1 where that is next to nothing."""
    size = float(np.square(values, dtype=np.float64).mean())
    return 1 / size if 1e-20 < size < 1e20 else 1.0


def _reading(data: Dataset, labels: Array, outputs: Mapping[str, Array], output_name: str | None) -> Reading:
    scores = {} if output_name is not None else {name: outputs[name] for name in float_outputs(outputs)}
    return choose_reading(labels, scores or outputs, None, output_name=output_name, classes=data.classes)


def _hard_loss(reading: Reading, output: Array, options: ObjectiveOptions, ignoring: bool) -> Loss:
    if reading.kind == "numbers":
        return MeanSquaredError(reading.output, LABELS)
    if reading.kind == "binary":
        return BinaryCrossEntropy(reading.output, LABELS, masked=ignoring)
    if reading.kind == "classes":
        raise PruneError(
            f"the output {reading.output} names classes, which has no gradient",
            "choose the scores with --output-name, or export the model without its ArgMax",
        )
    _check_class_axis(reading, output)
    soft = options.soft or reading.one_hot
    return CrossEntropy(
        reading.output, LABELS, options.smoothing, soft=soft, ignore=IGNORED if ignoring else None, masked=ignoring
    )


def _check_class_axis(reading: Reading, output: Array) -> None:
    wanted = 1 if output.ndim >= 4 else output.ndim - 1
    if reading.axis % output.ndim != wanted:
        raise PruneError(
            f"the classes of {reading.output} lie along axis {reading.axis % output.ndim} of {output.ndim}",
            "training takes (N, C), (N, T, C) and (N, C, H, W)",
        )


def _imitation(reading: Reading, output: Array, options: ObjectiveOptions, ignoring: bool) -> Loss:
    name, told = reading.output, TEACHER + reading.output
    if reading.kind == "numbers":
        return MeanSquaredError(name, told)
    if reading.kind == "binary":
        return BinaryCrossEntropy(name, told, bool(((output < 0) | (output > 1)).any()), masked=ignoring)
    return Distillation(
        name, told, options.temperature, probabilities=is_distribution(output, reading.axis), masked=ignoring
    )


def is_distribution(output: Array, axis: int) -> bool:
    """Whether scores are probabilities already."""
    total = output.astype(np.float64).sum(axis=axis)
    return bool((output >= 0).all() and np.abs(total - 1).max(initial=0) < 1e-2)
