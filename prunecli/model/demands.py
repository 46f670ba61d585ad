"""Sizes of the inputs that the graph itself asks for, where the file leaves them open.

A convolution fixes the rank and the channels of what it reads, a matrix the length of the last axis. One pass from the
outputs to the inputs carries these sizes back through operators that keep axes where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from prunecli.model.attrs import UnreadableAttributeError, integer, integers
from prunecli.model.infer import gather_facts
from prunecli.model.parameter_roles import MICROSOFT
from prunecli.model.shape_inference import Array, Facts, Shape, axes_of

Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class Demand:
    """`sizes` of the last axes; `whole`: there are no others, so the rank is known."""

    sizes: Sizes = ()
    whole: bool = False

    def __or__(self, other: Demand) -> Demand:
        """Both; where they contradict each other, the first."""
        longest = len(self.sizes) if self.whole else len(other.sizes) if other.whole else None
        pairs = zip_longest(reversed(self.sizes), reversed(other.sizes))
        sizes = [a if a is not None else b for a, b in pairs][:longest]
        return Demand(tuple(reversed(sizes)), self.whole or other.whole)


Rule = Callable[["DemandReading"], Demand]
RULES: dict[tuple[str, str], Rule] = {}
NOTHING = Demand()


@dataclass(frozen=True)
class DemandReading:
    """One input of a node, with what is asked of the node's first output."""

    node: ir.Node
    index: int
    after: Demand
    facts: Facts

    def shape(self, index: int) -> Shape | None:
        """Of another input that is computed from constants alone."""
        return self.facts.shape(self.node.inputs[index]) if index < len(self.node.inputs) else None

    def arrays(self) -> list[Array | None]:
        return [self.facts.value(value) for value in self.node.inputs]


def demands(model: ir.Model) -> dict[str, Demand]:
    """What is asked of each graph input. Uses inside the bodies of other nodes ask nothing."""
    facts, asked = gather_facts(model, {}), dict[ir.Value, Demand]()
    for node in reversed(model.graph):
        rule = RULES.get((node.domain, node.op_type))
        after = asked.get(node.outputs[0], NOTHING) if node.outputs else NOTHING
        for index, value in enumerate(node.inputs):
            if rule is not None and value is not None and value not in facts.shapes:
                found = _ask(rule, DemandReading(node, index, after, facts))
                asked[value] = found | asked.get(value, NOTHING)
    return {value.name or "": asked.get(value, NOTHING) for value in model.graph.inputs}


def _ask(rule: Rule, reading: DemandReading) -> Demand:
    try:
        return rule(reading)
    except (UnreadableAttributeError, LookupError, TypeError, ValueError, AssertionError):
        return NOTHING  # the node is malformed: what it asks for is not known


