"""A model run piece by piece over calibration data: values are computed when asked for, and held while a node that has
not run yet reads them.

So a layer's weights may be changed between what it reads has been computed and what it yields has, and the rest of the
model can be run again and again from one point with other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.model.graphs import subgraphs
from prunecli.runtime import Session

Array = np.ndarray[Any, Any]
OpenSession = Callable[..., Session]


class Pieces:
    """Values of the main graph of a prepared model, one array per feed.

    Args:
        model: nodes in order. Initializers may get other contents as long as no node that reads them has run.
        feeds: inputs of each batch.
        start: opens a session on serialised bytes.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Mapping[str, Array]], start: OpenSession = Session.open) -> None:
        self.model, self.start, self.count = model, start, len(feeds)
        self.order = {node: number for number, node in enumerate(model.graph)}
        self.values: dict[str, list[Array]] = {name: [feed[name] for feed in feeds] for name in (feeds or [{}])[0]}
        self._known = {value.name: value for node in model.graph for value in node.outputs if value.name}
        self._done: set[ir.Node] = set()
        self._readers: dict[str, set[ir.Node]] = {}
        for node in model.graph:
            for value in reads(node):
                self._readers.setdefault(value.name or "", set()).add(node)

    def get(self, name: str) -> list[Array]:
        """A value, per batch; it is computed now if it was not."""
        self.need([name])
        return self.values[name]

    def need(self, names: Iterable[str]) -> None:
        """Compute values, and hold what the nodes on the way hand to others."""
        wanted = [name for name in names if name not in self.values]
        if not wanted:
            return
        nodes = self._before(wanted)
        inside = set(nodes)
        self._done |= inside
        out = [v.name for node in nodes for v in node.outputs if v.name and (v.name in wanted or self._is_open(v))]
        found: dict[str, list[Array]] = {name: [] for name in dict.fromkeys(out)}
        for results in self._run(nodes, list(found), {}):
            for name, array in results.items():
                found[name].append(array)
        self.values |= found

    def release(self, keep: Iterable[str] = ()) -> None:
        """Forget values that no node which is still to run reads, except `keep` and the model's outputs."""
        kept = set(keep)
        for name in list(self.values):
            value = self._known.get(name)
            if value is not None and name not in kept and not self._is_open(value):
                del self.values[name]

    def outputs(self, names: Sequence[str], changed: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """Values per batch, from those held on, with other contents of some initializers; nothing is remembered.

        Nodes that read the changed initializers must not have run.
        """
        yield from self._run(self._before(names), list(names), changed)

    def _before(self, names: Iterable[str]) -> list[ir.Node]:
        """The nodes between the values held and those named, in order."""
        found: set[ir.Node] = set()
        stack = [self._known[name] for name in names if name not in self.values]
        while stack:
            node = stack.pop().producer()
            if node is not None and node not in found:
                found.add(node)
                stack += [v for v in reads(node) if v.name not in self.values and v.producer() is not None]
        return sorted(found, key=self.order.__getitem__)

    def _is_open(self, value: ir.Value) -> bool:
        """Whether a node that has not run reads it."""
        return value.is_graph_output() or bool(self._readers.get(value.name or "", set()) - self._done)

    def _run(
        self, nodes: Sequence[ir.Node], names: list[str], changed: Mapping[str, Array]
    ) -> Iterator[dict[str, Array]]:
        held = [name for name in names if name in self.values]
        asked = [name for name in names if name not in self.values]
        if not asked:
            yield from ({name: self.values[name][k] for name in held} for k in range(self.count))
            return
        proto, inputs = self._piece(nodes, asked, changed)
        session = self.start(proto)
        for k in range(self.count):
            found = session.run({name: self.values[name][k] for name in inputs}, asked)
            yield {name: found[name] if name in found else self.values[name][k] for name in names}

    def _piece(
        self, nodes: Sequence[ir.Node], outputs: Sequence[str], changed: Mapping[str, Array]
    ) -> tuple[bytes, list[str]]:
        """A model of its own of some nodes, and what it reads of the values held."""
        stored, inputs = self.model.graph.initializers, dict[str, None]()
        tensors: dict[str, ir.TensorProtocol] = {}
        for node in nodes:
            for value in reads(node):
                name = value.name or ""
                if name in stored:
                    tensor = stored[name].const_value
                    array = changed.get(name)
                    tensors[name] = tensor if array is None else ir.Tensor(array, name=name)  # type: ignore[assignment]
                elif name in self.values:
                    inputs[name] = None
        graph = onnx.GraphProto(name="piece")
        graph.node.extend(ir.to_proto(node) for node in nodes)
        graph.initializer.extend(_tensor(name, tensor) for name, tensor in tensors.items())
        graph.input.extend(_info(name, self.values[name][0]) for name in inputs)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self.model.graph.opset_imports.items()]
        proto = onnx.ModelProto(graph=graph, ir_version=max(self.model.ir_version or 4, 4), opset_import=opsets)
        return proto.SerializeToString(), list(inputs)


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those that its bodies take from outside included."""
    yield from (value for value in node.inputs if value is not None and value.name)
    for graph in subgraphs(node):
        for inner in graph.all_nodes():
            yield from (v for v in inner.inputs if v is not None and v.name and v.graph is node.graph)
        yield from (v for v in graph.outputs if v.name and v.graph is node.graph)


def _tensor(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    proto = ir.to_proto(tensor if not isinstance(tensor, ir.ExternalTensor) else _loaded(tensor))
    proto.name = name
    return proto


def _loaded(tensor: ir.ExternalTensor) -> ir.Tensor:
    return ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
