"""A model's layers, or its groups of coupled units, as a graph for the network that predicts their damage.

Every figure is a ratio or the logarithm of one, so that what was learned on small networks carries over to large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.dependency.slices import WeightSlices
from prunecli.model import Model, Weight, concrete_shapes, count_macs, find_weights
from prunecli.model.sizes import macs_by_weight
from prunecli.predicted.flow import LEAST, Flow, flow_of

ELEMENT_LEVELS = (0.3, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
UNIT_LEVELS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Fractions removed at which damage is predicted: of the elements of a weight, of the units of a group."""
KNOWN = ("Conv", "Gemm", "MatMul")
"""Operators that the network was trained on."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
SAMPLE = 1 << 18
"""Elements of a weight that are looked at: of larger ones evenly spaced rows."""
POWER_STEPS = 30


class Undescribed(Exception):  # noqa: N818  not an error: the caller does without
    """The network was not trained on something that the model has; the message says on what."""


@dataclass(frozen=True)
class DescribedGraph:
    """`names`: of n nodes; `features` (n, `WIDTH`); `gone` (n, levels): the logarithm of the share of the power of a
    node's output that goes with a fraction of it, smallest first; `reads` (n, n): 1 where node i reads node j."""

    names: tuple[str, ...]
    features: Array
    gone: Array
    reads: Array

    @property
    def feed(self) -> dict[str, Array]:
        """The inputs of the network: one graph."""
        return {name: getattr(self, name)[None].astype(np.float32) for name in ("features", "gone", "reads")}


def describe_weights(model: Model, only: Sequence[str] | None = None) -> DescribedGraph:
    """One node per matrix or kernel; `only`: names of those that may be cut, the others are nodes all the same.

    Raises:
        Undescribed: a weight is of another operator, or is used in a body or a function.
    """
    weights, flow = _walked(model, only)
    table = _Table(model, weights, flow)
    rows = [np.concatenate([table.row(k), np.zeros(EXTRAS)]) for k in range(len(weights))]
    gone = [table.gone(k) for k in range(len(weights))]
    return DescribedGraph(tuple(w.name for w in weights), np.array(rows), np.array(gone), reads=_reads(weights, flow))


def _walked(model: Model, only: Sequence[str] | None) -> tuple[list[Weight], Flow]:
    weights = [w for w in find_weights(model).prunable if w.size > 1]
    for weight in weights:
        is_plain = _lies_in(weight, model)
        if (only is None or weight.name in only) and (not is_plain or weight.op not in KNOWN):
            what = f"{weight.op}" if is_plain else "a weight that is used inside a body or a function"
            raise Undescribed(f"{weight.name}: the network that predicts damage knows {', '.join(KNOWN)}, not {what}")
    weights = [w for w in weights if _lies_in(w, model) and w.op in KNOWN]
    if not weights:
        raise Undescribed("there is no layer to describe")
    return weights, flow_of(model.ir.graph, weights)


def _lies_in(weight: Weight, model: Model) -> bool:
    """Whether a weight is stored and used in the graph itself."""
    return all(graph is model.ir.graph for graph in (weight.holder.graph, *(use.node.graph for use in weight.uses)))


def _reads(weights: Sequence[Weight], flow: Flow) -> Array:
    found = np.zeros((len(weights), len(weights)))
    for number, weight in enumerate(weights):
        for use in weight.uses:
            for value in use.node.inputs:
                for source in flow.sources.get(value, ()) if value is not None else ():
                    found[number, source] = 1
    return found


PLAIN = ("conv", "depthwise", "pointwise", "dense", "fan_in", "fan_out", "taps", "before", "after", "params",
         "macs", "positions", "kurtosis", *(f"quantile {q}" for q in QUANTILES), "row spread", "column spread",
         "spectral norm", "stable rank", "sums", "any sum", "readers", "power", "reach",
         "reach beside others", "normalised", "gated", "first", "last")  # fmt: skip
