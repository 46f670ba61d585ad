"""Models on the same data: opened, matched by their inputs and outputs, run batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data import Batch, Dataset, random_data
from prunecli.data.columns import cast
from prunecli.errors import PruneError
from prunecli.evaluation.cache import KeyValueCache
from prunecli.evaluation.fidelity import Fidelity, FidelityCollector, heads_of
from prunecli.evaluation.quality import Average, Merit, Significance, compute_metrics
from prunecli.evaluation.reading import Collector, Predictions, Reading, Task, choose_reading
from prunecli.evaluation.sample_metrics import BLOCKS, Entry, LabelFacts, MetricCollector, SampleMetric
from prunecli.inputs import InputSpec, resolve_shapes
from prunecli.model import Dims, Model, load
from prunecli.model.shapes import with_demands
from prunecli.runtime import Execution, Session
from prunecli.types import Progress, no_progress


@dataclass(frozen=True)
class OpenedModels:
    """One or two models, validated and open, by role. Inputs and outputs have the names of the first model. `specs`:
    the inputs with the dimensions that both models fix."""

    files: Mapping[str, Model]
    runners: Mapping[str, Runner]
    specs: Sequence[InputSpec]

    @property
    def first(self) -> Session:
        return next(iter(self.runners.values())).session

    def in_parts(self, length: int | None) -> OpenedModels:
        """Return the same models, run on `length` tokens at a time; None: on whole samples.

        Raises:
            PruneError: a model has no cache of keys and values.
        """
        if length is None:
            return self
        caches = {role: KeyValueCache.of(each.session, length) for role, each in self.runners.items()}
        return replace(self, runners={role: replace(each, cache=caches[role]) for role, each in self.runners.items()})

    def random_data(self, count: int, seed: int, dims: Dims, batch: int = 1) -> Dataset:
        """Return seeded random inputs that all models take."""
        limits = {
            name: min(each.session.limits.get(each.inputs.get(name, name), most) for each in self.runners.values())
            for name, most in self.first.limits.items()
        }
        specs = with_demands(next(iter(self.files.values())).ir, self.specs)
        return random_data(
            specs, count, seed, limits=limits, shapes=resolve_shapes(specs, dims.sizes, dims.shapes, batch=batch),
            outputs=self.first.outputs,
        )  # fmt: skip


def open_models(paths: Mapping[str, Path], execution: Execution) -> OpenedModels:
    """Load and open one or two models, and match inputs and outputs of the second to those of the first.

    Raises:
        PruneError: a file is not a valid model, onnxruntime cannot open it, or the two do not match.
    """
    files, runners = {}, dict[str, Runner]()
    specs: Sequence[InputSpec] = ()
    for role, path in paths.items():
        files[role], session = load(path), execution.open(path)
        if not runners:
            runners[role], specs = Runner(session, heads=heads_of(files[role].ir.graph)), session.inputs
        else:
            runners[role] = pair(next(iter(runners.values())).session, session)
            specs = common_specs(specs, runners[role])
    return OpenedModels(files, runners, specs)


def data_dims(data: Dataset, names: Mapping[str, str], inputs: Sequence[InputSpec]) -> Dims:
    """Return the sizes at which work is counted: one sample of the data, or the model's fixed batch. `names` maps the
    data's input names to those of `inputs`."""
    shapes: dict[str, tuple[int, ...]] = {}
    chunk = data.chunks[0]
    specs = {s.name: s for s in inputs}
    for name, column in chunk.columns.items():
        spec = specs[names.get(name, name)]
        shape = list(column.shape[1:] if data.unbatched else column.shape)
        if shape and spec.shape and not chunk.whole and not data.unbatched:
            axis = data.axes.get(spec.name, 0)
            size = spec.shape[axis]
            shape[:1] = []
            shape.insert(axis, size if isinstance(size, int) else 1)
        if len(shape) == len(spec.shape):
            shapes[spec.name] = tuple(shape)
    return Dims(shapes=shapes)


