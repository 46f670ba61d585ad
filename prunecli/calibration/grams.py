"""Normal equations of a layer: what least squares needs to know of its inputs X and wanted outputs Y.

With W (rows, K), X (K, R) and Y (rows, R), the error |W X + b - Y|^2 / R is a function of X X^T, Y X^T and means alone,
so that data of any length is held in (K, K) numbers. Products are taken in float32 and added up in float64.

`second_moments` needs less: E[x_j^2] for every input position j of a matrix or kernel. The squares are added up inside
the graph (ReduceSumSquare over all axes but j's), so that a run returns one short vector per weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from scipy import linalg

from prunecli.arrays import Array
from prunecli.calibration.layerwise import PART, Store, Walk
from prunecli.errors import PruneError
from prunecli.lanes import in_order, one_blas_thread
from prunecli.model.constants import behind, is_constant
from prunecli.operators import Contraction, operator_of
from prunecli.runtime import Session

PER_UNKNOWN = 100
"""Positions per row of X that are looked at: more do not change the solution by more than about a percent of its
error (K / R), and an image has far more."""
_AT_LEAST = 4_000
_CHUNK = 16 << 20  # bytes of X at a time
APART = 1024
"""Inputs of a layer from which on the sums of X and of Y are taken apart, so that layers share those of X."""
LARGE = 1 << 24
"""Elements of a matrix of sums, from which on they are float32: the rounding of sixteen sums is far below what a ridge
adds, and layers of 11,008 inputs have a Gram matrix of half a gigabyte so."""


@dataclass
class Equations:
    """Sums over positions, per batch of the weight: `gram` X X^T (batch, K, K), `cross` Y X^T (batch, rows, K), `x` and
    `y` the sums of X and Y, `squares` of Y^2, all float64 but for matrices that are `LARGE`; `count`: the sum of the
    weights of `positions`, which are 1 unless they are given."""

    gram: Array
    cross: Array
    x: Array
    y: Array
    squares: Array
    count: float = 0
    positions: int = 0

    @classmethod
    def empty(cls, batch: int, rows: int, size: int) -> Equations:
        dtype = np.float32 if batch * size * max(size, rows) >= LARGE else np.float64
        gram, cross = np.zeros((batch, size, size), dtype), np.zeros((batch, rows, size), dtype)
        return cls(gram, cross, np.zeros((batch, size)), y=np.zeros((batch, rows)), squares=np.zeros((batch, rows)))

    @classmethod
    def of(cls, columns: Array, targets: Array, weights: Array | None = None) -> Equations:
        """Those of columns (batch, K, R) and targets (batch, rows, R), float32; weights (R,) of the positions."""
        batch, size, count = columns.shape
        columns, targets, ones = _weighed(columns, targets, weights)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities of both signs: `check` tells
            squares = np.einsum("bij,bij->bi", targets, targets, dtype=np.float64)
            if batch == 1 and size >= APART:
                gram, cross = products(columns[0], columns[0])[None], products(targets[0], columns[0])[None]
                x, y = (_summed_over(each[0], ones)[None] for each in (columns, targets))
            else:
                both = np.concatenate([columns, np.broadcast_to(ones, (batch, 1, count)), targets], axis=1)
                product = np.matmul(both[:, : size + 1], both.swapaxes(1, 2))
                gram, cross = product[:, :size, :size], product[:, :size, size + 1 :].swapaxes(1, 2)
                x, y = product[:, size, :size], product[:, size, size + 1 :]
        return cls(gram, cross, x, y=y, squares=squares, count=_count(ones), positions=count)

    def add_inputs(self, columns: Array, ones: Array) -> None:
        """The sums of X alone, of one matrix: those that layers which read the same share. `ones`: what a constant
        input of 1 is where columns are multiplied by roots of weights."""
        with np.errstate(over="ignore", invalid="ignore"):
            _add_product(self.gram[0], columns[0], columns[0])
            self.x[0] += _summed_over(columns[0], ones)
        self.count += _count(ones)
        self.positions += len(ones)

    def add_targets(self, columns: Array, targets: Array, ones: Array) -> None:
        """The sums of Y, of one matrix."""
        with np.errstate(over="ignore", invalid="ignore"):
            _add_product(self.cross[0], targets[0], columns[0])
            self.y[0] += _summed_over(targets[0], ones)
            self.squares[0] += np.einsum("ij,ij->i", targets[0], targets[0], dtype=np.float64)

    def with_inputs_of(self, other: Equations) -> Equations:
        """These sums with those of X of another layer, which read the same."""
        return replace(self, gram=other.gram.copy(), x=other.x.copy(), count=other.count, positions=other.positions)

    def inputs(self) -> Equations:
        """A copy of the sums of X alone."""
        found = Equations.empty(len(self.gram), 0, self.gram.shape[1])
        return found.with_inputs_of(self)

    def __iadd__(self, other: Equations) -> Equations:
        with np.errstate(invalid="ignore"):
            for name in ("gram", "cross", "x", "y", "squares"):
                getattr(self, name).__iadd__(getattr(other, name))
        self.count += other.count
        self.positions += other.positions
        return self

    def check(self, name: str) -> None:
        """Raises PruneError if a sum is not finite, or there are none."""
        if not self.count:
            raise PruneError(f"nothing reaches {name} on this data", "exclude it, or give other data")
        if not (np.isfinite(self.gram).all() and np.isfinite(self.cross).all()):
            raise PruneError(f"what {name} reads is not finite", "look for NaN or huge values in the data")

    @property
    def spread(self) -> float:
        """The variances of Y, summed."""
        n = self.count or 1
        return float(np.maximum(self.squares / n - np.square(self.y / n), 0.0).sum())

    def problem(self, batch: int, intercept: bool, rows: Array | slice = slice(None), *, last: bool = False) -> Problem:
        """The least-squares problem of one matrix of the weight, or of some rows of it; with an intercept, after taking
        it out. The `last` one that is asked for takes the place of the sums, which are as large."""
        n = self.count or 1
        gram, cross = self.gram[batch], self.cross[batch, rows]
        gram = np.divide(gram, n, out=gram if last else None)
        cross = np.divide(cross, n, out=cross if last else None)
        squares = self.squares[batch, rows] / n
        x, y = self.x[batch] / n, self.y[batch, rows] / n
        if intercept:
            subtract_product(gram, x, x)
            subtract_product(cross, y, x)
            squares -= y * y
        return Problem(gram, cross, np.maximum(squares, 0.0), x=x, y=y, count=max(self.positions, 1))

    def problems(self, intercept: bool) -> Problem:
        """The same of all matrices at once, as arrays with an axis of theirs before the others: depthwise kernels are
        thousands of small problems."""
        if len(self.gram) == 1:
            one = self.problem(0, intercept)
            names = ("gram", "cross", "squares", "x", "y")
            return replace(one, **{name: getattr(one, name)[None] for name in names})
        n = self.count or 1
        gram, cross, squares, x, y = (each / n for each in (self.gram, self.cross, self.squares, self.x, self.y))
        if intercept:
            gram -= x[:, :, None] * x[:, None, :]
            cross -= y[:, :, None] * x[:, None, :]
            squares -= y * y
        return Problem(gram, cross, np.maximum(squares, 0.0), x=x, y=y, count=max(self.positions, 1))


def _weighed(columns: Array, targets: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """The arrays multiplied by the roots of weights, and these: what a constant input of 1 is then."""
    if weights is None:
        return columns, targets, np.ones(columns.shape[2], np.float32)
    roots = np.sqrt(weights, dtype=np.float32)
    return columns * roots, targets * roots, roots


def _count(ones: Array) -> float:
    return float(np.square(ones, dtype=np.float64).sum())


def _summed_over(array: Array, ones: Array) -> Array:
    """(rows, R) summed over R with the factors `ones`."""
    found: Array = np.einsum("ij,j->i", array, ones, dtype=np.float64)
    return found


def products(left: Array, right: Array) -> Array:
    """left (m, r) times right (n, r) transposed."""
    return np.asarray(left @ right.T)


def _add_product(sums: Array, left: Array, right: Array) -> None:
    """sums (m, n) += left (m, r) right (n, r)^T. Sums in float32 are as large as the layer: they are added to in place,
    for another array of their size would take as long to write, read and add as the product itself."""
    if sums.dtype != np.float32 or not sums.size:
        sums += products(left, right)
        return
    found = linalg.blas.sgemm(1.0, right, left, beta=1.0, c=sums.T, trans_b=True, overwrite_c=True)
    assert np.shares_memory(found, sums)


def subtract_product(array: Array, left: Array, right: Array) -> None:
    """array -= left right^T, some rows at a time: the whole product would be as large as the largest array there is."""
    step = max(1, _CHUNK // (8 * max(right.size, 1)))
    for start in range(0, len(array), step):
        array[start : start + step] -= np.outer(left[start : start + step], right)


HELD = 4
"""One batch in so many judges fits and is not fitted on."""


def is_held(number: int, batches: int) -> bool:
    """Whether a batch judges: the last of each HELD, where there are so many."""
    return batches >= HELD and number % HELD == HELD - 1


@dataclass
class Folds:
    """Sums over the samples that are `fitted`, over those that are `held` out (None where there are too few)."""

    fitted: Equations
    held: Equations | None

    @classmethod
    def empty(cls, batch: int, rows: int, size: int, held: bool) -> Folds:
        return cls(Equations.empty(batch, rows, size), Equations.empty(batch, rows, size) if held else None)

    def side(self, held: bool) -> Equations:
        """Where samples belong."""
        return self.held if self.held is not None and held else self.fitted

    def with_inputs_of(self, other: Folds) -> Folds:
        """See `Equations`."""
        held = self.held if self.held is None or other.held is None else self.held.with_inputs_of(other.held)
        return Folds(self.fitted.with_inputs_of(other.fitted), held)

    def inputs(self) -> Folds:
        """The sums of X alone."""
        return Folds(self.fitted.inputs(), None if self.held is None else self.held.inputs())

    def __iadd__(self, other: Folds) -> Folds:
        self.fitted += other.fitted
        if self.held is not None and other.held is not None:
            self.held += other.held
        return self

    @property
    def positions(self) -> int:
        """All that were added."""
        return self.fitted.positions + (0 if self.held is None else self.held.positions)

    def whole(self) -> Equations:
        """All samples, added up in place: none are held out from then on."""
        if self.held is not None:
            self.fitted += self.held
            self.held = None
        return self.fitted


@dataclass(frozen=True)
class Problem:
    """Minimise |W X - Y|^2 / R over W (rows, K). `gram` (K, K), `cross` (rows, K); `squares` (rows,): the error of
    W = 0; `x` (K,), `y` (rows,): means; `count`: how many positions."""

    gram: Array
    cross: Array
    squares: Array
    x: Array
    y: Array
    count: int

    def error(self, weights: Array) -> Array:
        """|W X - Y|^2 / R per row."""
        both = np.einsum("ij,ij->i", weights @ self.gram - 2 * self.cross, weights)
        error: Array = np.maximum(both + self.squares, 0.0)
        return error


SPREAD = 4
"""Times the positions that are looked at are there in the batches that are read: those of one image are alike."""


def batches_read(batches: int, positions: int, size: int, per_unknown: int = PER_UNKNOWN) -> Array:
    """Which of the batches are read, evenly spread, where each has so many positions and takes work to make: as many as
    hold `SPREAD` times what is looked at, a quarter of them at least."""
    wanted = SPREAD * Picker(1, size, per_unknown).most
    count = min(max(-(-wanted // max(positions, 1)), -(-batches // SPREAD)), batches)
    return np.arange(count) * batches // max(count, 1)


@dataclass
class Picker:
    """Which positions of each batch of data are looked at: all, or so many drawn by `seed`."""

    batches: int
    size: int
    per_unknown: int = PER_UNKNOWN
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, self.size])

    @property
    def most(self) -> int:
        """Positions of one batch that are looked at, at most."""
        return -(-(self.per_unknown * self.size + _AT_LEAST) // max(self.batches, 1))

    def pick(self, available: Array) -> Iterator[Array]:
        """Some of the positions of one batch in ascending order, in chunks that fit into memory."""
        some = len(available) > self.most
        chosen = np.sort(self.rng.choice(available, self.most, replace=False)) if some else available
        step = max(1, _CHUNK // (4 * max(self.size, 1)), self.size // 8 if self.size**2 > LARGE else 0)
        for start in range(0, len(chosen), step):
            yield chosen[start : start + step]


@dataclass(frozen=True)
class Addend:
    """What some positions of a batch add to the sums `into`: see `Equations.of`. The arrays are made when they are
    needed."""

    into: Equations
    columns: Callable[[], Array]
    targets: Callable[[], Array]
    weights: Array | None = None

    def sums(self) -> tuple[Equations, Equations]:
        """The sums to add to, and what is to be added."""
        return self.into, Equations.of(self.columns(), self.targets(), self.weights)


def addends(
    found: Contraction, places: Iterable[Array], into: Equations, data: Array, wanted: Array, *,
    weights: Array | None = None,
) -> Iterator[Addend]:  # fmt: skip
    """One batch: what the layer reads, and what it is to give, at the `places` of `Picker.pick`. `weights` of all
    positions."""
    for positions in places:
        columns = partial(found.columns, data, wanted.shape, positions)
        targets = partial(found.targets, wanted, positions)
        yield Addend(into, columns, targets, weights=None if weights is None else weights[positions])


def add_each(given: Iterable[Addend], like: Equations, lanes: int, *, known: bool = False) -> None:
    """Add up, in the order that is given whatever the number of lanes. Large matrices are added to in place, one
    product by all threads after the other.

    Args:
        like: any of the sums.
        known: the sums of what the layer reads are had.
    """
    large = like.gram.dtype == np.float32
    with nullcontext() if large else one_blas_thread():
        if known or (large and len(like.gram) == 1):
            for one in given:
                columns, targets, ones = _weighed(one.columns(), one.targets(), one.weights)
                if not known:
                    one.into.add_inputs(columns, ones)
                one.into.add_targets(columns, targets, ones)
            return
        for into, found in in_order(Addend.sums, given, 1 if large else lanes):
            into += found


_AXES_AS_INPUT = 18
_SUM = "prunecli.moments."


@dataclass(frozen=True)
class MomentReading:
    """An axis of `weight` is contracted with axis `data_axis` (from the end) of the value `data`. `groups`: the axis is
    read once per group, on consecutive stretches of the data."""

    weight: str
    data: str
    data_axis: int
    groups: int = 1


def readings(model: ir.Model) -> list[MomentReading]:
    """Every contraction of a stored weight with computed data, in the main graph."""
    found = []
    for node in model.graph:
        sums = operator_of(node).sums
        for one in sums(node, partial(_rank, node)) if sums else ():
            stored, value = behind(node.inputs[one.weight]), node.inputs[one.data]
            if stored is None or value is None or is_constant(value):
                continue
            if stored.axis(one.axis) is not None:
                found.append(MomentReading(stored.name, value.name or "", one.data_axis, groups=one.groups))
    return found


def _rank(node: ir.Node, index: int) -> int:
    found = behind(node.inputs[index])
    return len(found.shape) if found is not None else 0


def second_moments(
    model: ir.Model,
    ranks: Mapping[str, int],
    batches: Iterable[Mapping[str, Any]],
    open_session: Callable[..., Session] = Session.open,
) -> dict[str, Array]:
    """E[x_j^2] over all samples, positions of the other axes, and uses: weight -> one value per position.

    Args:
        model: prepared; not changed.
        ranks: of the values; what is not in it is not measured.
        batches: feeds.
    Raises:
        PruneError: onnxruntime cannot run the model on them.
    """
    wanted = [reading for reading in readings(model) if reading.data in ranks]
    places = {(r.data, r.data_axis): f"{_SUM}{number}" for number, r in enumerate(wanted)}
    if not wanted:
        return {}
    sums: dict[tuple[str, int], Array] = {}
    counts: dict[tuple[str, int], float] = {}
    if sum(each.const_value.nbytes for each in model.graph.initializers.values() if each.const_value) > PART:
        _walked(model, list(places), list(batches), open_session=open_session, into=(sums, counts))
    else:
        _summed(model, places, ranks, batches=batches, open_session=open_session, into=(sums, counts))
    out: dict[str, Array] = {}
    for reading in wanted:
        key = reading.data, reading.data_axis
        if key in sums:
            mean = (sums[key] / max(counts[key], 1.0)).reshape(reading.groups, -1).mean(axis=0)
            out[reading.weight] = out.get(reading.weight, 0.0) + mean
    return out


Moments = tuple[dict[tuple[str, int], Array], dict[tuple[str, int], float]]
"""Sums of squares and how many each is of, by a value and its axis from the end."""


def _walked(
    model: ir.Model, places: Sequence[tuple[str, int]], feeds: Sequence[Mapping[str, Any]],
    open_session: Callable[..., Session], *, into: Moments,
) -> None:  # fmt: skip
    """One value after another, of a model that is too large for a session."""
    with Store() as store:
        walk = Walk(model, feeds, store, open_session=open_session, keep=())
        for name, axis in places:
            walk.reach([name])
            for array in walk.arrays(name):
                last = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
                squares = np.einsum("ij,ij->j", last, last, dtype=np.float64)
                into[0][name, axis] = into[0].get((name, axis), 0.0) + squares
                into[1][name, axis] = into[1].get((name, axis), 0.0) + float(len(last))
        walk.close()


def _summed(
    model: ir.Model, places: Mapping[tuple[str, int], str], ranks: Mapping[str, int],
    batches: Iterable[Mapping[str, Any]], open_session: Callable[..., Session], *, into: Moments,
) -> None:  # fmt: skip
    """All values at once, in the graph itself."""
    sums, counts = into
    session = open_session(_summing(ir.to_proto(model), places, ranks))
    names = [n for name in places.values() for n in (name, f"{name}.size")]
    for feed in batches:
        found = session.run(feed, names)
        for key, name in places.items():
            squares = np.asarray(found[name], np.float64)
            sums[key] = sums.get(key, 0.0) + squares
            counts[key] = counts.get(key, 0.0) + float(found[f"{name}.size"]) / max(len(squares), 1)


def _summing(
    model: onnx.ModelProto, places: Mapping[tuple[str, int], str], ranks: Mapping[str, int]
) -> onnx.ModelProto:  # fmt: skip
    """The model with the sums of squares, and the number of elements, as outputs."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    for (data, axis), name in places.items():
        nodes = [
            helper.make_node("Cast", [data], [f"{name}.cast"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Size", [data], [f"{name}.size"]),
            _sum_but(axis, ranks[data], name, model=model, opset=opset),
        ]
        model.graph.node.extend(nodes)
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}.size", onnx.TensorProto.INT64, []))
    return model


def _sum_but(axis: int, rank: int, name: str, model: onnx.ModelProto, opset: int) -> onnx.NodeProto:
    """Sum of squares of `name`.cast over every axis but one, as `name`."""
    axes, source = [a for a in range(rank) if a != axis % rank], f"{name}.cast"
    if opset < _AXES_AS_INPUT:
        return helper.make_node("ReduceSumSquare", [source], [name], axes=axes, keepdims=0)
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{name}.axes"))
    return helper.make_node("ReduceSumSquare", [source, f"{name}.axes"], [name], keepdims=0, noop_with_empty_axes=1)
