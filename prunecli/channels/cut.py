"""Removal: slice every constant, then let each node's rewrite follow, checking shapes node by node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from prunecli.channels.atoms import Ints
from prunecli.channels.registry import REWRITES
from prunecli.errors import PruneError
from prunecli.model.facts import Array, Facts, Shape, gather_facts, know_constant, visit

Removed = dict[str, dict[int, Ints]]  # value name -> axis -> removed positions of the original tensor


@dataclass(frozen=True)
class View:
    """The graph at one choice of dynamic dimensions: before, as it must become, and as rewritten so far."""

    before: Facts
    after: Facts


@dataclass
class Cut:
    """A cut in progress. Rewrites ask it for sizes and kept positions and tell it what to change."""

    model: ir.Model
    removed: Removed
    views: list[View]
    current: ir.Node | None = None
    _serial: int = 0
    _index: dict[tuple[str, int], Ints] = field(default_factory=dict)

    # -- questions --------------------------------------------------------------------------------

    def before(self, value: ir.Value | None) -> Shape:
        """Original shape at the analysed dimensions."""
        return self.views[0].before.shapes[value] if value is not None else ()

    def removed_at(self, value: ir.Value | None, axis: int) -> Ints | None:
        """Removed positions of an axis (negative counts from the end), or None."""
        if value is None or value.name not in self.removed:
            return None
        return self.removed[value.name].get(axis % len(self.before(value)))

    def kept(self, value: ir.Value, axis: int) -> Ints:
        """Kept positions of an axis, ascending."""
        size = self.before(value)[axis]
        gone = self.removed_at(value, axis)
        return np.arange(size) if gone is None else np.delete(np.arange(size), gone)

    def size(self, value: ir.Value, axis: int) -> int:
        return len(self.kept(value, axis))

    def shape(self, value: ir.Value, view: int = 0) -> Shape:
        """The shape a value must have after the cut, at the dimensions of a view."""
        before = self.views[view].before.shapes[value]
        first = self.before(value)
        return tuple(_scaled(first[i], self.size(value, i), n) for i, n in enumerate(before))

    def known(self, node: ir.Node, index: int) -> Array | None:
        """The original content of an input, where it was followed."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return self.views[0].before.value(value)

    def touched(self, node: ir.Node) -> bool:
        values = (*node.inputs, *node.outputs)
        return any(v is not None and v.name in self.removed for v in values)

    # -- changes ----------------------------------------------------------------------------------

    def set_int(self, node: ir.Node, name: str, value: int) -> None:
        node.attributes[name] = ir.AttrInt64(name, int(value))

    def set_ints(self, node: ir.Node, name: str, values: Iterable[int]) -> None:
        node.attributes[name] = ir.AttrInt64s(name, [int(v) for v in values])

    def set_input(self, node: ir.Node, index: int, array: Array) -> None:
        """Give the node a constant of its own at an input; other users of the old one keep it."""
        self._serial += 1
        base = node.name or node.outputs[0].name or node.op_type
        name = f"{base}.pruned.{self._serial}"
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(array, name=name))], name=name)
        constant.outputs[0].name = name
        constant.outputs[0].const_value = ir.tensor(array, name=name)
        self.model.graph.insert_before(node, constant)
        for view in self.views:
            know_constant(view.after, constant.outputs[0])
        while index >= len(node.inputs):
            node.resize_inputs(len(node.inputs) + 1)
        node.replace_input_with(index, constant.outputs[0])

    def set_vector(self, node: ir.Node, index: int, wanted: list[list[int]], wildcard: bool = False) -> None:
        """Make an integer vector input (a shape, sizes, repeats) hold `wanted[view]`.

        A vector computed at run time is kept where it already follows the cut; entries that depend on
        dynamic dimensions keep their computation. With `wildcard` (Reshape) 0 and -1 mean what they meant,
        and one entry that cannot be kept becomes -1.
        """
        current = [view.after.value(node.inputs[index]) for view in self.views]
        if all(c is not None and _agrees(c, w, wildcard) for c, w in zip(current, wanted, strict=True)):
            return
        first = wanted[0]
        fixed = [all(w[i] == first[i] for w in wanted) for i in range(len(first))]
        template = current[0] if current[0] is not None else np.array(first)
        target = [int(first[i]) if fixed[i] else int(template[i]) for i in range(len(first))]
        loose = [i for i, known in enumerate(fixed) if not known and target[i] not in ((0, -1) if wildcard else ())]
        if not loose:
            self.set_input(node, index, np.array(target, np.int64))
            return
        if wildcard and len(loose) == 1 and -1 not in target:
            target[loose[0]] = -1
            self.set_input(node, index, np.array(target, np.int64))
            return
        follow = [i for i in loose if all(c is not None and c[i] == w[i] for c, w in zip(current, wanted, strict=True))]
        if follow != loose:
            raise PruneError(
                f"the shape given to {node.op_type} {node.name!r} is computed in a way that cannot follow the cut",
                "exclude the layers around it with --exclude",
            )
        self._overwrite(node, index, target, loose)

    def _overwrite(self, node: ir.Node, index: int, target: list[int], keep: list[int]) -> None:
        """Replace some entries of a computed vector: computed * mask + constants."""
        mask = np.zeros(len(target), np.int64)
        mask[keep] = 1
        constants = np.where(mask == 1, 0, np.array(target, np.int64))
        value = node.inputs[index]
        for op, operand in (("Mul", mask), ("Add", constants)):
            self._serial += 1
            step = ir.Node("", op, [value, None], num_outputs=1, name=f"{node.name or op}.pruned.{self._serial}")
            step.outputs[0].name = f"{step.name}.out"
            self.model.graph.insert_before(node, step)
            self.set_input(step, 1, operand)
            self.visit(step)
            value = step.outputs[0]
        node.replace_input_with(index, value)

    def visit(self, node: ir.Node) -> None:
        for view in self.views:
            visit(node, view.after, self.model)


