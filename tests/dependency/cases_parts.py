"""Cases of operators that hold a layer of their own: recurrent networks, attention, embeddings with normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.dependency.cases import Case, tokens
from tests.dependency.net import Net

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _recurrent(
    n: Net,
    op: str,
    x: str,
    size: int,
    width: int,
    both: bool = False,
    bias: bool = True,
    lengths: bool = False,
    state: str = "",
    peephole: bool = False,
    outputs: int = 1,
    **attributes: Any,
) -> Any:
    directions, rows = 1 + both, GATES[op] * width
    inputs = [x, n.w(directions, rows, size), n.w(directions, rows, width)]
    inputs += [n.w(directions, 2 * rows) if bias else "", n.c(np.int32([3, 5])) if lengths else "", state]
    if op == "LSTM":
        inputs += [state, n.w(directions, 3 * width) if peephole else ""]
    attributes |= {"direction": "bidirectional"} if both else {}
    return n(op, *inputs, outputs=outputs, hidden_size=width, **attributes)


def _joined(n: Net, y: str, width: int) -> str:
    """(T, D, N, H) -> (T, N, D * H)."""
    return str(n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.c([0, 0, width])))


def _layer(op: str, width: int = 6, batch: int | str = "N", **options: Any) -> Callable[[Net], Net]:
    def build(n: Net) -> Net:
        y = _recurrent(n, op, n.x("T", batch, 4), 4, width, **options)
        wide = width * (1 + bool(options.get("both")))
        return n.out(n.linear(_joined(n, y, wide), wide, 3))

    return build


def _stacked(n: Net, op: str) -> Net:
    y = _joined(n, _recurrent(n, op, n.x("T", "N", 4), 4, 6, both=True), 12)
    y = n("Squeeze", _recurrent(n, op, y, 12, 5), n.c([1]))
    return n.out(n.linear(y, 5, 3))


def _last_state(n: Net, op: str) -> Net:
    """The final states of both directions, side by side."""
    _, last = _recurrent(n, op, n.x("T", "N", 4), 4, 6, both=True, outputs=2)
    return n.out(n("Gemm", n("Reshape", n("Transpose", last, perm=[1, 0, 2]), n.c([-1, 12])), n.w(12, 3)))


def _given_state(n: Net, op: str, how: str) -> Net:
    """Initial states: zeros of a computed shape, a weight expanded over the batch, a linear layer, a graph input."""
    x = n.x("T", "N", 4)
    batch = n("Slice", n("Shape", x), n.c([1]), n.c([2]))
    if how == "zeros":
        state = n("ConstantOfShape", n("Concat", n.c([1]), batch, n.c([6]), axis=0))
    elif how == "weight":
        state = n("Expand", n.w(1, 1, 6), n("Concat", n.c([1]), batch, n.c([6]), axis=0))
    elif how == "linear":
        state = n("Unsqueeze", n("Tanh", n.linear(n.x("N", 5), 5, 6)), n.c([0]))
    else:
        state = n.x(1, "N", 6)
    y = _recurrent(n, op, x, 4, 6, state=state)
    return n.out(n.linear(n("Squeeze", y, n.c([1])), 6, 3))


def _batch_first(n: Net, op: str) -> Net:
    y = _recurrent(n, op, n.x("N", "T", 4), 4, 6, layout=1)
    return n.out(n.linear(n("Squeeze", y, n.c([2])), 6, 3))


def _encoder_decoder(n: Net) -> Net:
    """The encoder's last state starts the decoder: their hidden units are one."""
    _, last = _recurrent(n, "GRU", n.x("T", "N", 4), 4, 6, outputs=2)
    y = _recurrent(n, "GRU", n.x(3, "N", 4), 4, 6, state=last)
    return n.out(n.linear(n("Squeeze", y, n.c([1])), 6, 3))


