"""Integers that stand for real numbers: how a stored quantised weight is read, zeroed and written.

    w = scale * (q - zero_point)        q integers (or narrow floating-point numbers), as DequantizeLinear has it

`scale` and `zero_point` are one number per tensor, per slice along an axis, or per block of neighbours along it. The
integers of MatMulNBits are packed, several in a byte. Zero is always exactly a stored number: the zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.operators.layout import Shape
from prunecli.storage.stored import stored

UNREAD = "prunecli.unread"
"""Key in the `meta` of a quantised model: why its integers are left as they are."""
SHRINK = (1.0, 0.97, 0.94, 0.91, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Parts of the range that new scales are tried for: a few clipped numbers may cost less than coarse steps for all."""


@dataclass(frozen=True)
class Grid:
    """Which numbers a type can store: q in [low, high], whole where `whole`."""

    low: float
    high: float
    whole: bool = True

    @classmethod
    def of(cls, dtype: ir.DataType, bits: int = 0) -> Grid:
        """Of an element type, or of unsigned integers of so many bits that are packed in bytes."""
        if bits:
            return cls(0, (1 << bits) - 1)
        if dtype.is_floating_point():
            largest = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
            return cls(-largest, largest, whole=False)
        half = 1 << (dtype.bitwidth - 1)
        return cls(-half, half - 1) if dtype.is_signed() else cls(0, 2 * half - 1)


