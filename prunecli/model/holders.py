"""Where a constant is stored, read and replaced: an initializer, or an attribute of a Constant node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from prunecli.model.graphs import all_graphs
from prunecli.storage.stored import stored

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
        """Whether a caller may feed another value: the initializer is also a graph input."""
        return self.node is None and self.value.is_graph_input()


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
