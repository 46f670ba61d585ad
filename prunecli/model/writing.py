"""Writing tensors to files, one after another, hashed while they are written.

`write_model` serialises a model without ever holding it as a whole. A protobuf message is a sequence of fields, each a
tag and, for bytes and messages, a length: the tensors of the main graph are written directly behind the other fields of
the graph, so that only one is in memory. Source: the protocol buffers encoding; field numbers from onnx.proto.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.tensors import byte_count
from prunecli.storage.stored import unmap

ALIGNMENT = 4096
"""Offsets of large tensors, so that a reader can map them directly."""
ALIGN_FROM = 1 << 20
CHUNK = 1 << 22
"""Bytes of a piece: one is hashed while the next is written."""
WRITE = 1 << 17
"""Bytes handed to the system at once: pieces of megabytes took two to three times as long where measured."""


@dataclass(frozen=True)
class Span:
    """Where one tensor lies in the data file, in bytes."""

    offset: int
    length: int


def spans(tensors: Iterable[ir.TensorProtocol]) -> list[Span]:
    """Offsets for writing `tensors` in order."""
    result, end = [], 0
    for tensor in tensors:
        length = size_of(tensor)
        if length >= ALIGN_FROM:
            end += -end % ALIGNMENT
        result.append(Span(end, length))
        end += length
    return result


def size_of(tensor: ir.TensorProtocol) -> int:
    """Bytes of `tensor` in raw form."""
    return byte_count(tensor.dtype, tuple(tensor.shape.numpy()))


class HashingWriter:
    """A new file whose SHA-256 is computed on another thread while the next piece is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._digest = hashlib.sha256()
        self.position = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Append `piece`, which must not change before the next call returns."""
        self._settle()
        self._pending = self._pool.submit(self._digest.update, piece)
        view = memoryview(piece)
        for start in range(0, len(view), WRITE):
            self._file.write(view[start : start + WRITE])
        self.position += len(piece)

    def write_tensor(self, tensor: ir.TensorProtocol) -> None:
        """Append the raw form of `tensor`, then let go of its mapping."""
        for piece in chunks(tensor):
            self.write(piece)
        self._settle()
        unmap(tensor)

    def sha256(self) -> str:
        """Of everything written so far."""
        self._settle()
        return self._digest.hexdigest()

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        self._file.close()


def write_data(path: Path, tensors: list[ir.TensorProtocol], places: list[Span]) -> str:
    """Write `tensors` at `places`, one in memory at a time; the SHA-256 of the file."""
    with HashingWriter(path) as file:
        for tensor, place in zip(tensors, places, strict=True):
            file.write(bytes(place.offset - file.position))
            file.write_tensor(tensor)
        return file.sha256()


def chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """The bytes of `tensor` in ONNX's raw form (little-endian, packed), in pieces."""
    length = size_of(tensor)
    packed = tensor.dtype.bitwidth < 8
    data = tensor.tobytes() if packed else np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
    assert len(data) == length, f"tensor '{tensor.name}' has {len(data)} bytes, its shape says {length}"
    for start in range(0, length, CHUNK):
        yield memoryview(data)[start : start + CHUNK]


LIMIT = (1 << 31) - 1
"""Protobuf's size limit for one message."""
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9


def write_model(proto: onnx.ModelProto, streamed: Mapping[str, ir.TensorProtocol], path: Path) -> str:
    """Write `proto` to `path`; main-graph initializers named in `streamed` get their bytes from there.

    `proto` loses its initializers on the way.

    Returns:
        The SHA-256 of the file.
    Raises:
        PruneError: the file would exceed 2 GiB.
    """
    heads = [_head(tensor, streamed.get(tensor.name)) for tensor in proto.graph.initializer]
    names = [tensor.name for tensor in proto.graph.initializer]
    bodies = [len(head) + _payload(streamed.get(name)) for head, name in zip(heads, names, strict=True)]
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    model = proto.SerializeToString(deterministic=True)
    total = len(graph) + sum(len(_tag(INITIALIZER, size)) + size for size in bodies)
    if total + len(model) + 16 > LIMIT:
        raise PruneError(
            f"the model takes {total} bytes and a single ONNX file ends at 2 GiB",
            "use --external-data auto or always",
        )
    with HashingWriter(path) as file:
        file.write(model + _tag(GRAPH, total) + graph)
        for name, head, size in zip(names, heads, bodies, strict=True):
            file.write(_tag(INITIALIZER, size) + head)
            if name in streamed:
                file.write_tensor(streamed[name])
        return file.sha256()


def _head(tensor: onnx.TensorProto, source: ir.TensorProtocol | None) -> bytes:
    """All of a TensorProto but its bytes, and the tag that they follow."""
    if source is None:
        return bytes(tensor.SerializeToString(deterministic=True))
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    return bytes(tensor.SerializeToString(deterministic=True)) + _tag(RAW_DATA, size_of(source))


def _payload(source: ir.TensorProtocol | None) -> int:
    return 0 if source is None else size_of(source)


def _tag(field: int, length: int) -> bytes:
    """Field number with wire type 2 (length-delimited), then the length as a varint."""
    result, value = bytearray([field << 3 | 2]), length
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes(result) + bytes([value])
