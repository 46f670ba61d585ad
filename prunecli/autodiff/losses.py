"""Losses as nodes on the model's logits. Each is a small frozen dataclass with a formula and a `build`.

z are logits, y outputs, t targets; every loss is a mean over samples (and positions), so its scale does not depend
on the batch size. A Softmax or Sigmoid at the model's end is seen through, because the loss of its input is exact
where the loss of its result would round to log(0).

Losses with `masked` take NaN in their targets for "not counted": the mean is over the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.forward import Forward
from prunecli.autodiff.ops import Ops
from prunecli.errors import PruneError
from prunecli.model.shape_inference import Shape
from prunecli.operators import operator_of

Value = ir.Value


class Loss(Protocol):
    """What `differentiate` needs of a loss."""

    def build(self, scope: LossScope) -> Value:
        """Append the loss to the graph; returns its scalar."""
        ...


@dataclass
class LossScope:
    """A loss's view of the model: its outputs, and a way to ask for further inputs (labels, teachers)."""

    forward: Forward
    extra_inputs: dict[str, tuple[str, Shape]]
    notes: list[str]
    targets: dict[str, Value] = field(default_factory=dict)

    @property
    def ops(self) -> Ops:
        return self.forward.ops

    def output(self, name: str | None) -> Value:
        """A model output, or any value by name; None is the first output."""
        name = self.forward.outputs[0] if name is None else name
        if name not in self.forward.values:
            raise PruneError(f"the model has no value named {name}", f"outputs: {', '.join(self.forward.outputs)}")
        return self.forward.values[name]

    def logits(self, name: str | None, *ends: str) -> Value:
        """The output before a final operator of the kinds `ends`, reshapes after it applied to its input."""
        value = self.output(name)
        found = _see_through(self.ops, value, ends)
        if found is None:
            return value
        note = f"the loss is taken before the final {found[1]} of {value.name}"
        if note not in self.notes:  # labels and a teacher may both ask
            self.notes.append(note)
        return found[0]

    def input(self, name: str, dtype: ir.DataType, shape: Shape) -> Value:
        if name in self.forward.values or name in self.extra_inputs:
            raise PruneError(f"the loss needs an input named {name}, but there is one already", "choose another name")
        self.extra_inputs[name] = (dtype.name.lower().replace("float", "float32"), shape)
        return self.ops.input(name, int(dtype), shape)

    def target(self, name: str, like: Value) -> Value:
        """An input of a value's shape, which several losses may read."""
        known = self.targets.get(name)
        if known is None or self.ops.shape(known) != self.ops.shape(like):
            known = self.targets[name] = self.input(name, ir.DataType.FLOAT, self.ops.shape(like))
        return known


def _see_through(ops: Ops, value: Value, ends: Sequence[str]) -> tuple[Value, str] | None:
    node = value.producer()
    if node is None or node.domain:
        return None
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type in ends:
        return source, node.op_type
    if node.op_type == "Concat" and "Softmax" in ends and (two := _two_classes(ops, node)):
        return two, "Sigmoid"
    if operator_of(node).moves != "axes" and node.op_type not in ("Cast", "Identity"):
        return None
    found = _see_through(ops, source, ends)
    if found is None or node.op_type == "Identity":
        return found
    plain = {k: a.value for k, a in node.attributes.items()}
    return ops.op(node.op_type, found[0], *node.inputs[1:], **plain), found[1]


def _two_classes(ops: Ops, node: ir.Node) -> Value | None:
    """The logits of two classes whose probabilities are written as a Concat of 1 - sigmoid(z) and sigmoid(z), in either
    order, as scikit-learn's classifiers of two classes are exported: these are softmax(0, z)."""
    parts, axis = [part for part in node.inputs if part is not None], node.attributes.get_int("axis", -1)
    rank = ops.rank(node.outputs[0])
    if len(parts) != 2 or axis % rank != _class_axis(rank):
        return None
    for place, (rest, score) in enumerate((parts, reversed(parts))):
        minus, found = rest.producer(), _see_through(ops, score, ("Sigmoid",))
        if found is None or minus is None or minus.op_type != "Sub" or minus.inputs[1] is not score:
            continue
        one, z = ops.value(minus.inputs[0]), found[0]
        if one is not None and one.size == 1 and one.item() == 1:
            logits = [ops.zeros(ops.shape(z), z), z]
            return ops.concat(logits if place == 0 else logits[::-1], axis)
    return None


def _class_axis(rank: int) -> int:
    """Logits are (N, C), (N, T, C), or image-like (N, C, H, W, ...)."""
    return 1 if rank >= 4 else rank - 1


def _log_probabilities(ops: Ops, logits: Value) -> tuple[Value, int]:
    rank = ops.rank(logits)
    if rank == 0:
        raise PruneError("a classification loss needs logits, and the output is a scalar", "choose another loss")
    axis = _class_axis(rank)
    return ops.op("LogSoftmax", logits, axis=axis), axis


def _mean(ops: Ops, terms: Value, mask: Value | None = None) -> Value:
    """The mean; with a mask of ones and zeros that of what it keeps, 0 where it keeps nothing."""
    if mask is None:
        return ops.mean(terms, range(ops.rank(terms))) if ops.rank(terms) else terms
    count = ops.op("Max", ops.sum(mask), ops.scalar(1.0, mask))
    return ops.div(ops.sum(ops.mul(terms, mask)), count)


