"""Say where TensorRT does not use a 2:4 pattern, as its makers and users have reported."""

from __future__ import annotations

import onnx_ir as ir

from prunecli.model import Weight
from prunecli.operators import operator_of

WIDE = 256
"""The number of input and output channels from which sparse kernels were faster than dense ones; TensorRT times both
and takes the faster. Inputs of a kernel of several taps count once for each tap. NVIDIA/TensorRT issue 3849, 9 May
2024."""
NARROW = "{} below 256, where dense kernels were the faster (github.com/NVIDIA/TensorRT/issues/3849)"
QUANTISED = "Q/DQ around it: no sparse kernels were chosen (github.com/NVIDIA/TensorRT/issues/4694)"


def doubts(weight: Weight) -> tuple[str, ...]:
    """Return the reasons for which TensorRT would not use the 2:4 pattern of a weight."""
    batch, rows, taps, cols = weight.layout.canonical_shape
    sizes = {"inputs": taps * cols, "outputs": batch * rows}
    few = " and ".join(f"{size} {name}" for name, size in sizes.items() if size < WIDE)
    quantised = any(_quantised(use.node) for use in weight.uses)
    return (*([NARROW.format(few)] if few else []), *([QUANTISED] if quantised else []))


def _quantised(node: ir.Node) -> bool:
    """Whether a quantised operator, or QuantizeLinear, stands directly before or after a node."""
    before = [value.producer() for value in node.inputs if value is not None]
    after = [use.node for out in node.outputs for use in out.uses()]
    near = [one for one in (*before, *after) if one is not None]
    return any(operator_of(one).quantised or one.op_type == "QuantizeLinear" for one in near)
