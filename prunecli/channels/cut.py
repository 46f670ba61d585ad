"""Removal: slice every constant, then let each node's rewrite follow, checking shapes and contents node by node."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from prunecli.channels.edit import Cut as Cut
from prunecli.channels.edit import Removed as Removed
from prunecli.channels.edit import View
from prunecli.channels.prepare import restore
from prunecli.channels.registry import REWRITES
from prunecli.channels.views import same_content, shape_derived, view_geometry
from prunecli.errors import PruneError
from prunecli.model.facts import Array, Facts, Shape, know_constant
from prunecli.model.graphs import captured

HINT = "exclude the layers around it with --exclude"


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
        PruneError: a computed shape cannot follow, or a node's shape does not come out as planned.
    """
    geometry, other = view_geometry(model, inputs, other_inputs)
    shapes = [dict(inputs)] + ([other] if other else [])
    before = [geometry.facts] + ([geometry.other] if geometry.other is not None else [])
    cut = Cut(model, removed, [View(b, Facts()) for b in before], shape_derived(model, before[0]))
    _slice_constants(cut)
    for view, at in zip(cut.views, shapes, strict=True):
        for value in model.graph.inputs:
            if value.name in at and value not in view.after.shapes:
                view.after.shapes[value] = tuple(at[value.name])
                view.after.dtypes[value] = view.before.dtypes[value]
    for node in list(model.graph):
        function = REWRITES.get((node.domain, node.op_type))
        if function is not None and cut.touched(node):
            function(cut, node)
        _keep_contents(cut, node)
        cut.visit(node)
        _check_shapes(cut, node)
    _check_outputs(cut)
    _restate_shapes(cut)
    restore(model)


def _slice_constants(cut: Cut) -> None:
    for value in cut.model.graph.initializers.values():
        axes = cut.removed.get(value.name or "")
        tensor = value.const_value
        if axes and tensor is not None:
            array = tensor.numpy()
            for axis, gone in axes.items():
                array = np.delete(array, gone, axis)
            value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name, dtype=tensor.dtype)
            value.shape = ir.Shape(array.shape)
        for view in cut.views:
            know_constant(view.after, value)


def _check_shapes(cut: Cut, node: ir.Node) -> None:
    for number, view in enumerate(cut.views):
        for out in node.outputs:
            if out not in view.before.shapes:
                continue
            want, got = cut.shape(out, number), view.after.shapes.get(out)
            if want != got:
                problem = view.after.problems.get(node, "")
                raise PruneError(
                    f"after the cut {node.op_type} {node.name or out.name!r} yields {got}, planned was {want}"
                    + (f" ({problem})" if problem else ""),
                    f"{HINT}, and report the model",
                )


def _keep_contents(cut: Cut, node: ir.Node) -> None:
    """A number computed from a shape (1 / sqrt(head size)) that meets data is part of the function: it stays.

    Vectors that a rewrite has settled are geometry and follow the cut; shape computations are checked where
    they end.
    """
    if node.outputs and all(cut.views[0].before.value(out) is not None for out in node.outputs):
        return
    for index, value in enumerate(node.inputs):
        if (node, index) not in cut.settled and _changed(cut, value):
            cut.set_input(node, index, _original(cut, value))
    for value in captured(node):
        if _changed(cut, value):
            raise PruneError(
                f"{value.name!r} is computed from a shape that the cut changes, and used inside the body of "
                f"{node.op_type} {node.name!r}",
                HINT,
            )


def _changed(cut: Cut, value: ir.Value | None) -> bool:
    """Whether what was computed from shapes is not what it was (less the removed positions)."""
    if value is None or value not in cut.shape_derived:
        return False
    for number, view in enumerate(cut.views):
        old, new = view.before.value(value), view.after.value(value)
        if old is None:
            continue
        if old.shape != cut.before(value):  # positions of a merged dynamic axis are known in the first view only
            if view.after.shapes.get(value) != cut.shape(value, number):
                return True
        elif new is None or not same_content(new, _less(cut, value, old)):
            return True
    return False


def _original(cut: Cut, value: ir.Value | None) -> Array:
    assert value is not None
    contents = [_less(cut, value, old) for old in (view.before.value(value) for view in cut.views) if old is not None]
    if len(contents) < len(cut.views) or not all(same_content(c, contents[0]) for c in contents):
        raise PruneError(f"{value.name!r} is computed from dimensions of which one is cut and another is dynamic", HINT)
    return contents[0]


def _less(cut: Cut, value: ir.Value, content: Array) -> Array:
    for axis, gone in cut.removed.get(value.name or "", {}).items():
        content = np.delete(content, gone, axis)
    return content


def _check_outputs(cut: Cut) -> None:
    for out in cut.model.graph.outputs:
        if _changed(cut, out):
            raise PruneError(f"the output {out.name!r} is computed from a shape that the cut changes", HINT)


def _restate_shapes(cut: Cut) -> None:
    """Value infos: static sizes that were cut are restated, dynamic dimensions keep their names unless cut. One of
    another rank was wrong before and goes."""
    for node in cut.model.graph:
        for out in node.outputs:
            if out.shape is None or out.name not in cut.removed or out not in cut.views[0].before.shapes:
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
