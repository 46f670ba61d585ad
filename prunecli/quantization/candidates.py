"""Quantised graphs of one model: how they are built, compared with the model, and made small."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass

import prunecli.model.lossless as preserve
from prunecli.arrays import Array
from prunecli.calibration.gradients import mean_error
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import Fidelity, FidelityCollector, heads_of
from prunecli.model import Model, load
from prunecli.model.graphs import add_constant
from prunecli.operators import operator_of
from prunecli.quantization.ranges import Range
from prunecli.quantization.stored import Form, IntegerGraph, StoredWeight, weights_alone
from prunecli.runtime import QuantisedGraph, Session

Feed = Mapping[str, Array]
Opener = Callable[..., Session]
TOOL = "onnxruntime"
_SHARED = 1024
"""Most elements of equal tensors that are stored once."""


@dataclass(frozen=True)
class Candidate:
    """A quantised graph. `error` and `fidelity`: of its outputs on the held-out samples."""

    name: str
    graph: IntegerGraph
    error: float
    fidelity: Fidelity | None


@dataclass
class CandidateEvaluator:
    """Runs candidates and compares them with the float model on the held-out samples.

    The error is the `mean_error` of the floating-point outputs. Without such outputs it is the share of elements of the
    others, such as labels, that differ.
    """

    feeds: Sequence[Feed]
    start: Opener
    wanted: list[dict[str, Any]] = field(default_factory=list)
    heads: Mapping[str, bool] = field(default_factory=dict)

    def __call__(self, name: str, graph: IntegerGraph) -> Candidate:
        """Raises PruneError: onnxruntime does not run it."""
        proto = ir.to_proto(graph.model)
        preserve.attach(proto, graph.model)
        return Candidate(name, graph, *self.measured(proto))

    def measured(self, model: onnx.ModelProto | Path) -> tuple[float, Fidelity | None]:
        session, collector = self.start(model), FidelityCollector(heads=self.heads)
        found = []
        for feed, reference in zip(self.feeds, self.wanted, strict=True):
            found.append(session.run(feed))
            collector.add(reference, found[-1], len(next(iter(feed.values()))))
        fidelity = collector.result("the float model", "held-out samples")
        pairs = [
            tuple(np.concatenate([np.asarray(one[name]).reshape(-1) for one in side]) for side in (self.wanted, found))
            for name in self.names
        ]
        if self.counts:
            return float(np.mean([np.mean(wanted != got) for wanted, got in pairs])), fidelity
        return mean_error([wanted for wanted, _ in pairs], [got for _, got in pairs]), fidelity

    @cached_property
    def names(self) -> list[str]:
        """The outputs that are compared."""
        arrays = {name: value for name, value in self.wanted[0].items() if isinstance(value, np.ndarray)}
        return [name for name, value in arrays.items() if value.dtype.kind == "f"] or list(arrays)

    @property
    def counts(self) -> bool:
        """Whether differing elements are counted."""
        return all(self.wanted[0][name].dtype.kind != "f" for name in self.names)

    def words(self, error: float) -> str:
        """An error in words."""
        if self.counts:
            return f"{error:.2%} of the outputs, which are no floating-point numbers, are other than before"
        return f"the outputs differ from those in floating point by {error:.2g} of their variance"

    @classmethod
    def of(cls, path: Path, feeds: Sequence[Feed], start: Opener) -> CandidateEvaluator:
        """Raises PruneError: no output is a tensor."""
        session = start(path)
        found = cls(feeds, start, [session.run(feed) for feed in feeds], heads=heads_of(load(path).ir.graph))
        if not found.names:
            raise PruneError(f"no output of {path} is a tensor, so that what quantising does to it cannot be measured",
                             "take the tensors that its last nodes read as outputs")  # fmt: skip
        return found


@dataclass(frozen=True)
class GraphBuilder:
    """Makes quantised graphs of one prepared model.

    prepared: its file; model: the loaded file. weights, activations: types, as the options name them.
    """

    prepared: Path
    model: Model
    form: Form
    weights: str
    activations: str

    @classmethod
    def of(cls, prepared: Path, form: Form, weights: str, activations: str) -> GraphBuilder:
        return cls(prepared, load(prepared), form, weights=weights, activations=activations)

    @property
    def weights_alone(self) -> bool:
        """Whether activations stay float in a graph of QuantizeLinear and the like, which the tool does not make."""
        return self.form == "qdq" and self.activations == "none"

    def built(self, ranges: Mapping[str, Range], exclude: Sequence[str], open_ends: bool = True) -> IntegerGraph:
        """Return the graph of onnxruntime's tool. `open_ends`: outputs of the model that are a matrix product stay
        float, which costs nothing."""
        if self.weights_alone:
            return weights_alone(self.model.ir, self.weights, exclude)
        weights = "int4" if self.form == "nbits" else self.weights
        asked = QuantisedGraph(self.form, weights, self.activations, ranges=ranges, exclude=exclude)
        proto = asked.of(self.prepared)
        lost = preserve.detach(proto)
        for kept in lost.bodies:
            kept.infos.clear()  # of values that the tool removed, whose names are reused
        made = ir.from_proto(proto)
        preserve.pin(made, lost)
        graph = IntegerGraph.of(made, self.form)
        if open_ends:
            open_outputs(graph.model, self.model.ir)
        return graph


def open_outputs(model: ir.Model, prepared: ir.Model) -> None:
    """Return outputs unrounded that are rounded directly after a Gemm or MatMul: integer kernels compute them in float
    anyway.

    Args:
        prepared: what the model was made from. A rounding that replaces its Relu or Clip stays.
    """
    products = {node.outputs[0].name for node in prepared.graph if node.op_type in ("Gemm", "MatMul")}
    for position, output in enumerate(list(model.graph.outputs)):
        if output.name not in products:
            continue
        back = output.producer()
        there = back.inputs[0].producer() if back is not None and back.inputs[0] is not None else None
        if back is None or there is None or (back.op_type, there.op_type) != ("DequantizeLinear", "QuantizeLinear"):
            continue
        value = there.inputs[0]
        made = None if value is None else value.producer()
        if value is None or made is None or made.op_type not in ("Gemm", "MatMul"):
            continue
        if len(list(value.uses())) + len(list(output.uses())) > 1 or len(list(there.outputs[0].uses())) > 1:
            continue
        name, kind, shape = output.name, output.type, output.shape
        model.graph.outputs[position] = value
        model.graph.remove([back, there], safe=False)
        value.name, value.type, value.shape = name, kind, shape


def made_small(graph: IntegerGraph, taken: set[str], parameters: Collection[str]) -> None:
    """Shorten the file: names and shapes of inner values, zero points of zero, equal scales, default attributes, biases
    with scales of their own. Integer tensors get the name of the weight they hold.

    Args:
        taken: names that are in use. parameters: names of stored tensors that stay.
    """
    model, numbers = graph.model, itertools.count()
    loose = {name for name, stored in graph.biases.items() if _made_float(model, stored)}
    held = [*graph.weights.values(), *(stored for name, stored in graph.biases.items() if name not in loose)]
    own = {stored.name for stored in held} | loose

    def fresh() -> str:
        return next(name for name in (f"v{number}" for number in numbers) if name not in taken)

    for stored in held:
        _drop_zero(stored.integers)
    _remove_unread(model)
    DeduplicateInitializersPass(size_limit=_SHARED)(model)
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = None
        _drop_defaults(node, model.opset_imports)
        for value in node.outputs:
            if value.name and not value.is_graph_output():
                value.name, value.type, value.shape = fresh(), None, None
    for stored in held:
        _rename(model, stored.integers, stored.name)
    for value in list(model.graph.initializers.values()):
        if value.is_graph_input() or value.is_graph_output():
            continue
        if value.name not in own and value.name not in parameters:
            _rename(model, value, fresh())


def _made_float(model: ir.Model, bias: StoredWeight) -> bool:
    """Store a bias in float where only a Conv with a rounded result reads it: onnxruntime computes the same integers
    when it opens the file (`WeightBiasQuantization`, since 1.22)."""
    reads = [use for use in bias.integers.uses() if use.node.op_type == "DequantizeLinear"]
    if len(reads) != 1 or len(list(bias.integers.uses())) != 1 or bias.name in model.graph.initializers:
        return False
    back = reads[0].node
    uses = list(back.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Conv" or uses[0].idx != 2 or not _is_rounded(uses[0].node.outputs[0]):
        return False
    uses[0].node.replace_input_with(2, None)
    model.graph.remove(back, safe=True)  # which may have its name
    uses[0].node.replace_input_with(2, add_constant(model.graph, bias.name, bias.floats()))
    return True


def _is_rounded(value: ir.Value) -> bool:
    """Return whether only a QuantizeLinear reads a value, directly or after a Relu or Clip."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return False
    node = uses[0].node
    return node.op_type == "QuantizeLinear" or (node.op_type in ("Relu", "Clip") and _is_rounded(node.outputs[0]))


