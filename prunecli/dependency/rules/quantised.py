"""Operators on integers, when what they read is cut. How positions are tied is known from the floating-point form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import rewrite
from prunecli.dependency.rules.attention import attention_sizes
from prunecli.model.floating import EXPERTS
from prunecli.model.quantised import in_order, packed, unpacked
from prunecli.operators import MICROSOFT
from prunecli.operators.operator import input_of


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
        value = input_of(node, index)
        if value is None or value.const_value is None:
            continue
        array = np.asarray(value.const_value.numpy())
        cut.set_input(node, index, _of_blocks(array, rows, blocks, shape=shape, bits=bits))
        if not value.uses():
            del cut.model.graph.initializers[value.name or ""]
    order = input_of(node, 4)
    if order is not None and in_order(order, width):  # a table that says more keeps its inputs
        cut.set_input(node, 4, (np.arange(node.attributes["K"].as_int()) // width).astype(np.int32))
        if not order.uses():
            del cut.model.graph.initializers[order.name or ""]


@rewrite("QMoE", domain=MICROSOFT)
def experts_of_bits(cut: NodeCut, node: ir.Node) -> None:
    """Scales and zero points of what is left of the experts' matrices: (experts, rows) or (experts, rows, blocks), zero
    points packed along their last axis."""
    common, block = node.attributes.get_int("expert_weight_bits", 4), node.attributes.get_int("block_size", 0)
    for number, (place, scale, _, zero_point) in EXPERTS.items():
        weight = input_of(node, place)
        if weight is None:
            continue
        bits = node.attributes.get_int(f"fc{number}_expert_weight_bits", common)
        experts, rows, held = (cut.kept(weight, axis) for axis in range(3))
        blocks = np.unique(held * (8 // bits) // block) if block else np.zeros(1, np.int64)
        for index, each in ((scale, 1), (zero_point, 8 // bits)):
            value = input_of(node, index)
            if value is None or value.const_value is None:
                continue
            table = np.asarray(value.const_value.numpy())
            table = table if each == 1 else unpacked(table, bits)
            left = (
                table[experts][:, rows]
                if value.const_value.shape.rank() == 2
                else table[experts][:, rows][:, :, blocks]
            )
            cut.set_input(node, index, np.ascontiguousarray(left if each == 1 else packed(left, bits)))
            if not value.uses():
                del cut.model.graph.initializers[value.name or ""]


def _of_blocks(array: Array, rows: Array, blocks: Array, shape: tuple[int, ...], bits: int) -> Array:
    """What is left of numbers per row and block; bytes hold several."""
    is_packed = array.dtype == np.uint8
    table = unpacked(array.reshape(shape[0], -1), bits)[:, : shape[1]] if is_packed else array.reshape(shape)
    left = table[rows][:, blocks]
    left = packed(left, bits) if is_packed else left
    return np.ascontiguousarray(left if array.ndim > 1 else left.reshape(-1))
