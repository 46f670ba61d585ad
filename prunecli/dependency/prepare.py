"""The working form of a graph: functions inlined, nodes in order, every constant an initializer.

Sequences whose elements are known one by one, which exporters write for split, unbind and stack, become tensors:

    SequenceConstruct, ConcatFromSequence   -> Concat
    SplitToSequence, SequenceAt             -> Split

Weights that the graph computes from constants (weight standardisation, low-rank updates) become constants. A unit of
such a weight cannot be cut where its computation mixes positions: a mean over the input channels changes when some are
removed. Expressions that move positions or treat each by itself stay, since their rules follow a cut.

Small constants that several nodes share (one bias of two Convs, BatchNorm parameters that an exporter merged)
would tie those nodes' channels together for no reason. They get one copy per use; `plan_names` restates a
cut in the names of the user's file, and `restore` merges copies that came out equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, TopologicalSortPass

from prunecli.dependency.edit import Removed, replace_node
from prunecli.dependency.registry import UNNAMED
from prunecli.dependency.views import Geometry, shape_derived, view_geometry
from prunecli.errors import short_of_memory
from prunecli.inputs import resolve_shapes
from prunecli.model.constant_values import computed
from prunecli.model.floating import touches_integers
from prunecli.model.graphs import add_constant, free_name, inline_functions, taken_names
from prunecli.model.shape_inference import Facts
from prunecli.model.shapes import input_specs
from prunecli.operators import operator_of
from prunecli.operators.operator import input_of
from prunecli.storage.stored import constant

COPY_LIMIT = 1 << 16  # elements of a vector worth copying
_ORIGINAL = "prunecli.copy of"  # key in a copy's `meta`
_NAMES = "prunecli.names"  # key in the model's `meta`: value names of the user's file


def prepare(model: ir.Model) -> ir.Model:
    """Return a copy of the model, ready to be analysed and cut; names are kept.

    A weight in a Constant node becomes an initializer by the name of the node's output. Initializers that are
    not graph inputs need IR version 4, which every onnxruntime since 0.3 reads.
    """
    work = model.clone()
    names = frozenset(v.name for v in _values(work.graph) if v.name)
    inline_functions(work)
    TopologicalSortPass()(work)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(work)
    work.ir_version = max(work.ir_version or 4, 4)
    work.meta[_NAMES] = names
    _name_outputs(work.graph)
    unpack_sequences(work)
    fold_computed_weights(work)
    _copy_shared(work)
    return work


def _name_outputs(graph: ir.Graph) -> None:
    """Remove unnamed outputs at the end of a node, and name the others until `restore`."""
    taken = taken_names(graph)
    for node in graph:
        named = [place for place, out in enumerate(node.outputs) if out.name]
        node.resize_outputs(max(named, default=0) + 1)
        for place in set(range(len(node.outputs))) - set(named):
            out = node.outputs[place]
            out.name = free_name(f"{node.name or node.op_type}.{place}", taken)
            out.meta[UNNAMED] = True


def _values(graph: ir.Graph) -> list[ir.Value]:
    outputs = [v for node in graph for v in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *outputs]


def _copy_shared(model: ir.Model) -> None:
    """Give each node its own copy of floating-point vectors and zero points that several nodes of the main graph
    read."""
    graph = model.graph
    taken = taken_names(graph)
    for value in list(graph.initializers.values()):
        uses = list(value.uses())
        tensor = value.const_value
        if len(uses) < 2 or tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        vector = sum(n > 1 for n in tensor.shape.numpy()) == 1 and tensor.size <= COPY_LIMIT
        copied = tensor.dtype.is_floating_point() or all(touches_integers(use.node) for use in uses)
        if not vector or not copied or any(u.node.graph is not graph for u in uses):
            continue
        for number, (node, index) in enumerate(uses[1:], 2):
            copy = ir.Value(name=free_name(f"{value.name}::{number}", taken), shape=value.shape, type=value.type)
            copy.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)  # a tensor is named by one value only
            copy.meta[_ORIGINAL] = value.name
            graph.register_initializer(copy)
            node.replace_input_with(index, copy)


def restore(model: ir.Model) -> None:
    """Undo the parts of the working form that need not stay: names of unread outputs, and copies that equal their
    original."""
    for node in model.graph:
        for out in node.outputs:
            if UNNAMED in out.meta:
                out.name = ""
    initializers = model.graph.initializers
    for copy in list(initializers.values()):
        original = initializers.get(copy.meta.get(_ORIGINAL, ""))
        if original is None or original.const_value is None or copy.const_value is None:
            continue
        if np.array_equal(original.const_value.numpy(), copy.const_value.numpy()):
            for node, index in list(copy.uses()):
                node.replace_input_with(index, original)
            del initializers[copy.name or ""]


def plan_names(model: ir.Model, removed: Removed, geometry: Geometry | None = None) -> Removed:
    """Return a cut of a prepared model by the names of the user's file.

    A constant that was copied has the positions that all its copies lose. Left out are values inside local functions,
    which the user's file does not name, and (with `geometry`) shape computations and axes whose length depends on
    dynamic dimensions (batch * heads): their positions have no meaning at other sizes. Setting the rest to zero has the
    same effect: the values before and after these are listed.
    """
    names = model.meta.get(_NAMES)
    copies: dict[str, list[str]] = defaultdict(list)
    for value in model.graph.initializers.values():
        if _ORIGINAL in value.meta:
            copies[value.meta[_ORIGINAL]].append(value.name or "")
    hidden = {name for group in copies.values() for name in group}
    unlisted = _unlisted_axes(model, geometry)
    out: Removed = {}
    for name, axes in removed.items():
        if name in hidden or (names is not None and name not in names):
            continue
        shared = (
            {a: _in_all(removed, copies[name], a, gone=gone) for a, gone in axes.items()} if name in copies else axes
        )
        left_out = unlisted.get(name, ())
        if kept := {a: gone for a, gone in shared.items() if len(gone) and a not in left_out}:
            out[name] = kept
    return out


def _unlisted_axes(model: ir.Model, geometry: Geometry | None) -> dict[str, set[int]]:
    if geometry is None:
        return {}
    shapes = geometry.facts.shapes.items()
    derived = shape_derived(model, geometry.facts)
    return {v.name or "": {a for a in range(len(s)) if v in derived or geometry.is_dynamic(v, a)} for v, s in shapes}


def _in_all(removed: Removed, copies: list[str], axis: int, gone: np.ndarray) -> np.ndarray:
    for copy in copies:
        gone = np.intersect1d(gone, removed.get(copy, {}).get(axis, np.zeros(0, np.int64)))
    return gone


MOST_PARTS = 4096


def unpack_sequences(model: ir.Model) -> None:
    """Rewrite, in place, every reader of a sequence whose elements are known; sequences nobody reads go."""
    graph = model.graph
    lengths = _Lengths(model)
    elements: dict[ir.Value, list[ir.Value]] = {}
    for node in list(graph):
        if node.domain != "":
            continue
        if node.op_type == "SequenceConstruct" and all(v is not None for v in node.inputs):
            elements[node.outputs[0]] = [v for v in node.inputs if v is not None]
        elif node.op_type == "SplitToSequence" and _only_read_by_place(node.outputs[0]):
            parts = _split(node, lengths)
            if parts:
                elements[node.outputs[0]] = parts
        elif node.inputs and node.inputs[0] in elements:
            _read(graph, node, elements[node.inputs[0]])
    for value in reversed(list(elements)):
        producer = value.producer()
        if producer is not None and not value.uses() and not value.is_graph_output():
            graph.remove(producer, safe=True)


def _only_read_by_place(value: ir.Value) -> bool:
    return bool(value.uses()) and all(use.node.op_type in ("SequenceAt", "ConcatFromSequence") for use in value.uses())


def _read(graph: ir.Graph, node: ir.Node, parts: list[ir.Value]) -> None:
    """One reader of a sequence."""
    if node.op_type == "SequenceAt":
        place = _constant(node, 1)
        if place is not None and -len(parts) <= int(place) < len(parts):
            replace_node(graph, node, ir.node("Identity", [parts[int(place)]]))
    elif node.op_type == "ConcatFromSequence":
        axis = node.attributes["axis"].as_int()
        if node.attributes.get_int("new_axis", 0):
            parts = [_unsqueezed(graph, node, part, axis=axis) for part in parts]
        replace_node(graph, node, ir.node("Concat", parts, {"axis": axis}))


def _unsqueezed(graph: ir.Graph, before: ir.Node, part: ir.Value, axis: int) -> ir.Value:
    """Unsqueeze a value. From opset 13 on axes are an input; sequences are younger than opset 11."""
    shape = _vector(graph, f"{before.name}.axis", [axis])
    step = ir.node("Unsqueeze", [part, shape])
    graph.insert_before(before, step)
    return step.outputs[0]


def _split(node: ir.Node, lengths: _Lengths) -> list[ir.Value]:
    """Return the parts that SplitToSequence makes, by a Split inserted before it; none where their number is
    unknown."""
    model, source = lengths.model, node.inputs[0]
    graph = model.graph
    axis = node.attributes.get_int("axis", 0)
    sizes = _sizes(node, lengths.of(source, axis))
    if sizes is None or (model.opset_imports.get("") or 0) < 13 or len(sizes) > MOST_PARTS:
        return []
    parts = _vector(graph, f"{node.name or node.outputs[0].name}.lengths", sizes)
    step = ir.node("Split", [source, parts], {"axis": axis}, num_outputs=len(sizes))
    graph.insert_before(node, step)
    keeps_axis = node.attributes.get_int("keepdims", 1) != 0
    if input_of(node, 1) is not None or keeps_axis:
        return list(step.outputs)
    axes = _vector(graph, f"{node.name or node.outputs[0].name}.axis", [axis])
    squeezed = [ir.node("Squeeze", [part, axes]) for part in step.outputs]
    graph.insert_before(node, squeezed)
    return [one.outputs[0] for one in squeezed]


def _sizes(node: ir.Node, length: int | None) -> list[int] | None:
    """Return the lengths of the parts: a given list, equal ones with a shorter last, or ones."""
    given = _constant(node, 1)
    if given is None:
        absent = len(node.inputs) < 2 or node.inputs[1] is None
        return [1] * length if absent and length is not None else None
    if given.ndim:
        return [int(n) for n in given]
    if length is None or int(given) <= 0:
        return None
    whole, rest = divmod(length, int(given))
    return [int(given)] * whole + ([rest] if rest else [])


class _Lengths:
    """Lengths of axes that do not depend on dynamic dimensions; the file's own shapes may be stale."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.geometry = model, Geometry(Facts())

    def of(self, value: ir.Value | None, axis: int) -> int | None:
        if value is not None and value not in self.geometry.facts.shapes:  # a result of what was rewritten since
            inputs = resolve_shapes(input_specs(self.model))
            self.geometry, _ = view_geometry(self.model, inputs)
        shape = self.geometry.facts.shape(value)
        if value is None or shape is None or not -len(shape) <= axis < len(shape):
            return None
        return None if self.geometry.is_dynamic(value, axis) else shape[axis]


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = input_of(node, index)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _vector(graph: ir.Graph, name: str, entries: Sequence[int]) -> ir.Value:
    return add_constant(graph, name, np.array(entries, np.int64))