def _drop_defaults(node: ir.Node, opsets: Mapping[str, int]) -> None:
    """Remove attributes that equal their default."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return
    for name, attribute in list(node.attributes.items()):
        known = schema.attributes.get(name)
        default: Any = None if known is None or not known.default_value.type else ir.from_proto(known.default_value)
        ones = name in ("strides", "dilations") and all(step == 1 for step in attribute.as_ints())
        if not attribute.is_ref() and (ones or (default is not None and default.value == attribute.value)):
            del node.attributes[name]


def _rename(model: ir.Model, value: ir.Value, name: str) -> None:
    if value.name == name:
        return
    model.graph.initializers.pop(value.name or "", None)
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    model.graph.register_initializer(value)


def _drop_zero(integers: ir.Value) -> None:
    """Remove a zero point of 0, the default of DequantizeLinear. The weight of a matrix product keeps it: without it
    onnxruntime finds no integer kernel."""
    for node, index in list(integers.uses()):
        if any(operator_of(use.node).kernel is None and use.idx < 2 for use in node.outputs[0].uses()):
            continue
        zero = node.inputs[2] if node.op_type == "DequantizeLinear" and index == 0 and len(node.inputs) > 2 else None
        if zero is not None and zero.const_value is not None and not zero.const_value.numpy().any():
            node.resize_inputs(2)


def _remove_unread(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output() and not value.is_graph_input():
            del model.graph.initializers[name]
