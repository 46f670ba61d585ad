"""Cases of operators that move positions, in the spellings of several exporters."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.dependency.cases import Case, image, rows, tokens
from tests.dependency.net import Net

BIG = (1 << 63) - 1


def _flatten(n: Net, how: str) -> Net:
    """Conv to 8 channels of 2 x 3, flattened into a Gemm."""
    h = n("Relu", n.conv(n.x("N", 3, 2, 3), 3, 8))
    if how == "Flatten":
        h = n("Flatten", h)
    elif how == "computed":
        batch = n("Gather", n("Shape", h), n.c(0))
        h = n("Reshape", h, n("Concat", n("Unsqueeze", batch, n.c([0])), n.c([-1]), axis=0))
    elif how == "computed static":
        batch = n("Gather", n("Shape", h), n.c(0))
        h = n("Reshape", h, n("Concat", n("Unsqueeze", batch, n.c([0])), n.c([48]), axis=0))
    else:
        h = n("Reshape", h, n.c([0, 48]))
    return n.out(n("Gemm", h, n.w(48, 5), n.w(5)))


def _merged_batch(n: Net, target: Any) -> Net:
    """(N, 8, T) -> (N * 8, T) -> back: the merged axis follows the cut at any batch."""
    h = n("Transpose", n.linear(n.x("N", "T", 4), 4, 8), perm=[0, 2, 1])
    shape = n("Shape", h)
    if target == "wildcard":
        merged = n("Reshape", h, n("Concat", n.c([-1]), n("Slice", shape, n.c([2]), n.c([3])), axis=0))
    else:  # N * 8, where 8 is a constant that does not follow by itself
        size = n("Mul", n("Slice", shape, n.c([0]), n.c([1])), n.c([8]))
        merged = n("Reshape", h, n("Concat", size, n("Slice", shape, n.c([2]), n.c([3])), axis=0))
    back = n("Reshape", n("Relu", merged), shape)
    return n.out(n.linear(n("Transpose", back, perm=[0, 2, 1]), 8, 3))


def _expand_merged(n: Net) -> Net:
    """An Expand to N * 8 rows, computed from a constant 8 with two dynamic entries."""
    h = n("Transpose", n.linear(n.x("N", "T", 4), 4, 8), perm=[0, 2, 1])
    shape = n("Shape", h)
    rows_, length = (n("Slice", shape, n.c([k]), n.c([k + 1])) for k in (0, 2))
    merged = n("Reshape", h, n("Concat", n.c([-1]), length, axis=0))
    wide = n("Concat", n("Mul", rows_, n.c([8])), length, axis=0)
    total = n("Add", merged, n("Expand", n.c(np.float32([[0.5]])), wide))
    return n.out(n.linear(n("Transpose", n("Reshape", total, shape), perm=[0, 2, 1]), 8, 3))


def _attention(n: Net, heads: int = 2, size: int = 3, packed: bool = False, computed: bool = False) -> Net:
    """Scaled dot-product attention from elementary operators."""
    x, width = n.x("N", "T", 4), heads * size
    if packed:
        qkv = n.linear(x, 4, 3 * width)
        qkv = n("Transpose", n("Reshape", qkv, n.c([0, 0, 3, heads, size])), perm=[2, 0, 3, 1, 4])
        q, k, v = (n("Gather", qkv, n.c(i), axis=0) for i in range(3))
        kt = n("Transpose", k, perm=[0, 1, 3, 2])
    else:
        target = n.c([0, 0, heads, size])
        q, k, v = (n("Reshape", n.linear(x, 4, width), target) for _ in range(3))
        q, v, kt = (
            n("Transpose", q, perm=[0, 2, 1, 3]),
            n("Transpose", v, perm=[0, 2, 1, 3]),
            n("Transpose", k, perm=[0, 2, 3, 1]),
        )
    scale: str = n.c(np.float32(size**-0.5))
    if computed:  # 1 / sqrt(head size), read off the tensor
        last = n("Cast", n("Slice", n("Shape", q), n.c([-1]), n.c([BIG])), to=1)
        scale = n("Div", n.c(np.float32([1])), n("Sqrt", last))
    weights = n("Softmax", n("Mul", n("MatMul", q, kt), scale))
    y = n("Transpose", n("MatMul", weights, v), perm=[0, 2, 1, 3])
    return n.out(n.linear(n("Reshape", y, n.c([0, 0, width])), width, 4))


def _grouped_query(n: Net) -> Net:
    """4 query heads over 2 key heads of size 4, repeated by Unsqueeze and Expand, with rotary halves."""
    x = n.x("N", "T", 4)
    q = n("Transpose", n("Reshape", n.linear(x, 4, 16), n.c([0, 0, 4, 4])), perm=[0, 2, 1, 3])
    k, v = (n("Transpose", n("Reshape", n.linear(x, 4, 8), n.c([0, 0, 2, 4])), perm=[0, 2, 1, 3]) for _ in range(2))
    q, k = (_rotate(n, t) for t in (q, k))
    k, v = (_repeat(n, t) for t in (k, v))
    weights = n("Softmax", n("MatMul", q, n("Transpose", k, perm=[0, 1, 3, 2])))
    y = n("Transpose", n("MatMul", weights, v), perm=[0, 2, 1, 3])
    return n.out(n.linear(n("Reshape", y, n.c([0, 0, -1])), 16, 4))


def _rotate(n: Net, t: str) -> str:
    first = n("Slice", t, n.c([0]), n.c([2]), n.c([3]))
    second = n("Slice", t, n.c([2]), n.c([BIG]), n.c([3]))
    turned = n("Concat", n("Neg", second), first, axis=-1)
    return str(n("Add", n("Mul", t, n.w(1, 1, 1, 4)), n("Mul", turned, n.w(1, 1, 1, 4))))


def _repeat(n: Net, t: str) -> str:
    batch, length = (n("Slice", n("Shape", t), n.c([k]), n.c([k + 1])) for k in (0, 2))
    wide = n("Concat", batch, n.c([2]), n.c([2]), length, n.c([4]), axis=0)
    target = n("Concat", batch, n.c([4]), length, n.c([4]), axis=0)
    return str(n("Reshape", n("Expand", n("Unsqueeze", t, n.c([2])), wide), target))


def _c2f(n: Net, h: str) -> str:
    """Split, one branch through a block, concatenate all."""
    a, b = n("Split", h, n.c([4, 4]), axis=1, outputs=2)
    c = n("Add", b, n.conv(n("Relu", n.conv(b, 4, 4)), 4, 4))
    return str(n("Concat", a, b, c, axis=1))


def _dense(n: Net, h: str) -> str:
    for _ in range(3):
        width = 8 if _ == 0 else 8 + 4 * _
        h = n("Concat", h, n("Relu", n.conv(h, width, 4)), axis=1)
    return h


def _chunk(n: Net, h: str) -> str:
    """torch.chunk as the older exporter writes it: bounds from Shape, Div, Mul."""
    size = n("Gather", n("Shape", h), n.c([1]))
    half = n("Div", n("Add", size, n.c([1])), n.c([2]))
    a = n("Slice", h, n.c([0]), half, n.c([1]))
    b = n("Slice", h, half, n("Mul", half, n.c([2])), n.c([1]))
    return str(n("Mul", a, n("Sigmoid", b)))


def _option_a(n: Net, h: str) -> str:
    """A ResNet shortcut that subsamples and pads channels."""
    short = n(
        "Pad", n("Slice", h, n.c([0, 0]), n.c([BIG, BIG]), n.c([2, 3]), n.c([2, 2])), n.c([0, 2, 0, 0, 0, 2, 0, 0])
    )
    return str(n("Add", short, n.conv(h, 8, 12, strides=[2, 2])))


def _unet(n: Net, h: str) -> str:
    down = n("MaxPool", n("Relu", n.conv(h, 8, 8)), kernel_shape=[2, 2], strides=[2, 2])
    up = n("Resize", n("Relu", n.conv(down, 8, 6)), "", n.c(np.float32([1, 1, 2, 2])))
    return str(n("Concat", up, h, axis=1))


def _resize_sizes(n: Net, h: str, static: bool) -> str:
    shape = n("Shape", h)
    front = n("Slice", shape, n.c([0]), n.c([2 - static]))
    channels = [n.c([8])] if static else []
    space = n("Mul", n("Slice", shape, n.c([2]), n.c([4])), n.c([2, 2]))
    return str(n("Resize", h, "", "", n("Concat", front, *channels, space, axis=0)))


def _lookup(n: Net) -> Net:
    """Token and position embeddings: the table of positions is sliced by the length of the sequence."""
    ids = n.x("N", "T", limit=11)
    length = n("Gather", n("Shape", ids), n.c([1]))
    places = n("Gather", n.w(16, 8), n("Range", n.c(0), n("Squeeze", length), n.c(1)))
    sliced = n("Slice", n.w(1, 16, 8), n.c([0]), length, n.c([1]))
    return n.out(n.linear(n("Add", n("Add", n("Gather", n.w(11, 8), ids), places), sliced), 8, 3))


def _where_fill(n: Net, h: str) -> str:
    """Where(mask, value, fill of the data's shape)."""
    fill = n("ConstantOfShape", n("Shape", h), value=_tensor(np.float32([-2])))
    return str(n("Where", n("Greater", h, n.c(np.float32(0))), h, fill))


def _by_another(n: Net, how: str) -> Net:
    """`y` takes lengths from `x`, which has as many channels but not the same ones."""
    x = n.conv(n.x("N", 3, "H", "W"), 3, 8, 3, pads=[1] * 4)
    y, shape = n.conv(n("Relu", x), 8, 8), n("Shape", x)
    entries = [n("Unsqueeze", n("Gather", shape, n.c(k)), n.c([0])) for k in range(4)]
    if how == "Reshape":
        y = n("Reshape", n("Reshape", y, n.c([0, 0, -1])), shape)
    elif how == "Reshape by entries":
        y = n("Reshape", n("Reshape", y, n.c([0, 0, -1])), n("Concat", *entries, axis=0))
    elif how == "Reshape of heads":
        heads = n("Reshape", y, n("Concat", entries[0], n.c([2, -1]), n("Mul", entries[2], entries[3]), axis=0))
        y = n("Reshape", n("Softmax", heads, axis=-1), n("Concat", *entries, axis=0))
    elif how == "Expand":
        y = n("Expand", n("GlobalAveragePool", y), shape)
    elif how == "fill":
        y = n("Add", y, n("ConstantOfShape", shape, value=_tensor(np.float32([0.5]))))
    elif how == "Resize":
        y = n("Resize", n("MaxPool", y, kernel_shape=[2, 2]), "", "", shape, mode="nearest")
    elif how == "Resize by both":
        own, size = n("Slice", n("Shape", y), n.c([0]), n.c([2])), n("Slice", shape, n.c([2]), n.c([4]))
        y = n("Resize", n("MaxPool", y, kernel_shape=[2, 2]), "", "", n("Concat", own, size, axis=0), mode="nearest")
    elif how == "Slice":
        y = n("Slice", y, n.c([0]), entries[1], n.c([1]))
    elif how == "Tile":
        y = n("Tile", n("GlobalAveragePool", y), n("Concat", n.c([1, 1]), entries[2], entries[3], axis=0))
    elif how == "count":
        y = n("Div", y, n("Cast", n("Size", x), to=1))
    elif how == "root of a count":
        y = n("Mul", y, n("Sqrt", n("Cast", n("Mul", n("Gather", shape, n.c(0)), n("Gather", shape, n.c(1))), to=1)))
    return n.out(n.conv(y, 8, 4))


BY_ANOTHER = ("Reshape", "Reshape by entries", "Expand", "fill", "Resize", "Resize by both", "Slice",
              "Tile", "count", "root of a count")  # fmt: skip


def _tensor(array: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(array))


MOVES = {
    "Flatten": Case(lambda n: _flatten(n, "Flatten"), 8),
    "Reshape constant": Case(lambda n: _flatten(n, "constant"), 8),
    "Reshape computed": Case(lambda n: _flatten(n, "computed"), 8),
    "Reshape computed with a constant": Case(lambda n: _flatten(n, "computed static"), 8),
    "Reshape merges the batch": Case(lambda n: _merged_batch(n, "wildcard"), 8),
    "Reshape merges the batch by a constant": Case(lambda n: _merged_batch(n, "constant"), 8),
    "Reshape without common factor": Case(lambda n: rows(n, lambda n, h: n("Reshape", n("Reshape", n("Relu", n("Reshape", h, n.c([-1, 6, 4]))), n.c([-1, 4, 6])), n.c([-1, 24])), 24), 0),
    "Expand to merged rows": Case(_expand_merged, 8),
    "Squeeze": Case(lambda n: n.out(n("Gemm", n("Squeeze", n("GlobalAveragePool", n.conv(n.x("N", 3, "H", "W"), 3, 8)), n.c([2, 3])), n.w(8, 3))), 8),
    "Squeeze of all": Case(lambda n: n.out(n("MatMul", n("Squeeze", n("GlobalAveragePool", n.conv(n.x(1, 3, "H", "W"), 3, 8))), n.w(8, 3))), 8),
    "Unsqueeze 11": Case(lambda n: rows(n, lambda n, h: n("Squeeze", n("Unsqueeze", h, axes=[1]), axes=[1])), 8, 11),
    "Transpose": Case(lambda n: n.out(n.linear(n("Transpose", n.conv(n.x("N", 3, "H", "W"), 3, 8), perm=[0, 2, 3, 1]), 8, 2)), 8),
    "Transpose reversed": Case(lambda n: n.out(n("MatMul", n.w(3, 8), n("Transpose", n("MatMul", n.x("N", 4), n.w(4, 8))))), 8),
    "DepthToSpace DCR": Case(lambda n: image(n, lambda n, h: n("DepthToSpace", h, blocksize=2), 12, 3), 3),
    "DepthToSpace CRD": Case(lambda n: image(n, lambda n, h: n("DepthToSpace", h, blocksize=2, mode="CRD"), 12, 3), 3),
    "SpaceToDepth": Case(lambda n: image(n, lambda n, h: n("SpaceToDepth", h, blocksize=2), 3, 12), 3),
    "PixelShuffle by hand": Case(lambda n: image(n, lambda n, h: n("Reshape", n("Transpose", n("Reshape", h, n.c([0, 3, 2, 2, 6, 6])), perm=[0, 1, 4, 2, 5, 3]), n.c([0, 3, 12, 12])), 12, 3, size=(6, 6)), 3),
    "attention": Case(_attention, 2 + 3 + 3),
    "attention packed": Case(lambda n: _attention(n, packed=True), 2 + 3),
    "attention with a computed scale": Case(lambda n: _attention(n, computed=True), 2 + 3 + 3),
    "attention grouped queries": Case(_grouped_query, 2 + 2 + 4 + 2),
    "Expand channels": Case(lambda n: image(n, lambda n, h: n("Expand", h, n.c([1, 8, 1, 1]))), 8),
    "Expand by a shape": Case(lambda n: rows(n, lambda n, h: n("Add", h, n("Expand", n.w(1, 8), n("Shape", h)))), 8),
    "Expand a weight": Case(lambda n: rows(n, lambda n, h: n("Mul", h, n("Expand", n.w(8), n.c([1, 8])))), 8),
    "Tile of channels": Case(lambda n: rows(n, lambda n, h: n("Tile", h, n.c([1, 3])), 8, 24), 8 + 3),
    "Tile of a new axis": Case(lambda n: tokens(n, lambda n, h: n("Reshape", n("Tile", n("Unsqueeze", h, n.c([3])), n.c([1, 1, 1, 3])), n.c([0, 0, 24])), 8, 24), 8 + 3),
    "Tile of another axis": Case(lambda n: tokens(n, lambda n, h: n("Tile", h, n.c([1, 2, 1]))), 8),
    "Where with a fill": Case(lambda n: rows(n, _where_fill), 8),
    "Concat and Split": Case(lambda n: image(n, _c2f, 8, 12), 4 + 4 + 4),
    "Concat dense": Case(lambda n: image(n, _dense, 8, 20), 8 + 12),
    "Concat of a weight": Case(lambda n: rows(n, lambda n, h: n("Concat", h, n("Expand", n.w(1, 4), n("Concat", n("Slice", n("Shape", h), n.c([0]), n.c([1])), n.c([4]), axis=0)), axis=1), 8, 12), 8 + 4),
    "Split uneven": Case(lambda n: rows(n, lambda n, h: n("Concat", *n("Split", h, n.c([1, 5, 2]), axis=1, outputs=3)[::-1], axis=1)), 7),
    "Split into equal parts": Case(lambda n: rows(n, lambda n, h: n("Mul", *n("Split", h, axis=1, outputs=2, num_outputs=2)), 8, 4), 4),
    "Split with a short last part": Case(lambda n: rows(n, lambda n, h: n("Concat", *n("Split", h, axis=1, outputs=3, num_outputs=3), axis=1)), 8),
    "Split 11": Case(lambda n: rows(n, lambda n, h: n("Mul", *n("Split", h, axis=1, outputs=2)), 8, 4), 4, 11),
    "Split 11 sizes": Case(lambda n: rows(n, lambda n, h: n("Concat", *n("Split", h, axis=-1, split=[3, 5], outputs=2)[::-1], axis=1)), 8, 11),
    "Split 13 without sizes": Case(lambda n: rows(n, lambda n, h: n("Mul", *n("Split", h, axis=1, outputs=2)), 8, 4), 4, 13),
    "Split of another axis": Case(lambda n: n.out(n.linear(n("Add", *n("Split", n.linear(n.x("N", 6, 4), 4, 8), n.c([3, 3]), axis=1, outputs=2)), 8, 3)), 8),
    "Slice by data": Case(lambda n: n.out(n("ReduceSum", n("Slice", n.linear(n.x("N", "T", 4), 4, 8), n.c([0]), n("Unsqueeze", n("ReduceMax", n("ArgMax", n.inputs[0].name, axis=2, keepdims=0), n.c([0, 1]), keepdims=0), n.c([0])), n.c([1])), n.c([1]), keepdims=0)), 0),
    "Slice of nothing": Case(lambda n: rows(n, lambda n, h: n("Concat", h, n("Slice", h, n.c([0]), n.c([0]), n.c([1])), axis=1)), 8),
    "opset 6": Case(lambda n: n.out(n("MatMul", n("Relu", n("MatMul", n.x("N", 4), n.w(4, 8))), n.w(8, 3))), 0, 6),
    "Slice half": Case(lambda n: rows(n, lambda n, h: n("Slice", h, n.c([0]), n.c([4]), n.c([1])), 8, 4), 4 + 4),
    "Slice chunk": Case(lambda n: image(n, _chunk, 8, 4), 4),
    "Slice flip": Case(lambda n: rows(n, lambda n, h: n("Add", h, n("Slice", h, n.c([-1]), n.c([-BIG]), n.c([1]), n.c([-1])))), 4),
    "Slice reversed": Case(lambda n: rows(n, lambda n, h: n("Slice", h, n.c([-1]), n.c([-BIG]), n.c([1]), n.c([-1]))), 8),
    "Slice strided": Case(lambda n: rows(n, lambda n, h: n("Slice", h, n.c([0]), n.c([BIG]), n.c([1]), n.c([2])), 8, 4), 8),
    "Slice strided both": Case(lambda n: rows(n, lambda n, h: n("Add", *(n("Slice", h, n.c([k]), n.c([BIG]), n.c([1]), n.c([2])) for k in (0, 1))), 8, 4), 4),
    "Slice two axes": Case(lambda n: tokens(n, lambda n, h: n("Slice", h, n.c([1, 2]), n.c([-1, 7]), n.c([1, 2])), 8, 5), 8),
    "Slice int32 bounds": Case(lambda n: rows(n, lambda n, h: n("Slice", h, n.c(np.int32([2])), n.c(np.int32([2**31 - 1])), n.c(np.int32([-1]))), 8, 6), 8),
    "Slice 9": Case(lambda n: rows(n, lambda n, h: n("Slice", h, starts=[2], ends=[BIG], axes=[1]), 8, 6), 8, 9),
    "Slice by a dynamic length": Case(lambda n: n.out(n.linear(n("Slice", n.linear(n.x("N", "T", 4), 4, 8), n.c([1]), n("Gather", n("Shape", n.inputs[0].name), n.c([1])), n.c([1])), 8, 3)), 8),
    "Gather reorders": Case(lambda n: rows(n, lambda n, h: n("Gather", h, n.c([3, 1, 7, 0]), axis=1), 8, 4), 8),
    "Gather negative": Case(lambda n: rows(n, lambda n, h: n("Gather", h, n.c([-1, 0, -3]), axis=-1), 8, 3), 8),
    "Gather one": Case(lambda n: n.out(n("Mul", n.x("N"), n("Gather", n("MatMul", n.x("N", 4), n.w(4, 8)), n.c(3), axis=1))), 7),
    "Gather twice the same": Case(lambda n: rows(n, lambda n, h: n("Gather", h, n.c([1, 1, 2]), axis=1), 8, 3), 0),
    "Gather repeats": Case(lambda n: rows(n, lambda n, h: n("Gather", h, n.c(np.repeat(np.arange(8), 3)), axis=1), 8, 24), 8 + 3),
    "Gather repeats unevenly": Case(lambda n: rows(n, lambda n, h: n("Gather", h, n.c([0, 0, 1, 2, 2, 3]), axis=1), 8, 6), 0),
    "Gather matrix of indices": Case(lambda n: rows(n, lambda n, h: n("Flatten", n("Gather", h, n.c([[1, 2], [3, 4]]), axis=1)), 8, 4), 0),
    "Gather first token": Case(lambda n: n.out(n("MatMul", n("Gather", n.linear(n.x("N", "T", 4), 4, 8), n.c(0), axis=1), n.w(8, 3))), 8),
    "Gather embeddings": Case(_lookup, 8),
    "GatherElements": Case(lambda n: tokens(n, lambda n, h: n("GatherElements", h, n("ArgMax", h, axis=1), axis=1)), 8),
    "GatherElements shorter": Case(lambda n: rows(n, lambda n, h: n("GatherElements", h, n.c(n.rng.integers(0, 8, (2, 5))), axis=1), 8, 5), 5, options={"static": True}),
    "GatherND": Case(lambda n: n.out(n("MatMul", n("GatherND", n.linear(n.x("N", "T", 4), 4, 8), n.c([[0, 1], [1, 2], [1, 0]])), n.w(8, 3))), 8),
    "GatherND batch": Case(lambda n: n.out(n("MatMul", n("GatherND", n.linear(n.x(2, "T", 4), 4, 8), n.c([[1], [2]]), batch_dims=1), n.w(8, 3))), 8),
    "Pad space": Case(lambda n: image(n, lambda n, h: n("Pad", h, n.c([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")), 8),
    "Pad channels": Case(lambda n: rows(n, lambda n, h: n("Pad", h, n.c([0, 2, 0, 1]), n.c(np.float32(0.7))), 8, 11), 8 + 3),
    "Pad by axes": Case(lambda n: rows(n, lambda n, h: n("Pad", h, n.c([2, 1]), "", n.c([-1])), 8, 11), 11),
    "Pad mirrors channels": Case(lambda n: rows(n, lambda n, h: n("Pad", h, n.c([0, 2, 0, 1]), mode="reflect"), 8, 11), 0),
    "Pad crops": Case(lambda n: rows(n, lambda n, h: n("Pad", h, n.c([0, -2, 0, 0])), 8, 6), 0),
    "Pad 10": Case(lambda n: rows(n, lambda n, h: n("Pad", h, pads=[0, 2, 0, 1]), 8, 11), 11, 10),
    "Pad shortcut": Case(lambda n: image(n, _option_a, 8, 12), 12),
    "ConstantOfShape": Case(lambda n: rows(n, lambda n, h: n("Mul", h, n("ConstantOfShape", n("Shape", h), value=_tensor(np.float32([3]))))), 8),
    "Range of floats": Case(lambda n: rows(n, lambda n, h: n("Mul", h, n("Range", n.c(np.float32(0)), n("Cast", n("Squeeze", n("Gather", n("Shape", h), n.c([1]))), to=1), n.c(np.float32(1))))), 0),
    "Size in the result": Case(lambda n: rows(n, lambda n, h: n("Mul", h, n("Cast", n("Size", n("Slice", h, n.c([0]), n.c([1]), n.c([0]))), to=1))), 8),
    **{f"{how} by another": Case(lambda n, how=how: _by_another(n, how), 8 + 8) for how in BY_ANOTHER},
    "Reshape of heads by another": Case(lambda n: _by_another(n, "Reshape of heads"), 8 + 2 + 4),
    "OneHot": Case(lambda n: n.out(n("MatMul", n("OneHot", n("ArgMax", n.linear(n.x("N", "T", 4), 4, 8), axis=1, keepdims=0), n.c(9), n.c(np.float32([0, 1]))), n.w(9, 3))), 0),
    "OneHot beside channels": Case(lambda n: n.out(n("MatMul", n("OneHot", n("ArgMax", n.linear(n.x("N", "T", 4), 4, 8), axis=1, keepdims=0), n.c(9), n.c(np.float32([0, 1])), axis=1), n.w(8, 3))), 8),
    "EyeLike": Case(lambda n: rows(n, lambda n, h: n("Add", h, n("EyeLike", h))), 0),
    "MaxPool": Case(lambda n: image(n, lambda n, h: n("MaxPool", h, kernel_shape=[2, 2])), 8),
    "MaxPool indices": Case(lambda n: image(n, lambda n, h: n("MaxUnpool", *n("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2], outputs=2), kernel_shape=[2, 2], strides=[2, 2])), 0),
    "AveragePool": Case(lambda n: image(n, lambda n, h: n("AveragePool", h, kernel_shape=[3, 3], auto_pad="SAME_UPPER")), 8),
    "LpPool": Case(lambda n: image(n, lambda n, h: n("LpPool", h, kernel_shape=[2, 2])), 8),
    "GlobalAveragePool": Case(lambda n: image(n, lambda n, h: n("GlobalAveragePool", h)), 8),
    "GlobalMaxPool": Case(lambda n: image(n, lambda n, h: n("GlobalMaxPool", h)), 8),
    "GlobalLpPool": Case(lambda n: image(n, lambda n, h: n("GlobalLpPool", h)), 8),
    "Resize U-Net": Case(lambda n: image(n, _unet, 8, 14), 8 + 8 + 6),
    "Resize sizes follow": Case(lambda n: image(n, lambda n, h: _resize_sizes(n, h, False)), 8),
    "Resize sizes with a constant": Case(lambda n: image(n, lambda n, h: _resize_sizes(n, h, True)), 8),
    "Resize by axes": Case(lambda n: image(n, lambda n, h: n("Resize", h, "", n.c(np.float32([2, 2])), axes=[2, 3], mode="linear")), 8),
    "Resize roi and empty scales": Case(lambda n: image(n, lambda n, h: n("Resize", h, n.c(np.zeros(0, np.float32)), n.c(np.zeros(0, np.float32)), n.c([2, 8, 9, 9])), size=(6, 6)), 8, options={"static": True}),
    "Resize channels last": Case(lambda n: n.out(n.linear(n("Resize", n.linear(n.x("N", 4, 4, 4), 4, 8), "", n.c(np.float32([1, 2, 2, 1]))), 8, 3)), 8),
    "Resize of channels": Case(lambda n: image(n, lambda n, h: n("Resize", h, "", n.c(np.float32([1, 0.5, 1, 1]))), 8, 4), 0),
    "Upsample 9": Case(lambda n: image(n, lambda n, h: n("Upsample", h, n.c(np.float32([1, 1, 2, 2])))), 8, 9),
    "Upsample 7": Case(lambda n: image(n, lambda n, h: n("Upsample", h, scales=[1.0, 1.0, 2.0, 2.0])), 8, 7),
    "GridSample": Case(lambda n: image(n, lambda n, h: n("GridSample", h, n("Transpose", n.conv(n.inputs[0].name, 3, 2), perm=[0, 2, 3, 1]))), 8, 20),
    "ms.GridSample": Case(lambda n: image(n, lambda n, h: n.ms("GridSample", h, n("Transpose", n.conv(n.inputs[0].name, 3, 2), perm=[0, 2, 3, 1]))), 8),
    "RoiAlign": Case(lambda n: image(n, lambda n, h: n("RoiAlign", h, n.c(np.float32([[0, 0, 3, 3], [1, 1, 4, 4]])), n.c([0, 1]), output_height=2, output_width=2)), 8),
    "MaxRoiPool": Case(lambda n: image(n, lambda n, h: n("MaxRoiPool", h, n.c(np.float32([[0, 0, 0, 3, 3], [1, 1, 1, 4, 4]])), pooled_shape=[2, 2])), 8),
    "Col2Im": Case(lambda n: n.out(n.conv(n("Col2Im", n("Transpose", n.linear(n.x("N", 25, 4), 4, 12), perm=[0, 2, 1]), n.c([6, 6]), n.c([2, 2])), 3, 2)), 3),
    "CenterCropPad": Case(lambda n: image(n, lambda n, h: n("CenterCropPad", h, n.c([4, 4]), axes=[2, 3])), 8),
    "Scatter 9": Case(lambda n: n.out(n("MatMul", n("Scatter", n.linear(n.x(2, 5, 4), 4, 8), n.c(np.int64(n.rng.integers(0, 5, (2, 2, 8)))), n.linear(n.x(2, 2, 4), 4, 8), axis=1), n.w(8, 3))), 8, 9),
    "ScatterElements": Case(lambda n: n.out(n("MatMul", n("ScatterElements", n.linear(n.x(2, 5, 4), 4, 8), n.c(np.int64(n.rng.integers(0, 5, (2, 2, 8)))), n.linear(n.x(2, 2, 4), 4, 8), axis=1, reduction="add"), n.w(8, 3))), 8),
    "ScatterElements of channels": Case(lambda n: rows(n, lambda n, h: n("ScatterElements", h, n.c([[1, 2], [0, 3]]), n.w(2, 2), axis=1)), 0, options={"static": True}),
    "ScatterND": Case(lambda n: n.out(n("MatMul", n("ScatterND", n.linear(n.x("N", "T", 4), 4, 8), n.c([[0, 1], [1, 3]]), n("MatMul", n.x(2, 4), n.w(4, 8))), n.w(8, 3))), 8),
    "TensorScatter": Case(lambda n: n.out(n("MatMul", n("TensorScatter", n("Reshape", n.linear(n.x(2, 6, 4), 4, 8), n.c([2, 1, 6, 8])), n("Reshape", n.linear(n.x(2, 3, 4), 4, 8), n.c([2, 1, 3, 8])), n.c([0, 1])), n.w(8, 3))), 8, 24),
    "ReverseSequence": Case(lambda n: n.out(n("MatMul", n("ReverseSequence", n.linear(n.x("T", 2, 4), 4, 8), n.c([3, 2])), n.w(8, 3))), 8),
    "DFT": Case(lambda n: n.out(n("MatMul", n("ReduceSum", n("DFT", n("Unsqueeze", n.linear(n.x("N", 8, 4), 4, 8), n.c([3])), axis=1), n.c([3]), keepdims=0), n.w(8, 3))), 8),
    "DFT 20": Case(lambda n: n.out(n("MatMul", n("ReduceSum", n("DFT", n("Unsqueeze", n.linear(n.x("N", 8, 4), 4, 8), n.c([3])), "", n.c(1)), n.c([3]), keepdims=0), n.w(8, 3))), 8, 20),
    "STFT of many signals": Case(lambda n: n.out(n("Einsum", n("STFT", n("Unsqueeze", n("MatMul", n.w(8, 4), n.x(4, 16)), n.c([2])), n.c(4), "", n.c(8)), n.w(8, 3), equation="afbc,ao->ofbc")), 8),
    "STFT": Case(lambda n: n.out(n("STFT", n("Unsqueeze", n("MatMul", n.x("N", 4), n.w(4, 16)), n.c([2])), n.c(4), "", n.c(8))), 0),
}  # fmt: skip
