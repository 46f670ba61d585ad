"""Attributes of nodes: onnx-ir's getters, with one error for what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

T = TypeVar("T")


class UnreadableAttributeError(Exception):
    """The attribute has another type than the operator's, or its value comes from a function's caller."""


def _read(node: ir.Node, name: str, getter: Callable[[str, T], Any], default: T) -> Any:
    attribute = node.attributes.get(name)
    if attribute is not None and attribute.is_ref():
        raise UnreadableAttributeError(f"attribute '{name}' of {node.op_type} depends on the caller of a function")
    try:
        return getter(name, default)
    except TypeError as error:
        raise UnreadableAttributeError(f"attribute '{name}' of {node.op_type} has another type than that") from error


def integer(node: ir.Node, name: str, default: int) -> int:
    return int(_read(node, name, node.attributes.get_int, default=default))


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    value: Sequence[int] | None = _read(node, name, node.attributes.get_ints, default=None)
    return None if value is None else tuple(value)


def number(node: ir.Node, name: str, default: float) -> float:
    return float(_read(node, name, node.attributes.get_float, default=default))


def text(node: ir.Node, name: str, default: str) -> str:
    return str(_read(node, name, node.attributes.get_string, default=default))


def axes_of(node: ir.Node, arrays: Sequence[np.ndarray[Any, Any] | None]) -> tuple[int, ...] | None:
    """`axes` as an attribute (older opsets) or as an input (newer ones), of which the content is in `arrays`."""
    from_attribute = node.attributes.get_ints("axes")
    if from_attribute is not None:
        return tuple(from_attribute)
    given = arrays[1] if len(arrays) > 1 else None
    return None if given is None else tuple(int(axis) for axis in np.atleast_1d(given))
