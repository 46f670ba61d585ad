"""What every tensor of a graph has along its axes: constant slices, and slices that are multiples of each other.

One walk in the graph's order; a rule per operator family says what its results have, from what its inputs have. Where
nothing is known, slices are unknown and all different, which is always right. Numbers are taken to be finite: zero
times a value is zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.analysis import Analysis
from prunecli.dependency.atoms import AtomTable, LengthError
from prunecli.dependency.registry import RULES as TIES
from prunecli.dependency.registry import RuleContext
from prunecli.dependency.rules.shaping import pad_amounts
from prunecli.model.constant_values import computed
from prunecli.operators import MICROSOFT, named, operator_of
from prunecli.operators.attributes import integer, text
from prunecli.operators.attributes import number as number_of
from prunecli.operators.operator import input_of
from prunecli.operators.recurrent import GATES
from prunecli.registry import into_operators
from prunecli.shrinking.contraction import RECURRENT, WeightedSum, contractions, fixed
from prunecli.shrinking.slices import CONSTANT, Floats, Groups, Ints, Slices, constants, multiples, of_content, rounded

Rule = Callable[["SliceNumbering", ir.Node], None]
RULES: dict[tuple[str, str], Rule] = {}
LARGEST = 1 << 26
"""Elements of a constant, not the weight of a contraction, up to which its slices are looked at."""
HOMOGENEOUS = ("Abs", "Dropout", "Identity", "LeakyRelu", "Relu")
"""f(k x) = k f(x) for positive k."""
ZERO_STAYS = ("FastGelu", "Gelu", "QuickGelu")
Measured = Mapping[tuple[str, int], tuple[Ints, Floats]]
"""(value, axis) -> positions whose slices are constant on some data, and the constants."""


rule = into_operators(RULES)
"""Register what operators make of slices."""


class SliceNumbering:
    """The slices of every value of an analysed model. `of(value, axis)` gives them."""

    def __init__(self, analysis: Analysis, measured: Measured | None = None) -> None:
        self.analysis, self.groups = analysis, Groups()
        self.graph, self.facts = analysis.model.graph, analysis.facts
        self._known: dict[tuple[ir.Value, int], Slices] = {}
        self._telling: set[tuple[ir.Value, int]] = set()
        self._measured = measured or {}
        self.contractions: dict[ir.Node, list[WeightedSum]] = defaultdict(list)
        for one in contractions(self.graph, self.facts):
            self.contractions[one.node].append(one)
        for node in self.graph:
            function = RULES.get((node.domain, node.op_type))
            if function is not None and all(v in self.facts.shapes for v in node.outputs if v.name):
                function(self, node)
            self._measure(node)

    # -- questions --------------------------------------------------------------------------------

    def rank(self, value: ir.Value) -> int:
        return len(self.facts.shapes[value])

    def of(self, value: ir.Value, axis: int) -> Slices:
        """Return the slices of a value along an axis; those of a constant are read off its content."""
        key = (value, axis)
        if key not in self._known:
            self._known[key] = self._content(value, axis) or self._unknown(value, axis)
            if self._known[key].tells:
                self._telling.add(key)
        return self._known[key]

    def _unknown(self, value: ir.Value, axis: int) -> Slices:
        size = self.facts.shapes[value][axis]
        return Slices(self.groups.fresh(size), np.ones(size))

    def _content(self, value: ir.Value, axis: int) -> Slices | None:
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or not tensor.dtype.is_floating_point() or tensor.size > LARGEST:
            return None
        array = tensor.numpy()
        return of_content(self.groups, value.name or "", array, axis=axis, eps=eps_of(array)) if array.size else None

    def tells(self, value: ir.Value | None, axis: int) -> bool:
        """Return whether a slice along the axis is known to be constant or a multiple of another."""
        if value is None or value not in self.facts.shapes:
            return False
        stored = value.const_value is not None and self.facts.shapes[value][axis] > 1
        return self.of(value, axis).tells if stored else (value, axis) in self._telling

    def uniform(self, value: ir.Value) -> float | None:
        """Return the number that all elements of a value equal, None if they differ or are unknown."""
        shape = self.facts.shapes.get(value)
        if shape is None or (not shape and value.const_value is None):
            return None
        if not shape:
            tensor = value.const_value
            assert tensor is not None
            floating = tensor.dtype.is_floating_point() and not value.is_graph_input()
            return float(tensor.numpy()) if floating else None
        for axis in range(len(shape)):
            if value.const_value is None and (value, axis) not in self._telling:
                continue
            slices = self.of(value, axis)
            if len(slices) and slices.constant.all() and (slices.factor == slices.factor[0]).all():
                return float(slices.factor[0])
        return None

    def across(self, value: ir.Value, out: ir.Value, axis: int) -> Slices:
        """Return the slices of an operand along an axis of the result that it broadcasts to."""
        size, own = self.facts.shapes[out][axis], axis - self.rank(out) + self.rank(value)
        if own >= 0 and self.facts.shapes[value][own] == size:
            return self.of(value, own)
        number = self.uniform(value)
        return self.alone(value, size) if number is None else constants(np.full(size, number))

    def alone(self, value: ir.Value, size: int) -> Slices:
        """Return equal slices, one per position, for an operand that is the same at each position."""
        return Slices(np.repeat(self.groups.number(("whole", value.name), np.zeros(1)), size), np.ones(size))

    def along(self, node: ir.Node, out: ir.Value) -> Iterator[int]:
        """Yield the axes of a result along which the slices of some operand are known."""
        for axis, size in enumerate(self.facts.shapes[out]):
            owns = [(v, axis - self.rank(out) + self.rank(v)) for v in node.inputs if v is not None and self.is_data(v)]
            if size > 1 and any(own >= 0 and self.tells(v, own) for v, own in owns):
                yield axis

    def is_data(self, value: ir.Value | None) -> bool:
        """Whether a value is a floating-point tensor of known shape."""
        code = self.facts.dtypes.get(value) if value is not None else None
        return value in self.facts.shapes and code is not None and ir.DataType(code).is_floating_point()

    # -- statements -------------------------------------------------------------------------------

    def say(self, value: ir.Value, axis: int, slices: Slices) -> None:
        """Record the slices of a result along an axis, unless a factor is not finite."""
        if value.name and np.isfinite(slices.factor).all():
            self._known[value, axis] = slices
            if slices.tells:
                self._telling.add((value, axis))

    def _measure(self, node: ir.Node) -> None:
        """Record what was measured on data for the node's results, so that later nodes build on it."""
        for out in node.outputs:
            for axis in range(self.rank(out)) if out in self.facts.shapes else ():
                if (out.name or "", axis) in self._measured:
                    positions, values = self._measured[out.name or "", axis]
                    group, factor = self.of(out, axis).group.copy(), self.of(out, axis).factor.copy()
                    group[positions], factor[positions] = CONSTANT, values
                    self.say(out, axis, Slices(group, factor))


