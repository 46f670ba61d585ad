"""Latency, so that two models can be compared on a busy machine, or not be where it is too busy: pairs in turn."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prunecli.arrays import Array
from prunecli.runtime import PreparedRun
from prunecli.types import Json, Progress, no_progress

Clock = Literal["cpu", "wall"]

WARM_UP, WARM_UP_SECONDS = 5, 0.5
WINDOW_SECONDS = 2e-3
"""Of the runs in a row that give one time, at least: far more than the clock's resolution and than one interrupt."""
LONG_SECONDS = 0.2
"""Of a run that takes longer than that one interrupt, and bringing its own values into the caches, are a small part."""
MIN_PAIRS, MAX_PAIRS = 8, 300
EVALUATE_SECONDS = 5.0
"""Which a measurement takes: of the thread's CPU time where that is the clock. On a busy machine, and where models are
slow, it is up to `PATIENCE` times as long."""
PATIENCE = 3
OPENINGS = ((0.05, 5), (0.5, 3))
"""The share of a measurement's time that opening the models takes at most, and how often they are opened then."""
LEAST_OPENINGS = 3
"""Which make the spread of sessions known."""
RESAMPLES = 2000
CONFIDENCE = 0.95
PLACEMENT, UNKNOWN_PLACEMENT = 1.02, 1.1
"""What sessions of the same models differ by: at least; and where they were not opened often enough to tell."""
QUARTILE = 0.25
"""Of a function's times, what nothing delayed."""
CROWDED = 0.1
"""Of the time of the threads asked for, what other processes may take: more makes wall times say nothing."""
NOISY = 1.1
"""Noise by this factor hides differences that matter."""
STEADY = 3.0


