"""What a value of a graph stores."""

from __future__ import annotations

import onnx_ir as ir


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that `value` stores, if it does: an initializer nobody can override, or a Constant's."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return None if value.is_graph_input() else value.const_value
    if producer.op_type != "Constant" or producer.domain or "value" not in producer.attributes:
        return None
    attribute = producer.attributes["value"]
    return None if attribute.is_ref() else attribute.as_tensor()