def eps_of(array: Array) -> float:
    """Return the distance from 1 to the next larger number of the array's type."""
    if array.dtype.kind == "f":
        return float(np.finfo(array.dtype).eps)
    return 2.0**-7 if array.dtype.name == "bfloat16" else 2.0**-2


def operation(node: ir.Node) -> Hashable:
    """What a node computes, apart from its inputs."""
    attributes = sorted((name, str(attr.value)) for name, attr in node.attributes.items())
    return (node.domain, node.op_type, *attributes)


def evaluate(numbering: SliceNumbering, node: ir.Node, operands: Mapping[int, Floats]) -> Floats:
    """A node's results for numbers, by ONNX's reference implementation; NaN where they are not known.

    Args:
        operands: by input, numbers in the order of the results; other inputs are stored numbers.
    """
    unknown = np.full(len(next(iter(operands.values()))), np.nan)
    if node.op_type in ZERO_STAYS and len(operands) == 1:
        return np.where(operands[0] == 0, 0.0, np.nan)
    if node.domain != "" or not len(unknown):
        return unknown
    if node.op_type == "Cast":
        return operands[0]
    feed = dict[str, Array]()
    for index, value in enumerate(node.inputs):
        if index in operands and value is not None:
            kind = ir.DataType(numbering.facts.dtypes[value]).numpy()
            feed[value.name or ""] = operands[index].astype(kind if kind in (np.float64, np.float16) else np.float32)
        elif value is not None and value.const_value is not None:
            feed[value.name or ""] = value.const_value.numpy().reshape(())
    try:
        made = computed([node], feed, node.outputs[0].name or "", model=numbering.analysis.model)
    except Exception:  # the evaluator raises many kinds; each means that nothing is known
        return unknown
    return made.astype(np.float64) if made.dtype.kind == "f" and made.shape == unknown.shape else unknown


