"""Models whose ratio of times is known by construction, and a busy machine: for what tests the clock."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

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


def repeated(run: PreparedRun, times: int) -> PreparedRun:
    """A run that does the work of `run` so many times, what every run costs besides its layers included: a chain of
    twice the layers takes less than twice as long."""

    def several() -> Any:
        for _ in range(times):
            found = run.run()
        return found

    again = run.again
    return PreparedRun(several, None if again is None else lambda: repeated(again(), times), run.seconds)


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
