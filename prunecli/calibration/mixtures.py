"""Mixtures of experts (`MoE`) restated in standard operators: each matrix of each expert is a layer like any other.

    p = softmax(router's scores), of which the k largest stay, divided by their sum if `normalize_routing_weights`
    y = sum over experts e of p_e (W2_e f(W1_e x + b1_e) + b2_e), f times W3_e x + b3_e where there is a W3

That is what onnxruntime's kernel for the CPU computes (contrib_ops/cpu/moe); of equal p it takes the later experts'.

Every expert is run on all tokens: which of them it is given differs between a model and what becomes of it, and where
the pruned model gives it a token, it should yield what the original's expert yields there. A token that it is not given
has p_e = 0. An error of what W2 gives moves y by p_e times as much, and one of what W1 or W3 gives moves it on a way
that ends in the same factor: positions count p_e^2 in the sums of all three (`GATE`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from prunecli.arrays import Array
from prunecli.model.constants import Constant, behind
from prunecli.model.floating import stored_as
from prunecli.model.graphs import add_constant, free_name, taken_names
from prunecli.model.tensors import MappedTensor
from prunecli.operators import MICROSOFT, PositionGate
from prunecli.operators.attributes import UnreadableAttributeError, integer, number, text
from prunecli.operators.operator import input_of

GATE = "prunecli.gate"
"""Key in a node's `meta`: the `PositionGate` of the node's expert."""
MATRICES, BIASES = (2, 4, 6), (3, 5, 7)
"""Inputs of MoE: W1, W2, W3 (experts, rows, cols), and b1, b2, b3 (experts, rows)."""
OLDEST = 13
"""The opset whose operators the restatement uses."""
INTERLEAVED = 1
"""The `swiglu_fusion` of gates and values in turns; 2: one after the other; 0: W3 has the values."""
_ALL = int(np.iinfo(np.int64).max)


@dataclass
class Mixtures:
    """What became of the mixtures of a model. `parts`: by stored tensor, the tensors of its experts; `wholes`: the
    other way round; `left`: by stored tensor, why its mixture stays as it is."""

    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    wholes: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def names(self, stored: Iterable[str]) -> list[str]:
        """Of the tensors by which a model holds these now."""
        return [part for name in stored for part in self.parts.get(name, (name,))]

    def whole(self, name: str) -> str:
        """The stored tensor that one is, or is a part of."""
        return self.wholes.get(name, name)

    def divided(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """What is given by stored tensor, by the tensors of experts."""
        found: dict[str, Array] = {}
        for name, array in arrays.items():
            parts = self.parts.get(name)
            found.update({name: array} if parts is None else zip(parts, array, strict=True))
        return found


def restate(work: ir.Model) -> Mixtures:
    """Put standard operators in place of the mixtures of a model in working form whose weights are stored as they are
    read. A value keeps its name."""
    found = Mixtures()
    taken: set[str] = set()
    for node in [node for node in work.graph if (node.domain, node.op_type) == (MICROSOFT, "MoE")]:
        reason = _obstacle(node, work.opset_imports.get("", 0))
        if reason:
            stored = [held for index in (*MATRICES, *BIASES) if (held := behind(input_of(node, index))) is not None]
            found.left.update((held.name, reason) for held in stored)
            continue
        taken = taken or taken_names(work.graph)
        _Mixture(work.graph, node, taken, found=found).restate()
    return found


def _obstacle(node: ir.Node, opset: int) -> str:
    """Why a mixture cannot be restated; empty if it can."""
    if opset < OLDEST:
        return f"a mixture of experts in a model of an opset before {OLDEST}"
    try:
        if integer(node, "use_sparse_mixer", 0):
            return "its mixture mixes sparsely (use_sparse_mixer), which onnxruntime computes on GPUs alone"
        if text(node, "activation_type", "relu") not in ACTIVATIONS:
            return f"its mixture has an activation that is not known: {text(node, 'activation_type', '')}"
        number(node, "swiglu_limit", np.inf)
    except UnreadableAttributeError as error:
        return str(error)
    held = {index: behind(input_of(node, index)) for index in (*MATRICES, *BIASES)}
    for index, found in held.items():
        reason = "" if input_of(node, index) is None else _is_unfit(found, 3 if index in MATRICES else 2)
        if reason:
            return reason
    return "" if _fit_together(node, held) else "the matrices of its experts do not fit each other"


def _is_unfit(found: Constant | None, rank: int) -> str:
    if found is None or found.steps or len(set(found.types)) > 1 or len(found.shape) != rank:
        return "what its experts read is computed, or stored in another form"
    if found.is_overridable:
        return "a part of its mixture is a graph input too, so that a caller may feed other values"
    if not found.is_own:
        return "several mixtures share it, or it is an output of the model too"
    return "its mixture is stored as integers, which are not fitted" if stored_as(found.tensor) is not None else ""


def _fit_together(node: ir.Node, held: Mapping[int, Constant | None]) -> bool:
    """Whether shapes are those that the operator's documentation tells: W1 (E, F I, H), W2 (E, H, I), W3 (E, I, H)."""
    shapes = {index: found.shape for index, found in held.items() if found is not None}
    if not {2, 4} <= shapes.keys():
        return False
    experts, hidden, inner = shapes[4]
    rows = inner * (2 if _is_fused(node, 6 in shapes) else 1)
    wanted = {2: (experts, rows, hidden), 3: (experts, rows), 4: shapes[4], 5: (experts, hidden),
              6: (experts, inner, hidden), 7: (experts, inner)}  # fmt: skip
    k = integer(node, "k", 1)
    return 0 < k <= experts and all(shape == wanted[index] for index, shape in shapes.items())