def function(numbering: SliceNumbering, node: ir.Node, operands: Mapping[int, Slices]) -> Slices:
    """Return the slices of a function of each position: constants give a constant, equal operands equal results."""
    others = tuple(v.name for i, v in enumerate(node.inputs) if v is not None and i not in operands)
    columns = [column for slices in operands.values() for column in (slices.group, slices.factor)]
    group = numbering.groups.number((operation(node), others), *columns)
    level = np.logical_and.reduce([slices.constant for slices in operands.values()])
    values = np.full(len(group), np.nan)
    values[level] = evaluate(numbering, node, {i: slices.factor[level] for i, slices in operands.items()})
    return Slices(group, np.ones(len(group))).where(np.isfinite(values), constants(values))


def linear(numbering: SliceNumbering, key: Hashable, slices: Slices, level: bool = False) -> Slices:
    """Slices of a linear function that is the same at each position. `level`: it keeps constants."""
    kept = slices.zero | (slices.constant if level else False)
    group = numbering.groups.number((key, "linear"), slices.group, np.where(slices.constant, slices.factor, 1.0))
    return Slices(np.where(kept, CONSTANT, group), np.where(slices.constant & ~kept, 1.0, slices.factor))


def homogeneous(numbering: SliceNumbering, key: Hashable, slices: Slices, *columns: Array) -> Slices:
    """Return the slices of f, where f(k x) = k f(x) for positive k. The caller states those of constants."""
    sign = np.sign(slices.factor)
    group = numbering.groups.number(key, slices.group, sign, *columns)
    return Slices(np.where(slices.zero, CONSTANT, group), np.abs(slices.factor))


def shifted(numbering: SliceNumbering, slices: Slices, by: Floats) -> Slices:
    """Return the slices with a constant added to each position."""
    ratio = by / np.where(slices.factor == 0, 1.0, slices.factor)
    group = numbering.groups.number("shifted", slices.group, rounded(ratio))
    moved = Slices(np.where(by == 0, slices.group, group), slices.factor)
    return moved.where(slices.constant, constants(slices.factor + by))


def times(numbering: SliceNumbering, key: Hashable, a: Slices, b: Slices) -> Slices:
    """Return the slices of a result that is linear in either operand."""
    group = numbering.groups.number(key, a.group, b.group)
    group = np.where(b.constant, a.group, np.where(a.constant, b.group, group))
    return Slices(np.where(a.zero | b.zero, CONSTANT, group), a.factor * b.factor)


# -- operators that compute each position from the same position of their inputs -----------------------


@rule(*named(lambda operator: operator.elementwise == "first", ""), "Dropout")
@rule("Gelu", "FastGelu", "QuickGelu", domain=MICROSOFT)
def unary(numbering: SliceNumbering, node: ir.Node) -> None:
    """y = f(x); of functions that keep positive factors y is a multiple where x is."""
    out, x, rest = node.outputs[0], node.inputs[0], node.inputs[1:]
    stored = all(v is None or (v.const_value is not None and v.const_value.size == 1) for v in rest)
    if x is None or not stored or not numbering.is_data(out) or not numbering.is_data(x):
        return
    for axis in numbering.along(node, out):
        slices = numbering.of(x, axis)
        if node.op_type in ("Identity", "Dropout"):
            made = slices
        elif node.op_type == "Neg":
            made = Slices(slices.group, -slices.factor)
        elif node.op_type in HOMOGENEOUS:
            made, known = homogeneous(numbering, operation(node), slices), function(numbering, node, {0: slices})
            made = made.where(slices.constant, known)
        else:
            made = function(numbering, node, {0: slices})
        numbering.say(out, axis, made)


