"""`prune sensitivity`: the damage of cutting each layer, or group of coupled units, alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import heads_of
from prunecli.evaluation.library_metrics import rank_correlation
from prunecli.masks.allocations import LossCurve
from prunecli.model import load
from prunecli.model.saving import check_target
from prunecli.options.sizes import at_data
from prunecli.predicted.features import Undescribed
from prunecli.report.result import Reported
from prunecli.search.metric import SURE
from prunecli.search.options import SensitivityOptions
from prunecli.search.pruner import Layer, Proxy, sample_of
from prunecli.search.setup import TrialSetup, groups_of, open_model, open_pruner, set_up
from prunecli.search.strategy import MOST_PREDICTED, curve_trials, levels_of
from prunecli.search.trials import Outcome, TrialGroup, TrialSamples
from prunecli.types import FileRef, Progress, Skipped, no_progress
from prunecli.zeros.select import check_numbers

SAMPLES = 512
"""Samples that are drawn where there are more and no limit was set."""
CHECKED = 12
"""Number of allocations measured to see how well the proxy ranks."""


@dataclass(frozen=True)
class Point:
    """One layer cut alone by `fraction`. `drop` of the metric (positive is worse) and its standard error; None for a
    proxy. `damage`: see `TrialMetric.damage`; for a proxy the prediction."""

    fraction: float
    damage: float
    metric: float | None = None
    drop: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class SensitivityRow:
    """A layer with its points, fractions rising."""

    layer: Layer
    points: Sequence[Point]

    @property
    def mean_damage(self) -> float:
        """The mean damage over the points, by which rows are ranked."""
        return sum(p.damage for p in self.points) / max(len(self.points), 1)

    @property
    def spare(self) -> float | None:
        """The largest fraction up to which no loss exceeds `SURE` standard errors; None where none was measured."""
        found = 0.0
        for point in self.points:
            if point.drop is None or point.error is None:
                return None
            if point.drop > SURE * point.error:
                break
            found = point.fraction
        return found


@dataclass(frozen=True)
class Ranking:
    """How well the proxy ranks: Spearman's rank correlation with the damage measured on `checked` allocations."""

    correlation: float
    checked: int