GROUPED = ("group", "units", "producers", "readers of the group", "summed reach")
EXTRAS = len(GROUPED)
WIDTH = len(PLAIN) + EXTRAS


class _Table:
    """The figures of layers."""

    def __init__(self, model: Model, weights: Sequence[Weight], flow: Flow) -> None:
        self.weights, self.flow = weights, flow
        found = macs_by_weight(list(weights), count_macs(model, concrete_shapes(model)))
        self.macs = np.array([float(found.get(w.name) or w.size) for w in weights])
        self.params = np.array([float(w.size) for w in weights])
        self.outputs = [next(u for u in w.uses if u.kind == "weight").node.outputs[0] for w in weights]
        self.matrices = [_matrix(w) for w in weights]
        self.reach = np.log(np.array([max(flow.reach.get(v, 0.0), LEAST) for v in self.outputs]))
        self.readers = _reads(weights, flow).sum(axis=0)
        self.sums = np.array([flow.sums.get(value, 0) for value in self.outputs])
        shapes = np.array([w.layout.canonical_shape for w in weights], np.float64)
        sizes = {"fan_in": shapes[:, 2] * shapes[:, 3], "fan_out": shapes[:, 0] * shapes[:, 1], "params": self.params,
                 "macs": self.macs, "positions": self.macs / self.params}  # fmt: skip
        self.relative = {name: np.log(size) - np.log(size).mean() for name, size in sizes.items()}

    def row(self, k: int) -> Array:
        """The figures named in `PLAIN`."""
        weight, matrix, flow, out = self.weights[k], self.matrices[k], self.flow, self.outputs[k]
        batch, _, taps, cols = weight.layout.canonical_shape
        depthwise, conv = batch > 1 and cols == 1, weight.op == "Conv"
        before, after = flow.before.get(out, 1), flow.after.get(out, 0)
        size = np.abs(matrix).reshape(-1)
        rms = np.sqrt(np.square(size).mean()) + LEAST
        relative = size / rms
        norms, columns = (np.sqrt(np.square(matrix).sum(axis=a)) for a in (1, 0))
        top = _spectral(matrix)
        rank = (rms**2 * matrix.size) / max(top**2, LEAST)
        return np.array([
            conv and not depthwise and taps > 1, depthwise, conv and taps == 1, not conv,
            self.relative["fan_in"][k] / 2, self.relative["fan_out"][k] / 2, np.log(taps) / 2,
            before / max(before + after, 1), after / max(before + after, 1),
            self.relative["params"][k] / 2, self.relative["macs"][k] / 2, self.relative["positions"][k] / 2,
            np.log(np.power(relative, 4).mean() + LEAST) / 2, *np.quantile(relative, QUANTILES),
            norms.std() / (norms.mean() + LEAST), columns.std() / (columns.mean() + LEAST),
            np.log(top / (rms * (np.sqrt(matrix.shape[0]) + np.sqrt(matrix.shape[1]))) + LEAST),
            np.log(rank / min(matrix.shape)) / 2, self.sums[k] / max(self.sums.max(), 1), self.sums[k] > 0,
            np.log1p(self.readers[k]),
            np.log(flow.power.get(out, 1.0)) / 5, self.reach[k] / 3,
            (self.reach[k] - self.reach.mean()) / 3, k in flow.scales, flow.gated.get(out, False),
            before <= 1, after == 0,
        ], np.float64)  # fmt: skip

    def gone(self, k: int) -> Array:
        """Logarithms of the shares of the output's power that go: rows weigh by what the normalisation behind makes of
        them, or by their own power; a dead reach takes all of it."""
        matrix = np.square(self.matrices[k])
        total = matrix.sum(axis=1) + LEAST
        scales = self.flow.scales.get(k)
        scales = None if scales is None else scales[:: _step(self.weights[k])]
        share = np.square(scales) if scales is not None and len(scales) == len(total) else total
        share = share / max(float(share.sum()), LEAST)
        order = np.sort(matrix.reshape(-1))
        found = []
        for level in ELEMENT_LEVELS:
            limit = order[min(round(level * order.size), order.size - 1)]
            lost = np.where(matrix < limit, matrix, 0).sum(axis=1) / total
            found.append(float((lost * share).sum()))
        return np.asarray(np.log(np.maximum.accumulate(np.maximum(found, 1e-6))) + self.reach[k])


