"""The trained tensors of a model in one flat float32 buffer, with their gradients, and what must stay zero."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.model import Model, Weight, find_weights
from prunecli.model.constants import Holder, behind
from prunecli.model.floating import is_quantised
from prunecli.training.optimizers import Flat

SMALLEST = 0.1
"""Least size of a weight that is assumed, relative to the mean."""
ALIGN = 16  # elements: onnxruntime's kernels like 64-byte boundaries


@dataclass(frozen=True)
class Parameter:
    """One trained tensor: elements start .. stop of the buffers."""

    weight: Weight
    start: int
    stop: int

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def kind(self) -> str:
        return self.weight.kind

    @property
    def is_batch_norm_scale(self) -> bool:
        return any(use.op == "BatchNormalization" and use.index == 1 for use in self.weight.uses)


class Parameters:
    """`values` and `gradients` are flat; `value(p)` and `gradient(p)` are views of a tensor's shape.

    A zero that is stored in a matrix, a kernel or an embedding was pruned and stays zero. So do the zeros of a
    bias or normalisation parameter that is not zero throughout (which is how training usually starts them).

    `sizes`: of each element, the root mean square of the weights of its row at first, over the mean of all; 1 of a
    tensor of zeros. Where BatchNormalization is folded, those of one layer are a hundred times those of another.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        self.items: list[Parameter] = []
        end = 0
        for weight in weights:
            self.items.append(Parameter(weight, end, end + weight.size))
            end = -(-(end + weight.size) // ALIGN) * ALIGN
        self.values: Flat = np.zeros(end, np.float32)
        self.gradients: Flat = np.zeros(end, np.float32)
        self.decays: Flat = np.zeros(end, np.float32)
        self.keep: Flat = np.ones(end, np.float32)
        self.sizes: Flat = np.zeros(end, np.float32)
        for item in self.items:
            self._read(item)
        counted = (self.keep > 0) & (self.sizes > 0)
        mean = float(self.sizes[counted].mean()) if counted.any() else 1.0
        self.sizes = np.where(self.sizes == 0, np.float32(1.0), np.maximum(self.sizes / mean, SMALLEST))

    def _read(self, item: Parameter) -> None:
        array = item.weight.array().astype(np.float32)
        if not np.isfinite(array).all():
            raise PruneError(f"{item.name} holds NaN or infinity", "leave it out with --freeze")
        self.value(item)[...] = array
        matrix = item.kind in ("weight", "embedding")
        self.decays[item.start : item.stop] = float(matrix)
        if matrix or array.any():
            self.keep[item.start : item.stop] = (array != 0).reshape(-1)
        self.sizes[item.start : item.stop] = _sizes(item, array).reshape(-1)

    @property
    def count(self) -> int:
        """Trained elements, pruned ones not counted."""
        return sum(int(self.keep[i.start : i.stop].sum()) for i in self.items)

    def value(self, item: Parameter) -> Array:
        return self.values[item.start : item.stop].reshape(item.weight.shape)

    def gradient(self, item: Parameter) -> Array:
        return self.gradients[item.start : item.stop].reshape(item.weight.shape)

    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to zero."""
        self.gradients *= self.keep

    def store(self) -> None:
        """Put the values into the model, in the tensors' own types."""
        for item in self.items:
            put(item.weight.holder, self.value(item))


def _sizes(item: Parameter, array: Array) -> Array:
    """Return the root mean square of nonzero weights: per row of a matrix, at least SMALLEST of that of the whole; of
    other tensors as a whole."""
    whole = float(np.sqrt(np.square(array).sum() / max(np.count_nonzero(array), 1)))
    if item.kind != "weight" or whole == 0:
        return np.full(array.shape, whole)
    layout = item.weight.layout
    rows = layout.canonical(array)
    count = np.maximum((rows != 0).sum(axis=(2, 3), keepdims=True), 1)
    each = np.sqrt(np.square(rows).sum(axis=(2, 3), keepdims=True) / count)
    return np.asarray(layout.restore(np.broadcast_to(np.maximum(each, SMALLEST * whole), rows.shape).copy()))


def put(holder: Holder, array: Array) -> None:
    """Store an array in place of a tensor, in the tensor's own type."""
    old = holder.tensor
    new = array.astype(old.dtype.numpy())
    holder.put(ir.Tensor(new, dtype=old.dtype, name=old.name, doc_string=old.doc_string))


def trainable(model: Model, freeze: Sequence[str] = ()) -> list[Weight]:
    """Every stored floating-point parameter of the main graph that an operator uses as one, less what
    `freeze` (patterns over tensor names) names, less BatchNormalization's running statistics and what a caller may
    override.

    Raises:
        PruneError: a pattern that matches nothing, or nothing is left.
    """
    weights = find_weights(model)
    every = [*weights.all(), *weights.single]
    found = [w for w in every if w.holder.graph is model.ir.graph and not _is_statistic(w)]
    for pattern in freeze:
        if not any(fnmatchcase(w.name, pattern) for w in found):
            raise PruneError(f"--freeze {pattern!r} matches nothing", "`prune inspect` lists the names")
    kept = [w for w in found if not any(fnmatchcase(w.name, pattern) for pattern in freeze)]
    if kept and all(w.holder.overridable for w in kept):
        raise PruneError(
            "everything that could be trained is also a graph input, so that a caller may feed other values",
            "--include '*' trains it all the same",
        )
    kept = [w for w in kept if not w.holder.overridable]
    if all(len(w.shape) < 2 for w in kept) and is_quantised(model.ir):
        raise PruneError("the weights of a quantised model are integers, which gradients do not change",
                         "train the floating-point model and quantise it then")  # fmt: skip
    if not kept:
        raise PruneError("the model has nothing to train", "`prune inspect` says what is in it")
    return kept


def _is_statistic(weight: Weight) -> bool:
    return any(use.op == "BatchNormalization" and use.index in (3, 4) for use in weight.uses)


_AFTER = ("Softmax", "LogSoftmax", "Sigmoid", "Identity", "Flatten", "Reshape", "Squeeze", "Add", "BiasGelu", "Cast")


def reset_head(model: Model, classes: int, seed: int = 0) -> str:
    """Give the last Gemm or MatMul of the first output `classes` rows of new random weights, in place.

    Weights ~ U(-b, b), b = 1 / sqrt(inputs) (the fan-in rule of He et al. 2015 for a linear layer); biases zero.
    Returns the name of the matrix.

    Raises:
        PruneError: fewer than two classes, or the output does not end in such a layer of its own.
    """
    if classes < 2:
        raise PruneError(f"--reset-head {classes}: at least two classes are needed", "give their number")
    output = model.ir.graph.outputs[0]
    node = _last_linear(output)
    weights: dict[int, list[Weight]] = defaultdict(list)
    for weight in find_weights(model).all():
        for use in weight.uses:
            weights[id(use.node)].append(weight)
    matrix = next((w for w in weights.get(id(node), []) if w.kind in ("weight", "embedding")), None)
    if matrix is None or len(matrix.uses) > 1:
        raise PruneError("the last layer has no matrix of its own to re-initialise", "train without --reset-head")
    rng = np.random.default_rng(seed)
    old = _classes_axis(node, matrix)
    shape = list(matrix.shape)
    count, shape[old] = shape[old], classes
    bound = 1 / np.sqrt(matrix.size / count)
    put(matrix.holder, rng.uniform(-bound, bound, shape))
    for bias in _biases(node, weights, count):
        put(bias.holder, np.zeros([classes if d == count else d for d in bias.shape]))
    _restate(output, count, classes, node=node)
    return str(matrix.name)


def _last_linear(output: ir.Value) -> ir.Node:
    node = output.producer()
    while node is not None and node.op_type not in ("Gemm", "MatMul") and node.op_type in _AFTER:
        node = next((v.producer() for v in node.inputs if v is not None and v.producer() is not None), None)
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        raise PruneError(
            f"the output {output.name} does not end in a Gemm or MatMul", "--reset-head needs a linear last layer"
        )
    return node


def _classes_axis(node: ir.Node, matrix: Weight) -> int:
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    stored = behind(node.inputs[1])
    if stored is None or stored.name != matrix.holder.name or len(matrix.shape) != 2:
        raise PruneError("the last layer's matrix is not its second operand", "train without --reset-head")
    axis = stored.axis(0 if transposed else 1)
    if axis is None:
        raise PruneError("the last layer's matrix is reshaped before it is used", "train without --reset-head")
    return axis


def _biases(node: ir.Node, weights: dict[int, list[Weight]], count: int) -> list[Weight]:
    """The biases of the layer: Gemm's own, and those added right after."""
    found = [w for w in weights.get(id(node), []) if w.kind == "bias"]
    for user in node.outputs[0].consumers():
        if user.op_type == "Add":
            found += [w for w in weights.get(id(user), []) if count in w.shape]
    return found


def _restate(output: ir.Value, before: int, after: int, node: ir.Node) -> None:
    """Correct the stated class counts from the layer to the output."""
    value: ir.Value | None = node.outputs[0]
    while value is not None:
        if value.shape is not None:
            value.shape = ir.Shape([after if d == before else d for d in value.shape])
        users = [user for user in value.consumers() if user.op_type in _AFTER]
        value = users[0].outputs[0] if users and value is not output else None