NO_KERNEL = {"reference": True}  # onnxruntime has none: proved with ONNX's reference implementation
UNPROVEN = {"unproven": True}  # nor does ONNX define it: only the units are checked
RECURRENT = {
    **{op: Case(_layer(op), 6) for op in GATES},
    **{f"{op} bidirectional": Case(_layer(op, both=True), 6) for op in GATES},
    **{f"{op} reverse without bias": Case(_layer(op, bias=False, direction="reverse"), 6) for op in GATES},
    **{f"{op} sequence lengths": Case(_layer(op, batch=2, lengths=True), 6, options={"static": True}) for op in GATES},
    **{f"{op} stacked": Case(lambda n, op=op: _stacked(n, op), 6 + 5) for op in GATES},
    **{f"{op} final state": Case(lambda n, op=op: _last_state(n, op), 6) for op in GATES},
    **{f"{op} state of {how}": Case(lambda n, op=op, how=how: _given_state(n, op, how), 0 if how == "input" else 6) for op in GATES for how in ("zeros", "weight", "linear", "input")},
    "LSTM peepholes": Case(_layer("LSTM", peephole=True), 6),
    "LSTM coupled gates clipped": Case(_layer("LSTM", clip=0.5), 6),
    "GRU reset before": Case(_layer("GRU", linear_before_reset=1), 6),
    "RNN Relu": Case(_layer("RNN", activations=["Relu"]), 6),
    **{f"{op} batch first": Case(lambda n, op=op: _batch_first(n, op), 6, options=NO_KERNEL) for op in GATES},
    "GRU encoder and decoder": Case(_encoder_decoder, 6),
}  # fmt: skip


def _flat(
    n: Net, heads: int, groups: int, key: int, value: int, dims: tuple[int | str, ...] = ("N", "T", 4)
) -> tuple[str, str, str]:
    x = n.x(*dims)
    return n.linear(x, 4, heads * key), n.linear(x, 4, groups * key), n.linear(x, 4, groups * value)


def _split_heads(n: Net, x: str, heads: int, size: int) -> str:
    return str(n("Transpose", n("Reshape", x, n.c([0, 0, heads, size])), perm=[0, 2, 1, 3]))


def _merged(n: Net, y: str, width: int) -> str:
    return n.linear(n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.c([0, 0, width])), width, 3)


def _attention(
    n: Net, rank: int, heads: int = 2, groups: int = 2, mask: str = "", key: int = 4, value: int = 4, **attributes: Any
) -> Net:
    q, k, v = _flat(n, heads, groups, key, value, ("N", 5 if mask else "T", 4))
    bias = [n.w(heads, 5, 5)] if mask == "heads" else [n.w(5, 5)] if mask else []
    if rank == 3:
        y = n("Attention", q, k, v, *bias, q_num_heads=heads, kv_num_heads=groups, **attributes)
        return n.out(n.linear(y, heads * value, 3))
    parts = [_split_heads(n, t, h, s) for t, h, s in ((q, heads, key), (k, groups, key), (v, groups, value))]
    return n.out(_merged(n, n("Attention", *parts, *bias, **attributes), heads * value))


def _attention_cache(n: Net, learnt: bool) -> Net:
    """Keys and values of the past, as inputs (which must stay) or as learnt prefixes."""
    q, k, v = (_split_heads(n, t, 2, 4) for t in _flat(n, 2, 2, 4, 4, (2, 5, 4)))
    past = [n.w(2, 2, 3, 4) if learnt else n.x(2, 2, 3, 4) for _ in range(2)]
    y, *present = n("Attention", q, k, v, "", *past, outputs=3)
    return n.out(_merged(n, y, 8), *([] if learnt else present))


def _attention_weights(n: Net) -> Net:
    """The weights of the attention are read, averaged over the heads."""
    q, k, v = (_split_heads(n, t, 2, 4) for t in _flat(n, 2, 2, 4, 4))
    y, *_, weights = n("Attention", q, k, v, outputs=4, skip=(1, 2))
    n.ranks[weights] = 4
    return n.out(n("Add", _merged(n, y, 8), n("ReduceMean", n("ReduceSum", weights, n.c([1]), keepdims=0), n.c([-1]))))


def _rotary(n: Net, rank: int, ms: bool) -> Net:
    """Queries of 3 heads of size 4, rotated, against learnt keys."""
    q = n.linear(n.x("N", 5, 4), 4, 12)
    if rank == 4:
        q = _split_heads(n, q, 3, 4)
    cos, sin = (n.c(n.rng.random((5, 2)).astype(np.float32)) for _ in range(2))
    places = n(
        "Expand", n.c(np.arange(5)[None]), n("Concat", n("Slice", n("Shape", q), n.c([0]), n.c([1])), n.c([5]), axis=0)
    )
    named = {} if rank == 4 else {"num_heads": 3}
    y = (
        n.ms("RotaryEmbedding", q, places, cos, sin, **named)
        if ms
        else n("RotaryEmbedding", q, cos, sin, places, **named)
    )
    y = n("Relu", y)
    return n.out(_merged(n, y, 12) if rank == 4 else n.linear(y, 12, 3))