def _matrix(weight: Weight) -> Array:
    """(outputs, inputs): evenly spaced rows of large ones.

    Raises:
        Undescribed: one of the numbers is none.
    """
    array = weight.layout.canonical(weight.array())
    _, rows, taps, cols = array.shape
    picked = np.arange(0, array.shape[0] * rows, _step(weight))
    matrix = array[picked // rows, picked % rows].reshape(len(picked), taps * cols).astype(np.float32)
    weight.release()
    if not np.isfinite(matrix).all():
        raise Undescribed(f"{weight.name} holds NaN or infinity")
    return np.asarray(matrix)


def _step(weight: Weight) -> int:
    return max(1, weight.size // SAMPLE)


def _spectral(matrix: Array) -> float:
    """The largest singular value, by power iteration from a fixed start."""
    x = np.ones(matrix.shape[1], np.float32) + np.linspace(0, 1, matrix.shape[1], dtype=np.float32)
    for _ in range(POWER_STEPS):
        x = matrix.T @ (matrix @ x)
        x /= np.linalg.norm(x) + LEAST
    return float(np.linalg.norm(matrix @ x))


# -- groups ------------------------------------------------------------------------------------------


def describe_groups(model: Model, catalogue: Catalogue) -> DescribedGraph:
    """One node per group of coupled units of a catalogue; `model`: its working form.

    Raises:
        Undescribed: as `describe_weights`, or there are no groups.
    """
    if not catalogue.groups:
        raise Undescribed("there are no units to describe")
    weights, flow = _walked(model, None)
    table, numbers = _Table(model, weights, flow), {w.name: k for k, w in enumerate(weights)}
    slices = WeightSlices(catalogue)
    rows, gone, makers, readers = [], [], [], []
    for group in catalogue.groups:
        roles = [(piece, numbers[piece.name]) for piece in slices.of(group) if piece.name in numbers]
        made = sorted({k for piece, k in roles if piece.role == "out"})
        read = sorted({k for piece, k in roles if piece.role == "in"})
        if not made and not read:
            raise Undescribed(f"{group.name}: no layer makes or reads its units")
        makers.append(made)
        readers.append(read)
        about = read or made
        summed = float(np.log(np.exp(table.reach[about]).sum()))
        extra = [1.0, np.log(group.count) / 3, np.log1p(len(made)), np.log1p(len(read)), summed / 3]
        own = np.mean([table.row(k) for k in about], axis=0)
        rows.append(np.concatenate([own, extra]))
        gone.append(_gone(slices, group, "in" if read else "out", table=table, numbers=numbers))
    found = np.array([[bool(set(make) & set(read)) for read in readers] for make in makers], float)
    return DescribedGraph(tuple(g.name for g in catalogue.groups), np.array(rows), np.array(gone), reads=found)


def _gone(slices: WeightSlices, group: Group, role: str, table: _Table, numbers: dict[str, int]) -> Array:
    """What the readers of the units lose with those of least norm, weighed by their reach."""
    pieces = [p for p in slices.of(group) if p.role == role and p.name in numbers]
    powers = [np.square(p.take(slices.array(p.name))).sum(axis=1) for p in pieces]
    reach = np.exp([table.reach[numbers[p.name]] for p in pieces])
    order = np.argsort(np.sum(powers, axis=0), kind="stable")
    found = []
    for level in UNIT_LEVELS:
        lost = order[: max(round(level * group.count), 1)]
        found.append(sum(r * own[lost].sum() / (own.sum() + LEAST) for r, own in zip(reach, powers, strict=True)))
    return np.log(np.maximum.accumulate(np.maximum(found, 1e-6)))
