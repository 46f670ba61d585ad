"""What dropping residual blocks does to a model's outputs, measured: one session in which every block has a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.channels.blocks import Block
from prunecli.data.casting import is_float
from prunecli.errors import PruneError
from prunecli.model.facts import Facts
from prunecli.runtime import Session

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Outputs = Mapping[str, Any]
_GATE = "prunecli.gate."
_WHERE_SINCE = 9
_WITH_WHERE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_SUMS_TO_ONE = 1e-3


def gated(model: ir.Model, blocks: Sequence[Block], facts: Facts) -> ir.Model:
    """The model with one boolean scalar input per block, by which the branch's value is kept or zero."""
    kinds = [ir.DataType(facts.dtypes[block.value]) for block in blocks]
    names = [block.value.name for block in blocks]
    copy = model.clone()
    made = {out.name: out for node in copy.graph for out in node.outputs}
    for number, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        gate = ir.Value(name=f"{_GATE}{number}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
        copy.graph.inputs.append(gate)
        _insert(copy, made[name], gate, kind)
    return copy


def _insert(model: ir.Model, value: ir.Value, gate: ir.Value, kind: ir.DataType) -> None:
    """value -> Where(gate, value, 0); value * gate where Where does not exist or has no kernel."""
    uses, stem = list(value.uses()), gate.name
    if kind in _WITH_WHERE and model.opset_imports.get("", 0) >= _WHERE_SINCE:
        zero = ir.Value(name=f"{stem}.zero", const_value=ir.tensor(np.zeros((), kind.numpy()), name=f"{stem}.zero"))
        model.graph.register_initializer(zero)
        steps = [ir.Node("", "Where", [gate, value, zero], num_outputs=1)]
    else:
        cast = ir.Node("", "Cast", [gate], [ir.AttrInt64("to", kind)], num_outputs=1)
        steps = [cast, ir.Node("", "Mul", [value, cast.outputs[0]], num_outputs=1)]
    producer = value.producer()
    assert producer is not None
    model.graph.insert_after(producer, steps)
    for number, step in enumerate(steps):
        step.name = step.outputs[0].name = f"{stem}.step.{number}"
    for node, index in uses:
        node.replace_input_with(index, steps[-1].outputs[0])


class Damage:
    """How far the outputs are from the whole model's without the masked blocks: the mean of `divergence` over
    batches and outputs; infinite where they are not finite.

    Args:
        session: of `gated`.
        feeds: a few batches; the whole model's outputs on them are held.
    Raises:
        PruneError: the model does not run on them, or yields nothing that can be compared.
    """

    def __init__(self, session: Session, feeds: Sequence[Mapping[str, Any]], count: int) -> None:
        self._session, self._feeds, self._count = session, feeds, count
        self._known: dict[bytes, float] = {}
        nothing = np.zeros(count, bool)
        self._whole = [self._run(feed, nothing) for feed in feeds]
        self._names = [n for n, v in self._whole[0].items() if isinstance(v, np.ndarray) and v.dtype.kind != "O"]
        if not self._names:
            raise PruneError("the model has no output that can be compared", "blocks are chosen by what they change")

    def __call__(self, removed: Mask) -> float:
        name = removed.tobytes()
        if name not in self._known:
            self._known[name] = self._measure(removed)
        return self._known[name]

    def _measure(self, removed: Mask) -> float:
        total = 0.0
        for feed, whole in zip(self._feeds, self._whole, strict=True):
            got = self._run(feed, removed)
            total += sum(divergence(whole[name], got[name]) for name in self._names) / len(self._names)
        return total / len(self._feeds)

    def _run(self, feed: Mapping[str, Any], removed: Mask) -> Outputs:
        gates = {f"{_GATE}{number}": np.array(not removed[number]) for number in range(self._count)}
        return self._session.run({**feed, **gates})


def divergence(reference: Array, other: Array) -> float:
    """The Kullback-Leibler divergence sum p log(p / q), averaged over samples, for class scores: rows that sum to
    one, or logits (rank 2, softmax taken here). Elsewhere sum (a - b)^2 / sum a^2; what is not floating-point: the
    fraction of elements that differ."""
    if not is_float(reference.dtype):
        return float((reference != other).mean()) if reference.shape == other.shape and reference.size else 0.0
    a, b = reference.astype(np.float64), other.astype(np.float64)
    if not reference.size:
        return 0.0
    if not np.isfinite(a).all():  # masked positions of the whole model: compare the others
        a, b = a[finite := np.isfinite(a)], b[finite]
    if not np.isfinite(b).all():
        return float("inf")
    scores = log_scores(a, b)
    if scores is not None:
        p, q = scores
        return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
    return float(np.square(a - b).sum() / max(np.square(a).sum(), np.finfo(np.float64).tiny))


def log_scores(a: Array, b: Array) -> tuple[Array, Array] | None:
    """Log-probabilities of class scores; None where the output is something else."""
    if a.ndim < 2 or a.shape[-1] < 2:
        return None
    if (a >= 0).all() and np.abs(a.sum(axis=-1) - 1).max() < _SUMS_TO_ONE:
        floor = np.finfo(np.float32).tiny
        return np.log(np.maximum(a, floor)), np.log(np.maximum(b, floor))
    return (_log_softmax(a), _log_softmax(b)) if a.ndim == 2 else None


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


Measure = Callable[[Mask], float]
