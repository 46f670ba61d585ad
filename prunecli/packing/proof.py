"""What a packed file must pass before it appears: the same tensors, all decoding folded away, the same outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.errors import GateFailed, PruneError
from prunecli.evaluation.fidelity import Fidelity, FidelityCollector
from prunecli.files import Scratch
from prunecli.model import Dims, Model, concrete_shapes, load
from prunecli.model.graphs import all_graphs
from prunecli.model.saving import save
from prunecli.model.stored_tensors import Holder, holders
from prunecli.packing.load_cost import LoadCost, measure_load
from prunecli.packing.plan import Item
from prunecli.runtime import Execution, Session
from prunecli.storage import Writer
from prunecli.storage.chain import Op, after
from prunecli.storage.pieces import PASSES
from prunecli.storage.values import widened
from prunecli.storage.writing import HELD, MARK, ChainSource, Names, ranges
from prunecli.types import Progress, Verification
from prunecli.verify.compare import RUN_UP_TO, release_tensor, same_bits, same_outputs
from prunecli.verify.inputs import cannot_open, first_run, sizes_to_try

REPORT = "nothing was written; please report this"
SEEDS = 4
Place = tuple[int, str]


class NotFolded(Exception):  # noqa: N818 - caught by `pack`, which leaves these tensors dense
    """onnxruntime would decode these tensors at every run."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = list(names)


