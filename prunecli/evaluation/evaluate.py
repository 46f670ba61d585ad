"""`prune evaluate`: quality, fidelity, robustness, latency and size of a model, alone or beside another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.figures import SPEEDUP, Evaluation, Scored, difference, figures, known
from prunecli.evaluation.gates import Gate, check_gates, check_span, parse_gate
from prunecli.evaluation.latency import Latency, Speedup, TimingOptions, measure, measure_pair
from prunecli.evaluation.options import EvaluateOptions
from prunecli.evaluation.passes import (
    BASELINE,
    MODEL,
    EvaluationPass,
    OpenedModels,
    data_dims,
    open_models,
    run_pass,
)
from prunecli.evaluation.quality import Significance, compare_predictions, confusion, per_class
from prunecli.evaluation.robustness import measure_stress
from prunecli.evaluation.speed import explain, first_batch, prepare_runs
from prunecli.model import concrete_shapes, totals
from prunecli.types import Progress, no_progress

RANDOM_SAMPLES = 8


def evaluate(
    model: str | Path,
    baseline: str | Path | None = None,
    options: EvaluateOptions | None = None,
    progress: Progress = no_progress,
    **changes: Any,
) -> Evaluation:
    """Measure a model, and its baseline on the same samples in the same rounds. `changes` override fields of the
    options; data may be paths: `evaluate("small.onnx", "model.onnx", data="test.npz", gates=["accuracy.drop>1%"])`.

    Gates are checked but not enforced here: `prunecli.evaluation.gates.raise_if_failed(result.gates)`.

    Raises:
        PruneError: a model or the data is unusable, they do not fit, or a gate names what was not measured.
    """
    if baseline is not None:
        changes["baseline"] = baseline
    start, options = time.perf_counter(), EvaluateOptions.of(options, **changes)
    gates = [parse_gate(text, known(options.asked.metrics)) for text in options.gates]
    paths = {MODEL: Path(model)} | ({} if options.baseline is None else {BASELINE: options.baseline})
    opened = open_models(paths, options.execution).in_parts(options.chunk)
    if options.source is not None:
        data = options.source.open(opened.specs, opened.first.outputs)
    else:
        data = opened.random_data(RANDOM_SAMPLES, options.seed, options.dims)
    _check_request(options, data, gates)
    done = run_pass(opened.runners, data, options.batch_size, asked=options.asked, progress=progress)
    train, train_samples = _train_metrics(opened, options, progress)
    stress = None
    if options.robustness:
        stress = measure_stress(
            opened.runners, data, done.reading, batch_size=options.batch_size, seed=options.seed, progress=progress
        )
        for gate in (gate for gate in gates if gate.name.startswith("robustness.")):
            check_span(gate, difference(stress.span))
    times, gain, because = _latency(opened, data, options, progress=progress)
    result = Evaluation(
        models=[
            replace(scored, train=train.get(role, {}), latency=times.get(role))
            for role, scored in _scored(opened, data, options, done=done).items()
        ],
        source=data.source,
        samples=len(data),
        batch_size=options.batch_size,
        average=options.average,
        fidelity=done.fidelity,
        speedup=gain,
        slower_because=because,
        differences=_differences(done, progress),
        stress=stress,
        train_samples=train_samples,
        notes=_notes(opened, done),
        data_notes=data.notes,
        classes=data.classes,
        asked=options.asked.metrics,
    )
    values = figures(result)
    short = ", ".join(sorted(name for name in values if "." not in name))
    checked = check_gates(gates, values, f"this evaluation has {short}", undecided=partial(_undecided, gain))
    return replace(result, gates=checked, seconds=time.perf_counter() - start)


def _check_request(options: EvaluateOptions, data: Dataset, gates: Sequence[Gate]) -> None:
    """Refuse, before anything is measured, what the measurements could not answer."""
    if options.train_data is not None and not data.has_labels:
        raise PruneError("--train-data needs labelled test data", "give --data with labels")
    options.check_gates(gates, data.has_labels, data.has_reference)


def _train_metrics(
    opened: OpenedModels, options: EvaluateOptions, progress: Progress
) -> tuple[dict[str, dict[str, float]], int]:
    if options.train_samples is None:
        return {}, 0
    data = options.train_samples.open(opened.specs, opened.first.outputs)
    if not data.has_labels:
        raise PruneError(f"{options.train_samples.text} has no labels", "the train-test gap needs them")
    found = run_pass(
        opened.runners,
        data,
        options.batch_size,
        asked=options.asked,
        progress=progress,
        label="evaluating the training data",
    )
    return {role: found.metrics(role, options.average) for role in opened.runners}, len(data)


def _latency(
    opened: OpenedModels, data: Dataset, options: EvaluateOptions, progress: Progress
) -> tuple[dict[str, Latency], Speedup | None, str]:
    """Time all models on the same first samples, in turn. Return the times, the speedup over the baseline, and why it
    is below the reduction of work; nothing where no time is asked for."""
    if not options.measures_time:
        return {}, None, ""
    given = None if options.data is None else data
    batch = first_batch(opened, given, options.dims, seed=options.seed, size=options.latency_batch)
    runs = prepare_runs(opened, batch)
    how = TimingOptions(
        options.execution.thread_count, opened.first.provider, batch.count + batch.padded,
        pairs=options.latency_runs, seed=options.seed,
    )  # fmt: skip
    if BASELINE not in runs:
        return measure(runs, how, progress), None, ""
    timed = measure_pair(runs[MODEL], runs[BASELINE], how, progress=progress)
    because = explain(opened, batch.feed, timed, execution=options.execution)
    return {MODEL: timed.model, BASELINE: timed.baseline}, timed.gain, because


def _undecided(gain: Speedup | None, gate: Gate) -> str:
    """Return why a gate on the speedup is undecided: its limit lies inside the interval. Empty where it is decided."""
    if gain is None or gate.name not in {f"latency.{name}" for name in SPEEDUP}:
        return ""
    return gain.undecided(gate.limit) if gate.name == "latency.speedup" else gain.reason


def _scored(opened: OpenedModels, data: Dataset, options: EvaluateOptions, done: EvaluationPass) -> dict[str, Scored]:
    """The size and the metrics of each model, by its role."""
    found = {}
    for role, runner in opened.runners.items():
        file, predictions = opened.files[role], done.predictions.get(role)
        dims = data_dims(data, runner.inputs, runner.session.inputs)
        classes = options.per_class and predictions is not None and not predictions.reading.regression
        found[role] = Scored(
            role=role,
            ref=file.ref,
            totals=totals(file, concrete_shapes(file, dims)),
            metrics=done.metrics(role, options.average),
            predictions=predictions,
            classes=per_class(predictions) if predictions and classes else (),
            confusion=confusion(predictions) if predictions and classes else None,
        )
    return found


def _differences(done: EvaluationPass, progress: Progress) -> dict[str, Significance]:
    """Test each metric for a difference between the model and the baseline beyond chance."""
    found = done.differences(progress)
    if MODEL in done.predictions and BASELINE in done.predictions:
        model, baseline = done.predictions[MODEL], done.predictions[BASELINE]
        found["mae" if model.reading.regression else "accuracy"] = compare_predictions(model, baseline)
    return found


def _notes(opened: OpenedModels, done: EvaluationPass) -> list[str]:
    notes = [f"matched by position: {name}" for r in opened.runners.values() for name in r.renamed]
    for role, predictions in done.predictions.items():
        if predictions.invalid:
            notes.append(f"{predictions.invalid:,} predictions of the {role} are not finite; they count as wrong")
    if done.fidelity is not None:
        notes += done.fidelity.skipped
    if done.reading is not None and done.reading.names and done.labels is not None and done.labels.dtype.kind == "U":
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(done.reading.names[:12]))
        notes.append(f"labels are text, and are taken for the model's classes in their order: {listed}")
    if done.reading is not None and done.reading.several:
        notes.append(
            "several labels per sample: each is one prediction; precision, recall and F1 are averaged over them"
        )
    elif any(len(p.sample) > p.samples for p in done.predictions.values()):
        notes.append("labels are per position: every position counts as one prediction")
    return notes
