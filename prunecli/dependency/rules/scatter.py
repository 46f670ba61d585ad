"""Operators that write at computed places: what they run in step with passes through, the rest is frozen."""

from __future__ import annotations

from prunecli.dependency.context import RuleContext
from prunecli.dependency.registry import rule

WRITTEN = "written at computed places"


@rule("Scatter", "ScatterElements")
def scatter_elements(ctx: RuleContext) -> None:
    """Y = X, then Y[I[i, j], j] = U[i, j] for axis 0: the other axes run in step where all are as long."""
    x, indices, updates, y = (*ctx.inputs[:3], ctx.outputs[0])
    assert x is not None and indices is not None and updates is not None
    axis = ctx.int("axis", 0) % ctx.rank(x)
    ctx.align(x, y)
    ctx.align(indices, updates)
    ctx.align(updates, y, skip=[axis])
    ctx.freeze_axes((y, updates), [axis], WRITTEN)


@rule("ScatterND")
def scatter_nd(ctx: RuleContext) -> None:
    """Y = X, then Y[*I[i.., :]] = U[i..]: the axes after the coordinates run in step."""
    x, indices, updates, y = (*ctx.inputs[:3], ctx.outputs[0])
    assert x is not None and indices is not None and updates is not None
    depth = ctx.shape(indices)[-1]
    ctx.align(x, y)
    ctx.freeze_axes([y], range(depth), WRITTEN)
    ctx.freeze(indices, "coordinates")
    ctx.freeze_axes([updates], range(ctx.rank(indices) - 1), WRITTEN)
    for k in range(1, ctx.rank(x) - depth + 1):
        ctx.tie(updates, -k, y, -k)


@rule("TensorScatter")
def tensor_scatter(ctx: RuleContext) -> None:
    """A cache with new entries along `axis`."""
    past, update, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert past is not None and update is not None
    axis = ctx.int("axis", -2) % ctx.rank(past)
    ctx.align(past, y)
    ctx.align(update, y, skip=[axis])
    ctx.freeze_axes((update, y), [axis], WRITTEN)
    if ctx.input(2) is not None:
        ctx.freeze(ctx.input(2), "write positions")


@rule("ReverseSequence")
def reverse_sequence(ctx: RuleContext) -> None:
    """Reverses the first `sequence_lens` positions of the time axis, per entry of the batch axis."""
    x, lengths, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and lengths is not None
    ctx.align(x, y)
    ctx.freeze(y, "ReverseSequence orders this axis", ctx.int("time_axis", 0))
    ctx.tie(lengths, 0, y, ctx.int("batch_axis", 1))
