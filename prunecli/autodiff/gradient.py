"""`differentiate` makes one ONNX model that computes a model, a loss and the gradients, by the reverse mode."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

import prunecli.autodiff.rules  # noqa: F401 - fills the registry
from prunecli.autodiff.forward import DifferentiationOptions, Forward, copy_forward
from prunecli.autodiff.layout import block_convolutions
from prunecli.autodiff.losses import Loss, LossScope
from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import RULES, STEPS, ZERO, GradientContext, describe
from prunecli.errors import PruneError, some
from prunecli.model.graphs import reads
from prunecli.model.shape_inference import Shape


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
    forward = copy_forward(model, shapes, wrt, options=options)
    targets = _targets(forward, wrt)
    scope = LossScope(forward, {}, [])
    try:
        scalar = loss.build(scope)
    except PruneError:  # an unknown operator leaves the shapes behind it unknown: it is the cause to tell
        check_ends(forward.ops, [forward.values[name] for name in forward.outputs], list(targets.values()))
        raise
    gradients = sweep(forward.ops, scalar, list(targets.values()), barriers=forward.barriers)
    return _assemble(scope, scalar, {name: gradients.get(value) for name, value in targets.items()}, options=options)


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
    scope: LossScope, loss: ir.Value, gradients: Mapping[str, ir.Value | None], options: DifferentiationOptions
) -> GradientModel:
    ops, forward = scope.ops, scope.forward
    reached = {name: _output(ops, value) for name, value in gradients.items() if value is not None}
    loss_name = _output(ops, loss)
    kept = {name: _output(ops, scope.output(name)) for name in options.outputs}
    statistics = {name: _output(ops, value) for name, value in forward.statistics.items()}
    remove_unused(ops.graph)
    block_convolutions(ops)
    return GradientModel(
        model=ops.model,
        inputs=tuple(forward.inputs),
        loss_inputs=scope.extra_inputs,
        weights=forward.weights,
        loss=loss_name,
        gradients=reached,
        outputs=kept,
        statistics=statistics,
        unreached=tuple(name for name, value in gradients.items() if value is None),
        notes=(*scope.notes, *forward.notes),
        before_end=bool(scope.notes),
    )


def _output(ops: Ops, value: ir.Value) -> str:
    """Make a value a graph output: once each, and never an input or stored tensor itself."""
    if value.producer() is None or value in ops.graph.outputs:
        value = ops.op("Identity", value)
    value.shape = ir.Shape(ops.shape(value))
    value.type = ir.TensorType(ops.dtype(value))
    ops.graph.outputs.append(value)
    return str(value.name)


_NO_PATH = {"If", "Loop", "Scan", "SequenceMap"}
_LOOPS = "export it without (an EmbeddingBag becomes a Loop: as Gather and ReduceMean it is trained), "


def sweep(
    ops: Ops, loss: ir.Value, wrt: Sequence[ir.Value], barriers: Collection[ir.Node] = ()
) -> dict[ir.Value, ir.Value]:
    """Append the backward pass of a scalar.

    Args:
        ops: the graph under construction, complete up to `loss`.
        loss: a scalar of the graph.
        wrt: the values to differentiate by.
        barriers: nodes through which no gradient passes.
    Returns:
        The gradient of each value of `wrt`, of its shape; a value the loss does not depend on is absent.
    Raises:
        PruneError: operators on the way have no rule, or a rule refuses an attribute.
    """
    nodes, active = _path(ops, loss, wrt, barriers=barriers)
    _check_rules(nodes, wrt)
    parts: dict[ir.Value, list[ir.Value]] = {loss: [ops.const(1.0, ops.dtype(loss).numpy())]}
    done: dict[ir.Value, ir.Value] = {}
    for node in reversed(nodes):
        dys = [_collect(ops, out, parts, done=done) for out in node.outputs]
        if any(dy is not None for dy in dys):
            _back(ops, node, dys, active=active, parts=parts)
    for value in wrt:
        _collect(ops, value, parts, done=done)
    return {value: done[value] for value in wrt if value in done}


def check_ends(ops: Ops, ends: Iterable[ir.Value], wrt: Sequence[ir.Value]) -> None:
    """Raises PruneError for an operator without a rule between `wrt` and any of `ends`."""
    for end in ends:
        _check_rules(_path(ops, end, wrt)[0], wrt)


def _path(
    ops: Ops, loss: ir.Value, wrt: Iterable[ir.Value], barriers: Collection[ir.Node] = ()
) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes between `wrt` and the loss, in order, and the values on the way that carry a gradient."""
    active = set(wrt)
    forward = []
    for node in ops.graph:
        if node in barriers or (node.domain, node.op_type) in STEPS:
            continue
        if any(v in active for v in reads(node)):
            forward.append(node)
            active.update(out for out in node.outputs if ops.is_float(out))
    wanted = {loss}
    path = []
    for node in reversed(forward):
        if any(out in wanted and out in active for out in node.outputs):
            path.append(node)
            wanted.update(reads(node))
    return path[::-1], active & wanted