def _scaled(before: int, after: int, size: int) -> int:
    """New size of an axis that is `size` long at other dimensions: a removal scales with the dynamic factor."""
    return after if size == before else size * after // before


def _agrees(current: Array, wanted: list[int], wildcard: bool) -> bool:
    if len(current) != len(wanted):
        return False
    return all(int(c) == w or (wildcard and int(c) in (0, -1)) for c, w in zip(current, wanted, strict=True))


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
            depend on them are told from constants. None where all dimensions are static.
    Raises:
        PruneError: a computed shape cannot follow, or a node's shape does not come out as planned.
    """
    shapes = [dict(inputs)] + ([dict(other_inputs)] if other_inputs else [])
    before = [gather_facts(model, s) for s in shapes]
    cut = Cut(model, removed, [View(b, Facts()) for b in before])
    _slice_constants(cut)
    for view, at in zip(cut.views, shapes, strict=True):
        for value in model.graph.inputs:
            if value.name in at:
                view.after.shapes[value] = tuple(at[value.name])
                view.after.dtypes[value] = view.before.dtypes[value]
    for node in list(model.graph):
        function = REWRITES.get((node.domain, node.op_type))
        if function is not None and cut.touched(node):
            function(cut, node)
        cut.visit(node)
        _check(cut, node)
        _pin_numbers(cut, node)
    _restate_shapes(cut)


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


def _check(cut: Cut, node: ir.Node) -> None:
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
                    "exclude the layers around it with --exclude, and report the model",
                )


def _pin_numbers(cut: Cut, node: ir.Node) -> None:
    """A number computed from a shape (1 / sqrt(head size)) is part of the function: it keeps its value."""
    for out in node.outputs:
        pairs = [(view.before.value(out), view.after.value(out)) for view in cut.views]
        first = pairs[0][0]
        if first is None or out.const_value is not None or not np.issubdtype(first.dtype, np.floating):
            continue
        if all(a is not None and b is not None and np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            continue
        if out.name in cut.removed:
            continue
        if not all(a is not None and np.array_equal(a, first, equal_nan=True) for a, _ in pairs):
            raise PruneError(
                f"{out.name!r} is computed from dimensions of which one is cut and another is dynamic",
                "exclude the layers around it with --exclude",
            )
        for user, index in list(out.uses()):
            cut.set_input(user, index, first)


def _restate_shapes(cut: Cut) -> None:
    """Value infos: static sizes that were cut are restated, dynamic dimensions keep their names."""
    for node in cut.model.graph:
        for out in node.outputs:
            if out.shape is None or out.name not in cut.removed or out not in cut.views[0].before.shapes:
                continue
            new = cut.shape(out)
            before = cut.before(out)
            dims = [n if new[i] == before[i] else new[i] for i, n in enumerate(out.shape)]
            out.shape = ir.Shape(dims)
