"""Where TensorRT makes no use of a 2:4 pattern: what its makers and users have found, and where they say so."""

from __future__ import annotations

import onnx_ir as ir

from prunecli.model import Weight
from prunecli.operators import operator_of

WIDE = 256
"""Input and output channels from which sparse kernels were found faster than dense ones (TensorRT times both and takes
the faster). A kernel of several taps counts its inputs once for each: NVIDIA/TensorRT issue 3849, 9 May 2024."""
NARROW = "{} below 256, where dense kernels were the faster (github.com/NVIDIA/TensorRT/issues/3849)"
QUANTISED = "Q/DQ around it: no sparse kernels were chosen (github.com/NVIDIA/TensorRT/issues/4694)"


def doubts(weight: Weight) -> tuple[str, ...]:
    """Why TensorRT would rather not use the 2:4 pattern of a weight."""
    batch, rows, taps, cols = weight.layout.canonical_shape
    sizes = {"inputs": taps * cols, "outputs": batch * rows}
    few = " and ".join(f"{size} {name}" for name, size in sizes.items() if size < WIDE)
    quantised = any(_quantised(use.node) for use in weight.uses)
    return (*([NARROW.format(few)] if few else []), *([QUANTISED] if quantised else []))


def _quantised(node: ir.Node) -> bool:
    """Whether what a layer reads or writes is quantised."""
    before = [value.producer() for value in node.inputs if value is not None]
    after = [use.node for out in node.outputs for use in out.uses()]
    near = [one for one in (*before, *after) if one is not None]
    return any(operator_of(one).quantised or one.op_type == "QuantizeLinear" for one in near)
