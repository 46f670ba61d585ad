"""Two models on the same inputs: which input and output of one is which of the other, and runs of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prunecli.data import Batch
from prunecli.data.columns import cast
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec
from prunecli.runtime import Session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Runner:
    """A session that answers in another model's names: `inputs` and `outputs` map those names to its own."""

    session: Session
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    renamed: tuple[str, ...] = ()

    def feed(self, feed: dict[str, Array]) -> dict[str, Array]:
        """The feed under this session's names and in its element types."""
        specs = {s.name: s for s in self.session.inputs}
        own = {self.inputs.get(name, name): value for name, value in feed.items()}
        return {name: cast(name, v, specs[name]) if name in specs else v for name, v in own.items()}

    def run(self, batch: Batch) -> dict[str, Any]:
        """All outputs with one row per real sample, under the common names."""
        raw = self.session.run(self.feed(batch.feed))
        names = self.outputs or {name: name for name in raw}
        values = {common: raw[own] for common, own in names.items()}
        return {n: batch.trim(n, v) if isinstance(v, np.ndarray) else v for n, v in values.items()}


def pair(first: Session, second: Session) -> Runner:
    """The second session under the first one's names: by name where they agree, else by position.

    Raises:
        PruneError: inputs or outputs that neither name nor position can match, with both sides.
    """
    inputs = _match(first.inputs, second.inputs, "inputs")
    outputs = _match(first.outputs, second.outputs, "outputs")
    renamed = [f"{a} = {b}" for a, b in (*inputs.items(), *outputs.items()) if a != b]
    return Runner(second, inputs, outputs, tuple(renamed))


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
    """The first model's inputs with every dimension fixed that either model fixes.

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
