"""The working form of a graph: functions inlined, nodes in order, every constant an initializer.

Small constants that several nodes share (one bias of two Convs, BatchNorm parameters that an exporter merged)
would tie those nodes' channels together for no reason. They get one copy per use; `plan_names` restates a
cut in the names of the user's file, and `restore` merges copies that came out equal.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, TopologicalSortPass

from prunecli.dependency.context import UNNAMED
from prunecli.dependency.edit import Removed
from prunecli.dependency.folding import fold_computed_weights
from prunecli.dependency.sequences import unpack_sequences
from prunecli.dependency.views import Geometry, shape_derived
from prunecli.model.names import free_name, taken_names

COPY_LIMIT = 1 << 16  # elements of a vector worth copying
_ORIGINAL = "prunecli.copy of"  # key in a copy's `meta`
_NAMES = "prunecli.names"  # key in the model's `meta`: value names of the user's file


def prepare(model: ir.Model) -> ir.Model:
    """A copy of the model, ready to be analysed and cut; names are kept.

    A weight in a Constant node becomes an initializer by the name of the node's output. Initializers that are
    not graph inputs need IR version 4, which every onnxruntime since 0.3 reads.
    """
    work = model.clone()
    names = frozenset(v.name for v in _values(work.graph) if v.name)
    for function in work.functions.values():  # onnxruntime runs a body at the opset of the model, whatever its own
        function.opset_imports.update((k, v) for k, v in work.opset_imports.items() if k in function.opset_imports)
    InlinePass()(work)
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
    """Outputs that nobody reads may be unnamed: those at the end go, the others get names, until `restore`."""
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
    """One copy per use of each floating-point vector that several nodes of the main graph read."""
    graph = model.graph
    taken = taken_names(graph)
    for value in list(graph.initializers.values()):
        uses = list(value.uses())
        tensor = value.const_value
        if len(uses) < 2 or tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        vector = sum(n > 1 for n in tensor.shape.numpy()) == 1 and tensor.size <= COPY_LIMIT
        if not vector or not tensor.dtype.is_floating_point() or any(u.node.graph is not graph for u in uses):
            continue
        for number, (node, index) in enumerate(uses[1:], 2):
            copy = ir.Value(name=free_name(f"{value.name}::{number}", taken), shape=value.shape, type=value.type)
            copy.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)  # a tensor is named by one value only
            copy.meta[_ORIGINAL] = value.name
            graph.register_initializer(copy)
            node.replace_input_with(index, copy)


def restore(model: ir.Model) -> None:
    """What need not stay of the working form: names of unread outputs, and copies that equal their original."""
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
    """A cut of a prepared model, in terms of the user's file.

    A constant that was copied has the positions that all its copies lose. Left out are values inside local
    functions, which the user's file does not name, and (with `geometry`) what is computed from shapes alone, and
    axes whose length depends on dynamic dimensions (batch * heads): their positions mean nothing at other sizes.
    Forcing the rest to zero has the same effect: what those values are computed from, and what is computed from
    them, is listed.
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
        shared = {a: _in_all(removed, copies[name], a, gone) for a, gone in axes.items()} if name in copies else axes
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
