"""Whether the measured speed-up holds on a busy machine: models whose ratio is known by construction, beside processes
that burn CPU time and memory bandwidth.

    python benchmarks/clock.py [--times 20] [--seconds 1.5] [--threads 1] [--loads none,cpu,memory,both]

A model of k equal blocks that share one weight takes about k times as long as one block: a run has a constant part, so
the truth is also taken from the median of all measurements. Each measurement opens both models anew. Printed: how many
measurements were told, and how many intervals hold the truth.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from common import parser, show
from onnx import TensorProto, helper, numpy_helper

from prunecli.evaluation.latency import TimedPair, TimingOptions, measure_pair
from prunecli.runtime import PreparedRun, Session

MEMORY_BYTES = 1 << 27
"""Of each array that the memory load copies: more than the caches hold."""


def chain(op: str, blocks: int, size: int, threads: int) -> PreparedRun:
    """A run of so many equal layers in a row, all of one weight."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{k}" for k in range(blocks))]
    if op == "Conv":
        weight, shape = rng.standard_normal((size, size, 3, 3)) / (3 * size**0.5), [1, size, 16, 16]
        nodes = [helper.make_node("Conv", [a, "w"], [b], pads=[1] * 4) for a, b in pairwise(names)]
    else:
        weight, shape = rng.standard_normal((size, size)) / size**0.5, [1, size]
        nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight.astype(np.float32), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = Session.open(model.SerializeToString(), threads=threads)
    return session.prepared(session.random_inputs())


# operator, size, blocks of the model and of the baseline
CASES = [
    ("Conv", 32, 8, 8),
    ("Conv", 32, 8, 14),
    ("Conv", 32, 10, 11),
    ("MatMul", 1024, 4, 7),
    ("MatMul", 4096, 2, 4),
]


def burn(stop: Any, parent: int, memory: bool) -> None:
    source = np.ones(MEMORY_BYTES // 8 if memory else 1 << 12)
    target = np.empty_like(source)
    while not stop.is_set() and os.getppid() == parent:
        for _ in range(1 if memory else 1000):
            np.copyto(target, source) if memory else np.sin(source, out=target)


@contextmanager
def load(kind: str, processes: int) -> Iterator[None]:
    """Processes beside: half of them burn CPU time and half memory bandwidth where both are asked for."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    kinds = {"none": [], "cpu": [False], "memory": [True], "both": [False, True]}[kind]
    which = [kinds[k % len(kinds)] for k in range(processes)] if kinds else []
    others = [context.Process(target=burn, args=(stop, os.getpid(), memory), daemon=True) for memory in which]
    for other in others:
        other.start()
    time.sleep(1 if others else 0)
    try:
        yield
    finally:
        stop.set()
        for other in others:
            other.join(10)
            other.kill()


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--times", type=int, default=20)
    options.add_argument("--seconds", type=float, default=1.5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--loads", default="none,cpu,memory,both")
    options.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 1))
    asked = options.parse_args()
    found: dict[tuple[str, int, float], dict[str, list[TimedPair]]] = {}
    for kind in asked.loads.split(","):
        with load(kind, asked.processes):
            for op, size, fewer, more in CASES:
                how = TimingOptions(asked.threads, "CPUExecutionProvider", seconds=asked.seconds)
                pairs = [
                    measure_pair(chain(op, fewer, size, asked.threads), chain(op, more, size, asked.threads), how)
                    for _ in range(asked.times)
                ]
                found.setdefault((op, size, more / fewer), {})[kind] = pairs
                print(kind, op, size, more / fewer, [round(pair.gain.speedup, 3) for pair in pairs], flush=True)
    rows = [row for case, kinds in found.items() for row in described(case, kinds)]
    head = ("model", "built", "measured", "load", "ratios", "high/low", "told", "built inside", "measured inside")
    show(f"{asked.times} measurements of {asked.seconds:g} s each on {asked.threads} threads; load average at the end"
         f" {os.getloadavg()[0]:.1f}", head, rows)  # fmt: skip


def described(case: tuple[str, int, float], kinds: dict[str, list[TimedPair]]) -> Iterator[list[object]]:
    """One row per load. The truth as built, and as measured: the median over all measurements, whatever the load."""
    op, size, built = case
    measured = float(np.median([pair.gain.speedup for pairs in kinds.values() for pair in pairs]))
    for kind, pairs in kinds.items():
        gains = [pair.gain for pair in pairs]
        inside = [sum(gain.low <= truth <= gain.high for gain in gains) for truth in (built, measured)]
        ratios = [gain.speedup for gain in gains]
        yield [f"{op} {size}", built, measured, kind, f"{min(ratios):.3f} to {max(ratios):.3f}",
               float(np.median([gain.high / gain.low for gain in gains])), sum(not gain.reason for gain in gains),
               *inside]  # fmt: skip


if __name__ == "__main__":
    main()
