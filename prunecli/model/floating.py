"""The floating-point form of a quantised model: the same network over real numbers.

Whoever reads weights, measures or fits them does it on this form, by the names of the file: a stored integer tensor
becomes the numbers it stands for (lazily), QuantizeLinear and DequantizeLinear go, and integer operators become the
operators they stand for. What rounding does to activations is left out. `requantise` writes changed numbers back.

    Quantised         one stored tensor, its scale and zero point (`quantised.py`)
    floating(model)   the form, and which of its weights are stored as integers
    @restates         how one operator is said in floating point

A value that is left out is known by another's name (`aliases`): positions of the one are positions of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.model.constants import Constant, Holder, behind, holders, same_zero_point
from prunecli.model.graphs import add_constant, all_graphs, free_name, taken_names
from prunecli.model.loading import Model
from prunecli.model.quantised import UNREAD, Grid, Quantised, Unfolded, block_table, experts, nbits, quantised
from prunecli.operators import MICROSOFT, operator_of
from prunecli.operators.attributes import UnreadableAttributeError, integer, number, text
from prunecli.operators.operator import input_of
from prunecli.registry import into_operators
from prunecli.storage.stored import stored, unmap

Value = ir.Value | None
Positions = dict[str, dict[int, Array]]


class RealTensor(ir.LazyTensor):
    """The numbers that a stored tensor of integers stands for, computed when they are read."""

    def __init__(self, source: Quantised, name: str) -> None:
        self.source = source
        shape = ir.Shape(source.shape)
        super().__init__(self._read, dtype=source.dtype, shape=shape, name=name)

    def _read(self) -> ir.TensorProtocol:
        array = self.source.array()
        unmap(self.source.tensor)
        return ir.Tensor(array, dtype=self.source.dtype)


@dataclass(frozen=True)
class Companion:
    """Axis `own` of the value `name`, a scale or a zero point, has one position for every `block` positions of axis
    `axis` of `owner`."""

    name: str
    own: int
    owner: str
    axis: int
    block: int = 1


@dataclass(frozen=True)
class FloatingForm:
    """`model` computes in floating point.

    Attributes:
        sources: by the name of a weight, how the file stores it.
        aliases: by the name of a value that is left out, whose positions are its own.
        companions: what has to be cut together with weights.
        rounded: by the name of a value that the file rounds, the names of its scale and zero point, "" for none.
        results: by the name of what an integer operator gives, the name of the value that has the numbers.
        problem: why this is the model itself, though it is quantised.
    """

    model: ir.Model
    sources: dict[str, Quantised] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    companions: list[Companion] = field(default_factory=list)
    rounded: dict[str, tuple[str, str]] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def zero_points(self) -> dict[str, str]:
        """By the name of a value that the file rounds, the name of its zero point, "" for zero."""
        return {name: zero for name, (_, zero) in self.rounded.items()}

    def _resolved(self) -> Iterator[tuple[str, str]]:
        """Aliases of what is in the form: one may be of another."""
        for name in self.aliases:
            yield name, self.value_of(name)

    def value_of(self, name: str) -> str:
        """The name of the value of the form that has the numbers."""
        while name in self.aliases:
            name = self.aliases[name]
        return name

    def extended(self, removed: Positions) -> Positions:
        """Positions of this form, and those that go with them of the values that only the quantised model has.

        Raises:
            PruneError: a scale is shared by weights that lose different positions.
        """
        out = {name: dict(axes) for name, axes in removed.items()}
        out |= {name: out[known] for name, known in self._resolved() if known in out}
        for name, source in self.sources.items():
            last = len(source.shape) - 1
            if source.together and last in out.get(name, {}):
                out[name][last] = np.unique(out[name][last] // (8 // source.bits))
        shared = dict[tuple[str, int], Array]()
        for one in self.companions:
            gone = np.unique(removed.get(one.owner, {}).get(one.axis, np.zeros(0, np.int64)) // one.block)
            if not np.array_equal(shared.setdefault((one.name, one.own), gone), gone):
                raise PruneError(f"the scale {one.name!r} is shared by weights that lose different channels",
                                 "leave one of their layers out with --exclude")  # fmt: skip
            if len(gone):
                out.setdefault(one.name, {})[one.own] = gone
        return out


class _UnknownError(Exception):
    """An operator reads or makes integers in a way that is not known."""


NONSENSE = (UnreadableAttributeError, LookupError, ValueError, ArithmeticError, AttributeError, AssertionError)
"""What a rule meets where a node lacks an input, or tensors have other ranks and sizes than its operator asks for."""


def touches_integers(node: ir.Node) -> bool:
    """Whether a node reads or makes integers that stand for other numbers."""
    return (node.domain, node.op_type) in RESTATED


def is_quantised(model: ir.Model) -> bool:
    """Whether any operator reads or makes integers that stand for other numbers."""
    return any(touches_integers(node) for graph in all_graphs(model) for node in graph)


def floating(model: ir.Model) -> FloatingForm:
    """The floating-point form; the model itself, unchanged, if it is not quantised or not all of it is known."""
    if not is_quantised(model):
        return FloatingForm(model)
    work = model.clone()
    work.meta.update(model.meta)
    form = FloatingForm(work)
    graphs = list(all_graphs(work))
    read = {value for graph in graphs for value in _values(graph) if value.uses()}
    editor = Restatement(form)
    try:
        for graph in graphs:
            editor.restate(graph)
    except (_UnknownError, *NONSENSE) as reason:
        problem = str(reason) if isinstance(reason, _UnknownError) else f"quantised operators make no sense: {reason}"
        model.meta[UNREAD] = problem
        return FloatingForm(model, problem=problem)
    for graph in reversed(graphs):
        _drop_unread(graph, (read | editor.made) - editor.unread)
    return form


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _drop_unread(graph: ir.Graph, read: set[ir.Value]) -> None:
    """Leave out what was read and is no more: scales, and what is computed of them."""
    for node in reversed(list(graph)):
        if all(out in read and not out.uses() and not out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        if value in read and not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[value.name or ""]


def floats_of(model: Model) -> Model:
    """The model with its floating-point form in place of the graph."""
    return replace(model, ir=floating(model.ir).model)


def stored_as(tensor: ir.TensorProtocol) -> Quantised | None:
    """How the file stores a tensor of the floating-point form; None if as it is."""
    return tensor.source if isinstance(tensor, RealTensor) else None


def as_stored(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """What the file stores where its floating-point form has this."""
    return tensor.source.tensor if isinstance(tensor, RealTensor) else tensor


def requantise(floats: ir.Model, model: ir.Model) -> None:
    """Store in `model` what has changed in its floating-point form since that was made: as it is where the weight is
    stored in floating point, else by the stored scales. Computed when it is read."""
    for ours, theirs in zip(all_graphs(floats), all_graphs(model), strict=True):
        changed = {holder.name: holder for holder in _of(floats, ours)}
        for holder in _of(model, theirs):
            made = changed.get(holder.name)
            if made is None or made.tensor is holder.tensor or isinstance(made.tensor, RealTensor):
                continue
            holder.put(_written(holder.tensor, made.tensor, made.value.meta.get(SOURCE)))


def _of(model: ir.Model, graph: ir.Graph) -> list[Holder]:
    return [holder for holder in holders(model) if holder.graph is graph]


SOURCE = "prunecli.quantised"
"""Key in the `meta` of a weight of the form: how it is stored. Two branches may have weights of one name."""


def _written(old: ir.TensorProtocol, new: ir.TensorProtocol, source: Quantised | None) -> ir.TensorProtocol:
    if source is None:
        return new

    def compute() -> ir.TensorProtocol:
        return source.replaced(source.write(new.numpy()))

    return ir.LazyTensor(compute, dtype=old.dtype, shape=ir.Shape(old.shape.numpy()), name=old.name)


# -- restating --------------------------------------------------------------------------------------


Restate = Callable[["Restatement", ir.Node], None]
RESTATED: dict[tuple[str, str], Restate] = {}


restates = into_operators(RESTATED)
"""Register how operators that read or make integers are said in floating point."""


FOLLOWING = ("GatherElements", "Identity", "Max", "MaxPool", "Min", "Relu", "Resize", "Where")
"""Operators, besides those that move elements or read shapes, that do to integers what they do to the numbers these
stand for, and give the type that they read."""


@dataclass
class Restatement:
    """The restatement of a model's graphs, in place, one after the other.

    Attributes:
        graph: the one that is being restated.
        real: values that integer operators may read as numbers.
        reads: the nodes that read as integers what are numbers now.
        visited: the nodes that have been restated or left as they are.
        made: new constants.
        unread: values whose numbers nothing reads in the file either.
        products: of the DequantizeLinear of a layer's bias, the scales of its data and its weight.
    """

    form: FloatingForm
    graph: ir.Graph = field(init=False)
    real: set[ir.Value] = field(default_factory=set)
    reads: set[ir.Node] = field(default_factory=set)
    visited: set[ir.Node] = field(default_factory=set)
    made: set[ir.Value] = field(default_factory=set)
    unread: set[ir.Value] = field(default_factory=set)
    products: dict[ir.Node, tuple[ir.Value, ...]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def restate(self, graph: ir.Graph) -> None:
        """All nodes of one graph; those of the graphs that it reads from are."""
        self.graph, self.taken = graph, taken_names(graph)
        for node in graph:
            makers = [value.producer() if value is not None else None for value in node.inputs[:3]]
            known = [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]
            if operator_of(node).bias == 2 and len(known) == 3:
                self.products[known[2]] = tuple(v for v in (known[0].inputs[1], known[1].inputs[1]) if v is not None)
        for node in list(graph):
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        """Restate one node; the ones before it are."""
        if node.graph is None:  # left out together with one before it
            return
        rule = RESTATED.get((node.domain, node.op_type))
        if rule is not None:
            rule(self, node)
        elif node in self.reads:
            self._follow(node)
        self.visited.add(node)

    def _follow(self, node: ir.Node) -> None:
        """A node that treats what was integers as it treats numbers."""
        known = operator_of(node)
        if node.domain or not (known.moves or known.of_shape or node.op_type in FOLLOWING):
            raise _UnknownError(f"{node.op_type} {node.name!r} reads quantised integers")
        if node.op_type == "Pad" and text(node, "mode", "constant") == "constant":
            points = [input_of(use.node, 2) for use in node.outputs[0].uses()]  # where all that reads integers has it
            if not all(same_zero_point(input_of(node, 2), point) for point in points):
                raise _UnknownError(f"Pad {node.name!r} puts integers that stand for other numbers than zero")
            if input_of(node, 2) is not None:
                node.replace_input_with(2, None)
        if not known.of_shape:
            self.make_real(*node.outputs)

    # -- values -----------------------------------------------------------------------------------

    def make_real(self, *values: ir.Value) -> None:
        """From now on these are numbers.

        Raises:
            _UnknownError: one of them is an output of the model, which gives integers.
        """
        for value in values:
            if value.is_graph_output():
                raise _UnknownError(f"the output {value.name!r} gives quantised integers")
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self._read_as_numbers(value, value)

    def _read_as_numbers(self, value: ir.Value, integers: ir.Value) -> None:
        """A value is real; whoever reads `integers` reads it."""
        self.real.add(value)
        for reader in dict.fromkeys(use.node for use in integers.uses()):
            self.reads.add(reader)
            if reader in self.visited and not touches_integers(reader):
                self._follow(reader)

    def numbers(self, value: Value, scale: Value, zero_point: Value, *, axis: int = 1, before: ir.Node) -> Value:
        """The numbers that a value stands for: itself where it is real by now, a stored weight, or a DequantizeLinear
        put before `before`."""
        if value is None or value in self.real:
            return value
        if stored(value) is not None:
            return self.weight(value, quantised(value, scale, zero_point, axis=axis), before)
        if self.looked_up(value, scale, zero_point, before=before):
            return value
        inputs = [value, scale, *([zero_point] if zero_point is not None else [])]
        return self.insert(before, "DequantizeLinear", inputs)

    def weight(self, value: ir.Value, source: Quantised | None, before: ir.Node) -> ir.Value:
        """Put numbers in the place of a stored tensor. Read by another scale before, what it holds is adapted.

        Raises:
            _UnknownError: how it is stored is not known.
        """
        if source is None:
            raise _UnknownError(f"the scale of {value.name!r} is computed, or does not fit it")
        present = stored(value)
        for parameter in source.parameters:
            self.follow(parameter, value, source)
        if isinstance(present, RealTensor):
            return self._adapted(value, present.source, source, before=before)
        holder = self._holder(value)
        holder.put(RealTensor(source, value.name or ""))
        value.shape, value.type = ir.Shape(source.shape), ir.TensorType(source.dtype)
        value.meta[SOURCE] = source
        self.form.sources.setdefault(value.name or "", source)
        self._read_as_numbers(value, value)
        return value

    def looked_up(self, rows: ir.Value, scale: Value, zero_point: Value, before: ir.Node) -> bool:
        """Whether a value is rows of a stored table of integers, as of an embedding, that become numbers by one scale.
        If so, the table holds numbers from now on."""
        lookup = rows.producer()
        table = lookup.inputs[0] if lookup is not None and lookup.op_type == "Gather" and not lookup.domain else None
        single = all(held is None or held.size == 1 for held in map(stored, (scale, zero_point)))
        found = quantised(table, scale, zero_point) if single else None
        if table is None or found is None or isinstance(stored(table), RealTensor):
            return False
        self.weight(table, found, before)
        return True

    def follow(self, parameter: Value, owner: ir.Value, source: Quantised) -> None:
        """A scale or zero point is cut with the axes of the weight that it has numbers for."""
        held = stored(parameter)
        if held is None or held.size == 1 or source.bits or parameter is None:
            return
        own = tuple(held.shape.numpy())
        spread = source.scale.shape if source.scale.size > 1 else source.zero_point.shape
        varied = [axis for axis, size in enumerate(spread) if size > 1]
        places = [axis for axis, size in enumerate(own) if size > 1]
        for place, axis in zip(places, varied, strict=True):
            block = source.block if source.block and axis == source.axis else 1
            self.form.companions.append(
                Companion(parameter.name or "", place, owner.name or "", axis=axis, block=block)
            )

    def _holder(self, value: ir.Value) -> Holder:
        return Holder(value, self.graph, value.producer())

    def _adapted(self, value: ir.Value, first: Quantised, source: Quantised, before: ir.Node) -> ir.Value:
        """(q - z') s' from (q - z) s."""
        if _holds_the_same(first, source):
            return value
        if first.block or source.block or first.bits or source.bits:
            raise _UnknownError(f"{value.name!r} is read by several scales in blocks")
        kind = source.dtype.numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.nan_to_num(np.asarray(source.scale, np.float64) / first.scale)
        shift = (np.asarray(first.zero_point, np.float64) - source.zero_point) * source.scale
        made = value
        if not (ratio == 1).all():
            made = self.insert(before, "Mul", [made, self.constant(ratio.astype(kind))])
        return self.insert(before, "Add", [made, self.constant(shift.astype(kind))]) if shift.any() else made

    def constant(self, array: Array) -> ir.Value:
        """A new stored value."""
        name = "prunecli.constant"
        if self.graph is self.form.model.graph:
            value = add_constant(self.graph, name, array, taken=self.taken)
            self.made.add(value)
            return value
        name = free_name(name, self.taken)
        node = ir.node("Constant", [], {"value": ir.Tensor(array, name=name)}, name=name)
        node.outputs[0].name = name
        self.graph.insert_before(self.graph[0], node)
        self.made.add(node.outputs[0])
        return node.outputs[0]

    # -- nodes ------------------------------------------------------------------------------------

    def insert(self, before: ir.Node, op: str, inputs: Sequence[Value], attributes: dict[str, Any] | None = None,
               domain: str = "") -> ir.Value:  # fmt: skip
        """A new node before another; its output."""
        name = free_name(f"{before.name or before.op_type}.{op}", self.taken)
        node = ir.node(op, inputs, attributes or {}, domain=domain, name=name)
        node.outputs[0].name = free_name(f"{name}.out", self.taken)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def become(self, node: ir.Node, op: str, inputs: Sequence[Value], keep: Sequence[str] = (), domain: str = ""
               ) -> None:  # fmt: skip
        """Let a node be another operator, on these inputs, with those of its attributes that are named."""
        kept = {name: node.attributes[name] for name in keep if name in node.attributes}
        node.op_type, node.domain, node.version = op, domain, None
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        node.attributes.clear()
        node.attributes.update(kept)

    def skip(self, node: ir.Node, source: ir.Value) -> None:
        """Leave a node out: whoever reads its output reads `source`."""
        out = node.outputs[0]
        if out.is_graph_output():
            self.become(node, "Identity", [source])
            return
        if not out.uses():
            self.unread.add(source)
        for user, index in list(out.uses()):
            user.replace_input_with(index, source)
        self.form.aliases[out.name or ""] = source.name or ""
        self.graph.remove(node, safe=True)

    def merge(self, node: ir.Node, source: ir.Value) -> None:
        """Leave out a node that makes integers of numbers."""
        self._read_as_numbers(source, node.outputs[0])
        self.skip(node, source)

    def stored_again(self, node: ir.Node, scale: Value, zero_point: Value) -> None:
        """The node's output, which is real, was rounded to integers by this scale. A zero point at an end of their
        range makes numbers of one sign: that is how quantisers store what a Relu gives, and leave it out."""
        out = node.outputs[0]
        low, high = self._ends(zero_point)
        self.form.rounded[out.name or ""] = _names(scale, zero_point)
        if out.is_graph_output():
            self._rounded_output(node, scale, zero_point)
            return
        if low and not (node.op_type == "Relu" and not node.domain):
            self._through(node, "Relu")
        elif high:
            self._through(node, "Min", self.constant(np.zeros((), np.float32)))
        self.make_real(out)

    def _ends(self, zero_point: Value) -> tuple[bool, bool]:
        """Whether no number is negative, or none positive."""
        tensor = stored(zero_point)
        if tensor is None:
            return zero_point is None, False
        array, grid = np.asarray(tensor.numpy()).astype(np.float64), Grid.of(tensor.dtype)
        return bool((array == grid.low).all()), bool((array == grid.high).all())

    def _through(self, node: ir.Node, op: str, *others: ir.Value) -> None:
        """Let the output of a node be what `op` makes of it."""
        inner = self.insert(node, node.op_type, list(node.inputs), attributes=dict(node.attributes), domain=node.domain)
        self.become(node, op, [inner, *others])

    def _rounded_output(self, node: ir.Node, scale: Value, zero_point: Value) -> None:
        inner = self.insert(node, node.op_type, list(node.inputs), attributes=dict(node.attributes), domain=node.domain)
        self.become(node, "QuantizeLinear", [inner, scale, *([zero_point] if zero_point is not None else [])])


def _names(scale: Value, zero_point: Value) -> tuple[str, str]:
    return tuple(value.name or "" if value is not None else "" for value in (scale, zero_point))  # type: ignore[return-value]


def _holds_the_same(one: Quantised, other: Quantised) -> bool:
    """Whether scales and zero points are alike."""
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("scale", "zero_point"))


@restates("QuantizeLinear")
@restates("QuantizeLinear", domain=MICROSOFT)
def _quantize(r: Restatement, node: ir.Node) -> None:
    """y = round(x / scale) + zero point."""
    source, zero_point = node.inputs[0], input_of(node, 2)
    assert source is not None
    out = node.outputs[0]
    unsigned = zero_point is not None or not _stated_type(node).is_signed()
    r.form.rounded[out.name or ""] = _names(node.inputs[1], zero_point)
    if out.is_graph_output():
        return
    if (unfolded := _unfolded(node, source, zero_point)) is not None:
        weight = r.weight(source, unfolded, node)
        r._read_as_numbers(weight, out)
        r.skip(node, weight)
        return
    _follow_vectors(r, node, source)
    low, high = (False, False) if stored(source) is not None or not unsigned else r._ends(zero_point)
    producer = source.producer()
    if low and not (producer is not None and producer.op_type == "Relu"):
        r.become(node, "Relu", [source])
        r.make_real(out)
    elif high:
        r.become(node, "Min", [source, r.constant(np.zeros((), np.float32))])
        r.make_real(out)
    else:
        r.merge(node, source)


def _stated_type(node: ir.Node) -> ir.DataType:
    """What a QuantizeLinear without zero point gives."""
    return ir.DataType(integer(node, "output_dtype", 0) or ir.DataType.UINT8)


def _unfolded(node: ir.Node, source: ir.Value, zero_point: Value) -> Unfolded | None:
    """A weight stored in floating point that nothing else reads, by the scales by which it becomes integers."""
    held, offset = stored(source), stored(zero_point)
    if held is None or not held.dtype.is_floating_point() or len(list(source.uses())) > 1 or source.is_graph_output():
        return None
    kind = offset.dtype if offset is not None else _stated_type(node)
    axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
    found = quantised(source, node.inputs[1], zero_point, axis=axis, block=block)
    return None if found is None or kind.is_floating_point() else Unfolded.of(found, kind)


def _follow_vectors(r: Restatement, node: ir.Node, owner: ir.Value) -> None:
    """Scales of data, or of a weight that is rounded while the model runs, along an axis.

    Raises:
        _UnknownError: the axis is counted from the end, or scales are of blocks.
    """
    axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
    for parameter in node.inputs[1:3]:
        held = stored(parameter)
        if held is None or held.size == 1 or parameter is None:
            continue
        if axis < 0 or block or len(held.shape) != 1:
            raise _UnknownError(f"{node.op_type} {node.name!r} has scales of data in a way that is not known")
        r.form.companions.append(Companion(parameter.name or "", 0, owner.name or "", axis=axis))


@restates("DequantizeLinear")
@restates("DequantizeLinear", domain=MICROSOFT)
def _dequantize(r: Restatement, node: ir.Node) -> None:
    """y = (x - zero point) * scale."""
    source = node.inputs[0]
    assert source is not None
    if source in r.real and not isinstance(stored(source), RealTensor):
        _follow_vectors(r, node, source)
        r.skip(node, _read_again(r, node, source))
    elif stored(source) is not None:
        axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
        found = quantised(source, node.inputs[1], input_of(node, 2), axis=axis, block=block)
        if found is not None:
            found = replace(found, product=r.products.get(node, ()))
        r.skip(node, r.weight(source, found, node))
    elif (moved := behind(source)) is not None and len(moved.types) == 1 and not integer(node, "block_size", 0):
        _moved_weight(r, node, moved)
    elif r.looked_up(source, node.inputs[1], input_of(node, 2), before=node):
        r.skip(node, source)


def _read_again(r: Restatement, node: ir.Node, source: ir.Value) -> ir.Value:
    """What a DequantizeLinear makes of numbers: the same, but of a stored weight, moved or looked up, that another
    DequantizeLinear has read by other scales, these numbers adapted.

    Raises:
        _UnknownError: one of the scales is no single number.
    """
    producer = source.producer()
    looked_up = producer is not None and producer.op_type == "Gather" and not producer.domain
    held = behind(producer.inputs[0] if looked_up and producer is not None else source)
    first = stored_as(held.tensor) if held is not None else None
    if first is None or first.parameters == (node.inputs[1], input_of(node, 2)):
        return source
    scale, zero_point = stored(node.inputs[1]), stored(input_of(node, 2))
    single = all(one is None or one.size == 1 for one in (scale, zero_point, first.scale, first.zero_point))
    if scale is None or not single:
        raise _UnknownError(f"{source.name!r} is read by several scales that are no single numbers")
    offset = np.zeros((), np.int32) if zero_point is None else np.asarray(zero_point.numpy()).astype(np.int32)
    second = replace(first, scale=np.asarray(scale.numpy()).reshape(()), zero_point=offset.reshape(()))
    return r._adapted(source, first, second, before=node)


def _moved_weight(r: Restatement, node: ir.Node, moved: Constant) -> None:
    """A stored weight whose integers are transposed or reshaped before they become numbers."""
    axis = moved.axis(integer(node, "axis", 1)) if moved.steps else integer(node, "axis", 1)
    single = all(held is None or held.size == 1 for held in map(stored, node.inputs[1:3]))
    if axis is None and not single:
        return
    found = quantised(moved.way[0], node.inputs[1], input_of(node, 2), axis=axis or 0)
    if found is None:
        return
    r.weight(moved.way[0], found, node)
    r.skip(node, moved.way[-1])


@restates("DynamicQuantizeLinear")
def _dynamic(r: Restatement, node: ir.Node) -> None:
    """y, scale, zero point: the number itself, 1 and 0."""
    source, (_, scale, zero_point) = node.inputs[0], node.outputs
    assert source is not None
    if any(value.is_graph_output() for value in node.outputs):
        raise _UnknownError("an output of DynamicQuantizeLinear is one of the model")
    for old, new in ((scale, np.ones((), np.float32)), (zero_point, np.zeros((), np.uint8))):
        made = r.constant(new) if old.uses() else None
        for user, index in list(old.uses()):
            user.replace_input_with(index, made)
    r.merge(node, source)


@restates("ConvInteger")
def _conv_integer(r: Restatement, node: ir.Node) -> None:
    _unscaled(r, node, "Conv", axis=0, keep=KERNEL)


@restates("MatMulInteger")
def _matmul_integer(r: Restatement, node: ir.Node) -> None:
    _unscaled(r, node, "MatMul", axis=-1, keep=())


KERNEL = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _unscaled(r: Restatement, node: ir.Node, op: str, axis: int, keep: Sequence[str]) -> None:
    """op(x - zero point, w - zero point) in integers. The scale that a stored weight's result is multiplied with
    afterwards is the weight's; where it is not found the weight is read as its steps."""
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    tail = _Tail.of(r, node)
    scales = tail.stored if tail is not None else ()
    if x not in r.real:
        scale = scales[0] if len(scales) == 2 else None
        known = scale is not None and stored(x) is None and r.looked_up(x, scale, input_of(node, 2), before=node)
        if scale is None or (stored(x) is None and not known):
            raise _UnknownError(f"{node.op_type} {node.name!r} reads integers of an unknown scale")
        x = r.numbers(x, scale, input_of(node, 2), axis=-2 if op == "MatMul" else 1, before=node)
    if w not in r.real:
        source = quantised(w, scales[-1], input_of(node, 3), axis=axis) if scales else None
        if source is None:
            raise _UnknownError(f"the scale of {w.name!r} is not found behind {node.op_type}")
        w = r.weight(w, source, node)
        assert tail is not None
        mine = [one for one in r.form.companions if (one.name, one.owner) == (scales[-1].name, w.name)]
        r.form.companions.extend(replace(one, name=product.name or "") for product in tail.products for one in mine)
    if tail is None:
        raise _UnknownError(f"the scales behind {node.op_type} {node.name!r} are not found")
    r.become(node, op, [x, w], keep=keep)
    r.make_real(node.outputs[0])
    tail.leave_out(r, node.outputs[0])


@dataclass(frozen=True)
class _Tail:
    """What follows an integer operator: Cast to floating point, and a product with both scales (or one after the
    other). `stored`: the stored ones of the scales, the data's before the weight's; `products`: of both scales."""

    nodes: tuple[ir.Node, ...]
    stored: tuple[ir.Value, ...]
    products: tuple[ir.Value, ...] = ()

    @classmethod
    def of(cls, r: Restatement, node: ir.Node) -> _Tail | None:
        cast = _only_user(node.outputs[0])
        if cast is None or cast.op_type != "Cast":
            return None
        found, scales, products = [cast], list[ir.Value](), list[ir.Value]()
        while (user := _only_user(found[-1].outputs[0])) is not None and user.op_type == "Mul" and len(scales) < 2:
            other = next((v for v in user.inputs if v is not found[-1].outputs[0]), None)
            factors = _factors(other)
            if not factors:
                break
            found.append(user)
            scales += factors
            products += [other] if len(factors) == 2 and other is not None else []
        if len(scales) != 2:
            return None
        held = [scale for scale in scales if stored(scale) is not None and scale not in r.made]
        return cls(tuple(found), tuple(held), tuple(products))

    def leave_out(self, r: Restatement, source: ir.Value) -> None:
        """The numbers are real already."""
        r.form.results[source.name or ""] = self.nodes[-1].outputs[0].name or ""
        for node in self.nodes:
            r.skip(node, source)


def _factors(value: Value) -> list[ir.Value]:
    """The scales that a factor is the product of: itself, or the operands of a Mul; none if it is data."""
    if value is None:
        return []
    producer = value.producer()
    if stored(value) is not None or (producer is not None and producer.op_type == "DynamicQuantizeLinear"):
        return [value]
    if producer is not None and producer.op_type == "Mul" and not producer.domain:
        inner = [_factors(each) for each in producer.inputs]
        return [*inner[0], *inner[1]] if all(len(each) == 1 for each in inner) else []
    return []


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


@restates("QLinearConv")
def _qlinear_conv(r: Restatement, node: ir.Node) -> None:
    """x, its scale and zero point, w, .., y, .., bias by the product of both scales."""
    i = [input_of(node, index) for index in range(9)]
    x = r.numbers(i[0], i[1], i[2], before=node)
    w = r.numbers(i[3], i[4], i[5], axis=0, before=node)
    b = _bias(r, node, i[8], scales=(i[1], i[4]))
    r.become(node, "Conv", [x, w, *([b] if b is not None else [])], keep=KERNEL)
    r.stored_again(node, i[6], i[7])


def _bias(r: Restatement, node: ir.Node, value: Value, scales: tuple[Value, Value], factor: float = 1.0) -> Value:
    """A stored bias, whose scale is the product of two others."""
    if value is None or value in r.real:
        return value
    tensor, held = stored(value), [stored(scale) for scale in scales]
    if tensor is None or held[0] is None or held[1] is None:
        raise _UnknownError(f"the scale of the bias of {node.op_type} {node.name!r} is computed")
    product = np.asarray(held[0].numpy()).reshape(-1) * np.asarray(held[1].numpy()).reshape(-1) * np.float32(factor)
    scale = product if product.size > 1 else product.reshape(())
    both = tuple(scale for scale in scales if scale is not None)
    return r.weight(value, Quantised(tensor, scale, np.zeros((), np.int32), dtype=held[0].dtype, product=both), node)


@restates("QLinearMatMul")
def _qlinear_matmul(r: Restatement, node: ir.Node) -> None:
    i = [input_of(node, index) for index in range(8)]
    a = r.numbers(i[0], i[1], i[2], axis=-2, before=node)
    b = r.numbers(i[3], i[4], i[5], axis=-1, before=node)
    r.become(node, "MatMul", [a, b])
    r.stored_again(node, i[6], i[7])


@restates("QGemm", domain=MICROSOFT)
def _qgemm(r: Restatement, node: ir.Node) -> None:
    """A, .., B, .., C by alpha times the product of both scales, the scale of y and its zero point if y is rounded."""
    i = [input_of(node, index) for index in range(9)]
    a = r.numbers(i[0], i[1], i[2], before=node)
    b = r.numbers(i[3], i[4], i[5], axis=1 - integer(node, "transB", 0), before=node)
    c = _bias(r, node, i[6], scales=(i[1], i[4]), factor=number(node, "alpha", 1.0))
    r.become(node, "Gemm", [a, b, *([c] if c is not None else [])], keep=("alpha", "transA", "transB"))
    if i[7] is not None:
        r.stored_again(node, i[7], i[8])


@restates("DynamicQuantizeMatMul", domain=MICROSOFT)
def _dynamic_matmul(r: Restatement, node: ir.Node) -> None:
    """A, B, its scale, its zero point, bias."""
    i = [input_of(node, index) for index in range(5)]
    _product_and_bias(r, node, [i[0], r.numbers(i[1], i[2], i[3], axis=-1, before=node)], added=i[4])


@restates("MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul_to_float(r: Restatement, node: ir.Node) -> None:
    """A, B, their scales, their zero points, bias."""
    i = [input_of(node, index) for index in range(7)]
    a = r.numbers(i[0], i[2], i[4], axis=-2, before=node)
    _product_and_bias(r, node, [a, r.numbers(i[1], i[3], i[5], axis=-1, before=node)], added=i[6])


def _product_and_bias(r: Restatement, node: ir.Node, factors: Sequence[Value], added: Value) -> None:
    if added is None:
        r.become(node, "MatMul", factors)
    else:
        r.become(node, "Add", [r.insert(node, "MatMul", factors), added])


def _integers(value: Value) -> ir.TensorProtocol | None:
    """What a weight is stored as, also where another operator has read it."""
    held = stored(value)
    return None if held is None else as_stored(held)


@restates("MatMulNBits", domain=MICROSOFT)
def _matmul_nbits(r: Restatement, node: ir.Node) -> None:
    """A (.., K) times the transposed (N, K), stored as (N, blocks, block)."""
    i = [input_of(node, index) for index in range(6)]
    width, rows = integer(node, "K", 0), integer(node, "N", 0)
    source = nbits(_integers(i[1]), i, integer(node, "bits", 4), block=integer(node, "block_size", 0), width=width)
    if source is None or i[1] is None:
        how = " by groups of its inputs (g_idx)" if i[4] is not None else ""
        raise _UnknownError(f"how {node.op_type} {node.name!r} stores its weight{how} is not known")
    weight = r.weight(i[1], source, node)
    if not source.width:
        weight = r.insert(node, "Reshape", [weight, r.constant(np.array([rows, width], np.int64))])
    matrix = r.insert(node, "Transpose", [weight], attributes={"perm": [1, 0]})
    _product_and_bias(r, node, [i[0], matrix], added=i[5])


MIXTURE = (
    "activation_alpha", "activation_beta", "activation_type", "k", "swiglu_fusion", "swiglu_limit",
    "swiglu_limit_after_activation", "use_sparse_mixer",
)  # fmt: skip
EXPERTS = {1: (2, 3, 4, 11), 2: (5, 6, 7, 12), 3: (8, 9, 10, 13)}
"""Of each matrix of QMoE: the inputs that are its weight, scales, biases and zero points."""


@restates("QMoE", domain=MICROSOFT)
def _mixture(r: Restatement, node: ir.Node) -> None:
    """Tokens, router logits, then up to three matrices of every expert. The k largest logits are weighed among
    themselves, as MoE does where it normalises."""
    kind, prepacked = text(node, "quant_type", "int"), integer(node, "weights_prepacked", -1)
    if kind != "int" or prepacked == 1 or input_of(node, 14) is not None:
        how = "weighs experts by router_weights" if input_of(node, 14) is not None else "has another layout of weights"
        raise _UnknownError(f"{node.op_type} {node.name!r} {how}")
    inputs: list[Value] = [input_of(node, 0), input_of(node, 1)]
    for matrix, (weight, scale, added, zero_point) in EXPERTS.items():
        value = input_of(node, weight)
        bits = integer(node, f"fc{matrix}_expert_weight_bits", integer(node, "expert_weight_bits", 4))
        if value is None:
            continue
        source = experts(
            _integers(value), input_of(node, scale), input_of(node, zero_point), bits=bits,
            block=integer(node, "block_size", 0),
        )  # fmt: skip
        if source is None:
            raise _UnknownError(f"how {node.op_type} {node.name!r} stores the experts' weights is not known")
        inputs += [r.weight(value, source, node), input_of(node, added)]
    r.become(node, "MoE", inputs, keep=MIXTURE, domain=MICROSOFT)
    node.attributes["normalize_routing_weights"] = ir.AttrInt64("normalize_routing_weights", 1)


@restates("GatherBlockQuantized", domain=MICROSOFT)
def _gather_blocks(r: Restatement, node: ir.Node) -> None:
    """Rows of a table that is stored in blocks: data, indices, scales, zero points."""
    i = [input_of(node, index) for index in range(4)]
    axis, gathered = integer(node, "quantize_axis", 1), integer(node, "gather_axis", 0)
    source = block_table(
        _integers(i[0]), i, integer(node, "bits", 4), block=integer(node, "block_size", 128), axis=axis
    )
    if source is None or i[0] is None:
        raise _UnknownError(f"how {node.op_type} {node.name!r} stores its table is not known")
    table = r.weight(i[0], source, node)
    r.become(node, "Gather", [table, i[1]])
    node.attributes["axis"] = ir.AttrInt64("axis", gathered)


@restates("DynamicQuantizeLSTM", domain=MICROSOFT)
def _lstm(r: Restatement, node: ir.Node) -> None:
    """As LSTM, with W (directions, I, 4H) and R (directions, H, 4H) transposed, their scales and zero points behind."""
    i = [input_of(node, index) for index in range(12)]
    matrices = []
    for value, scale, zero_point in ((i[1], i[8], i[9]), (i[2], i[10], i[11])):
        assert value is not None
        weight = r.weight(value, _by_direction(value, scale, zero_point), node)
        matrices.append(r.insert(node, "Transpose", [weight], attributes={"perm": [0, 2, 1]}))
    keep = tuple(name for name in node.attributes)
    r.become(node, "LSTM", [i[0], *matrices, *i[3:8]], keep=keep)


def _by_direction(value: Value, scale: Value, zero_point: Value) -> Quantised | None:
    """Scales (directions) or (directions, 4H) of a tensor (directions, inputs, 4H)."""
    found, factor, offset = stored(value), stored(scale), stored(zero_point)
    if found is None or factor is None or (zero_point is not None and offset is None):
        return None
    scales, points = (
        np.asarray(one.numpy()) if one is not None else np.zeros((1,), np.int32) for one in (factor, offset)
    )
    shaped = [one.reshape(one.shape[0], 1, -1) for one in (scales, points.astype(np.int32))]
    return Quantised(found, shaped[0], shaped[1], dtype=factor.dtype, parameters=(scale, zero_point))


@restates("QAttention", domain=MICROSOFT)
def _attention(r: Restatement, node: ir.Node) -> None:
    """Input, weight, bias, scale of the input, scale of the weight, mask, zero points of both, past."""
    i = [input_of(node, index) for index in range(9)]
    x = r.numbers(i[0], i[3], i[6], before=node)
    w = r.numbers(i[1], i[4], i[7], axis=-1, before=node)
    keep = ("num_heads", "unidirectional", "do_rotary", "mask_filter_value", "past_present_share_buffer")
    r.become(node, "Attention", [x, w, i[2], i[5], i[8]], keep=keep, domain=MICROSOFT)


@restates("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _binary(r: Restatement, node: ir.Node) -> None:
    """A, .., B, .., the scale and zero point of the result."""
    i = [input_of(node, index) for index in range(8)]
    both = [r.numbers(i[0], i[1], i[2], before=node), r.numbers(i[3], i[4], i[5], before=node)]
    r.become(node, node.op_type.removeprefix("QLinear"), both)
    r.stored_again(node, i[6], i[7])


WINDOW = ("auto_pad", "kernel_shape", "pads", "strides")
UNARY = {
    "QLinearAveragePool": ("AveragePool", (*WINDOW, "ceil_mode", "count_include_pad")),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", ()),
    "QLinearLeakyRelu": ("LeakyRelu", ("alpha",)),
    "QLinearSigmoid": ("Sigmoid", ()),
    "QLinearSoftmax": ("Softmax", ("axis",)),
}  # fmt: skip


@restates(*UNARY, domain=MICROSOFT)
def _unary(r: Restatement, node: ir.Node) -> None:
    """X, its scale and zero point, those of the result."""
    if integer(node, "channels_last", 0):
        raise _UnknownError(f"{node.op_type} {node.name!r} has its channels last")
    i = [input_of(node, index) for index in range(5)]
    op, keep = UNARY[node.op_type]
    r.become(node, op, [r.numbers(i[0], i[1], i[2], before=node)], keep=keep)
    r.stored_again(node, i[3], i[4])


@restates("QLinearConcat", domain=MICROSOFT)
def _concat(r: Restatement, node: ir.Node) -> None:
    """The scale and zero point of the result, then (X, scale, zero point) of each part."""
    inputs = list(node.inputs)
    parts = [r.numbers(*inputs[k : k + 3], before=node) for k in range(2, len(inputs), 3)]
    r.become(node, "Concat", parts, keep=("axis",))
    r.stored_again(node, inputs[0], inputs[1])


@restates("QLinearWhere", domain=MICROSOFT)
def _where(r: Restatement, node: ir.Node) -> None:
    """The condition, X, .., Y, .., the scale and zero point of the result."""
    i = [input_of(node, index) for index in range(9)]
    both = [r.numbers(i[1], i[2], i[3], before=node), r.numbers(i[4], i[5], i[6], before=node)]
    r.become(node, "Where", [i[0], *both])
    r.stored_again(node, i[7], i[8])