@rule(*named(lambda operator: operator.elementwise == "all", ""))
def broadcasting(numbering: SliceNumbering, node: ir.Node) -> None:
    """Sums, products, and other functions of operands that broadcast."""
    out = node.outputs[0]
    if not all(v is not None and numbering.is_data(v) for v in (*node.inputs, out)):
        return
    for axis in numbering.along(node, out):
        operands = [numbering.across(v, out, axis) for v in node.inputs if v is not None]
        numbering.say(out, axis, COMBINE.get(node.op_type, _any)(numbering, node, operands))


def _any(numbering: SliceNumbering, node: ir.Node, operands: Sequence[Slices]) -> Slices:
    return function(numbering, node, dict(enumerate(operands)))


def _add(numbering: SliceNumbering, node: ir.Node, operands: Sequence[Slices]) -> Slices:
    total = operands[0]
    for term in operands[1:]:
        total = _sum(numbering, total, term)
    return total


def _sum(numbering: SliceNumbering, a: Slices, b: Slices) -> Slices:
    """Return the slices of a + b: a constant shifts the other operand; other sums are equal up to a factor if their
    groups and the ratio of the factors are equal."""
    ratio = b.factor / np.where(a.factor == 0, 1.0, a.factor)
    total = Slices(numbering.groups.number("sum", a.group, b.group, rounded(ratio)), a.factor)
    for one, other in ((a, b), (b, a)):
        moved = shifted(numbering, one, np.where(other.constant, other.factor, 0.0))
        total = total.where(other.constant, moved)
    return total


def _subtract(numbering: SliceNumbering, node: ir.Node, operands: Sequence[Slices]) -> Slices:
    return _sum(numbering, operands[0], Slices(operands[1].group, -operands[1].factor))


def _multiply(numbering: SliceNumbering, node: ir.Node, operands: Sequence[Slices]) -> Slices:
    return times(numbering, "product", *operands)


def _divide(numbering: SliceNumbering, node: ir.Node, operands: Sequence[Slices]) -> Slices:
    a, b = operands
    safe = np.where(b.factor == 0, np.nan, b.factor)
    group = np.where(b.constant, a.group, numbering.groups.number("quotient", a.group, b.group))
    known = ~(a.zero | np.isnan(safe))
    group = np.where(np.isnan(safe), numbering.groups.fresh(len(group)), group)
    factor = np.where(known, a.factor / np.where(known, safe, 1.0), np.where(a.zero, 0.0, 1.0))
    return Slices(np.where(a.zero & ~np.isnan(safe), CONSTANT, group), factor)


def _prelu(numbering: SliceNumbering, node: ir.Node, operands: Sequence[Slices]) -> Slices:
    x, slope = operands
    made, known = homogeneous(numbering, "prelu", x, slope.group, slope.factor), _any(numbering, node, operands)
    return made.where(x.constant & slope.constant, known)


COMBINE: dict[str, Callable[[SliceNumbering, ir.Node, Sequence[Slices]], Slices]] = {
    "Add": _add, "Sum": _add, "Sub": _subtract, "Mul": _multiply, "Div": _divide, "PRelu": _prelu,
}  # fmt: skip


@rule("BatchNormalization")
def batch_norm(numbering: SliceNumbering, node: ir.Node) -> None:
    """y = a x + b for each channel."""
    x, out = node.inputs[0], node.outputs[0]
    found = [fixed(v) for v in node.inputs[1:5]]
    if x is None or numbering.rank(out) < 2 or any(p is None or len(p.shape) != 1 for p in found):
        return
    if integer(node, "training_mode", 0):
        return
    scale, bias, mean, variance = (p.array() for p in found if p is not None)
    gain = scale / np.sqrt(variance + number_of(node, "epsilon", 1e-5))
    slices = times(numbering, "product", numbering.of(x, 1), b=constants(gain))
    numbering.say(out, 1, shifted(numbering, slices, bias - mean * gain))


@rule("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool")
def pool(numbering: SliceNumbering, node: ir.Node) -> None:
    """Channels pass; a window over padding and a constant is no constant where the padding counts."""
    x, out = node.inputs[0], node.outputs[0]
    if x is None or not numbering.tells(x, 1):
        return
    slices = numbering.of(x, 1)
    if node.op_type.endswith("AveragePool"):
        numbering.say(out, 1, linear(numbering, node, slices, level=not integer(node, "count_include_pad", 0)))
        return
    made = homogeneous(numbering, (node, "largest"), slices)
    numbering.say(out, 1, made.where(slices.constant, slices))


