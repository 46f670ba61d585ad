"""A cut in progress: what rewrites may ask and what they may change. `cut.py` runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.channels.atoms import Ints
from prunecli.channels.vectors import (
    Affine,
    Dimensions,
    Entry,
    Wanted,
    agrees,
    as_affine,
    as_constant,
    as_dimensions,
    as_factor,
)
from prunecli.channels.views import is_fixed, name_of, open_shape, same_content
from prunecli.errors import PruneError
from prunecli.model.facts import Array, Facts, Shape, know_constant, visit
from prunecli.model.names import free_name, taken_names

HINT = "exclude the layers around it with --exclude"
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
    shape_derived: set[ir.Value] = field(default_factory=set)
    settled: set[tuple[ir.Node, int]] = field(default_factory=set)
    """Inputs whose contents a rewrite has set or approved."""
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._taken = taken_names(self.model.graph)

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

    def blocks(self, value: ir.Value | None, axis: int, count: int) -> int:
        """Of an axis in `count` blocks of equal length: how many kept any position."""
        assert value is not None
        length = self.before(value)[axis] // count
        return len(np.unique(self.kept(value, axis) // length))

    def shape(self, value: ir.Value, view: int = 0) -> Shape:
        """The shape a value must have after the cut, at the dimensions of a view."""
        before = self.views[view].before.shapes[value]
        first = self.before(value)
        return tuple(_scaled(first[i], self.size(value, i), n) for i, n in enumerate(before))

    def known(self, node: ir.Node, index: int) -> Array | None:
        """The original content of an input, where it was followed."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return self.views[0].before.value(value)

    def opset(self, node: ir.Node) -> int:
        return node.version or self.model.opset_imports.get(node.domain) or 0

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
        name = self._new_name(node)
        constant = ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
        constant.dtype = ir.DataType.from_numpy(array.dtype)
        self.model.graph.register_initializer(constant)
        for view in self.views:
            know_constant(view.after, constant)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, constant)
        self.settled.add((node, index))

    def set_contents(self, node: ir.Node, index: int, wanted: Sequence[Array | None]) -> None:
        """Make an input hold `wanted[view]`, whatever is computed for it now.

        Raises:
            PruneError: that depends on dynamic dimensions in a way that cannot follow.
        """
        value, known = node.inputs[index], [array for array in wanted if array is not None]
        assert value is not None
        alike = len(known) == len(wanted) and len({array.shape for array in known}) == 1
        if alike and all(same_content(array, known[0]) for array in known):
            self.set_input(node, index, known[0])
        elif alike and known[0].ndim == 1 and np.issubdtype(known[0].dtype, np.integer):
            self.set_vector(node, index, [array.tolist() for array in known])
        elif (factor := as_factor([view.after.value(value) for view in self.views], wanted)) is not None:
            node.replace_input_with(index, self.insert(node, "Mul", value, factor))
        else:
            raise PruneError(
                f"{value.name!r} is computed from dimensions of which one is cut and another is dynamic", HINT
            )

    def set_vector(self, node: ir.Node, index: int, wanted: Wanted, wildcard: bool = False) -> None:
        """Make an integer vector input (a shape, sizes, repeats) hold `wanted[view]`.

        A vector computed at run time is kept where it already follows the cut; entries that depend on
        dynamic dimensions keep their computation (`vectors.py`). With `wildcard` (Reshape) 0 and -1 mean what
        they meant, and one entry that cannot be kept becomes -1.

        Raises:
            PruneError: an entry depends on dynamic dimensions in a way that cannot follow.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        current = [view.after.value(value) for view in self.views]
        self.settled.add((node, index))
        if all(agrees(c, w, wildcard) for c, w in zip(current, wanted, strict=True)):
            return
        dtype = np.dtype(np.int64) if current[0] is None else current[0].dtype
        constant = as_constant(current, wanted, wildcard)
        if constant is not None:
            self.set_input(node, index, np.array(constant, dtype))
        elif (entries := as_dimensions(self._input_dimensions(), current, wanted, wildcard)) is not None:
            node.replace_input_with(index, self._assemble(node, index, entries, dtype))
        elif (affine := as_affine(current, wanted, wildcard)) is not None:
            self._correct(node, index, affine, dtype)
        else:
            raise PruneError(
                f"the vector given to {node.op_type} {node.name!r} is computed in a way that cannot follow the cut",
                HINT,
            )

    def _input_dimensions(self) -> Dimensions:
        """(graph input, axis) -> (its name, its length per view), for dynamic dimensions."""
        out: Dimensions = {}
        for value in self.model.graph.inputs:
            known = self.views[0].before.shapes.get(value, ())
            for axis, dim in enumerate(value.shape or open_shape(len(known)) if known else ()):
                if not is_fixed(dim):
                    lengths = [view.before.shapes[value][axis] for view in self.views]
                    out[value.name or "", axis] = (name_of(dim) or f"{value.name}.{axis}", lengths)
        return out

    def _assemble(self, node: ir.Node, index: int, entries: Sequence[Entry], dtype: np.dtype[Any]) -> ir.Value:
        """A vector of constants, dimensions of graph inputs, and entries of what was computed, before a node."""
        inputs = {value.name: value for value in self.model.graph.inputs}
        kind = [ir.AttrInt64("to", ir.DataType.from_numpy(dtype))]
        parts = []
        for place, entry in enumerate(entries):
            if isinstance(entry, int):
                parts.append(self._step(node, "Identity", [None], {0: np.array([entry], dtype)}))
            elif entry is None:
                parts.append(self._step(node, "Gather", [node.inputs[index], None], {1: np.array([place])}))
            else:
                shape = self._step(node, "Shape", [inputs[entry[0]]], {})
                picked = self._step(node, "Gather", [shape, None], {1: np.array([entry[1]])})
                parts.append(self._step(node, "Cast", [picked], {}, kind))
        return self._step(node, "Concat", parts, {}, [ir.AttrInt64("axis", 0)])

    def insert(
        self, before: ir.Node, op: str, value: ir.Value | None, operand: Array, axis: int | None = None
    ) -> ir.Value:
        """Put `op(value, operand)` before a node and return its output."""
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        return self._step(before, op, [value, None], {1: operand}, attributes)

    def _step(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        constants: dict[int, Array],
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        name = self._new_name(before)
        step = ir.Node("", op, inputs, attributes, num_outputs=1, name=name)
        step.outputs[0].name = free_name(f"{name}.out", self._taken)
        self.model.graph.insert_before(before, step)
        for index, array in constants.items():
            self.set_input(step, index, array)
        self.visit(step)
        return step.outputs[0]

    def _correct(self, node: ir.Node, index: int, affine: Affine, dtype: np.dtype[Any]) -> None:
        value = node.inputs[index]
        for op, operand, idle in (
            ("Mul", affine.factor, 1),
            ("Div", affine.divisor, 1),
            ("Add", affine.constant, 0),
        ):
            if any(entry != idle for entry in operand):
                value = self.insert(node, op, value, np.array(operand, dtype))
        node.replace_input_with(index, value)

    def _new_name(self, node: ir.Node) -> str:
        return free_name(f"{node.name or node.outputs[0].name or node.op_type}.pruned", self._taken)

    def visit(self, node: ir.Node) -> None:
        for view in self.views:
            visit(node, view.after, self.model)


def _scaled(before: int, after: int, size: int) -> int:
    """New size of an axis that is `size` long at other dimensions: a removal scales with the dynamic factor."""
    return after if size == before else size * after // before
