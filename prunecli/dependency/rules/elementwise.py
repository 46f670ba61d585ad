"""Operators that compute each position from the same position of their inputs."""

from __future__ import annotations

import numpy as np

from prunecli.dependency.registry import RuleContext, rule
from prunecli.operators import MICROSOFT, named


@rule(*named(lambda operator: operator.elementwise == "first", ""), "Trilu")
@rule("Gelu", "FastGelu", "QuickGelu", "BiasGelu", domain=MICROSOFT)
def unary(ctx: RuleContext) -> None:
    """Only the first input (and FastGelu's and BiasGelu's bias) is data; limits and seeds are scalars."""
    sources = ctx.inputs[:2] if ctx.node.op_type in ("FastGelu", "BiasGelu") else ctx.inputs[:1]
    ctx.elementwise(*sources, ctx.y)
    if ctx.node.op_type == "Trilu":
        for axis in (-1, -2):
            ctx.freeze(ctx.y, "Trilu: a triangular mask has no removable rows", axis)


@rule("Dropout")
def dropout(ctx: RuleContext) -> None:
    """The identity, unless it trains: then the random numbers depend on the shape."""
    known = ctx.known(2)
    if ctx.input(2) is not None and (known is None or known.any()):
        ctx.freeze_node("Dropout in training mode")
        return
    for out in ctx.outputs:
        ctx.elementwise(ctx.inputs[0], out)


@rule(*named(lambda operator: operator.elementwise == "all", ""))
def broadcasting(ctx: RuleContext) -> None:
    """numpy's broadcasting: axes are aligned from the right. What is compared with each of many whole numbers becomes
    one-hot: these are categories."""
    ctx.elementwise(*ctx.inputs, ctx.y)
    if ctx.node.op_type == "Equal":
        for known in (ctx.fixed(index) for index in range(2)):
            if known is not None and known.ndim and known.size == known.shape[-1] > 1 and _are_numbers(known):
                ctx.table.mark(ctx.axis(ctx.y, ctx.rank(ctx.y) - 1), "vocabulary")


def _are_numbers(known: np.ndarray) -> bool:
    return known.dtype.kind in "iuf" and len(np.unique(known)) == known.size and bool((known % 1 == 0).all())
