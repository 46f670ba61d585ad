"""Latency, so that two models can be compared on a busy machine, or not be where it is too busy: pairs in turn."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunecli.types import Json, Progress, no_progress

Array = np.ndarray[Any, Any]
Run = Callable[[], Any]
Clock = Literal["cpu", "wall"]

WARM_UP = 5
WINDOW_SECONDS = 2e-3
"""Of the runs in a row that give one time, at least: far more than the clock's resolution and than one interrupt."""
MIN_PAIRS, MAX_PAIRS = 20, 300
BUDGET_SECONDS = 6.0
RESAMPLES = 2000
CONFIDENCE = 0.95
PLACEMENT = 1.02
QUARTILE = 0.25
"""Of a function's times, what nothing delayed."""
CROWDED = 0.1
"""Of the time of the threads asked for, what other processes may take: more makes wall times say nothing."""
NOISY = 1.1
"""Noise by this factor hides differences that matter."""
STEADY = 3.0


@dataclass(frozen=True)
class Timed:
    """`times`: milliseconds per run of each model, pair by pair. `clock`: "cpu": the calling thread's CPU time, which
    other processes add nothing to, or "wall"; then `crowd` is the share of the threads' time that others took."""

    times: Mapping[str, Array]
    clock: Clock
    crowd: float = 0.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run: as many times as pairs, of `batch` samples on `threads` threads of `provider`."""

    times: Array
    batch: int
    threads: int
    provider: str
    clock: Clock = "wall"
    crowd: float = 0.0

    @property
    def median(self) -> float:
        return float(np.median(self.times))

    @property
    def disturbed(self) -> bool:
        """Whether other work on the machine must have interfered."""
        low, high = np.percentile(self.times, [10, 90])
        return self.crowd > CROWDED or bool(high > STEADY * low)

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
            "clock": self.clock,
        }


@dataclass(frozen=True)
class Speedup:
    """How many times faster the model is than the baseline, with a 95 % interval from `low` to `high`. `reason`: why
    that cannot be told now, so that nothing is to follow from the numbers."""

    speedup: float
    low: float
    high: float
    reason: str = ""

    @property
    def within_noise(self) -> bool:
        """Whether equal speed is inside the interval."""
        return self.low <= 1 <= self.high

    def words(self) -> str:
        """One sentence that claims no more than was measured."""
        if self.reason:
            return f"the difference in speed is not measurable now: {self.reason}"
        span = f"95 % interval {self.low:.2f} to {self.high:.2f}"
        if self.within_noise:
            return f"no difference in speed beyond the noise of this measurement ({span})"
        if self.speedup >= 1:
            return f"{self.speedup:.2f} times faster than the baseline ({span})"
        return f"slower than the baseline: {self.speedup:.2f} times its speed ({span})"

    def to_json(self) -> Json:
        """Numbers, or nulls with the reason."""
        if self.reason:
            return {"speedup": None, "low": None, "high": None, "reason": self.reason}
        return {"speedup": self.speedup, "low": self.low, "high": self.high}


def measure(runs: Mapping[str, Run], threads: int, count: int | None = None, progress: Progress = no_progress) -> Timed:
    """Times of each function, one per pair. Each pair has every function in turn, in alternating order, so that drift
    of the machine falls on all alike. A time is the mean over a window of runs in a row; the windows of all take about
    equally long, since what interferes hits a longer one more often, and begin with a run that is not timed, to have
    its own values in the caches. Without `count`: as many pairs as fit about six seconds, at least 20 and at most 300.

    Args:
        threads: that the functions use at most. onnxruntime does all of it in the calling thread where that is 1. 0:
            the work is not on this machine's CPUs.
    """
    names = list(runs)
    once = {name: _warm_up(run) for name, run in runs.items()}
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    window = max(WINDOW_SECONDS, *once.values())
    turns = {name: max(1, round(window / once[name])) for name in names}
    pair = sum((turns[name] + 1) * once[name] for name in names)
    pairs = count or int(np.clip(BUDGET_SECONDS / max(pair, 1e-9), MIN_PAIRS, MAX_PAIRS))
    times: dict[str, list[float]] = {name: [] for name in names}
    was_enabled, before = gc.isenabled(), MachineLoad.now()
    gc.disable()
    try:
        for turn in progress(range(pairs), "measuring latency", pairs):
            for name in names if turn % 2 == 0 else reversed(names):
                times[name].append(_time(runs[name], turns[name], clock))
    finally:
        if was_enabled:
            gc.enable()
    found = {name: np.array(values) for name, values in times.items()}
    if clock is time.thread_time_ns:
        return Timed(found, "cpu")
    return Timed(found, "wall", MachineLoad.now().crowd(before, threads))


def on_cpu(provider: str, threads: int) -> int:
    """Threads of this machine's CPUs that sessions of an execution provider run on; 0: it is another device."""
    return threads if provider == "CPUExecutionProvider" else 0


