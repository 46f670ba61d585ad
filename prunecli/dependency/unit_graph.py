"""The unit graph: which unit is computed from which, and how strongly.

Nodes are the units of a catalogue and, for every other axis of a weight, one node for the positions that no unit holds:
an `input` or `output` of the model, or `fixed`. An edge i -> j says that j reads i; its weight is the norm of what lies
between them, sqrt(sum w^2 m_i), m_i the second moment of what i carries (1 where it is not known). A convolution counts
as it is after the BatchNormalization behind it is folded in. Residual sums, splits and concatenations need no edges:
what they join is one unit. A depthwise kernel lies inside its unit. What ends in an operator without weights (a sum
over channels, a product of two computed values, a Reshape that mixes axes) is read, with weight 1, by the nodes that
the data reach next, or by the output that they reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.analysis import analyse, analysed_shapes, kept_together
from prunecli.dependency.catalogue import Catalogue, catalogue, parse_granularity
from prunecli.dependency.prepare import prepare
from prunecli.dependency.slices import WeightSlices
from prunecli.errors import PruneError, keywords
from prunecli.model import Dims, Model, Weight, concrete_shapes, find_weights, load
from prunecli.model.floating import floating
from prunecli.model.graphs import reads
from prunecli.operators import operator_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NodeKind = Literal["input", "output", "fixed"]
Edges = tuple[Array, Array, Array]
DAMPING = 0.85
STEPS = 20_000
EXACT = 1e-10
"""The iteration ends when the ranks change by less than this share of their sum."""


@dataclass(frozen=True)
class UnitGraph:
    """A directed graph. `edges` is (nodes, nodes): entry (i, j) is how strongly j reads i. The nodes 0 .. units - 1 are
    the units of `catalogue`; `names` and `kinds` describe the others, which follow."""

    catalogue: Catalogue
    edges: csr_array
    names: tuple[str, ...]
    kinds: tuple[NodeKind, ...]

    @property
    def units(self) -> int:
        return self.catalogue.count

    @property
    def count(self) -> int:
        return self.units + len(self.names)

    def of_kind(self, kind: NodeKind) -> Array:
        """The nodes of a kind."""
        return self.units + np.flatnonzero([own == kind for own in self.kinds])

    def importance(self, damping: float = DAMPING, preference: Array | None = None) -> Array:
        """Weighted PageRank on the reversed graph: r = g (A r + o) + (1 - g) s, one number per node.

        A[i, j] is the share of i in all that j reads, by the weights of the edges, so a node hands its rank on to what
        it is computed from. o is what outputs are worth: 1 in all. s is `preference` (without it the same for all),
        scaled to a sum of 1 and 0 for units from which no path leads to an output. With g = 1 this is the propagated
        importance of Yu et al. 2018 (NISP), each reader's weights scaled to a sum of 1.

        Args:
            damping: g, in (0, 1].
            preference: one number >= 0 per unit, such as the norm of its activation.
        Raises:
            PruneError: g is outside (0, 1], or with g = 1 ranks go round in the graph for ever.
        """
        from scipy.sparse import diags_array

        if not 0 < damping <= 1:
            raise PruneError(f"a damping of {damping:g} is outside 0 to 1", "give one such as 0.85, or 1 for none")
        total = self.edges.sum(axis=0)
        share = self.edges @ diags_array(1 / np.where(total > 0, total, 1.0))
        start = damping * self._outputs() + (1 - damping) * self._preferred(preference)
        rank = start
        for _ in range(STEPS):
            found = damping * (share @ rank) + start
            if np.abs(found - rank).sum() <= EXACT * found.sum():
                return np.asarray(found)
            rank = found
        raise PruneError("the ranks do not converge: units read each other in a circle", "use a damping below 1")

    def _outputs(self) -> Array:
        out = np.zeros(self.count)
        outputs = self.of_kind("output")
        out[outputs] = 1 / max(len(outputs), 1)
        return out

    def _preferred(self, given: Array | None) -> Array:
        out = np.zeros(self.count)
        out[: self.units] = 1.0 if given is None else given
        out[~self._heard()] = 0
        return out / max(float(out.sum()), np.finfo(float).tiny)

    def _heard(self) -> Array:
        """Return whether a path leads from a node to an output."""
        from scipy.sparse.csgraph import breadth_first_order

        reversed_, found = self.edges.T.tocsr(), np.zeros(self.count, bool)
        for node in self.of_kind("output"):
            found[breadth_first_order(reversed_, node, return_predecessors=False)] = True
        return found


def graph_of(found: Catalogue, moments: Mapping[str, Array] | None = None) -> UnitGraph:
    """Build the graph of an analysed model.

    Args:
        moments: E[x^2] of what a weight reads, by the weight's name, one per position of the axis that is read.
    """
    return _GraphBuilder(found, moments or {}).build()


@keywords
def unit_graph(model: str | Path, granularity: str = "channel,head", dims: Dims | None = None) -> UnitGraph:
    """Read a model and build its unit graph: `graph.edges` is a scipy sparse matrix, `graph.importance()` ranks the
    nodes, `graph.catalogue` has the units.

    Raises:
        PruneError: the file is not a valid model, the granularity is unknown, or `dims` name what is not there.
    """
    kinds, sizes, file = parse_granularity(granularity), dims or Dims(), load(Path(model))
    if "block" in kinds:
        raise PruneError("whole blocks are no nodes of the unit graph", "leave block out of the granularity")
    form = floating(prepare(file.ir))
    work, (whole, blocks) = replace(file, ir=form.model), kept_together(form)
    shapes = analysed_shapes(work, sizes, concrete_shapes(work, sizes))
    return graph_of(catalogue(analyse(work.ir, shapes, whole=whole, blocks=blocks), kinds))


class _GraphBuilder:
    def __init__(self, catalogue: Catalogue, moments: Mapping[str, Array]) -> None:
        self.catalogue, self.moments = catalogue, moments
        self.slices, self.analysis = WeightSlices(catalogue), catalogue.analysis
        self.components = self.analysis.components
        self.table, self.known = self.components.table, len(self.components.table.axes)
        self.node = np.full(len(catalogue.axis_of_atom), -1, np.int64)
        self.node[catalogue.atoms] = np.repeat(np.arange(catalogue.count), np.diff(catalogue.start))
        self.names: list[str] = []
        self.kinds: list[NodeKind] = []
        self.interface = dict(self._interface())

    def _interface(self) -> Iterator[tuple[int, NodeKind]]:
        """Return the roots of the axes of inputs, then of outputs, which take precedence."""
        graph, shapes = self.analysis.model.graph, self.analysis.facts.shapes
        inputs = [value for value in graph.inputs if not value.is_initializer()]
        sides: tuple[tuple[NodeKind, Any], ...] = (("input", inputs), ("output", graph.outputs))
        for kind, values in sides:
            for value in values:
                for index, size in enumerate(shapes.get(value, ())):
                    yield self.table.find(self.table.axis(value, index, size)), kind

    def build(self) -> UnitGraph:
        from scipy.sparse import coo_array, csr_array

        model = Model(self.analysis.model, Path(), "")
        weights = [w for w in find_weights(model).all() if w.kind in ("weight", "embedding")]
        read_by = {weight.name: list(self._edges(weight)) for weight in weights}
        found = [part for parts in read_by.values() for part in parts]
        makers: dict[ir.Node, set[int]] = {}
        for weight in weights:
            own = {int(node) for part in read_by[weight.name] for node in np.unique(part[1])}
            for use in weight.uses:
                makers.setdefault(use.node, set()).update(own)
        found += self._ends(makers, found)
        none = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))
        read, reader, energy = (np.concatenate(parts) for parts in zip(none, *found, strict=True))
        size = self.catalogue.count + len(self.names)
        if not np.isfinite(energy).all():
            raise PruneError("a weight holds NaN or infinite values: its edges have no strength",
                             "repair the model or export it again")  # fmt: skip
        edges = csr_array(coo_array((energy, (read, reader)), shape=(size, size)))
        edges.data = np.sqrt(edges.data)
        edges.eliminate_zeros()
        return UnitGraph(self.catalogue, edges, tuple(self.names), kinds=tuple(self.kinds))

    def _edges(self, weight: Weight) -> Iterator[Edges]:
        """(read, reader, sum of w^2 m) of one weight."""
        if weight.holder.graph is not self.analysis.model.graph or 0 in weight.shape:
            return
        if weight.kind == "embedding":
            if len(weight.shape) != 2:
                return
            energy = np.square(self.slices.array(weight.name)).T[None]
            sides = [self._of_axis(weight, axis)[None] for axis in (1, 0)]
        else:
            energy = np.square(self._scaled(weight)).sum(axis=2)
            sides = [self._nodes(weight, "out"), self._nodes(weight, "in")]
        if len(energy) == 1:
            yield _between(energy[0], sides[0][0], sides[1][0])
        else:  # groups are many and small: pairs are added up later
            read, reader = np.broadcast_arrays(sides[1][:, None, :], sides[0][:, :, None])
            real = (read != reader) & (read >= 0) & (reader >= 0)
            yield read[real].astype(np.int32), reader[real].astype(np.int32), energy[real]

    def _ends(self, makers: Mapping[ir.Node, set[int]], found: Sequence[Edges]) -> Iterator[Edges]:
        """Return the values of layers that end in operators without weights.

        Args:
            makers: of layers, the nodes that they compute.
            found: the edges of all layers.
        """
        made = set().union(*makers.values())
        linked = made.union(*(np.unique(part[0]).tolist() for part in found))
        for node in self.analysis.model.graph:
            if operator_of(node).of_shape:
                continue
            kept = set().union(*(ids for value in node.outputs for ids in self._axes_of(value)))
            axes = [ids & made for value in reads(node) for ids in self._axes_of(value)]
            lost = set().union(*(ids for ids in ([makers[node]] if node in makers else axes) if not ids & kept))
            read = np.array(sorted(lost), np.int32)
            reader = np.array(sorted(self._next(node, linked)) if lost else [], np.int32)
            pairs = np.repeat(read, len(reader)), np.tile(reader, len(read))
            yield *pairs, np.where(pairs[0] == pairs[1], 0.0, 1.0)

    def _axes_of(self, value: ir.Value) -> list[set[int]]:
        """The nodes along each axis of a value."""
        roots = (self.table.root(value, index) for index in range(len(self.analysis.facts.shapes.get(value, ()))))
        nodes = [self.node[self.components.atoms(root)] for root in roots if root is not None and root < self.known]
        return [set(ids[ids >= 0].tolist()) for ids in nodes]

    def _next(self, node: ir.Node, linked: set[int]) -> set[int]:
        """Return the first linked nodes that data reach after an operator, and outputs of the model reached without
        such."""
        waiting, seen, found = list(node.outputs), set[ir.Value](), set[int]()
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            here = set().union(*self._axes_of(value)) & linked
            if not here and value.is_graph_output():
                here = {self._output(value)}
            found |= here
            if not here:
                waiting += [out for use in value.uses() for out in use.node.outputs]
        return found

    def _output(self, value: ir.Value) -> int:
        """The node of an output of the model along which no layer lies."""
        for place, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True)):
            if (name, kind) == (value.name, "output"):
                return self.catalogue.count + place
        self.names.append(value.name or "")
        self.kinds.append("output")
        return self.catalogue.count + len(self.names) - 1

    def _scaled(self, weight: Weight) -> Array:
        """Return the canonical weight, times the norms of its columns' inputs."""
        canonical = weight.layout.canonical(self.slices.array(weight.name))
        norms = self.moments.get(weight.name)
        return canonical if norms is None or len(norms) != canonical.shape[3] else canonical * np.sqrt(norms)

    def _nodes(self, weight: Weight, side: Literal["out", "in"]) -> Array:
        """Return the nodes of the canonical weight's rows or columns, (batch, rows) or (batch, cols); -1: unknown.
        Among several stored axes along which they lie, the one that holds units counts."""
        batch, rows, _, cols = weight.layout.canonical_shape
        if side == "in" and (batch > 1 or cols == 1) and (grouped := self._of_groups(weight, batch, cols)) is not None:
            return grouped
        best = np.full((batch, rows if side == "out" else cols), -1, np.int64)
        wide_axes = [axis for axis, size in enumerate(weight.shape) if size > 1]
        mine = [axis for axis in wide_axes if self.slices.role(weight.name, axis) == side]
        for axis in mine or [axis for axis in range(len(weight.shape)) if axis not in wide_axes]:
            ids = self._of_axis(weight, axis)
            wide = np.broadcast_to(
                ids.reshape([-1 if k == axis else 1 for k in range(len(weight.shape))]), weight.shape
            )
            canonical = weight.layout.canonical(wide)
            own = canonical[:, :, 0, 0] if side == "out" else canonical[:, 0, 0, :]
            best = np.where((best < 0) | ((own >= 0) & (own < self.catalogue.count)), own, best)
        return best

    def _of_axis(self, weight: Weight, axis: int) -> Array:
        size = weight.shape[axis]
        return self._of(self.table.axis(weight.holder.value, axis, size), size)

    def _of_groups(self, weight: Weight, groups: int, cols: int) -> Array | None:
        """Of a convolution: the channels of its data, a stretch per group."""
        data, shapes = weight.uses[0].node.inputs[0], self.analysis.facts.shapes
        if data is None or data not in shapes or len(shapes[data]) < 3 or shapes[data][1] != groups * cols:
            return None
        return self._of(self.table.axis(data, 1, groups * cols), groups * cols).reshape(groups, cols)

    def _of(self, axis: int, size: int) -> Array:
        """Return the nodes of an axis' positions. An axis that no rule has named has none."""
        if axis >= self.known:
            return np.full(size, -1, np.int64)
        atoms = self.components.atoms(axis)
        loose = atoms[self.node[atoms] < 0]
        if len(loose):
            root = self.table.find(axis)
            self.node[loose] = self.catalogue.count + len(self.names)
            self.names.append(self._name(root))
            self.kinds.append(self.interface.get(root, "fixed"))
        return np.asarray(self.node[atoms])

    def _name(self, root: int) -> str:
        """The first value that has the axis; inputs and outputs of the model before others."""
        graph = self.analysis.model.graph
        values = [a.value for n, a in enumerate(self.table.axes) if a.value is not None and self.table.find(n) == root]
        ends = [value for value in values if value in graph.outputs] or [v for v in values if v in graph.inputs]
        return next((value.name or "" for value in [*ends, *values]), "")


def _between(energy: Array, rows: Array, cols: Array) -> Edges:
    """The edges of one matrix, whose rows and columns belong to these nodes (-1: to none), each pair once."""
    (reader, row_of), (read, col_of) = (np.unique(ids, return_inverse=True) for ids in (rows, cols))
    sums = _summed(_summed(energy, row_of, len(reader), axis=0), col_of, len(read), axis=1)
    sums = sums[np.searchsorted(reader, 0) :, np.searchsorted(read, 0) :]
    reader, read = (ids[ids >= 0].astype(np.int32) for ids in (reader, read))
    _, mine, own = np.intersect1d(reader, read, assume_unique=True, return_indices=True)
    sums[mine, own] = 0  # what lies inside a unit
    return np.tile(read, len(reader)), np.repeat(reader, len(read)), sums.reshape(-1)


def _summed(matrix: Array, labels: Array, count: int, axis: int) -> Array:
    """The sums over rows or columns of one label; labels are 0 .. count - 1."""
    order = np.argsort(labels, kind="stable")
    sorted_ = np.take(matrix, order, axis)
    if count == matrix.shape[axis]:
        return sorted_
    return np.asarray(np.add.reduceat(sorted_, np.searchsorted(labels[order], np.arange(count)), axis=axis))
