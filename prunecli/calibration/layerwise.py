"""Running a model piece by piece over data, so that weights may change between the pieces.

A layer is fitted on what the layers before it, already changed, really give it. So the model is run only as far as a
value is asked for; what later nodes still need is kept, everything else is let go. Where that does not fit into memory,
the walk stays where it is and makes the values anew, batch by batch, when they are read: early layers of convolutional
networks have outputs many times as large as what is left of them a few nodes later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, TopologicalSortPass

from prunecli.arrays import Array
from prunecli.errors import OutOfMemoryError, PruneError
from prunecli.files import Scratch
from prunecli.model.constants import TRANSPARENT
from prunecli.model.graphs import reads
from prunecli.model.protos import check_room
from prunecli.runtime import Session
from prunecli.storage.stored import unmap

Opener = Callable[..., Session]


def working_form(model: ir.Model) -> ir.Model:
    """A copy that a walk can run: functions inlined, nodes in order, every constant an initializer of its old name."""
    work = model.clone()
    if work.functions:
        InlinePass()(work)
    TopologicalSortPass()(work)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(work)
    work.ir_version = max(work.ir_version or 4, 4)  # initializers that are no inputs
    return work


class Walk:
    """One model on its way through its own graph, on all batches at once.

    Args:
        model: in `working_form`; its initializers are read when the nodes that use them run.
        feeds: the batches; each holds the model's inputs.
        store: where values are kept; walks may share one.
        open_session: as `Session.open`.
        keep: values that stay held once they are reached; by default the model's outputs.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Iterable[Mapping[str, Any]],
        store: Store,
        open_session: Opener = Session.open,
        keep: Iterable[str] | None = None,
    ) -> None:
        self._model = model
        self._store = store
        self._open = open_session
        self._nodes = list(model.graph)
        self._reads = {node: _reads(node) for node in self._nodes}
        self._fixed = self._constants()
        self._moving = set(self._fixed.values())
        self._pending: dict[str, int] = {}
        for node in self._nodes:
            for name in self._reads[node]:
                self._pending[name] = self._pending.get(name, 0) + 1
        self._pinned = {v.name or "" for v in model.graph.outputs} if keep is None else set(keep)
        self._producer = {v.name or "": node for node in self._nodes for v in node.outputs if v.name}
        self._done: set[ir.Node] = set()
        self._protos: dict[ir.Node, tuple[Any, onnx.NodeProto]] = {}
        self._known: set[str] = set()
        self._unheld: dict[str, None] = {}  # reached, and made when they are read
        self._maker: _Piece | None = None
        self._made: tuple[int, dict[str, Any]] = -1, {}
        self._feeds: list[Mapping[str, Any]] = list(feeds)
        self._given = {n for feed in self._feeds[:1] for n in feed if self._pending.get(n) or n in self._pinned}
        self._known |= self._given
        self.batches = len(self._feeds)

    def _constants(self) -> dict[str, ir.Node]:
        """Parameters on their way through Identity, Cast, Transpose and the like, and the nodes that move them. Nothing
        to hold: like an initializer they are part of every piece that reads them."""
        found: dict[str, ir.Node] = {}
        stored = self._model.graph.initializers
        for node in self._nodes:
            fixed = all(name in found or name in stored for name in self._reads[node])
            if fixed and node.op_type in TRANSPARENT and not node.domain:
                found.update((v.name, node) for v in node.outputs if v.name)
        return found

    def reach(self, names: Sequence[str]) -> None:
        """Run as far as these values need. They can be read until `release`, whoever reads them.

        What would not fit into the store's memory is made when it is read, with the weights as they are then: weights
        on which a value depends must not change while it is needed.

        Raises:
            PruneError: a value is unknown or no longer held, or onnxruntime fails.
        """
        new = [name for name in dict.fromkeys(names) if name not in self._known and name not in self._unheld]
        self._forget_made()
        if self._hold([*self._unheld, *new], names):
            self._unheld.clear()
            return
        for name in new:  # what fits by itself, mostly what a layer reads, need not be made again with the others
            if self._unheld or not self._hold([name], names):
                self._unheld[name] = None

    def is_held(self, name: str) -> bool:
        """Whether a value that has been reached takes no work to read."""
        return name not in self._unheld

    def _hold(self, wanted: Sequence[str], asked: Sequence[str]) -> bool:
        """Run as far as these values need; False, and nothing is done, where they do not fit into memory."""
        nodes = self._needed(wanted)
        parts = self._parts(nodes) if nodes else []
        if len(parts) == 1 and not self._run(parts[0], wanted, asked):
            return False
        for part in parts:
            if len(parts) > 1:
                self._run(part, wanted, asked, hold=True)
            self._done.update(node for node in part if node not in self._moving)
            for name in {n for node in part for n in self._reads[node]}:
                self._pending[name] -= sum(name in self._reads[node] for node in part)
                if name not in asked:
                    self.release(name)
        return True

    def _parts(self, nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
        """The nodes in stretches whose weights take about `PART` bytes at most; what moves a parameter is part of every
        stretch that reads it."""
        parts: list[list[ir.Node]] = [[]]
        seen, size = set[str](), 0
        for node in nodes:
            mine = self._stored_behind([node]) - seen
            extra = sum(self._nbytes(name) for name in mine)
            if size + extra > PART and any(each not in self._moving for each in parts[-1]):
                parts.append([])
                mine, size = self._stored_behind([node]), 0
                seen, extra = set(), sum(self._nbytes(name) for name in mine)
            if node not in self._moving:
                parts[-1].append(node)
                seen |= mine
                size += extra
        return [self._with_constants(part) for part in parts] if len(parts) > 1 else [list(nodes)]

    def _stored_behind(self, nodes: Iterable[ir.Node]) -> set[str]:
        """Initializers that nodes read, directly or moved."""
        stack, found = [name for node in nodes for name in self._reads[node]], set[str]()
        while stack:
            name = stack.pop()
            if name in self._fixed:
                stack += self._reads[self._fixed[name]]
            elif name in self._model.graph.initializers:
                found.add(name)
        return found

    def _with_constants(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """The nodes, and those that move the parameters they read, in the graph's order."""
        found, stack = set(nodes), [name for node in nodes for name in self._reads[node]]
        while stack:
            mover = self._fixed.get(stack.pop())
            if mover is not None and mover not in found:
                found.add(mover)
                stack += self._reads[mover]
        return [node for node in self._nodes if node in found]

    def _nbytes(self, name: str) -> int:
        tensor = self._model.graph.initializers[name].const_value
        return 0 if tensor is None else tensor.nbytes

    def release(self, name: str) -> None:
        """Forget a value that no node that is still to run reads; of others, nothing."""
        if name in self._unheld:
            del self._unheld[name]
            self._forget_made()
            return
        if self._pending.get(name) or name in self._pinned:
            return
        for batch in range(self.batches):
            self._store.drop((id(self), name, batch))
        self._known.discard(name)

    def read(self, name: str, batch: int) -> Array:
        """A value that has been reached."""
        if name in self._unheld:
            again: Array = self._made_again(batch)[name]
            return again
        found: Array = self._feeds[batch][name] if name in self._given else self._store.get((id(self), name, batch))
        return found

    def _made_again(self, batch: int) -> dict[str, Any]:
        """What is reached and not held, of one batch; that of the last batch stays."""
        if self._maker is None:
            self._maker = self._piece(self._needed(list(self._unheld)), list(self._unheld))
        if self._made[0] != batch:
            self._made = -1, {}
            self._made = batch, self._maker.run(batch)
        return self._made[1]

    def _forget_made(self) -> None:
        self._maker, self._made = None, (-1, {})

    def arrays(self, name: str) -> Iterator[Array]:
        """The value on every batch."""
        return (self.read(name, batch) for batch in range(self.batches))

    def close(self) -> None:
        """Let go of everything."""
        self._pending, self._pinned = {}, set()
        self._feeds = []
        self._unheld.clear()
        self._forget_made()
        for name in list(self._known):
            self.release(name)

    def _needed(self, names: Sequence[str], hidden: AbstractSet[str] = frozenset()) -> list[ir.Node]:
        """Nodes to run for these values; `hidden` are held, but as if they were not."""
        found: set[ir.Node] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name in self._model.graph.initializers or (name in self._known and name not in hidden):
                continue
            node = self._producer.get(name)
            if node is None or (node in self._done and name not in hidden):
                raise PruneError(f"internal: the value {name!r} is not held", "please report this")
            if node not in found:
                found.add(node)
                stack.extend(self._reads[node])
        return [node for node in self._nodes if node in found]

    def _run(
        self, nodes: Sequence[ir.Node], wanted: Sequence[str], asked: Sequence[str], *, hold: bool = False
    ) -> bool:
        """Hold what these nodes make that is wanted or still to be read, and what is asked for. False, and nothing is
        held, where that is more than fits into memory, by the first batch, and little enough work to do it again for
        each value; with `hold` it is held all the same."""
        left = dict(self._pending)
        for node in nodes:
            for name in self._reads[node]:
                left[name] -= 1
        made = [v.name for node in nodes for v in node.outputs if v.name]
        kept = [n for n in made if n in wanted or n in self._pinned or (left.get(n) and n not in self._fixed)]
        read = {name for node in nodes for name in self._reads[node]} & self._known
        consumed = [name for name in read if not left[name] and name not in {*wanted, *asked, *self._pinned}]
        piece = self._piece(nodes, kept, runs=self.batches)
        light = sum(self._nbytes(name) for name in self._stored_behind(nodes)) <= AGAIN
        for batch, found in enumerate(piece.run_each((batch, {}) for batch in range(self.batches))):
            if batch == 0 and not hold and light and len(nodes) <= MOST_AGAIN:
                freed = sum(self._store.size((id(self), n, every)) for n in consumed for every in range(self.batches))
                if not self._store.fits(sum(_bytes(value) for value in found.values()) * self.batches - freed):
                    return False
            for name in consumed:  # before what takes its place
                self._store.drop((id(self), name, batch))
            for name, value in found.items():
                self._store.put((id(self), name, batch), value)
        self._known.update(kept)
        return True

    def ahead(
        self,
        names: Sequence[str],
        variants: Sequence[Mapping[str, Array]] = ({},),
        batches: Iterable[int] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """What values would be with other contents of some initializers, a dict per variant, batch by batch; the walk
        stays where it is. What is still to run is run, and once more what depends on those initializers and whose
        inputs are held.

        Args:
            variants: contents by initializer; several that change the same ones share a session.
            batches: all by default.
        Raises:
            PruneError: a value can no longer be made (see `moved`), what is still to run has more weights than one
                session takes, or onnxruntime fails.
        """
        hidden = self._behind(set().union(*variants))
        asked = [name for name in dict.fromkeys(names) if name not in self._known or name in hidden]
        nodes = self._needed(asked, hidden)
        if (size := sum(map(self._nbytes, self._stored_behind(nodes)))) > LARGEST:
            problem = f"{size / 2**30:.1f} GiB of weights would have to be run at once, again and again"
            raise PruneError(
                problem, "measure by what needs no run of the whole model: --allocate uniform or predicted"
            )
        alone = variants[0] if len(variants) == 1 else {}  # a constant, which onnxruntime fuses
        numbers = [*(range(self.batches) if batches is None else batches)]
        piece = (
            self._piece(nodes, asked, hidden, contents=alone, free=[] if alone else list(variants[0]),
                        runs=len(numbers) * len(variants))
            if asked
            else None
        )  # fmt: skip
        held = deque[dict[str, Any]]()

        def trials() -> Iterator[tuple[int, Mapping[str, Array]]]:
            for batch in numbers:
                held.append({name: self.read(name, batch) for name in names if name not in asked})
                yield from ((batch, {} if alone else one) for one in variants)

        made = piece.run_each(trials()) if piece else ({} for _ in trials())
        while found := [*islice(made, len(variants))]:
            kept = held.popleft()
            yield [kept | one for one in found]

    def passed(self, source: str, array: Array, names: Sequence[str]) -> dict[str, Any]:
        """What values would be on the first batch if the value `source` were `array`; the walk stays where it is.

        Raises:
            PruneError: something beside `source` that they are made of is no longer held, or onnxruntime fails.
        """
        hidden, moving = set[str](), {source}
        for node in self._nodes:
            if moving.intersection(self._reads[node]):
                hidden.update(v.name for v in node.outputs if v.name)
                moving |= hidden
        asked = [name for name in dict.fromkeys(names) if name in hidden]
        found = self._piece(self._needed(asked, hidden), asked, hidden).run(0, {source: array}) if asked else {}
        return found | {name: array if name == source else self.read(name, 0) for name in names if name not in hidden}

    def moved(self, changed: str, names: Sequence[str]) -> list[str]:
        """Those of the values that depend on an initializer and are still to be made, or can be made again."""
        hidden, moving = self._behind({changed}), {changed}
        for node in self._nodes:
            if (node not in self._done or self._held(node, hidden)) and moving.intersection(self._reads[node]):
                moving.update(v.name for v in node.outputs if v.name)
        return [name for name in names if name in moving and name in self._producer]

    def _behind(self, changed: AbstractSet[str]) -> set[str]:
        """Values that have been run and can be run again, which depend on initializers."""
        hidden: set[str] = set()
        for node in self._nodes if changed else ():
            touched = not (changed | hidden).isdisjoint(self._reads[node])
            if touched and (node in self._moving or (node in self._done and self._held(node, hidden))):
                hidden.update(v.name or "" for v in node.outputs)
        return hidden

    def _held(self, node: ir.Node, hidden: AbstractSet[str]) -> bool:
        known = (self._known, hidden, self._model.graph.initializers, self._fixed)
        return all(any(name in some for some in known) for name in self._reads[node])

    def _piece(
        self,
        nodes: Sequence[ir.Node],
        outputs: Sequence[str],
        hidden: AbstractSet[str] = frozenset(),
        contents: Mapping[str, Array] | None = None,
        free: Sequence[str] = (),
        runs: int = 1,
    ) -> _Piece:
        """These nodes as a model of their own, in a session for so many runs. Initializers in `contents` hold something
        else, those in `free` become inputs, and so does what is held and not hidden."""
        read = list(dict.fromkeys(n for node in nodes for n in self._reads[node] if n in self._known - hidden))
        initializers, model = self._model.graph.initializers, self._empty()
        graph = model.graph
        graph.node.extend(self._proto(node) for node in nodes)
        for name in dict.fromkeys(n for node in nodes for n in _reads(node)):  # as they are now
            if name not in initializers or name in read:
                continue
            tensor = initializers[name].const_value
            assert tensor is not None
            if name in free:
                graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy()))
                continue
            if tensor.dtype == ir.DataType.STRING:  # names of classes
                graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy().astype(object), name))
                continue
            array = (contents or {}).get(name)
            _store(graph, ir.Tensor(tensor.numpy() if array is None else array, dtype=tensor.dtype, name=name))
            unmap(tensor)
        graph.input.extend(self._typed(name) for name in read)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        try:
            session = self._open(model, mode="float weights", runs=runs)
        except OutOfMemoryError:
            raise
        except PruneError:  # of Attention onnxruntime guesses a wrong shape where the width of its input is not stated
            for stated in graph.input:
                dims = stated.type.tensor_type.shape.dim
                if stated.name in read and dims:
                    dims[-1].dim_value = self.read(stated.name, 0).shape[-1]
            session = self._open(model, mode="float weights", runs=runs)
        return _Piece(self, read, list(outputs), session=session)

    def _empty(self) -> onnx.ModelProto:
        model = onnx.ModelProto(ir_version=self._model.ir_version)
        model.graph.name = "piece"
        for domain, version in self._model.opset_imports.items():
            model.opset_import.append(onnx.helper.make_opsetid(domain, version))
        return model

    def _proto(self, node: ir.Node) -> onnx.NodeProto:
        """A node in serialised form, made once unless its inputs have been replaced since."""
        names = tuple(value.name if value is not None else "" for value in node.inputs)
        if self._protos.get(node, (None, None))[0] != names:
            self._protos[node] = names, ir.serde.serialize_node(node)  # ten times as fast as `ir.to_proto`
        return self._protos[node][1]

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        value = self.read(name, 0)
        if not isinstance(value, np.ndarray):
            raise PruneError(f"{name} is no tensor, and a layer behind it cannot be measured", "exclude that layer")
        dtype = ir.DataType.STRING if value.dtype.kind in "OUS" else ir.DataType.from_numpy(value.dtype)
        return onnx.helper.make_tensor_value_info(name, dtype.value, [None] * value.ndim)


