"""LSTM, GRU, RNN: a hidden unit is tied across its gates, its recurrent weights, its states and both directions."""

from __future__ import annotations

import onnx_ir as ir

from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import RuleContext, rewrite, rule
from prunecli.operators.recurrent import GATES

STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}  # inputs that hold an initial state


@rule("LSTM", "GRU", "RNN")
def recurrent(ctx: RuleContext) -> None:
    """X (T, B, I), W (D, gH, I), R (D, gH, H), bias (D, 2gH), states (D, B, H), P (D, 3H) -> Y (T, D, B, H).

    The recurrent weights of a removed unit have no rows and no columns: no other unit sees it. With `layout` 1
    the batch comes first: X (B, T, I), states (B, D, H), Y (B, T, D, H).
    """
    op = ctx.node.op_type
    x, w, r = ctx.x(), ctx.x(1), ctx.x(2)
    gates, batch_first = GATES[op], ctx.int("layout")
    hidden = ctx.axis(r, 2)
    ctx.tie(x, 2, w, 2)
    _stack(ctx, w, gates, hidden=hidden)
    _stack(ctx, r, gates, hidden=hidden)
    _stack(ctx, ctx.input(3), 2 * gates, hidden=hidden)
    _stack(ctx, ctx.input(7), 3, hidden=hidden)
    batch, time = (0, 1) if batch_first else (1, 0)
    ctx.freeze(x, f"{op} runs over this axis", time)
    ctx.tie(ctx.input(4), 0, x, batch)
    for state in (*(ctx.input(i) for i in STATES[op]), ctx.output(1), ctx.output(2)):
        if state is not None:
            ctx.table.tie(ctx.axis(state, 2), hidden)
            ctx.tie(state, 0 if batch_first else 1, x, batch)
            ctx.freeze(state, "directions of a recurrent layer", 1 if batch_first else 0)
    y = ctx.output(0)
    if y is not None:
        ctx.table.tie(ctx.axis(y, 3), hidden)
        ctx.tie(y, 0 if batch_first else 2, x, batch)
        ctx.freeze_axes([y], [1, 2] if batch_first else [0, 1], f"{op}: time and directions")
    ctx.count_terms((hidden, ctx.axis(w, 2)), (hidden, hidden))


def _stack(ctx: RuleContext, value: ir.Value | None, parts: int, hidden: int) -> None:
    """Axis 1 holds one block of hidden units per gate; the gates stay."""
    if value is None:
        return
    ctx.freeze(value, "directions of a recurrent layer", 0)
    gate = ctx.table.virtual(parts)
    ctx.table.freeze(gate, "gates of a recurrent layer")
    ctx.table.product(ctx.axis(value, 1), (gate, hidden))


@rewrite("LSTM", "GRU", "RNN")
def hidden_size(cut: NodeCut, node: ir.Node) -> None:
    cut.set_int(node, "hidden_size", cut.size(node.inputs[2], 2))
