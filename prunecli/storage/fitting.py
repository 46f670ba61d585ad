"""How a whole tensor is stored: narrower if that is asked for, in pieces if it is large, with others if it is small.

Large tensors are decoded in pieces, so that what a piece needs on the way is small; small ones of one type are laid end
to end and decoded together, so that the nodes are few. Narrow values are lossy, zeros stay exactly zero.
DequantizeLinear would be the operator for int8, but onnxruntime does not fold it: it would stay in the graph, and
change which kernels run. A cast and a multiplication are the same arithmetic, and fold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.storage.chain import Node, Op, Shape, Stream, after, cast, with_streams
from prunecli.storage.encodings import FOLDED_UP_TO, OVERHEAD, Encoded, EncodedTensor, choose


@dataclass(frozen=True)
class Narrow:
    """`apply(array)`: the narrow array of the same shape; `scales(array)`: what it is multiplied with, if anything."""

    dtype: ir.DataType
    apply: Callable[[Array], Array]
    scales: Callable[[Array], Array] | None = None


def _to_float16(array: Array) -> Array:
    """Nearest float16; beyond its range the largest finite one."""
    limit = np.finfo(np.float16).max
    return np.clip(array, -limit, limit).astype(np.float16)


def _scaled_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """onnxruntime has no float16 multiplication on the CPU, and folds nothing that needs one."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _scales(array: Array) -> Array:
    """max |w| / 127 per slice along the first axis, rounded down where 127 times the scale would be infinite."""
    dtype = _scaled_in(array.dtype)
    peak = np.abs(array.astype(np.float64)).max(axis=tuple(range(1, array.ndim)), keepdims=True)
    scales = (peak / 127).astype(dtype)
    with np.errstate(over="ignore"):
        scales = np.where(np.isinf(scales * dtype.type(127)), np.nextafter(scales, dtype.type(0)), scales)
    return np.where(scales > 0, scales, np.ones((), dtype))


def _to_int8(array: Array) -> Array:
    """round(w / scale), at most 127."""
    steps = np.rint(array.astype(np.float64) / _scales(array).astype(np.float64))
    return np.clip(steps, -127, 127).astype(np.int8)


VALUES = {"float16": Narrow(ir.DataType.FLOAT16, _to_float16), "int8": Narrow(ir.DataType.INT8, _to_int8, _scales)}
WIDE = {"float16": (ir.DataType.FLOAT, ir.DataType.DOUBLE),
        "int8": (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)}  # fmt: skip
"""What each may stand in for: onnxruntime has no bfloat16 arithmetic on the CPU."""


def choose_narrow(tensor: EncodedTensor, name: str) -> Encoded | None:
    """The smallest encoding of the narrow values, with the operators that widen them; None where this does not
    apply: vectors, types as narrow already, NaN and infinity."""
    if not applies(tensor.array, tensor.dtype, name):
        return None
    how = VALUES[name]
    small = EncodedTensor(how.apply(tensor.array), how.dtype, tensor.inlined)
    found = choose(small)
    plain = Stream("values", how.dtype, tensor.shape, compute=lambda array: array)
    narrow = _narrowed(plain if found is None else found.chain, how)
    chain = cast(narrow, tensor.dtype) if how.scales is None else _scaled(narrow, how.scales, tensor)
    kind, detail = ("dense", "") if found is None else (found.encoding, found.detail)
    return Encoded(kind, chain, f"{detail} {name}".strip())


def _scaled(narrow: Node, scales: Callable[[Array], Array], tensor: EncodedTensor) -> Op:
    made = scales(tensor.array)
    dtype = ir.DataType.from_numpy(made.dtype)
    wide = Op("Mul", (cast(narrow, dtype), Stream("scales", dtype, made.shape, compute=scales)))
    return wide if dtype == tensor.dtype else cast(wide, tensor.dtype)


def _narrowed(node: Node, how: Narrow) -> Node:
    """The chain with every stream computed from the narrow array."""

    def narrow(stream: Stream) -> Stream:
        inner = stream.compute
        return replace(stream, compute=lambda array: inner(how.apply(array)))

    return with_streams(node, narrow)


def widened(array: Array, dtype: ir.DataType, name: str) -> Array:
    """What the chain makes of the narrow values of `array`; the array itself where narrowing does not apply."""
    if not applies(array, dtype, name):
        return array
    how = VALUES[name]
    if how.scales is None:
        return how.apply(array).astype(array.dtype)
    scales = how.scales(array)
    return np.asarray(how.apply(array).astype(scales.dtype) * scales).astype(array.dtype)


