"""Dimensions inside heads are turned before some of them go.

Where only the product of two layers is read, head by head, one may be mixed by any invertible T if the other is by its
inverse: queries and keys, (Q T)(K T^-T)^T = Q K^T; what heads hand on and the layer that reads it, (A T)(T^-1 O) = A O,
A T by values V T. So T is chosen such that the dimensions that go hold the least of the product:

    Gl^(1/2) Gr^(1/2) = U S V^T,   T = Gl^(-1/2) U S^(1/2),   T^-T = Gr^(-1/2) V S^(1/2)

Gl, Gr (d, d): second moments of both sides, over data or, of a layer that reads, over its outputs. With the dimensions
of the largest S the product of any two positions errs least of all of that rank (Eckart and Young 1936), less than by
mixing what is left of both as it is, min over M of |Q M K^T - ...| (CORP 2026). Where a Softmax follows, keys are
centred: what all have in common adds the same to each score of a query.

The layers are found by running: a layer's outputs are replaced by their numbers, and what arrives at a product says
which of them it multiplies. What does more on the way than move and scale (a rotary embedding) is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, without
from prunecli.calibration.batches import CalibrationBatches
from prunecli.calibration.grams import Picker
from prunecli.calibration.layers import LinearLayer, refittable
from prunecli.calibration.layerwise import Store, Walk
from prunecli.errors import PruneError
from prunecli.model.constants import is_constant
from prunecli.model.graphs import refill
from prunecli.operators.product import matrix_axes

Positions = Mapping[str, Mapping[int, Array]]
MOVED = {"Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that move elements of their first input, wherever they go; a Gather by stored places and a Cast to other
floating-point numbers do, too."""
SCALED = ("Mul", "Div")
PASSED = {"Add", "Cast", "Div", "Identity", "Mul", "Where"}
"""What lies between a product and the Softmax of its last axis, which adds the same to all or nothing."""
PRODUCTS = ("MatMul", "FusedMatMul")
POSITIONS = 400
"""Per dimension of a head that are looked at."""
RIDGE = 1e-5
"""Of the mean of a moment's diagonal, added to it: dead dimensions have no inverse."""
_WHOLE = 1e-2
"""By how much a number may be off that was moved, scaled and averaged."""


@dataclass(frozen=True)
class Side:
    """Outputs of a layer, `places` (blocks, d) along `axis` of what it yields, or its inputs if it `reads`. A block may
    stand there several times."""

    layer: LinearLayer
    places: Array
    axis: int = -1
    reads: bool = False


@dataclass(frozen=True)
class Coupling:
    """Block i of `left` is multiplied with block i of `right` alone, dimension by dimension. Blocks with the same
    number in `alike` (blocks,) share one of the two. `centred`: what is the same at all positions of a side does not
    count."""

    left: Side
    right: Side
    alike: Array
    centred: tuple[bool, bool]


@dataclass(frozen=True)
class Turned:
    """Two layers, by their weights, and of how many `heads` dimensions were turned. `lost_before`, `lost`: of the
    squares of the product, by the dimensions that go, as they were and turned, on the samples that judge."""

    left: str
    right: str
    heads: int
    lost_before: float
    lost: float


# -- finding --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _End:
    """Where a layer's outputs arrive: input `index` of a node, and their numbers there."""

    node: ir.Node
    index: int
    numbers: Array


