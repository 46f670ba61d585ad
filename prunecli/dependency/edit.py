"""The state of a cut: what rewrites may read and change. `cut.py` runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.atoms import Ints
from prunecli.dependency.views import is_fixed, name_of, open_shape, same_content
from prunecli.errors import PruneError
from prunecli.model.graphs import add_constant, free_name, taken_names
from prunecli.model.shape_inference import Facts, Shape, know_constant, visit
from prunecli.operators.operator import input_of

HINT = "exclude the layers around it with --exclude"
Removed = dict[str, dict[int, Ints]]  # value name -> axis -> removed positions of the original tensor


@dataclass(frozen=True)
class View:
    """The graph at one choice of dynamic dimensions: before, as it must become, and as rewritten so far."""

    before: Facts
    after: Facts


@dataclass
class NodeCut:
    """The state of a cut. Rewrites read sizes and kept positions from it and make their changes through it."""

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
        """Return the original shape at the analysed dimensions."""
        return self.views[0].before.shapes[value] if value is not None else ()

    def removed_at(self, value: ir.Value | None, axis: int) -> Ints | None:
        """Return the removed positions of an axis (negative counts from the end), or None."""
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
        """Return, for an axis of `count` blocks of equal length, how many kept a position."""
        length = self.before(value)[axis] // count
        return len(np.unique(self.kept(value, axis) // length))

    def shape(self, value: ir.Value, view: int = 0) -> Shape:
        """Return the shape of a value after the cut, at the dimensions of a view."""
        before = self.views[view].before.shapes[value]
        first = self.before(value)
        return tuple(_scaled(first[i], self.size(value, i), n) for i, n in enumerate(before))

    def known(self, node: ir.Node, index: int) -> Array | None:
        """The original content of an input, where it was followed."""
        value = input_of(node, index)
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
        constant = add_constant(self.model.graph, _own_name(node), array, taken=self._taken)
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
        value = input_of(node, index)
        current = [view.after.value(value) for view in self.views]
        self.settled.add((node, index))
        if all(agrees(c, w, wildcard) for c, w in zip(current, wanted, strict=True)):
            return
        dtype = np.dtype(np.int64) if current[0] is None else current[0].dtype
        columns = _columns(current, wanted)
        if (constant := as_constant(columns, wildcard)) is not None:
            self.set_input(node, index, np.array(constant, dtype))
        elif (entries := as_dimensions(columns, self._input_dimensions(), wildcard)) is not None:
            node.replace_input_with(index, self._assemble(node, index, entries, dtype=dtype))
        elif (steps := as_affine(columns, wildcard)) is not None:
            for op, operand, idle in zip(("Mul", "Div", "Add"), zip(*steps, strict=True), (1, 1, 0), strict=True):
                if set(operand) != {idle}:
                    value = self.insert(node, op, value, np.array(operand, dtype))
            node.replace_input_with(index, value)
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
        parts = []
        for place, entry in enumerate(entries):
            if isinstance(entry, int):
                parts.append(self.insert(node, "Identity", np.array([entry], dtype)))
            elif entry is None:
                parts.append(self.insert(node, "Gather", node.inputs[index], np.array([place])))
            else:
                shape = self.insert(node, "Shape", inputs[entry[0]])
                picked = self.insert(node, "Gather", shape, np.array([entry[1]]))
                parts.append(self.insert(node, "Cast", picked, to=int(ir.DataType.from_numpy(dtype))))
        return self.insert(node, "Concat", *parts, axis=0)

    def insert(self, before: ir.Node, op: str, *inputs: ir.Value | Array | None, **attributes: int) -> ir.Value:
        """Put `op(*inputs)` before a node and return its output; arrays become constants."""
        name = self._new_name(before)
        values = [None if isinstance(value, np.ndarray) else value for value in inputs]
        step = ir.node(op, values, attributes, name=name)
        step.outputs[0].name = free_name(f"{name}.out", self._taken)
        self.model.graph.insert_before(before, step)
        for index, array in enumerate(inputs):
            if isinstance(array, np.ndarray):
                self.set_input(step, index, array)
        self.visit(step)
        return step.outputs[0]

    def _new_name(self, node: ir.Node) -> str:
        return free_name(_own_name(node), self._taken)

    def visit(self, node: ir.Node) -> None:
        for view in self.views:
            visit(node, view.after, self.model)


def _own_name(node: ir.Node) -> str:
    """Return the prefix of names that are added for a node."""
    return f"{node.name or node.outputs[0].name or node.op_type}.pruned"


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node in the place of another; its first output takes the name and the users of the old one's."""
    values = [old.outputs[0]], [new.outputs[0]]
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], *values)


def _scaled(before: int, after: int, size: int) -> int:
    """Return the new size of an axis that is `size` long at other dimensions: a removal scales with the dynamic
    factor."""
    return after if size == before else size * after // before


