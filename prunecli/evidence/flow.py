"""Synaptic flow (Tanaka et al. 2020): what |w| lets through from inputs to outputs, without data.

R = sum of the outputs of the network with |w| for w, without biases, on inputs that are all one; a weight's saliency
is w dR / dw. For networks of linear layers and Relu, saliencies add up to R in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.autodiff import Loss
from prunecli.autodiff.losses import Projection, Weighted
from prunecli.data import Batch
from prunecli.errors import PruneError
from prunecli.evidence.gradients import Array, Gradients, Shapes, Study
from prunecli.model import Weight

_SUM = "prune/sum/"
_SMALL = (1.0, 1e-6, 1e-10, 1e-14, 1e-18)
"""Factors of input and outputs. Flow grows with depth beyond float32; for homogeneous networks a factor of R changes
no order."""
_MEANS = {("BatchNormalization", 2), ("BatchNormalization", 3), ("LayerNormalization", 2), ("GroupNormalization", 2),
          ("InstanceNormalization", 2)}  # fmt: skip
"""(operator, input) of normalisation parameters that are added, not multiplied."""


@dataclass(frozen=True)
class FlowTask:
    """The sum of the outputs, times `scale`."""

    outputs: tuple[str, ...]
    scale: float = 1.0

    @property
    def loss(self) -> Loss:
        return Weighted(tuple((1.0, Projection(name, _SUM + name)) for name in self.outputs))

    def inputs(self, batch: Batch, shapes: Shapes, rng: np.random.Generator) -> dict[str, Array]:
        return {_SUM + name: np.full(shapes[_SUM + name], self.scale, np.float32) for name in self.outputs}


def flow(study: Study, feed: dict[str, Array], others: Sequence[Weight]) -> Gradients:
    """|dR / d|w|| at the present values.

    Args:
        study: of a FlowTask, by the chosen weights and `others`; its values are used as they are, apart from signs.
        feed: inputs of ones.
        others: biases and normalisation parameters: what is added is taken as zero.
    Raises:
        PruneError: nothing flows, as through normalisation by statistics of the input itself, or float32 is too
            narrow.
    """
    given, added = dict(study.values), {w.holder.name: _added(w) for w in others}
    study.values = {n: np.zeros_like(v) if added.get(n) else np.abs(v) for n, v in given.items()}
    try:
        for scale in _SMALL:
            found = _scaled(study, feed, scale)
            if found is not None:
                return {name: np.abs(g).astype(np.float64) for name, g in found.items() if name not in added}
    finally:
        study.values = given
    raise PruneError(
        "no synaptic flow reaches the outputs, or more than float32 holds",
        "normalisation by the input's own statistics stops it; use --criterion taylor",
    )


def _scaled(study: Study, feed: dict[str, Array], scale: float) -> Gradients | None:
    assert isinstance(study.task, FlowTask)
    study.task = FlowTask(study.task.outputs, scale)
    ones = {n: a * np.asarray(scale, a.dtype) if a.dtype.kind == "f" else a for n, a in feed.items()}
    with np.errstate(all="ignore"):
        try:
            found = next(iter(study.runs([Batch(ones, 1)])))
        except PruneError as error:
            if "not finite" in error.message:
                return None
            raise
    total = sum(float(np.abs(g).sum(dtype=np.float64)) for g in found.values())
    return found if 0 < total < np.inf else None


def _added(weight: Weight) -> bool:
    return weight.kind == "bias" or any((use.op, use.index) in _MEANS for use in weight.uses)
