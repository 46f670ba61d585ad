"""Where a constant is stored, read and replaced: an initializer, or an attribute of a Constant node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from prunecli.model.graphs import all_graphs
from prunecli.storage.chain import stored

INTERFACE = "it is also a graph input, so that a caller may feed other values; --include with its name allows changes"
_NAMED = "prunecli.named"
FLOAT_ATTRIBUTES = ("value_float", "value_floats")


@dataclass(frozen=True)
class Holder:
    """A stored constant. `node` is the Constant node, None for an initializer."""

    value: ir.Value
    graph: ir.Graph
    node: ir.Node | None = None

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        tensor = stored(self.value)
        assert tensor is not None
        return tensor

    def put(self, tensor: ir.TensorProtocol) -> None:
        """Store `tensor` in place of the present one."""
        if self.node is None:
            self.value.const_value = tensor
        else:
            for name in FLOAT_ATTRIBUTES:
                self.node.attributes.pop(name, None)
            self.node.attributes["value"] = ir.AttrTensor("value", tensor)
            if self.value.const_value is not None:
                self.value.const_value = tensor
        if self.value.shape is not None:
            self.value.shape = ir.Shape(tensor.shape.numpy())

    @property
    def overridable(self) -> bool:
        """See `overridable`."""
        return overridable(self.value)


def overridable(value: ir.Value) -> bool:
    """Whether a stored tensor is part of the model's interface and to be left alone: an initializer that is a graph
    input too, so that a caller may feed other values of its shape, and that the user has not named (`name_inputs`)."""
    return value.is_initializer() and value.is_graph_input() and _NAMED not in value.meta


def name_inputs(model: ir.Model, patterns: Iterable[str]) -> None:
    """Allow changes of the initializers that are graph inputs too and whose name matches one of the patterns."""
    for value in model.graph.inputs:
        if value.is_initializer() and any(fnmatchcase(value.name or "", pattern) for pattern in patterns):
            release(value)


def release(value: ir.Value) -> None:
    """Allow changes, because the user named it."""
    value.meta[_NAMED] = True


def holders(model: ir.Model) -> Iterator[Holder]:
    """Every tensor constant of the model, in graph order; the main graph first, functions last."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield Holder(value, graph)
        for node in graph:
            if _holds_tensor(node):
                yield Holder(node.outputs[0], graph, node)


def _holds_tensor(node: ir.Node) -> bool:
    if node.op_type != "Constant" or node.domain != "" or not node.outputs:
        return False
    return any(name in node.attributes and not node.attributes[name].is_ref() for name in ("value", *FLOAT_ATTRIBUTES))
