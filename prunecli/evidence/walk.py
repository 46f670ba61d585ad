"""Running a model piece by piece over data, so that weights may change between the pieces.

A layer is fitted on what the layers before it, already changed, really give it. So the model is run only as far as a
value is asked for; what later nodes still need is kept, everything else is let go. A walk over a network of L layers
runs every node once, however many values are asked for on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, TopologicalSortPass

from prunecli.errors import PruneError
from prunecli.evidence.store import Store
from prunecli.model.graphs import subgraphs
from prunecli.runtime import Session

Array = np.ndarray[Any, Any]
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
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Iterable[Mapping[str, Any]],
        store: Store,
        open_session: Opener = Session.open,
    ) -> None:
        self._model = model
        self._store = store
        self._open = open_session
        self._nodes = list(model.graph)
        self._reads = {node: _reads(node) for node in self._nodes}
        self._pending: dict[str, int] = {}
        for node in self._nodes:
            for name in self._reads[node]:
                self._pending[name] = self._pending.get(name, 0) + 1
        self._pinned = {v.name or "" for v in model.graph.outputs}
        self._producer = {v.name or "": node for node in self._nodes for v in node.outputs if v.name}
        self._done: set[ir.Node] = set()
        self._protos: dict[ir.Node, tuple[Any, onnx.NodeProto]] = {}
        self._known: set[str] = set()
        self.batches = self._feed(feeds)

    def _feed(self, feeds: Iterable[Mapping[str, Any]]) -> int:
        count = 0
        for count, feed in enumerate(feeds, 1):
            for name, value in feed.items():
                if self._pending.get(name) or name in self._pinned:
                    self._store.put((id(self), name, count - 1), value)
                    self._known.add(name)
        return count

    def reach(self, names: Sequence[str]) -> None:
        """Run as far as these values need. They stay held until `release`, whoever reads them.

        Raises:
            PruneError: a value is unknown or no longer held, or onnxruntime fails.
        """
        wanted = [name for name in dict.fromkeys(names) if name not in self._known]
        nodes = self._needed(wanted)
        if not nodes:
            return
        self._run(nodes, wanted)
        self._done.update(nodes)
        for name in {n for node in nodes for n in self._reads[node]}:
            self._pending[name] -= sum(name in self._reads[node] for node in nodes)
            if name not in names:
                self.release(name)

    def release(self, name: str) -> None:
        """Forget a value that no node that is still to run reads; of others, nothing."""
        if self._pending.get(name) or name in self._pinned:
            return
        for batch in range(self.batches):
            self._store.drop((id(self), name, batch))
        self._known.discard(name)

    def read(self, name: str, batch: int) -> Array:
        """A value that has been reached."""
        found: Array = self._store.get((id(self), name, batch))
        return found

    def arrays(self, name: str) -> Iterator[Array]:
        """The value on every batch."""
        return (self.read(name, batch) for batch in range(self.batches))

    def finish(self) -> None:
        """Reach the model's outputs."""
        self.reach(sorted(self._pinned))

    def close(self) -> None:
        """Let go of everything."""
        self._pending, self._pinned = {}, set()
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

    def _run(self, nodes: Sequence[ir.Node], wanted: Sequence[str]) -> None:
        inside = set(nodes)
        left = dict(self._pending)
        for node in nodes:
            for name in self._reads[node]:
                left[name] -= 1
        made = [v.name for node in nodes for v in node.outputs if v.name]
        kept = [n for n in made if n in wanted or n in self._pinned or left.get(n)]
        read = dict.fromkeys(n for node in nodes for n in self._reads[node] if n in self._known)
        session = self._open(self._piece(inside, list(read), kept))
        for batch in range(self.batches):
            found = session.run({name: np.asarray(self.read(name, batch)) for name in read}, kept)
            for name, value in found.items():
                self._store.put((id(self), name, batch), value)
        self._known.update(kept)

    def _piece(
        self, nodes: set[ir.Node], inputs: Sequence[str], outputs: Sequence[str], changed: str | None = None,
        contents: Mapping[str, Array] | None = None,
    ) -> bytes:  # fmt: skip
        """A model of these nodes alone, serialised; the initializer `changed` becomes an input, those in `contents`
        hold something else."""
        initializers = self._model.graph.initializers
        graph = onnx.GraphProto(name="piece")
        for node in self._nodes:
            if node in nodes:
                graph.node.append(self._proto(node))
        for name in dict.fromkeys(n for node in self._nodes if node in nodes for n in _reads(node)):  # as they are now
            if name in initializers and name not in inputs:
                tensor = initializers[name].const_value
                assert tensor is not None
                if name == changed:
                    typed = onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
                    graph.input.append(typed)
                    continue
                array = tensor.numpy() if contents is None or name not in contents else contents[name]
                proto = ir.to_proto(ir.Tensor(array, dtype=tensor.dtype, name=name))
                graph.initializer.append(proto)
        graph.input.extend(self._typed(name) for name in inputs)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        model = onnx.ModelProto(ir_version=self._model.ir_version, graph=graph)
        for domain, version in self._model.opset_imports.items():
            model.opset_import.append(onnx.helper.make_opsetid(domain, version))
        try:
            return bytes(model.SerializeToString())
        except Exception as error:  # protobuf raises its own kinds, by implementation
            raise PruneError("a layer is over 2 GB", "leave it out with --exclude") from error

    def ahead(self, names: Sequence[str], contents: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """Values on every batch, computed from those held with other contents of some initializers, which only nodes
        that are still to run read; the walk stays where it is.

        Raises:
            PruneError: a node that is needed has run already, or onnxruntime fails.
        """
        nodes = self._needed(names)
        read = dict.fromkeys(n for node in nodes for n in self._reads[node] if n in self._known)
        asked = [name for name in dict.fromkeys(names) if name not in self._known]
        session = self._open(self._piece(set(nodes), list(read), asked, contents=contents)) if asked else None
        for batch in range(self.batches):
            feed = {name: np.asarray(self.read(name, batch)) for name in read}
            found = session.run(feed, asked) if session is not None else {}
            yield {name: found[name] if name in found else self.read(name, batch) for name in names}

    def probe(
        self, changed: str, variants: Sequence[Array], outputs: Sequence[str], batch: int = 0
    ) -> list[dict[str, Any]]:
        """What those of the values `outputs` that depend on the initializer `changed` would be on one batch with each
        of `variants` in its place. What is still to run is run, and once more what depends on `changed` and whose
        inputs are held; the walk stays where it is. A value that can no longer be made is left out."""
        hidden = self._behind(changed)
        outputs = self._moving(changed, hidden, outputs)
        if not outputs:
            return [{} for _ in variants]
        nodes = self._needed(outputs, hidden)
        read = dict.fromkeys(n for node in nodes for n in self._reads[node] if n in self._known - hidden)
        session = self._open(self._piece(set(nodes), list(read), outputs, changed))
        feed = {name: np.asarray(self.read(name, batch)) for name in read}
        return [session.run({**feed, changed: variant}, outputs) for variant in variants]

    def outlook(self, outputs: Sequence[str], batch: int = 0) -> dict[str, Array]:
        """Those of the values `outputs`, none of them held, that are numbers, on one batch; the walk stays where it
        is."""
        if not outputs:
            return {}
        nodes = self._needed(outputs)
        read = dict.fromkeys(n for node in nodes for n in self._reads[node] if n in self._known)
        session = self._open(self._piece(set(nodes), list(read), outputs))
        found = session.run({name: np.asarray(self.read(name, batch)) for name in read}, outputs)
        return {n: v for n, v in found.items() if isinstance(v, np.ndarray) and v.dtype.kind not in "OUS"}

    def _moving(self, changed: str, hidden: AbstractSet[str], outputs: Sequence[str]) -> list[str]:
        """Those of the outputs that depend on an initializer and are still to be made, or can be made again."""
        moving = {changed}
        for node in self._nodes:
            if (node not in self._done or self._held(node, hidden)) and moving.intersection(self._reads[node]):
                moving.update(v.name for v in node.outputs if v.name)
        return [name for name in outputs if name in moving and name in self._producer]

    def _behind(self, changed: str) -> set[str]:
        """Values that have been run and can be run again, which depend on an initializer."""
        hidden: set[str] = set()
        for node in self._nodes:
            touched = changed in self._reads[node] or hidden.intersection(self._reads[node])
            if node in self._done and touched and self._held(node, hidden):
                hidden.update(v.name or "" for v in node.outputs)
        return hidden

    def _held(self, node: ir.Node, hidden: AbstractSet[str]) -> bool:
        known = (self._known, hidden, self._model.graph.initializers)
        return all(any(name in some for some in known) for name in self._reads[node])

    def _proto(self, node: ir.Node) -> onnx.NodeProto:
        """A node in serialised form, made once unless its inputs have been replaced since."""
        names = tuple(value.name if value is not None else "" for value in node.inputs)
        if self._protos.get(node, (None, None))[0] != names:
            self._protos[node] = names, ir.to_proto(node)
        return self._protos[node][1]

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        value = self.read(name, 0)
        if not isinstance(value, np.ndarray):
            raise PruneError(f"{name} is no tensor, and a layer behind it cannot be measured", "exclude that layer")
        dtype = ir.DataType.STRING if value.dtype.kind in "OUS" else ir.DataType.from_numpy(value.dtype)
        return onnx.helper.make_tensor_value_info(name, dtype.value, [None] * value.ndim)


def _reads(node: ir.Node) -> list[str]:
    """Names of the values the node needs, those that its sub-graphs take from outside included; each once."""
    names = [v.name for v in node.inputs if v is not None and v.name]
    for graph in subgraphs(node):
        names += _captured(graph)
    return list(dict.fromkeys(names))


def _captured(graph: ir.Graph) -> list[str]:
    own = {v.name for v in (*graph.inputs, *graph.initializers.values())}
    own |= {v.name for node in graph for v in node.outputs}
    used = [name for node in graph for name in _reads(node)]
    used += [v.name for v in graph.outputs if v.name]
    return [name for name in used if name not in own]
