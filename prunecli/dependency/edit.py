"""A cut in progress: what rewrites may ask and what they may change. `cut.py` runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.dependency.atoms import Ints
from prunecli.dependency.views import is_fixed, name_of, open_shape, same_content
from prunecli.errors import PruneError
from prunecli.model.names import free_name, taken_names
from prunecli.model.shape_inference import Array, Facts, Shape, know_constant, visit

HINT = "exclude the layers around it with --exclude"
Removed = dict[str, dict[int, Ints]]  # value name -> axis -> removed positions of the original tensor


@dataclass(frozen=True)
class View:
    """The graph at one choice of dynamic dimensions: before, as it must become, and as rewritten so far."""

    before: Facts
    after: Facts


@dataclass
class NodeCut:
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

    def kept(self, value: ir.Value | None, axis: int) -> Ints:
        """Kept positions of an axis, ascending."""
        size = self.before(value)[axis]
        gone = self.removed_at(value, axis)
        return np.arange(size) if gone is None else np.delete(np.arange(size), gone)

    def size(self, value: ir.Value | None, axis: int) -> int:
        return len(self.kept(value, axis))

    def blocks(self, value: ir.Value | None, axis: int, count: int) -> int:
        """Of an axis in `count` blocks of equal length: how many kept any position."""
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
        constant = add_constant(self.model.graph, self._new_name(node), array)
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


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initializer."""
    kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node in the place of another; its first output takes the name and the users of the old one's."""
    values = [old.outputs[0]], [new.outputs[0]]
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], *values)


def _scaled(before: int, after: int, size: int) -> int:
    """New size of an axis that is `size` long at other dimensions: a removal scales with the dynamic factor."""
    return after if size == before else size * after // before


Wanted = Sequence[Sequence[int]]  # per view, per entry
Entry = int | tuple[str, int] | None  # a constant, (graph input, axis), or what was computed
Dimensions = dict[tuple[str, int], tuple[str, list[int]]]  # (graph input, axis) -> (name, length per view)


@dataclass(frozen=True)
class Affine:
    """What to do with a computed vector: `computed * factor // divisor + constant`."""

    factor: list[int]
    divisor: list[int]
    constant: list[int]


def agrees(current: Array | None, wanted: Sequence[int], wildcard: bool) -> bool:
    """Whether a vector already says what is wanted; with `wildcard` 0 and -1 stand for anything."""
    if current is None or current.ndim != 1 or len(current) != len(wanted):
        return False
    return all(int(c) == w or (wildcard and int(c) in (0, -1)) for c, w in zip(current, wanted, strict=True))


def as_constant(current: list[Array | None], wanted: Wanted, wildcard: bool) -> list[int] | None:
    """A constant vector good at all dimensions, or None. Entries that vary may stay 0 or -1; one may become -1."""
    template = current[0]
    out = [_same(column) for column in zip(*wanted, strict=True)]
    for i, entry in enumerate(out):
        if entry is None and wildcard and template is not None and int(template[i]) in (0, -1):
            out[i] = int(template[i])
    loose = [i for i, entry in enumerate(out) if entry is None]
    if wildcard and len(loose) == 1 and -1 not in out:
        out[loose[0]], loose = -1, []
    return None if loose else [int(entry) for entry in out if entry is not None]


def as_affine(current: list[Array | None], wanted: Wanted, wildcard: bool = False) -> Affine | None:
    """How to correct the computed vector entry by entry, or None where an entry cannot follow.

    With `wildcard`, entries that are 0 or -1 at all dimensions stay.
    """
    if any(c is None or c.ndim != 1 or len(c) != len(w) for c, w in zip(current, wanted, strict=True)):
        return None
    steps = []
    for i, column in enumerate(zip(*wanted, strict=True)):
        computed = [int(c[i]) for c in current if c is not None]
        steps.append((1, 1, 0) if _follows(computed, column, wildcard) else _entry(computed, list(column)))
    if any(step is None for step in steps):
        return None
    factor, divisor, constant = zip(*(step for step in steps if step is not None), strict=True)
    return Affine(list(factor), list(divisor), list(constant))


def as_factor(current: Sequence[Array | None], wanted: Sequence[Array | None]) -> Array | None:
    """The constant that makes what is computed of what is wanted, by multiplication of floating-point numbers, or None.

    A count of elements that lost a part of them is too small by the same factor at all dimensions.
    """
    pairs = [(c, w) for c, w in zip(current, wanted, strict=True) if c is not None and w is not None]
    if len(pairs) < len(wanted) or any(c.shape != w.shape or w.dtype.kind != "f" or not c.all() for c, w in pairs):
        return None
    factors = [w.astype(np.float64) / c for c, w in pairs]
    same = all(f.shape == factors[0].shape and np.allclose(f, factors[0], rtol=1e-5, atol=0) for f in factors)
    return factors[0].astype(pairs[0][1].dtype) if same else None


def as_dimensions(
    dimensions: Dimensions, current: list[Array | None], wanted: Wanted, wildcard: bool = False
) -> list[Entry] | None:
    """Entry by entry: a constant, what is computed already, or the only dynamic dimension that is as long; or None.

    A dimension itself is preferred to a correction of what was computed (4 heads * batch // 4 is not the batch any
    more with 2 heads, nor twice that an odd batch).
    """
    out: list[Entry] = []
    for i, column in enumerate(zip(*wanted, strict=True)):
        same = [where for where, (_, lengths) in dimensions.items() if lengths == list(column)]
        computed = [int(c[i]) for c in current if c is not None and c.ndim == 1 and len(c) == len(wanted[0])]
        constant = _same(column)
        if len(computed) == len(wanted) and _follows(computed, column, wildcard):
            out.append(None)
        elif constant is not None:
            out.append(constant)
        elif len({dimensions[where][0] for where in same}) == 1:
            out.append(same[0])
        else:
            return None
    return out if any(isinstance(entry, tuple) for entry in out) else None


def _follows(computed: list[int], wanted: Sequence[int], wildcard: bool) -> bool:
    return computed == list(wanted) or (wildcard and _same(computed) in (0, -1))


def _entry(computed: list[int], wanted: list[int]) -> tuple[int, int, int] | None:
    constant = _same(wanted)
    if constant is not None:
        return 0, 1, constant
    common = int(np.gcd(computed[0], wanted[0]))
    if common == 0:
        return None
    factor, divisor = wanted[0] // common, computed[0] // common
    exact = all(c * factor == w * divisor for c, w in zip(computed, wanted, strict=True))
    return (factor, divisor, 0) if exact and divisor > 0 else None


def _same(column: Sequence[int]) -> int | None:
    return int(column[0]) if all(c == column[0] for c in column) else None
