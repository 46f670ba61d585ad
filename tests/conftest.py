"""What every test has: measurements for reports that take no time, and few made inputs where nobody asked for any."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # before anything asks for the cores: threads of several processes that wait for each other in loops take
    # five times as long as one thread each
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

from prunecli.evaluation import speed
from prunecli.packing import proof
from prunecli.packing.load_cost import LoadCost, measure_load
from prunecli.runtime import Session
from prunecli.structures import prunable


def pytest_collection_finish() -> None:
    """The collected tests stay until the end: the garbage collector need not look through them again and again."""
    gc.collect()
    gc.freeze()


def loaded_here(path: Path, provider: str = "cpu", threads: int = 1) -> LoadCost:
    """The cost of loading a model once in the process of the test: a new one costs more than most tests."""
    start = time.perf_counter()
    Session.open(path, provider=provider, threads=threads)
    return LoadCost(time.perf_counter() - start, 0.0, None)


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """Runs are timed once or twice, since nobody looks at the figures, and not profiled; models are loaded in this process;
    a cut without data is refitted on the fewest pictures there are, barely fitted to the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "REPORT_SECONDS", 1e-4)
        patch.setattr(speed, "SLOW_SECONDS", 0.0)
        patch.setattr(proof, "measure_load", loaded_here)
        patch.setattr(prunable, "UNASKED", 0)
        patch.setattr(prunable, "STEPS_UNASKED", 1)
        yield


@pytest.fixture
def fresh_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded in a process of their own, as users have it, which also tells the memory."""
    monkeypatch.setattr(proof, "measure_load", measure_load)


# no test asserts on time: the first example of a test may import what the others find loaded
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
