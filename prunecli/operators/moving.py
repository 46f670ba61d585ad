"""Operators that move elements, look them up, take them from windows, or read shapes alone."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from prunecli.operators.attributes import axes_of, integer, integers
from prunecli.operators.layout import Shape
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    Demand,
    DemandReading,
    Operator,
    Role,
    amend,
    embedding,
    register,
)


def _table_role(node: ir.Node, index: int, shape: Shape) -> Role | None:
    """A table (V, D...) looked up along axis 0."""
    if index != 0 or len(shape) < 2:
        return None
    return embedding(shape) if integer(node, "axis", 0) in (0, -len(shape)) else None


def _pool(asked: DemandReading) -> Demand:
    """Batch and channels pass."""
    after = asked.after
    rank = len(after.sizes) if after.whole else 2 + len(integers(asked.node, "kernel_shape") or ())
    sizes = (*after.sizes[:2], *(None,) * (rank - 2)) if after.whole else (None,) * rank
    return Demand(sizes, True) if rank > 2 else NO_DEMAND


def _transpose(asked: DemandReading) -> Demand:
    after = asked.after
    perm = integers(asked.node, "perm") or (tuple(reversed(range(len(after.sizes)))) if after.whole else ())
    known = after.sizes if after.whole and len(after.sizes) == len(perm) else (None,) * len(perm)
    sizes = dict(zip(perm, known, strict=True))
    return Demand(tuple(sizes.get(axis) for axis in range(len(perm))), True) if perm else NO_DEMAND


def _unsqueeze(asked: DemandReading) -> Demand:
    axes = axes_of(asked.node, asked.arrays)
    if asked.index or axes is None or not asked.after.whole:
        return NO_DEMAND
    gone = {axis % len(asked.after.sizes) for axis in axes}
    return Demand(tuple(n for axis, n in enumerate(asked.after.sizes) if axis not in gone), True)


def _pad(asked: DemandReading) -> Demand:
    given = asked.arrays[1] if len(asked.arrays) > 1 else integers(asked.node, "pads")
    sizes = asked.after.sizes
    if asked.index or given is None or len(asked.arrays) > 3 or len(given) != 2 * len(sizes):
        return NO_DEMAND
    added = [int(a) + int(b) for a, b in zip(given, given[len(given) // 2 :], strict=False)]
    return Demand(tuple(None if n is None else n - k for n, k in zip(sizes, added, strict=True)), asked.after.whole)


def _resize(asked: DemandReading) -> Demand:
    """Batch and channels are not resized."""
    sizes = asked.after.sizes
    if asked.index or not asked.after.whole:
        return NO_DEMAND
    return Demand((*sizes[:2], *(None,) * (len(sizes) - 2)), True)


def _sample_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:2], *shapes[1][1:-1])]


def _block_gather_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """Rows of a table; a byte holds 8 / bits numbers, which the scales tell: one for each block."""
    data, indices, scales = shapes[:3]
    axis, along = integer(node, "gather_axis", 0), integer(node, "quantize_axis", 1)
    rows = list(data)
    whole = scales[along] * integer(node, "block_size", 128)
    rows[along] = whole if rows[along] * 2 == whole else rows[along]
    return [(*rows[:axis], *indices, *rows[axis + 1 :])]


def _global_pool_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(*shapes[0][:2], *(1,) * (len(shapes[0]) - 2))]


register(Operator(role=_table_role), "Gather")
register(Operator(shapes=_block_gather_shapes, quantised=True, type_of=2), "GatherBlockQuantized", domain=MICROSOFT)
register(Operator(demand=_transpose), "Transpose")
register(Operator(demand=_unsqueeze), "Unsqueeze")
register(Operator(demand=_pad), "Pad")
register(Operator(demand=_resize), "Resize Upsample")
register(Operator(demand=_pool), "AveragePool GlobalAveragePool GlobalMaxPool LpPool MaxPool")
amend("Flatten Reshape Squeeze Transpose Unsqueeze", moves="axes")
amend("Concat DepthToSpace Expand Gather Pad Slice SpaceToDepth Split Tile", moves="elements")
amend("Shape Size", of_shape=True)
register(Operator(shapes=_sample_shapes), "GridSample", domain=MICROSOFT)
register(Operator(shapes=_global_pool_shapes), "QLinearGlobalAveragePool", domain=MICROSOFT)