@dataclass(frozen=True)
class TimingOptions:
    """How models are timed: `batch` samples a run, on `threads` threads of `provider` (onnxruntime's name of it).
    Without `pairs`, as many as fit into `seconds`."""

    threads: int
    provider: str
    batch: int = 1
    seconds: float = EVALUATE_SECONDS
    pairs: int | None = None
    seed: int = 0

    @property
    def on_cpu(self) -> int:
        """Threads of this machine's CPUs that the models run on; 0: the provider is another device."""
        return self.threads if self.provider == "CPUExecutionProvider" else 0

    @property
    def clock(self) -> Clock:
        """onnxruntime does all of a run in the calling thread where it has one."""
        return "cpu" if self.on_cpu == 1 else "wall"


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run, one time per pair.

    `clock`: "cpu": the calling thread's CPU time, which other processes add nothing to, or "wall". `crowd`: the share
    of the time that others took: of wall time other processes of the threads asked for, of CPU time a hypervisor.
    `short`: why there are fewer pairs than an interval needs. `openings`: the number of the session of each time.
    """

    times: Array
    how: TimingOptions
    crowd: float = 0.0
    short: str = ""
    openings: Array | None = None

    @property
    def clock(self) -> Clock:
        return self.how.clock

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
            "batch": self.how.batch,
            "threads": self.how.threads,
            "provider": self.how.provider,
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

    def undecided(self, limit: float) -> str:
        """Why it cannot be told on which side of `limit` the truth is: as `reason`, or the machine moves more than the
        difference; empty where it can, or where it is so near that no measurement would tell."""
        noise = math.sqrt(self.high / self.low)
        if self.reason or noise <= NOISY or not self.low <= limit <= self.high:
            return self.reason
        difference = "the difference" if limit == 1 else f"the difference to {limit:g}"
        return f"the noise of this machine is {noise - 1:.0%}, more than {difference}"

    def words(self, other: str = "baseline") -> str:
        """One sentence that claims no more than was measured. `other`: what the baseline is called."""
        if self.reason:
            return f"the difference in speed is not measurable now: {self.reason}"
        span = f"95 % interval {self.low:.2f} to {self.high:.2f}"
        if self.within_noise:
            return f"no difference in speed beyond the noise of this measurement ({span})"
        if self.speedup >= 1:
            return f"{self.speedup:.2f} times faster than the {other} ({span})"
        return f"slower than the {other}: {self.speedup:.2f} times its speed ({span})"

    def to_json(self) -> Json:
        """Numbers, or nulls with the reason."""
        if self.reason:
            return {"speedup": None, "low": None, "high": None, "reason": self.reason}
        return {"speedup": self.speedup, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class TimedPair:
    """A model and its baseline, timed in turn."""

    model: Latency
    baseline: Latency
    gain: Speedup


def measure_pair(
    model: PreparedRun, baseline: PreparedRun, how: TimingOptions, progress: Progress = no_progress
) -> TimedPair:
    """Time a model beside its baseline, see `measure`, and compare them, see `speedup`."""
    found = measure({"model": model, "baseline": baseline}, how, progress)
    return TimedPair(found["model"], found["baseline"], speedup(found["model"], found["baseline"]))


def measure(
    runs: Mapping[str, PreparedRun], how: TimingOptions, progress: Progress = no_progress
) -> dict[str, Latency]:
    """Times of each model, one per pair. Each pair has every model in turn, in alternating order, so that drift of the
    machine falls on all alike. A time is the mean over a window of runs in a row; the windows of all take about equally
    long, since what interferes hits a longer one more often, and begin with a run that is not timed, to have its own
    values in the caches. Models that open quickly are opened anew, as where they lie in memory matters. It
    ends when `how.seconds` have passed and there are `MIN_PAIRS`, when there are `MAX_PAIRS`, or after `PATIENCE` times
    so many seconds; where `how.pairs` says how many, with those."""
    before = MachineLoad.now()
    stand = _Stand(dict(runs), how)
    was_enabled, most = gc.isenabled(), how.pairs or MAX_PAIRS
    shown: Iterator[int] = progress(iter(range(1, 101)), "measuring latency (%)", 100)
    percent = next(shown)
    gc.disable()
    try:
        for turn in range(most):
            if stand.done(turn):
                break
            stand.pair(turn)
            while percent < 100 * stand.part(turn + 1):
                percent = next(shown, 100)
        for _ in shown:  # the bar ends with the measurement
            pass
    finally:
        if was_enabled:
            gc.enable()
    crowd, count = MachineLoad.now().crowd(before, how), len(stand.openings)
    few = how.pairs is None and count < MIN_PAIRS
    short = f"only {count} runs of each model fit into {PATIENCE * how.seconds:g} seconds" if few else ""
    return {name: Latency(np.array(times), how, crowd, short=short, openings=np.array(stand.openings))
            for name, times in stand.found().items()}  # fmt: skip


class _Stand:
    """Models on the stand: their windows, and the times of the pairs so far."""

    def __init__(self, runs: dict[str, PreparedRun], how: TimingOptions) -> None:
        self.runs, self.how = runs, how
        self.clock = time.thread_time_ns if how.clock == "cpu" else time.perf_counter_ns
        self.began, self.own = time.perf_counter(), self.clock()
        self.windows = _windows(runs)
        self.times: dict[str, list[float]] = {name: [] for name in runs}
        self.openings: list[int] = []
        self.opened = 1
        share = sum(run.seconds if run.again is not None else math.inf for run in runs.values()) / how.seconds
        self.openable = next((count for most, count in OPENINGS if share <= most), 1)

    def spent(self) -> float:
        """Seconds of the clock's time since the beginning."""
        return (self.clock() - self.own) / 1e9

    def done(self, turn: int) -> bool:
        if self.how.pairs is not None:
            return False
        late = time.perf_counter() - self.began > PATIENCE * self.how.seconds
        return late or (turn >= MIN_PAIRS and self.spent() > self.how.seconds)

    def part(self, turn: int) -> float:
        """The fraction of the measurement that is over after `turn` pairs."""
        if self.how.pairs is not None:
            return turn / self.how.pairs
        wall = (time.perf_counter() - self.began) / PATIENCE
        return min(max(max(self.spent(), wall) / self.how.seconds, turn / MAX_PAIRS), 1.0)  # the last pair ends late

    def pair(self, turn: int) -> None:
        if self.part(turn) * self.openable >= self.opened:
            self.open()
        names = list(self.runs)
        for name in names if turn % 2 == 0 else reversed(names):
            self.times[name].append(self.windows[name].milliseconds(self.clock))
        self.openings.append(self.opened)

    def open(self) -> None:
        """Open each model anew before the old one goes, or it would lie in the same place."""
        for name, run in self.runs.items():
            assert run.again is not None
            self.runs[name] = run.again()
            self.windows[name] = replace(self.windows[name], run=self.runs[name].run)
        self.opened += 1

    def found(self) -> dict[str, list[float]]:
        """The times, or that of warming up where a run takes longer than all pairs may."""
        return {name: times or [1e3 * self.windows[name].once] for name, times in self.times.items()}


@dataclass(frozen=True)
class _Window:
    """So many runs in a row, after `lead` that do not count. `once`: seconds that a run took when warm."""

    run: Callable[[], Any]
    once: float
    turns: int
    lead: int

    def milliseconds(self, clock: Callable[[], int]) -> float:
        """Of one run: the mean."""
        for _ in range(self.lead):
            self.run()
        start = clock()
        for _ in range(self.turns):
            self.run()
        return (clock() - start) / 1e6 / self.turns


