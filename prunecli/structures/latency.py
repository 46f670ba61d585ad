"""A table of latencies per layer and width, measured in onnxruntime, that predicts the latency of any cut.

The model is cut evenly to a few widths, and at each of them every layer is timed where it stands: fused, in its
real layout, on the threads that will run it. What a layer takes at other widths is interpolated over the share of
its work that remains, which is the product of the kept fractions of the axes it depends on. Widths are multiples
of the blocks in which onnxruntime computes convolutions, because those in between save nothing.
"""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from prunecli.dependency.analysis import Analysis
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.dependency.costs import Costs, costs
from prunecli.files import Scratch
from prunecli.runtime import Session
from prunecli.types import Progress, no_progress

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Fractions of every group that are measured."""
NARROW = 2
"""Groups of no more than a block of channels are cut in so many steps."""
NANOSECONDS = 1e6


@dataclass
class LatencyTable:
    """Implements `Costing` of `prunecli.structures.choose`, with the amount `latency` in nanoseconds.

    `points`: by layer (`latency_profile.key`), (share of its work that remains, milliseconds). `axes`: by layer, the
    axes (representatives in the atom table) to which its work is proportional.
    """

    catalogue: Catalogue
    block: int
    base: Costs = field(init=False)
    axes: dict[str, tuple[int, ...]] = field(init=False)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _curves: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = costs(self.catalogue.analysis)
        self.axes = _axes_of_layers(self.catalogue.analysis)

    def multiple(self, group: Group) -> int:
        """The step of a group's widths, in units."""
        if group.kind not in ("channel", "width"):
            return 1
        step = max(1, self.block // max(group.per_unit))
        return step if group.count > step else max(1, group.count // NARROW)

    def learn(self, times: Mapping[str, float], kept: Array) -> None:
        """Add what was measured with `kept` positions left on each axis. A layer without a time of its own there was
        swallowed by another one: it took none."""
        for name in {*times, *self.points}:
            point = self.share(name, kept), times.get(name, 0.0)
            self.points.setdefault(name, []).append(point)
        self._curves = {name: _curve(points) for name, points in self.points.items()}

    def share(self, name: str, kept: Array) -> float:
        """Of a layer's work: the product of the kept fractions; of the rest: as of all work together."""
        fraction = self.base.fraction(kept)
        if name == REST or name not in self.axes:
            whole = self.base.of(self.base.sizes)["macs"]
            return self.base.of(kept)["macs"] / whole if whole else 1.0
        return float(fraction[list(self.axes[name])].prod())

    def of(self, kept: Array) -> dict[str, int]:
        """Parameters, multiply-accumulates, and the predicted latency in nanoseconds."""
        total = sum(float(np.interp(self.share(name, kept), *curve)) for name, curve in self._curves.items())
        return {**self.base.of(kept), "latency": round(total * NANOSECONDS)}


def _axes_of_layers(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    """Contractions: the axes of their work; other operators: those of their first output."""
    table = analysis.components.table
    shown: dict[str, list[int]] = {}
    for number, axis in enumerate(table.axes):
        if axis.value is not None and axis.value.name and axis.value.producer() is not None:
            shown.setdefault(axis.value.name, []).append(table.find(number))
    out = {key(node): tuple(shown.get(key(node), ())) for node in analysis.model.graph}
    out.update({key(work.node): tuple(table.find(axis) for axis in work.axes) for work in analysis.work})
    return out


def _curve(points: Sequence[tuple[float, float]]) -> tuple[Array, Array]:
    """Milliseconds over shares, never falling: measurements at one share are averaged, those that contradict the
    order are pooled half way, and nothing takes no time."""
    shares = np.array(sorted({share for share, _ in points}))
    times = np.array([np.mean([ms for other, ms in points if other == share]) for share in shares])
    up = np.maximum.accumulate(times)
    down = np.minimum.accumulate(times[::-1])[::-1]
    return np.append(0.0, shares), np.append(0.0, (up + down) / 2)


def even_cut(catalogue: Catalogue, table: LatencyTable, allowed: Mask, share: float) -> Mask:
    """A mask over units that leaves about `share` of every allowed group: which ones does not matter to the clock."""
    removed = np.zeros(catalogue.count, bool)
    for group in (g for g, wanted in zip(catalogue.groups, allowed, strict=True) if wanted):
        step = table.multiple(group)
        stay = min(group.count, max(1, -(-round(share * group.count) // step) * step))
        removed[group.first + stay : group.units.stop] = True
    return removed


Open = Callable[..., Session]
SECONDS = 1.5
"""Per model."""
MIN_TURNS, MAX_TURNS = 6, 40
IN_A_ROW = 3
WARM_UP = 3
FASTEST = 0.4
"""Of an operator's runs the fastest count: other processes only ever add time. Their mean is finer than the clock."""
LEAST = 0.1
"""Of a timed operator's milliseconds, whatever the timing of it costs."""
REST = ""
"""The key of operators that belong to no node of the graph: reordering of layouts."""
CONTRACTIONS = (
    "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "LSTM", "GRU", "RNN",
    "Attention", "MultiHeadAttention", "GroupQueryAttention",
)  # fmt: skip
_SUFFIX = "_kernel_time"
_BLOCKED = "_nchwc"
_FUSED = "fused "
_WALK = 8


@dataclass(frozen=True)
class Kernel:
    """One operator of the optimised graph: its name and type there, milliseconds per run of the model."""

    name: str
    op: str
    ms: float


def profiles(
    models: Sequence[ir.Model], feed: Mapping[str, Any], start: Open = Session.open, progress: Progress = no_progress
) -> list[list[Kernel]]:
    """Time every operator of every model.

    The models take turns of a few runs, so that drift of the machine falls on all alike; all are held open.

    Args:
        start: as `Session.open`, with its provider and threads.
    Raises:
        PruneError: a model does not run on the feed.
    """
    with Scratch() as folder:
        opened = [start(model, profile=folder / f"trace{n}") for n, model in enumerate(models)]
        runs = [session.prepared(feed) for session in opened]
        once = sum(_warm_up(run) for run in runs)
        turns = int(np.clip(SECONDS * len(runs) / max(IN_A_ROW * once, 1e-9), MIN_TURNS, MAX_TURNS))
        for turn in progress(range(turns), "timing layers", turns):
            for run in runs if turn % 2 == 0 else reversed(runs):
                for _ in range(IN_A_ROW):
                    run()
        return [_read(session.end_profile(), turns * IN_A_ROW) for session in opened]


def _warm_up(run: Callable[[], Any]) -> float:
    """Seconds of the last of a few runs."""
    for _ in range(WARM_UP):
        begin = time.perf_counter()
        run()
    return time.perf_counter() - begin


def _read(trace: Path, count: int) -> list[Kernel]:
    return _summary(json.loads(trace.read_text(encoding="utf-8")), count)


def _summary(events: list[dict[str, Any]], count: int) -> list[Kernel]:
    """The last `count` runs, or as many as there are; an operator inside a loop counts all its turns."""
    kernels: dict[tuple[str, str], list[float]] = defaultdict(list)
    begins = sorted(e["ts"] for e in events if e.get("name") == "model_run")[-count:]
    begin, count = begins[0], len(begins)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_SUFFIX) and event["ts"] >= begin:
            kernels[name.removesuffix(_SUFFIX), event.get("args", {}).get("op_name", "")].append(event["dur"])
    return [
        Kernel(name, op, _fastest(times) * max(1, round(len(times) / count)) / 1e3)
        for (name, op), times in kernels.items()
    ]


def _fastest(times: Sequence[float]) -> float:
    """The mean of the fastest part."""
    return float(np.mean(np.sort(times)[: max(1, int(FASTEST * len(times)))]))


def net_of_timing(kernels: Sequence[Sequence[Kernel]], ms: float) -> list[list[Kernel]]:
    """The same without what the timing of an operator adds: so much from each that those of the first model sum up
    to `ms`, the time of a run of it that is not profiled."""
    times = np.array([kernel.ms for kernel in kernels[0]])
    low, high = 0.0, float(times.max(initial=0.0))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _less(times, middle).sum() > ms else (low, middle)
    return [[replace(k, ms=float(_less(k.ms, low))) for k in own] for own in kernels]


def _less(ms: Any, overhead: float) -> Any:
    return np.maximum(ms - overhead, LEAST * np.asarray(ms))


class Attribution:
    """Finds the node of the original graph that a kernel computes.

    Optimised nodes are named after the node they come from, or after the value they yield (with a suffix for the
    blocked layout). A contraction that has swallowed what follows it yields the last value: its own node is found
    by walking back.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._named: dict[str, ir.Node] = {}
        for node in graph:
            self._named.update({out.name: node for out in node.outputs if out.name})
        self._named.update({node.name: node for node in graph if node.name})

    def node(self, kernel: Kernel) -> ir.Node | None:
        """None for what onnxruntime put in."""
        name = kernel.name.removeprefix(_FUSED).removesuffix(_BLOCKED)
        node = self._named.get(kernel.name) or self._named.get(name) or self._by_beginning(name, kernel.op)
        return _back(node, kernel.op) if node is not None and kernel.op in CONTRACTIONS else node

    def _by_beginning(self, name: str, op: str) -> ir.Node | None:
        """Fusions append words of their own, after / or _."""
        if op.startswith("Reorder"):
            return None
        while (cut := max(name.rfind("/"), name.rfind("_"))) > 0:
            name = name[:cut]
            if name in self._named:
                return self._named[name]
        return None

    def times(self, kernels: Sequence[Kernel]) -> dict[str, float]:
        """Milliseconds by node (`key`), and of the rest."""
        out: dict[str, float] = defaultdict(float)
        for kernel in kernels:
            node = self.node(kernel)
            out[REST if node is None else key(node)] += kernel.ms
        return dict(out)


def key(node: ir.Node) -> str:
    """A name that a node has in every copy of the graph: that of its first named output."""
    return next((out.name for out in node.outputs if out.name), node.name or "")


def _back(node: ir.Node, op: str) -> ir.Node:
    """The contraction at the beginning of what was fused into one operator."""
    plain = op.removeprefix("Fused")
    current, level = [node], 0
    while current and level < _WALK:
        for candidate in current:
            if candidate.op_type.removeprefix("Fused") in (plain, "MatMul" if plain == "Gemm" else plain):
                return candidate
        current = [p for n in current for v in n.inputs if v is not None and (p := v.producer()) is not None]
        level += 1
    return node


@functools.cache
def channel_block() -> int:
    """Channels per block of onnxruntime's convolutions on this CPU: widths in between cost as much as the next
    multiple. Read off a small optimised graph; 1 where it does not block."""
    weight = numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with Scratch() as folder:
        path = folder / "optimised.onnx"
        Session.open(model.SerializeToString(), optimised=path)
        stored = [tensor.dims[0] for tensor in onnx.load(path, format="protobuf").graph.initializer]
    return max(stored) if stored and max(stored) > 4 else 1
