"""What every test has: measurements for reports that take no time, and few made inputs where nobody asked for any."""

from __future__ import annotations

import os
import time
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


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run or two, whose figures nobody looks at, and no profile."""
    monkeypatch.setattr(speed, "REPORT_SECONDS", 1e-4)
    monkeypatch.setattr(speed, "SLOW_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def quick_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded once in the process of the test: a new one costs more than most tests."""

    def measured(path: Path, provider: str = "cpu", threads: int = 1) -> LoadCost:
        start = time.perf_counter()
        Session.open(path, provider=provider, threads=threads)
        return LoadCost(time.perf_counter() - start, 0.0, None)

    monkeypatch.setattr(proof, "measure_load", measured)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut without data is refitted on the fewest pictures there are, barely fitted to the model."""
    monkeypatch.setattr(prunable, "UNASKED", 0)
    monkeypatch.setattr(prunable, "STEPS_UNASKED", 1)


@pytest.fixture
def fresh_loads(quick_loads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded in a process of their own, as users have it, which also tells the memory."""
    monkeypatch.setattr(proof, "measure_load", measure_load)


# no test asserts on time: the first example of a test may import what the others find loaded
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