@dataclass(frozen=True)
class _Piece:
    """Some nodes of a walk in a session, which reads what the walk holds."""

    walk: Walk
    reads: list[str]
    makes: list[str]
    session: Session

    def run(self, batch: int, given: Mapping[str, Array] | None = None) -> dict[str, Any]:
        return self.session.run(self._feed(batch, given or {}), self.makes)

    def run_each(self, asked: Iterable[tuple[int, Mapping[str, Array]]]) -> Iterator[dict[str, Any]]:
        """As `run`, one after the other; what is read is read before."""
        return self.session.run_each((self._feed(*one) for one in asked), self.makes)

    def _feed(self, batch: int, given: Mapping[str, Array]) -> dict[str, Array]:
        return {**{name: np.asarray(self.walk.read(name, batch)) for name in self.reads}, **given}


def _store(graph: onnx.GraphProto, tensor: ir.TensorProtocol) -> None:
    """Add an initializer, with no more copies of its bytes than protobuf needs."""
    content = tensor.tobytes()
    check_room(len(content))
    dims = tensor.shape.numpy()
    graph.initializer.add(name=tensor.name, data_type=tensor.dtype.value, dims=dims, raw_data=content)


def _reads(node: ir.Node) -> list[str]:
    return [value.name or "" for value in reads(node)]


