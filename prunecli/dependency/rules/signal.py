"""Signal processing: the transformed axis is frozen, the others pass through."""

from __future__ import annotations

from prunecli.dependency.context import RuleContext
from prunecli.dependency.registry import rule

TRANSFORMED = "axis of a Fourier transform"


@rule("DFT")
def dft(ctx: RuleContext) -> None:
    """X (..., n, ..., 1 or 2) -> Y (..., m, ..., 2), transformed along one axis (1 by default, -2 from opset 20)."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    known = ctx.known(2)
    if ctx.input(2) is not None and known is None:
        ctx.freeze_node("DFT: the axis depends on data")
        return
    default = 1 if ctx.opset < 20 else -2
    axis = ctx.int("axis", default) if known is None else int(known.item())
    ctx.align(x, y, skip=[axis, -1])
    ctx.freeze_axes((x, y), (axis, -1), TRANSFORMED)


@rule("STFT")
def stft(ctx: RuleContext) -> None:
    """Signal (B, n, 1 or 2) -> Y (B, frames, bins, 2)."""
    x, y = ctx.inputs[0], ctx.outputs[0]
    assert x is not None
    ctx.tie(x, 0, y, 0)
    ctx.freeze_axes([x], range(1, ctx.rank(x)), TRANSFORMED)
    ctx.freeze_axes([y], range(1, ctx.rank(y)), TRANSFORMED)
    for value in ctx.inputs[1:]:
        ctx.freeze(value, TRANSFORMED)


@rule("CausalConvWithState")
def causal_conv(ctx: RuleContext) -> None:
    """X (B, C, L), W (C, 1, k), bias (C), states (B, C, k - 1): a depthwise convolution."""
    x, w, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and w is not None
    ctx.align(x, y)
    ctx.tie(w, 0, y, 1)
    ctx.freeze(w, "kernel", 2)
    if ctx.input(2) is not None:
        ctx.tie(ctx.inputs[2], 0, y, 1)  # type: ignore[arg-type]
    for state in (ctx.input(3), ctx.output(1)):
        if state is not None:
            ctx.tie(state, 0, y, 0)
            ctx.tie(state, 1, y, 1)
            ctx.freeze(state, "kernel", 2)
    ctx.freeze(y, "spatial axis of a convolution", 2)
    batch, channels, length = ctx.shape(y)
    ctx.count(batch * channels * length * ctx.shape(w)[2], ctx.axis(y, 1))