@rule("Resize", "Upsample", "ReduceMean", "ReduceSum")
def passing(numbering: SliceNumbering, node: ir.Node) -> None:
    """Linear along other axes than those that pass, but where a Resize fills with a number."""
    if text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return
    x, out = node.inputs[0], node.outputs[0]
    if x is None or not numbering.is_data(x):
        return
    table = ties(numbering, node)
    for axis in range(numbering.rank(out)):
        own = _tied(numbering, table, x, to=(out, axis))
        if own is not None and numbering.tells(x, own):
            numbering.say(out, axis, linear(numbering, node, numbering.of(x, own)))


@rule("Softmax", "LogSoftmax", "InstanceNormalization")
def alike(numbering: SliceNumbering, node: ir.Node) -> None:
    """What is the same function at each position of an axis gives equal results for equal slices."""
    x, out = node.inputs[0], node.outputs[0]
    if x is None or numbering.rank(x) < 2:
        return
    more = list[Slices]()
    if node.op_type == "InstanceNormalization":
        axes, more = [1], [numbering.of(v, 0) for v in node.inputs[1:] if v is not None]
    else:
        version = node.version or numbering.analysis.model.opset_imports.get("") or 0
        over = integer(node, "axis", -1 if version >= 13 else 1) % numbering.rank(x)
        axes = [axis for axis in range(numbering.rank(x)) if axis != over and (version >= 13 or axis < over)]
    for axis in axes:
        if numbering.tells(x, axis):
            slices = [numbering.of(x, axis), *more]
            columns = [column for s in slices for column in (s.group, s.factor)]
            numbering.say(
                out, axis, Slices(numbering.groups.number((node, "alike"), *columns), np.ones(len(slices[0])))
            )


# -- operators that sum over an axis --------------------------------------------------------------------


@rule(*named(lambda operator: operator.kernel, ""), "Gemm", "MatMul")
@rule("FusedMatMul", domain=MICROSOFT)
def contraction(numbering: SliceNumbering, node: ir.Node) -> None:
    """Rows of weights that are multiples of each other, on inputs alike, give results that are."""
    for one in numbering.contractions[node]:
        if one.out_axis is not None and (one.grouped or one.groups == 1):
            numbering.say(one.out, one.out_axis, _rows(numbering, one))
    if node.op_type in ("MatMul", "FusedMatMul"):
        _products(numbering, node)


def _rows(numbering: SliceNumbering, one: WeightedSum) -> Slices:
    """The results of a contraction along the axis of its rows."""
    matrix, bias = one.matrix(), _bias(numbering, one)
    groups, rows, _, width = matrix.shape
    slices, eps = numbering.of(one.data, one.axis), eps_of(matrix)
    group, factor = np.zeros(groups * rows, np.int64), np.zeros(groups * rows)
    kinds: dict[bytes, list[tuple[Ints, Array]]] = defaultdict(list)
    for number in range(groups):
        mine = slices.take(np.arange(width) + number * width if one.grouped else np.arange(width))
        places = np.arange(rows) + number * rows
        if bias is None:
            kinds[b"alone"].append((places, np.zeros((rows, 0))))
            continue
        names, part, added = _combined(matrix[number], mine, one.plain)
        shift = (bias[places] + number_of(one.node, "alpha", 1.0) * added).astype(part.dtype)
        kinds[names.tobytes()].append((places, np.column_stack([part, shift])))
    for key, parts in kinds.items():
        places, table = np.concatenate([p for p, _ in parts]), np.concatenate([t for _, t in parts])
        if not table.shape[1]:
            group[places], factor[places] = numbering.groups.fresh(len(places)), 1.0
            continue
        first, scale = multiples(table, eps)
        level = (table[:, :-1] == 0).all(1)
        found = numbering.groups.number((operation(one.node), one.node, key), first)
        group[places] = np.where(level, CONSTANT, found)
        factor[places] = np.where(level, table[:, -1], scale)
    return Slices(group, factor)


