"""What a model's inputs look like, and plausible random values for them (no onnxruntime in here)."""

from __future__ import annotations

import ast
import operator
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import PruneError

if TYPE_CHECKING:
    import onnx

Dim = int | str | None

SYNTHETIC = "synthetic"
"""What --data calls inputs that are made up. A file or folder of that name is `./synthetic`."""
DEFAULT_BATCH = 1
DEFAULT_SPATIAL = 64
DEFAULT_LENGTH = 16
_SPATIAL_NAMES = ("height", "width", "h", "w")
TEXTS = ("a", "b", "c", "0", "1")
_MAX_RANDOM_ELEMENTS = 1 << 28


@dataclass(frozen=True)
class InputSpec:
    """One input or output of a session.

    `dtype` is numpy's name of the element type ("float32", "bfloat16", "str" for strings), or
    onnxruntime's type text for what is not a tensor ("seq(map(int64,tensor(float)))"). `shape` has an int
    for a fixed dimension, a str for a named one, None for an unnamed one; () also when the rank is unknown.
    `asked` has what operators need the size of an open dimension to be, None where nothing is known.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    asked: tuple[int | None, ...] = ()

    def asked_of(self, axis: int) -> int | None:
        return self.asked[axis] if axis < len(self.asked) else None

    @property
    def is_tensor(self) -> bool:
        return "(" not in self.dtype

    @property
    def is_float(self) -> bool:
        return "float" in self.dtype and self.is_tensor

    def describe(self) -> str:
        """`image: float32 (batch, 3, 32, 32)`, for error messages."""
        dims = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype} ({dims})"


MASK = "attention_mask"


def is_past(spec: InputSpec) -> bool:
    """Keys or values of what came before, of any length."""
    return spec.name.startswith("past") and len(spec.shape) > 2 and any(map(counts_past, spec.shape[1:]))


def counts_past(dim: Dim) -> bool:
    return isinstance(dim, str) and "past" in dim and "+" not in dim


def resolve_shapes(
    specs: Sequence[InputSpec],
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = DEFAULT_BATCH,
) -> dict[str, tuple[int, ...]]:
    """A concrete shape for every spec.

    `shapes[input]` wins over `dims[name]`, which wins over what operators ask for, and that over the defaults: `batch`
    for the first axis, 64 for the other axes of a floating-point input of rank 4 or 5, 16 for any other. One name means
    one size everywhere; a name that is an expression of known names ("past + sequence") is computed.
    """
    known = dict(dims or {})
    given = dict(shapes or {})
    _refuse_unknown("--input-shape", given, [s.name for s in specs])
    for spec in specs:
        if spec.name in given:
            _learn(spec, given[spec.name], known)
    for spec in specs:
        for dim, size in zip(spec.shape, spec.asked, strict=False):
            if isinstance(dim, str) and size is not None:
                known.setdefault(dim, size)
    return {
        s.name: tuple(
            _dim(s, axis, known, batch=batch) if s.name not in given else int(given[s.name][axis])
            for axis in range(len(given.get(s.name, s.shape)))
        )
        for s in specs
    }


def _learn(spec: InputSpec, shape: Sequence[int], known: dict[str, int]) -> None:
    if spec.shape and len(shape) != len(spec.shape):
        raise PruneError(
            f"input shape {tuple(shape)} has {len(shape)} dimensions, the model's {spec.describe()}",
            f"give {len(spec.shape)} numbers",
        )
    for dim, size in zip(spec.shape, shape, strict=False):
        if isinstance(dim, int) and dim != size:
            raise PruneError(
                f"input shape {tuple(shape)} does not fit {spec.describe()}",
                f"that dimension is fixed at {dim}",
            )
        if isinstance(dim, str):
            known.setdefault(dim, int(size))


def _dim(spec: InputSpec, axis: int, known: dict[str, int], batch: int) -> int:
    dim = spec.shape[axis]
    if isinstance(dim, int):
        return dim
    if dim is None:
        return _default(spec, axis, batch)
    if dim not in known:
        value = evaluate(dim, known)
        known[dim] = _default(spec, axis, batch) if value is None else value
    return known[dim]


def _default(spec: InputSpec, axis: int, batch: int) -> int:
    name = str(spec.shape[axis]).lower()
    if (asked := spec.asked_of(axis)) is not None:
        return asked
    if axis == 0 or "batch" in name:
        return batch
    image_like = spec.is_float and len(spec.shape) in (4, 5)
    return DEFAULT_SPATIAL if image_like or name in _SPATIAL_NAMES else DEFAULT_LENGTH


_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def evaluate(expression: str, known: Mapping[str, int]) -> int | None:
    """The value of a sum, difference, product or floor quotient of known names and numbers, else None."""
    try:
        return _fold(ast.parse(expression.replace("/", "//").replace("////", "//"), mode="eval").body, known)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError):
        return None


def _fold(node: ast.AST, known: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.BinOp):
        return int(_ARITHMETIC[type(node.op)](_fold(node.left, known), _fold(node.right, known)))
    raise ValueError("not a sum, difference, product or quotient")


def random_inputs(
    specs: Sequence[InputSpec],
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    *,
    limits: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = DEFAULT_BATCH,
) -> dict[str, Any]:
    """Plausible random values for every input.

    Floats are standard normal. Integers are drawn from [0, limits[name]) (see `index_limits`), from the whole
    range for 8-bit ones, else from {0, 1}; anything named like a mask is all ones, so that nothing is hidden.
    Text is of `TEXTS`.
    Each input has its own stream derived from `seed` and its name: adding an input changes no other.

    Raises:
        PruneError: an input is not a numeric tensor, or would be absurdly large.
    """
    concrete = resolve_shapes(specs, dims, shapes, batch=batch)
    return {s.name: _random(s, concrete[s.name], seed, limit=(limits or {}).get(s.name)) for s in specs}


def _random(spec: InputSpec, shape: tuple[int, ...], seed: int, limit: int | None) -> Any:
    import math

    import numpy as np

    if not spec.is_tensor:
        raise PruneError(f"cannot make random values for the input {spec.describe()}", "give real ones with --data")
    if math.prod(shape) > _MAX_RANDOM_ELEMENTS:
        raise PruneError(
            f"the input {spec.name} would have {math.prod(shape):,} elements at {shape}",
            "choose smaller dimensions with --input-shape",
        )
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    if spec.dtype == "str":
        return rng.choice(np.array(TEXTS, object), shape)
    if spec.is_float:
        return rng.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(spec.dtype))
    dtype = np.dtype(spec.dtype)
    if "mask" in spec.name.lower():
        return np.ones(shape, dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if limit is None and dtype.itemsize == 1:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)
    high = min(2 if limit is None else max(limit, 1), np.iinfo(dtype).max)
    return rng.integers(0, high, shape).astype(dtype)


def numpy_dtype(name: str) -> Any:
    """numpy's dtype of that name; bfloat16 and the 8-bit floats come from ml_dtypes (an onnx dependency)."""
    import numpy as np

    if name == "str":
        return np.dtype(object)
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def index_limits(model: onnx.ModelProto | str | Path | bytes) -> dict[str, int]:
    """For each integer input that indexes a table, directly or through shape-only operators: the smallest
    number of rows of those tables (the vocabulary). External data is not read."""
    import onnx

    if isinstance(model, bytes):
        proto = onnx.load_from_string(model)
    elif isinstance(model, (str, Path)):
        proto = onnx.load(str(model), load_external_data=False, format="protobuf")
    else:
        proto = model
    graph = proto.graph
    sizes = _known_sizes(graph)
    roots = {i.name: i.name for i in graph.input}
    limits: dict[str, int] = {}
    for node in graph.node:
        _visit(node, roots, sizes, limits=limits)
    return limits


