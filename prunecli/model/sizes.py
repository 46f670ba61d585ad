"""Size of a model: parameters, zeros, work, bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from prunecli import float_keys
from prunecli.model.constants import Holder, holders
from prunecli.model.floating import floating
from prunecli.model.loading import Model
from prunecli.model.shape_inference import Facts, Inner
from prunecli.model.shapes import Shapes
from prunecli.model.weights import Weight
from prunecli.operators import macs_of, operator_of
from prunecli.storage.stored import unmap
from prunecli.types import LayerRow, Totals

EXACT_UP_TO = 16 << 20
"""Bytes of one file that are really compressed; larger ones are sampled (about 30 MB/s otherwise)."""
SAMPLES = 32
SAMPLE_BYTES = 128 << 10
FRAME = 18
"""Header and trailer of a gzip file without a name, about those of zstd."""


def totals(model: Model, shapes: Shapes | None = None, counted: Mapping[int, int] | None = None) -> Totals:
    """Sizes of a loaded model and of the files it was loaded from.

    `params` and `nonzero` count every floating-point tensor that is stored, as initializer or in a Constant node, but
    for single numbers; of a quantised model the numbers that its integers stand for, without their scales.
    Without `shapes`, or where one is unknown, `macs` is None. `counted`: by `id` of a tensor, how many of its
    elements are not zero, where that is known already.
    """
    params, nonzero, known = 0, 0, counted or {}
    for tensor in (holder.tensor for holder in parameters(floating(model.ir).model)):
        params += tensor.size
        nonzero += known[id(tensor)] if id(tensor) in known else count_nonzero(tensor)
    return Totals(
        params=params,
        nonzero=nonzero,
        macs=count_macs(model, shapes).total if shapes else None,
        assumed=shapes.assumed if shapes else (),
        **file_sizes(model),
    )


def file_sizes(model: Model) -> dict[str, Any]:
    """Of `Totals`, what is of the files that a model was loaded from."""
    files = [model.path, *model.data_files]
    return {
        "file_bytes": sum(path.stat().st_size for path in files),
        "gzip_bytes": sum(gzip_bytes(path) for path in files),
        "gzip_estimated": any(path.stat().st_size > EXACT_UP_TO for path in files),
    }


def counts(tensor: ir.TensorProtocol) -> bool:
    """Whether the elements of a stored tensor are parameters: floating point, and no single number of rank 0."""
    return tensor.dtype.is_floating_point() and len(tensor.shape) > 0


def parameters(model: ir.Model) -> Iterator[Holder]:
    """Every tensor that counts, wherever it lies."""
    return (holder for holder in holders(model) if counts(holder.tensor))


def row_of(weight: Weight, now: Weight | None) -> LayerRow:
    """A weight that was cut; `now`: what is left of it, None if it went and has no elements."""
    nonzero = 0 if now is None else count_nonzero(now.tensor)
    params, shape = (0, (0,)) if now is None else (now.size, now.shape)
    return LayerRow(
        name=weight.node.name or weight.node.outputs[0].name or "",
        op=weight.op,
        weight=weight.name,
        shape_before=weight.shape,
        shape_after=shape,
        params_before=weight.size,
        params_after=params,
        nonzero=nonzero,
        sparsity=1 - nonzero / params if params else 0.0,
        extra={"kind": weight.kind},
    )


def count_nonzero(tensor: ir.TensorProtocol) -> int:
    """Elements that are not zero; negative zero is zero, NaN is not."""
    count = float_keys.count_nonzero(tensor.numpy())
    unmap(tensor)
    return count


def is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether no element is NaN or infinite."""
    return census_of(tensor)[1]


def census_of(tensor: ir.TensorProtocol) -> tuple[int, bool]:
    """How many elements are not zero, and whether all are finite."""
    found = float_keys.census(tensor.numpy())
    unmap(tensor)
    return found


def gzip_bytes(path: Path) -> int:
    """Size of the file after `gzip` at its default level 6; estimated from evenly spaced samples if large."""
    return _compressed(path, lambda: zlib.compressobj(6, zlib.DEFLATED, 31))


def zstd_bytes(path: Path) -> int:
    """Size of the file after `zstd` at its default level 3; estimated as for gzip if large."""
    import zstandard

    return _compressed(path, lambda: zstandard.ZstdCompressor(level=3).compressobj())


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _compressed(path: Path, start: Callable[[], _Packer]) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= EXACT_UP_TO:
            packer, packed = start(), 0
            while chunk := file.read(1 << 20):
                packed += len(packer.compress(chunk))
            return packed + len(packer.flush())
        packed = 0
        for index in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            packer = start()
            packed += len(packer.compress(file.read(SAMPLE_BYTES))) + len(packer.flush()) - FRAME
    return FRAME + packed * size // (SAMPLES * SAMPLE_BYTES)


Counts = dict[ir.Node, int | None]


@dataclass
class Macs:
    """`nodes`: per operator that multiplies, None where a shape is unknown. `total`: None if any is unknown.

    A node inside a function or loop counts all its runs; of the branches of an If only the dearer one counts.
    """

    nodes: dict[ir.Node, int | None] = field(default_factory=dict)

    @property
    def total(self) -> int | None:
        return _sum(self.nodes.values())


def count_macs(model: Model, shapes: Shapes) -> Macs:
    """Count every operator that has a formula, in subgraphs and local functions too."""
    return Macs(_tally(model.ir.graph, shapes.facts))


def _tally(body: ir.Graph, facts: Facts) -> Counts:
    result: Counts = {}
    for node in body:
        bodies = [_inside(inner) for inner in facts.inner.get(node, [])]
        if bodies:
            _add(result, max(bodies, key=lambda counts: _sum(counts.values()) or 0))
        elif operator_of(node).macs is not None:
            terms = macs_of(node, facts.shape)
            _add(result, {node: None if terms is None else sum(terms)})
    return result


def _inside(inner: Inner) -> Counts:
    """Counts of a body, times its runs, by the nodes of the model as it is stored."""
    counted = _tally(inner.body, inner.facts)
    return {inner.originals.get(node, node): _times(count, inner.times) for node, count in counted.items()}


def _add(result: Counts, more: Counts) -> None:
    for node, count in more.items():
        result[node] = _sum((result.get(node, 0), count))


def _times(count: int | None, times: int | None) -> int | None:
    return None if count is None or times is None else count * times


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def macs_by_weight(weights: list[Weight], macs: Macs) -> dict[str, int | None]:
    """Each operator's work, divided among the weights it reads by their size (exact for recurrent layers)."""
    readers: dict[ir.Node, list[Weight]] = {}
    for weight in weights:
        for node in dict.fromkeys(use.node for use in weight.uses):
            readers.setdefault(node, []).append(weight)
    work: dict[str, int | None] = {}
    for node, group in readers.items():
        left, size = macs.nodes.get(node, 0), sum(weight.size for weight in group)
        for weight in group:
            share = None if left is None else left * weight.size // size
            size -= weight.size
            left = None if left is None or share is None else left - share
            before = work.get(weight.name, 0)
            work[weight.name] = None if before is None or share is None else before + share
    return work