def _combined(matrix: Array, slices: Slices, plain: bool) -> tuple[Ints, Array, Floats]:
    """A (rows, taps, positions) weight on slices: names of what is summed, the weight of each, what is constant."""
    rows = len(matrix)
    level = slices.constant & plain
    added = np.zeros(rows)
    if level.any() and slices.factor[level].any():
        added = (matrix[:, :, level].sum(1, dtype=np.float64)) @ slices.factor[level]
    names = np.where(slices.constant, -1 - np.arange(len(slices)), slices.group)
    if not level.any() and (slices.factor == 1).all() and (np.diff(names) > 0).all():
        return names, matrix.reshape(rows, -1), added
    live = np.flatnonzero(~(level | slices.zero))
    names, place = np.unique(names[live], return_inverse=True)
    spread = np.zeros((len(live), len(names)))
    spread[np.arange(len(live)), place.reshape(-1)] = slices.factor[live]
    return names, (matrix[:, :, live].astype(np.float64) @ spread).reshape(rows, -1), added


def _bias(numbering: SliceNumbering, one: WeightedSum) -> Floats | None:
    """What is added to each row; None where that is computed."""
    index = operator_of(one.node).bias
    value = one.node.inputs[index] if index is not None and index < len(one.node.inputs) else None
    assert one.out_axis is not None
    size = numbering.facts.shapes[one.out][one.out_axis]
    if value is None:
        return np.zeros(size)
    slices = numbering.of(value, 0) if index == 2 and one.grouped else numbering.across(value, one.out, one.out_axis)
    return slices.factor * number_of(one.node, "beta", 1.0) if slices.constant.all() else None


def _products(numbering: SliceNumbering, node: ir.Node) -> None:
    """A product is linear in either operand, along the axes that it does not sum over."""
    a, b, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if a is None or b is None or not numbering.is_data(out):
        return
    table = ties(numbering, node)
    told = {one.out_axis for one in numbering.contractions[node]}
    for axis in range(numbering.rank(out)):
        owns = [(v, _tied(numbering, table, v, to=(out, axis))) for v in (a, b)]
        if axis in told or not any(own is not None and numbering.of(v, own).tells for v, own in owns):
            continue
        size = numbering.facts.shapes[out][axis]
        made = [numbering.alone(v, size) if own is None else numbering.of(v, own) for v, own in owns]
        left, right = (linear(numbering, (node, place), s) for place, s in enumerate(made))
        numbering.say(out, axis, times(numbering, (node, "product"), left, b=right))


def _tied(numbering: SliceNumbering, table: AtomTable, value: ir.Value, to: tuple[ir.Value, int]) -> int | None:
    """The axis of an operand that is an axis of the result."""
    root = table.root(*to)
    return next((a for a in range(numbering.rank(value)) if root is not None and table.root(value, a) == root), None)


@rule("LSTM", "GRU", "RNN")
def recurrent(numbering: SliceNumbering, node: ir.Node) -> None:
    """A unit whose candidate is zero stays at zero, from a state of zero on."""
    dead = silent_units(numbering, node)
    for out in node.outputs:
        if out.name and dead is not None and dead.any():
            axis = numbering.rank(out) - 1
            numbering.say(out, axis, numbering.of(out, axis).where(dead, constants(np.zeros(len(dead)))))


ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
"""How many functions each direction has: of the gates first (of LSTM and GRU), then of what they let through."""
ZERO_AT_ZERO = ("elu", "leakyrelu", "relu", "softsign", "tanh")
CANDIDATE = {"LSTM": 3, "GRU": 2, "RNN": 0}
"""The gate that is what a unit may become: LSTM has i, o, f, c, GRU has z, r, h."""