@dataclass
class Couplings:
    """The couplings of a model in working form, in the graph's order."""

    model: ir.Model
    walk: Walk
    _ends: dict[str, list[_End]] = field(default_factory=dict)
    _axes: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Coupling]:
        layers = [layer for layer in refittable(self.model)[0] if _is_plain(layer)]
        writers = {layer.branch: layer for layer in layers}
        readers = {layer.found.data: layer for layer in layers}
        order = {node: number for number, node in enumerate(self.model.graph)}
        met: dict[ir.Node, list[tuple[LinearLayer, int]]] = {}
        for layer in writers.values():
            for node, index in _arrivals(_named(self.model, layer.branch)) or ():
                if node.op_type in PRODUCTS and not any(map(_is_stored, node.inputs)):
                    met.setdefault(node, []).append((layer, index))
        for node in sorted(met, key=order.__getitem__):
            sides = {index: layer for layer, index in met[node]}
            try:
                found = self._product(node, sides) if len(sides) == 2 else self._mixed(node, sides, readers)
            except PruneError:  # what lies between can no longer be run
                found = None
            if found is not None:
                yield found
            for layer in sides.values():
                self.walk.release(layer.branch)

    def _product(self, node: ir.Node, sides: Mapping[int, LinearLayer]) -> Coupling | None:
        """Both sides of a product are outputs of layers."""
        first, second = self._rows(sides[0], node, 0, axis=-1), self._rows(sides[1], node, 1, axis=-2)
        if first is None or second is None:
            return None
        left, right = np.broadcast_arrays(first, second)
        size = left.shape[-1]
        both = np.unique(np.stack([left.reshape(-1, size), right.reshape(-1, size)], axis=1), axis=0)
        left_side, right_side = (self._side(sides[index], both[:, index]) for index in (0, 1))
        return _coupling(left_side, right_side, (False, _in_softmax(node.outputs[0])))

    def _side(self, layer: LinearLayer, places: Array) -> Side:
        return Side(layer, places, self._axes[layer.branch])

    def _mixed(
        self, node: ir.Node, sides: Mapping[int, LinearLayer], readers: Mapping[str, LinearLayer]
    ) -> Coupling | None:
        """Return the coupling of a layer and its reader, where attention weights average between them; None if it is no
        such place."""
        arrivals = _arrivals(node.outputs[0])
        if set(sides) != {1} or arrivals is None or len(arrivals) != 1:
            return None
        reader_node, place = arrivals[0]
        data = reader_node.inputs[place]
        reader = readers.get((data.name if data is not None else "") or "")
        if reader is None or reader.node is not reader_node:
            return None
        rows = self._rows(sides[1], node, 1, axis=-1)
        if rows is None:
            return None
        value = node.outputs[0].name or ""
        self.walk.reach([value])
        spread = np.broadcast_to(rows[..., None, :], self.walk.read(value, 0).shape)
        there = _numbers(self.walk, value, spread, ends=[reader.found.data])
        self.walk.release(value)
        if there is None:
            return None
        self.walk.reach([reader.found.data, reader.output])
        output = self.walk.read(reader.output, 0).shape
        columns = reader.found.columns(there[reader.found.data].astype(np.float32), output, None)[0]
        if (columns != columns[:, :1]).any():
            return None
        return _read_by(self._side(sides[1], rows.reshape(-1, rows.shape[-1])), reader, columns[:, 0].astype(np.int64))

    def _rows(self, layer: LinearLayer, node: ir.Node, index: int, axis: int) -> Array | None:
        """The numbers along an axis of an operand's matrices, the same along the other axis, (batch..., d)."""
        ends = self._arrived(layer)
        own = next((end for end in ends if end.node is node and end.index == index), None)
        if own is None:
            return None
        numbers = own.numbers.transpose(matrix_axes(node, index, own.numbers.ndim))
        numbers = numbers if axis == -1 else numbers.swapaxes(-1, -2)
        others = [end.numbers for end in ends if end is not own]
        if (numbers != numbers[..., :1, :]).any() or any(np.isin(numbers, other).any() for other in others):
            return None
        return np.asarray(numbers[..., 0, :])

    def _arrived(self, layer: LinearLayer) -> list[_End]:
        """Where the layer's outputs go; empty where that cannot be told."""
        if layer.branch not in self._ends:
            arrivals = _arrivals(_named(self.model, layer.branch)) or ()
            values = [node.inputs[index] for node, index in arrivals]
            names = [value.name or "" for value in values if value is not None]
            self.walk.reach([layer.branch])  # and no further: what lies behind needs sizes that are let go of after
            shape = self.walk.read(layer.branch, 0).shape
            self._axes[layer.branch] = len(shape) + layer.found.channel
            along = np.arange(layer.shape[1]).reshape(-1, *[1] * (-layer.found.channel - 1))
            there = _numbers(self.walk, layer.branch, np.broadcast_to(along, shape), ends=names)
            ends = [] if there is None else [
                _End(node, index, there[name]) for (node, index), name in zip(arrivals, names, strict=True)
            ]  # fmt: skip
            self._ends[layer.branch] = ends
        return self._ends[layer.branch]


def _is_plain(layer: LinearLayer) -> bool:
    """Whether nothing but one constant is added to the weight's product, or it is only read."""
    biased = layer.found.bias is not None
    own = layer.offset is not None and layer.offset.node is layer.node
    source = layer.offset.source if layer.offset is not None else None
    if source is not None and not source.is_own:
        return False
    return layer.shape[0] == layer.shape[2] == 1 and layer.norm is None and not layer.added and (own or not biased)


def _is_stored(value: ir.Value | None) -> bool:
    return value is not None and is_constant(value)


