"""The rewriting of the graph: chains in place of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir

from prunecli.model import Model
from prunecli.model.graphs import all_graphs
from prunecli.model.preserve import is_described
from prunecli.pipeline.pack_plan import Item
from prunecli.storage import Writer, choose
from prunecli.storage.chain import Op
from prunecli.storage.encodings import SHARED_OVERHEAD, Subject
from prunecli.storage.pieces import PASSES, SPREAD_FROM, bundles, spread
from prunecli.storage.writing import Names, Source, ranges


@dataclass(frozen=True)
class _Unit:
    """A chain and what it computes: a tensor, or several laid end to end; those of one entry are equal."""

    chain: Op
    source: Source
    items: tuple[tuple[Item, ...], ...]

    @property
    def dense_bytes(self) -> int:
        return sum(same[0].row.dense_bytes for same in self.items)


def write(model: Model, items: Iterable[Item]) -> None:
    """Put the chains in place of the tensors of `items` that have one."""
    functions = {id(function.graph) for function in model.ir.functions.values()}
    chosen = [item for item in items if item.encoded is not None]
    names, opset = Names(all_graphs(model.ir)), model.ir.opset_imports.get("", 0)
    for graph in list(all_graphs(model.ir)):
        units = _units([item for item in chosen if item.holder.graph is graph])
        if units:
            passes = PASSES if graph is model.ir.graph else 1
            _write(graph, units, passes, Writer(graph, names, id(graph) in functions, _numbers(units), opset))


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
    """Say of the value what the file said."""
    value = item.holder.value
    if item.holder.node is not None or is_described(graph, item.row.name):
        made.type, made.shape, made.doc_string = value.type, value.shape, value.doc_string
        made.metadata_props.update(value.metadata_props)


def _units(items: Sequence[Item]) -> list[_Unit]:
    """The largest first: they need most on the way, and least is there yet."""
    shared = [item for item in items if _shares(item)]
    alone = [_alone(item) for item in items if not _shares(item)]

    def kind(item: Item) -> tuple[str, str]:
        return item.row.dtype, item.row.encoding

    for _, found in groupby(sorted(shared, key=kind), kind):
        alone += _together(list(found))
    return sorted(alone, key=lambda unit: -unit.dense_bytes)


def _shares(item: Item) -> bool:
    return item.encoded is not None and item.encoded.overhead == SHARED_OVERHEAD


def _alone(item: Item) -> _Unit:
    assert item.encoded is not None
    return _Unit(item.encoded.chain, Source(item.row.name, (item.tensor,), item.digest), ((item,),))


def _together(items: Sequence[Item]) -> Iterator[_Unit]:
    """Tensors of one type that are stored alike, equal ones once, in as few chains as there may be."""
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
        source = Source(first.row.encoding, tuple(same[0].tensor for same in mine), first.digest)
        encoded = choose(Subject(source.array(), first.tensor.dtype, shares=True), (first.row.encoding,))
        assert encoded is not None  # each of them is smaller
        yield _Unit(encoded.chain, source, tuple(mine))