@dataclass(frozen=True)
class Runner:
    """A session under another model's names: `inputs` and `outputs` map those names to its own. `heads`: from
    `heads_of` of its graph, where that was read. `cache`: runs samples in parts."""

    session: Session
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    renamed: tuple[str, ...] = ()
    heads: Mapping[str, bool] = field(default_factory=dict)
    cache: KeyValueCache | None = None

    def feed(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Return the feed with this session's names and element types."""
        specs = {s.name: s for s in self.session.inputs}
        own = {self.inputs.get(name, name): value for name, value in feed.items()}
        return {name: cast(name, v, specs[name]) if name in specs else v for name, v in own.items()}

    def run(self, batch: Batch) -> dict[str, Any]:
        """Return all outputs, one row per real sample, under the common names."""
        feed = self.feed(batch.feed)
        raw = self.session.run(feed) if self.cache is None else self.cache.run(self.session, feed)
        names = self.outputs or {name: name for name in raw}
        values = {common: raw[own] for common, own in names.items()}
        return {n: batch.trim(n, v) if isinstance(v, np.ndarray) else v for n, v in values.items()}


def pair(first: Session, second: Session) -> Runner:
    """Return the second session under the first one's names, matched by name, or by position where names differ.

    Raises:
        PruneError: inputs or outputs that neither name nor position can match, with both sides.
    """
    inputs = _match(first.inputs, second.inputs, "inputs")
    outputs = _match(first.outputs, second.outputs, "outputs")
    renamed = [f"{a} = {b}" for a, b in (*inputs.items(), *outputs.items()) if a != b]
    return Runner(second, inputs, outputs, renamed=tuple(renamed))


def _match(first: Sequence[InputSpec], second: Sequence[InputSpec], what: str) -> dict[str, str]:
    names = {s.name for s in second}
    common = [s.name for s in first if s.name in names]
    if len(common) == len(first) and (what == "outputs" or len(common) == len(second)):
        return {name: name for name in common}
    alike = len(first) == len(second) and all(_alike(a, b) for a, b in zip(first, second, strict=True))
    if not alike:
        raise PruneError(
            f"the two models have different {what}: {_listed(first)} and {_listed(second)}",
            f"give models with the same {what}, or at least of the same ranks in the same order",
        )
    return {a.name: b.name for a, b in zip(first, second, strict=True)}


def _alike(a: InputSpec, b: InputSpec) -> bool:
    fixed = zip(a.shape, b.shape, strict=False)
    return (
        a.is_float == b.is_float
        and (not a.shape or not b.shape or len(a.shape) == len(b.shape))
        and not any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in fixed)
    )


def _listed(specs: Sequence[InputSpec]) -> str:
    return "; ".join(s.describe() for s in specs) or "none"


def common_specs(first: Sequence[InputSpec], runner: Runner) -> list[InputSpec]:
    """Return the first model's inputs, with the dimensions fixed that either model fixes.

    Raises:
        PruneError: the two fix one dimension at different sizes.
    """
    others = {s.name: s for s in runner.session.inputs}
    return [_join(spec, others[runner.inputs.get(spec.name, spec.name)]) for spec in first]


def _join(a: InputSpec, b: InputSpec) -> InputSpec:
    if not a.shape or not b.shape:
        return a
    if len(a.shape) != len(b.shape):
        raise PruneError(
            f"the models' inputs differ in rank: {a.describe()} and {b.describe()}",
            "give two versions of one model",
        )
    for x, y in zip(a.shape, b.shape, strict=True):
        if isinstance(x, int) and isinstance(y, int) and x != y:
            raise PruneError(
                f"no input fits both models: {a.describe()} and {b.describe()}",
                "export both for the same shapes",
            )
    return replace(a, shape=tuple(y if isinstance(y, int) else x for x, y in zip(a.shape, b.shape, strict=True)))


MODEL, BASELINE = "model", "baseline"
LONGEST = 60.0
"""Most seconds spent on the test of significance of one metric."""


@dataclass(frozen=True)
class ReadingOptions:
    """How outputs and labels are to be read."""

    task: Task | None = None
    output_name: str | None = None
    metrics: Mapping[str, Merit] = field(default_factory=dict)
    """Metrics that the user names; if none, all that have a meaning for the labels."""

    @property
    def of_samples(self) -> dict[str, SampleMetric]:
        return {name: metric for name, metric in self.metrics.items() if isinstance(metric, SampleMetric)}

    @property
    def reads_labels(self) -> bool:
        """Whether labels are read as classes or numbers."""
        return not self.metrics or len(self.of_samples) < len(self.metrics)


@dataclass(frozen=True)
class EvaluationPass:
    """`predictions` by role, empty without labels. `fidelity` to the baseline, or without one to the recorded
    outputs of a model-zoo test set, or None. `entries`: by role, what the metrics of samples are computed from."""

    predictions: Mapping[str, Predictions]
    fidelity: Fidelity | None
    samples: int
    asked: ReadingOptions = field(default_factory=ReadingOptions)
    entries: Mapping[str, Mapping[str, Sequence[Entry]]] = field(default_factory=dict)
    labels: Array | None = None

    def metrics(self, role: str, average: Average) -> dict[str, float]:
        """Return the metrics of a model: those asked for, in that order, or all."""
        read = compute_metrics(self.predictions[role], average) if role in self.predictions else {}
        if not self.asked.metrics:
            return read
        own = {name: m.value(self.entries[role][name]) for name, m in self.asked.of_samples.items()}
        missing = [name for name in self.asked.metrics if name not in own and name not in read]
        if missing:
            raise PruneError(
                f"--metric {missing[0]} has no meaning for this model and data", f"it has {', '.join(read)}"
            )
        return {name: own[name] if name in own else read[name] for name in self.asked.metrics}

    def differences(self, progress: Progress) -> dict[str, Significance]:
        """Test the difference between the model and the baseline in each sample metric. Metrics that would take longer
        than `LONGEST` are left out."""
        if BASELINE not in self.entries:
            return {}
        found = {}
        for name, metric in self.asked.of_samples.items():
            start = time.perf_counter()
            each = isinstance(metric.figure(self.entries[MODEL][name]), np.ndarray)
            if not each and 2 * BLOCKS * (time.perf_counter() - start) > LONGEST:
                continue
            model, base = (metric.parts(self.entries[role][name], self.labels, progress) for role in (MODEL, BASELINE))
            found[name] = metric.compare(model, base)
        return {name: each for name, each in found.items() if each is not None}

    @property
    def reading(self) -> Reading | None:
        return next((p.reading for p in self.predictions.values()), None)