def silent_units(numbering: SliceNumbering, node: ir.Node) -> Array | None:
    """Units that are always zero: the largest set of which no weight of the candidate, outside the set, is not zero."""
    both = {one.index: one for one in numbering.contractions[node]}
    states = [v for v in node.inputs[5:7] if v is not None]
    if set(both) != {1, RECURRENT} or not _keeps_zero(node):
        return None
    gates, gate = GATES[node.op_type], CANDIDATE[node.op_type]
    live = ~numbering.of(both[1].data, both[1].axis).zero
    own = _gate((both[1].matrix()[:, :, 0] != 0)[:, :, live].any(2), gates, gate)
    again = both[RECURRENT].matrix()[:, :, 0] != 0
    silent: Array = np.asarray(~own.any(0))
    silent &= ~_biased(node, gate, len(silent))
    for state in states:
        silent &= numbering.of(state, numbering.rank(state) - 1).zero
    while True:
        reads = _gate(again[:, :, ~silent].any(2), gates, gate).any(0)
        if not (silent & reads).any():
            return silent
        silent &= ~reads


def _keeps_zero(node: ir.Node) -> bool:
    """Whether a candidate of zero leaves a state of zero at zero: f(0) = 0 for all activations but the gates'."""
    named = node.attributes.get("activations")
    if named is None:
        return True
    functions = [name.lower() for name in named.as_strings()]
    count = ACTIVATIONS[node.op_type]
    sigmoids = 0 if node.op_type == "RNN" else 1
    places = [name for place, name in enumerate(functions) if place % count >= sigmoids]
    return all(name in ZERO_AT_ZERO for name in places)


def _gate(rows: Array, gates: int, gate: int) -> Array:
    """(directions, gates * units) -> (directions, units) of one gate."""
    return np.asarray(rows.reshape(len(rows), gates, -1)[:, gate])


def _biased(node: ir.Node, gate: int, units: int) -> Array:
    """Units to whose candidate something is added."""
    value = input_of(node, 3)
    if value is None:
        return np.zeros(units, bool)
    found = fixed(value)
    if found is None:
        return np.ones(units, bool)
    both = found.array().reshape(-1, 2, GATES[node.op_type], units)[:, :, gate]
    alone = node.op_type != "GRU" or not integer(node, "linear_before_reset", 0)
    return np.asarray((both.sum(1) != 0).any(0) if alone else (both != 0).any((0, 1)))


# -- operators that move positions ----------------------------------------------------------------------


