"""How much rounding a model computes with: the coarsest type in it, and versions of it that differ by rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from prunecli.model.protos import graphs
from prunecli.verify.tolerance import RELATIVE

SMALL = 16
"""Vectors up to so many elements may be geometry rather than weights."""
_NAMES = {
    TensorProto.DOUBLE: "float64", TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}  # fmt: skip


def relative_of(path: Path) -> float:
    """The allowance for the coarsest type that a model stores or takes."""
    model = onnx.load(str(path), load_external_data=False, format="protobuf")
    stored = {t.data_type for graph in graphs(model) for t in graph.initializer}
    stored |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    stored |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    return max((RELATIVE[_NAMES[code]] for code in stored if code in _NAMES), default=RELATIVE["float32"])


def nudged(model: bytes, seed: int) -> bytes:
    """Every weight one unit up or down; not exponents, or the scales of a Resize."""
    out, rng = onnx.load_from_string(model), np.random.default_rng(seed)
    constants = (n.attribute[0].t for n in out.graph.node if n.op_type == "Constant" and n.attribute[0].HasField("t"))
    for tensor in (*out.graph.initializer, *constants):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            continue
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1 or array.size > SMALL:
            moved = array * (1 + np.finfo(array.dtype).eps * rng.choice([-1, 1], array.shape))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(moved, array.dtype), tensor.name))
    return bytes(out.SerializeToString())
