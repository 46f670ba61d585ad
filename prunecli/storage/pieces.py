"""How tensors of very different sizes share an encoding's costs: large ones are decoded in pieces, so that what a piece
needs on the way is small; small ones of one type are laid end to end and decoded together, so that its nodes are few.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from prunecli.storage.chain import Node, Op, Shape, Stream, after, with_streams
from prunecli.storage.encodings import FOLDED_UP_TO, OVERHEAD, Encoded, EncodedTensor, choose
from prunecli.storage.values import applies, choose_narrow

Array = np.ndarray[Any, Any]
PIECE = 1 << 20
"""Elements of a piece; tensors of twice that are cut."""
ALIGN = 32
"""Rows of a piece are a multiple of this, or else a power of two, so that windows and blocks stay whole."""
SHARED_UP_TO, TOGETHER = 1 << 16, 1 << 17
"""Elements of a tensor that may share a chain, and of all that share one."""
SHARED = ("mask", "gaps")
"""Encodings that know no shapes."""
PASSES = 6
"""Folding passes that chains are spread over. onnxruntime makes at most ten, and other rewriting needs some."""
SPREAD_FROM = 8 << 20
"""Dense bytes from which chains are spread: below, the library itself takes as much memory, and passes take time."""


def fit(subject: EncodedTensor, values: str = "exact") -> Encoded | None:
    """The smallest encoding of a tensor, of each piece if it is large; None where dense is smaller or where
    onnxruntime would not fold."""
    if subject.array.nbytes > FOLDED_UP_TO:
        return None
    narrow = values != "exact" and applies(subject.array, subject.dtype, values)

    def best(part: EncodedTensor) -> Encoded | None:
        return choose_narrow(part, values) if narrow else choose(part)

    axis, edges = cuts(subject.shape)
    if len(edges) == 2 or (narrow and axis > 0):  # pieces of one slice would have scales of their own
        return best(subject)
    found = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        where = (slice(None),) * axis + (slice(start, stop),)
        part = replace(subject, array=np.ascontiguousarray(subject.array[where]))
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
    return Encoded(kind, chain, detail, OVERHEAD * len(pieces))


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
