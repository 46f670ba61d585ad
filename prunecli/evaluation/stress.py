"""Robustness: how much quality each model loses when its inputs are corrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prunecli.data import Batch, Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import SPANS, FidelityCollector
from prunecli.evaluation.pairing import Runner
from prunecli.evaluation.passes import MODEL, predict
from prunecli.evaluation.quality import METRICS, compute_metrics, primary
from prunecli.evaluation.reading import Reading
from prunecli.evaluation.robustness import SAMPLES, Corruption, Spread, corrupted, settings, spreads
from prunecli.types import Json, Progress, no_progress

AGREEMENT = ("top1_agreement", "cosine")
"""Measured without labels: the first that has a meaning for the output."""


@dataclass(frozen=True)
class StressRow:
    """Quality under one corruption, by role; `loss`: how much worse than clean it is (negative: better)."""

    corruption: str
    severity: float
    unit: str
    values: Mapping[str, float]
    loss: Mapping[str, float]


@dataclass(frozen=True)
class Stress:
    """`metric`: what the values are; "top1_agreement" and "cosine" are with the model's own clean outputs."""

    metric: str
    samples: int
    clean: Mapping[str, float]
    rows: list[StressRow]

    @property
    def change(self) -> str:
        """What the contract calls a loss of this metric: drop, or rise for errors."""
        return "drop" if self.metric not in METRICS or METRICS[self.metric].higher else "rise"

    @property
    def span(self) -> tuple[float, float]:
        """The least and the most that the metric can be."""
        return METRICS[self.metric].span if self.metric in METRICS else SPANS[self.metric]

    def to_json(self) -> Json:
        rows = [
            {"corruption": r.corruption, "severity": r.severity, "unit": r.unit, **r.values,
             **{self.change if role == MODEL else f"{role}_{self.change}": x for role, x in r.loss.items()}}
            for r in self.rows
        ]  # fmt: skip
        return {"metric": self.metric, "samples": self.samples, "clean": dict(self.clean), "rows": rows}

    def worst(self, name: str = "") -> float:
        """The model's largest loss over all corruptions, or over all severities of one."""
        return max(r.loss[MODEL] for r in self.rows if name in ("", r.corruption))


def measure_stress(
    runners: Mapping[str, Runner],
    data: Dataset,
    batch_size: int,
    reading: Reading | None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Stress:
    """Every registered corruption that suits the inputs, at each severity, on the first 1000 samples. Both
    models see the same corrupted inputs. Without labels: agreement with the model's own clean outputs.

    Raises:
        PruneError: no input is a floating-point tensor with a feature axis.
    """
    data = data.take(SAMPLES)
    found = spreads(data, batch_size)
    if not found:
        inputs = ", ".join(s.describe() for s in data.specs)
        raise PruneError(
            f"no input can be corrupted: {inputs}",
            "robustness needs images or tables of floats; leave it out",
        )
    if reading is None:
        return _by_agreement(runners, data, batch_size, found, seed, progress)
    return _by_quality(runners, data, batch_size, reading, found, seed, progress)


def _by_quality(
    runners: Mapping[str, Runner], data: Dataset, batch_size: int, reading: Reading,
    found: Mapping[str, Spread], seed: int, progress: Progress,
) -> Stress:  # fmt: skip
    name = ""
    clean = {}
    for role, runner in runners.items():
        predictions = predict(runner, data.batches(batch_size), reading)
        name = primary(predictions)
        clean[role] = compute_metrics(predictions)[name]
    sign = 1 if METRICS[name].higher else -1
    rows = []
    for chosen, severity in progress(settings(found), "corrupting inputs", len(settings(found))):
        values = {}
        for role, runner in runners.items():
            batches = corrupted(data.batches(batch_size), chosen, severity, found, seed)
            values[role] = compute_metrics(predict(runner, batches, reading))[name]
        loss = {role: sign * (clean[role] - value) for role, value in values.items()}
        rows.append(StressRow(chosen.name, severity, chosen.unit, values, loss))
    return Stress(name, len(data), clean, rows)


def _by_agreement(
    runners: Mapping[str, Runner], data: Dataset, batch_size: int,
    found: Mapping[str, Spread], seed: int, progress: Progress,
) -> Stress:  # fmt: skip
    seen: list[tuple[Corruption, float, dict[str, dict[str, float | None]]]] = []
    for chosen, severity in progress(settings(found), "corrupting inputs", len(settings(found))):
        both: dict[str, dict[str, float | None]] = {}
        for role, runner in runners.items():
            batches = corrupted(data.batches(batch_size), chosen, severity, found, seed)
            both[role] = _agreement(runner, data.batches(batch_size), batches)
        seen.append((chosen, severity, both))
    defined = [n for n in AGREEMENT if all(each[n] is not None for *_, both in seen for each in both.values())]
    if not defined:
        raise PruneError("the output is one number per sample, or boxes: there is no agreement to measure",
                         "give labels, or choose another output with --output-name")  # fmt: skip
    name, rows = defined[0], []
    for chosen, severity, both in seen:
        figures = {role: float(values[name] or 0.0) for role, values in both.items()}
        rows.append(StressRow(chosen.name, severity, chosen.unit, figures, {r: 1 - v for r, v in figures.items()}))
    return Stress(name, len(data), dict.fromkeys(runners, 1.0), rows)


def _agreement(runner: Runner, clean: Iterator[Batch], noisy: Iterator[Batch]) -> dict[str, float | None]:
    collector = FidelityCollector(AGREEMENT)
    for a, b in zip(clean, noisy, strict=True):
        collector.add(runner.run(a), runner.run(b), a.count)
    result = collector.result("clean")
    if result is None:
        raise PruneError("the model has no numeric output to compare", "give labels")
    return result.short()
