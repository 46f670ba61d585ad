"""A model in pieces: parts of its graph between boundaries of values, through which all later parts depend on earlier
ones.

Two models that agree on every piece, each given the reference's values at its start, agree as a whole. So models of any
size are compared with one piece of each in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from prunecli.errors import UnprovedError
from prunecli.model.external_data import external, pull_in, read_proto
from prunecli.model.protos import serialised
from prunecli.model.tensors import FLOATS
from prunecli.verify.inputs import Case
from prunecli.verify.outline import drop_unnamed, free_initializers, of_shapes, reads
from prunecli.verify.tolerance import Feed

Shape = tuple[int, ...]
PIECE = 64 << 20
"""Bytes of weights that a piece has at most, where usable boundaries allow it."""
LARGEST = (1 << 31) - (1 << 26)
"""Most bytes of weights of a piece; protobuf ends at 2 GiB."""


Boundary = tuple[str, ...]
"""The computed values before a place in a graph that the nodes after it read."""


@dataclass(frozen=True)
class ValueTypes:
    """Types and shapes of a model's values, by name: ONNX element types, and shapes, of which only the rank is used."""

    dtypes: Mapping[str, int]
    shapes: Mapping[str, Shape]

    def info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.dtypes[name], [None] * len(self.shapes[name]))

    def __contains__(self, name: str) -> bool:
        return name in self.dtypes and name in self.shapes


@dataclass(frozen=True)
class Outlined:
    """A model file without its weights, with nodes in an order in which they can be run."""

    model: onnx.ModelProto
    nodes: Sequence[onnx.NodeProto]
    producers: Mapping[str, int]
    """Value name -> number of its node."""

    @staticmethod
    def read(path: Path) -> Outlined:
        model = read_proto(path)
        free_initializers(model)
        drop_unnamed(model)
        nodes = _in_order(model.graph)
        return Outlined(model, nodes, {name: k for k, node in enumerate(nodes) for name in node.output if name})

    @cached_property
    def bytes_of(self) -> dict[str, int]:
        """Bytes by initializer."""
        return {t.name: max(t.ByteSize(), value_bytes(t)) for t in self.model.graph.initializer}

    @cached_property
    def fixed(self) -> set[str]:
        """Initializers, and values computed from constants alone: every piece that reads them has its own."""
        found = set(self.bytes_of) | {sparse.values.name for sparse in self.model.graph.sparse_initializer}
        for node in self.nodes:
            read = [name for name in reads(node) if name]
            if node.op_type == "Constant" or (read and found.issuperset(read)):
                found.update(name for name in node.output if name)
        return found

    @cached_property
    def inputs(self) -> list[str]:
        return [info.name for info in self.model.graph.input]

    @cached_property
    def outputs(self) -> list[str]:
        return [info.name for info in self.model.graph.output]

    @cached_property
    def of_shapes(self) -> set[str]:
        """Values computed from the shapes of others and from constants."""
        return of_shapes(self.nodes, self.fixed)

    def behind(self, wanted: Iterable[str], given: Collection[str]) -> list[int]:
        """Return the numbers of the nodes that compute the wanted values from the given ones, constants, and graph
        inputs."""
        pending, found = [name for name in wanted if name not in given], set[int]()
        while pending:
            number = self.producers.get(pending.pop())
            if number is not None and number not in found:
                found.add(number)
                pending += [name for name in reads(self.nodes[number]) if name not in given]
        return sorted(found)

    def part(self, given: Collection[str], wanted: Sequence[str], types: ValueTypes) -> onnx.ModelProto:
        """Return the model that computes the wanted values from the given ones; its weights refer to the original
        files.

        Raises:
            UnprovedError: it has more weights than one file can hold.
        """
        graph = self.model.graph
        nodes = [self.nodes[number] for number in self.behind(wanted, given)]
        read = {name for node in nodes for name in reads(node)} | set(wanted)
        stored = [t for t in graph.initializer if t.name in read]
        if (size := sum(self.bytes_of[t.name] for t in stored)) > LARGEST:
            raise UnprovedError(f"a part of the graph that nothing divides has {size / 2**30:.1f} GiB of weights")
        own = {info.name: info for info in graph.output}
        result = onnx.ModelProto()
        result.CopyFrom(_without_graph(self.model))
        result.graph.name = graph.name or "piece"
        result.graph.node.extend(nodes)
        result.graph.initializer.extend(stored)
        result.graph.sparse_initializer.extend(s for s in graph.sparse_initializer if s.values.name in read)
        result.graph.input.extend(info for info in graph.input if info.name in read)
        known = {info.name for info in result.graph.input}
        result.graph.input.extend(types.info(name) for name in given if name in read and name not in known)
        result.graph.output.extend(own.get(name, onnx.ValueInfoProto(name=name)) for name in wanted)
        return result

    def has(self, name: str) -> bool:
        """Return whether it computes or takes a value of this name."""
        return name in self.producers or name in self.inputs or name in self.outputs


