"""Writing chains into a graph in place of stored tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.storage.chain import ChainPass, Filler, Fixed, Node, Op, Stream, streams
from prunecli.storage.encodings import numbers
from prunecli.storage.passes import Passes
from prunecli.storage.stored import constant, unmap

MARK = "prunecli.pack/"
"""The last node of the chain of an initializer is named by this and the tensor's name."""
HELD = "prunecli.constant/"
"""That of a tensor that a Constant node held, by this, the tensor's name, a slash, and that node's name."""
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
class ChainSource:
    """What a chain decodes to: a tensor, or several as one vector. What is stored for equal digests is stored once."""

    name: str
    tensors: tuple[ir.TensorProtocol, ...]
    digest: str

    def array(self) -> Array:
        arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in self.tensors]
        return arrays[0] if len(arrays) == 1 else np.concatenate([array.reshape(-1) for array in arrays])

    def lazy(self, stream: Stream) -> ir.LazyTensor:
        """The stream, computed from the dense tensors whenever it is read."""

        def compute() -> ir.TensorProtocol:
            array = np.ascontiguousarray(stream.compute(self.array()))
            for tensor in self.tensors:
                unmap(tensor)
            return ir.Tensor(array, dtype=stream.dtype, shape=ir.Shape(array.shape))

        return ir.LazyTensor(compute, dtype=stream.dtype, shape=ir.Shape(stream.shape))


class Writer:
    """Writes chains into one graph. What they share is written once.

    `inside`: the graph is a function's, which has no initializers: everything stored is a Constant node.
    `largest`: the most numbers that any chain of this graph needs (`ranges`). `opset`: the model's.
    """

    def __init__(self, graph: ir.Graph, names: Names, inside: bool, largest: int, opset: int = 13) -> None:
        self.graph, self.names, self.inside, self.largest, self.opset = graph, names, inside, largest, opset
        self._shared: dict[Fixed | Op, ir.Value] = {}
        self._streams: dict[tuple[object, ...], ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._passes = Passes(self._node, lambda tensor: self._store("", tensor), names.new)

    def write(self, value: ir.Value, chain: Op, source: ChainSource) -> ir.Value:
        """Let the chain compute `value`, which is an initializer or a Constant node's output. The new value has no type
        and shape of its own."""
        return self._replace(value, self._put(chain, source))

    def write_together(
        self, values: Sequence[Sequence[ir.Value]], chain: Op, source: ChainSource
    ) -> list[list[ir.Value]]:
        """The same for tensors that one chain computes, laid end to end; `values`: those of each, all equal."""
        sizes = [tensor.size for tensor in source.tensors]
        inputs, attributes = [self._put(chain, source)], [ir.AttrInt64s("split", sizes)]
        if self.opset >= 13:
            inputs, attributes = [*inputs, self._fixed(Fixed.of(sizes, "int64"))], []
        parts = self._nodes_outputs("Split", inputs, attributes, count=len(sizes))
        return [[self._reshaped(value, part) for value in same] for same, part in zip(values, parts, strict=True)]

    def _reshaped(self, value: ir.Value, part: ir.Value) -> ir.Value:
        tensor = constant(value)
        assert tensor is not None
        shape = Fixed.of(tensor.shape.numpy(), "int64")
        return self._replace(value, self._node("Reshape", [part, self._fixed(shape)], []))

    def finish(self) -> None:
        """Put the nodes before all others."""
        first = next(iter(self.graph), None)
        if first is None:
            self.graph.extend(self._nodes)
        else:
            self.graph.insert_before(first, self._nodes)

    def _replace(self, value: ir.Value, made: ir.Value) -> ir.Value:
        name, producer, last = value.name or "", value.producer(), made.producer()
        assert last is not None
        ir.convenience.replace_all_uses_with(value, made)
        if producer is None:
            del self.graph.initializers[name]
            last.name = MARK + name
        else:
            self.graph.remove(producer, safe=True)
            last.name = f"{HELD}{name}/{producer.name or ''}"
        made.name = name
        return made

    def _put(self, node: Node, source: ChainSource) -> ir.Value:
        if isinstance(node, Stream):
            key = (source.digest, node.role, node.piece, node.dtype, node.shape)
            if key not in self._streams:
                self._streams[key] = self._store(f"{source.name}/{node.role}", source.lazy(node))
            return self._streams[key]
        if isinstance(node, ChainPass):
            return self._passes.of(node.number)
        if isinstance(node, Fixed) or node.is_fixed:
            return self._fixed(node)
        return self._op(node, [self._put(i, source) for i in node.inputs])

    def _fixed(self, node: Fixed | Op) -> ir.Value:
        if node not in self._shared:
            if isinstance(node, Fixed):
                self._shared[node] = self._store("", ir.tensor(node.array().copy()))
            else:
                inputs = node.inputs
                if node == NUMBERS:
                    inputs = (inputs[0], Fixed.of(self.largest, "int32"), inputs[2])
                found = [self._fixed(i) for i in inputs if isinstance(i, Fixed | Op)]
                self._shared[node] = self._op(node, found)
        return self._shared[node]

    def _op(self, node: Op, inputs: Sequence[ir.Value]) -> ir.Value:
        made = self._node(node.type, inputs, [_attribute(name, value) for name, value in node.attributes])
        if node.shape is not None:  # onnxruntime folds only what it knows the size of
            made.type, made.shape = ir.TensorType(ir.DataType.INT32), ir.Shape(node.shape)
        return made

    def _node(self, kind: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr]) -> ir.Value:
        return self._nodes_outputs(kind, inputs, attributes, count=1)[0]

    def _nodes_outputs(
        self, kind: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr], count: int
    ) -> Sequence[ir.Value]:
        """Nodes have no names: onnx-ir would invent some, which take space."""
        made = ir.Node("", kind, inputs, attributes, num_outputs=count, name="")
        for output in made.outputs:
            output.name = self.names.new()
        self._nodes.append(made)
        return made.outputs

    def _store(self, label: str, tensor: ir.TensorProtocol) -> ir.Value:
        name = self.names.new(label)
        tensor.name = name
        if self.inside:
            value = self._node("Constant", [], [ir.AttrTensor("value", tensor)])
            value.name = name
            return value
        shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
        self.graph.initializers[name] = value
        return value


def _attribute(name: str, value: Any) -> ir.Attr:
    if name == "to":
        return ir.AttrInt64(name, int(value))
    if isinstance(value, Filler):
        return ir.AttrTensor(name, ir.tensor(np.full(1, value.value, value.dtype.numpy())))
    return ir.AttrInt64s(name, value) if isinstance(value, tuple) else ir.AttrInt64(name, value)
