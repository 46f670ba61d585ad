"""The reverse sweep: from the loss back to the tensors asked for, one rule per operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import RULES, ZERO, GradientContext, describe
from prunecli.errors import PruneError, some

_NO_PATH = {"If", "Loop", "Scan", "SequenceMap"}
_LOOPS = "export it without (an EmbeddingBag becomes a Loop: as Gather and ReduceMean it is trained), "
# piecewise constant or not numeric: their derivative is zero wherever it exists
STEPS = frozenset(
    [
        "Shape",
        "Size",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Not",
        "And",
        "Or",
        "Xor",
        "IsNaN",
        "IsInf",
        "ArgMax",
        "ArgMin",
        "NonZero",
        "ConstantOfShape",
        "EyeLike",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "NonMaxSuppression",
        "Unique",
    ]
)


def sweep(ops: Ops, loss: ir.Value, wrt: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Append the backward pass of a scalar.

    Args:
        ops: the graph under construction, complete up to `loss`.
        loss: a scalar of the graph.
        wrt: the values to differentiate by.
    Returns:
        The gradient of each value of `wrt`, of its shape; a value the loss does not depend on is absent.
    Raises:
        PruneError: operators on the way have no rule, or a rule refuses an attribute.
    """
    nodes, active = _path(ops, loss, wrt)
    _check_rules(nodes, active, wrt)
    parts: dict[ir.Value, list[ir.Value]] = {loss: [ops.const(1.0, ops.dtype(loss).numpy())]}
    done: dict[ir.Value, ir.Value] = {}
    for node in reversed(nodes):
        dys = [_collect(ops, out, parts, done) for out in node.outputs]
        if any(dy is not None for dy in dys):
            _back(ops, node, dys, active, parts)
    for value in wrt:
        _collect(ops, value, parts, done)
    return {value: done[value] for value in wrt if value in done}


def check_ends(ops: Ops, ends: Iterable[ir.Value], wrt: Sequence[ir.Value]) -> None:
    """Raises PruneError for an operator without a rule between `wrt` and any of `ends`."""
    for end in ends:
        _check_rules(*_path(ops, end, wrt), wrt)


def _path(ops: Ops, loss: ir.Value, wrt: Iterable[ir.Value]) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes between `wrt` and the loss, in order, and the values on the way that carry a gradient."""
    active = set(wrt)
    forward = []
    for node in ops.graph:
        if node.op_type in STEPS and node.domain == "":
            continue
        if any(v in active for v in captured(node)):
            forward.append(node)
            active.update(out for out in node.outputs if ops.is_float(out))
    wanted = {loss}
    path = []
    for node in reversed(forward):
        if any(out in wanted and out in active for out in node.outputs):
            path.append(node)
            wanted.update(v for v in captured(node) if v is not None)
    return path[::-1], active & wanted


def captured(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of a node, and the outer values its subgraphs read."""
    values: list[ir.Value | None] = list(node.inputs)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                values.extend(captured(inner))
            values.extend(attribute.as_graph().outputs)
    return values


def _check_rules(nodes: list[ir.Node], active: set[ir.Value], wrt: Sequence[ir.Value]) -> None:
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
    needed = set(captured(node))
    for other in reversed(nodes[: nodes.index(node)]):
        if any(out in needed for out in other.outputs):
            needed.update(captured(other))
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
    gradients = list(RULES[node.domain, node.op_type](context, node, *dys))
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
            needed.update(v for v in captured(node) if v is not None)
        else:
            dead.append(node)
    for node in dead:
        graph.remove(node, safe=False)
    for name in [n for n, v in graph.initializers.items() if v not in needed]:
        del graph.initializers[name]