def asks(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update({(domain, op): function for op in ops})
        return function

    return add


@asks(
    "Abs", "Cast", "CastLike", "Ceil", "Clip", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp", "Floor",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "LRN", "LeakyRelu", "Log", "LogSoftmax",
    "LpNormalization", "MeanVarianceNormalization", "Mish", "Neg", "QuantizeLinear", "Reciprocal", "Relu", "Round",
    "Selu", "Sigmoid", "Sign", "Softmax", "Softplus", "Softsign", "Sqrt", "Tanh",
)  # fmt: skip
@asks("Gelu", "FastGelu", "QuickGelu", domain=MICROSOFT)
@asks("Normalizer", "Binarizer", domain="ai.onnx.ml")
def _same(r: DemandReading) -> Demand:
    return r.after if r.index == 0 else NOTHING


@asks("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where")
def _broadcast(r: DemandReading) -> Demand:
    """What meets constants alone is as large as they are, and as the result."""
    constant = [r.shape(k) for k in range(len(r.node.inputs)) if k != r.index]
    if None in constant:
        return NOTHING
    found = r.after
    for shape in constant:
        found = found | Demand(tuple(n if n > 1 else None for n in shape or ()))
    return found if found.sizes else NOTHING


@asks("Conv", "ConvInteger")
@asks("FusedConv", domain=MICROSOFT)
def _conv(r: DemandReading) -> Demand:
    return _channels(r, 1, lambda w: w[1] * integer(r.node, "group", 1))


@asks("QLinearConv")
def _qlinear_conv(r: DemandReading) -> Demand:
    return _channels(r, 3, lambda w: w[1] * integer(r.node, "group", 1))


@asks("ConvTranspose")
def _conv_transpose(r: DemandReading) -> Demand:
    return _channels(r, 1, lambda w: w[0])


def _channels(r: DemandReading, weight: int, count: Callable[[Shape], int]) -> Demand:
    shape = r.shape(weight)
    if r.index != 0 or shape is None or len(shape) < 3:
        return NOTHING
    return Demand((None, count(shape), *(None,) * (len(shape) - 2)), True)


@asks("Gemm")
@asks("FusedGemm", domain=MICROSOFT)
def _gemm(r: DemandReading) -> Demand:
    if r.index > 1:
        return NOTHING
    other, own = r.shape(1 - r.index), "transB" if r.index else "transA"
    theirs = "transA" if r.index else "transB"
    inner = other[_inner(1 - r.index, bool(integer(r.node, theirs, 0)))] if other is not None else None
    first = _inner(r.index, bool(integer(r.node, own, 0))) == 0
    return Demand((inner, None) if first else (None, inner), True)


def _inner(index: int, transposed: bool) -> int:
    """The axis of a matrix that is summed over: the last of a left operand, the first of a right one."""
    return int((index == 0) != transposed)


@asks("MatMul", "MatMulInteger")
@asks("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul(r: DemandReading) -> Demand:
    weight = r.shape(1) if r.index == 0 else None
    return NOTHING if not weight else Demand((None, weight[0] if len(weight) == 1 else weight[-2]))


@asks("LSTM", "GRU", "RNN")
def _recurrent(r: DemandReading) -> Demand:
    weight = r.shape(1)
    return (
        Demand((None, None, weight[2]), True) if r.index == 0 and weight is not None and len(weight) == 3 else NOTHING
    )


@asks("BatchNormalization", "InstanceNormalization")
def _norm(r: DemandReading) -> Demand:
    scale = r.shape(1)
    if r.index != 0 or scale is None or len(scale) != 1 or not r.after.whole:
        return r.after if r.index == 0 else NOTHING
    return r.after | Demand((None, scale[0], *(None,) * (len(r.after.sizes) - 2)), True)


@asks("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@asks("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _layer_norm(r: DemandReading) -> Demand:
    scale = r.shape(2 if r.node.domain == MICROSOFT else 1)
    return r.after | Demand(scale) if r.index == 0 and scale is not None else NOTHING


@asks("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool")
def _pool(r: DemandReading) -> Demand:
    rank = len(r.after.sizes) if r.after.whole else 2 + len(integers(r.node, "kernel_shape") or ())
    sizes = (*r.after.sizes[:2], *(None,) * (rank - 2)) if r.after.whole else (None,) * rank
    return Demand(sizes, True) if rank > 2 else NOTHING


@asks("Transpose")
def _transpose(r: DemandReading) -> Demand:
    perm = integers(r.node, "perm") or (tuple(reversed(range(len(r.after.sizes)))) if r.after.whole else ())
    after = r.after.sizes if r.after.whole and len(r.after.sizes) == len(perm) else (None,) * len(perm)
    sizes = dict(zip(perm, after, strict=True))
    return Demand(tuple(sizes.get(axis) for axis in range(len(perm))), True) if perm else NOTHING


@asks("Unsqueeze")
def _unsqueeze(r: DemandReading) -> Demand:
    axes = axes_of(r.node, r.arrays())
    if r.index or axes is None or not r.after.whole:
        return NOTHING
    gone = {axis % len(r.after.sizes) for axis in axes}
    return Demand(tuple(n for axis, n in enumerate(r.after.sizes) if axis not in gone), True)


@asks("Pad")
def _pad(r: DemandReading) -> Demand:
    given = r.arrays()[1] if len(r.node.inputs) > 1 else integers(r.node, "pads")
    if r.index or given is None or len(r.node.inputs) > 3 or len(given) != 2 * len(r.after.sizes):
        return NOTHING
    added = [int(a) + int(b) for a, b in zip(given, given[len(given) // 2 :], strict=False)]
    return Demand(tuple(None if n is None else n - k for n, k in zip(r.after.sizes, added, strict=True)), r.after.whole)


@asks("Resize", "Upsample")
def _resize(r: DemandReading) -> Demand:
    """Batch and channels are not resized."""
    sizes: Sequence[int | None] = r.after.sizes
    return Demand((*sizes[:2], *(None,) * (len(sizes) - 2)), True) if r.index == 0 and r.after.whole else NOTHING


@asks("Scaler", domain="ai.onnx.ml")
def _scaler(r: DemandReading) -> Demand:
    given = r.node.attributes.get("scale") or r.node.attributes.get("offset")
    count = len(given.as_floats()) if given is not None else 1
    return r.after | Demand((count,)) if count > 1 else r.after


@asks("Imputer", domain="ai.onnx.ml")
def _imputer(r: DemandReading) -> Demand:
    given = r.node.attributes.get("imputed_value_floats")
    count = len(given.as_floats()) if given is not None else 1
    return r.after | Demand((count,)) if count > 1 else r.after


@asks("Attention", "QAttention", domain=MICROSOFT)
def _attention(r: DemandReading) -> Demand:
    weight = r.shape(1)
    return Demand((None, None, weight[0]), True) if r.index == 0 and weight is not None else NOTHING