def _ms_attention(
    n: Net,
    sizes: tuple[int, ...] = (8, 8, 8),
    mask: bool = False,
    bias: bool = False,
    past: bool = False,
    **attributes: Any,
) -> Net:
    def body(n: Net, h: str) -> str:
        inputs = [h, n.w(6, sum(sizes)), n.w(sum(sizes)), "", "", n.w(1, 2, 5, 5) if bias else ""]
        if past:
            inputs[4] = n.w(2, 2, 2, 3, 4)
        extra = {"qkv_hidden_sizes": list(sizes)} if len(set(sizes)) > 1 else {}
        outputs = n.ms("Attention", *inputs, num_heads=2, outputs=1 + past, **extra, **attributes)
        return str(outputs[0] if past else outputs)

    h = n.linear(n.x(2, 5, 4), 4, 6)
    return n.out(n.linear(body(n, h), sizes[2], 3))


def _multi_head(n: Net, how: str) -> Net:
    x = n.x("N", "T", 4)
    if how == "packed":
        y = n.ms("MultiHeadAttention", n("Reshape", n.linear(x, 4, 24), n.c([0, 0, 2, 3, 4])), num_heads=2)
    elif how == "packed keys":
        kv = n("Reshape", n.linear(x, 4, 16), n.c([0, 0, 2, 2, 4]))
        y = n.ms("MultiHeadAttention", n.linear(x, 4, 8), kv, num_heads=2)
    elif how == "cross":
        k, v = (_split_heads(n, n.linear(x, 4, 8), 2, 4) for _ in range(2))
        y = n.ms("MultiHeadAttention", n.linear(x, 4, 8), k, v, num_heads=2)
    else:
        q, k, v = (n("MatMul", x, n.w(4, 8)) for _ in range(3))
        bias = n.w(24) if how == "bias" else ""
        table = n.w(1, 2, 5, 5) if how == "table" else ""
        y = n.ms("MultiHeadAttention", q, k, v, bias, "", table, num_heads=2)
    return n.out(n.linear(y, 8, 3))


def _group_query(n: Net, packed: bool, rotary: bool = False, cache: bool = False) -> Net:
    """4 query heads over 2 key heads of size 16."""
    x = n.x(2, 5, 4)
    q, k, v = (n.linear(x, 4, 128), "", "") if packed else _flat_of(n, x)
    past = [n.c(np.zeros((2, 2, 0, 16), np.float32))] * 2 if cache else ["", ""]
    lengths, total = n.c(np.int32([4, 4])), n.c(np.int32(5))
    angles = [n.c(n.rng.random((5, 8)).astype(np.float32)) for _ in range(2)] if rotary else []
    y, *_ = n.ms(
        "GroupQueryAttention",
        q,
        k,
        v,
        *past,
        lengths,
        total,
        *angles,
        num_heads=4,
        kv_num_heads=2,
        do_rotary=int(rotary),
        outputs=3,
    )
    return n.out(n.linear(y, 64, 3))


def _flat_of(n: Net, x: str) -> tuple[str, str, str]:
    return n.linear(x, 4, 64), n.linear(x, 4, 32), n.linear(x, 4, 32)


HEADS, GROUPS, SIZE = 6, 2, 16


