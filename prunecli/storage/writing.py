"""Writing chains into a graph in place of stored tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.storage.chain import Fixed, Node, Op, Shape, Stream, streams
from prunecli.storage.encodings import Encoded, numbers

MARK = "prunecli.pack/"
"""The last node of a chain is named by this and the tensor's name."""
NUMBERS = numbers()


def ranges(node: Node) -> int:
    """How many numbers the chain's `Range` must give: 8 per byte of its bits."""
    return 8 * max((s.shape[0] for s in streams(node) if s.role == "bits"), default=0)


class Names:
    """Value names that no graph of the model has: names of an outer graph must not come again inside."""

    def __init__(self, graphs: Iterable[ir.Graph]) -> None:
        self._taken: set[str | None] = set()
        for graph in graphs:
            self._taken |= set(graph.initializers) | {value.name for value in graph.inputs}
            self._taken |= {value.name for node in graph for value in node.outputs}
        self._count = 0

    def new(self, label: str = "") -> str:
        """`label` if it is free, else with a number; short numbers for what nobody needs to tell apart."""
        name = label
        while not name or name in self._taken:
            self._count += 1
            name = f"{label}/{self._count}" if label else f"p/{self._count}"
        self._taken.add(name)
        return name


@dataclass(frozen=True)
class _Owner:
    """The tensor whose chain is being written. `node`: the name of the Constant node that held it."""

    name: str
    node: str | None
    source: ir.TensorProtocol
    constants: bool
    digest: str

    def lazy(self, stream: Stream) -> ir.LazyTensor:
        """The stream, computed from the dense tensor whenever it is read."""

        def compute() -> ir.TensorProtocol:
            array = np.ascontiguousarray(stream.compute(np.ascontiguousarray(self.source.numpy())))
            if isinstance(self.source, ir.ExternalTensor):
                self.source.release()
            return ir.Tensor(array, dtype=stream.dtype, shape=ir.Shape(array.shape))

        return ir.LazyTensor(compute, dtype=stream.dtype, shape=ir.Shape(stream.shape))


Key = tuple[str, str, ir.DataType, Shape, bool]


class Writer:
    """Writes chains into one graph. What they share is written once.

    `inside`: the graph is a function's, which has no initializers: everything stored is a Constant node.
    `largest`: the most numbers that any chain of this graph needs (`ranges`).
    """

    def __init__(self, graph: ir.Graph, names: Names, inside: bool, largest: int) -> None:
        self.graph, self.names, self.inside, self.largest = graph, names, inside, largest
        self._shared: dict[Fixed | Op, ir.Value] = {}
        self._stored: dict[Key, ir.Value] = {}
        self._nodes: list[ir.Node] = []

    def write(
        self, value: ir.Value, encoded: Encoded, source: ir.TensorProtocol, constants: bool, digest: str = ""
    ) -> ir.Value:
        """Let the chain compute `value`, which is an initializer or a Constant node's output, and whose values
        `source` gives while the model is saved. `constants`: keep what it stores in Constant nodes, too. What is
        stored for tensors of one `digest` is stored once. The new value has no type and shape of its own."""
        name = value.name or ""
        producer = value.producer()
        held = producer.name if producer is not None else None
        owner = _Owner(name, held, source, constants or self.inside, digest or name)
        made = self._put(encoded.chain, owner)
        ir.convenience.replace_all_uses_with(value, made)
        if producer is None:
            del self.graph.initializers[name]
        else:
            self.graph.remove(producer, safe=True)
        made.name = name
        self._nodes[-1].name = MARK + name
        return made

    def finish(self) -> None:
        """Put the nodes before all others."""
        first = next(iter(self.graph), None)
        if first is None:
            self.graph.extend(self._nodes)
        else:
            self.graph.insert_before(first, self._nodes)

    def _put(self, node: Node, owner: _Owner) -> ir.Value:
        if isinstance(node, Stream):
            key = (owner.digest, node.role, node.dtype, node.shape, owner.constants)
            if key not in self._stored:
                held = owner.node if node.role == "values" else None  # read back as the name of the dense Constant
                label = f"{owner.name}/{node.role}"
                self._stored[key] = self._store(label, owner.lazy(node), owner.constants, held)
            return self._stored[key]
        if isinstance(node, Fixed) or node.is_fixed:
            return self._fixed(node)
        inputs = [self._put(i, owner) for i in node.inputs]
        return self._op(node, inputs)

    def _fixed(self, node: Fixed | Op) -> ir.Value:
        if node not in self._shared:
            if isinstance(node, Fixed):
                array = node.array()
                self._shared[node] = self._store("", ir.tensor(array.copy()), self.inside)
            else:
                inputs = node.inputs
                if node == NUMBERS:
                    inputs = (inputs[0], Fixed.of(self.largest, "int32"), inputs[2])
                found = [self._fixed(i) for i in inputs if not isinstance(i, Stream)]
                self._shared[node] = self._op(node, found)
        return self._shared[node]

    def _op(self, node: Op, inputs: list[ir.Value]) -> ir.Value:
        attributes = {name: _attribute(name, value) for name, value in node.attributes}
        made = ir.Node("", node.type, inputs, attributes, name="")  # onnx-ir would invent names, which take space
        made.outputs[0].name = self.names.new()
        if node.shape is not None:  # onnxruntime folds only what it knows the shape of
            made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.INT32), ir.Shape(node.shape)
        self._nodes.append(made)
        return made.outputs[0]

    def _store(self, label: str, tensor: ir.TensorProtocol, constant: bool, node_name: str | None = None) -> ir.Value:
        name = self.names.new(label)
        tensor.name = name
        if constant:
            made = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", tensor)}, name=node_name or "")
            made.outputs[0].name = name
            self._nodes.append(made)
            return made.outputs[0]
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.initializers[name] = value
        return value


def _attribute(name: str, value: Any) -> ir.Attr:
    """Types in place of tensors mean a single zero of that type."""
    if name == "to":
        return ir.AttrInt64(name, int(value))
    if isinstance(value, ir.DataType):
        return ir.AttrTensor(name, ir.tensor(np.zeros(1, value.numpy())))
    return ir.AttrInt64s(name, value) if isinstance(value, tuple) else ir.AttrInt64(name, value)
