"""Cases that need whole graphs: control flow, computed weights, shared weights, blocks as exporters write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.dependency.cases import Case, image, rows, tokens
from tests.dependency.net import Net

BIG = (1 << 63) - 1
FLOAT = TensorProto.FLOAT


def _body(
    name: str, nodes: list[Any], inputs: tuple[str, ...], outputs: tuple[str, ...], kinds: tuple[int, ...] = ()
) -> Any:
    """A graph whose counters and conditions are scalars and whose other values have no stated shapes."""
    kinds = kinds or (FLOAT,) * (len(inputs) + len(outputs))
    infos = [
        helper.make_tensor_value_info(v, kind, None if kind == FLOAT else [])
        for v, kind in zip((*inputs, *outputs), kinds, strict=True)
    ]
    return helper.make_graph(nodes, name, infos[: len(inputs)], infos[len(inputs) :])


def _if(n: Net, h: str) -> str:
    """Both branches use a value of the outer graph."""
    yes = _body("yes", [helper.make_node("Relu", [h], ["a"])], (), ("a",))
    no = _body("no", [helper.make_node("Neg", [h], ["b"])], (), ("b",))
    return str(n("If", n.c(True), then_branch=yes, else_branch=no))


def _loop(n: Net, h: str) -> str:
    nodes = [helper.make_node("Add", ["state", "step"], ["next"]), helper.make_node("Identity", ["go"], ["on"])]
    kinds = (TensorProto.INT64, TensorProto.BOOL, FLOAT, TensorProto.BOOL, FLOAT)
    step = helper.make_node("Constant", [], ["step"], value=numpy_helper.from_array(np.float32(0.5)))
    body = _body("body", [step, *nodes], ("i", "go", "state"), ("on", "next"), kinds)
    return str(n("Loop", n.c(np.int64(3)), n.c(True), h, body=body))


def _scan(n: Net, h: str) -> str:
    body = _body("body", [helper.make_node("Tanh", ["x"], ["y"])], ("x",), ("y",))
    return str(n("Scan", h, body=body, num_scan_inputs=1))


def _sequence(n: Net, h: str) -> str:
    return str(n("ConcatFromSequence", n("SequenceConstruct", h, n("Neg", h)), axis=-1))


def _parts(n: Net, h: str, how: str) -> str:
    """Parts of a sequence taken by place, put together again in another order."""
    given = [n.c([3, 5])] if how == "sizes" else [n.c(np.int64(3))] if how == "size" else []
    parts = n("SplitToSequence", h, *given, axis=1, **({} if given else {"keepdims": 0}))
    if how == "ones":
        return str(n("ConcatFromSequence", parts, axis=1, new_axis=1))
    last = n("SequenceAt", parts, n.c(np.int64(-1)))
    return str(n("Concat", last, n("SequenceAt", parts, n.c(np.int64(0))), axis=1))


def _beside(n: Net, h: str) -> str:
    """What is beside an operator that freezes is still cut."""
    return n.linear(n("Relu", n.linear(h, 8, 6)), 6, 8)


def _standardised(n: Net, h: str) -> str:
    """A Conv whose weights are standardised in the graph."""
    w = n.w(6, 8, 3, 3)
    centred = n("Sub", w, n("ReduceMean", w, n.c([1, 2, 3])))
    deviation = n("Sqrt", n("ReduceMean", n("Mul", centred, centred), n.c([1, 2, 3])))
    return str(n("Conv", h, n("Div", centred, n("Add", deviation, n.c(np.float32(1e-5)))), n.w(6), pads=[1] * 4))


def _low_rank(n: Net, h: str) -> str:
    """A linear layer with a low-rank update that was never merged."""
    return str(n("MatMul", h, n("Add", n.w(8, 6), n("Mul", n("MatMul", n.w(8, 2), n.w(2, 6)), n.c(np.float32(0.5))))))


def _weight_norm(n: Net, h: str) -> str:
    w = n.w(6, 8)
    unit = n("Div", w, n("ReduceL2", w, n.c([1])))
    return str(n("Gemm", h, n("Mul", unit, n.w(6, 1)), n.w(6), transB=1))


def _gates_reordered(n: Net) -> Net:
    """LSTM weights in the order of another framework, put right by Slice and Concat in the graph."""
    x = n.x("T", "N", 4)

    def ordered(w: str) -> str:
        i, f, g, o = (n("Slice", w, n.c([6 * k]), n.c([6 * k + 6]), n.c([0])) for k in range(4))
        return str(n("Unsqueeze", n("Concat", i, o, f, g, axis=0), n.c([0])))

    bias = n("Unsqueeze", n("Concat", n.w(24), n.w(24), axis=0), n.c([0]))
    y = n("LSTM", x, ordered(n.w(24, 4)), ordered(n.w(24, 6)), bias, hidden_size=6)
    return n.out(n.linear(n("Squeeze", y, n.c([1])), 6, 3))


def _shared_bias(n: Net) -> Net:
    """Two layers read one bias, as exporters merge equal tensors."""
    x, bias = n.x("N", 3, "H", "W"), n.w(8)
    h = n("Conv", x, n.w(8, 3, 1, 1), bias)
    return n.out(n.conv(n("Relu", n("Conv", n("Relu", h), n.w(8, 8, 1, 1), bias)), 8, 2))


def _shared_layer(n: Net) -> Net:
    """One matrix applied to two inputs: a unit goes from both."""
    w, a, b = n.w(4, 8), n.x("N", 4), n.x("N", 4)
    return n.out(n("MatMul", n("Add", n("Relu", n("MatMul", a, w)), n("Neg", n("MatMul", b, w))), n.w(8, 3)))


def _constant_nodes(n: Net) -> Net:
    """Weights in Constant nodes, behind Identity, as some exporters store them."""
    w, v = (
        n.node(value=numpy_helper.from_array(n.rng.standard_normal(s).astype(np.float32))) for s in ((4, 8), (8, 3))
    )
    return n.out(n("MatMul", n("Relu", n("MatMul", n.x("N", 4), n("Identity", w))), v))


def _block(n: Net, x: str, cin: int, cout: int, **conv: Any) -> str:
    h = n.conv(x, cin, cout, 3, pads=[1] * 4, **conv)
    return str(n("BatchNormalization", h, n.w(cout), n.w(cout), n.w(cout), n.positive(cout)))


def _resnet(n: Net) -> Net:
    """Three stages of two blocks, with projections where the width changes."""
    h, width = n("Relu", _block(n, n.x("N", 3, 8, 8), 3, 4)), 4
    for stage in (4, 6, 8):
        for _ in range(2):
            short = h if width == stage else _block(n, h, width, stage)
            inner = _block(n, n("Relu", _block(n, h, width, 5)), 5, stage)
            h, width = n("Relu", n("Add", inner, short)), stage
    return n.out(n("Gemm", n("Flatten", n("GlobalAveragePool", h)), n.w(8, 3), n.w(3)))


def _inverted(n: Net, h: str) -> str:
    """MobileNet: expand, depthwise, squeeze and excite, project, add."""
    e = n("HardSwish", _block(n, h, 8, 12))
    d = n("HardSwish", n.conv(e, 12, 12, 3, group=12, pads=[1] * 4))
    s = n("HardSigmoid", n.conv(n("Relu", n.conv(n("ReduceMean", d, n.c([2, 3])), 12, 4)), 4, 12))
    return str(n("Add", h, n.conv(n("Mul", d, s), 12, 8)))


def _shufflenet(n: Net, h: str) -> str:
    """Split halves, transform one, concatenate, shuffle."""
    a, b = n("Split", h, n.c([4, 4]), axis=1, outputs=2)
    h = n("Concat", a, n("Relu", n.conv(n.conv(b, 4, 4), 4, 4, 3, group=4, pads=[1] * 4)), axis=1)
    h = n("Transpose", n("Reshape", h, n.c([0, 2, 4, 6, 6])), perm=[0, 2, 1, 3, 4])
    return str(n("Reshape", h, n.c([0, -1, 6, 6])))


def _swiglu(n: Net, h: str, how: str) -> str:
    """Both halves of one projection to 16 lose the same positions."""
    up = n("MatMul", h, n.w(6, 16))
    if how == "split":
        gate, value = n("Split", up, n.c([8, 8]), axis=-1, outputs=2)
    elif how == "slice":
        gate = n("Slice", up, n.c([0]), n.c([8]), n.c([2]))
        value = n("Slice", up, n.c([8]), n.c([BIG]), n.c([2]))
    elif how == "reshape":
        pair = n("Reshape", up, n.c([0, 0, 2, 8]))
        gate, value = (n("Gather", pair, n.c(k), axis=2) for k in (0, 1))
    else:  # interleaved
        pair = n("Reshape", up, n.c([0, 0, 8, 2]))
        gate, value = (n("Squeeze", t, n.c([3])) for t in n("Split", pair, n.c([1, 1]), axis=3, outputs=2))
    return str(n("Mul", n("Mul", gate, n("Sigmoid", gate)), value))


def _attend(n: Net, q: str, k: str, v: str) -> str:
    """One head: q (T, D), k and v (N, T, D)."""
    return str(n("MatMul", n("Softmax", n("MatMul", q, n("Transpose", k, perm=[0, 2, 1])), axis=-1), v))


def _learned_query(n: Net) -> Net:
    """DETR, Perceiver: normalised queries that are constants are projected, and added to what they gather."""
    q, h = n("LayerNormalization", n.w(5, 8), n.positive(8), n.w(8)), n.linear(n.x("N", "T", 4), 4, 8)
    read = _attend(n, n.linear(q, 8, 6), n.linear(h, 8, 6), h)
    return n.out(n.linear(n("Add", read, q), 8, 3))


def _pooling_query(n: Net) -> Net:
    """SigLIP: a learned probe meets the first rows of a packed projection, the tokens the others."""
    h, packed, bias = n.linear(n.x("N", "T", 4), 4, 6), n.w(18, 6), n.w(18)
    wq, wkv = n("Split", packed, n.c([6, 12]), axis=0, outputs=2)
    bq, bkv = n("Split", bias, n.c([6, 12]), axis=0, outputs=2)
    q = n("Add", n("MatMul", n.w(1, 6), n("Transpose", wq, perm=[1, 0])), bq)
    k, v = n("Split", n("Add", n("MatMul", h, n("Transpose", wkv, perm=[1, 0])), bkv), n.c([6, 6]), axis=-1, outputs=2)
    return n.out(n.linear(_attend(n, q, k, v), 6, 3))


def _scaled_query(n: Net) -> Net:
    """Learned queries, one set for every sample, times a number that is computed from the size of a head."""
    x = n.x("N", "T", 4)
    keys, values = (n("Reshape", n.linear(x, 4, 6), n.c([0, 0, 2, 3])) for _ in range(2))
    keys, values = n("Transpose", keys, perm=[0, 2, 3, 1]), n("Transpose", values, perm=[0, 2, 1, 3])
    shape = n("Shape", keys)
    size = n("Sqrt", n("Cast", n("Gather", shape, n.c(2)), to=1))
    q = n("Expand", n.w(1, 2, 5, 3), n("Concat", n("Gather", shape, n.c([0])), n.c([2, 5, 3]), axis=0))
    read = n("MatMul", n("Softmax", n("MatMul", n("Div", q, size), keys), axis=-1), values)
    return n.out(n.linear(n("Reshape", n("Transpose", read, perm=[0, 2, 1, 3]), n.c([0, 0, 6])), 6, 2))


def _computed_and_split(n: Net) -> Net:
    """One standardised matrix, of which two parts are read by different layers: the matrix itself becomes a constant."""
    w = n.w(6, 8)
    upper, lower = n("Split", n("Sub", w, n("ReduceMean", w, n.c([0]))), n.c([3, 3]), axis=0, outputs=2)
    a, b = n("Split", n.linear(n.x("N", 4), 4, 6), n.c([3, 3]), axis=1, outputs=2)
    return n.out(n("MatMul", n("Add", n("MatMul", a, upper), n("Relu", n("MatMul", b, lower))), n.w(8, 2)))


def _moe(n: Net) -> Net:
    """A soft mixture of experts: batched weights, a gate."""
    x = n.x("N", 4)
    gate = n("Unsqueeze", n("Transpose", n("Softmax", n("MatMul", x, n.w(4, 3))), perm=[1, 0]), n.c([2]))
    hidden = n("Relu", n("Add", n("MatMul", x, n.w(3, 4, 8)), n.w(3, 1, 8)))
    return n.out(
        n("MatMul", n("ReduceSum", n("Mul", n("MatMul", hidden, n.w(3, 8, 6)), gate), n.c([0]), keepdims=0), n.w(6, 2))
    )


def _repeated_heads(n: Net) -> Net:
    """DeBERTa: a table of positions, tiled by (batch * heads) // heads."""
    x = n.x("N", 5, 4)
    q = n("Transpose", n("Reshape", n.linear(x, 4, 8), n.c([0, 0, 4, 2])), perm=[0, 2, 1, 3])
    q = n("Reshape", q, n.c([-1, 5, 2]))
    table = n("Transpose", n("Reshape", n.w(5, 8), n.c([5, 4, 2])), perm=[1, 2, 0])
    copies = n("Div", n("Slice", n("Shape", q), n.c([0]), n.c([1])), n.c([4]))
    tiled = n("Tile", table, n("Concat", copies, n.c([1]), n.c([1]), axis=0))
    scores = n("Reshape", n("MatMul", q, tiled), n.c([-1, 4, 5, 5]))
    return n.out(n("ReduceSum", scores, n.c([1]), keepdims=0))


