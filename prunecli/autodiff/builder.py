"""Building an ONNX graph node by node, with the shape of every value known as soon as it exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.shape_inference import Array, Facts, Shape, know_constant, visit

MICROSOFT = "com.microsoft"
NCHWC = "com.microsoft.nchwc"
FUSED_OPSETS = {MICROSOFT: 1, NCHWC: 1}
_MAX_NODES = 1 << 24
_MAX_CONST_KEY = 4096  # bytes: larger constants are not looked up for reuse


class Builder:
    """A graph under construction. `model.graph` is valid at any time; nodes are in topological order."""

    def __init__(self, opsets: Mapping[str, int], ir_version: int, prefix: str) -> None:
        imports = {**FUSED_OPSETS, **opsets}
        graph = ir.Graph([], [], nodes=[], opset_imports=imports, name="gradient")
        self.model = ir.Model(graph, ir_version=ir_version)
        self.graph = graph
        self.facts = Facts()
        self.opset = imports[""]
        self.before: ir.Node | None = None  # where new nodes go; None: at the end
        self.facts.budget[0] = _MAX_NODES
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple[str, Shape, bytes], ir.Value] = {}

    # ---- values

    def fresh_name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def input(self, name: str, dtype: int, shape: Shape) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType(dtype)))
        self.graph.inputs.append(value)
        self.facts.shapes[value], self.facts.dtypes[value] = tuple(shape), int(dtype)
        return value

    def initializer(self, name: str, tensor: ir.TensorProtocol, *, known: bool = True) -> ir.Value:
        """A stored tensor. `known=False` keeps its content out of constant folding (it will be differentiated)."""
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        self.graph.register_initializer(value)
        know_constant(self.facts, value)
        if not known:
            self.facts.values.pop(value, None)
        return value

    def const(self, array: Any, dtype: Any = None) -> ir.Value:
        """A constant, shared when small and already present."""
        array = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        key = (str(array.dtype), array.shape, array.tobytes() if array.nbytes <= _MAX_CONST_KEY else b"")
        if key[2] and key in self._constants:
            return self._constants[key]
        value = self.initializer(self.fresh_name(), ir.tensor(array))
        if key[2]:
            self._constants[key] = value
        return value

    def ints(self, values: Sequence[int]) -> ir.Value:
        return self.const(np.asarray(values, np.int64))

    # ---- nodes

    def add(self, node: ir.Node) -> None:
        """Append a node whose outputs are named or get fresh names, and learn their shapes."""
        for out in node.outputs:
            if out.name is None:
                out.name = self.fresh_name()
        visit(node, self.facts, self.model)
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)

    def many(
        self, op: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        present = {k: v for k, v in attributes.items() if v is not None}
        given = list(inputs)
        while given and given[-1] is None:  # a kernel need not expect an empty name at the end
            given.pop()
        node = ir.node(op, given, present, domain=domain, num_outputs=outputs)
        self.add(node)
        return tuple(node.outputs)

    def op(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append one node with one output. Attributes that are None are left out."""
        return self.many(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    # ---- facts

    def shape(self, value: ir.Value | None) -> Shape:
        """The concrete shape.

        Raises:
            PruneError: it depends on data, so no gradient can be written down.
        """
        known = None if value is None else self.facts.shapes.get(value)
        if known is None:
            name = "an absent input" if value is None else f"{value.name}"
            node = None if value is None else self._unknown_from(value)
            why = self.facts.problems.get(node, "its output has no fixed shape") if node is not None else ""
            by = f", because of {node.op_type} {node.name or node.outputs[0].name!r}: {why}" if node is not None else ""
            raise PruneError(
                f"the shape of {name} is not known before running{by}",
                "give every dynamic dimension a value; a shape that depends on data has no gradient here",
            )
        return known

    def _unknown_from(self, value: ir.Value) -> ir.Node | None:
        """The first node on the way to a value whose inputs have shapes and whose output has none."""
        node = value.producer()
        while node is not None:
            behind = [
                v for v in node.inputs if v is not None and v not in self.facts.shapes and v.producer() is not None
            ]
            if not behind:
                break
            node = behind[0].producer()
        return node

    def rank(self, value: ir.Value | None) -> int:
        return len(self.shape(value))

    def size(self, value: ir.Value | None) -> int:
        return int(np.prod(self.shape(value), dtype=np.int64))

    def value(self, value: ir.Value | None) -> Array | None:
        """The content, where it is a known constant."""
        return self.facts.value(value)

    def dtype(self, value: ir.Value) -> ir.DataType:
        return ir.DataType(self.facts.dtypes.get(value, int(value.dtype or ir.DataType.FLOAT)))

    def is_float(self, value: ir.Value) -> bool:
        return self.dtype(value).is_floating_point()
