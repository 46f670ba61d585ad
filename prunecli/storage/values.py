"""Values stored narrower than they are used: lossy, zeros stay exactly zero.

DequantizeLinear would be the operator for int8, but onnxruntime does not fold it: it would stay in the graph, and
change which kernels run. A cast and a multiplication are the same arithmetic, and fold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.storage.chain import Node, Op, Stream, cast, with_streams
from prunecli.storage.encodings import Encoded, EncodedTensor, choose

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Narrow:
    """`apply(array)`: the narrow array of the same shape; `scales(array)`: what it is multiplied with, if anything."""

    dtype: ir.DataType
    apply: Callable[[Array], Array]
    scales: Callable[[Array], Array] | None = None


def _to_float16(array: Array) -> Array:
    """Nearest float16; beyond its range the largest finite one."""
    limit = np.finfo(np.float16).max
    return np.clip(array, -limit, limit).astype(np.float16)


def _scaled_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """onnxruntime has no float16 multiplication on the CPU, and folds nothing that needs one."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _scales(array: Array) -> Array:
    """max |w| / 127 per slice along the first axis, rounded down where 127 times the scale would be infinite."""
    dtype = _scaled_in(array.dtype)
    peak = np.abs(array.astype(np.float64)).max(axis=tuple(range(1, array.ndim)), keepdims=True)
    scales = (peak / 127).astype(dtype)
    with np.errstate(over="ignore"):
        scales = np.where(np.isinf(scales * dtype.type(127)), np.nextafter(scales, dtype.type(0)), scales)
    return np.where(scales > 0, scales, np.ones((), dtype))


def _to_int8(array: Array) -> Array:
    """round(w / scale), at most 127."""
    steps = np.rint(array.astype(np.float64) / _scales(array).astype(np.float64))
    return np.clip(steps, -127, 127).astype(np.int8)


VALUES = {"float16": Narrow(ir.DataType.FLOAT16, _to_float16), "int8": Narrow(ir.DataType.INT8, _to_int8, _scales)}
WIDE = {"float16": (ir.DataType.FLOAT, ir.DataType.DOUBLE),
        "int8": (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)}  # fmt: skip
"""What each may stand in for: onnxruntime has no bfloat16 arithmetic on the CPU."""


def choose_narrow(subject: EncodedTensor, name: str, names: tuple[str, ...] | None = None) -> Encoded | None:
    """The smallest encoding of the narrow values, with the operators that widen them; None where this does not
    apply: vectors, types as narrow already, NaN and infinity."""
    if not applies(subject.array, subject.dtype, name):
        return None
    how = VALUES[name]
    small = EncodedTensor(how.apply(subject.array), how.dtype, subject.inlined)
    found = choose(small, names)
    plain = Stream("values", how.dtype, subject.shape, lambda array: array)
    narrow = _narrowed(plain if found is None else found.chain, how)
    chain = cast(narrow, subject.dtype) if how.scales is None else _scaled(narrow, how.scales, subject)
    kind, detail = ("dense", "") if found is None else (found.encoding, found.detail)
    return Encoded(kind, chain, f"{detail} {name}".strip())


def _scaled(narrow: Node, scales: Callable[[Array], Array], subject: EncodedTensor) -> Op:
    made = scales(subject.array)
    dtype = ir.DataType.from_numpy(made.dtype)
    wide = Op("Mul", (cast(narrow, dtype), Stream("scales", dtype, made.shape, scales)))
    return wide if dtype == subject.dtype else cast(wide, subject.dtype)


def _narrowed(node: Node, how: Narrow) -> Node:
    """The chain with every stream computed from the narrow array."""

    def narrow(stream: Stream) -> Stream:
        inner = stream.compute
        return replace(stream, compute=lambda array: inner(how.apply(array)))

    return with_streams(node, narrow)


def widened(array: Array, dtype: ir.DataType, name: str) -> Array:
    """What the chain makes of the narrow values of `array`; the array itself where narrowing does not apply."""
    if not applies(array, dtype, name):
        return array
    how = VALUES[name]
    if how.scales is None:
        return how.apply(array).astype(array.dtype)
    scales = how.scales(array)
    return np.asarray(how.apply(array).astype(scales.dtype) * scales).astype(array.dtype)


def applies(array: Array, dtype: ir.DataType, name: str) -> bool:
    """Whether values can be stored so: not vectors, types as narrow already, NaN and infinity."""
    return array.ndim > 1 and dtype in WIDE[name] and bool(np.isfinite(array).all())