def ties(numbering: SliceNumbering, node: ir.Node) -> AtomTable:
    """What the coupling rule of one node says."""
    table = AtomTable()
    opset = node.version or numbering.analysis.model.opset_imports.get(node.domain) or 0
    try:
        TIES[node.domain, node.op_type](RuleContext(node, numbering.analysis.geometry, table, work=[], opset=opset))
    except (LengthError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return AtomTable()
    return table


@rule(*named(lambda operator: operator.moves, ""))
def rearranging(numbering: SliceNumbering, node: ir.Node) -> None:
    """Slices move as the coupling rule says that positions do."""
    table = ties(numbering, node)
    sources = [v for v in dict.fromkeys(node.inputs) if v is not None and numbering.is_data(v)]
    roots = _roots(numbering, node, table, sources=sources)
    for out in node.outputs:
        for axis in range(numbering.rank(out)) if out.name and numbering.is_data(out) else ():
            number = table.numbers.get((out, axis))
            made = None if number is None else _result(numbering, node, table, roots=roots, number=number)
            if made is not None and made.tells:
                numbering.say(out, axis, _padded(numbering, node, axis, slices=made))


def _roots(
    numbering: SliceNumbering, node: ir.Node, table: AtomTable, sources: Sequence[ir.Value]
) -> dict[int, Slices]:
    """What is known along each axis of the node's table: of several operands (Concat) together."""
    found: dict[int, list[Slices]] = defaultdict(list)
    for value in sources:
        for axis in range(numbering.rank(value)):
            if (root := table.root(value, axis)) is not None:
                found[root].append(numbering.of(value, axis))
    roots = {root: _together(numbering, node, parts) for root, parts in found.items() if any(p.tells for p in parts)}
    for product, factors in table.products:
        slices = roots.get(table.find(product))
        if slices is None:
            continue
        shape = tuple(table.size(f) for f in factors)
        for place, one in enumerate(factors):
            group = np.moveaxis(slices.group.reshape(shape), place, 0).reshape(shape[place], -1)
            factor = np.moveaxis(slices.factor.reshape(shape), place, 0).reshape(shape[place], -1)
            roots.setdefault(table.find(one), numbering.groups.joined((node, "part"), group, factor))
    return roots


def _together(numbering: SliceNumbering, node: ir.Node, parts: Sequence[Slices]) -> Slices:
    if len(parts) == 1:
        slices = parts[0]
        group = numbering.groups.number((node, "moved"), slices.group)
        return Slices(np.where(slices.constant, CONSTANT, group), slices.factor)
    group, factor = np.stack([p.group for p in parts], 1), np.stack([p.factor for p in parts], 1)
    return numbering.groups.joined((node, "together"), group, factor)


def _result(
    numbering: SliceNumbering, node: ir.Node, table: AtomTable, roots: Mapping[int, Slices], number: int
) -> Slices | None:
    """Slices of a result: of the axis it is, of the factors it is made of, or of the positions put together."""
    if table.find(number) in roots:
        return roots[table.find(number)]
    for product, factors in table.products:
        if product == number:
            return _merged(
                numbering, node, [roots.get(table.find(f)) for f in factors], shape=[table.size(f) for f in factors]
            )
    return _picked(numbering, node, table, number=number)


def _merged(
    numbering: SliceNumbering, node: ir.Node, parts: Sequence[Slices | None], shape: Sequence[int]
) -> Slices | None:
    """Slices along an axis that is the product of others."""
    if all(part is None for part in parts):
        return None
    places = np.unravel_index(np.arange(int(np.prod(shape))), tuple(shape))
    made: Slices | None = None
    for number, part in enumerate(parts):
        if part is None:
            continue
        mine, rest = part.take(places[number]), [p for k, p in enumerate(places) if k != number]
        group = numbering.groups.number((node, "whole", number), mine.group, *rest)
        found = Slices(np.where(mine.constant, CONSTANT, group), mine.factor)
        made = found if made is None else made.where(found.constant & ~made.zero, found)
    return made


def _picked(numbering: SliceNumbering, node: ir.Node, table: AtomTable, number: int) -> Slices | None:
    """Slices of an axis into which positions of others were put."""
    entry = table.axes[number]
    assert entry.value is not None
    group, factor = numbering.groups.fresh(entry.size), np.ones(entry.size)
    edges = [(a, ia, ib) for a, ia, b, ib in table.edges if b == number]
    edges += [(b, ib, ia) for a, ia, b, ib in table.edges if a == number]
    if not edges:
        return None
    if node.op_type == "Pad":
        group[:], factor[:] = CONSTANT, _padding(node)
    for source, here, there in edges:
        value = table.axes[source].value
        if value in node.inputs and value is not None and numbering.is_data(value):
            slices = numbering.of(value, table.axes[source].index)
            group[there], factor[there] = slices.group[here], slices.factor[here]
    if not np.isfinite(factor).all():
        return None
    if node.op_type == "Concat":  # the others of its axes are as they were
        return Slices(group, factor)
    return Slices(np.where(group == CONSTANT, CONSTANT, numbering.groups.number((node, "picked"), group)), factor)


def _padding(node: ir.Node) -> float:
    """The number that Pad fills with; NaN where it is not known."""
    if text(node, "mode", "constant") != "constant":
        return np.nan
    value = input_of(node, 2)
    if value is not None:
        return float(value.const_value.numpy().reshape(())) if value.const_value is not None else np.nan
    return number_of(node, "value", 0.0)


def _padded(numbering: SliceNumbering, node: ir.Node, axis: int, slices: Slices) -> Slices:
    """Along an axis of Pad, beside others that are padded, a constant stays one only if it is what is padded with."""
    if node.op_type != "Pad":
        return slices
    amounts = pad_amounts(node, numbering.facts)
    if amounts is None or all(not any(pair) for place, pair in enumerate(amounts) if place != axis):
        return slices
    if text(node, "mode", "constant") != "constant":  # of the slice itself
        return linear(numbering, (node, "padded"), slices, level=True)
    number = _padding(node)
    same = slices.constant & (slices.factor == number)
    zero = number == 0
    ratio = np.where(slices.constant | (not zero), slices.factor, 1.0)
    group = numbering.groups.number((node, "padded"), slices.group, ratio)
    return Slices(np.where(same, CONSTANT, group), np.where(same | (zero & ~slices.constant), slices.factor, 1.0))
