"""Measurements of a criterion on the data, made before units are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from prunecli.arrays import Array
from prunecli.calibration.gradients import Batches, GradientSamples, gates, looked_at, open_gradients
from prunecli.calibration.grams import second_moments
from prunecli.calibration.samples import run_size
from prunecli.dependency.slices import WeightSlices
from prunecli.dependency.unit_graph import graph_of
from prunecli.masks.criteria import of_structures
from prunecli.model import find_weights
from prunecli.reconstruct.refit import TURNING
from prunecli.reconstruct.turning import TurnedModel, turned
from prunecli.structures.choose import Measure, Measurements, group_limit, resolve_criterion
from prunecli.structures.experts import closable, energies
from prunecli.structures.options import CutOptions
from prunecli.structures.prunable import Cuttable
from prunecli.types import Progress


def measure(cuttable: Cuttable, options: CutOptions, progress: Progress) -> Measure | None:
    """Return what the criterion needs of the data; None where the weights suffice."""
    criterion = of_structures().get(resolve_criterion(options.criterion, options.source is not None))
    if criterion is None or criterion.evidence is None or (criterion.evidence.on_data and options.source is None):
        return None
    return _MEASURES[criterion.evidence.name](cuttable, options, progress)


def _moments(cuttable: Cuttable, options: CutOptions, progress: Progress) -> Measure:
    found = Measurements(moments=_input_moments(cuttable, options, progress), added=_added(cuttable, options, progress))
    return lambda _: found


def _added(cuttable: Cuttable, options: CutOptions, progress: Progress) -> dict[str, Array]:
    """Return what experts add to the outputs of their mixtures, by group; nothing is measured where there are none."""
    if all(group.kind != "expert" for group in cuttable.units.groups):
        return {}
    feeds = [batch.feed for batch in cuttable.samples(options, progress).batches(options.batch_size)]
    return energies(cuttable.units, cuttable.work, feeds, start=options.execution.open, progress=progress)


def _importance(cuttable: Cuttable, options: CutOptions, progress: Progress) -> Measure:
    """Return the importance of units in the unit graph. With data, edges count activations, and units of larger
    activation norms are preferred."""
    moments = {} if options.source is None else _input_moments(cuttable, options, progress)
    graph = graph_of(cuttable.units, moments)
    rank = graph.importance(options.damping, _norms(cuttable, moments) if moments else None)
    known = [group for group in cuttable.units.groups if group.kind != "expert"]  # no path through the graph tells them
    found = Measurements(importance={group.name: rank[group.units] for group in known})
    return lambda _: found


def _norms(cuttable: Cuttable, moments: Mapping[str, Array]) -> Array:
    """Return, for every unit, the root of the mean of E[x^2] over all layers that read it."""
    sums, counts = np.zeros(cuttable.units.count), np.zeros(cuttable.units.count)
    slices = WeightSlices(cuttable.units)
    for group in cuttable.units.groups:
        for piece in slices.of(group):
            if piece.role == "in" and piece.name in moments:
                sums[group.units] += moments[piece.name][piece.index].mean(axis=1)
                counts[group.units] += 1
    return np.sqrt(sums / np.maximum(counts, 1))


def _input_moments(cuttable: Cuttable, options: CutOptions, progress: Progress) -> dict[str, Array]:
    data = cuttable.samples(options, progress)
    batches, count = data.batches(options.batch_size), data.batch_count(options.batch_size)
    feeds = (batch.feed for batch in progress(batches, "measuring activations", count))
    ranks = {name: len(shape) for name, shape in cuttable.shapes.items()}
    return second_moments(cuttable.work, ranks, feeds, open_session=options.execution.open)


def _gates(cuttable: Cuttable, options: CutOptions, progress: Progress) -> Measure:
    """Return weight times gradient of every weight that a group touches; removed positions are zero."""
    file = replace(cuttable.file, ir=cuttable.work)
    floats = {w.name for w in find_weights(file).all() if w.kind in ("weight", "bias")}
    names = sorted({name for group in cuttable.units.groups for name, _ in group.weights} & floats)
    wanted = GradientSamples(options.source, seed=options.seed, dims=options.dims, execution=options.execution)
    gradients, data = open_gradients(file, names, wanted, progress=progress)
    given = dict(gradients.values)

    def measured(gone: Mapping[str, Mapping[int, Array]]) -> Measurements:
        gradients.values = {name: _without(array, gone.get(name, {})) for name, array in given.items()}
        return Measurements(gates=gates(gradients, Batches(data, 1, progress, label="measuring gradients")))

    return measured


def _without(array: Array, gone: Mapping[int, Array]) -> Array:
    """The weight with zeros at the positions that are gone."""
    if not gone:
        return array
    array = array.copy()
    for axis, positions in gone.items():
        np.moveaxis(array, axis, 0)[positions] = 0
    return array


def _damage(cuttable: Cuttable, options: CutOptions, progress: Progress) -> Measure:
    """Return the damage of units on a quarter of the samples, at most `most_held`, after fitting on the others; the
    damage of several groups together is measured on fewer samples, after the refit that follows the cut."""
    from prunecli.structures.blocks import refitted_damage
    from prunecli.structures.damage import DamageSource, curves
    from prunecli.structures.recovery import calibration, joint_damage, recovery_method

    most_judges = most_held(looked_at(cuttable.work.graph.outputs), cuttable.shapes)
    data, _ = calibration(cuttable, cuttable.samples(options, progress), options, share=HELD_SHARE, most=most_judges)
    fit, held = data.feeds[: data.fitted], data.feeds[data.fitted :] if data.held else data.feeds
    groups = [group for group in cuttable.units.groups if group.kind != "block"]
    most = [group_limit(group, options.largest_ratio) for group in groups]
    alignment = options.alignment
    widths = [alignment.widths(cuttable.units, group, limit) for group, limit in zip(groups, most, strict=True)]
    usable = [n for n, m in enumerate(most) if m > 0]
    heads = TurnedModel(cuttable.work)
    if recovery_method(options) in TURNING and any(group.kind == "head_dim" for group in groups):
        heads = turned(cuttable.work, data)
    mixed = any(group.kind == "expert" for group in groups)
    doors = closable(heads.model, cuttable.neutral if mixed else {}, cuttable.shapes)
    source = DamageSource(
        doors.model, cuttable.units, fit, held=held, start=data.start, lanes=data.lanes, progress=progress,
        rank=heads.rank, influence=data.influence,
        added=energies(cuttable.units, cuttable.work, fit, start=data.start, progress=progress), doors=doors,
    )  # fmt: skip
    found = curves(source, [(groups[n], most[n], widths[n]) for n in usable])
    damage = {groups[n].name: curve.scores() for n, curve in zip(usable, found, strict=True)}
    few = fit[: -(-JOINTLY_FITTED // run_size(cuttable.counted, options.batch_size))]
    rough = replace(data, feeds=[*few, *held], fitted=len(few))
    blocks = None
    if dropped := [group for group in cuttable.units.groups if group.kind == "block"]:
        blocks = refitted_damage(cuttable, fit, held, start=data.start)
        alone = np.eye(len(dropped), dtype=bool)
        damage |= {group.name: np.array([blocks(mask)]) for group, mask in zip(dropped, alone, strict=True)}
    evidence = Measurements(
        damage=damage, joint=lambda removed: joint_damage(cuttable, options, removed, data=rough), blocks=blocks
    )
    return lambda _: evidence


HELD_SHARE = 4
HELD_MOST, HELD_LEAST = 96, 32
"""Most samples on which the damage is measured: the model runs a few hundred times on each."""
NUMBERS = 960
"""Numbers in the outputs of the samples, above which fewer samples do: their squared errors are a mean over all."""
JOINTLY_FITTED = 64
"""Samples on which a cut is fitted before its joint damage is measured: enough to tell good from bad, not to order
nearly equal cuts."""


def most_held(outputs: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> int:
    """Return on how many samples the damage to the outputs is measured, at most."""
    numbers = sum(math.prod(shapes[name][1:]) for name in outputs if name in shapes)
    return min(max(NUMBERS // max(numbers, 1), HELD_LEAST), HELD_MOST)


_MEASURES: dict[str, Callable[[Cuttable, CutOptions, Progress], Measure]] = {
    "moments": _moments,
    "gates": _gates,
    "damage": _damage,
    "importance": _importance,
}