def applies(array: Array, dtype: ir.DataType, name: str) -> bool:
    """Whether values can be stored so: not vectors, types as narrow already, NaN and infinity."""
    return array.ndim > 1 and dtype in WIDE[name] and bool(np.isfinite(array).all())


PIECE = 1 << 20
"""Elements of a piece; tensors of twice that are cut."""
ALIGN = 32
"""Rows of a piece are a multiple of this, or else a power of two, so that windows and blocks stay whole."""
SHARED_UP_TO, TOGETHER = 1 << 16, 1 << 17
"""Elements of a tensor that may share a chain, and of all that share one."""
PASSES = 6
"""Folding passes that chains are spread over. onnxruntime makes at most ten, and other rewriting needs some."""
SPREAD_FROM = 8 << 20
"""Dense bytes from which chains are spread: below, the library itself takes as much memory, and passes take time."""


def fit(tensor: EncodedTensor, values: str = "exact") -> Encoded | None:
    """The smallest encoding of a tensor, of each piece if it is large; None where dense is smaller or where
    onnxruntime would not fold."""
    if tensor.array.nbytes > FOLDED_UP_TO:
        return None
    narrow = values != "exact" and applies(tensor.array, tensor.dtype, values)

    def best(part: EncodedTensor) -> Encoded | None:
        return choose_narrow(part, values) if narrow else choose(part)

    axis, edges = cuts(tensor.shape)
    if len(edges) == 2 or (narrow and axis > 0):  # pieces of one slice would have scales of their own
        return best(tensor)
    found = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        where = (slice(None),) * axis + (slice(start, stop),)
        fill = tensor.fill
        if not isinstance(fill, int) and fill.shape[axis] > 1:
            fill = fill[where]
        part = replace(tensor, array=np.ascontiguousarray(tensor.array[where]), fill=fill)
        found.append((best(part), _plain(part), where, number))
    return _joined([(encoded, _piece(encoded.chain if encoded else plain, where, number))
                    for encoded, plain, where, number in found], axis)  # fmt: skip


def cuts(shape: Shape) -> tuple[int, list[int]]:
    """The axis along which pieces lie one after the other, and the edges of the pieces along it."""
    axis = next((a for a, size in enumerate(shape) if size > 1), 0)
    size = math.prod(shape)
    if size < 2 * PIECE:
        return axis, [0, shape[axis] if shape else 1]
    rows = max(1, PIECE * shape[axis] // size)
    rows = rows // ALIGN * ALIGN or 1 << rows.bit_length() - 1
    return axis, [*range(0, shape[axis], rows), shape[axis]]


def _plain(part: EncodedTensor) -> Stream:
    return part.values(part.shape, lambda array: array)


def _piece(node: Node, where: tuple[slice, ...], number: int) -> Node:
    """The chain of a piece with its streams computed from the whole tensor."""

    def cut(stream: Stream) -> Stream:
        inner = stream.compute
        return replace(stream, compute=lambda array: inner(np.ascontiguousarray(array[where])), piece=number)

    return with_streams(node, cut)


def _joined(pieces: Sequence[tuple[Encoded | None, Node]], axis: int) -> Encoded | None:
    """Named by what most pieces are stored as."""
    kinds = Counter((encoded.encoding, encoded.detail) for encoded, _ in pieces if encoded)
    if not kinds:
        return None
    (kind, detail), _ = kinds.most_common(1)[0]
    chain = Op("Concat", tuple(node for _, node in pieces), (("axis", axis),))
    return Encoded(kind, chain, detail, overhead=OVERHEAD * len(pieces))


def spread(chains: Sequence[tuple[Op, int]], passes: int) -> list[Op]:
    """Chains, given with their dense bytes, that wait for their turn: each of the passes folds about as much."""
    total, done, spread = sum(size for _, size in chains) or 1, 0.0, []
    for chain, size in chains:
        parts = chain.inputs if chain.type == "Concat" else (chain,)
        turns = []
        for part in parts:
            turns.append(after(part, int(done * passes / total)))
            done += size / len(parts)
        spread.append(replace(chain, inputs=tuple(turns)) if chain.type == "Concat" else turns[0])
    return [op for op in spread if isinstance(op, Op)]


def bundles(sizes: Sequence[int]) -> list[range]:
    """Neighbours that are decoded together."""
    found, start, total = [], 0, 0
    for number, size in enumerate(sizes):
        if total and total + size > TOGETHER:
            found.append(range(start, number))
            start, total = number, 0
        total += size
    return [*found, range(start, len(sizes))] if sizes else []
