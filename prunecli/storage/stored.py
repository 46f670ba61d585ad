"""What a value of a graph stores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that `value` stores, if it does: an initializer's, or a Constant's."""
    if value is None or value.const_value is not None:
        return value.const_value if value is not None else None
    node = value.producer()
    return constant_tensor(node) if node is not None and (node.domain, node.op_type) == ("", "Constant") else None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that `value` always holds: as `stored`, but for an initializer that a caller can override."""
    return None if value is None or value.is_graph_input() else stored(value)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor a Constant node yields, whichever attribute spells it; None for sparse or string values."""
    for name, attr in node.attributes.items():
        if attr.is_ref():
            return None
        if name == "value":
            return attr.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.array(attr.value, np.float32), name=name)
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.array(attr.value, np.int64), name=name)
    return None


def unmap(tensor: ir.TensorProtocol) -> None:
    """Let go of mapped external data; views of it stay valid, and it is mapped again when it is read again."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