@dataclass(frozen=True)
class SensitivityResult(Reported):
    """`rows`: the most sensitive first. `baseline`: the metric of the original. Without data nothing is measured, and
    `metric` and the fields that depend on it are None."""

    reporter = "sensitivity_report"

    model: FileRef
    granularity: str
    criterion: str
    rows: Sequence[SensitivityRow]
    skipped: Sequence[Skipped]
    metric: str | None = None
    change: str | None = None
    output: str | None = None
    baseline: float | None = None
    samples: int = 0
    source: str | None = None
    ranking: Ranking | None = None
    proxy: Literal["gradients", "predicted"] | None = None
    measured: int = 0
    reused: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def sensitivity(
    model: str | Path, options: SensitivityOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> SensitivityResult:
    """Measure how much each layer can lose. `changes` override fields of the options:
    `sensitivity("model.onnx", data="calib.npz", levels=[0.5, 0.9])`.

    Raises:
        PruneError: the model, the data or an option is unusable.
    """
    start, options = time.perf_counter(), SensitivityOptions.of(options, **changes)
    options = at_data(Path(model), options)
    found = _from_the_file if options.source is None else _on_data
    return replace(found(Path(model), options, progress), seconds=time.perf_counter() - start)


def _on_data(model: Path, options: SensitivityOptions, progress: Progress) -> SensitivityResult:
    file, session = open_model(model, options)
    check_target(file, None, options)
    data = options.tried.open(session.inputs, session.outputs)
    if options.tried.limit is None and len(data) > SAMPLES:
        data, _ = data.split(SAMPLES / len(data), options.seed, groups_of(data, options))
    setup = set_up(
        file,
        data,
        TrialSamples.of(data, session, options, heads=heads_of(file.ir.graph)),
        options=options,
        progress=progress,
    )
    with closing(setup.runner):
        proxy, told = _proxy(setup, options, progress)
        rows, ranking = _by_trials(setup, options) if proxy is None else _by_proxy(setup, options, proxy)
    metric, runner = setup.samples.metric, setup.runner
    return SensitivityResult(
        model=file.ref, granularity=options.granularity, criterion=setup.pruner.criterion, metric=metric.name,
        change=metric.change, output=metric.output, baseline=metric.baseline, samples=len(data), source=data.source,
        rows=_ranked(rows), skipped=setup.pruner.skipped, ranking=ranking, measured=runner.measured,
        reused=runner.reused, proxy=None if ranking is None else "predicted" if options.predicted else "gradients",
        notes=[*file.notes, *setup.pruner.notes, *told],
    )  # fmt: skip


def _from_the_file(model: Path, options: SensitivityOptions, progress: Progress) -> SensitivityResult:
    """Predict without data, and so without a check."""
    file = load(model)
    check_numbers(file)
    check_target(file, None, options)
    pruner = open_pruner(model, options, None, progress=progress)
    try:
        proxy = _read_off(pruner.predicted())
    except Undescribed as reason:
        raise PruneError(f"the damage cannot be predicted: {reason}", "give --data to measure it") from reason
    rows = [_predicted(layer, levels, proxy) for layer in pruner.layers if (levels := levels_of(layer, options.levels))]
    return SensitivityResult(
        model=file.ref, granularity=options.granularity, criterion=pruner.criterion, rows=_ranked(rows),
        skipped=pruner.skipped, proxy="predicted", notes=[*file.notes, *pruner.notes],
    )  # fmt: skip


def _ranked(rows: Sequence[SensitivityRow]) -> list[SensitivityRow]:
    return sorted(rows, key=lambda row: (-row.mean_damage, row.layer.name))


def _read_off(curves: Mapping[str, LossCurve]) -> Proxy:
    return lambda layer, fraction: float(curves[layer].at(np.array([1 - min(fraction, MOST_PREDICTED)]))[0])


def _proxy(setup: TrialSetup, options: SensitivityOptions, progress: Progress) -> tuple[Proxy | None, list[str]]:
    """Return the proxy, if asked for, and notes. A model that the network does not know is measured instead."""
    if options.fast:
        return setup.pruner.proxy(progress), []
    if not options.predicted:
        return None, []
    try:
        return _read_off(setup.pruner.predicted()), []
    except Undescribed as reason:
        return None, [f"measured, not predicted: {reason}"]


def _by_trials(setup: TrialSetup, options: SensitivityOptions) -> tuple[list[SensitivityRow], Ranking | None]:
    layers = _layers(setup, options)
    groups = [replace(group, probe=False) for group in curve_trials(layers, options.levels)]
    found = setup.runner.measure(groups, "cutting each layer alone")
    return [
        _row(setup, k, levels_of(k, options.levels), outcomes=own) for k, own in zip(layers, found, strict=True)
    ], None


def _layers(setup: TrialSetup, options: SensitivityOptions) -> list[Layer]:
    return [layer for layer in setup.pruner.layers if levels_of(layer, options.levels)]


def _row(setup: TrialSetup, layer: Layer, levels: Sequence[float], outcomes: Sequence[Outcome]) -> SensitivityRow:
    metric, points = setup.samples.metric, []
    for level, outcome in zip(levels, outcomes, strict=True):
        assert outcome.records is not None
        drop = metric.drop(outcome.records)
        points.append(Point(level, outcome.damage, metric.value(outcome.records), drop=drop.value, error=drop.error()))
    return SensitivityRow(layer, points)


def _by_proxy(
    setup: TrialSetup, options: SensitivityOptions, proxy: Proxy
) -> tuple[list[SensitivityRow], Ranking | None]:
    """Predict, and check the ranking on a few allocations that are measured."""
    layers = _layers(setup, options)
    rows = [_predicted(layer, levels_of(layer, options.levels), proxy) for layer in layers]
    every = [(row.layer.name, point) for row in rows for point in row.points]
    some = sample_of(every, CHECKED, options.seed)
    groups = [TrialGroup.of({name: point.fraction}, probe=True) for name, point in some]
    measured = [outcomes[0].damage for outcomes in setup.runner.measure(groups, "checking the proxy")]
    return rows, Ranking(rank_correlation([point.damage for _, point in some], measured), len(some))


def _predicted(layer: Layer, levels: Sequence[float], proxy: Proxy) -> SensitivityRow:
    return SensitivityRow(layer, [Point(level, proxy(layer.name, level)) for level in levels])