def _named(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def _arrivals(value: ir.Value) -> list[tuple[ir.Node, int]] | None:
    """Where a value arrives once it has been moved and scaled; None if the model yields it on the way."""
    found, stack = list[tuple[ir.Node, int]](), [value]
    while stack:
        here = stack.pop()
        if here.is_graph_output():
            return None
        for node, index in here.uses():
            if node.op_type in ("Shape", "Size"):
                continue
            if not node.domain and _moves(node, index):
                stack.extend(node.outputs)
            else:
                found.append((node, index))
    return found


def _moves(node: ir.Node, index: int) -> bool:
    """Whether a node moves and scales the elements of an input."""
    if node.op_type in SCALED:
        return _is_stored(node.inputs[1 - index])
    if node.op_type == "Gather":
        return index == 0 and _is_stored(node.inputs[1])
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to", 0)).is_floating_point()
    return index == 0 and node.op_type in MOVED


def _numbers(walk: Walk, source: str, numbers: Array, ends: Sequence[str]) -> dict[str, Array] | None:
    """The numbers (of the shape of `source`) where they arrive; None if they are not all moved and scaled alike."""
    dtype = walk.read(source, 0).dtype
    ones = walk.passed(source, np.ones(numbers.shape, dtype), ends)
    moved = walk.passed(source, np.ascontiguousarray(numbers).astype(dtype), ends)
    out = {}
    for name in ends:
        scale = np.asarray(ones[name], np.float64)
        factor = scale.flat[0] if scale.size else 0.0
        if not factor or np.abs(scale / factor - 1).max() > _WHOLE / max(numbers.max(), 1):
            return None
        exact = np.asarray(moved[name], np.float64) / factor
        out[name] = np.rint(exact).astype(np.int64)
        if np.abs(exact - out[name]).max() > _WHOLE:
            return None
    return out


def _in_softmax(value: ir.Value) -> bool:
    """Whether a Softmax over its last axis is all that reads a value."""
    while len(users := [node for node, _ in value.uses() if node.op_type != "Shape"]) == 1:
        node = users[0]
        if node.op_type == "Softmax":
            return bool(node.attributes.get_int("axis", -1) == -1)
        if node.op_type not in PASSED:
            return False
        value = node.outputs[0]
    return False


def _read_by(side: Side, reader: LinearLayer, columns: Array) -> Coupling | None:
    """`columns` (K,): which output of the side's layer every input of `reader` holds."""
    left, right = [], []
    for block in np.unique(side.places, axis=0):
        places = [np.flatnonzero(columns == row) for row in block]
        if not len(places[0]) or len({len(each) for each in places}) > 1:
            return None
        for copy in np.stack(places, axis=1):
            left.append(block)
            right.append(copy)
    if sorted(np.concatenate(right)) != list(range(len(columns))):
        return None
    sides = replace(side, places=np.array(left)), Side(reader, np.array(right), reads=True)
    return _coupling(*sides, (reader.offset is not None, False))


def _coupling(left: Side, right: Side, centred: tuple[bool, bool]) -> Coupling | None:
    """Blocks that share a block of the other side are turned alike; None where blocks overlap in part."""
    alike = np.arange(len(left.places))
    for side in (left, right):
        _, block = np.unique(side.places, axis=0, return_inverse=True)
        if len(np.unique(side.places)) != side.places.shape[1] * (block.max() + 1):
            return None
        for one in range(block.max() + 1):
            met = np.unique(alike[block.reshape(-1) == one])
            alike = np.where(np.isin(alike, met), met[0], alike)
    return Coupling(left, right, alike, centred=centred)


# -- turning --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProductMoments:
    """Of both sides, (numbers in `alike`, d, d), float64."""

    left: Array
    right: Array

    def lost(self, one: int, basis: Array, kept: Array) -> float:
        """The squares of the product that go with all but the `kept` dimensions of a basis."""
        rest = np.eye(len(basis)) - basis[:, kept] @ np.linalg.inv(basis)[kept]
        return float(np.trace(rest.T @ self.left[one] @ rest @ self.right[one]))

    def basis(self, one: int, order: Array) -> Array:
        """T (d, d): dimension order[0] holds the most of the product, order[-1] the least."""
        (left, left_inverse), (right, _) = _roots(self.left[one]), _roots(self.right[one])
        u, s, _ = np.linalg.svd(left @ right)
        found = np.empty_like(u)
        found[:, order] = left_inverse @ u * np.sqrt(np.maximum(s, RIDGE * s[0]))
        return found


def _roots(moment: Array) -> tuple[Array, Array]:
    """M^(1/2) and M^(-1/2), with a ridge."""
    values, vectors = np.linalg.eigh(moment)
    root = np.sqrt(np.maximum(values, 0) + RIDGE * max(float(values.mean()), np.finfo(float).tiny))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _moments(found: Coupling, walk: Walk, batches: Sequence[int], data: CalibrationBatches) -> ProductMoments:
    """Over some batches of the data. A layer that reads counts by its weights, and what it reads is the other side."""
    left, right = found.left, found.right
    if not right.reads:
        sides = [
            _second(_values(side, walk, batches, data=data), side.places.shape, centred)
            for side, centred in zip((left, right), found.centred, strict=True)
        ]
        return ProductMoments(
            _by_number(sides[0], left.places, found.alike), _by_number(sides[1], right.places, found.alike)
        )
    weights = right.layer.matrices()[0][:, right.places]  # (rows, blocks, d)
    each = np.einsum("rbd,rbe->bde", weights, weights)
    read = _second(_values(right, walk, batches, data=data), right.places.shape, found.centred[0])
    return ProductMoments(_by_number(read, right.places, found.alike), _by_number(each, right.places, found.alike))


def _measured(found: Coupling) -> list[str]:
    """The values of which moments are taken."""
    if found.right.reads:
        return [found.right.layer.found.data, found.right.layer.output]
    return [found.left.layer.branch, found.right.layer.branch]


def _values(side: Side, walk: Walk, batches: Sequence[int], data: CalibrationBatches) -> Iterator[Array]:
    """(blocks, d, positions) of what the side holds."""
    use, size = side.layer.found, side.places.shape[1]
    picker = Picker(len(batches), size, POSITIONS)
    for number in batches:
        output = walk.read(use.output if side.reads else side.layer.branch, number)
        for places in picker.pick(data.places(use, number, output.shape)):
            if side.reads:
                yield use.columns(walk.read(use.data, number), output.shape, places)[0][side.places]
            else:
                yield use.targets(output, places)[0][side.places]


def _second(parts: Iterator[Array], shape: tuple[int, ...], centred: bool) -> Array:
    blocks, size = shape
    total, mean, count = np.zeros((blocks, size, size)), np.zeros((blocks, size)), 0
    for part in parts:
        total += np.matmul(part, part.swapaxes(1, 2))
        mean += part.sum(axis=2, dtype=np.float64)
        count += part.shape[2]
    mean /= max(count, 1)
    return total / max(count, 1) - (np.einsum("bd,be->bde", mean, mean) if centred else 0.0)


def _by_number(each: Array, places: Array, alike: Array) -> Array:
    """Sums over the different blocks of each number."""
    _, first = np.unique(places, axis=0, return_index=True)
    numbers = np.unique(alike)
    return np.stack([each[[b for b in first if alike[b] == number]].sum(axis=0) for number in numbers])


@dataclass(frozen=True)
class _Turning:
    """The mixing matrices of one coupling: for each number in `alike`, T and T^-1."""

    coupling: Coupling
    bases: Mapping[int, Array]


@dataclass
class TurnedModel:
    """A copy that computes the same. `rank`: by the name of a weight and the position of an output of it, the rank of
    that dimension in its head, 0 for the one that holds the most. `changed`: initializers."""

    model: ir.Model
    done: list[Turned] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    rank: dict[tuple[str, int], int] = field(default_factory=dict)


def turned(model: ir.Model, data: CalibrationBatches, removed: Positions | None = None) -> TurnedModel:
    """The model with the dimensions inside heads turned: so that the `removed` ones hold the least, where it pays on
    the samples that judge; without `removed`, all in descending order.

    Args:
        model: in working form; not changed.
        data: without held-out batches, those that are fitted on are compared.
    Raises:
        PruneError: onnxruntime cannot run a piece of the model.
    """
    with Store() as store:  # one batch tells where layers meet
        found = list(Couplings(model, Walk(model, data.feeds[:1], store, open_session=data.start, keep=())))
    each = [(one, None if removed is None else _gone(one, removed)) for one in found]
    wanted = [(one, gone) for one, gone in each if removed is None or gone is not None]
    plans, out = list[_Turning](), TurnedModel(model)
    fitted, rest = list(range(data.fitted)), list(range(data.fitted, len(data.feeds)))
    batches = [fitted, rest or fitted]
    with Store() as store:
        walk = Walk(model, data.feeds if wanted else [], store, open_session=data.start, keep=())
        for number, (one, gone) in enumerate(wanted):
            walk.reach(_measured(one))
            plan, told = _planned(one, [_moments(one, walk, some, data=data) for some in batches], gone)
            if plan.bases:
                plans.append(plan)
                out.done.append(told)
                out.rank |= _ranks(plan)
            for name in {*_measured(one)}.difference(*(_measured(later) for later, _ in wanted[number + 1 :])):
                walk.release(name)
        walk.close()
    if plans:
        out.model = model.clone()
        out.changed = _apply(out.model, plans)
    return out


def _gone(found: Coupling, removed: Positions) -> dict[int, Array] | None:
    """By number, which dimensions go from heads that stay; None if none do."""
    out = dict[int, Array]()
    positions = removed.get(found.left.layer.branch, {}).get(found.left.axis)
    if positions is None:
        return None
    for number in np.unique(found.alike):
        blocks = np.isin(found.left.places[found.alike == number], positions)
        blocks = np.unique(blocks[~blocks.all(axis=1)], axis=0)
        if len(blocks) == 1 and blocks.any():
            out[int(number)] = blocks[0]
    return out or None


def _planned(
    found: Coupling, moments: Sequence[ProductMoments], gone: Mapping[int, Array] | None
) -> tuple[_Turning, Turned]:  # fmt: skip
    """`moments`: of what is fitted and of what judges."""
    (fitted, judge), bases = moments, dict[int, Array]()
    size, lost, total = found.left.places.shape[1], np.zeros(2), 0.0
    for place, number in enumerate(np.unique(found.alike)):
        went = gone.get(int(number)) if gone is not None else np.zeros(size, bool)
        if went is None:
            continue
        order = np.concatenate([np.flatnonzero(~went), np.flatnonzero(went)])
        basis, kept = fitted.basis(place, order), np.flatnonzero(~went)
        errors = [judge.lost(place, each, kept) for each in (np.eye(size), basis)]
        if gone is not None and not errors[1] < errors[0]:
            continue
        bases[int(number)] = basis
        lost, total = lost + errors, total + judge.lost(place, np.eye(size), np.zeros(0, np.int64))
    heads = int(np.isin(found.alike, list(bases)).sum())
    shares = lost / max(total, np.finfo(float).tiny)
    names = found.left.layer.name, found.right.layer.name
    return _Turning(found, bases), Turned(*names, heads, float(shares[0]), float(shares[1]))


def _ranks(plan: _Turning) -> dict[tuple[str, int], int]:
    sides = [side for side in (plan.coupling.left, plan.coupling.right) if not side.reads]
    return {(s.layer.name, int(row)): rank for s in sides for block in s.places for rank, row in enumerate(block)}


def _apply(model: ir.Model, plans: Sequence[_Turning]) -> list[str]:
    """Change the weights and what is added to their products; the names of the initializers."""
    layers, changed = {layer.name: layer for layer in refittable(model)[0]}, dict[str, None]()
    for plan in plans:
        for side, left in ((plan.coupling.left, True), (plan.coupling.right, False)):
            layer = layers[side.layer.name]
            weights, constants = layer.matrices(), layer.constant()
            _, first = np.unique(side.places, axis=0, return_index=True)
            for block in first:
                basis = plan.bases.get(int(plan.coupling.alike[block]))
                if basis is not None:
                    change = basis.T if left else np.linalg.inv(basis)
                    _mix(weights[0], constants[0], side.places[block], change=change, reads=side.reads)
            refill(layer.weight.holder.value, layer.cast(weights))
            changed[layer.name] = None
            if not side.reads and layer.offset is not None and not layer.offset.new:
                layer.put_constant(model.graph, constants)
                changed[layer.offset.name] = None
    return list(changed)


def _mix(matrix: Array, constant: Array, places: Array, change: Array, reads: bool) -> None:
    """In place: what is yielded at some places becomes `change` times it, or what is read there is taken to be."""
    if reads:
        matrix[:, places] = matrix[:, places] @ change.T
    else:
        matrix[places], constant[places] = change @ matrix[places], change @ constant[places]


def turn(original: ir.Model, cut: ir.Model, removed: Positions, data: CalibrationBatches) -> TurnedModel:
    """The original turned, and in place the cut, which is a copy of it without the `removed` positions. Nothing is
    turned where the cut does not hold the original's numbers."""
    out, changes = turned(original, data, removed), dict[str, Array]()
    for name in out.changed:
        before, after, now = (_stored(model, name) for model in (original, out.model, cut))
        gone = removed.get(name, {})
        if before is None or after is None or now is None or not np.array_equal(now, without(before, gone)):
            return TurnedModel(original)
        changes[name] = without(after, gone)
    for name, array in changes.items():
        refill(cut.graph.initializers[name], array)
    return out


def _stored(model: ir.Model, name: str) -> Array | None:
    value = model.graph.initializers.get(name)
    return None if value is None or value.const_value is None else value.const_value.numpy()