FOLLOWED = ("Constant", "ConstantOfShape", "Range", "Trilu")
EVALUATED = frozenset(
    (
        "BatchNormalization", "Einsum", "Gemm", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
        "LpNormalization", "MatMul", "MeanVarianceNormalization", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax",
    )
)  # fmt: skip
"""Operators that mix positions, and are deterministic and cheap to evaluate."""
MAX_ELEMENTS = 1 << 26


def fold_computed_weights(model: ir.Model) -> None:
    """Replace, in place, every constant floating-point expression that mixes positions and is closed: nothing else
    reads what it is computed from. Else a cut of that (learned queries are added to what is computed from them) would
    have to reach the result. Of nested expressions the outermost is taken; none may grow the file."""
    graph = model.graph
    cones: dict[ir.Value, frozenset[ir.Node]] = {}
    for node in graph:
        if _foldable(node) and all(v is None or v in cones or constant(v) is not None for v in node.inputs):
            inner = frozenset({node}).union(*(cones.get(v, frozenset()) for v in node.inputs if v is not None))
            cones.update(dict.fromkeys(node.outputs, inner))
    for value, cone in reversed(cones.items()):
        left = all(node.graph is graph for node in cone)
        if left and any(node.op_type in EVALUATED for node in cone) and _closed(value, cone):
            _fold(model, value, [node for node in graph if node in cone])