def grouped_cache(n: Net, how: str, width: int = 4, linear: Callable[[str, int, int], str] | None = None) -> Net:
    """6 query heads over 2 key heads of size 16, whose past and present are inputs and outputs: query heads of each key
    head can go, and nothing of the cache. `linear`: (x, inputs, outputs) -> a layer."""
    fused, x, linear = how.startswith("ms."), n.x(1, "T", width), linear or n.linear
    widths = [HEADS * SIZE, GROUPS * SIZE, GROUPS * SIZE]
    parts = [linear(x, width, sum(widths))] if "packed" in how else [linear(x, width, each) for each in widths]
    past = [n.x(1, GROUPS, "past", SIZE, name=f"past_key_values.0.{kind}") for kind in ("key", "value")]
    if not fused and "rank 3" not in how:
        parts = [_split_heads(n, t, h, SIZE) for t, h in zip(parts, (HEADS, GROUPS, GROUPS), strict=True)]
    if fused:
        mask = n.x(1, "past + T", name="attention_mask", limit=2)
        last = n("Cast", n("Sub", n("Slice", n("Shape", mask), n.c([1]), n.c([2])), n.c([1])), to=6)
        total = n("Cast", n("Gather", n("Shape", mask), n.c(1)), to=6)
        y, *present = n.ms("GroupQueryAttention", *(*parts, "", "")[:3], *past, last, total, outputs=3,
                           num_heads=HEADS, kv_num_heads=GROUPS)  # fmt: skip
    elif how.startswith("Attention"):
        counts = {"q_num_heads": HEADS, "kv_num_heads": GROUPS} if "rank 3" in how else {}
        y, *present = n("Attention", *parts, "", *past, outputs=3, **counts)
    else:
        present = [n("Concat", before, new, axis=2) for before, new in zip(past, parts[1:], strict=True)]
        y = _written_grouped(n, parts[0], *present, how=how)
    if n.nodes[-1].op_type != "GroupQueryAttention" and "rank 3" not in how:
        y = n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.c([0, 0, HEADS * SIZE]))
    return n.out(linear(y, HEADS * SIZE, 3), *present)


