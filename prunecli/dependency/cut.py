"""Removal: slice every constant, then let each node's rewrite follow, checking shapes and contents node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, without
from prunecli.dependency.analysis import Whole
from prunecli.dependency.edit import HINT, View
from prunecli.dependency.edit import NodeCut as NodeCut
from prunecli.dependency.edit import Removed as Removed
from prunecli.dependency.prepare import restore
from prunecli.dependency.registry import REWRITES, is_named, is_shape_computation
from prunecli.dependency.views import same_content, shape_derived, view_geometry
from prunecli.errors import PruneError
from prunecli.model.graphs import captured, reads
from prunecli.model.shape_inference import Facts, Shape, know_constant
from prunecli.model.tensors import in_memory
from prunecli.model.weights import pending
from prunecli.operators import operator_of

Result = TypeVar("Result")
LAZY = 1 << 20
"""Bytes from which a constant is sliced only when it is read, so that cuts of any size can be saved."""


def remove(
    model: ir.Model,
    removed: Removed,
    inputs: Mapping[str, Shape],
    other_inputs: Mapping[str, Shape] | None = None,
) -> None:
    """Remove positions from a model, in place.

    Args:
        model: prepared like the analysed one; changed in place.
        removed: positions per value and axis, closed under the analysis' relations.
        inputs: the input shapes that were analysed.
        other_inputs: input shapes at a second choice of the dynamic dimensions, by which entries that
            depend on them are told from constants; chosen where it is not given.
    Raises:
        UnfollowedError: a computed shape cannot follow, or a node's shape does not come out as planned; it says which
            axes have to stay, of all such nodes. The model is then of no use.
    """
    geometry, other = view_geometry(model, inputs, other_inputs)
    shapes = [dict(inputs)] + ([other] if other else [])
    before = [geometry.facts] + ([geometry.other] if geometry.other is not None else [])
    cut = NodeCut(model, removed, [View(b, Facts()) for b in before], shape_derived=shape_derived(model, before[0]))
    _slice_constants(cut)
    for view, at in zip(cut.views, shapes, strict=True):
        for value in model.graph.inputs:
            if value.name in at and value not in view.after.shapes:
                view.after.shapes[value] = tuple(at[value.name])
                view.after.dtypes[value] = view.before.dtypes[value]
    refusals: dict[tuple[str, int], str] = {}
    for node in list(model.graph):
        try:
            _follow(cut, node)
        except PruneError as error:
            refusals.update(_behind(cut, node, error))
            _assume(cut, node)
    for out in model.graph.outputs:
        if _changed(cut, out):
            reason = f"the output {out.name!r} is computed from this length"
            refusals.update(dict.fromkeys(_lengths_of(cut, out), reason))
    if refusals:
        raise UnfollowedError(refusals)
    _restate_shapes(cut)
    restore(model)


class UnfollowedError(PruneError):
    """An operator cannot follow a cut. `axes`: (value, axis) -> why it has to stay whole."""

    def __init__(self, axes: Mapping[tuple[str, int], str]) -> None:
        super().__init__("; ".join(dict.fromkeys(axes.values())), HINT)
        self.axes = dict(axes)


def following(attempt: Callable[[Whole], Result]) -> Result:
    """Return the result of an attempt to cut, repeated with the axes whole that could not follow, until all do.

    Args:
        attempt: opens the model with the given axes whole, decides, and cuts.
    """
    whole: dict[tuple[str, int], str] = {}
    while True:
        try:
            return attempt(whole)
        except UnfollowedError as error:
            if error.axes.keys() <= whole.keys():
                raise
            whole = {**error.axes, **whole}


def _behind(cut: NodeCut, node: ir.Node, error: PruneError) -> dict[tuple[str, int], str]:
    """Return the cut axes by whose lengths a node cannot follow, or else the node's own.

    Raises:
        PruneError: the error itself, where there are none.
    """
    own = [value for value in (*node.inputs, *node.outputs) if value is not None]
    axes = [pair for value in reads(node) if _changed(cut, value) for pair in _lengths_of(cut, value)]
    axes = axes or [pair for value in own for pair in _cut_axes(cut, value)]
    if not axes:
        raise error
    return dict.fromkeys(axes, error.message)


def _cut_axes(cut: NodeCut, value: ir.Value) -> list[tuple[str, int]]:
    return [(value.name or "", axis) for axis in cut.removed.get(value.name or "", ())]


def _lengths_of(cut: NodeCut, value: ir.Value) -> list[tuple[str, int]]:
    """Return the cut axes whose lengths a changed value is computed from."""
    found, queue = list[tuple[str, int]](), [value]
    seen = set(queue)
    while queue:
        node = queue.pop().producer()
        for source in node.inputs if node is not None else ():
            if source is None or source in seen:
                continue
            seen.add(source)
            if node is not None and operator_of(node).of_shape:
                found += _cut_axes(cut, source)
            elif _changed(cut, source):
                queue.append(source)
    return found


def _assume(cut: NodeCut, node: ir.Node) -> None:
    """Continue as if the node had followed, so that all refusals of a cut are found at once."""
    for number, view in enumerate(cut.views):
        for out in node.outputs:
            if out in view.before.shapes:
                view.after.learn(out, cut.shape(out, number), view.before.dtypes[out])
            if (content := _wanted(cut, out, view.before.value(out))) is not None:
                view.after.values[out] = content


def _follow(cut: NodeCut, node: ir.Node) -> None:
    """Rewrite one node and compute its new shapes. Shape computations are checked where data reads them."""
    function = REWRITES.get((node.domain, node.op_type))
    facts = cut.views[0].before
    moved = any(_changed(cut, value) for value in node.inputs)
    data = all(out in view.before.shapes for view in cut.views for out in node.outputs)
    data = data and not all(is_shape_computation(out, facts) for out in node.outputs)
    if function is not None and (cut.touched(node) or (moved and data)):
        function(cut, node)
    geometry = bool(node.outputs) and all(facts.value(out) is not None for out in node.outputs)
    if not geometry:
        _keep_contents(cut, node)
    elif data:  # a number meets a stored table, perhaps; else it is kept where it ends
        with suppress(PruneError):
            _keep_contents(cut, node)
    cut.visit(node)
    if geometry and _unplanned(cut, node):  # a fill, rows of a table: data, though its content is known
        _keep_contents(cut, node)
        cut.visit(node)
    if problem := _unplanned(cut, node):
        raise PruneError(problem, f"{HINT}, and report the model")


def _slice_constants(cut: NodeCut) -> None:
    for value in cut.model.graph.initializers.values():
        axes = cut.removed.get(value.name or "")
        tensor = value.const_value
        if axes and tensor is not None:
            shape = list(tensor.shape.numpy())
            for axis, gone in axes.items():
                shape[axis] = len(np.delete(np.arange(shape[axis]), gone))
            value.const_value = pending(tensor, partial(_sliced, axes), tuple(shape), name=value.name or "")
            value.shape = ir.Shape(shape)
            if tensor.nbytes < LAZY:
                value.const_value = in_memory(value.const_value)
        for view in cut.views:
            know_constant(view.after, value)


def _sliced(removed: Mapping[int, Array], array: Array) -> Array:
    return np.ascontiguousarray(without(array, removed))


def _unplanned(cut: NodeCut, node: ir.Node) -> str:
    """Return how a node's results differ in shape from the plan."""
    for number, view in enumerate(cut.views):
        for out in filter(is_named, node.outputs):
            if out not in view.before.shapes or (out in cut.shape_derived and is_shape_computation(out, view.before)):
                continue
            want, got = cut.shape(out, number), view.after.shapes.get(out)
            if want != got:
                problem = view.after.problems.get(node, "")
                return f"after the cut {node.op_type} {node.name or out.name!r} yields {got}, planned was {want}" + (
                    f" ({problem})" if problem else ""
                )
    return ""