def run_pass(
    runners: Mapping[str, Runner],
    data: Dataset,
    batch_size: int,
    asked: ReadingOptions = ReadingOptions(),
    progress: Progress = no_progress,
    label: str = "evaluating",
) -> EvaluationPass:
    """Run every model on every batch once.

    Raises:
        PruneError: no output fits the labels, or the models' outputs differ in shape.
    """
    labels = data.labels if asked.reads_labels else None
    if asked.metrics and asked.reads_labels and labels is None:
        raise PruneError("the metrics need labels", "give data with labels")
    collectors: dict[str, Collector] = {}
    known = LabelFacts.of(data.labels) if asked.of_samples else LabelFacts()
    kept = {role: MetricCollector(asked.of_samples, asked.output_name, known) for role in runners}
    fidelity = FidelityCollector(asked.output_name, next(iter(runners.values())).heads)
    for batch in progress(data.batches(batch_size), label, data.batch_count(batch_size)):
        outputs = {role: runner.run(batch) for role, runner in runners.items()}
        _check_name(asked.output_name, outputs[MODEL])
        if labels is not None and not collectors:
            reading = choose_reading(
                labels, outputs[MODEL], asked.task, output_name=asked.output_name, classes=data.classes
            )
            collectors = {role: Collector(reading) for role in runners}
            fidelity.main, fidelity.scores[reading.output] = reading.output, reading.kind == "scores"
        for role, collector in collectors.items():
            _check_shape(collector, outputs)
            assert batch.labels is not None
            collector.add(batch.labels, outputs[role])
        for role, keeper in kept.items():
            keeper.add(batch, outputs[role])
        _add_fidelity(fidelity, batch, outputs)
    name = BASELINE if BASELINE in runners else "the recorded outputs"
    entries = {role: keeper.found for role, keeper in kept.items()}
    told = fidelity.result(name, data.source)
    return EvaluationPass(_results(collectors), told, len(data), asked=asked, entries=entries, labels=data.labels)


def _results(collectors: Mapping[str, Collector]) -> dict[str, Predictions]:
    """Return the predictions by role. The scores of all models are read on the baseline's scale."""
    found: dict[str, Predictions] = {}
    for role in sorted(collectors, key=lambda role: role != BASELINE):
        if found:
            collectors[role].reading = next(iter(found.values())).reading
        found[role] = collectors[role].result()
    return {role: found[role] for role in collectors}


def predict(runner: Runner, batches: Iterable[Batch], reading: Reading) -> Predictions:
    """One model's predictions on labelled batches, read as `reading` says."""
    collector = Collector(reading)
    for batch in batches:
        assert batch.labels is not None
        collector.add(batch.labels, runner.run(batch))
    return collector.result()


def _check_name(name: str | None, outputs: Mapping[str, Any]) -> None:
    if name is not None and name not in outputs:
        raise PruneError(f"the model has no output named {name}", f"it has {', '.join(outputs)}")


def _check_shape(collector: Collector, outputs: Mapping[str, Mapping[str, Any]]) -> None:
    name = collector.reading.output
    shapes = {role: values[name].shape for role, values in outputs.items()}
    if len(set(shapes.values())) > 1:
        raise PruneError(
            f"the output {name} is {shapes[MODEL]} in the model and {shapes[BASELINE]} in the baseline",
            "give two versions of one model",
        )


def _add_fidelity(collector: FidelityCollector, batch: Batch, outputs: Mapping[str, dict[str, Any]]) -> None:
    if BASELINE in outputs:
        collector.add(outputs[BASELINE], outputs[MODEL], batch.count)
    elif batch.reference is not None:
        recorded = _by_position(batch.reference, outputs[MODEL])
        recorded = {name: batch.trim(name, value) for name, value in recorded.items()}
        collector.add(recorded, outputs[MODEL], batch.count)


def _by_position(reference: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded outputs under the model's names: by name where all names match, else by order."""
    if all(name in outputs for name in reference):
        return dict(reference)
    return dict(zip(outputs, reference.values(), strict=False))