LIMIT = 512 << 20
"""Bytes of arrays in memory, unless something else is asked for."""
MOST_AGAIN = 64
"""Nodes that are run again for each value that is read, rather than what they make held in files."""
AGAIN = 32 << 20
"""Bytes of their weights up to which they are: to read a file takes less time than products with large matrices."""
PART = 256 << 20
"""Bytes of weights in a session, where one node does not have more."""
LARGEST = (1 << 31) - (1 << 26)
"""Bytes of weights that fit into one session with what is beside them; protobuf ends at 2 GiB."""


def _bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) and value.dtype != object else 0


class Store:
    """Arrays by key. What does not fit into `limit` bytes when it is put lies in a file and is mapped when read.

    Use as a context manager: the files go with it. A thing that is no array (text, sequences) stays in memory.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.held = 0
        self.spilled = 0
        self._arrays: dict[Hashable, Any] = {}
        self._sizes: dict[Hashable, int] = {}
        self._files: dict[Hashable, Path] = {}
        self._folder: Scratch | None = None
        self._serial = 0

    def fits(self, size: int) -> bool:
        """Whether so many bytes more are within the limit."""
        return self.held + size <= self.limit

    def size(self, key: Hashable) -> int:
        """Bytes in memory that dropping it frees."""
        return self._sizes.get(key, 0)

    def put(self, key: Hashable, value: Any) -> None:
        self.drop(key)
        size = _bytes(value)
        if size and not self.fits(size):
            self._files[key] = self._write(value)
            self.spilled += size
        else:
            self._arrays[key] = value
            self._sizes[key] = size
            self.held += size

    def _write(self, value: Array) -> Path:
        if self._folder is None:
            self._folder = Scratch()
        self._serial += 1
        path = self._folder.path / f"{self._serial}.npy"
        carrier = value if value.dtype.isbuiltin else value.view(f"u{value.dtype.itemsize}")  # bfloat16
        np.save(path, carrier, allow_pickle=False)
        self._arrays[path] = value.dtype
        return path

    def get(self, key: Hashable) -> Any:
        """Raises KeyError if there is none."""
        if key in self._files:
            path = self._files[key]
            return np.load(path, mmap_mode="r", allow_pickle=False).view(self._arrays[path])
        return self._arrays[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays or key in self._files

    def drop(self, key: Hashable) -> None:
        """Forget it, if it is there."""
        if key in self._files:
            path = self._files.pop(key)
            del self._arrays[path]
            path.unlink(missing_ok=True)
        elif key in self._arrays:
            del self._arrays[key]
            self.held -= self._sizes.pop(key)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arrays.clear()
        self._sizes.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.close()
