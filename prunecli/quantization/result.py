"""What `prune quantize` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunecli.evaluation.fidelity import Fidelity
from prunecli.evaluation.speed import MeasuredSpeed
from prunecli.quantization.fitting import QuantisedLayer
from prunecli.report.result import ModelResult
from prunecli.types import Json, Skipped


@dataclass(frozen=True)
class Quality:
    """Metrics on labelled data, of the float model and of the quantised one."""

    samples: int
    source: str
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class StageFigures:
    """Figures of a model along the way. `metrics`: on labelled data, if any. `speed`: relative to the original."""

    file_bytes: int
    metrics: Mapping[str, float]
    speed: MeasuredSpeed | None


@dataclass(frozen=True, kw_only=True)
class QuantizeResult(ModelResult):
    """What was quantised. `errors`: of the outputs on the held-out samples, by candidate. `chosen`: the written one.
    `stages`: for a pruned model: the original (float), pruned alone, quantised alone, both. `fidelity`: of the result;
    `tool`: that of onnxruntime's own. `left`: weights that were not fitted."""

    recipe: Json
    layers: Sequence[QuantisedLayer]
    left: Sequence[Skipped]
    errors: Mapping[str, float]
    chosen: str
    fidelity: Fidelity | None
    tool: Fidelity | None
    speed: MeasuredSpeed | None = None
    stages: Mapping[str, StageFigures] = field(default_factory=dict)
    quality: Quality | None = None
    notes: Sequence[str] = field(default_factory=list)
