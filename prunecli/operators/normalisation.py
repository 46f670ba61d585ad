"""Normalisations: their parameters, and the sizes of what they normalise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from prunecli.operators.attributes import integer
from prunecli.operators.layout import Shape
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    Demand,
    DemandReading,
    Operator,
    at,
    like_first,
    register,
    same_size,
)


def _channel_demand(asked: DemandReading) -> Demand:
    """One scale per channel, axis 1, once the rank is known."""
    scale = asked.shape(1)
    if asked.index != 0 or scale is None or len(scale) != 1 or not asked.after.whole:
        return same_size(asked)
    return asked.after | Demand((None, scale[0], *(None,) * (len(asked.after.sizes) - 2)), True)


def _last_demand(scale: int) -> Any:
    """The scale at that input has the sizes of the last axes."""

    def demand(asked: DemandReading) -> Demand:
        sizes = asked.shape(scale)
        return asked.after | Demand(sizes) if asked.index == 0 and sizes is not None else NO_DEMAND

    return demand


def _statistics(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """The output, and two statistics over the axes from `axis` on."""
    axis = integer(node, "axis", -1) % len(shapes[0])
    statistic = tuple(n if i < axis else 1 for i, n in enumerate(shapes[0]))
    return [shapes[0], statistic, statistic]


def _skip_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """The output, two statistics, and the sum that was normalised."""
    statistic = (*shapes[0][:-1], 1)
    return [shapes[0], statistic, statistic, shapes[0]]


def _embed_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    out = (*shapes[0], shapes[2][1])
    return [out, shapes[0][:1], out]


SCALE, SCALE_SHIFT = at(norm=(1,)), at(norm=(1, 2))
PER_CHANNEL = Operator(role=SCALE_SHIFT, demand=_channel_demand, scaled_by=(1, 2))
LAYER = Operator(role=SCALE_SHIFT, demand=_last_demand(1), scaled_by=(1, 2))
RMS = replace(LAYER, role=SCALE, scaled_by=(1,))
SIMPLIFIED = replace(RMS, shapes=_statistics)
SKIP = Operator(demand=_last_demand(2), shapes=_skip_shapes)

register(replace(PER_CHANNEL, role=at(norm=(1, 2, 3, 4))), "BatchNormalization")
register(PER_CHANNEL, "InstanceNormalization")
register(Operator(role=SCALE_SHIFT, demand=same_size, shapes=like_first, scaled_by=(1, 2)), "GroupNormalization")
register(LAYER, "LayerNormalization")
register(RMS, "RMSNormalization")
register(SIMPLIFIED, "SimplifiedLayerNormalization")  # onnxruntime registers it under both domains
register(SIMPLIFIED, "SimplifiedLayerNormalization", domain=MICROSOFT)
register(replace(LAYER, shapes=_statistics), "LayerNormalization", domain=MICROSOFT)
register(replace(SKIP, role=at(norm=(2, 3, 4)), scaled_by=(2, 3)), "SkipLayerNormalization", domain=MICROSOFT)
register(replace(SKIP, role=at(norm=(2, 3)), scaled_by=(2,)), "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
register(Operator(role=SCALE_SHIFT, shapes=like_first, scaled_by=(1, 2), on_cpu=False), "GroupNorm", domain=MICROSOFT)
register(Operator(role=SCALE_SHIFT, scaled_by=(1, 2), on_cpu=False), "SkipGroupNorm", domain=MICROSOFT)
register(Operator(demand=same_size, shapes=like_first), "MeanVarianceNormalization")
register(
    Operator(role=at(embedding=(2, 3, 4), norm=(5, 6)), shapes=_embed_shapes, type_of=2),
    "EmbedLayerNormalization",
    domain=MICROSOFT,
)
register(Operator(quantised=True), "QEmbedLayerNormalization", domain=MICROSOFT)
