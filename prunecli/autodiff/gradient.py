"""`differentiate`: a model, the tensors to differentiate by and a loss in; one ONNX model for all three out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from prunecli.autodiff.forward import CopyOptions, Forward, copy_forward
from prunecli.autodiff.layout import block_convolutions
from prunecli.autodiff.losses import Loss, LossScope
from prunecli.autodiff.ops import Ops
from prunecli.autodiff.rules import load_rules
from prunecli.autodiff.sweep import check_ends, remove_unused, sweep
from prunecli.errors import PruneError
from prunecli.model.shape_inference import Shape


@dataclass(frozen=True)
class DifferentiationOptions:
    """How to build a gradient model.

    weights_as_inputs: stored tensors of `wrt` become graph inputs of the same name (to be bound to memory that
        an optimizer updates); otherwise they stay stored, which runs faster when they do not change.
    batch_statistics: BatchNormalization uses the batch's statistics (training), not the stored ones (frozen).
    outputs: values of the model to return as well, by name (model outputs, hidden values).
    """

    weights_as_inputs: bool = True
    batch_statistics: bool = False
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class GradientModel:
    """One run of `model` computes forward, loss and gradients. All floating-point values are float32.

    inputs: the model's own inputs, in order.
    loss_inputs: name -> (dtype, shape) of what the loss wants besides (labels, teacher).
    weights: name -> stored tensor for each tensor of `wrt` that became an input.
    loss: name of the scalar output.
    gradients: tensor of `wrt` -> name of the output that holds its gradient, of the tensor's shape.
    outputs: value asked for -> output name.
    statistics: stored running mean or variance -> output with that statistic of the batch (population variance).
    unreached: tensors of `wrt` the loss does not depend on: their gradient is zero and has no output.
    notes: sentences for the report.
    before_end: the loss is taken of what a final Softmax or Sigmoid reads.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    loss_inputs: Mapping[str, tuple[str, Shape]]
    weights: Mapping[str, ir.TensorProtocol]
    loss: str
    gradients: Mapping[str, str]
    outputs: Mapping[str, str]
    statistics: Mapping[str, str]
    unreached: tuple[str, ...]
    notes: tuple[str, ...]
    before_end: bool


def differentiate(
    model: ir.Model,
    wrt: Sequence[str],
    loss: Loss,
    *,
    shapes: Mapping[str, Shape],
    options: DifferentiationOptions | None = None,
) -> GradientModel:
    """Reverse-mode differentiation of an ONNX graph (Linnainmaa 1970; Griewank and Walther 2008).

    Args:
        model: any opset from 7 on; it is not changed.
        wrt: names of stored tensors (initializers, Constant outputs), inputs, or hidden values.
        loss: what to differentiate, see `losses`.
        shapes: concrete shape of each input, because operators' geometry is worked out when building.
    Raises:
        PruneError: an unknown name, a tensor that is not floating-point, an operator or attribute on the way to
            the loss that has no rule (named, with what it blocks), or a shape that depends on data.
    """
    options = options or DifferentiationOptions()
    load_rules()
    copying = CopyOptions(frozenset(wrt), options.weights_as_inputs, options.batch_statistics)
    forward = copy_forward(model, shapes, copying)
    targets = _targets(forward, wrt)
    scope = LossScope(forward, {}, [])
    try:
        scalar = loss.build(scope)
    except PruneError:  # an unknown operator leaves the shapes behind it unknown: it is the cause to tell
        check_ends(forward.ops, [forward.values[name] for name in forward.outputs], list(targets.values()))
        raise
    gradients = sweep(forward.ops, scalar, list(targets.values()))
    return _assemble(forward, scope, scalar, targets, gradients, options)


def _targets(forward: Forward, wrt: Sequence[str]) -> dict[str, ir.Value]:
    missing = [name for name in wrt if name not in forward.values]
    if missing:
        raise PruneError(f"the model has no tensor named {missing[0]}", "`prune inspect` lists the tensors")
    targets = {name: forward.values[name] for name in dict.fromkeys(wrt)}
    for name, value in targets.items():
        if not forward.ops.is_float(value):
            kind = forward.ops.dtype(value).name.lower()
            raise PruneError(f"{name} is {kind}: only floating-point tensors have gradients", "leave it out")
    return targets


def _assemble(
    forward: Forward,
    scope: LossScope,
    scalar: ir.Value,
    targets: Mapping[str, ir.Value],
    gradients: Mapping[ir.Value, ir.Value],
    options: DifferentiationOptions,
) -> GradientModel:
    ops = forward.ops
    reached = {name: gradients[value] for name, value in targets.items() if value in gradients}
    names = {name: _output(ops, value) for name, value in reached.items()}
    loss_name = _output(ops, scalar)
    kept = {name: _output(ops, scope.output(name)) for name in options.outputs}
    statistics = {name: _output(ops, value) for name, value in forward.statistics.items()}
    remove_unused(ops.graph)
    block_convolutions(ops)
    return GradientModel(
        ops.model, tuple(forward.inputs), scope.extra_inputs, forward.weights, loss_name, names, kept, statistics,
        tuple(n for n in targets if n not in reached), (*scope.notes, *forward.notes),
        bool(scope.notes),
    )  # fmt: skip


def _output(ops: Ops, value: ir.Value) -> str:
    """Make a value a graph output: once each, and never an input or stored tensor itself."""
    if value.producer() is None or value in ops.graph.outputs:
        value = ops.op("Identity", value)
    value.shape = ir.Shape(ops.shape(value))
    value.type = ir.TensorType(ops.dtype(value))
    ops.graph.outputs.append(value)
    return str(value.name)