def _foldable(node: ir.Node) -> bool:
    """Return whether a node can be evaluated, or has a rule that follows a cut of a constant because it mixes no
    positions."""
    known = operator_of(node)
    followed = known.elementwise or known.moves or known.of_shape or node.op_type in FOLLOWED
    return node.domain == "" and (bool(followed) or node.op_type in EVALUATED)


def _closed(result: ir.Value, cone: frozenset[ir.Node]) -> bool:
    """Return whether only the expression reads its inner values and the constants that a cut could change."""
    if result.is_graph_output():
        return False
    inner = [out for node in cone for out in node.outputs if out is not result]
    sources = [v for node in cone for v in node.inputs if v is not None and _can_be_cut(v.const_value)]
    return not any(v.is_graph_output() or any(use.node not in cone for use in v.uses()) for v in (*inner, *sources))


def _can_be_cut(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1


def _fold(model: ir.Model, value: ir.Value, cone: list[ir.Node]) -> None:
    graph, read = model.graph, (v for node in cone for v in node.inputs if v is not None)
    sources = {v: tensor for v in read if (tensor := constant(v)) is not None}
    if sum(tensor.size for tensor in sources.values()) > MAX_ELEMENTS:
        return
    feed = {v.name or "": tensor.numpy() for v, tensor in sources.items()}
    try:
        array = computed(cone, feed, value.name or "", model=model)
    except Exception as error:  # the evaluator raises many kinds; each means that the expression stays
        if short_of_memory(error):
            raise
        return
    smaller = array.nbytes <= sum(tensor.nbytes for tensor in sources.values() if _can_be_cut(tensor))
    if not smaller or not np.issubdtype(array.dtype, np.floating):
        return
    name = value.name or ""
    value.name = free_name(f"{name}.unfolded", taken_names(graph))
    value.replace_all_uses_with(add_constant(graph, name, array))
    for node in reversed(cone):
        graph.remove(node, safe=True)
    for source in sources:
        if not source.uses() and not source.is_graph_output():
            graph.initializers.pop(source.name or "", None)
