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
REPEATS = 3
MIN_RUNS, MAX_RUNS = 20, 300
BUDGET_SECONDS = 6.0
RESAMPLES = 2000
CONFIDENCE = 0.95
QUARTILE = 0.25
PLACEMENT = 1.02
BUSY = 3.0


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

    @property
    def disturbed(self) -> bool:
        """Whether the times spread so widely that other work on the machine must have interfered."""
        low, high = np.percentile(self.times, [10, 90])
        return bool(high > BUSY * low)

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


def measure(runs: Mapping[str, Run], count: int | None = None, progress: Progress = no_progress) -> dict[str, Array]:
    """Times of each function in milliseconds, one per round. Every round times each in turn, in alternating
    order, so that drift of the machine falls on all alike; a time is the fastest of three runs in a row,
    since other processes only ever add to it. Without `count`: as many rounds as fit about six seconds, at
    least 20 and at most 300. Runs before that warm up caches, threads and allocators."""
    names = list(runs)
    once = sum(_warm_up(runs[name]) for name in names)
    rounds = count or int(np.clip(BUDGET_SECONDS / max(REPEATS * once, 1e-9), MIN_RUNS, MAX_RUNS))
    times: dict[str, list[float]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in progress(range(rounds), "measuring latency", rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                times[name].append(min(_time(runs[name]) for _ in range(REPEATS)))
    finally:
        if was_enabled:
            gc.enable()
    return {name: np.array(values) for name, values in times.items()}


def _time(run: Run) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


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
    """Baseline's time over model's time, each the lower quartile of the rounds, and a bootstrap interval.

    The lower quartile, because a busy machine delays long runs more often than short ones, which would
    count in favour of the faster model. Rounds are resampled in pairs, so that drift cancels, and in blocks
    of about the cube root of their number, because neighbouring rounds are alike (Kuensch, The jackknife and
    the bootstrap for general stationary observations, Annals of Statistics, 1989). The interval is widened
    by 2 % on both sides: sessions of one and the same model differ by up to about 1.5 %, by where they lie
    in memory.
    """
    pair = np.stack([np.asarray(baseline, np.float64), np.asarray(model, np.float64)])
    count = pair.shape[1]
    block = max(1, round(count ** (1 / 3)))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, count, (RESAMPLES, -(-count // block)))
    index = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    old, new = np.quantile(pair[:, index], QUARTILE, axis=-1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(old / new, [tail, 1 - tail])
    before, after = np.quantile(pair, QUARTILE, axis=-1)
    middle = float(before / after)
    return Speedup(middle, min(float(low), middle) / PLACEMENT, max(float(high), middle) * PLACEMENT)
