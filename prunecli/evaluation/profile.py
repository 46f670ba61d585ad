"""Where the time of a run goes: onnxruntime's time of every operator, and the node of the model that it computes."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.files import Scratch
from prunecli.operators import named
from prunecli.runtime import Session
from prunecli.types import Progress, no_progress

Open = Callable[..., Session]
PROFILE_SECONDS = 1.5
"""Seconds per model."""
MIN_TURNS, MAX_TURNS = 6, 40
IN_A_ROW = 3
WARM_UP = 3
FASTEST = 0.4
"""Share of an operator's runs, the fastest, that is averaged. Other processes only ever add time, and the mean is finer
than the clock's resolution."""
LEAST = 0.1
"""Least share of a measured time that is kept when the cost of timing is subtracted."""
REST = ""
"""Key of operators that belong to no node of the graph, such as layout conversions."""
_SUFFIX = "_kernel_time"
_BLOCKED = "_nchwc"
_FUSED = "fused "
_IN_FLOAT32 = "InsertedPrecisionFreeCast_"
"""Prefix of casts that onnxruntime inserts to compute float16 values in float32."""
_WALK = 8


@dataclass(frozen=True)
class Kernel:
    """One operator of the optimised graph: name, type, and milliseconds per run of the model."""

    name: str
    op: str
    ms: float


def profiles(
    models: Sequence[Any],
    feed: Mapping[str, Any],
    start: Open = Session.open,
    progress: Progress = no_progress,
    seconds: float | None = None,
) -> list[list[Kernel]]:
    """Time every operator of every model.

    The models take turns of a few runs, so that drift of the machine falls on all alike; all are held open.

    Args:
        models: files, or models in memory, as `Session.open` takes them.
        start: as `Session.open`, with its provider and threads.
        seconds: of each model's runs, about; default `PROFILE_SECONDS`, and more where models are slow.
    Raises:
        PruneError: a model does not run on the feed.
    """
    least = MIN_TURNS if seconds is None else 1
    with Scratch() as folder:
        opened = [start(model, writes={"trace": folder / f"trace{n}"}) for n, model in enumerate(models)]
        runs = [session.prepared(feed).run for session in opened]
        once = sum(_warm_up(run) for run in runs)
        allowed = (PROFILE_SECONDS if seconds is None else seconds) * len(runs)
        turns = int(np.clip(allowed / max(IN_A_ROW * once, 1e-9), least, MAX_TURNS))
        for turn in progress(range(turns), "timing layers", turns):
            for run in runs if turn % 2 == 0 else reversed(runs):
                for _ in range(IN_A_ROW):
                    run()
        return [_read(session.end_profile(), turns * IN_A_ROW) for session in opened]


def _warm_up(run: Callable[[], Any]) -> float:
    """Return the seconds of the last of a few runs."""
    for _ in range(WARM_UP):
        begin = time.perf_counter()
        run()
    return time.perf_counter() - begin


def _read(trace: Path, count: int) -> list[Kernel]:
    return _summary(json.loads(trace.read_text(encoding="utf-8")), count)


def _summary(events: list[dict[str, Any]], count: int) -> list[Kernel]:
    """Return the times of the last `count` runs, or of as many as there are. An operator inside a loop counts all its
    iterations."""
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
    """Return the mean of the fastest `FASTEST` of the times."""
    return float(np.mean(np.sort(times)[: max(1, int(FASTEST * len(times)))]))


def net_of_timing(kernels: Sequence[Sequence[Kernel]], ms: float) -> list[list[Kernel]]:
    """Return the times without the cost of timing: the same amount is subtracted from every operator, so that the times
    of the first model sum to `ms`, its time without profiling."""
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
    blocked layout), nodes without a name after their operator and their number. A contraction that has swallowed what
    follows it yields the last value: its own node is found by walking back.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._named: dict[str, ir.Node] = {f"{node.op_type}_{number}": node for number, node in enumerate(graph)}
        for node in graph:
            self._named.update({out.name: node for out in node.outputs if out.name})
        self._named.update({node.name: node for node in graph if node.name})

    def node(self, kernel: Kernel) -> ir.Node | None:
        """Return the node that a kernel computes; None for operators that onnxruntime inserted."""
        name = kernel.name.removeprefix(_FUSED).removeprefix(_IN_FLOAT32).removesuffix(_BLOCKED)
        node = self._named.get(kernel.name) or self._named.get(name) or self._by_beginning(name, kernel.op)
        return _back(node, kernel.op) if node is not None and multiplies(kernel.op) else node

    def _by_beginning(self, name: str, op: str) -> ir.Node | None:
        """Match by prefix: fusions append words of their own after / or _."""
        if op.startswith("Reorder"):
            return None
        while (cut := max(name.rfind("/"), name.rfind("_"))) > 0:
            name = name[:cut]
            if name in self._named:
                return self._named[name]
        return None

    def times(self, kernels: Sequence[Kernel]) -> dict[str, float]:
        """Return milliseconds by node (`key`), and of the rest."""
        out: dict[str, float] = defaultdict(float)
        for kernel in kernels:
            node = self.node(kernel)
            out[REST if node is None else key(node)] += kernel.ms
        return dict(out)


def key(node: ir.Node) -> str:
    """Return a name for a node that is the same in every copy of the graph: that of its first named output."""
    return next((out.name for out in node.outputs if out.name), node.name or "")


def readers(value: ir.Value, steps: int = _WALK) -> Iterator[ir.Node]:
    """Return the nodes that multiply by a stored tensor, directly or through nodes such as DequantizeLinear."""
    for node in {use.node: None for use in value.uses()}:
        if multiplies(node.op_type):
            yield node
        elif steps:
            for output in node.outputs:
                yield from readers(output, steps - 1)


def multiplies(op: str) -> bool:
    """Return whether an operator type, of any domain, has multiply-accumulates."""
    return op in named(lambda operator: operator.macs)


def _back(node: ir.Node, op: str) -> ir.Node:
    """Return the contraction at the start of the nodes that were fused into one operator."""
    plain = op.removeprefix("Fused")
    current, level = [node], 0
    while current and level < _WALK:
        for candidate in current:
            if candidate.op_type.removeprefix("Fused") in (plain, "MatMul" if plain == "Gemm" else plain):
                return candidate
        current = [p for n in current for v in n.inputs if v is not None and (p := v.producer()) is not None]
        level += 1
    return node
