"""The working form of a graph: functions inlined, nodes in order, every constant an initializer."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, TopologicalSortPass


def prepare(model: ir.Model) -> ir.Model:
    """A copy of the model, ready to be analysed and cut; names are kept.

    A weight in a Constant node becomes an initializer by the name of the node's output. Initializers that are
    not graph inputs need IR version 4, which every onnxruntime since 0.3 reads.
    """
    work = model.clone()
    if work.functions:
        InlinePass()(work)
    TopologicalSortPass()(work)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(work)
    work.ir_version = max(work.ir_version or 4, 4)
    return work