def _counted(ops: Ops, target: Value, masked: bool, axis: int | None = None) -> tuple[Value, Value | None]:
    """The target with 0 in place of NaN, and a mask of what is not; along `axis` one NaN takes out the whole row."""
    if not masked:
        return target, None
    absent = ops.op("IsNaN", target)
    mask = ops.op("Cast", ops.op("Not", absent), to=int(ops.dtype(target)))
    if axis is not None:
        mask = ops.op("ReduceMin", mask, ops.ints([axis]), keepdims=1)
    return ops.op("Where", absent, ops.scalar(0.0, target), target), mask


@dataclass(frozen=True)
class CrossEntropy:
    """-sum_c q_c log softmax(z)_c, q = (1 - smoothing) onehot(label) + smoothing / C (Szegedy et al. 2016).

    Labels are int64 of the logits' shape without the class axis (the second of image-like logits, else the last);
    with `soft`, float32 distributions of the logits' shape. `ignore`: an integer label that counts for nothing.
    """

    output: str | None = None
    labels: str = "labels"
    smoothing: float = 0.0
    soft: bool = False
    ignore: int | None = None
    masked: bool = False

    def build(self, scope: LossScope) -> Value:
        ops = scope.ops
        logits = scope.logits(self.output, "Softmax", "LogSoftmax")
        logp, axis = _log_probabilities(ops, logits)
        if self.soft:
            target, mask = _counted(ops, scope.target(self.labels, logits), self.masked, axis=axis)
            target = ops.add(ops.mul(target, 1.0 - self.smoothing), self.smoothing / ops.shape(logits)[axis])
            return ops.neg(_mean(ops, ops.sum(ops.mul(target, logp), [axis], keepdims=True), mask))
        return self._hard(scope, logp, axis)

    def _hard(self, scope: LossScope, logp: Value, axis: int) -> Value:
        ops = scope.ops
        shape = ops.shape(logp)
        labels = scope.input(self.labels, ir.DataType.INT64, (*shape[:axis], *shape[axis + 1 :]))
        index = ops.reshape(labels, (*shape[:axis], 1, *shape[axis + 1 :]))
        mask: Value | None = None
        if self.ignore is not None:
            counted = ops.op("Not", ops.op("Equal", index, ops.const(self.ignore, np.int64)))
            index = ops.op("Where", counted, index, ops.const(0, np.int64))
            mask = ops.cast(counted, logp)
        losses = ops.neg(ops.op("GatherElements", logp, index, axis=axis))
        if self.smoothing:
            spread = ops.neg(ops.mean(logp, [axis], keepdims=True))
            losses = ops.add(ops.mul(losses, 1.0 - self.smoothing), ops.mul(spread, self.smoothing))
        return _mean(ops, losses, mask)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """mean(softplus(z) - z t): -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)). Targets: float32 in [0, 1], or with
    `logits` what they are the sigmoids of."""

    output: str | None = None
    labels: str = "labels"
    logits: bool = False
    masked: bool = False

    def build(self, scope: LossScope) -> Value:
        ops = scope.ops
        logits = scope.logits(self.output, "Sigmoid")
        target, mask = _counted(ops, scope.target(self.labels, logits), self.masked)
        target = ops.op("Sigmoid", target) if self.logits else target
        return _mean(ops, ops.sub(ops.op("Softplus", logits), ops.mul(logits, target)), mask)


@dataclass(frozen=True)
class MeanSquaredError:
    """mean((y - t)^2)."""

    output: str | None = None
    labels: str = "labels"

    def build(self, scope: LossScope) -> Value:
        ops, y = scope.ops, scope.output(self.output)
        return _mean(ops, ops.square(ops.sub(y, scope.target(self.labels, y))))


@dataclass(frozen=True)
class Projection:
    """sum(r * z): the output in a direction r, whose gradient is r^T J with J = dz / dw.

    With independent random signs for r, the expectation of its square is the diagonal of J^T J (Hutchinson 1989): how
    far the output moves when a weight does. A final Softmax or Sigmoid is seen through.
    """

    output: str | None = None
    direction: str = "direction"

    def build(self, scope: LossScope) -> Value:
        z = scope.logits(self.output, "Softmax", "LogSoftmax", "Sigmoid")
        return scope.ops.sum(scope.ops.mul(z, scope.target(self.direction, z)))


@dataclass(frozen=True)
class Distillation:
    """T^2 KL(softmax(teacher / T) || softmax(z / T)), mean over samples (Hinton et al. 2015).

    The teacher's input has the logits' shape. With `probabilities` it holds softmax outputs instead of logits,
    which are tempered as p^(1/T) / sum.
    """

    output: str | None = None
    teacher: str = "teacher"
    temperature: float = 1.0
    probabilities: bool = False
    masked: bool = False

    def build(self, scope: LossScope) -> Value:
        ops = scope.ops
        logits = scope.logits(self.output, "Softmax", "LogSoftmax")
        axis = _class_axis(ops.rank(logits))
        teacher, mask = _counted(ops, scope.target(self.teacher, logits), self.masked, axis=axis)
        if self.probabilities:
            teacher = ops.op("Log", ops.op("Max", teacher, ops.scalar(1e-30, teacher)))
        student, _ = _log_probabilities(ops, ops.mul(logits, 1.0 / self.temperature))
        wanted, _ = _log_probabilities(ops, ops.mul(teacher, 1.0 / self.temperature))
        terms = ops.mul(ops.op("Exp", wanted), ops.sub(wanted, student))
        return ops.mul(_mean(ops, ops.sum(terms, [axis], keepdims=True), mask), self.temperature**2)


@dataclass(frozen=True)
class Weighted:
    """sum_i w_i loss_i, for example a hard loss and a teacher's."""

    terms: tuple[tuple[float, Loss], ...]

    def build(self, scope: LossScope) -> Value:
        return scope.ops.total([scope.ops.mul(loss.build(scope), weight) for weight, loss in self.terms])
