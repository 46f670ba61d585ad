"""The reasons why a stored tensor is not among the weights."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from prunecli.model.graphs import all_nodes
from prunecli.model.parameter_roles import Refused
from prunecli.model.readers import Reader
from prunecli.model.tensors import FLOATS, QUANTISED
from prunecli.types import Skipped

SCALARS = "scalar constant"
QUANTISING = frozenset(
    {
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "DynamicQuantizeLSTM",
        "QAttention",
        "QGemm",
        "QLinearConvTranspose",
        "QEmbedLayerNormalization",
        "MatMulNBits",
        "MatMulBnb4",
        "MatMulFpQ4",
        "GatherBlockQuantized",
        "QMoE",
    }
)
"""Operators whose integer inputs of rank 2 or more are quantised weights."""

COEFFICIENTS = ("coefficients", "nodes_values", "support_vectors", "target_weights", "class_weights")
"""Attributes in which the operators of ai.onnx.ml keep their parameters."""


def reason(tensor: ir.TensorProtocol, reads: list[Reader], counted: Counter[str]) -> str | None:
    """Why `tensor` is left alone; None if it is no parameter (an index, a shape) or is only counted."""
    if tensor.dtype in FLOATS:
        if tensor.size == 1:
            counted[SCALARS] += 1
            return None
        return _float_reason(tensor, reads)
    quantising = sorted({read.op for read in reads if read.op in QUANTISING})
    if tensor.dtype in QUANTISED and len(tensor.shape) >= 2 and quantising:
        return f"quantised to {tensor.dtype.name.lower()} ({', '.join(quantising)}): not prunable yet"
    if tensor.dtype.is_floating_point():
        return f"stored as {tensor.dtype.name.lower()}: not prunable yet"
    return None


def _float_reason(tensor: ir.TensorProtocol, reads: list[Reader]) -> str:
    for read in reads:
        if isinstance(read.answer, Refused):
            return read.answer.reason
    ops = sorted({read.op for read in reads})
    if not ops:
        return "nothing reads it"
    if "QuantizeLinear" in ops:
        return "quantised while the model runs (QuantizeLinear): not prunable yet"
    if any(op in QUANTISING for op in ops):
        return f"scale of a quantised tensor ({', '.join(ops)})"
    return f"a constant read by {', '.join(ops)}: no operator takes it as a weight"


def groups(counted: Counter[str]) -> list[Skipped]:
    """One entry for all constants that are only worth counting."""
    return [
        Skipped(f"{n} {what}{'s' * (n > 1)}", "single values are not pruned") for what, n in sorted(counted.items())
    ]


def nodes(model: ir.Model) -> list[Skipped]:
    """Operators of ai.onnx.ml keep their parameters in attributes."""
    return [
        Skipped(node.name or node.op_type, f"{node.op_type} keeps its parameters in attributes: not prunable yet")
        for node in all_nodes(model)
        if node.domain == "ai.onnx.ml" and any(name in node.attributes for name in COEFFICIENTS)
    ]
