"""What a shrunk file need not keep: tensors stored twice, and copies that are no operation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.operators.operator import input_of
from prunecli.shrinking.folding import drop_unused
from prunecli.storage.stored import unmap

LEAST = 1024
"""Bytes from which a tensor that is stored twice is worth a look."""


@dataclass(frozen=True)
class Tidied:
    """`duplicates`: names of tensors that others equal; `bytes`: of those; `copies`: nodes that passed a value on."""

    duplicates: tuple[str, ...] = ()
    bytes: int = 0
    copies: int = 0


def merge_duplicates(model: ir.Model) -> Tidied:
    """Let equal initializers of the main graph be one, in place."""
    first: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    gone, saved = list[str](), 0
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < LEAST or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype == ir.DataType.STRING:
            continue
        key = (tensor.dtype.name, tuple(tensor.shape.numpy()), hashlib.sha256(tensor.tobytes()).digest())
        unmap(tensor)
        other = first.setdefault(key, value)
        if other is not value:
            value.replace_all_uses_with(other)
            del model.graph.initializers[value.name or ""]
            gone.append(value.name or "")
            saved += tensor.nbytes
    return Tidied(tuple(gone), saved)


def drop_copies(model: ir.Model) -> int:
    """Bypass Identity, and Dropout that does nothing, in place; returns how many went."""
    count = 0
    for node in list(model.graph):
        source, out = (node.inputs[0] if node.inputs else None), node.outputs[0]
        if source is None or node.domain != "" or not _copies(node) or out.is_graph_output():
            continue
        if any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
            continue
        out.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
        count += 1
    if count:
        drop_unused(model.graph)
    return count


def _copies(node: ir.Node) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout":
        return False
    mode = input_of(node, 2)
    return mode is None or (mode.const_value is not None and not np.any(mode.const_value.numpy()))
