"""Reading node attributes that may be missing, of the wrong type, or a function's parameter."""

from __future__ import annotations

import onnx_ir as ir


class UnreadableAttributeError(Exception):
    """The attribute has another type than the operator's, or its value comes from a function's caller."""


def _value(node: ir.Node, name: str, kind: ir.AttributeType) -> object:
    attribute = node.attributes.get(name)
    if attribute is None:
        return None
    if attribute.is_ref():
        raise UnreadableAttributeError(f"attribute '{name}' of {node.op_type} depends on the caller of a function")
    if attribute.type != kind:
        raise UnreadableAttributeError(f"attribute '{name}' of {node.op_type} is not of type {kind.name}")
    return attribute.value


def integer(node: ir.Node, name: str, default: int) -> int:
    value = _value(node, name, ir.AttributeType.INT)
    return value if isinstance(value, int) else default


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    value = _value(node, name, ir.AttributeType.INTS)
    return None if value is None else tuple(int(v) for v in value)  # type: ignore[attr-defined]


def matrix_axes(node: ir.Node, operand: int, rank: int) -> tuple[int, ...]:
    """The axes of an operand of MatMul or FusedMatMul in the order that is multiplied: batch, then M, K or K, N.

    transBatchA moves the first axis behind the batch, then transA swaps the last two; B likewise.
    """
    side, axes = "AB"[operand], list(range(rank))
    if rank > 2 and integer(node, f"transBatch{side}", 0):
        axes.insert(-1, axes.pop(0))
    if rank > 1 and integer(node, f"trans{side}", 0):
        axes[-2:] = axes[:-3:-1]
    return tuple(axes)


def text(node: ir.Node, name: str, default: str) -> str:
    value = _value(node, name, ir.AttributeType.STRING)
    return value if isinstance(value, str) else default
