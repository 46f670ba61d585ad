"""What the commands that zero weights return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunecli.packing.pack import PackResult
from prunecli.quantization.result import QuantizeResult
from prunecli.report.result import ModelResult
from prunecli.shrinking.result import ShrinkResult
from prunecli.training.gradual import Retrained, raise_if_all_harmful
from prunecli.types import Json, Skipped
from prunecli.zeros.spread import ZeroedSpread


@dataclass(frozen=True)
class ZeroedLayer:
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
    details: Json = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros afterwards."""
        return 1 - self.nonzero / self.params if self.params else 0.0


@dataclass(frozen=True, kw_only=True)
class MagnitudeResult(ModelResult):
    """What was pruned, and the proof. `left`: kinds of weights left alone, with tensors and parameters."""

    recipe: Json
    layers: list[ZeroedLayer]
    left: dict[str, tuple[int, int]]
    skipped: list[Skipped]
    training: Retrained | None = None
    command: str = "magnitude"
    spreads: Mapping[str, ZeroedSpread] = field(default_factory=dict)
    packed: PackResult | None = None
    quantised: QuantizeResult | None = None
    shrunk: ShrinkResult | None = None

    @property
    def params(self) -> int:
        """Elements of the weights that were pruned."""
        return sum(layer.params for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among the weights that were pruned."""
        return 1 - sum(layer.nonzero for layer in self.layers) / self.params if self.params else 0.0

    @property
    def masked(self) -> tuple[str, ...]:
        """Names of the weights that were pruned."""
        return tuple(layer.weight for layer in self.layers)

    @property
    def pattern(self) -> str:
        """What was dropped together."""
        return str(self.recipe.get("pattern", "element"))

    @property
    def removed(self) -> Mapping[str, Mapping[int, Any]]:
        """Positions that are gone, by value and axis: none, since shapes stay."""
        return {}

    def raise_if_failed(self) -> None:
        """Raise GateFailed where training improved nothing at any step."""
        raise_if_all_harmful(self.training)
