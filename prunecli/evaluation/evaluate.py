"""`prune evaluate`: quality, fidelity, robustness, latency and size of a model, alone or beside another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prunecli.data import Dataset, random_data
from prunecli.errors import PruneError
from prunecli.evaluation.figures import SPEEDUP, difference, figures, known, needs
from prunecli.evaluation.gates import Gate, check_gates, check_span, parse_gate
from prunecli.evaluation.latency import Latency, Speedup, TimingOptions, measure, measure_pair
from prunecli.evaluation.options import EvaluateOptions
from prunecli.evaluation.pairing import Runner, common_specs, pair
from prunecli.evaluation.passes import BASELINE, MODEL, EvaluationPass, run_pass
from prunecli.evaluation.quality import compute_metrics, confusion, per_class
from prunecli.evaluation.result import Evaluation, Scored
from prunecli.evaluation.robustness import measure_stress
from prunecli.evaluation.significance import Significance, compare_predictions
from prunecli.evaluation.subject import OpenedModel, data_dims, open_subject
from prunecli.inputs import InputSpec
from prunecli.model.shapes import with_demands
from prunecli.types import Progress, no_progress

RANDOM_SAMPLES = 8


@dataclass(frozen=True)
class PairedModels:
    """The models, opened and paired, by role."""

    subjects: Mapping[str, OpenedModel]
    runners: Mapping[str, Runner]
    specs: Sequence[InputSpec]


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
    model, baseline = Path(model), options.baseline
    gates = [parse_gate(text, known()) for text in options.gates]
    bench = _open(model, baseline, options)
    data = _data(bench, options)
    _check_request(options, data, bench, gates)
    done = run_pass(bench.runners, data, options.batch_size, options.asked, progress)
    train, train_samples = _train_metrics(bench, options, done, progress)
    stress = None
    if options.robustness:
        stress = measure_stress(bench.runners, data, options.batch_size, done.reading, options.seed, progress)
        for gate in (gate for gate in gates if gate.name.startswith("robustness.")):
            check_span(gate, difference(stress.span))
    times, gain = _latency(bench, data, options, progress) if options.latency else ({}, None)
    result = Evaluation(
        models=[_scored(role, bench, data, options, done, train, times) for role in bench.runners],
        source=data.source,
        samples=len(data),
        batch_size=options.batch_size,
        average=options.average,
        fidelity=done.fidelity,
        speedup=gain,
        significance=_significance(done),
        stress=stress,
        train_samples=train_samples,
        notes=_notes(bench, data, done),
        data_notes=data.notes,
        classes=data.classes,
    )
    values = figures(result)
    short = ", ".join(sorted(name for name in values if "." not in name))
    checked = check_gates(gates, values, f"this evaluation has {short}", partial(_undecided, gain))
    return replace(result, gates=checked, seconds=time.perf_counter() - start)


def _open(model: Path, baseline: Path | None, options: EvaluateOptions) -> PairedModels:
    subject = open_subject(model, options.execution)
    if baseline is None:
        return PairedModels({MODEL: subject}, {MODEL: Runner(subject.session)}, subject.session.inputs)
    other = open_subject(baseline, options.execution)
    runner = pair(subject.session, other.session)
    specs = common_specs(subject.session.inputs, runner)
    return PairedModels({MODEL: subject, BASELINE: other}, {MODEL: Runner(subject.session), BASELINE: runner}, specs)


def _data(bench: PairedModels, options: EvaluateOptions) -> Dataset:
    if options.source is not None:
        return options.source.open(bench.specs, bench.subjects[MODEL].session.outputs)
    return _random(bench, options, RANDOM_SAMPLES, 1)


def _random(bench: PairedModels, options: EvaluateOptions, count: int, batch: int) -> Dataset:
    limits = bench.subjects[MODEL].session.limits
    if BASELINE in bench.subjects:
        others = bench.subjects[BASELINE].session.limits
        names = bench.runners[BASELINE].inputs
        limits = {n: min(v, others.get(names.get(n, n), v)) for n, v in limits.items()}
    dims, specs = options.dims, with_demands(bench.subjects[MODEL].file.ir, bench.specs)
    return random_data(
        specs, count, options.seed, limits=limits, dims=dims.sizes, shapes=dims.shapes, batch=batch,
        outputs=bench.subjects[MODEL].session.outputs,
    )  # fmt: skip


def _check_request(options: EvaluateOptions, data: Dataset, bench: PairedModels, gates: Sequence[Gate]) -> None:
    """Refuse at once what the measurements could not answer at the end."""
    if options.train_data is not None and not data.has_labels:
        raise PruneError("--train-data needs labelled test data", "give --data with labels")
    if options.robustness and options.data is None:
        raise PruneError("--robustness needs data", "give --data; random inputs have no quality to lose")
    for gate in gates:
        missing = _missing(gate.name, options, data, bench)
        if missing:
            raise PruneError(f"--fail-if {gate.expr!r} needs {missing[0]}", missing[1])


def _missing(name: str, options: EvaluateOptions, data: Dataset, bench: PairedModels) -> tuple[str, str] | None:
    have = {
        "baseline": BASELINE in bench.subjects,
        "fidelity": BASELINE in bench.subjects or data.has_reference,
        "labels": data.has_labels,
        "latency": options.latency,
        "train": options.train_data is not None,
        "robustness": options.robustness,
    }
    hints = {
        "baseline": ("a model to compare with", "give --baseline ORIGINAL.onnx"),
        "fidelity": ("a model to compare with", "give --baseline ORIGINAL.onnx"),
        "labels": ("labelled data", "give --data with labels"),
        "latency": ("latency", "leave out --no-latency"),
        "train": ("training data", "give --train-data"),
        "robustness": ("robustness", "add --robustness"),
    }
    return next((hints[need] for need in needs(name) if not have[need]), None)


def _train_metrics(
    bench: PairedModels, options: EvaluateOptions, done: EvaluationPass, progress: Progress
) -> tuple[dict[str, dict[str, float]], int]:
    if options.train_samples is None:
        return {}, 0
    data = options.train_samples.open(bench.specs, bench.subjects[MODEL].session.outputs)
    if not data.has_labels:
        raise PruneError(f"{options.train_samples.text} has no labels", "the train-test gap needs them")
    found = run_pass(bench.runners, data, options.batch_size, options.asked, progress, "evaluating the training data")
    return {role: compute_metrics(p, options.average) for role, p in found.predictions.items()}, len(data)


def _latency(
    bench: PairedModels, data: Dataset, options: EvaluateOptions, progress: Progress
) -> tuple[dict[str, Latency], Speedup | None]:
    """All models on the same first samples, in turn."""
    size = options.latency_batch
    if options.data is None:
        data = _random(bench, options, 1, size)
    batch = next(data.take(data.fixed_batch or size).batches(size))
    runs = {role: runner.session.prepared(runner.feed(batch.feed)) for role, runner in bench.runners.items()}
    how = TimingOptions(
        options.execution.thread_count, bench.runners[MODEL].session.provider, batch.count + batch.padded,
        pairs=options.latency_runs, seed=options.seed,
    )  # fmt: skip
    if BASELINE not in runs:
        return measure(runs, how, progress), None
    timed = measure_pair(runs[MODEL], runs[BASELINE], how, progress)
    return {MODEL: timed.model, BASELINE: timed.baseline}, timed.gain


def _undecided(gain: Speedup | None, gate: Gate) -> str:
    """Why a gate on the speed-up is not decided: the truth may be on either side of its limit, or anywhere."""
    if gain is None or gate.name not in {f"latency.{name}" for name in SPEEDUP}:
        return ""
    return gain.undecided(gate.limit) if gate.name == "latency.speedup" else gain.reason


def _scored(
    role: str, bench: PairedModels, data: Dataset, options: EvaluateOptions, done: EvaluationPass,
    train: Mapping[str, Mapping[str, float]], times: Mapping[str, Latency],
) -> Scored:  # fmt: skip
    subject, predictions = bench.subjects[role], done.predictions.get(role)
    dims = data_dims(data, bench.runners[role].inputs, subject.session)
    classes = predictions is not None and not predictions.reading.regression
    return Scored(
        role=role,
        ref=subject.ref,
        totals=subject.totals(dims),
        metrics=compute_metrics(predictions, options.average) if predictions else {},
        latency=times.get(role),
        train=train.get(role, {}),
        predictions=predictions,
        classes=per_class(predictions) if predictions and classes and options.per_class else (),
        confusion=confusion(predictions) if predictions and classes and options.per_class else None,
    )


def _significance(done: EvaluationPass) -> Significance | None:
    if MODEL not in done.predictions or BASELINE not in done.predictions:
        return None
    return compare_predictions(done.predictions[MODEL], done.predictions[BASELINE])


def _notes(bench: PairedModels, data: Dataset, done: EvaluationPass) -> list[str]:
    notes = [f"matched by position: {name}" for r in bench.runners.values() for name in r.renamed]
    for role, predictions in done.predictions.items():
        if predictions.invalid:
            notes.append(f"{predictions.invalid:,} predictions of the {role} are not finite; they count as wrong")
    if done.fidelity is not None:
        notes += done.fidelity.skipped
    if done.reading is not None and done.reading.several:
        notes.append(
            "several labels per sample: each is one prediction; precision, recall and F1 are averaged over them"
        )
    elif any(len(p.sample) > p.samples for p in done.predictions.values()):
        notes.append("labels are per position: every position counts as one prediction")
    return notes
