"""Convolutions in onnxruntime's blocked image layout (NCHWc), which its kernels run fastest.

onnxruntime itself chooses that layout only where weights are constant. Here they are inputs, or values of the
backward pass, so the layout is written into the graph: channels in blocks of b, the block innermost.

    x (N, C, H, W)     -> (N, C/b, H, W, b)            ReorderInput, shown to other operators as (N, C, H, W)
    w (M, C, *K)       -> (M/b, C/b, *K, b of C, b of M)   a Transpose of a small tensor
    w (C, 1, *K), depthwise -> (C/b, *K, b)            ReorderInput
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import NCHWC, Ops
from prunecli.model.shape_inference import Shape
from prunecli.operators import operator_of
from prunecli.runtime import channel_block

Value = ir.Value
LANES = 4  # channels that ReorderInput wants a multiple of
_MAX_WEIGHTS = 1 << 20  # elements: above, the filters leave the cache and the plain kernel is as fast


def block_convolutions(ops: Ops) -> None:
    """Put every 2-d convolution with changing weights into the blocked layout, where it is the faster one."""
    block = channel_block()
    if block == 1:
        return
    layout = _Layout(ops, block)
    changing = _changing(ops)
    for node in [n for n in ops.graph if operator_of(n).blocked]:
        if node.inputs[1] in changing and layout.fits(node):
            layout.replace(node)
    ops.before = None


def _changing(ops: Ops) -> set[Value]:
    """The values that depend on a graph input; onnxruntime folds the rest, and blocks by itself what they feed."""
    found = set(ops.graph.inputs)
    for node in ops.graph:
        if any(v in found for v in node.inputs):
            found.update(node.outputs)
    return found


class _Layout:
    def __init__(self, ops: Ops, block: int) -> None:
        self.ops = ops
        self.block = block
        self.blocked: dict[Value, Value] = {}

    def fits(self, node: ir.Node) -> bool:
        """Dense kernels of whole blocks, and depthwise ones; products (1x1) lose more by reordering than they gain."""
        x, w = node.inputs[0], node.inputs[1]
        assert x is not None and w is not None
        shape, (m, c, *kernel) = self.ops.shape(x), self.ops.shape(w)
        if len(kernel) != 2 or np.prod(kernel) == 1 or self.ops.dtype(x) != ir.DataType.FLOAT:
            return False
        groups = node.attributes.get_int("group", 1)
        if groups == 1:
            return c % self.block == m % self.block == 0 and m * c * int(np.prod(kernel)) <= _MAX_WEIGHTS
        return groups == shape[1] == m and m % LANES == 0

    def replace(self, node: ir.Node) -> None:
        ops, (x, w, *bias) = self.ops, node.inputs
        ops.before = node
        assert x is not None and w is not None
        old = node.outputs[0]
        depthwise = node.attributes.get_int("group", 1) > 1
        m = ops.shape(w)[0]
        whole = -(-m // self.block) * self.block
        filters = self.depthwise_filters(w, whole) if depthwise else self.filters(w)
        given = {k: a.value for k, a in node.attributes.items()}
        given |= {"group": whole if depthwise else 1, "kernel_shape": ops.shape(w)[2:]}
        extra = [ops.pad(b, [0], [whole - m]) for b in bias if b is not None]
        shape = ops.shape(old)
        y = self.made(node.op_type, (shape[0], whole, *shape[2:]), self.input(x), filters, *extra, **given)
        plain = self.made("ReorderOutput", shape, y, channels=m)
        self.blocked[old] = y
        self.take_over(node, old, plain)

    def take_over(self, node: ir.Node, old: Value, new: Value) -> None:
        """The new value takes the old one's name, users and place among the outputs."""
        name = old.name
        new.shape, new.type = ir.Shape(self.ops.shape(old)), ir.TensorType(self.ops.dtype(old))
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.blocked[new] = self.blocked.pop(old)
        self.ops.graph.remove(node, safe=False)
        new.name = name

    def made(self, op: str, shape: Shape, *inputs: Value, **attributes: object) -> Value:
        value = self.ops.op(op, *inputs, domain=NCHWC, **attributes)
        self.ops.facts.shapes[value] = tuple(shape)
        self.ops.facts.dtypes[value] = int(ir.DataType.FLOAT)
        return value

    def input(self, x: Value) -> Value:
        """Reordered once for all its users."""
        if x not in self.blocked:
            n, c, *spatial = self.ops.shape(x)
            self.blocked[x] = self.made("ReorderInput", (n, -(-c // self.block) * self.block, *spatial), x)
        return self.blocked[x]

    def filters(self, w: Value) -> Value:
        ops, b = self.ops, self.block
        m, c, *kernel = ops.shape(w)
        split = ops.reshape(w, (m // b, b, c // b, b, *kernel))
        return ops.reshape(ops.transpose(split, (0, 2, 4, 5, 3, 1)), (m, c, *kernel))

    def depthwise_filters(self, w: Value, whole: int) -> Value:
        ops, (m, _, *kernel) = self.ops, self.ops.shape(w)
        planes = self.made("ReorderInput", (1, whole, *kernel), ops.reshape(w, (1, m, *kernel)))
        return ops.reshape(planes, (whole, 1, *kernel))