@dataclass(frozen=True)
class Quantised:
    """A stored tensor of integers and what makes numbers of them.

    Attributes:
        tensor: as it is stored.
        scale, zero_point: one number per tensor, slice or block; they broadcast to `blocks` of the tensor.
        dtype: of the numbers.
        axis, block: the axis along which neighbours share a scale, `block` of them; 0: none do.
        bits: of one integer, where several are packed in a byte along the last axis; 0: they are not packed.
        parameters: the values that hold scale and zero point, where each is stored.
        product: the scale is the product of two others (of a bias: of the data's and the weight's).
        grouped: inputs belong to scales by a table of their own, not by where they are stored.
        width: numbers of a row, of rows that are stored as blocks of bytes of which the last is not full; 0: all are.
        together: neighbours along the last axis that can go without the others, which a byte or a scale holds; 0: it
            is not known that any can.
    """

    tensor: ir.TensorProtocol
    scale: Array
    zero_point: Array
    dtype: ir.DataType
    axis: int = 0
    block: int = 0
    bits: int = 0
    parameters: tuple[ir.Value | None, ir.Value | None] = (None, None)
    product: tuple[ir.Value, ...] = ()
    grouped: bool = False
    width: int = 0
    together: int = 0

    @property
    def shape(self) -> Shape:
        """Of the numbers; where integers are packed the last axis is longer than the stored one."""
        sizes = tuple(int(d) for d in self.tensor.shape.numpy())
        if self.width:
            return (sizes[0], self.width)
        return (*sizes[:-1], sizes[-1] * 8 // self.bits) if self.bits else sizes

    @property
    def grid(self) -> Grid:
        return Grid.of(self.tensor.dtype, self.bits)

    @property
    def words(self) -> str:
        """How the numbers are stored."""
        kind = f"{self.bits}-bit integers" if self.bits else self.tensor.dtype.numpy().name
        packed_block = int(self.tensor.shape.numpy()[-1]) * 8 // self.bits if self.bits and not self.together else 0
        shared = self.block or packed_block
        scales = "one scale" if self.scale.size == 1 else f"a scale per {shared}" if shared else "scales per channel"
        return f"{kind}, {scales}"

    def integers(self) -> Array:
        """q, of `shape`, as float64 or int32."""
        array = np.asarray(self.tensor.numpy())
        if self.bits:
            array = unpacked(array, self.bits)
        if self.width:
            array = array.reshape(len(array), -1)[:, : self.width]
        return array.astype(np.int32 if self.grid.whole else np.float64)

    def array(self) -> Array:
        """The numbers, of `shape` and `dtype`; infinity where it has none so large."""
        with np.errstate(over="ignore"):
            return (self.steps() * self._spread(self.scale)).astype(self.dtype.numpy())

    def array_of(self, integers: Array) -> Array:
        """The numbers that integers, as they are stored, would stand for."""
        return replace(self, tensor=self.replaced(integers)).array()

    def steps(self) -> Array:
        """q - zero_point, of `shape`, float64: zero where the number is."""
        return self.integers() - self._spread(self.zero_point).astype(np.float64)

    def zeros(self) -> Array:
        """What is stored where every number is zero, in the stored type and shape."""
        return self._stored(np.broadcast_to(self._spread(self.zero_point), self.shape))

    def zeroed(self, gone: Array) -> Array:
        """What is stored where the numbers in `gone`, a mask, are zero and the others as they are. What is zero already
        (by a scale of zero every number is) keeps its bits."""
        return self._stored(np.where(gone & (self.array() != 0), self._spread(self.zero_point), self.integers()))

    def write(self, values: Array) -> Array:
        """What to store for `values`: the nearest that there is by these scales. What has not changed keeps its bits
        (of an int32 bias not every integer is a float32)."""
        before = self.integers()
        same = np.asarray(values) == self.array()
        factor = self._spread(self.scale).astype(np.float64)
        scaled = np.asarray(values, np.float64) / np.where(factor == 0, 1, factor) + self._spread(self.zero_point)
        grid = self.grid
        nearest = np.clip(np.rint(scaled) if grid.whole else scaled, grid.low, grid.high)
        return self._stored(np.where(same, before, nearest))

    def rescaled(self, values: Array, smallest: Array | None = None) -> Quantised:
        """The same with scales for `values`: of a few ranges, in each slice or block the one that errs least.
        `smallest`: which scales there may be, one number or one for each.

        Zero points stay where they are, so that zeros do. What is zero altogether keeps its scale.
        """
        groups = self._grouped(np.asarray(values, np.float64))
        grid, zero = self.grid, np.broadcast_to(self.zero_point, self.scale.shape).astype(np.float64)
        room = np.maximum(grid.high - zero, 0), np.maximum(zero - grid.low, 0)
        ends = groups.max(axis=-1).clip(min=0), (-groups).max(axis=-1).clip(min=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [np.where(end > 0, end / side, 0) for end, side in zip(ends, room, strict=True)]
        widest = np.where(np.isfinite(parts), parts, 0).max(axis=0)
        best, least = self.scale.astype(np.float64), np.full(widest.shape, np.inf)
        for part in SHRINK if grid.whole else (1.0,):
            scale = np.where(widest > 0, widest * part, self.scale).astype(self.scale.dtype).astype(np.float64)
            scale = np.where(scale > 0, scale, self.scale)
            if smallest is not None:
                scale = np.maximum(scale, np.reshape(smallest, self.scale.shape if np.size(smallest) > 1 else ()))
            steps = np.clip(
                np.rint(groups / np.where(scale == 0, 1, scale)[..., None]) + zero[..., None], grid.low, grid.high
            )
            error = np.square((steps - zero[..., None]) * scale[..., None] - groups).sum(axis=-1)
            best, least = np.where(error < least, scale, best), np.minimum(error, least)
        return replace(self, scale=best.astype(self.scale.dtype))

    def _spread(self, parameter: Array) -> Array:
        """A parameter as it broadcasts to the numbers."""
        if not self.block or parameter.ndim == 0 or parameter.shape[self.axis] == 1:
            return parameter
        spread = np.repeat(parameter, self.block, axis=self.axis)
        return spread.take(range(self.shape[self.axis]), self.axis)  # the last block may not be full

    def _grouped(self, values: Array) -> Array:
        """Values as (*shape of the scale, those that share it)."""
        slots = (*(1,) * (values.ndim - self.scale.ndim), *self.scale.shape)
        if self.block:
            room = [0] * values.ndim
            room[self.axis] = slots[self.axis] * self.block - values.shape[self.axis]
            values = np.pad(values, [(0, missing) for missing in room])
        split = [n for size, count in zip(values.shape, slots, strict=True) for n in (count, size // max(count, 1))]
        apart = values.reshape(split).transpose(*range(0, len(split), 2), *range(1, len(split), 2))
        return apart.reshape(*self.scale.shape, -1)

    def _stored(self, integers: Array) -> Array:
        if self.width:
            whole = unpacked(np.asarray(self.tensor.numpy()), self.bits)
            flat = whole.reshape(len(whole), -1)
            flat[:, : self.width] = integers
            integers = whole
        if self.bits:
            return packed(integers.astype(np.uint8), self.bits)
        return np.ascontiguousarray(integers.astype(self.tensor.dtype.numpy()))

    def replaced(self, integers: Array) -> ir.Tensor[Any]:
        """A tensor of the stored type that holds what `write` or `zeros` gave."""
        return ir.Tensor(integers, dtype=self.tensor.dtype, name=self.tensor.name)


@dataclass(frozen=True)
class Unfolded(Quantised):
    """A floating-point tensor that becomes integers of type `kind` while the model runs, and these numbers again: it
    stands for those, rounded and as far as integers reach."""

    kind: ir.DataType = ir.DataType.INT8

    @property
    def words(self) -> str:
        return f"{self.tensor.dtype.numpy().name}, rounded to {self.kind.numpy().name} at every run"

    @classmethod
    def of(cls, integers: Quantised, kind: ir.DataType) -> Unfolded:
        return cls(**{each.name: getattr(integers, each.name) for each in fields(Quantised)}, kind=kind)

    @property
    def grid(self) -> Grid:
        return Grid.of(self.kind)

    def integers(self) -> Array:
        scaled = np.asarray(self.tensor.numpy()) / self._spread(self.scale) + self._spread(self.zero_point)
        return np.clip(np.rint(scaled), self.grid.low, self.grid.high).astype(np.int32)

    def zeros(self) -> Array:
        return np.zeros(self.shape, self.tensor.dtype.numpy())

    def zeroed(self, gone: Array) -> Array:
        before = np.asarray(self.tensor.numpy())
        return np.where(gone & (self.array() != 0), before.dtype.type(0), before)

    def write(self, values: Array) -> Array:
        same = np.asarray(values) == self.array()
        return np.where(same, np.asarray(self.tensor.numpy()), super().write(values))

    def _stored(self, integers: Array) -> Array:
        numbers = (integers - self._spread(self.zero_point)) * self._spread(self.scale).astype(np.float64)
        return np.ascontiguousarray(numbers.astype(self.tensor.dtype.numpy()))


def unpacked(array: Array, bits: int) -> Array:
    """Unsigned integers of so many bits, the lowest bits of a byte first: (..., n) -> (..., n * 8 / bits)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((array[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(*array.shape[:-1], -1)


def packed(integers: Array, bits: int) -> Array:
    """The inverse of `unpacked`; an incomplete last byte is filled with zero bits."""
    each = 8 // bits
    missing = -integers.shape[-1] % each
    filled = np.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, missing)])
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = filled.reshape(*filled.shape[:-1], -1, each) << shifts
    return np.ascontiguousarray(np.bitwise_or.reduce(parts, axis=-1).astype(np.uint8))


def quantised(
    value: ir.Value | None, scale: ir.Value | None, zero_point: ir.Value | None, *, axis: int = 1, block: int = 0
) -> Quantised | None:
    """The numbers that a stored tensor stands for by a stored scale; None where one of them is computed.

    Args:
        axis: of the tensor, along which scales lie if they are a vector, or blocks.
        block: neighbours along that axis that share a scale.
    """
    tensor, factor, offset = stored(value), stored(scale), stored(zero_point)
    if tensor is None or factor is None or (zero_point is not None and offset is None):
        return None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    scales = np.asarray(factor.numpy())
    points = np.zeros((), np.int32) if offset is None else _numbers(offset)
    if block:
        place = axis % len(shape)
        if scales.shape[place] != -(-shape[place] // block):
            return None
        return Quantised(
            tensor, scales, points, dtype=factor.dtype, axis=place, block=block, parameters=(scale, zero_point)
        )
    along = [_along(one, shape, axis) for one in (scales, points)]
    if along[0] is None or along[1] is None:
        return None
    return Quantised(tensor, along[0], along[1], dtype=factor.dtype, parameters=(scale, zero_point))


def _numbers(tensor: ir.TensorProtocol) -> Array:
    array = np.asarray(tensor.numpy())
    return array.astype(np.float64 if tensor.dtype.is_floating_point() else np.int32)


def _along(parameter: Array, shape: Shape, axis: int) -> Array | None:
    """One number, or a vector along an axis, as it broadcasts to the shape; as it is where it has the rank already."""
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim == len(shape):
        fits = all(n in (1, size) for n, size in zip(parameter.shape, shape, strict=True))
        return parameter if fits else None
    if not -len(shape) <= axis < len(shape) or parameter.shape != (shape[axis],):
        return None
    return parameter.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])


def nbits(
    tensor: ir.TensorProtocol | None, inputs: Sequence[ir.Value | None], bits: int, block: int, width: int
) -> Quantised | None:
    """The weight of MatMulNBits: (N, blocks, block) packed in bytes, scales (N * blocks), zero points likewise, packed
    along the blocks of a row, or 2^(bits - 1). An input k may have the scale of block g_idx[k] in place of its own: in
    4 bits without zero points, which is where onnxruntime computes that.

    Args:
        width: K. Where it does not fill the last block the weight is (N, K): what is stored behind is no number of it.
    """
    scale, zero_point, order = [*inputs[2:5], None, None][:3]
    factor, offset = stored(scale), stored(zero_point)
    if tensor is None or factor is None or (zero_point is not None and offset is None) or bits not in (2, 4, 8):
        return None
    rows, blocks, each = (int(d) for d in tensor.shape.numpy())
    if each * 8 != bits * block or factor.size != rows * blocks or blocks != -(-width // block):
        return None
    partial = blocks * block != width
    points = np.full((1, 1) if partial else (1, 1, 1), 1 << (bits - 1), np.int32)
    if offset is not None:
        array = np.asarray(offset.numpy())
        if offset.dtype == ir.DataType.UINT8:
            array = unpacked(array.reshape(rows, -1), bits)[:, :blocks]
        if not (array == np.rint(array)).all():  # no integer stands for zero
            return None
        points = array.reshape(rows, blocks, *points.shape[2:]).astype(np.int32)
    scales = np.asarray(factor.numpy()).reshape(rows, blocks, *points.shape[2:])
    found = Quantised(tensor, scales, points, dtype=factor.dtype, bits=bits, parameters=(scale, zero_point))
    if partial:
        found = replace(found, axis=1, block=block, width=width)
    if order is None or in_order(order, block):
        return found
    table = stored(order)
    if table is None or bits != 4 or offset is not None or not 0 < table.size <= blocks * block:
        return None
    groups = np.pad(np.asarray(table.numpy()).reshape(-1), (0, blocks * block - table.size))
    if groups.min() < 0 or groups.max() >= blocks:
        return None
    own = scales.reshape(rows, blocks)[:, groups]
    own = own[:, :width] if partial else own.reshape(rows, blocks, block)
    return replace(found, scale=own, block=0, grouped=True)


def experts(
    tensor: ir.TensorProtocol | None, scale: ir.Value | None, zero_point: ir.Value | None, bits: int, block: int
) -> Quantised | None:
    """A matrix of every expert of QMoE: (E, rows, columns) packed along the columns, scales (E, rows) or of blocks of
    columns (E, rows, blocks), zero points likewise, packed along their last axis, or 2^(bits - 1)."""
    factor, offset = stored(scale), stored(zero_point)
    if tensor is None or factor is None or (zero_point is not None and offset is None) or bits not in (2, 4, 8):
        return None
    count, rows, each = (int(d) for d in tensor.shape.numpy())
    columns = each * 8 // bits
    blocks = -(-columns // block) if block else 1
    scales = np.asarray(factor.numpy())
    if tensor.dtype != ir.DataType.UINT8 or scales.size != count * rows * blocks or scales.shape[:2] != (count, rows):
        return None
    points = np.full((1, 1, 1), 1 << (bits - 1), np.int32)
    if offset is not None:
        held = np.asarray(offset.numpy())
        along = (count, rows, 1) if held.ndim == 2 else (count, rows, blocks)
        points = unpacked(held, bits)[..., : along[-1] if held.ndim == 3 else rows].reshape(along).astype(np.int32)
    return Quantised(
        tensor, scales.reshape(count, rows, blocks), points, dtype=factor.dtype, axis=2, block=block, bits=bits,
        parameters=(scale, zero_point), together=max(block, 8 // bits),
    )  # fmt: skip


def block_table(
    table: ir.TensorProtocol | None, inputs: Sequence[ir.Value | None], bits: int, block: int, axis: int
) -> Quantised | None:
    """The table of GatherBlockQuantized: 4-bit types, or bytes of one or two numbers; scales and zero points in blocks
    along an axis. Without zero points zero is 0, in bytes 2^(bits - 1)."""
    scales, offset = stored(inputs[2]), stored(inputs[3])
    if table is None or scales is None or (inputs[3] is not None and offset is None):
        return None
    if table.dtype != ir.DataType.UINT8:
        return quantised(inputs[0], inputs[2], inputs[3], axis=axis, block=block)
    rank, factors = len(table.shape), np.asarray(scales.numpy())
    if bits not in (4, 8) or axis % rank != rank - 1:
        return None
    points = np.full((1,) * rank, 1 << (bits - 1), np.int32)
    if offset is not None:
        points = unpacked(np.asarray(offset.numpy()), bits)[..., : factors.shape[-1]].astype(np.int32)
    found = Quantised(table, factors, points, dtype=scales.dtype, axis=rank - 1, block=block,
                      bits=bits if bits < 8 else 0, parameters=(inputs[2], inputs[3]))  # fmt: skip
    return found if found.shape[-1] == factors.shape[-1] * block else None


def in_order(order: ir.Value, block: int) -> bool:
    """Whether a table of groups says what holds without it: inputs belong to the block that they are stored in."""
    table = stored(order)
    groups = None if table is None else np.asarray(table.numpy()).reshape(-1)
    return groups is not None and np.array_equal(groups, np.arange(groups.size) // block)