Wanted = Sequence[Sequence[int]]  # per view, per entry
Entry = int | tuple[str, int] | None  # a constant, (graph input, axis), or what was computed
Dimensions = dict[tuple[str, int], tuple[str, list[int]]]  # (graph input, axis) -> (name, length per view)


Column = tuple[list[int | None], list[int]]
"""One entry of a vector at every view: as computed now (None where unknown), and as wanted."""


def agrees(current: Array | None, wanted: Sequence[int], wildcard: bool) -> bool:
    """Whether a vector already says what is wanted; with `wildcard` 0 and -1 stand for anything."""
    if current is None or current.ndim != 1 or len(current) != len(wanted):
        return False
    return all(int(c) == w or (wildcard and int(c) in (0, -1)) for c, w in zip(current, wanted, strict=True))


def _columns(current: list[Array | None], wanted: Wanted) -> list[Column]:
    known = [
        c if c is not None and c.ndim == 1 and len(c) == len(w) else None for c, w in zip(current, wanted, strict=True)
    ]
    return [
        ([None if c is None else int(c[i]) for c in known], list(w)) for i, w in enumerate(zip(*wanted, strict=True))
    ]


def as_constant(columns: list[Column], wildcard: bool) -> list[int] | None:
    """Return a constant vector that is right at all dimensions, or None. Entries that vary may stay 0 or -1; one may
    become -1."""
    out = [_same(wanted) for _, wanted in columns]
    for i, (computed, _) in enumerate(columns):
        if out[i] is None and wildcard and computed[0] in (0, -1):
            out[i] = computed[0]
    loose = [i for i, entry in enumerate(out) if entry is None]
    if wildcard and len(loose) == 1 and -1 not in out:
        out[loose[0]], loose = -1, []
    return None if loose else [entry for entry in out if entry is not None]


def as_affine(columns: list[Column], wildcard: bool) -> list[tuple[int, int, int]] | None:
    """How to correct the computed vector, entry by entry: (factor, divisor, constant) of
    computed * factor // divisor + constant; None where an entry cannot follow.

    With `wildcard`, entries that are 0 or -1 at all dimensions stay.
    """
    steps = [(1, 1, 0) if _follows(*column, wildcard) else _entry(*column) for column in columns]
    return None if None in steps else [step for step in steps if step is not None]


def as_factor(current: Sequence[Array | None], wanted: Sequence[Array | None]) -> Array | None:
    """Return the constant factor between what is computed and what is wanted, for floating-point numbers, or None.

    A count of elements of which a part was removed is off by the same factor at all dimensions.
    """
    pairs = [(c, w) for c, w in zip(current, wanted, strict=True) if c is not None and w is not None]
    if len(pairs) < len(wanted) or any(c.shape != w.shape or w.dtype.kind != "f" or not c.all() for c, w in pairs):
        return None
    factors = [w.astype(np.float64) / c for c, w in pairs]
    same = all(f.shape == factors[0].shape and np.allclose(f, factors[0], rtol=1e-5, atol=0) for f in factors)
    return np.asarray(factors[0], pairs[0][1].dtype) if same else None


def as_dimensions(columns: list[Column], dimensions: Dimensions, wildcard: bool) -> list[Entry] | None:
    """Return, entry by entry, a constant, an entry that is computed already, or the only dynamic dimension of that
    length; or None.

    A dimension itself is preferred to a correction of what was computed (4 heads * batch

    4 is no longer the batch with 2 heads, nor is twice that an odd batch).
    """
    out: list[Entry] = []
    for computed, wanted in columns:
        same = [where for where, (_, lengths) in dimensions.items() if lengths == wanted]
        if _follows(computed, wanted, wildcard):
            out.append(None)
        elif (constant := _same(wanted)) is not None:
            out.append(constant)
        elif len({dimensions[where][0] for where in same}) == 1:
            out.append(same[0])
        else:
            return None
    return out if any(isinstance(entry, tuple) for entry in out) else None


def _follows(computed: list[int | None], wanted: list[int], wildcard: bool) -> bool:
    return computed == wanted or (wildcard and _same(computed) in (0, -1))


def _entry(computed: list[int | None], wanted: list[int]) -> tuple[int, int, int] | None:
    known = [c for c in computed if c is not None]
    if len(known) < len(computed):
        return None
    if (constant := _same(wanted)) is not None:
        return 0, 1, constant
    common = int(np.gcd(known[0], wanted[0]))
    if common == 0:
        return None
    factor, divisor = wanted[0] // common, known[0] // common
    exact = all(c * factor == w * divisor for c, w in zip(known, wanted, strict=True))
    return (factor, divisor, 0) if exact and divisor > 0 else None


def _same(column: Sequence[int | None]) -> int | None:
    """Return the number that all entries equal, or None."""
    return column[0] if all(c == column[0] for c in column) else None
