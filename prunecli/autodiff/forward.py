"""The forward graph: a copy of the model at concrete shapes, in current operators, computing in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import inliner
from onnx_ir.passes.common import InlinePass

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import RULES, STEPS, describe
from prunecli.autodiff.rewrites import RewriteContext, find_rewrite
from prunecli.errors import PruneError
from prunecli.model.constants import behind, holders
from prunecli.model.shape_inference import Shape
from prunecli.storage.stored import constant_tensor

OLDEST, LOWEST = 7, 18  # opsets: the oldest accepted, and the one whose operator forms the rules emit
_OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass
class Forward:
    """The copy. `values` finds its values by the model's names; `weights` are the tensors that became inputs;
    `barriers` are nodes that pass no gradient."""

    ops: Ops
    values: dict[str, ir.Value] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    weights: dict[str, ir.TensorProtocol] = field(default_factory=dict)
    statistics: dict[str, ir.Value] = field(default_factory=dict)
    barriers: set[ir.Node] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DifferentiationOptions:
    """How to build a gradient model.

    weights_as_inputs: stored tensors of `wrt` become graph inputs of the same name (to be bound to memory that
        an optimizer updates); otherwise they stay stored, which runs faster when they do not change.
    batch_statistics: BatchNormalization uses the batch's statistics (training), not the stored ones (frozen).
    outputs: values of the model to return as well, by name (model outputs, hidden values).
    detached: hidden values whose readers in the model send no gradient back to them; the loss, which may be of them,
        still does.
    """

    weights_as_inputs: bool = True
    batch_statistics: bool = False
    outputs: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()


def copy_forward(
    model: ir.Model, shapes: Mapping[str, Shape], wrt: Sequence[str], options: DifferentiationOptions
) -> Forward:
    """Copy `model`, whose inputs have the given shapes. The content of what is in `wrt` is not folded.

    Raises:
        PruneError: an opset that is too old, an input without a shape, or a rewrite's refusal.
    """
    opset = model.opset_imports.get("", LOWEST)
    if opset < OLDEST:
        raise PruneError(
            f"the model uses opset {opset}; gradients need {OLDEST} or newer",
            "export it again with a newer opset",
        )
    places = frozenset(h.name for h in holders(model) if h.graph is model.graph)
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    opsets = {**model.opset_imports, "": max(opset, LOWEST)}
    prefix = _unused_prefix(model)
    forward = Forward(Ops(opsets, max(model.ir_version or 8, 8), prefix))
    copy = _Copy(forward, opset, frozenset(wrt), options=options, places=places)
    copy.graph_inputs(model.graph, shapes)
    copy.nodes(model.graph)
    copy.forward.outputs = [str(v.name) for v in model.graph.outputs]
    return copy.forward


def _unused_prefix(model: ir.Model) -> str:
    names = [v.name or "" for n in model.graph for v in n.outputs]
    names += [v.name or "" for v in (*model.graph.inputs, *model.graph.initializers.values())]
    prefix = "grad/"
    while any(n.startswith(prefix) for n in names):
        prefix = "_" + prefix
    return prefix


class _Copy:
    def __init__(
        self, forward: Forward, opset: int, wrt: frozenset[str], options: DifferentiationOptions, places: frozenset[str]
    ) -> None:
        self.forward, self.ops, self.opset = forward, forward.ops, opset
        self.wrt, self.options, self.places = wrt, options, places
        self.map: dict[ir.Value, ir.Value] = {}

    # ---- what is stored or fed

    def graph_inputs(self, graph: ir.Graph, shapes: Mapping[str, Shape]) -> None:
        stored = set(graph.initializers)
        for value in graph.inputs:
            name = str(value.name)
            if name in stored:
                continue
            if name not in shapes:
                raise PruneError(f"the input {name} has no shape", "give --input-shape or --dim")
            dtype = value.dtype or ir.DataType.FLOAT
            dtype = ir.DataType.FLOAT if dtype in _OTHER_FLOATS else dtype
            self._define(value, self.ops.input(name, int(dtype), tuple(shapes[name])))
            self.forward.inputs.append(name)
        for value in graph.initializers.values():
            assert value.const_value is not None
            self.tensor(value, value.const_value)

    def tensor(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        name = str(value.name)
        wanted = name in self.wrt
        single = _single_precision(tensor)
        if wanted and self.options.weights_as_inputs:
            new = self.ops.input(name, int(single.dtype), tuple(tensor.shape.numpy()))
            self.forward.weights[name] = single
        else:
            new = self.ops.initializer(name, single, known=not wanted)
        self._define(value, new)

    def _define(self, old: ir.Value, new: ir.Value) -> None:
        name = str(old.name)
        self.forward.values[name] = new
        if name in self.options.detached:
            new = self.ops.op("Identity", new)
            barrier = new.producer()
            assert barrier is not None
            self.forward.barriers.add(barrier)
        self.map[old] = new

    # ---- nodes

    def nodes(self, graph: ir.Graph) -> None:
        for node in graph:
            is_constant = node.op_type == "Constant" and node.domain == ""
            tensor = constant_tensor(node) if is_constant else None  # None too for text and sparse ones
            if tensor is not None:
                self.tensor(node.outputs[0], tensor)
            elif not self._inlined_branch(node):
                self._node(node)

    def _inlined_branch(self, node: ir.Node) -> bool:
        """An If whose condition is known is its branch."""
        if node.op_type != "If" or node.domain != "":
            return False
        condition = self.ops.value(self._get(node.inputs[0]))
        if condition is None:
            return False
        branch = node.attributes["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"].as_graph()
        for value in branch.initializers.values():
            assert value.const_value is not None
            self.tensor(value, value.const_value)
        self.nodes(branch)
        for out, result in zip(node.outputs, branch.outputs, strict=True):
            self._name(out, self.ops.op("Identity", self._get(result)))
        return True

    def _get(self, value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value not in self.map:
            raise PruneError(f"the value {value.name} is used before it is made", "the model's graph is not in order")
        return self.map[value]

    def _node(self, node: ir.Node) -> None:
        inputs = [self._get(v) for v in node.inputs]
        norm = self._training_norm(node, inputs) if self.options.batch_statistics else None
        function = find_rewrite(node, self.opset) if norm is None else None
        if function is not None:
            results = function(RewriteContext(self.ops, node, inputs))
            results = results if isinstance(results, Sequence) else [results]
            for out, result in zip(node.outputs, results, strict=False):
                self._name(out, result)
            return
        if norm is None and self._expand(node, inputs):
            return
        count = 1 + max((place for place, out in enumerate(node.outputs) if out.name), default=0)
        copied = norm or ir.Node(
            node.domain, node.op_type, inputs, self._attributes(node), num_outputs=count, name=node.name
        )
        for old, new in zip(node.outputs[:count], copied.outputs, strict=False):
            new.name = old.name
        self.ops.append(copied)
        for old, new in zip(node.outputs, copied.outputs, strict=False):
            if old.name:
                self._define(old, new)

    def _name(self, old: ir.Value, new: ir.Value) -> None:
        """Let the result of a rewrite carry the old value's name."""
        if not old.name:
            return
        if new.producer() is None or new in self.forward.values.values():
            new = self.ops.op("Identity", new)
        new.name = old.name
        self._define(old, new)

    def _training_norm(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node | None:
        """Batch statistics as the running outputs of training mode with momentum 0; None if that is no
        BatchNormalization of channels in inference mode, or new ones have no place."""
        inference = node.attributes.get_int("spatial", 1) == 1 and not any(out.uses() for out in node.outputs[1:])
        if (node.domain, node.op_type) != ("", "BatchNormalization") or not inference:
            return None
        running = [behind(value) for value in node.inputs[3:5]]
        if any(s is None or s.steps or not s.is_own or s.name not in self.places for s in running):
            why = "they are computed, reshaped, read by others too, or inside a body"
            self.forward.notes.append(f"{describe(node)} kept its statistics: {why}")
            return None
        wanted = {"training_mode": 1, "momentum": 0.0, "epsilon": node.attributes.get_float("epsilon", 1e-5)}
        copied = ir.node("BatchNormalization", list(inputs), wanted, num_outputs=3, name=node.name)
        for out in copied.outputs[1:]:
            out.name = self.ops.fresh_name()
        for stored, new in zip(running, copied.outputs[1:], strict=True):
            assert stored is not None
            self.forward.statistics[stored.name] = new
        return copied

    def _attributes(self, node: ir.Node) -> list[ir.Attr]:
        result = []
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                attribute = self._subgraph(node, attribute)
            elif attribute.type == ir.AttributeType.TENSOR:
                attribute = ir.AttrTensor(name, _single_precision(attribute.as_tensor()))
            elif name in ("to", "dtype") and attribute.as_int() in _OTHER_FLOATS:
                attribute = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            result.append(attribute)
        return result

    def _subgraph(self, node: ir.Node, attribute: ir.Attr) -> ir.Attr:
        """Control flow is copied as it is, its outer values replaced."""
        if self.opset < LOWEST:
            raise PruneError(
                f"no gradient of a model of opset {self.opset} with {describe(node)}: control flow is copied as it"
                f" is, and its body cannot be restated in opset {LOWEST}",
                f"export it without (an EmbeddingBag becomes a Loop), or convert it to opset {LOWEST} first",
            )
        graph = attribute.as_graph().clone(allow_outer_scope_values=True)
        for inner in ir.traversal.RecursiveGraphIterator(graph):
            for index, value in enumerate(inner.inputs):
                if value in self.map:
                    inner.replace_input_with(index, self.map[value])
        return ir.AttrGraph(attribute.name, graph)

    # ---- operators that ONNX defines by others

    def _expand(self, node: ir.Node, inputs: list[ir.Value | None]) -> bool:
        """Copy the body of a standard operator without a rule that ONNX itself defines as a function."""
        inputs = _with_mask(node, self.ops, inputs)
        body = _function_body(node, self.ops, inputs)
        if body is None:
            return False
        graph = body.graph
        self.map.update(
            (inner, outer)
            for inner, outer in zip(graph.inputs, [v for v in inputs if v is not None], strict=True)
            if outer is not None
        )
        for inner_node in graph:
            for value in inner_node.outputs:
                value.name = self.ops.fresh_name() if value.name else value.name
        opset, self.opset = self.opset, self.ops.opset
        before = dict(self.forward.values)
        self.nodes(graph)
        self.opset, self.forward.values = opset, before
        for old, inner_out in zip([o for o in node.outputs if o.name], graph.outputs, strict=True):
            result = self.map[inner_out]
            result = self.ops.op("Identity", result)
            self._name(old, result)
        return True


def _single_precision(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _OTHER_FLOATS:
        return tensor
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _with_mask(node: ir.Node, ops: Ops, inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    """The inputs of an Attention that has a past, with a mask of zeros where it has none: onnx cannot state the body
    of a node that leaves out an input before the last."""
    queries, keys, values, mask, past, *others = [*inputs, *[None] * 5][: max(len(inputs), 5)]
    if (node.domain, node.op_type) != ("", "Attention") or mask is not None or past is None:
        return inputs
    assert queries is not None and keys is not None
    length = ops.shape(keys)[-2] + ops.shape(past)[2]
    zeros = ops.const(np.zeros((ops.shape(queries)[-2], length), np.float32))
    return [queries, keys, values, zeros, past, *others]


def _function_body(node: ir.Node, ops: Ops, inputs: Sequence[ir.Value | None]) -> ir.Model | None:
    if node.domain or (node.domain, node.op_type) in RULES.keys() | STEPS:
        return None
    if not inputs or inputs[0] is None or not ops.is_float(inputs[0]) or not node.outputs:
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, ops.opset, "")
    except onnx.defs.SchemaError:
        return None
    if not (schema.has_function or schema.has_context_dependent_function):  # type: ignore[attr-defined]
        return None
    proto = ir.to_proto(node)
    names = [f"in{i}" if v is not None else "" for i, v in enumerate(inputs)]
    del proto.input[:]
    proto.input.extend(names)
    given = {a.name for a in proto.attribute}
    proto.attribute.extend(
        a.default_value for name, a in schema.attributes.items() if name not in given and a.default_value.name
    )
    typed = [
        onnx.helper.make_tensor_value_info(n, ops.facts.dtypes[v], ops.shape(v))
        for n, v in zip(names, inputs, strict=True)
        if v is not None
    ]
    results = [onnx.ValueInfoProto(name=o.name) for o in node.outputs if o.name]
    graph = onnx.helper.make_graph([proto], "body", typed, results)
    imports = [onnx.helper.make_opsetid("", ops.opset)]
    wrapped = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    inlined = inliner.inline_selected_functions(wrapped, [("", node.op_type)], inline_schema_functions=True)
    if any(n.op_type == node.op_type for n in inlined.graph.node):
        return None
    return ir.from_proto(inlined)
