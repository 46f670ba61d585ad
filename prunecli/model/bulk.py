"""The data file of a model: tensors one after another, hashed while they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.tensors import CHUNK, byte_count

ALIGNMENT = 4096
"""Offsets of large tensors, so that a reader can map them directly."""
ALIGN_FROM = 1 << 20


@dataclass(frozen=True)
class Span:
    """Where one tensor lies in the data file, in bytes."""

    offset: int
    length: int


def spans(tensors: Iterable[ir.TensorProtocol]) -> list[Span]:
    """Offsets for writing `tensors` in order."""
    result, end = [], 0
    for tensor in tensors:
        length = byte_count(tensor.dtype, dims(tensor))
        if length >= ALIGN_FROM:
            end += -end % ALIGNMENT
        result.append(Span(end, length))
        end += length
    return result


def dims(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(d) for d in tensor.shape.numpy())


def write(path: Path, tensors: list[ir.TensorProtocol], places: list[Span]) -> str:
    """Write `tensors` at `places`, one in memory at a time; the SHA-256 of the file."""
    digest, position = hashlib.sha256(), 0
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        pending: Future[None] | None = None
        for tensor, place in zip(tensors, places, strict=True):
            for piece in _pieces(tensor, place, position):
                if pending is not None:
                    pending.result()
                pending = hasher.submit(digest.update, piece)
                file.write(piece)
            if pending is not None:
                pending.result()
                pending = None
            position = place.offset + place.length
    return digest.hexdigest()


def _pieces(tensor: ir.TensorProtocol, place: Span, position: int) -> Iterator[memoryview]:
    if place.offset > position:
        yield memoryview(bytes(place.offset - position))
    yield from chunks(tensor, place.length)


def chunks(tensor: ir.TensorProtocol, length: int) -> Iterator[memoryview]:
    """The bytes of `tensor` in ONNX's (little-endian, packed) form, `length` of them, in pieces."""
    data = raw_bytes(tensor)
    if len(data) != length:
        raise PruneError(
            f"internal: tensor '{tensor.name}' has {len(data)} bytes, its shape says {length}",
            "please report this",
        )
    for start in range(0, length, CHUNK):
        yield data[start : start + CHUNK]
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()


def raw_bytes(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes of `tensor` without a copy where the array is already laid out that way."""
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())
    array = np.ascontiguousarray(tensor.numpy())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1).view(np.uint8).data)
