"""Latency, so that two models can be compared on a busy machine: interleaved, paired, with an interval."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.types import Json, Progress, no_progress

Array = np.ndarray[Any, Any]
Run = Callable[[], Any]

WARM_UP = 5
MIN_RUNS, MAX_RUNS = 20, 300
BUDGET_SECONDS = 6.0
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run: `runs` timed runs of `batch` samples on `threads` threads of `provider`."""

    times: Array
    batch: int
    threads: int
    provider: str

    @property
    def median(self) -> float:
        return float(np.median(self.times))

    def to_json(self) -> Json:
        p10, p90 = (float(np.percentile(self.times, q)) for q in (10, 90))
        return {
            "median": self.median,
            "p10": p10,
            "p90": p90,
            "runs": len(self.times),
            "batch": self.batch,
            "threads": self.threads,
            "provider": self.provider,
        }


@dataclass(frozen=True)
class Speedup:
    """How many times faster the model is than the baseline, with a 95 % interval from `low` to `high`."""

    speedup: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        """Whether equal speed is inside the interval."""
        return self.low <= 1 <= self.high

    def words(self) -> str:
        """One sentence that claims no more than was measured."""
        span = f"95 % interval {self.low:.2f} to {self.high:.2f}"
        if self.within_noise:
            return f"no difference in speed beyond the noise of this measurement ({span})"
        if self.speedup >= 1:
            return f"{self.speedup:.2f} times faster than the baseline ({span})"
        return f"slower than the baseline: {self.speedup:.2f} times its speed ({span})"


def measure(
    runs: Mapping[str, Run], count: int | None = None, progress: Progress = no_progress
) -> dict[str, Array]:
    """Times of each function in milliseconds, in rounds: every round runs each once, in alternating order, so
    that drift of the machine falls on all alike. Without `count`: as many rounds as fit about six seconds, at
    least 20 and at most 300. Runs before that warm up caches, threads and allocators."""
    names = list(runs)
    once = sum(_warm_up(runs[name]) for name in names)
    rounds = count or int(np.clip(BUDGET_SECONDS / max(once, 1e-9), MIN_RUNS, MAX_RUNS))
    times: dict[str, list[float]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in progress(range(rounds), "measuring latency", rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                start = time.perf_counter_ns()
                runs[name]()
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    finally:
        if was_enabled:
            gc.enable()
    return {name: np.array(values) for name, values in times.items()}


def _warm_up(run: Run) -> float:
    """Seconds of the fastest of the warm-up runs; a single run where one takes a second or more."""
    best = float("inf")
    for _ in range(WARM_UP):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        if best > 1.0:
            break
    return best


def speedup(model: Sequence[float] | Array, baseline: Sequence[float] | Array, seed: int = 0) -> Speedup:
    """Median over the rounds of (baseline's time / model's time), and a bootstrap interval of that median.

    Rounds are resampled in blocks of about the cube root of their number, because neighbouring rounds share
    the machine's mood (Kuensch, The jackknife and the bootstrap for general stationary observations, 1989).
    """
    ratios = np.asarray(baseline, np.float64) / np.asarray(model, np.float64)
    count = len(ratios)
    block = max(1, round(count ** (1 / 3)))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, count, (RESAMPLES, -(-count // block)))
    index = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    medians = np.median(ratios[index], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    middle = float(np.median(ratios))
    return Speedup(middle, min(float(low), middle), max(float(high), middle))
