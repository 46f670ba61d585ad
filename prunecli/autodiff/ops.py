"""Building an ONNX graph node by node, with the shape of every value known as soon as it exists, and its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.model.shape_inference import Facts, Shape, know_constant, visit
from prunecli.operators import MICROSOFT

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

    def append(self, node: ir.Node) -> None:
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
        self.append(node)
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


HUGE = 2.0**127  # HardSigmoid with this slope is a step: 1 where its argument is positive, else 0


class Ops(Builder):
    """A builder with the arithmetic of gradient rules."""

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        return self.const(np.asarray(number, self.dtype(like).numpy()))

    def mul(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        if isinstance(b, ir.Value):
            return self.op("Mul", a, b)
        return a if b == 1 else self.op("Mul", a, self.scalar(b, a))

    def add(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        if isinstance(b, ir.Value):
            return self.op("Add", a, b)
        return a if b == 0 else self.op("Add", a, self.scalar(b, a))

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op("Sub", a, b)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op("Div", a, b)

    def square(self, a: ir.Value) -> ir.Value:
        return self.op("Mul", a, a)

    def one_minus(self, a: ir.Value) -> ir.Value:
        return self.op("Sub", self.scalar(1.0, a), a)

    def neg(self, a: ir.Value) -> ir.Value:
        return self.op("Neg", a)

    def cast(self, a: ir.Value, like: ir.Value) -> ir.Value:
        target = self.dtype(like)
        return a if self.dtype(a) == target else self.op("Cast", a, to=int(target))

    def positive(self, a: ir.Value) -> ir.Value:
        """1 where a > 0, else 0, in one vectorised pass (a comparison and a Cast cost several)."""
        return self.op("HardSigmoid", a, alpha=HUGE, beta=0.0)

    def reshape(self, a: ir.Value, shape: Sequence[int]) -> ir.Value:
        if tuple(shape) == self.shape(a):
            return a
        return self.op("Reshape", a, self.ints(shape), allowzero=1 if 0 in shape else None)

    def transpose(self, a: ir.Value, perm: Sequence[int]) -> ir.Value:
        perm = list(perm)
        if perm == list(range(len(perm))):
            return a
        moved = [i for i in perm if self.shape(a)[i] != 1]
        if moved == sorted(moved):  # only axes of length 1 move: the memory stays as it is
            return self.reshape(a, [self.shape(a)[i] for i in perm])
        return self.op("Transpose", a, perm=perm)

    def swap_last(self, a: ir.Value) -> ir.Value:
        rank = self.rank(a)
        return self.transpose(a, [*range(rank - 2), rank - 1, rank - 2])

    def expand(self, a: ir.Value, shape: Shape) -> ir.Value:
        return a if self.shape(a) == tuple(shape) else self.op("Expand", a, self.ints(shape))

    def sum(self, a: ir.Value, axes: Sequence[int] | None = None, keepdims: bool = False) -> ir.Value:
        """Over `axes`, by default over all."""
        axes = range(self.rank(a)) if axes is None else axes
        if not axes:
            return a
        return self.op("ReduceSum", a, self.ints(sorted(axes)), keepdims=int(keepdims))

    def mean(self, a: ir.Value, axes: Sequence[int], keepdims: bool = False) -> ir.Value:
        return self.op("ReduceMean", a, self.ints(sorted(axes)), keepdims=int(keepdims))

    def zeros(self, shape: Sequence[int], like: ir.Value) -> ir.Value:
        fill = ir.tensor(np.zeros(1, self.dtype(like).numpy()))
        return self.op("ConstantOfShape", self.ints(shape), value=fill)

    def slice(
        self, a: ir.Value, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> ir.Value:  # fmt: skip
        steps = list(steps or [1] * len(axes))
        shape = self.shape(a)
        keep = [k for k in range(len(axes)) if (starts[k], steps[k]) != (0, 1) or ends[k] < shape[axes[k]]]
        if not keep:
            return a
        picked = [self.ints([part[k] for k in keep]) for part in (starts, ends, axes, steps)]
        return self.op("Slice", a, *picked)

    def pad(self, a: ir.Value, before: Sequence[int], after: Sequence[int]) -> ir.Value:
        """Zeros around (negative: cropped)."""
        if not any(before) and not any(after):
            return a
        return self.op("Pad", a, self.ints([*before, *after]))

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def stack(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Equally shaped values along a new first axis."""
        return self.concat([self.reshape(part, (1, *self.shape(part))) for part in parts], 0)

    def split(self, a: ir.Value, sizes: Sequence[int], axis: int) -> tuple[ir.Value, ...]:
        return self.many("Split", a, self.ints(sizes), outputs=len(sizes), axis=axis)

    def channel_sum(self, a: ir.Value) -> ir.Value:
        """Over all axes but the second."""
        return self.sum(a, [0, *range(2, self.rank(a))])

    def total(self, parts: Sequence[ir.Value | None]) -> ir.Value:
        """The sum of those that are there; the first of them must be."""
        result, *others = (part for part in parts if part is not None)
        for part in others:
            result = self.op("Add", result, part)
        return result

    def unbroadcast(self, a: ir.Value, shape: Shape) -> ir.Value:
        """Sum `a` over the axes along which `shape` was broadcast to it; expand where `a` is the smaller."""
        have = self.shape(a)
        if have == tuple(shape):
            return a
        extra = len(have) - len(shape)
        if extra < 0:
            return self.expand(a, shape)
        axes = [i for i in range(len(have)) if i < extra or (shape[i - extra] == 1 and have[i] != 1)]
        if axes:
            a = self._sum_leading(a, axes)
        return self.expand(self.reshape(a, [1 if s == 1 else h for h, s in zip(
            have[extra:], shape, strict=True)]), shape)  # fmt: skip

    def _sum_leading(self, a: ir.Value, axes: list[int]) -> ir.Value:
        """Sum over axes; over a block of leading axes, as a product with a row of ones (one pass over `a`)."""
        shape = self.shape(a)
        leading = len(axes)
        rows = int(np.prod(shape[:leading], dtype=np.int64))
        columns = int(np.prod(shape[leading:], dtype=np.int64))
        if axes != list(range(leading)) or leading == len(shape) or rows < 16 or columns < 16:
            return self.sum(a, axes)
        ones = self.const(np.ones((1, rows), self.dtype(a).numpy()))
        summed = self.op("MatMul", ones, self.reshape(a, (rows, columns)))
        return self.reshape(summed, shape[leading:])

    def matmul(self, a: ir.Value, b: ir.Value, ta: bool = False, tb: bool = False, alpha: float = 1.0) -> ir.Value:
        """alpha * a' @ b', where ' transposes the last two axes if asked. Both have rank 2 at least."""
        if self.rank(a) == self.rank(b) == 2 and (ta or tb or alpha != 1.0):
            return self.op("Gemm", a, b, transA=int(ta), transB=int(tb), alpha=float(alpha))
        if not (ta or tb) and alpha == 1.0:
            return self.op("MatMul", a, b)
        return self.op("FusedMatMul", a, b, domain=MICROSOFT, transA=int(ta), transB=int(tb), alpha=float(alpha))