def _is_fused(node: ir.Node, gated: bool) -> bool:
    """Whether W1 holds gates and values."""
    return text(node, "activation_type", "relu") == "swiglu" and not gated


ACTIVATIONS = ("relu", "gelu", "silu", "identity", "swiglu")


class _Mixture:
    """One node on its way to standard operators, which compute in float32."""

    def __init__(self, graph: ir.Graph, node: ir.Node, taken: set[str], found: Mixtures) -> None:
        self.graph, self.node, self.taken, self.found = graph, node, taken, found
        self.label = node.name or node.outputs[0].name or "mixture"
        self.nodes: list[ir.Node] = []
        self.numbers: dict[tuple[Any, ...], ir.Value] = {}
        self.matrices = {i: self._parts(i) for i in (*MATRICES, *BIASES) if input_of(node, i) is not None}
        self.experts = len(self.matrices[2])

    def restate(self) -> None:
        node = self.node
        x, scores = node.inputs[:2]
        assert x is not None and scores is not None
        w2 = behind(node.inputs[4])
        assert w2 is not None
        rows = self.op("Reshape", self.single(x), self.integers(-1, w2.shape[1]))
        shares, total = self.shares(self.single(scores)), None
        for expert in range(self.experts):
            gate = self.op("Gather", shares, self.integers(self.experts - 1 - expert), axis=1)
            given = self.expert(rows, expert, PositionGate(gate.name or "", node.outputs[0].name or ""))
            gated = self.op("Mul", given, gate)
            total = gated if total is None else self.op("Add", total, gated)
        assert total is not None
        y = self.op("Reshape", total, self.op("Shape", x))
        dtype = w2.dtype
        y = y if dtype == ir.DataType.FLOAT else self.op("Cast", y, to=dtype.value)
        replace_nodes_and_values(self.graph, node, [node], self.nodes, node.outputs[:1], [y])
        for index in self.matrices:
            held = behind(input_of(node, index))
            if held is not None and not held.way[0].uses():
                del self.graph.initializers[held.name]

    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """The last output of a new node."""
        made = ir.node(kind, inputs, attributes, num_outputs=outputs)
        made.name = free_name(f"{self.label}/{kind}", self.taken)
        for value in made.outputs:
            value.name = free_name(f"{self.label}/{kind}.out", self.taken)
        self.nodes.append(made)
        return made.outputs[-1]

    def integers(self, *content: int) -> ir.Value:
        return self.constant(np.array(content, np.int64))

    def scalar(self, content: float) -> ir.Value:
        return self.constant(np.array(content, np.float32))

    def constant(self, array: Array) -> ir.Value:
        key = (array.dtype.char, array.shape, array.tobytes())
        if key not in self.numbers:
            self.numbers[key] = add_constant(self.graph, f"{self.label}/constant", array, taken=self.taken)
        return self.numbers[key]

    def single(self, value: ir.Value) -> ir.Value:
        """In float32."""
        held = behind(self.node.inputs[2])
        assert held is not None
        return value if held.dtype == ir.DataType.FLOAT else self.op("Cast", value, to=ir.DataType.FLOAT.value)

    def shares(self, scores: ir.Value) -> ir.Value:
        """(tokens, experts), the last expert first: p_e, zero where an expert is not among the k. TopK takes the first
        of equal ones."""
        backwards = self.integers(*range(self.experts - 1, -1, -1))
        shares = self.op("Gather", self.op("Softmax", scores, axis=-1), backwards, axis=1)
        chosen = self.op("TopK", shares, self.integers(integer(self.node, "k", 1)), outputs=2, axis=1)
        chosen = self.op("Unsqueeze", chosen, self.integers(2))
        hits = self.op("Equal", chosen, self.integers(*range(self.experts)))
        hits = self.op("Cast", hits, to=ir.DataType.FLOAT.value)
        shares = self.op("Mul", shares, self.op("ReduceSum", hits, self.integers(1), keepdims=0))
        if not integer(self.node, "normalize_routing_weights", 0):
            return shares
        return self.op("Div", shares, self.op("ReduceSum", shares, self.integers(1), keepdims=1))

    def expert(self, x: ir.Value, number: int, gate: PositionGate) -> ir.Value:
        """(tokens, hidden): what one expert gives."""
        first = self.product(x, 2, number, gate=gate)
        third = self.product(x, 6, number, gate=gate) if 6 in self.matrices else None
        return self.product(self.activated(first, third), 4, number, gate=gate)

    def product(self, x: ir.Value, index: int, number: int, gate: PositionGate) -> ir.Value:
        """x W^T + b with the matrix of one expert of input `index`."""
        bias = self.single(self.matrices[index + 1][number]) if index + 1 in self.matrices else None
        y = self.op("Gemm", x, self.single(self.matrices[index][number]), *([] if bias is None else [bias]), transB=1)
        self.nodes[-1].meta[GATE] = gate
        return y

    def activated(self, first: ir.Value, third: ir.Value | None) -> ir.Value:
        kind = text(self.node, "activation_type", "relu")
        if kind == "swiglu":
            return self.swiglu(*(self.halves(first) if third is None else (first, third)))
        y = self.simple(kind, first)
        return y if third is None else self.op("Mul", y, third)

    def simple(self, kind: str, u: ir.Value) -> ir.Value:
        if kind == "relu":
            return self.op("Relu", u)
        if kind == "silu":
            return self.op("Mul", u, self.op("Sigmoid", u))
        if kind == "identity":
            return u
        cube = self.op("Mul", self.op("Mul", self.op("Mul", u, u), u), self.scalar(0.044715))
        inside = self.op("Mul", self.op("Add", u, cube), self.scalar((2 / np.pi) ** 0.5))
        half = self.op("Mul", u, self.scalar(0.5))
        return self.op("Mul", half, self.op("Add", self.op("Tanh", inside), self.scalar(1.0)))

    def halves(self, u: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Gates and values."""
        if integer(self.node, "swiglu_fusion", 0) == INTERLEAVED:
            bounds = [(0, _ALL, 2), (1, _ALL, 2)]
        else:
            w2 = behind(self.node.inputs[4])
            assert w2 is not None
            bounds = [(0, w2.shape[2], 1), (w2.shape[2], _ALL, 1)]
        gates, values = (
            self.op("Slice", u, *(self.integers(bound) for bound in (start, stop, 1, step)))
            for start, stop, step in bounds
        )
        return gates, values

    def swiglu(self, gates: ir.Value, values: ir.Value) -> ir.Value:
        """g sigmoid(alpha g) (v + beta), g at most the limit, v within it."""
        limit = number(self.node, "swiglu_limit", np.inf)
        if np.isfinite(limit):
            gates = self.op("Clip", gates, None, self.scalar(limit))
            values = self.op("Clip", values, self.scalar(-limit), self.scalar(limit))
        alpha = self.scalar(number(self.node, "activation_alpha", 1.0))
        beta = self.scalar(number(self.node, "activation_beta", 0.0))
        swish = self.op("Mul", gates, self.op("Sigmoid", self.op("Mul", gates, alpha)))
        return self.op("Mul", swish, self.op("Add", values, beta))

    def _parts(self, index: int) -> list[ir.Value]:
        """The tensors of the experts, in place of the stored one."""
        held = behind(input_of(self.node, index))
        assert held is not None
        values = []
        for number_ in range(held.shape[0]):
            name = free_name(f"{held.name}[{number_}]", self.taken)
            tensor = _part(held.tensor, number_, name)
            value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
            value.shape = ir.Shape(tensor.shape.numpy())
            self.graph.register_initializer(value)
            values.append(value)
        self.found.parts[held.name] = tuple(value.name or "" for value in values)
        self.found.wholes.update((value.name or "", held.name) for value in values)
        return values


def _part(tensor: ir.TensorProtocol, number: int, name: str) -> ir.TensorProtocol:
    """What is stored for one expert; nothing is copied."""
    shape = tuple(tensor.shape.numpy())
    if not isinstance(tensor, MappedTensor):
        return ir.Tensor(tensor.numpy()[number], dtype=tensor.dtype, name=name)
    offset, length = tensor.span
    size, owner = length // shape[0], tensor.owner
    return MappedTensor(
        Path(tensor.location), offset + number * size, tensor.dtype, shape=ir.Shape(shape[1:]), name=name, owner=owner
    )
