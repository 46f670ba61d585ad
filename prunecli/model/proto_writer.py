"""Serialising a model without ever holding it as a whole.

A protobuf message is a sequence of fields, each a tag and, for bytes and messages, a length. The tensors of
the main graph are written directly behind the other fields of the graph, so that only one is in memory.
Source: the protocol buffers encoding; field numbers from onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.tensor_io import HashingWriter, size_of

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