def _check_rules(nodes: list[ir.Node], wrt: Sequence[ir.Value]) -> None:
    missing = [n for n in nodes if (n.domain, n.op_type) not in RULES]
    if not missing:
        return
    first = missing[0]
    blocked = _blocked(nodes, first, wrt)
    kinds = sorted({n.op_type for n in missing})
    others = f"; also missing: {', '.join(k for k in kinds if k != first.op_type)}" if len(kinds) > 1 else ""
    why = "control flow is not differentiated" if first.op_type in _NO_PATH else "there is no rule for it"
    raise PruneError(
        f"no gradient through {describe(first)}: {why}; it lies between {some(blocked)} and the loss{others}",
        f"{_LOOPS if first.op_type in _NO_PATH else ''}leave out the weights before it (--exclude, for training"
        " --freeze), or use a criterion that needs no gradient",
    )


def _blocked(nodes: list[ir.Node], node: ir.Node, wrt: Sequence[ir.Value]) -> list[str]:
    """Which of `wrt` the node depends on."""
    needed = set(reads(node))
    for other in reversed(nodes[: nodes.index(node)]):
        if any(out in needed for out in other.outputs):
            needed.update(reads(other))
    return [str(v.name) for v in wrt if v in needed]


def _collect(
    ops: Ops, value: ir.Value, parts: dict[ir.Value, list[ir.Value]], done: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    """The gradient of a value, its contributions summed once."""
    if value not in done and value in parts:
        done[value] = ops.total(parts.pop(value))
    return done.get(value)


def _back(
    ops: Ops,
    node: ir.Node,
    dys: list[ir.Value | None],
    active: set[ir.Value],
    parts: dict[ir.Value, list[ir.Value]],
) -> None:
    needed = [v in active for v in node.inputs]
    context = GradientContext(ops, node, needed)
    found = RULES[node.domain, node.op_type](context, *dys)
    gradients = found if isinstance(found, Sequence) else [found]
    for index, value in enumerate(node.inputs):
        if value is None or not needed[index]:
            continue
        gradient = gradients[index] if index < len(gradients) else None
        if gradient is None:
            raise context.refuse(f"its input {index} ({value.name}) has no rule")
        if gradient is ZERO:
            continue
        assert isinstance(gradient, ir.Value)
        parts.setdefault(value, []).append(ops.unbroadcast(gradient, ops.shape(value)))


def remove_unused(graph: ir.Graph) -> None:
    """Drop nodes and stored tensors that no graph output depends on."""
    needed = {v for v in graph.outputs if v is not None}
    dead = []
    for node in reversed(graph):
        if any(out in needed for out in node.outputs):
            needed.update(reads(node))
        else:
            dead.append(node)
    for node in dead:
        graph.remove(node, safe=False)
    for name in [n for n, v in graph.initializers.items() if v not in needed]:
        del graph.initializers[name]