@dataclass
class PackProof:
    """`save` calls it with the staged file. `original`: what the user gave, dense, as a file."""

    model: Model
    original: Path
    items: Sequence[Item]
    before: Before
    dims: Dims
    execution: Execution
    values: str
    max_error: float | None
    progress: Progress
    signs: bool = True
    """Whether a zero must have the sign it had."""
    verification: Verification = field(default_factory=lambda: Verification("none", detail="left out by --no-verify"))
    fidelity: Fidelity | None = None
    loads: tuple[LoadCost, LoadCost] | None = None
    """Of the dense file and of the packed one."""

    def __call__(self, staged: Path) -> None:
        saved = load(staged)
        self._same_tensors(saved)
        size = sum(item.row.dense_bytes for item in self.items)
        if size > RUN_UP_TO:
            Session.open(staged, provider=self.execution.provider, low_memory=True)
            self._apart("it is too large to be run on both sides")
            return
        try:
            self.execution.open(self.original)
        except PruneError as error:
            raise cannot_open(error) from error
        self._folded(staged, {item.row.name for item in self.items if item.encoded is not None})
        self._runs(staged)
        self.loads = (self._load(self.original), self._load(staged))

    def _load(self, path: Path) -> LoadCost:
        return measure_load(path, self.execution.provider, self.execution.thread_count)

    def _same_tensors(self, saved: Model) -> None:
        """Every tensor that the file gives back has the bits it should have, and the nodes are the same."""
        found = dict(placed(saved.ir))
        if found.keys() != self.before.tensors.keys():
            raise PruneError("internal: the packed file has other tensors than the model", REPORT)
        for key, source in self.progress(list(self.before.tensors.items()), "verifying", len(found)):
            theirs = found[key].tensor
            if not _equal(source, theirs, self.values if key in self.before.packed else "exact"):
                raise PruneError(f"internal: {key[1]} was not packed as it should be", REPORT)
            release_tensor(source)
            release_tensor(theirs)
        if nodes_of(saved.ir) != self.before.nodes:
            raise PruneError("internal: packing changed more than weights", REPORT)

    def _apart(self, why: str) -> None:
        """The smallest tensor of each encoding is folded, alone in a model of its own, in the last of the passes."""
        if self.max_error is not None:
            raise PruneError(f"--max-error cannot be checked: {why}", "leave it out")
        kinds: dict[tuple[str, str], list[Item]] = {}
        for item in sorted((i for i in self.items if i.encoded), key=lambda i: i.row.dense_bytes):
            kinds.setdefault((item.row.encoding, item.row.dtype), []).append(item)
        for same in kinds.values():
            with Scratch() as folder:
                place = folder / "alone.onnx"
                save(Model(alone(same[0]), folder / "tensor.onnx", ""), place)
                try:
                    self._folded(place, {"w"})
                except NotFolded:
                    raise NotFolded([item.row.name for item in same]) from None
        kind: Literal["exact", "approximate"] = "exact" if self.values == "exact" else "approximate"
        self.verification = Verification(kind, detail=f"{_STORED}; {why}")

    def _folded(self, staged: Path, packed: set[str]) -> None:
        """Raises NotFolded if the graph that onnxruntime runs still decodes one of these tensors."""
        with Scratch() as folder:
            place = folder / "optimised.onnx"
            Session.open(staged, provider=self.execution.provider, optimised=place)
            left = list(_marked(onnx.load(str(place), load_external_data=False, format="protobuf").graph))
        found = [name for name in sorted(packed) if any(_ends_chain(node, name) for node in left)]
        if found:  # nodes of the model's own may be named so, too
            raise NotFolded(found)

    def _runs(self, staged: Path) -> None:
        first = self.execution.open(self.original)
        second = self.execution.open(staged)
        collector, same = FidelityCollector(), True
        sizes = sizes_to_try(self.model, concrete_shapes(self.model, self.dims).inputs, self.dims)
        feed, wanted = first_run(first, sizes)
        shapes = {name: np.shape(value) for name, value in feed.items()}
        for seed in range(SEEDS):
            if seed:
                feed = first.random_inputs(seed=seed, shapes=shapes)
                wanted = first.run(feed)
            got = second.run(feed)
            steady = same_outputs(wanted, first.run(feed))
            same = same and (self._same(wanted, got) or not steady)
            collector.add(wanted, got, 1)
        self._judge(same, SEEDS, collector)

    def _same(self, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
        if self.signs:
            return same_outputs(wanted, got)
        sides = [
            {name: v + 0 if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v for name, v in each.items()}
            for each in (wanted, got)
        ]
        return same_outputs(sides[0], sides[1])

    def _judge(self, same: bool, runs: int, collector: FidelityCollector) -> None:
        if self.values == "exact":
            if not same:
                raise PruneError("internal: the packed model does not compute what the model does", REPORT)
            self.verification = Verification("exact", 0.0, 0.0, runs, f"{_RAN}; {_STORED}")
            return
        self.fidelity = collector.result("the model with exact values", "random inputs")
        worst = self.fidelity.worst() if self.fidelity is not None else {}
        error = worst.get("max_rel")
        detail = (
            f"values are stored as {self.values}: outputs differ by at most {error:.2g} of the largest element"
            if error is not None
            else f"values are stored as {self.values}"
        )
        self.verification = Verification("approximate", worst.get("max_abs"), error, runs, detail)
        if self.max_error is not None and (error is None or not error <= self.max_error):
            raise GateFailed(
                f"outputs differ by {'an unknown part' if error is None else f'{error:.3g}'} of the largest element,"
                f" --max-error allows {self.max_error:g}",
                "store values exactly, as float16, or allow more; nothing was written",
            )


_STORED = "every stored tensor decodes to the bits it had"
_RAN = "onnxruntime's outputs equal, bit for bit, those of the model, and no decoding is left in the graph it runs"


@dataclass(frozen=True)
class Before:
    """What the model was: its tensors by place, which of them are packed, and its nodes."""

    tensors: dict[Place, ir.TensorProtocol]
    packed: frozenset[Place]
    nodes: Counter[tuple[object, ...]]

    @classmethod
    def of(cls, model: Model, items: Sequence[Item]) -> Before:
        values = {id(item.holder.value) for item in items if item.encoded is not None}
        found = dict(placed(model.ir))
        packed = frozenset(key for key, holder in found.items() if id(holder.value) in values)
        return cls({key: holder.tensor for key, holder in found.items()}, packed, nodes_of(model.ir))


def alone(item: Item) -> ir.Model:
    """A model of this tensor only, read by one operator."""
    assert item.encoded is not None
    at = ir.Value(name="at", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    shape, kind = ir.Shape(item.row.shape), ir.TensorType(item.tensor.dtype)
    value = ir.Value(name="w", shape=shape, type=kind, const_value=item.tensor)
    output = ir.Value(name="y", shape=ir.Shape([1, *item.row.shape[1:]]), type=kind)
    node = ir.Node("", "Gather", [value, at], outputs=[output])
    graph = ir.Graph([at], [output], nodes=[node], initializers=[value], opset_imports={"": 17}, name="alone")
    chain = after(item.encoded.chain, PASSES - 1)
    assert isinstance(chain, Op)
    writer = Writer(graph, Names([graph]), False, ranges(chain), 17)
    writer.write(value, chain, ChainSource(item.row.name, (item.tensor,), item.digest))
    writer.finish()
    return ir.Model(graph, ir_version=8)


def placed(model: ir.Model) -> Iterator[tuple[Place, Holder]]:
    """Every stored tensor by the number of its graph and its name."""
    numbers = {id(graph): number for number, graph in enumerate(all_graphs(model))}
    return (((numbers[id(h.graph)], h.name), h) for h in holders(model))


def nodes_of(model: ir.Model) -> Counter[tuple[object, ...]]:
    """Every node but Constants, whatever the order."""
    return Counter(
        (number, node.domain, node.op_type, node.name, _names(node.inputs), _names(node.outputs))
        for number, graph in enumerate(all_graphs(model))
        for node in graph
        if node.op_type != "Constant"
    )  # fmt: skip


def _names(values: Sequence[ir.Value | None]) -> tuple[str, ...]:
    """Those left out at the end may be written or not: it means the same."""
    names = [(value.name if value is not None else None) or "" for value in values]
    while names and not names[-1]:
        del names[-1]
    return tuple(names)


def _equal(source: ir.TensorProtocol, theirs: ir.TensorProtocol, values: str) -> bool:
    if source.dtype != theirs.dtype or source.shape != theirs.shape:
        return False
    if source.dtype == ir.DataType.STRING:
        return bool(source.numpy().tolist() == theirs.numpy().tolist())
    if source.dtype.bitwidth < 8:
        return bool(source.tobytes() == theirs.tobytes())
    wanted = np.asarray(source.numpy())
    if values != "exact":
        wanted = widened(wanted, source.dtype, values)
    return same_bits(wanted, np.asarray(theirs.numpy()))


def _ends_chain(node: str, tensor: str) -> bool:
    return node.endswith(MARK + tensor) or f"{HELD}{tensor}/" in node


def _marked(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of nodes that may end chains: with something before it where a function was inlined. onnxruntime renames
    their outputs where it puts casts behind them."""
    for node in graph.node:
        if MARK in node.name or HELD in node.name:
            yield node.name
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _marked(attribute.g)
