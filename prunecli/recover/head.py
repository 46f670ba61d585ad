"""A new last layer: a trained backbone for another set of classes."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model import Model, Weight, find_weights
from prunecli.model.constants import behind

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
    node = _last_linear(model, output)
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
    _put(matrix, rng.uniform(-bound, bound, shape))
    for bias in _biases(model, node, weights, count):
        _put(bias, np.zeros([classes if d == count else d for d in bias.shape]))
    _restate(output, count, classes, node)
    return str(matrix.name)


def _last_linear(model: Model, output: ir.Value) -> ir.Node:
    node = output.producer()
    while node is not None and node.op_type not in ("Gemm", "MatMul") and node.op_type in _AFTER:
        node = next((v.producer() for v in node.inputs if v is not None and v.producer() is not None), None)
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        raise PruneError(
            f"the output {output.name} does not end in a Gemm or MatMul", "--reset-head needs a linear last layer"
        )
    return node


def _classes_axis(node: ir.Node, matrix: Weight) -> int:
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    stored = behind(node.inputs[1])
    if stored is None or stored.name != matrix.holder.name or len(matrix.shape) != 2:
        raise PruneError("the last layer's matrix is not its second operand", "train without --reset-head")
    axis = stored.axis(0 if transposed else 1)
    if axis is None:
        raise PruneError("the last layer's matrix is reshaped before it is used", "train without --reset-head")
    return axis


def _biases(model: Model, node: ir.Node, weights: dict[int, list[Weight]], count: int) -> list[Weight]:
    """The biases of the layer: Gemm's own, and those added right after."""
    found = [w for w in weights.get(id(node), []) if w.kind == "bias"]
    for user in node.outputs[0].consumers():
        if user.op_type == "Add":
            found += [w for w in weights.get(id(user), []) if count in w.shape]
    return found


def _put(weight: Weight, array: np.ndarray) -> None:
    tensor = weight.tensor
    weight.holder.put(ir.Tensor(array.astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name))


def _restate(output: ir.Value, before: int, after: int, node: ir.Node) -> None:
    """Correct the stated class counts from the layer to the output."""
    value: ir.Value | None = node.outputs[0]
    while value is not None:
        if value.shape is not None:
            value.shape = ir.Shape([after if d == before else d for d in value.shape])
        users = [user for user in value.consumers() if user.op_type in _AFTER]
        value = users[0].outputs[0] if users and value is not output else None
