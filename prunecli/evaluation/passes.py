"""One pass of one or two models over a data set: predictions against the labels, fidelity to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunecli.data import Batch, Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import Fidelity, FidelityCollector
from prunecli.evaluation.pairing import Runner
from prunecli.evaluation.reading import Collector, Predictions, Reading, Task, choose_reading
from prunecli.types import Progress, no_progress

MODEL, BASELINE = "model", "baseline"


@dataclass(frozen=True)
class Asked:
    """What the user said about outputs and labels."""

    task: Task | None = None
    output_name: str | None = None


@dataclass(frozen=True)
class EvaluationPass:
    """`predictions` by role, empty without labels. `fidelity` to the baseline, or without one to the recorded
    outputs of a model-zoo test set, or None."""

    predictions: Mapping[str, Predictions]
    fidelity: Fidelity | None
    samples: int

    @property
    def reading(self) -> Reading | None:
        return next((p.reading for p in self.predictions.values()), None)


def run_pass(
    runners: Mapping[str, Runner],
    data: Dataset,
    batch_size: int,
    asked: Asked | None = None,
    progress: Progress = no_progress,
    label: str = "evaluating",
) -> EvaluationPass:
    """Run every model on every batch once.

    Raises:
        PruneError: no output fits the labels, or the models' outputs differ in shape.
    """
    asked = asked or Asked()
    labels = data.labels
    collectors: dict[str, Collector] = {}
    fidelity = FidelityCollector(main=asked.output_name)
    for batch in progress(data.batches(batch_size), label, data.batch_count(batch_size)):
        outputs = {role: runner.run(batch) for role, runner in runners.items()}
        _check_name(asked.output_name, outputs[MODEL])
        if labels is not None and not collectors:
            reading = choose_reading(labels, outputs[MODEL], asked.task, asked.output_name, data.classes)
            collectors = {role: Collector(reading) for role in runners}
            fidelity.main = reading.output
        for role, collector in collectors.items():
            _check_shape(collector, outputs)
            collector.add(_labels(batch), outputs[role])
        _add_fidelity(fidelity, batch, outputs)
    name = BASELINE if BASELINE in runners else "the recorded outputs"
    return EvaluationPass(_results(collectors), fidelity.result(name, data.source), len(data))


def _results(collectors: Mapping[str, Collector]) -> dict[str, Predictions]:
    """Of every role; scores are what those of the baseline are."""
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
        collector.add(_labels(batch), runner.run(batch))
    return collector.result()


def _labels(batch: Batch) -> Any:
    if batch.labels is None:
        raise PruneError("the data has labels for some samples only", "give all of them labels, or none")
    return batch.labels


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
    """Recorded outputs under the model's names: their own where all are known, else in order."""
    if all(name in outputs for name in reference):
        return dict(reference)
    return dict(zip(outputs, reference.values(), strict=False))
