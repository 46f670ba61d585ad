"""Weights of a quantised graph, fitted layer by layer to what the float model computes.

Float model and stand-in of the quantised graph run side by side. When a layer's turn comes, all before it are
quantised: its Gram matrix is that of what it will really read, activations rounded, and its aim is what the float
model yields. Of three ways to round, the one that errs least on held-out samples is stored:

nearest      the grid that errs least, weights rounded to it one by one
compensated  what each column is rounded by is made up for by the others (`prunecli.reconstruct.rounding`)
fitted       the same, from the weights that come nearest to the aim on what the layer reads now

and in all of them the bias is such that the mean of every output is that of the float model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.batches import CalibrationBatches
from prunecli.calibration.grams import Addend, Equations, Picker, add_each, addends
from prunecli.calibration.influence import Influence
from prunecli.calibration.layers import LinearLayer, layers_of
from prunecli.calibration.layerwise import Store, Walk, working_form
from prunecli.model import Model, find_weights
from prunecli.quantization.stored import GridForm, IntegerGraph, stand_in
from prunecli.reconstruct.fit import FitTask, masked_least_squares
from prunecli.reconstruct.refit import Fit
from prunecli.reconstruct.rounding import IntegerGrid, fitted_grid, rounded
from prunecli.types import Progress, Skipped, no_progress

NEAREST, COMPENSATED, FITTED = "nearest", "compensated", "fitted"
WIDEST = 8192
"""Most inputs of an output; the Gram matrix of more would take more than half a gigabyte."""

POSITIONS = 40
"""Positions used per input of a layer: rounding errors are far larger than what more positions would improve."""


@dataclass(frozen=True)
class QuantisedLayer:
    """The result for one weight. `errors`: by the method of rounding, squared difference from the target over its
    spread, on held-out samples if any. `method`: the one used. `shape`, `nonzero`: of the weight."""

    name: str
    op: str
    node: str
    shape: tuple[int, ...]
    nonzero: int
    method: str
    errors: dict[str, float]


@dataclass(frozen=True)
class _Rounding:
    """One rounding of a layer, by matrix; `shift`: of the constant."""

    name: str
    grids: list[IntegerGrid]
    values: Array
    shift: Array


def fit_graph(
    prepared: ir.Model, graph: IntegerGraph, data: CalibrationBatches, progress: Progress = no_progress
) -> tuple[list[QuantisedLayer], list[Skipped]]:
    """Store fitted weights in the graph. Return the layers, and the weights that remain as onnxruntime's tool rounded
    them.

    Args:
        prepared: the float model that the graph was made from.
    Raises:
        PruneError: what a layer reads is not finite; onnxruntime cannot run a piece of the model.
    """
    teacher, student = working_form(prepared), working_form(stand_in(graph, prepared))
    aims = {layer.name: layer for layer in _layers(teacher)[0]}
    data = replace(data, influence=Influence.of(teacher, list(aims.values()), data.feeds, start=data.start))
    layers, left = _layers(student)
    left = [skip for skip in left if skip.name in graph.weights]
    done = []
    with Store() as store:
        walks = [Walk(model, data.feeds, store, open_session=data.start) for model in (teacher, student)]
        pair = _BothWalks(walks[0], walks[1], student.graph, data=data)
        for layer in progress(layers, "fitting layers", len(layers)):
            form, aim = graph.form_of(layer), aims.get(layer.name)
            fits = len(layer.uses) == 1 and layer.shape[2] * layer.shape[3] <= WIDEST
            if form is None or aim is None or not fits:
                left += [Skipped(layer.name, "it is stored in a form of its own")] * (layer.name in graph.weights)
                continue
            done.append(_fit(_LayerVisit(layer, aim, form, graph=graph), pair))
    return done, left


def round_graph(prepared: ir.Model, graph: IntegerGraph) -> None:
    """Store weights rounded to the nearest on grids of the least error; all weights count alike."""
    for layer in _layers(working_form(stand_in(graph, prepared)))[0]:
        form = graph.form_of(layer)
        if form is None:
            continue
        weights = layer.matrices(_floats(prepared)[layer.name])
        visit = _LayerVisit(layer, layer, form, graph=graph)
        grids = [visit.grid(one, np.ones(one.shape[1]), at) for at, one in enumerate(weights)]
        values = np.stack([grid.values(grid.integers(one)) for grid, one in zip(grids, weights, strict=True)])
        graph.put(layer, grids, values, bias=None)


def _floats(prepared: ir.Model) -> dict[str, Array]:
    return {w.name: w.array() for w in find_weights(Model(prepared, Path(), "")).prunable}


def _layers(work: ir.Model) -> tuple[list[LinearLayer], list[Skipped]]:
    found = find_weights(Model(work, Path(), ""))
    layers, left = layers_of(work, found.prunable)
    vectors = {w.holder.name for w in found.others}
    return [layer.moving_only(vectors) for layer in layers], left


@dataclass(frozen=True)
class _BothWalks:
    """Both models, run layer by layer, and the graph of the stand-in, whose weights change."""

    teacher: Walk
    student: Walk
    graph: ir.Graph
    data: CalibrationBatches


@dataclass(frozen=True)
class _LayerVisit:
    """The layer of the stand-in that is fitted now. `aim`: the same layer of the float model."""

    layer: LinearLayer
    aim: LinearLayer
    form: GridForm
    graph: IntegerGraph

    def grid(self, weights: Array, importance: Array, at: int) -> IntegerGrid:
        """Return the grid of matrix `at` for these weights."""
        least = self.graph.least_scale(self.layer, self.aim.bias())
        form = self.form
        return fitted_grid(
            weights,
            importance,
            form.kind,
            block=form.block,
            shared=form.shared,
            least=None if least is None else least[at],
        )


def _fit(visit: _LayerVisit, pair: _BothWalks) -> QuantisedLayer:
    layer = visit.layer
    fitted, held = _sums(visit, pair)
    measured = fitted if held is None else held
    tasks = _tasks(visit, fitted)
    ways = [_rounded(visit, tasks, name) for name in (NEAREST, COMPENSATED, *([FITTED] if held is not None else []))]
    bias = layer.bias()
    fits = {way.name: Fit(way.name, way.values, bias + way.shift) for way in ways}
    errors = {name: fit.error(measured) / max(measured.spread, 1e-300) for name, fit in fits.items()}
    best = min(ways, key=lambda way: errors[way.name])
    constant = layer.constant() + best.shift if layer.offset is not None else None
    visit.graph.put(layer, best.grids, best.values, bias=constant)
    if constant is None:
        layer.weight.holder.put(ir.Tensor(layer.cast(best.values), dtype=layer.weight.dtype, name=layer.name))
    else:
        layer.put(pair.graph, best.values, constant)
    use = layer.weight
    return QuantisedLayer(
        name=layer.name, op=use.op, node=layer.node.name or layer.output, shape=use.shape,
        nonzero=int(np.count_nonzero(best.values)), method=best.name, errors=errors,
    )  # fmt: skip


def _sums(visit: _LayerVisit, pair: _BothWalks) -> tuple[Equations, Equations | None]:
    """Return sums over the fitting data, and over the held-out data if any: of the layer's inputs in the stand-in, and
    its outputs in the float model."""
    batch, rows, taps, cols = visit.layer.shape
    teacher, student, data = pair.teacher, pair.student, pair.data
    read, wanted, count = visit.layer.found, visit.aim.output, len(data.feeds)
    teacher.reach([wanted])
    student.reach([read.data])
    sides = [Equations.empty(batch, rows, taps * cols) for _ in range(2)]
    pickers = [Picker(max(n, 1), taps * cols, POSITIONS) for n in (data.fitted, count - data.fitted)]

    def given() -> Iterator[Addend]:
        for number in range(count):
            side = int(number >= data.fitted)
            target = teacher.read(wanted, number)
            places = pickers[side].pick(data.places(visit.aim.found, number, target.shape))
            yield from addends(read, places, sides[side], data=student.read(read.data, number), wanted=target)

    add_each(given(), sides[0], data.lanes)
    teacher.release(wanted)
    student.release(read.data)
    for sums in sides[: 1 + data.held]:
        sums.check(visit.layer.name)
    return sides[0], sides[1] if data.held else None


def _tasks(visit: _LayerVisit, sums: Equations) -> list[FitTask]:
    """The least-squares problem of each matrix, from the float model's weights."""
    layer = visit.layer
    free, bias, tasks = layer.offset is not None, layer.bias(), []
    for at, weights in enumerate(visit.aim.matrices()):
        found, offset = sums.problem(at, free), bias[at]
        cross, variance = found.cross, found.squares
        if not free:
            cross = cross - np.outer(offset, found.x)
            variance = variance - 2 * offset * found.y + offset**2
        tasks.append(
            FitTask(weights=weights, gram=found.gram, cross=cross, x=found.x, y=found.y, variance=variance,
                    count=found.count, offset=offset, free=free, taps=layer.shape[2])
        )  # fmt: skip
    return tasks


def _optimum(task: FitTask) -> Array:
    """Return the weights closest to the target, with zeros where they are zero now."""
    if not task.gone.any():
        return task.optimum().weights
    return masked_least_squares(task.damped, task.target, ~task.gone, start=task.weights)


def _rounded(visit: _LayerVisit, tasks: Sequence[FitTask], name: str) -> _Rounding:
    grids, values, shifts = [], [], []
    for at, task in enumerate(tasks):
        aim = _optimum(task) if name == FITTED else task.weights
        grid = visit.grid(aim, task.gram.diagonal() + np.square(task.x), at)
        found = grid.values(grid.integers(aim)) if name == NEAREST else rounded(aim, task.damped, grid, zero=task.gone)
        grids.append(grid)
        values.append(found)
        shifts.append(task.y - found @ task.x - task.offset if task.free else np.zeros(len(found)))
    return _Rounding(name, grids, np.stack(values), shift=np.stack(shifts))
