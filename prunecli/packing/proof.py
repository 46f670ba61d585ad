"""Checks of a packed file before it appears: the same tensors, all decoding folded away, the same outputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import GateFailed, PruneError
from prunecli.evaluation.fidelity import Fidelity, FidelityCollector, heads_of
from prunecli.files import Scratch
from prunecli.model import Model, concrete_shapes, load
from prunecli.model.graphs import all_graphs
from prunecli.model.protos import nodes
from prunecli.model.saving import save
from prunecli.packing.load_cost import LoadCost, measure_load
from prunecli.packing.options import PackOptions, UnpackOptions
from prunecli.packing.plan import Item
from prunecli.runtime import Session
from prunecli.storage import Writer
from prunecli.storage.chain import Op, after
from prunecli.storage.fitting import PASSES, widened
from prunecli.storage.writing import HELD, MARK, ChainSource, Names, ranges
from prunecli.types import UNVERIFIED, Progress, Verification
from prunecli.verify.compare import check_tensors, placed, same_bits
from prunecli.verify.inputs import Case, InputShapes, random_case, sizes_to_try, spare_cases
from prunecli.verify.prove import RUN_UP_TO, Agreement, Claim, open_original, prove
from prunecli.verify.tolerance import OfLargest, RandomOutputsError, SameBits

REPORT = "nothing was written; please report this"
SEEDS = 4
LOSSY = OfLargest(math.inf, "whatever values rounded on purpose cause: --max-error judges it", least=1.0)


class NotFolded(Exception):  # noqa: N818 - caught by `pack`, which leaves these tensors dense
    """onnxruntime would decode these tensors at every run."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = list(names)


@dataclass
class PackProof:
    """Called by `save` with the staged file. `original`: the user's model, dense, as a file. Created before chains
    replace the tensors of `model`; it keeps those tensors."""

    model: Model
    original: Path
    items: Sequence[Item]
    options: UnpackOptions
    progress: Progress
    verification: Verification = UNVERIFIED
    fidelity: Fidelity | None = None
    loads: tuple[LoadCost, LoadCost] | None = None
    """Cost of loading the dense file and the packed one."""

    def __post_init__(self) -> None:
        packed = {id(item.holder.value) for item in self.items if item.encoded is not None}
        found = placed(self.model.ir)
        self.tensors = {place: holder.tensor for place, holder in found.items()}
        self.packed = [place for place, holder in found.items() if id(holder.value) in packed]
        self.nodes = nodes_of(self.model.ir)
        self.execution = self.options.execution
        self.asked = self.options if isinstance(self.options, PackOptions) else PackOptions()

    def __call__(self, staged: Path) -> None:
        self._check_stored(staged)
        if sum(item.row.dense_bytes for item in self.items) > RUN_UP_TO:
            Session.open(staged, provider=self.execution.provider, mode="low memory")
            self._apart()
            return
        original = open_original(partial(self.execution.open, self.original))
        self._folded(staged, {item.row.name for item in self.items if item.encoded is not None})
        self._run(original, self.execution.open(staged))
        self.loads = (self._load(self.original), self._load(staged))

    def _load(self, path: Path) -> LoadCost:
        return measure_load(path, self.execution.provider, self.execution.thread_count)

    def _check_stored(self, staged: Path) -> None:
        """Require that every tensor decodes to the expected bits, and that the nodes are unchanged."""
        saved, before = load(staged).ir, self.tensors
        lossy = () if self.asked.values == "exact" else self.packed
        expected = {place: partial(_holds_rounded, before[place].dtype, self.asked.values) for place in lossy}
        check_tensors(before, saved, expected, hint=REPORT, progress=self.progress)
        if nodes_of(saved) != self.nodes:
            raise PruneError("internal: packing changed more than weights", REPORT)

    def _apart(self) -> None:
        """Fold the smallest tensor of each encoding alone, in a model of its own, in the last pass."""
        why = "it is too large to be run on both sides"
        if self.asked.max_error is not None:
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
        kind: Literal["exact", "approximate"] = "exact" if self.asked.values == "exact" else "approximate"
        self.verification = Verification(kind, detail=f"{_STORED}; {why}")

    def _folded(self, staged: Path, packed: set[str]) -> None:
        """Raises NotFolded if the graph that onnxruntime runs still decodes one of these tensors."""
        with Scratch() as folder:
            place = folder / "optimised.onnx"
            Session.open(staged, provider=self.execution.provider, writes={"graph": place})
            runs = onnx.load(str(place), load_external_data=False, format="protobuf")
            left = [node.name for node in nodes(runs) if MARK in node.name or HELD in node.name]
        found = [name for name in sorted(packed) if any(_ends_chain(node, name) for node in left)]
        if found:  # nodes of the model's own may be named so, too
            raise NotFolded(found)

    def _run(self, original: Session, packed: Session) -> None:
        """Run both files, and measure how far lossy values move the outputs."""
        collector, ran = FidelityCollector(heads=heads_of(self.model.ir.graph)), list[InputShapes]()
        exact = self.asked.values == "exact"

        def seen(agreed: Agreement) -> None:
            collector.add(agreed.wanted, agreed.got, 1)
            ran.append({name: np.shape(value) for name, value in agreed.feed.items()})

        same = SameBits(signed_zeros=not self.asked.plain_zeros)
        claim = Claim(reference=original, result=packed, tolerance=same if exact else LOSSY,
                      names=("packed model", "model"), hint=REPORT, demand=seen)  # fmt: skip
        try:
            proof = prove(claim, self._cases(original, ran))
        except RandomOutputsError:
            self.verification = Verification(
                "exact", 0.0, 0.0, samples=0, detail=f"{_STORED}; its outputs are random and were not compared"
            )
            return
        if exact:
            self.verification = proof.verification(f"{_RAN}; {_STORED}")
        else:
            self._check_fidelity(collector, proof.runs)

    def _cases(self, original: Session, ran: Sequence[InputShapes]) -> Iterator[Case]:
        """Yield sizes until the model runs, then more random inputs of those sizes. `ran`: shapes that it has run on so
        far."""
        usual = concrete_shapes(self.model, self.options.dims).inputs
        yield from spare_cases(original, sizes_to_try(self.model, usual, self.options.dims))
        yield from (random_case(original, ran[0], seed) for seed in range(1, SEEDS) if ran)

    def _check_fidelity(self, collector: FidelityCollector, runs: int) -> None:
        """Measure how far lossy values move the outputs.

        Raises:
            GateFailed: further than `max_error` allows.
        """
        self.fidelity = collector.result("the model with exact values", "random inputs")
        worst = self.fidelity.worst() if self.fidelity is not None else {}
        error, detail = worst.get("max_rel"), f"values are stored as {self.asked.values}"
        if error is not None:
            detail += f": outputs differ by at most {error:.2g} of the largest element"
        self.verification = Verification("approximate", worst.get("max_abs"), error, samples=runs, detail=detail)
        if self.asked.max_error is not None and (error is None or not error <= self.asked.max_error):
            raise GateFailed(
                f"outputs differ by {'an unknown part' if error is None else f'{error:.3g}'} of the largest element,"
                f" --max-error allows {self.asked.max_error:g}",
                "store values exactly, as float16, or allow more; nothing was written",
            )