def _windows(runs: Mapping[str, PreparedRun]) -> dict[str, _Window]:
    once = {name: _warm_up(prepared.run) for name, prepared in runs.items()}
    window = min(max(WINDOW_SECONDS, *once.values()), LONG_SECONDS)
    return {n: _Window(runs[n].run, s, max(1, round(window / s)), lead=int(s < LONG_SECONDS)) for n, s in once.items()}


def _warm_up(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of the warm-up runs: a few, or as many as fit into the time for them."""
    best, begin = math.inf, time.perf_counter()
    for _ in range(WARM_UP):
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = max(min(best, now - start), 1e-9)
        if now - begin > WARM_UP_SECONDS:
            break
    return best


@dataclass(frozen=True)
class MachineLoad:
    """The machine's CPUs: how many, and the seconds that they have been busy, in all, for this process, and for other
    guests of the hypervisor, at a time. `cpus` 0: not known."""

    at: float
    own: float
    busy: float = 0.0
    stolen: float = 0.0
    cpus: int = 0

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> MachineLoad:
        """As Linux counts: all time that is not idle, what a hypervisor took for others included."""
        at, own = time.perf_counter(), time.process_time()
        try:
            lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
            user, nice, system, _, _, *interrupts, stolen = (int(n) / os.sysconf("SC_CLK_TCK") for n in lines[0][1:9])
            return cls(at, own, user + nice + system + sum(interrupts) + stolen, stolen=stolen, cpus=len(lines) - 1)
        except (OSError, ValueError, IndexError):
            return cls(at, own)

    def crowd(self, before: MachineLoad, how: TimingOptions) -> float:
        """The share of the time since then that others took, in [0, 1]. Of wall time: what other processes used beyond
        the CPUs that the threads leave, over the threads' time. Of CPU time: what was stolen of all busy time, which
        counts as the thread's own. 0 where it is not known, or the threads are not on these CPUs."""
        seconds, threads = self.at - before.at, how.on_cpu
        busy, own = self.busy - before.busy, self.own - before.own
        if not self.cpus or not threads or seconds <= 0 or busy <= 0:
            return 0.0
        if how.clock == "cpu":
            return float(np.clip((self.stolen - before.stolen) / busy, 0, 1))
        return float(np.clip(((busy - own) / seconds + threads - self.cpus) / threads, 0, 1))


def speedup(model: Latency, baseline: Latency) -> Speedup:
    """The median over pairs of the baseline's time over the model's, and a bootstrap interval.

    Pairs are resampled in blocks of about the cube root of their number, because neighbours are alike (Kuensch, The
    jackknife and the bootstrap for general stationary observations, Annals of Statistics, 1989). The quantiles are what
    Student's distribution asks for with so few blocks (Hesterberg, What teachers should know about the bootstrap,
    American Statistician, 2015). Both sides are widened by how much sessions of the same two models differ, and by what
    others took. It cannot be told where
    others took much of the wall time, where there are too few pairs, or where the noise is large and larger than the
    difference.
    """
    from scipy.special import ndtr, stdtrit

    ratios = np.asarray(baseline.times, np.float64) / np.asarray(model.times, np.float64)
    count = len(ratios)
    block = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(model.how.seed).integers(0, count, (RESAMPLES, -(-count // block)))
    index = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    blocks = max(count / block, 2)
    tail = float(ndtr(-stdtrit(blocks - 1, (1 + CONFIDENCE) / 2) * math.sqrt(blocks / (blocks - 1))))
    low, high = np.quantile(np.median(ratios[index], axis=-1), [tail, 1 - tail])
    middle = float(np.median(ratios))
    wider = _placement(ratios, model.openings) * (1 + model.crowd)
    found = Speedup(middle, min(float(low), middle) / wider, max(float(high), middle) * wider, reason=model.short)
    if model.clock == "wall" and model.crowd > CROWDED:
        return replace(found, reason=f"other processes took {100 * model.crowd:.0f} % of the CPU time")
    return replace(found, reason=found.undecided(1.0))


def _placement(ratios: Array, openings: Array | None) -> float:
    """The factor by which the sessions that were opened let the ratio be wrong: Student's interval of the logarithms of
    their medians."""
    from scipy.special import stdtrit

    if openings is None:
        return PLACEMENT
    numbers = np.unique(openings)
    if len(numbers) < LEAST_OPENINGS:
        return UNKNOWN_PLACEMENT
    medians = np.log([np.median(ratios[openings == number]) for number in numbers])
    count = len(medians)
    spread = stdtrit(count - 1, (1 + CONFIDENCE) / 2) * medians.std(ddof=1) / math.sqrt(count)
    return max(PLACEMENT, float(np.exp(spread)))