def _written_grouped(n: Net, q: str, k: str, v: str, how: str) -> str:
    """softmax(q k^T) v, keys and values repeated as exporters write it."""
    if how == "five axes":
        q = n("Reshape", q, n.c([0, GROUPS, HEADS // GROUPS, -1, SIZE]))
        k, v = (n("Unsqueeze", t, n.c([2])) for t in (k, v))
    else:
        k, v = (_repeated(n, t, how) for t in (k, v))
    axes = [0, 1, 2, 4, 3] if how == "five axes" else [0, 1, 3, 2]
    scores = n("MatMul", n("Mul", q, n.c(np.float32(0.25))), n("Transpose", k, perm=axes))
    y = n("MatMul", n("Softmax", scores, axis=-1), v)
    return str(n("Reshape", y, n.c([0, HEADS, -1, SIZE])) if how == "five axes" else y)


def _repeated(n: Net, x: str, how: str) -> str:
    """(B, groups, T, size) -> (B, heads, T, size)."""
    copies = HEADS // GROUPS
    if how == "Gather":
        return str(n("Gather", x, n.c(np.repeat(np.arange(GROUPS), copies)), axis=1))
    wide = n("Unsqueeze", x, n.c([2]))
    if how == "Tile":
        wide = n("Tile", wide, n.c([1, 1, copies, 1, 1]))
    else:
        length = n("Gather", n("Shape", x), n.c([2]))
        wide = n("Expand", wide, n("Concat", n.c([1, GROUPS, copies]), length, n.c([SIZE]), axis=0))
    return str(n("Reshape", wide, n.c([0, HEADS, -1, SIZE])))


def _embed_norm(n: Net) -> Net:
    ids = n.x("N", 5, limit=9)
    y, *_ = n.ms(
        "EmbedLayerNormalization", n("Cast", ids, to=6), "", n.w(9, 8), n.w(7, 8), "", n.w(8), n.w(8), outputs=2
    )
    return n.out(n.linear(n("Relu", n.linear(y, 8, 6)), 6, 3))


WITH_CACHE = ("ms.GroupQueryAttention", "ms.GroupQueryAttention packed", "Attention", "Attention of rank 3", "Expand",
              "Tile", "Gather", "five axes")  # fmt: skip
BOTH = {**UNPROVEN, "wide": 8}
ATTENTION = {
    "Attention": Case(lambda n: _attention(n, 4), 2 + 4 + 4, 23),
    "Attention of rank 3": Case(lambda n: _attention(n, 3), 2 + 4 + 4, 23),
    "Attention grouped": Case(lambda n: _attention(n, 4, 4, 2), 2 + 2 + 4 + 4, 23),
    "Attention grouped of rank 3": Case(lambda n: _attention(n, 3, 4, 2), 2 + 2 + 4 + 4, 23),
    "Attention bias per head": Case(lambda n: _attention(n, 4, mask="heads"), 2 + 4 + 4, 23),
    "Attention causal with a mask": Case(lambda n: _attention(n, 3, mask="plain", is_causal=1), 2 + 4 + 4, 23),
    "Attention scale and soft cap": Case(lambda n: _attention(n, 3, scale=0.3, softcap=2.0), 2 + 4 + 4, 23),
    "Attention wide values": Case(lambda n: _attention(n, 4, value=6), 2 + 4 + 6, 23),
    "Attention past given": Case(lambda n: _attention_cache(n, False), 0, 23),
    "Attention past learnt": Case(lambda n: _attention_cache(n, True), 2 + 4 + 4, 23),
    "Attention weights read": Case(_attention_weights, 2 + 4 + 4, 23),
    **{f"{'ms.' if ms else ''}RotaryEmbedding of rank {rank}": Case(lambda n, rank=rank, ms=ms: _rotary(n, rank, ms), 3, 23) for rank in (3, 4) for ms in (False, True)},
    "ms.Attention": Case(_ms_attention, 6 + 2 + 4 + 4),
    "ms.Attention of unequal sizes": Case(lambda n: _ms_attention(n, (8, 8, 12)), 6 + 2 + 4 + 6),
    "ms.Attention bias": Case(lambda n: _ms_attention(n, bias=True), 6 + 2 + 4 + 4),
    "ms.Attention rotary": Case(lambda n: _ms_attention(n, (32, 32, 32), do_rotary=1), 6 + 2 + 16, options=UNPROVEN),
    "ms.Attention past": Case(lambda n: _ms_attention(n, past=True), 6 + 2 + 4),
    **{f"ms.MultiHeadAttention {how}": Case(lambda n, how=how: _multi_head(n, how), 2 + (4 if "packed" in how or how == "cross" else 8), options=UNPROVEN if "packed" in how else {"static": how == "table"}) for how in ("plain", "bias", "table", "cross", "packed", "packed keys")},
    "ms.GroupQueryAttention": Case(lambda n: _group_query(n, False), 2 + 2),
    "ms.GroupQueryAttention packed": Case(lambda n: _group_query(n, True), 2 + 2),
    "ms.GroupQueryAttention rotary": Case(lambda n: _group_query(n, False, rotary=True), 2 + 2),
    "ms.GroupQueryAttention packed rotary cache": Case(lambda n: _group_query(n, True, True, True), 2 + 2),
    **{f"grouped with a cache, {how}": Case(lambda n, how=how: grouped_cache(n, how), 3, 23) for how in WITH_CACHE},
    "ms.EmbedLayerNormalization": Case(_embed_norm, 6, options={"wide": 8}),
    "ms.LayerNormalization": Case(lambda n: tokens(n, lambda n, h: n.linear(n.ms("LayerNormalization", h, n.w(8), n.w(8)), 8, 6), 8, 6), 6, options=BOTH),
    "ms.SimplifiedLayerNormalization, standing alone": Case(lambda n: tokens(n, lambda n, h: n.linear(n.ms("SimplifiedLayerNormalization", h, n.w(8)), 8, 6), 8, 6), 14, options={"unproven": True}),
}  # fmt: skip

NEWEST = {
    "CumProd of another axis": Case(lambda n: tokens(n, lambda n, h: n("CumProd", h, n.c(1))), 8, 26),
    "CumProd": Case(lambda n: tokens(n, lambda n, h: n("CumProd", h, n.c(2))), 0, 26),
    "BitCast": Case(lambda n: tokens(n, lambda n, h: n("BitCast", n("BitCast", h, to=6), to=1)), 8, 26),
    "SwiGLU": Case(lambda n: tokens(n, lambda n, h: n("SwiGLU", h, n("Neg", h))), 8, 28, options=NO_KERNEL),
    "CausalConvWithState": Case(lambda n: n.out(n.conv(n("CausalConvWithState", n.conv(n.x("N", 3, "T"), 3, 8, rank=1), n.w(8, 1, 3), n.w(8), outputs=2)[0], 8, 2, rank=1)), 8, 27, options=NO_KERNEL),
    "CausalConvWithState state": Case(lambda n: n.out(n.conv(n("CausalConvWithState", n.conv(n.x(2, 3, "T"), 3, 8, rank=1), n.w(8, 1, 3), "", n.w(2, 8, 2), outputs=2)[0], 8, 2, rank=1)), 8, 27, options={**NO_KERNEL, "static": True}),
}  # fmt: skip
