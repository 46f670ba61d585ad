"""What `evaluate` returns, and its figures by the short dotted names that `--fail-if` uses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from prunecli.data import Classes
from prunecli.evaluation.fidelity import MEASURES, Fidelity
from prunecli.evaluation.gates import GateResult, Span, raise_if_failed
from prunecli.evaluation.latency import Latency, Speedup
from prunecli.evaluation.quality import METRICS, Average, Merit, Significance
from prunecli.evaluation.reading import Predictions
from prunecli.evaluation.robustness import CORRUPTIONS, Stress
from prunecli.evaluation.sample_metrics import SampleMetric
from prunecli.report.result import Reported
from prunecli.types import FileRef, Json, Totals


@dataclass(frozen=True)
class Scored:
    """One model's figures. `train`: metrics on the training data, where asked for."""

    role: str
    ref: FileRef
    totals: Totals
    metrics: Mapping[str, float]
    latency: Latency | None = None
    train: Mapping[str, float] = field(default_factory=dict)
    predictions: Predictions | None = None
    classes: Sequence[Json] = ()
    confusion: Json | None = None


@dataclass(frozen=True)
class Evaluation(Reported):
    """Everything `evaluate` measured; `models` has the model first, then the baseline if there is one. `differences`:
    the significance of the difference in each sample metric, and in the predictions' accuracy or mean absolute
    error."""

    models: Sequence[Scored]
    source: str
    samples: int
    batch_size: int
    average: Average
    fidelity: Fidelity | None = None
    speedup: Speedup | None = None
    slower_because: str = ""
    differences: Mapping[str, Significance] = field(default_factory=dict)
    stress: Stress | None = None
    train_samples: int = 0
    notes: Sequence[str] = ()
    data_notes: Sequence[str] = ()
    classes: Classes | None = None
    asked: Mapping[str, Merit] = field(default_factory=dict)
    gates: Sequence[GateResult] = ()
    seconds: float = 0.0

    @property
    def model(self) -> Scored:
        return self.models[0]

    @property
    def baseline(self) -> Scored | None:
        return self.models[1] if len(self.models) > 1 else None

    @property
    def significance(self) -> Significance | None:
        """The significance for the first metric asked for that has one, else for the predictions."""
        first = self.differences.get(next(iter(self.asked), ""))
        return first or next((each for name, each in self.differences.items() if name in METRICS), None)

    @property
    def untested(self) -> list[str]:
        """Sample metrics that differ without a test of significance."""
        if self.baseline is None:
            return []
        return [name for name, merit in self.asked.items()
                if isinstance(merit, SampleMetric) and name not in self.differences
                and all(math.isfinite(scored.metrics[name]) for scored in self.models)]  # fmt: skip

    @property
    def merits(self) -> Mapping[str, Merit]:
        """The properties of each metric, by name."""
        return {**METRICS, **self.asked}

    def raise_if_failed(self) -> None:
        """Raise GateFailed where a gate failed."""
        raise_if_failed(self.gates)


SIZES = ("params", "nonzero", "sparsity", "macs", "file_bytes", "gzip_bytes")
LATENCY = ("median", "p10", "p90")
SPEEDUP = ("speedup", "low", "high")
ANY: Span = (-math.inf, math.inf)


def sizes(scored: Scored) -> Json:
    """The size keys of the contract."""
    found = {**asdict(scored.totals), "sparsity": scored.totals.sparsity}
    return {name: found[name] for name in SIZES}


def delta(found: Evaluation) -> Json:
    """The contract's `delta`: metrics as drop or rise, latency as speedup, sizes as what remains."""
    if found.baseline is None:
        return {}
    result: Json = {}
    for name, value in found.model.metrics.items():
        if name in found.baseline.metrics:
            merit = found.merits[name]
            result[name] = {merit.change: merit.sign * (found.baseline.metrics[name] - value) + 0.0}
    if found.speedup is not None:
        result["latency"] = found.speedup.to_json() | ({"why": found.slower_because} if found.slower_because else {})
    new, old = sizes(found.model), sizes(found.baseline)
    for name in SIZES:
        if name == "sparsity":
            result[name] = {"rise": new[name] - old[name]}
        elif new[name] is not None and old[name]:
            result[name] = {"ratio": new[name] / old[name]}
    return result


