"""The operators gradient rules are written with: thin names over the builder, trivial cases left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.builder import MICROSOFT, Builder
from prunecli.model.shape_inference import Shape

HUGE = 2.0**127  # HardSigmoid with this slope is a step: 1 where its argument is positive, else 0


class Ops(Builder):
    """A builder with the arithmetic of gradient rules."""

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        return self.const(np.asarray(number, self.dtype(like).numpy()))

    def mul(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        if isinstance(b, ir.Value):
            return self.op("Mul", a, b)
        return a if b == 1 else self.op("Mul", a, self.scalar(b, a))

    def add2(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        if isinstance(b, ir.Value):
            return self.op("Add", a, b)
        return a if b == 0 else self.op("Add", a, self.scalar(b, a))

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op("Sub", a, b)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op("Div", a, b)

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

    def sum(self, a: ir.Value, axes: Sequence[int], keepdims: bool = False) -> ir.Value:
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

    def total(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Sum of equally shaped values."""
        result = parts[0]
        for part in parts[1:]:
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
