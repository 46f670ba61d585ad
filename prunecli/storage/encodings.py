"""The encodings of one tensor. An encoding says what it would store, before anything is encoded, and with which
chain of operators that becomes the dense tensor again; dense is what none of them beats.

Sizes in bytes, for n elements of b bytes of which k are not zero (all their bits: negative zeros and NaN are kept):

    mask     n/8 + k b                     one bit per element
    gaps     (k + fillers) (1 + b)         one byte per distance
    windows  (n N/M) (b + p/8)             N of each M neighbours along an axis, p = 1, 2, 4 or 8 bits per position
    blocks   positions + (blocks kept) r c b     the same as mask or gaps, of blocks instead of elements
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.storage.chain import Fixed, Node, Op, Shape, Stream, cast, filled, reshape, streams, zeros

PIECE = 1 << 22
"""Elements looked at together."""
LARGEST_GAP = 255


def words(array: Array) -> Array:
    """The bit patterns of the elements, as unsigned integers of the same shape."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@dataclass(frozen=True)
class Rows:
    """An array of rows, of which those with any bit set are kept; elements are rows of one. `values`: (rows,) or
    (rows, width)."""

    values: Array

    def kept(self) -> Iterator[tuple[int, Array]]:
        """(start, mask) of each piece; starts are multiples of 8."""
        width = self.values[0].size if len(self.values) else 1
        step = max(8, PIECE // max(width, 1) // 8 * 8)
        for start in range(0, len(self.values), step):
            part = words(self.values[start : start + step])
            yield start, np.asarray(part.any(axis=1) if part.ndim == 2 else part != 0)

    @cached_property
    def count(self) -> int:
        """Rows that are kept."""
        return sum(int(np.count_nonzero(mask)) for _, mask in self.kept())

    @cached_property
    def entries(self) -> int:
        """Gaps needed: one per kept row, and one more for each time that a gap exceeds 255; at least one."""
        return max(1, sum(len(steps) for _, steps in self._gaps()))

    def _gaps(self) -> Iterator[tuple[Array, Array]]:
        """(positions, distances from the one before) of each piece, fillers included."""
        last = 0
        for start, mask in self.kept():
            places = np.flatnonzero(mask) + start
            if places.size:
                far = np.diff(places, prepend=last)
                fillers = np.maximum(far - 1, 0) // LARGEST_GAP
                ends = np.cumsum(fillers + 1) - 1
                steps = np.full(int(ends[-1]) + 1, LARGEST_GAP)
                steps[ends] = far - fillers * LARGEST_GAP
                yield last + np.cumsum(steps), steps
                last = int(places[-1])

    def gaps(self) -> Array:
        """uint8: the position of entry i is the sum of the first i + 1."""
        found = [steps.astype(np.uint8) for _, steps in self._gaps()]
        return np.concatenate(found) if found else np.zeros(1, np.uint8)

    def at_gaps(self) -> Array:
        """The rows at the entries of `gaps`; fillers lie on zeros."""
        found = [self.values[places] for places, _ in self._gaps()]
        return np.concatenate(found) if found else self.values[:1]

    def bits(self) -> Array:
        """uint8, ceil(rows / 8): the lowest bit is the first row."""
        return np.concatenate([np.packbits(mask, bitorder="little") for _, mask in self.kept()])

    def at_bits(self) -> Array:
        """The kept rows."""
        return np.concatenate([self.values[start : start + len(mask)][mask] for start, mask in self.kept()])


OVERHEAD = 450
"""Bytes of nodes, names and shapes that a chain adds to a file, about."""
SHARED_OVERHEAD = 130
"""The same for one of several tensors that share a chain."""
FOLDED_UP_TO = 1 << 30
"""Bytes of one value beyond which onnxruntime does not fold."""
LARGEST = (1 << 31) - 1024
"""Positions are int32."""
POSITION_BYTES = 4
BITS = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(np.bool_)
WINDOWS = (4, 8, 16, 32)
POSITION_BITS = {4: 2, 8: 4, 16: 4, 32: 8}
"""Of a position inside a window: log2 of its width, rounded up to a divisor of 8."""
SAMPLE = 64
"""Rows looked at before all of them are."""
EDGES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Encoded:
    """One way to store a tensor. `chain` computes it; `detail` names a variant, as 2:4 or 4x1."""

    encoding: str
    chain: Op
    detail: str = ""
    overhead: int = OVERHEAD

    @property
    def nbytes(self) -> int:
        """Of what is stored, and of the chain's own text."""
        return sum(stream.nbytes for stream in streams(self.chain)) + self.overhead


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor as encodings see it. `inlined`: it lies in a function, whose values have no shapes of their own
    once onnxruntime has put the function's nodes in place of its calls. `shares`: it may share a chain with others.
    `fill`: of integers, what most elements are, in place of zero; an array broadcasts to them."""

    array: Array
    dtype: ir.DataType
    inlined: bool = False
    shares: bool = False
    fill: int | Array = 0

    @property
    def shape(self) -> Shape:
        return tuple(self.array.shape)

    @property
    def overhead(self) -> int:
        """Return the bytes an encoding costs besides its values: fewer where tensors share a chain."""
        return SHARED_OVERHEAD if self.shares else OVERHEAD

    def values(self, shape: Shape, compute: Callable[[Array], Array]) -> Stream:
        return Stream("values", self.dtype, shape, compute=compute)


def shifted(tensor: EncodedTensor) -> Array:
    """The elements with zeros where they are what most are."""
    return tensor.array ^ np.asarray(tensor.fill, tensor.array.dtype) if np.any(tensor.fill) else tensor.array


def _with_fill(found: Encoded, fill: int | Array, shape: Shape) -> Encoded:
    """What was found for the tensor with zeros in place of `fill`, for the tensor itself."""
    chain = (
        filled(found.chain, fill) if isinstance(fill, int) else _over(found.chain, fill, found.encoding, shape=shape)
    )
    assert isinstance(chain, Op)
    return replace(found, chain=chain)


def _over(node: Node, fill: Array, encoding: str, shape: Shape) -> Node:
    """The chain that scatters values over a stored array, broadcast to the shape of the tensor, in place of zeros."""
    places: Callable[[Array], Array] = np.flatnonzero if encoding == "mask" else _entries
    if isinstance(node, Stream):
        inner, is_value = node.compute, node.role == "values"

        def compute(array: Array) -> Array:
            rest = array ^ fill
            return array.reshape(-1)[places(rest)] if is_value else inner(rest)

        return replace(node, compute=compute)
    if not isinstance(node, Op):
        return node
    if node.type == "ConstantOfShape":
        stored = Stream("fill", node.attributes[0][1].dtype, fill.shape, compute=lambda array: fill)
        return reshape(Op("Expand", (stored, Fixed.of(shape, "int64"))), (math.prod(shape),))
    return replace(node, inputs=tuple(_over(each, fill, encoding, shape=shape) for each in node.inputs))


def _entries(array: Array) -> Array:
    return np.cumsum(_gaps(array), dtype=np.int64)


ELEMENTS = ("mask", "gaps")
"""Encodings of single elements."""
Encoding = Callable[[EncodedTensor, Rows, int], Encoded | None]
ENCODINGS: dict[str, Encoding] = {}
"""In order of the work at load: the later, the less."""


def encoding(name: str) -> Callable[[Encoding], Encoding]:
    """Register `(tensor, its elements as rows, bytes to beat) -> what would be stored`, None where it does not
    apply or is not smaller."""

    def add(function: Encoding) -> Encoding:
        ENCODINGS[name] = function
        return function

    return add


def choose(tensor: EncodedTensor, names: tuple[str, ...] | None = None) -> Encoded | None:
    """The smallest of the named encodings (default: all), of equal ones the later; None if dense is smaller."""
    size = tensor.array.size
    if not 0 < size <= LARGEST or size * max(tensor.array.itemsize, POSITION_BYTES) > FOLDED_UP_TO:
        return None
    if np.any(tensor.fill):
        varied = not isinstance(tensor.fill, int)
        if varied and tensor.inlined:
            return None
        found = choose(replace(tensor, array=shifted(tensor), fill=0), ELEMENTS if varied else names)
        return None if found is None else _with_fill(found, tensor.fill, tensor.shape)
    rows = Rows(np.ascontiguousarray(tensor.array).reshape(-1))
    best: Encoded | None = None
    for name, plan in ENCODINGS.items():
        limit = tensor.array.nbytes if best is None else best.nbytes
        if (names is None or name in names) and (found := plan(tensor, rows, limit)) and found.nbytes <= limit:
            best = found
    return best


@encoding("mask")
def mask(tensor: EncodedTensor, rows: Rows, limit: int) -> Encoded | None:
    """bits -> positions of the set ones -> values scattered there; where positions would have no shape, bits -> how
    many are set up to each -> values looked up, which takes more memory."""
    if not rows.count:
        return None
    if tensor.inlined:
        return Encoded("mask", _looked_up(tensor, rows.count))
    places = _by_bits(len(rows.values), rows.count, _bits)
    return Encoded("mask", _elements(tensor, places, rows.count, compute=_at_bits), overhead=tensor.overhead)


@encoding("gaps")
def gaps(tensor: EncodedTensor, rows: Rows, limit: int) -> Encoded | None:
    """distances -> their running sum is the positions -> values scattered there."""
    if rows.count * (1 + tensor.array.itemsize) > limit:
        return None
    places = _by_gaps(rows.entries, _gaps)
    return Encoded("gaps", _elements(tensor, places, rows.entries, compute=_at_gaps), overhead=tensor.overhead)


@encoding("blocks")
def blocks(tensor: EncodedTensor, rows: Rows, limit: int) -> Encoded | None:
    """positions of blocks -> rows of values scattered there -> blocks put in their places."""
    if len(tensor.shape) < 2 or rows.count * tensor.array.itemsize > limit:
        return None
    best: Encoded | None = None
    height, width = tensor.shape[0], math.prod(tensor.shape[1:])
    nonzero = (words(tensor.array) != 0).reshape(height, width)
    for r, c in _edges(height, width, math.prod(tensor.shape[2:])):
        most = limit / (r * c * tensor.array.itemsize)
        tiles = nonzero.reshape(height // r, r, width // c, c)
        sample = tiles[:: max(1, len(tiles) // SAMPLE)]
        if _kept(sample) * len(tiles) / len(sample) <= 1.2 * most and 0 < _kept(tiles) <= most:
            found = _blocked(tensor, r, c)
            if found.nbytes <= limit:
                best, limit = found, found.nbytes - 1  # of equal ones, the first
    return best


def _kept(tiles: Array) -> int:
    return int(np.count_nonzero(tiles.any(axis=(1, 3))))


@encoding("windows")
def windows(tensor: EncodedTensor, rows: Rows, limit: int) -> Encoded | None:
    """positions inside each window -> values scattered along the window's axis."""
    best: Encoded | None = None
    nonzero = words(tensor.array) != 0
    for axis, width in product(range(len(tensor.shape)), WINDOWS):
        bits = POSITION_BITS[width]
        cost = tensor.array.itemsize + bits / 8
        if tensor.shape[axis] % width or rows.count * cost + OVERHEAD > limit:
            continue
        view = _windows(nonzero, axis, width)
        windows, most = view.shape[0] * view.shape[2], (limit - OVERHEAD) / cost
        if _fullest(view[:SAMPLE]) * windows > most:
            continue
        if 0 < (keep := _fullest(view)) < width and keep * windows <= most:
            found = _windowed(tensor, axis, width, keep=keep, bits=bits)
            if found.nbytes <= limit:
                best, limit = found, found.nbytes - 1
    return best


def _fullest(view: Array) -> int:
    return int(view.sum(axis=1, dtype=np.uint8).max())


def _edges(height: int, width: int, taps: int) -> Iterator[tuple[int, int]]:
    """Block shapes worth a look: whole kernels, rows and columns, and small powers of two."""
    tall = {e for e in (*EDGES, height) if height % e == 0}
    wide = {e for e in (*EDGES, taps, width) if e and width % e == 0}
    return ((r, c) for r in sorted(tall) for c in sorted(wide) if 1 < r * c < height * width)


def _bits(array: Array) -> Array:
    return Rows(array.reshape(-1)).bits()


def _at_bits(array: Array) -> Array:
    return Rows(array.reshape(-1)).at_bits()


def _gaps(array: Array) -> Array:
    return Rows(array.reshape(-1)).gaps()


def _at_gaps(array: Array) -> Array:
    return Rows(array.reshape(-1)).at_gaps()


def _by_bits(rows: int, count: int, compute: Callable[[Array], Array]) -> Op:
    """int32 positions of the set bits."""
    stored = Stream("bits", ir.DataType.UINT8, (-(-rows // 8),), compute=compute)
    flags = reshape(Op("Gather", (Fixed.of(BITS, "bool"), cast(stored, ir.DataType.INT32))), (-1,))
    return Op("Compress", (numbers(), flags), shape=(count,))


def _looked_up(tensor: EncodedTensor, count: int) -> Op:
    """w = values[flag * (flags so far)], with a zero as the first value."""
    size = tensor.array.size
    stored = Stream("bits", ir.DataType.UINT8, (-(-size // 8),), compute=_bits)
    flags = reshape(Op("Gather", (Fixed.of(BITS, "int32"), cast(stored, ir.DataType.INT32))), (-1,))
    if size % 8:
        flags = Op("Slice", (flags, Fixed.of([0], "int64"), Fixed.of([size], "int64")))
    index = Op("Mul", (Op("CumSum", (flags, Fixed.of(0, "int32"))), flags))
    return Op("Gather", (tensor.values((count + 1,), _led_by_zero), reshape(index, tensor.shape)))


def _led_by_zero(array: Array) -> Array:
    return np.concatenate([np.zeros(1, array.dtype), _at_bits(array)])


def numbers() -> Op:
    """0, 1, 2, ...: the writer sets how many, enough for the largest tensor of a graph."""
    return Op("Range", (Fixed.of(0, "int32"), Fixed.of(LARGEST, "int32"), Fixed.of(1, "int32")))


def _by_gaps(entries: int, compute: Callable[[Array], Array]) -> Op:
    """int32 positions, the running sum of the distances."""
    stored = Stream("gaps", ir.DataType.UINT8, (entries,), compute=compute)
    return Op("CumSum", (cast(stored, ir.DataType.INT32), Fixed.of(0, "int32")))


def _elements(tensor: EncodedTensor, places: Op, count: int, compute: Callable[[Array], Array]) -> Op:
    flat = zeros((tensor.array.size,), tensor.dtype)
    made = Op("ScatterElements", (flat, places, tensor.values((count,), compute)))
    return made if len(tensor.shape) == 1 else reshape(made, tensor.shape)


def _windows(array: Array, axis: int, width: int) -> Array:
    """(windows before the axis, width, elements after it): a view of a contiguous array."""
    shape = array.shape
    return array.reshape(math.prod(shape[:axis]) * shape[axis] // width, width, math.prod(shape[axis + 1 :]))


def _chosen(array: Array, axis: int, width: int, keep: int) -> Array:
    """(windows, keep, inner): positions of what is kept, those of zeros where a window has fewer, in order."""
    zero = _windows(words(array) == 0, axis, width)
    return np.sort(np.argsort(zero, axis=1, kind="stable")[:, :keep], axis=1)


def _windowed(tensor: EncodedTensor, axis: int, width: int, keep: int, bits: int) -> Encoded:
    view = _windows(tensor.array, axis, width)
    shape, each = (view.shape[0], keep, view.shape[2]), 8 // bits
    size = math.prod(shape)
    stored = Stream("codes", ir.DataType.UINT8, (-(-size // each),), compute=partial(_codes, axis, width, keep, bits))
    table = (np.arange(256)[:, None] >> (bits * np.arange(each))) & (1 << bits) - 1
    found = Op("Gather", (cast(Fixed.of(table, "uint8"), ir.DataType.INT32), cast(stored, ir.DataType.INT32)))
    places = reshape(found, (-1,))
    if size % each:
        places = Op("Slice", (places, Fixed.of([0], "int64"), Fixed.of([size], "int64")))
    values = tensor.values(shape, partial(_at_windows, axis, width, keep))
    dense = Op("ScatterElements", (zeros(view.shape, tensor.dtype), reshape(places, shape), values), (("axis", 1),))
    return Encoded("windows", reshape(dense, tensor.shape), f"{keep}:{width}")


def _codes(axis: int, width: int, keep: int, bits: int, array: Array) -> Array:
    """Positions of `bits` bits each, the first in the lowest bits of a byte."""
    flat, each = _chosen(array, axis, width, keep=keep).reshape(-1).astype(np.uint8), 8 // bits
    padded = np.zeros(-(-flat.size // each) * each, np.uint8)
    padded[: flat.size] = flat
    shifted = padded.reshape(-1, each) << (bits * np.arange(each, dtype=np.uint8))
    return np.asarray(np.bitwise_or.reduce(shifted, axis=1))


def _at_windows(axis: int, width: int, keep: int, array: Array) -> Array:
    return np.take_along_axis(_windows(array, axis, width), _chosen(array, axis, width, keep=keep), axis=1)


def _as_blocks(r: int, c: int, array: Array) -> Rows:
    """One block per row, (blocks, r c)."""
    height = array.shape[0]
    width = array.size // height
    tiles = array.reshape(height // r, r, width // c, c).transpose(0, 2, 1, 3)
    return Rows(np.ascontiguousarray(tiles).reshape(-1, r * c))


def _blocked(tensor: EncodedTensor, r: int, c: int) -> Encoded:
    rows = _as_blocks(r, c, tensor.array)
    few = tensor.inlined or len(rows.values) >= 8 * (rows.entries + (rows.entries - rows.count) * rows.values.itemsize)
    count = rows.entries if few else rows.count
    at: Callable[[Rows], Array] = Rows.gaps if few else Rows.bits
    where = partial(_of_blocks, r, c, at)
    places: Node = _by_gaps(count, where) if few else _by_bits(len(rows.values), count, where)
    values = tensor.values((count, r * c), partial(_of_blocks, r, c, Rows.at_gaps if few else Rows.at_bits))
    index = reshape(cast(places, ir.DataType.INT64), (count, 1))
    made = Op("ScatterND", (zeros(rows.values.shape, tensor.dtype), index, values))
    height = tensor.shape[0]
    width = tensor.array.size // height
    if r > 1 and c < width:
        tiles = reshape(made, (height // r, width // c, r, c))
        made = Op("Transpose", (tiles,), (("perm", (0, 2, 1, 3)),))
    return Encoded("blocks", reshape(made, tensor.shape), f"{r}x{c}")


def _of_blocks(r: int, c: int, part: Callable[[Rows], Array], array: Array) -> Array:
    return part(_as_blocks(r, c, array))