def gaps(scored: Scored, merits: Mapping[str, Merit]) -> dict[str, float]:
    """How much better each metric is on the training data than on the test data."""
    return {
        name: merits[name].sign * (value - scored.metrics[name])
        for name, value in scored.train.items()
        if name in scored.metrics
    }


def figures(found: Evaluation) -> dict[str, float]:
    """Every figure of the evaluation by its short name; what was not measured is absent."""
    values: Json = {}
    for scored in found.models:
        prefix = "" if scored is found.model else "baseline."
        values |= {f"{prefix}{name}": value for name, value in _own(scored, found.merits)}
    for name, changes in delta(found).items():
        values |= {f"{name}.{key}": value for key, value in changes.items() if not isinstance(value, str)}
    if found.speedup is not None and found.speedup.reason:
        values |= {f"latency.{name}": math.nan for name in SPEEDUP}
    if found.fidelity is not None:
        values |= found.fidelity.short()
    if found.significance is not None:
        values["significance.p"] = found.significance.p
    if found.stress is not None:
        values["robustness.drop"] = found.stress.worst()
        names = {row.corruption for row in found.stress.rows}
        values |= {f"robustness.{name}.drop": found.stress.worst(name) for name in names}
    return {name: float(value) for name, value in values.items() if value is not None}


def _own(scored: Scored, merits: Mapping[str, Merit]) -> Iterator[tuple[str, float | None]]:
    yield from scored.metrics.items()
    yield from sizes(scored).items()
    yield from ((f"{name}.gap", value) for name, value in gaps(scored, merits).items())
    if scored.latency is not None:
        found = scored.latency.to_json()
        yield from ((f"latency.{name}", found[name]) for name in LATENCY)


def known(asked: Mapping[str, Merit]) -> dict[str, Span]:
    """Return every name that an evaluation may have, with its least and its largest value. `asked`: the metrics of
    --metric."""
    merits = {**METRICS, **asked}
    amount = (0.0, math.inf)
    own = {name: each.span for name, each in merits.items()}
    own |= {name: (0, 1) if name == "sparsity" else amount for name in SIZES}
    own |= {f"{name}.gap": difference(each.span) for name, each in merits.items()}
    own |= {f"latency.{name}": amount for name in LATENCY}
    found = {**own, **{f"baseline.{name}": span for name, span in own.items()}}
    found |= {f"{name}.{each.change}": difference(each.span) for name, each in merits.items()}
    found |= {f"{name}.ratio": amount for name in SIZES if name != "sparsity"}
    found |= {"sparsity.rise": (-1, 1), "significance.p": (0, 1)}
    found |= {name: each.span for name, each in MEASURES.items()}
    found |= {f"latency.{name}": amount for name in SPEEDUP}
    return found | dict.fromkeys(["robustness.drop", *(f"robustness.{name}.drop" for name in CORRUPTIONS)], ANY)


def difference(span: Span) -> Span:
    """Return the span of the difference of two figures of that span."""
    return span[0] - span[1], span[1] - span[0]


def needs(name: str, asked: Mapping[str, Merit]) -> list[str]:
    """Return what a figure needs, of: baseline, fidelity, labels, latency, train, robustness. Metrics of `--metric` say
    themselves whether they need labels."""
    plain = name.removeprefix("baseline.")
    first, _, last = plain.partition(".")
    wanted = {
        "baseline": plain != name or last in ("drop", "rise", "ratio", *SPEEDUP) or first == "significance",
        "fidelity": first in MEASURES,
        "labels": (first in METRICS and first not in asked) or first == "significance",
        "latency": first == "latency",
        "train": last == "gap",
        "robustness": first == "robustness",
    }
    if first == "robustness":
        wanted["baseline"] = False
    return [need for need, yes in wanted.items() if yes]