def _text_beside(n: Net) -> Net:
    """A value that only decides where to look keeps its axis; the rest is cut."""
    h = n.linear(n.x("N", "T", 4), 4, 8)
    best = n("ArgMax", n("ReduceSum", h, n.c([2])), axis=1)
    return n.out(n.linear(n("GatherND", h, n("Squeeze", best, n.c([2])), batch_dims=1), 8, 3))


def _function(n: Net) -> Net:
    """A local function that holds a layer, called twice with its own weights."""
    body = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    n.functions.append(
        helper.make_function("local", "Dense", ["x", "w"], ["y"], body, [helper.make_opsetid("", n.opset)])
    )
    n.domains["local"] = 1
    h = n("Dense", n("Dense", n.x("N", 4), n.w(4, 8), domain="local"), n.w(8, 6), domain="local")
    return n.out(n("MatMul", h, n.w(6, 3)))


WHOLE = {
    "If": Case(lambda n: tokens(n, lambda n, h: _beside(n, _if(n, h))), 6 + 8),
    "Loop": Case(lambda n: tokens(n, lambda n, h: _beside(n, _loop(n, h))), 6 + 8),
    "Scan": Case(lambda n: tokens(n, lambda n, h: _beside(n, _scan(n, h))), 6 + 8),
    "sequence": Case(lambda n: rows(n, lambda n, h: n.linear(_sequence(n, h), 16, 8)), 8 + 8),
    "sequence by sizes": Case(lambda n: rows(n, lambda n, h: _parts(n, h, "sizes")), 8),
    "sequence by one size": Case(lambda n: n.out(n("MatMul", n("MatMul", n.x("N", 4), _parts(n, n.w(4, 8), "size")), n.w(5, 3))), 8),
    "sequence of single columns": Case(lambda n: n.out(n("MatMul", n("MatMul", n.x("N", 4), _parts(n, n.w(4, 8), "ones")), n.w(8, 3))), 0),
    "weight standardisation": Case(lambda n: image(n, _standardised, 8, 6), 8 + 6),
    "low-rank update": Case(lambda n: tokens(n, _low_rank, 8, 6), 8 + 6),
    "learned query": Case(_learned_query, 8 + 6),
    "learned query, scaled": Case(_scaled_query, 2 + 3 + 3),
    "learned probe": Case(_pooling_query, 6 + 6 + 6),
    "computed weight in two parts": Case(_computed_and_split, 6 + 8),
    "weight norm": Case(lambda n: rows(n, _weight_norm, 8, 6), 8 + 6),
    "LSTM gates reordered": Case(_gates_reordered, 6),
    "shared bias": Case(_shared_bias, 16),
    "shared layer": Case(_shared_layer, 8),
    "weights in Constant nodes": Case(_constant_nodes, 8),
    "residual network": Case(_resnet, 4 + 6 + 8 + 6 * 5),
    "inverted bottleneck": Case(lambda n: image(n, _inverted, size=(6, 6)), 8 + 12 + 4),
    "ShuffleNet unit": Case(lambda n: image(n, lambda n, h: _shufflenet(n, _shufflenet(n, h)), size=(6, 6)), 14),
    **{f"packed SwiGLU by {how}": Case(lambda n, how=how: tokens(n, lambda n, h: _swiglu(n, h, how), 6, 8), 6 + 8) for how in ("split", "slice", "reshape", "interleaving")},
    "soft mixture of experts": Case(_moe, 8 + 6),
    "tiled table of heads": Case(_repeated_heads, 4 + 2),
    "looked up by a computed place": Case(_text_beside, 8),
    "local function": Case(_function, 8 + 6),
}  # fmt: skip