def _time(run: Run, turns: int, clock: Callable[[], int]) -> float:
    """Milliseconds of one run: the mean of several after one that does not count."""
    run()
    start = clock()
    for _ in range(turns):
        run()
    return (clock() - start) / 1e6 / turns


def _warm_up(run: Run) -> float:
    """Seconds of the fastest of the warm-up runs; a single run where one takes a second or more."""
    best = math.inf
    for _ in range(WARM_UP):
        start = time.perf_counter()
        run()
        best = max(min(best, time.perf_counter() - start), 1e-9)
        if best > 1.0:
            break
    return best


@dataclass(frozen=True)
class MachineLoad:
    """The machine's CPUs: how many, and the seconds that they have been busy, in all and for this process, at a time.
    `cpus` 0: not known."""

    at: float
    own: float
    busy: float = 0.0
    cpus: int = 0

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> MachineLoad:
        """As Linux counts: all time that is not idle, what a hypervisor took for others included."""
        at, own = time.perf_counter(), time.process_time()
        try:
            lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
            user, nice, system, _, _, *others = map(int, lines[0][1:9])
            return cls(at, own, (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK"), len(lines) - 1)
        except (OSError, ValueError, IndexError):
            return cls(at, own)

    def crowd(self, before: MachineLoad, threads: int) -> float:
        """The share of the time of so many threads since then that other processes took: what they used beyond the CPUs
        that the threads leave. 0 where it is not known, or the threads are not on these CPUs."""
        seconds = self.at - before.at
        if not self.cpus or not threads or seconds <= 0:
            return 0.0
        others = (self.busy - before.busy - self.own + before.own) / seconds
        return float(np.clip((others + threads - self.cpus) / threads, 0, 1))


def speedup(timed: Timed, model: str, baseline: str, seed: int = 0) -> Speedup:
    """The median over pairs of the baseline's time over the model's, and a bootstrap interval.

    Pairs are resampled in blocks of about the cube root of their number, because neighbours are alike (Kuensch, The
    jackknife and the bootstrap for general stationary observations, Annals of Statistics, 1989). The interval is
    widened by 2 % on both sides, as sessions of one and the same model differ by up to about 1.5 %, by where they lie
    in memory, and by what others took. It cannot be told where others took much of the wall time, or where the noise
    is large and larger than the difference.
    """
    ratios = np.asarray(timed.times[baseline], np.float64) / np.asarray(timed.times[model], np.float64)
    count = len(ratios)
    block = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, count, (RESAMPLES, -(-count // block)))
    index = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(ratios[index], axis=-1), [tail, 1 - tail])
    middle, wider = float(np.median(ratios)), PLACEMENT * (1 + timed.crowd)
    found = Speedup(middle, min(float(low), middle) / wider, max(float(high), middle) * wider)
    return Speedup(middle, found.low, found.high, _reason(found, timed))


def _reason(found: Speedup, timed: Timed) -> str:
    if timed.clock == "wall" and timed.crowd > CROWDED:
        return f"other processes took {timed.crowd:.0%} of the CPU time"
    noise = math.sqrt(found.high / found.low)
    if noise > NOISY and found.within_noise:
        return f"the noise of this machine is {noise - 1:.0%}, more than the difference"
    return ""