@dataclass(frozen=True)
class ModelPiece:
    """The part of two models between two boundaries, `given` and `after`. `outputs`: of the whole models."""

    original: Outlined
    result: Outlined
    types: ValueTypes
    given: Boundary
    after: Boundary

    @property
    def outputs(self) -> list[str]:
        return self.original.outputs

    @cached_property
    def wanted(self) -> list[str]:
        """The values that the original computes in this piece."""
        return [name for name in self.after if name not in self.given]

    def is_compared(self, name: str) -> bool:
        """Return whether both sides must agree on a value: an output, or data that both have."""
        return name in self.outputs or (self._is_data(name) and self.result.has(name))

    def _is_data(self, name: str) -> bool:
        return self.types.dtypes.get(name) in FLOATS and name not in self.original.of_shapes

    @cached_property
    def parts(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """Both sides without weights, each computing its values of this piece."""
        theirs = [name for name in self.wanted if self.result.has(name)]
        return self.original.part(self.given, self.wanted, self.types), self.result.part(self.given, theirs, self.types)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Both parts as files of their own, weights included."""
        places = folder / "original.onnx", folder / "result.onnx"
        for part, place in zip(self.parts, places, strict=True):
            whole = onnx.ModelProto()
            whole.CopyFrom(part)
            for tensor in external(whole):
                pull_in(tensor)
            place.write_bytes(serialised(whole))
        return places


@dataclass(frozen=True)
class ModelPieces:
    """Two models divided at the same boundaries."""

    original: Outlined
    result: Outlined
    types: ValueTypes
    boundaries: Sequence[Boundary]

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    def __iter__(self) -> Iterator[ModelPiece]:
        for given, after in pairwise(self.boundaries):
            yield ModelPiece(self.original, self.result, self.types, given=given, after=after)


class Handed(dict[str, Any]):
    """The inputs of one case, and the values at a boundary: those of the reference, and `own`, those of the result. The
    result computes shape computations and unrounded values itself throughout."""

    def __init__(self, reference: Feed, label: str, required: bool = False, own: Feed | None = None) -> None:
        super().__init__(reference)
        self.label, self.required = label, required
        self.own = reference if own is None else own

    def case(self, piece: ModelPiece) -> Case:
        """Return the inputs of each side of a piece."""
        mine, theirs = ({info.name for info in part.graph.input} for part in piece.parts)
        taken = {name: value for name, value in self.items() if name in mine}
        feed = Handed(taken, self.label, self.required, own={n: v for n, v in self.own.items() if n in theirs})
        return Case(self.label, lambda: feed, self.required)

    def after(self, piece: ModelPiece, wanted: Feed, got: Feed, aligned: Callable[[str, Any], Any]) -> Handed:
        """Return the values at the boundary after a piece. `wanted` and `got`: what reference and result computed in
        it."""
        given = {*piece.after, *piece.original.inputs}
        planned = {name: aligned(name, value) for name, value in wanted.items() if piece.is_compared(name)}
        handed = {n: v for n, v in planned.items() if n in got and np.shape(v) == np.shape(got[n])}
        mine = {name: value for name, value in {**self, **wanted}.items() if name in given}
        theirs = {name: value for name, value in {**self.own, **got, **handed}.items() if name in given}
        return Handed(mine, self.label, self.required, own=theirs)


def own(feed: Feed) -> Feed:
    """Return the result's feed for a feed of the reference."""
    return feed.own if isinstance(feed, Handed) else feed


def divide(original: Outlined, other: Outlined, types: ValueTypes) -> list[Boundary]:
    """Return boundaries at which both models can be divided, from the inputs to the outputs.

    A place in the order of the original's nodes is usable where both models have all live tensors under the same names,
    except shape computations. Among places in the second half of a piece, the one with the fewest live values is taken.
    """
    boundaries: list[Boundary] = [()]
    weights, alive = _own_weights(original), list(_alive(original))
    seen, best, number = set[str](), -1, 0
    while number < len(weights):
        size = sum(original.bytes_of[name] for name in seen | weights[number])
        if size > PIECE and best >= 0:
            boundaries.append(tuple(alive[best]))
            seen, number, best = set(), best + 1, -1
            continue
        seen |= weights[number]
        fewer = best < 0 or 2 * size < PIECE or len(alive[number]) <= len(alive[best])
        if fewer and number < len(weights) - 1 and _serves(alive[number], original, other, types=types):
            best = number
        number += 1
    return [*boundaries, tuple(original.outputs)]


def _serves(alive: Sequence[str], original: Outlined, other: Outlined, types: ValueTypes) -> bool:
    data = [name for name in alive if name not in original.of_shapes]
    known = all(name in types for name in alive)
    return bool(data) and known and all(map(other.has, data))


def _own_weights(model: Outlined) -> list[set[str]]:
    """Return, per node, the initializers that it reads, directly or through constants computed from them."""
    behind: dict[str, set[str]] = {name: {name} for name in model.bytes_of}
    out = []
    for node in model.nodes:
        mine = set().union(*(behind.get(name, ()) for name in reads(node)))
        if all(name in model.fixed for name in node.output if name):
            behind.update(dict.fromkeys(node.output, mine))
        out.append(mine)
    return out


def _alive(model: Outlined) -> Iterator[list[str]]:
    """Yield, after each node, the computed values that later nodes read, or that are outputs."""
    last = {name: len(model.nodes) for name in model.outputs}
    for number, node in enumerate(model.nodes):
        for name in reads(node):
            last[name] = max(last.get(name, 0), number)
    alive: dict[str, None] = {}
    for number, node in enumerate(model.nodes):
        alive.update(dict.fromkeys(n for n in node.output if n and n not in model.fixed and last.get(n, 0) > number))
        for name in reads(node):
            if last[name] == number:
                alive.pop(name, None)
        yield list(alive)


def _in_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes, each after those whose values it reads."""
    waiting = {name for node in graph.node for name in node.output if name}
    out, pending = [], list(graph.node)
    while pending:
        later = []
        for node in pending:
            if waiting.isdisjoint(reads(node)):
                out.append(node)
                waiting.difference_update(node.output)
            else:
                later.append(node)
        if len(later) == len(pending):  # a circle: onnxruntime will say so
            return [*out, *later]
        pending = later
    return out


def value_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of the elements of a tensor, wherever they are stored, at least one byte per element."""
    size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize if tensor.data_type else 0
    for length in tensor.dims:
        size *= length
    return size


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto(ir_version=model.ir_version)
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    return result
