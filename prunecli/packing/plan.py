"""Which tensors are packed, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, content_digest
from prunecli.model import Model
from prunecli.model.constants import Holder, holders
from prunecli.model.floating import floating
from prunecli.model.graphs import all_graphs
from prunecli.model.lossless import is_described
from prunecli.model.quantised import Quantised
from prunecli.model.sizes import count_nonzero
from prunecli.model.tensors import FLOATS
from prunecli.model.weights import pending
from prunecli.packing.options import PackOptions
from prunecli.storage import Writer, choose, fit
from prunecli.storage.chain import Op
from prunecli.storage.encodings import FOLDED_UP_TO, SHARED_OVERHEAD, Encoded, EncodedTensor, shifted, words
from prunecli.storage.fitting import PASSES, SHARED_UP_TO, SPREAD_FROM, bundles, spread
from prunecli.storage.stored import unmap
from prunecli.storage.writing import HELD, MARK, ChainSource, Names, ranges
from prunecli.types import Progress, Skipped

LEAST = 1024
"""Bytes below which a tensor is not packed: the decoding nodes take more than half of that."""
COO_ENTRY = 8
"""Bytes of one int64 index."""
BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
"""Types of quantised weights that are packed; MatMulNBits keeps several numbers in a UINT8."""
FEW = "too few zeros to be smaller"
UNLIKE = "several of its integers lie in one byte of a type that onnxruntime does not decode into"
BIAS = "a bias as integers, of which none are left out"


@dataclass(frozen=True)
class PackRow:
    """One stored tensor. `packed_bytes`: predicted; `information`: entropy of the mask plus the values, in bytes.
    `encoding`: "dense" where all values are stored; where it stays as it is, `reason` says why. `nonzero` does not
    count negative zeros, which are stored like values."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nonzero: int
    dense_bytes: int
    packed_bytes: int
    encoding: str = "dense"
    detail: str = ""
    reason: str = ""
    negative_zeros: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def information(self) -> float:
        return information(self.size, self.nonzero, self.dense_bytes // max(self.size, 1))


def information(size: int, nonzero: int, itemsize: int) -> float:
    """n H(k/n) / 8 + k b bytes: what a mask of independent elements and the values cannot go below."""
    share = nonzero / size if size else 0.0
    entropy = 0.0 if share in (0.0, 1.0) else -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return size * entropy / 8 + nonzero * itemsize


@dataclass
class Item:
    """A stored tensor and its encoding. `digest`: equal for equal tensors of one type and shape. `fill`: the integer
    that stands for zero."""

    holder: Holder
    tensor: ir.TensorProtocol
    row: PackRow
    encoded: Encoded | None = None
    digest: str = ""
    fill: int | Array = 0

    @property
    def is_packed(self) -> bool:
        """Whether it is stored by decoding nodes (possibly of all values, narrower), or as COO."""
        return self.encoded is not None or self.row.encoding == "coo"


def plan(model: Model, options: PackOptions, dense: Mapping[str, str], progress: Progress) -> list[Item]:
    """Every float tensor and every quantised weight, with the smallest encoding where that saves enough. One tensor is
    in memory at a time.

    `dense`: names that must stay dense, with the reason.
    """
    inlined = {id(graph) for graph in _inlined(model.ir)}
    every = {} if options.coo else floating(model.ir).sources
    sources = {name: one for name, one in every.items() if one.tensor.dtype not in FLOATS}
    integers = {name: fill for name, one in sources.items() if (fill := _fill(one)) is not None}
    stored = [h for h in holders(model.ir) if h.tensor.dtype in FLOATS or h.name in sources]
    unlike = {name: BIAS if sources[name].tensor.dtype == ir.DataType.INT32 else UNLIKE
              for name in sources.keys() - integers.keys()}  # fmt: skip
    reasons = unlike | _taken(model.ir, stored) | dict(dense)
    return [
        _item(
            holder,
            _refusal(holder, reasons, options, model=model),
            options,
            inlined=id(holder.graph) in inlined,
            fill=integers.get(holder.name, 0),
            source=sources.get(holder.name),
        )
        for holder in progress(stored, "choosing encodings", len(stored))
    ]


def _fill(source: Quantised) -> int | Array | None:
    """Return what the zeros of a quantised weight in whole bytes are stored as: one integer, or an array that
    broadcasts to the tensor. None for integers of other types."""
    if source.tensor.dtype not in BYTES:
        return None
    zeros = source.zeros()
    for axis in range(zeros.ndim if zeros.size else 0):
        first = zeros.take([0], axis)
        zeros = first if (zeros == first).all() else zeros
    return int(zeros.reshape(-1)[0]) if zeros.size == 1 else 0 if not zeros.size else np.ascontiguousarray(zeros)


def _taken(model: ir.Model, stored: Sequence[Holder]) -> dict[str, str]:
    """Return tensors whose last decoding node could not get the required name, since another node has it, and that
    node."""
    own = {n.name for graph in all_graphs(model) for n in graph if (n.name or "").startswith((MARK, HELD))}
    return {h.name: "a node has the name that its chain would have" for h in stored
            if any(name == MARK + h.name or name.startswith(f"{HELD}{h.name}/") for name in own if name)}  # fmt: skip


def _inlined(model: ir.Model) -> Iterator[ir.Graph]:
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def _item(
    holder: Holder,
    reason: str,
    options: PackOptions,
    inlined: bool,
    *,
    fill: int | Array,
    source: Quantised | None = None,
) -> Item:
    """Plan one tensor. `reason`: why it is not tried, or empty. `inlined`: it is in a function. `fill`: what zeros are
    stored as. `source`: of a quantised weight."""
    tensor = holder.tensor
    shape = tuple(tensor.shape.numpy())
    size = tensor.nbytes
    row = PackRow(holder.name, shape, tensor.dtype.name.lower(), nonzero=0, dense_bytes=size, packed_bytes=size)
    if reason:
        nonzero = count_nonzero(tensor) if source is None else int(np.count_nonzero(source.steps()))
        shape = row.shape if source is None else source.shape
        return Item(holder, tensor, replace(row, shape=shape, nonzero=nonzero, reason=reason), fill=fill)
    array = np.ascontiguousarray(tensor.numpy())
    encodable = EncodedTensor(array, tensor.dtype, inlined, fill=fill)
    nonzero = int(np.count_nonzero(shifted(encodable)))
    row = replace(row, nonzero=nonzero, negative_zeros=int(np.count_nonzero(words(shifted(encodable)))) - nonzero)
    encoded = None
    packed = nonzero * (tensor.dtype.bitwidth // 8 + COO_ENTRY) if options.coo else size
    if not options.coo:
        small = size <= SHARED_UP_TO * tensor.dtype.bitwidth // 8
        shares = small and options.values == "exact" and not inlined and isinstance(fill, int)
        encoded = fit(replace(encodable, shares=shares), options.values)
        packed = encoded.nbytes if encoded is not None else size
    # of what streams depend on: equal bytes of another type or shape, or with other zeros, are stored otherwise
    digest = content_digest({"array": array, "fill": np.asarray(fill)}, tensor.dtype.name)
    unmap(tensor)
    if packed > (1 - options.min_saving) * size:
        return Item(holder, tensor, replace(row, reason=FEW), encoded=None, digest=digest, fill=fill)
    kind, detail = ("coo", "") if encoded is None else (encoded.encoding, encoded.detail)
    row = replace(row, packed_bytes=packed, encoding=kind, detail=detail)
    return Item(holder, tensor, row, encoded=encoded, digest=digest, fill=fill)


def _refusal(holder: Holder, dense: Mapping[str, str], options: PackOptions, model: Model) -> str:
    """Return why a tensor is not tried, or empty."""
    name, size = holder.name, holder.tensor.nbytes
    if size < LEAST:
        return "small"
    if name in dense:
        return dense[name]
    if holder.overridable:
        return "also a graph input: a caller may feed other values"
    if holder.value.is_graph_output():
        return "also a graph output"
    if options.coo and (holder.node is not None or holder.graph is not model.ir.graph):
        return "not an initializer of the main graph"
    if options.include and not any(fnmatchcase(name, pattern) for pattern in options.include):
        return "not matched by --include"
    if size > FOLDED_UP_TO and not options.coo:
        return "onnxruntime folds nothing above 1 GiB"
    return "left out by --exclude" if any(fnmatchcase(name, pattern) for pattern in options.exclude) else ""


def drop_signs(model: Model) -> None:
    """Turn negative zeros, which frameworks leave where they multiply with a mask, into zeros, in every float
    tensor; computed while the model is saved."""
    for holder in holders(model.ir):
        tensor = holder.tensor
        if tensor.dtype in FLOATS and tensor.nbytes >= LEAST:
            shape = tuple(tensor.shape.numpy())
            holder.put(pending(tensor, _without_signs, shape, name=holder.name))


def _without_signs(array: Array) -> Array:
    """Return the array without negative zeros. Adding zero would change the bits of signalling NaN."""
    return np.where(array == 0, array.dtype.type(0), array)


def left(items: Iterable[Item]) -> list[Skipped]:
    """Return the tensors that stay dense, and why; small tensors are left out."""
    return [Skipped(i.row.name, i.row.reason) for i in items if i.row.reason not in ("", "small")]


@dataclass(frozen=True)
class _Unit:
    """A chain of decoding nodes and what it computes: a tensor, or several, concatenated. Those of one entry are
    equal."""

    chain: Op
    source: ChainSource
    items: tuple[tuple[Item, ...], ...]

    @property
    def dense_bytes(self) -> int:
        return sum(same[0].row.dense_bytes for same in self.items)


def write(model: Model, items: Iterable[Item]) -> None:
    """Replace the tensors of `items` by their chains."""
    functions = {id(function.graph) for function in model.ir.functions.values()}
    chosen = [item for item in items if item.encoded is not None]
    names, opset = Names(all_graphs(model.ir)), model.ir.opset_imports.get("", 0)
    for graph in list(all_graphs(model.ir)):
        units = _units([item for item in chosen if item.holder.graph is graph])
        if units:
            passes = PASSES if graph is model.ir.graph else 1
            _write(
                graph,
                units,
                passes,
                writer=Writer(graph, names, id(graph) in functions, largest=_numbers(units), opset=opset),
            )


def _numbers(units: Sequence[_Unit]) -> int:
    return max(ranges(unit.chain) for unit in units)


def _write(graph: ir.Graph, units: Sequence[_Unit], passes: int, writer: Writer) -> None:
    total = sum(unit.dense_bytes for unit in units)
    chains = spread([(unit.chain, unit.dense_bytes) for unit in units], passes if total >= SPREAD_FROM else 1)
    for unit, chain in zip(units, chains, strict=True):
        values = [[item.holder.value for item in same] for same in unit.items]
        if len(unit.source.tensors) == 1:
            made = [[writer.write(values[0][0], chain, unit.source)]]
        else:
            made = writer.write_together(values, chain, unit.source)
        for same, news in zip(unit.items, made, strict=True):
            for item, new in zip(same, news, strict=True):
                _describe(graph, item, new)
    writer.finish()


def _describe(graph: ir.Graph, item: Item, made: ir.Value) -> None:
    """Copy the file's description of the tensor to the value."""
    value = item.holder.value
    if item.holder.node is not None or is_described(graph, item.row.name):
        made.type, made.shape, made.doc_string = value.type, value.shape, value.doc_string
        made.metadata_props.update(value.metadata_props)


def _units(items: Sequence[Item]) -> list[_Unit]:
    """Return the units, the largest first: they need the most memory during encoding, and least is in use at the
    start."""
    shared = [item for item in items if _shares(item)]
    alone = [_alone(item) for item in items if not _shares(item)]

    def kind(item: Item) -> tuple[str, str, int]:
        return item.row.dtype, item.row.encoding, int(item.fill)

    for _, found in groupby(sorted(shared, key=kind), kind):
        alone += _together(list(found))
    return sorted(alone, key=lambda unit: -unit.dense_bytes)


def _shares(item: Item) -> bool:
    return item.encoded is not None and item.encoded.overhead == SHARED_OVERHEAD


def _alone(item: Item) -> _Unit:
    assert item.encoded is not None
    return _Unit(item.encoded.chain, ChainSource(item.row.name, (item.tensor,), item.digest), ((item,),))


def _together(items: Sequence[Item]) -> Iterator[_Unit]:
    """Group tensors of one type and encoding, equal ones once, into as few chains as possible."""
    equal: dict[str, list[Item]] = {}
    for item in items:
        equal.setdefault(item.digest, []).append(item)
    entries = list(equal.values())
    for found in bundles([same[0].row.size for same in entries]):
        mine = [tuple(entries[n]) for n in found]
        if len(mine) == 1:
            yield from (_alone(item) for item in mine[0])
            continue
        first = mine[0][0]
        source = ChainSource(first.row.encoding, tuple(same[0].tensor for same in mine), first.digest)
        encodable = EncodedTensor(source.array(), first.tensor.dtype, shares=True, fill=first.fill)
        encoded = choose(encodable, (first.row.encoding,))
        assert encoded is not None  # each of them is smaller
        yield _Unit(encoded.chain, source, tuple(mine))
