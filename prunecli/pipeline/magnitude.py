"""`prune magnitude`: zero the smallest weights, by threshold, to an exact sparsity, or to a pattern."""

from __future__ import annotations

from dataclasses import dataclass, field

from prunecli.pipeline.magnitude_report import to_document, to_json
from prunecli.report.document import Document
from prunecli.types import FileRef, Json, Skipped, Totals, Verification


@dataclass(frozen=True)
class Layer:
    """One pruned weight. `macs`: of the operators that read it, None where a shape is unknown."""

    name: str
    op: str
    weight: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    params: int
    nonzero_before: int
    nonzero: int
    macs: int | None
    notes: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """The fraction of zeros afterwards."""
        return 1 - self.nonzero / self.params if self.params else 0.0


@dataclass(frozen=True)
class MagnitudeResult:
    """What was pruned, and the proof. `left`: kinds of weights left alone, with tensors and parameters."""

    model: FileRef
    output: FileRef | None
    recipe: Json
    before: Totals
    after: Totals
    layers: list[Layer]
    left: dict[str, tuple[int, int]]
    skipped: list[Skipped]
    verification: Verification
    notes: list[str] = field(default_factory=list)
    plan: str | None = None
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def params(self) -> int:
        """Elements of the weights that were pruned."""
        return sum(layer.params for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among the weights that were pruned."""
        return 1 - sum(layer.nonzero for layer in self.layers) / self.params if self.params else 0.0

    def to_json(self) -> Json:
        return to_json(self)

    def to_document(self) -> Document:
        return to_document(self)