def _keep_contents(cut: NodeCut, node: ir.Node) -> None:
    """Keep numbers that are computed from shapes and meet data (1 / sqrt(head size)): they are part of the function.

    Vectors that a rewrite has set are geometry and follow the cut; shape computations are checked where they end.
    """
    for index, value in enumerate(node.inputs):
        if value is not None and (node, index) not in cut.settled and _changed(cut, value):
            cut.set_contents(node, index, [_wanted(cut, value, view.before.value(value)) for view in cut.views])
    for value in captured(node):
        if _changed(cut, value):
            raise PruneError(
                f"{value.name!r} is computed from a shape that the cut changes, and used inside the body of "
                f"{node.op_type} {node.name!r}",
                HINT,
            )


def _changed(cut: NodeCut, value: ir.Value | None) -> bool:
    """Return whether a shape computation yields other values than before (minus the removed positions)."""
    if value is None or value not in cut.shape_derived:
        return False
    for number, view in enumerate(cut.views):
        old, new = view.before.value(value), view.after.value(value)
        if old is None:
            continue
        if old.shape != cut.before(value):  # positions of a merged dynamic axis are known in the first view only
            if view.after.shapes.get(value) != cut.shape(value, number):
                return True
        elif new is None or not same_content(new, without(old, cut.removed.get(value.name or "", {}))):
            return True
    return False


def _wanted(cut: NodeCut, value: ir.Value, content: Array | None) -> Array | None:
    """Return the content without the removed positions; None where its axes are not as long as in the first view."""
    gone = cut.removed.get(value.name or "", {})
    if content is None or any(content.shape[axis] != cut.before(value)[axis] for axis in gone):
        return None
    return without(content, gone)


def _restate_shapes(cut: NodeCut) -> None:
    """Update value infos: static sizes that were cut change, dynamic dimensions keep their names unless cut. One of
    another rank was wrong before and is removed, as is one of a value without an inferred shape."""
    for node in cut.model.graph:
        for out in node.outputs:
            if out.shape is None or out.name not in cut.removed:
                continue
            if out not in cut.views[0].before.shapes:
                out.shape = None
                continue
            new, before = cut.shape(out), cut.before(out)
            if len(out.shape) != len(new):
                out.shape = None
                continue
            dims = [
                dim if now == old else (now if isinstance(dim, int) else None)
                for dim, now, old in zip(out.shape, new, before, strict=True)
            ]
            out.shape = ir.Shape(dims)
