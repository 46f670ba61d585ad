"""What `evaluate` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunecli.data import Classes
from prunecli.evaluation.fidelity import Fidelity
from prunecli.evaluation.gates import GateResult, raise_if_failed
from prunecli.evaluation.latency import Latency, Speedup
from prunecli.evaluation.quality import Average
from prunecli.evaluation.reading import Predictions
from prunecli.evaluation.robustness import Stress
from prunecli.evaluation.significance import Significance
from prunecli.report.result import Reported
from prunecli.types import FileRef, Json, Totals

RANDOM_SAMPLES = 8


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
    """Everything `evaluate` measured; `models` starts with the model, then the baseline if there is one."""

    models: Sequence[Scored]
    source: str
    samples: int
    batch_size: int
    average: Average
    fidelity: Fidelity | None = None
    speedup: Speedup | None = None
    significance: Significance | None = None
    stress: Stress | None = None
    train_samples: int = 0
    notes: Sequence[str] = ()
    data_notes: Sequence[str] = ()
    classes: Classes | None = None
    gates: Sequence[GateResult] = ()
    seconds: float = 0.0

    @property
    def model(self) -> Scored:
        return self.models[0]

    @property
    def baseline(self) -> Scored | None:
        return self.models[1] if len(self.models) > 1 else None

    def raise_if_failed(self) -> None:
        """Raise GateFailed where a gate failed."""
        raise_if_failed(self.gates)
