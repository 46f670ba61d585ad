"""Operators on integers, when what they read is cut. How positions are tied is known from the floating-point form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import rewrite
from prunecli.dependency.rules.attention import attention_sizes
from prunecli.model.quantised import in_order, packed, unpacked
from prunecli.operators import MICROSOFT


@rewrite("QLinearConv", "ConvInteger")
def integer_conv_group(cut: NodeCut, node: ir.Node) -> None:
    """As of Conv: the channels of the data over those that one group reads."""
    if node.attributes.get_int("group", 1) > 1:
        weight = node.inputs[3 if node.op_type == "QLinearConv" else 1]
        cut.set_int(node, "group", cut.size(node.inputs[0], 1) // cut.size(weight, 1))


rewrite("QAttention", domain=MICROSOFT)(attention_sizes)


@rewrite("DynamicQuantizeLSTM", domain=MICROSOFT)
def hidden_size(cut: NodeCut, node: ir.Node) -> None:
    """R is (directions, H, 4H)."""
    cut.set_int(node, "hidden_size", cut.size(node.inputs[2], 1))


@rewrite("MatMulNBits", domain=MICROSOFT)
def blocks_of_bits(cut: NodeCut, node: ir.Node) -> None:
    """N, K, and the parameters of what is left: scales (N * blocks), zero points packed along the blocks of a row."""
    weight = node.inputs[1]
    rows, blocks = cut.kept(weight, 0), cut.kept(weight, 1)
    width = node.attributes["block_size"].as_int()
    whole = node.attributes["K"].as_int()
    cut.set_int(node, "N", len(rows))
    cut.set_int(node, "K", int(sum(min(width, whole - block * width) for block in blocks)))
    bits, shape = node.attributes.get_int("bits", 4), cut.before(weight)[:2]
    for index in (2, 3):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.const_value is None:
            continue
        array = np.asarray(value.const_value.numpy())
        cut.set_input(node, index, _of_blocks(array, rows, blocks, shape=shape, bits=bits))
        if not value.uses():
            del cut.model.graph.initializers[value.name or ""]
    order = node.inputs[4] if len(node.inputs) > 4 else None
    if order is not None and in_order(order, width):  # a table that says more keeps its inputs
        cut.set_input(node, 4, (np.arange(node.attributes["K"].as_int()) // width).astype(np.int32))
        if not order.uses():
            del cut.model.graph.initializers[order.name or ""]


def _of_blocks(array: Array, rows: Array, blocks: Array, shape: tuple[int, ...], bits: int) -> Array:
    """What is left of numbers per row and block; bytes hold several."""
    is_packed = array.dtype == np.uint8
    table = unpacked(array.reshape(shape[0], -1), bits)[:, : shape[1]] if is_packed else array.reshape(shape)
    left = table[rows][:, blocks]
    left = packed(left, bits) if is_packed else left
    return np.ascontiguousarray(left if array.ndim > 1 else left.reshape(-1))