_SAME_VALUES = {
    "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice",
    "Concat", "Split", "Tile",
}  # fmt: skip
_SAME_SIZES = {"Identity", "Cast", "DequantizeLinear"}


def _known_sizes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    sizes = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            sizes[node.output[0]] = tuple(value.dims)
        elif node.op_type in _SAME_SIZES and node.input and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    return sizes


def _visit(
    node: onnx.NodeProto, roots: dict[str, str], sizes: Mapping[str, tuple[int, ...]], limits: dict[str, int]
) -> None:
    if node.op_type in _SAME_VALUES:
        root = next((roots[i] for i in node.input if i in roots), None)
        roots.update({o: root for o in node.output if root is not None})
    for table, axis, index in _lookups(node):
        rows = sizes.get(table, ())
        root = roots.get(index)
        if root is not None and -len(rows) <= axis < len(rows):
            limits[root] = min(limits.get(root, rows[axis]), rows[axis])


def _lookups(node: onnx.NodeProto) -> Iterable[tuple[str, int, str]]:
    """(table, axis, indices) for every look-up the node makes."""
    names = list(node.input)
    if node.op_type in ("Gather", "GatherElements"):
        yield names[0], next((a.i for a in node.attribute if a.name == "axis"), 0), names[1]
    elif node.op_type == "EmbedLayerNormalization":
        yield names[2], 0, names[0]
        yield names[4], 0, names[1]


def _refuse_unknown(option: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise PruneError(f"{option}: the model has no input named {name}", f"its inputs are {', '.join(known)}")