_STORED = "every stored tensor decodes to the bits it had"
_RAN = "onnxruntime's outputs equal, bit for bit, those of the model, and no decoding is left in the graph it runs"


def alone(item: Item) -> ir.Model:
    """Return a model with only this tensor, read by one operator."""
    assert item.encoded is not None
    at = ir.Value(name="at", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    shape, kind = ir.Shape(item.row.shape), ir.TensorType(item.tensor.dtype)
    value = ir.Value(name="w", shape=shape, type=kind, const_value=item.tensor)
    output = ir.Value(name="y", shape=ir.Shape([1, *item.row.shape[1:]]), type=kind)
    node = ir.Node("", "Gather", [value, at], outputs=[output])
    graph = ir.Graph([at], [output], nodes=[node], initializers=[value], opset_imports={"": 17}, name="alone")
    chain = after(item.encoded.chain, PASSES - 1)
    assert isinstance(chain, Op)
    writer = Writer(graph, Names([graph]), False, largest=ranges(chain), opset=17)
    writer.write(value, chain, ChainSource(item.row.name, (item.tensor,), item.digest))
    writer.finish()
    return ir.Model(graph, ir_version=8)


def nodes_of(model: ir.Model) -> Counter[tuple[object, ...]]:
    """Return every node but Constants, independent of the order."""
    return Counter(
        (number, node.domain, node.op_type, node.name, _names(node.inputs), _names(node.outputs))
        for number, graph in enumerate(all_graphs(model))
        for node in graph
        if node.op_type != "Constant"
    )  # fmt: skip


def _names(values: Sequence[ir.Value | None]) -> tuple[str, ...]:
    """Return names without trailing empty ones, which may be written or not."""
    names = [(value.name if value is not None else None) or "" for value in values]
    while names and not names[-1]:
        del names[-1]
    return tuple(names)


def _holds_rounded(dtype: ir.DataType, values: str, original: Array, found: Array) -> bool:
    return same_bits(widened(original, dtype, values), found)


def _ends_chain(node: str, tensor: str) -> bool:
    """Return whether a node of that name ends a chain; inlined functions add a prefix. onnxruntime renames the outputs
    where it inserts casts after them."""
    return node.endswith(MARK + tensor) or f"{HELD}{tensor}/" in node
