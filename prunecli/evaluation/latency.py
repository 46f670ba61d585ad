"""Latency of two models on a machine that may be busy: timed in alternating pairs; refused where it is too busy."""

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
"""Least length of the runs in a row that give one time: far above the resolution of the clock and the length of an
interrupt."""
LONG_SECONDS = 0.2
"""Length of a run from which one interrupt, and loading its data into the caches, add little."""
MIN_PAIRS, MAX_PAIRS = 8, 300
EVALUATE_SECONDS = 5.0
"""Length of a measurement, in CPU time of the thread where that is the clock. On a busy machine, and for slow models,
it takes up to `PATIENCE` times as long."""
PATIENCE = 3
OPENINGS = ((0.05, 5), (0.5, 3))
"""Pairs of (largest share of the measurement's time spent on opening the models, number of openings)."""
LEAST_OPENINGS = 3
"""Number of openings from which the spread between sessions is known."""
RESAMPLES = 2000
CONFIDENCE = 0.95
PLACEMENT, UNKNOWN_PLACEMENT = 1.02, 1.1
"""Least factor by which sessions of the same model differ, and the factor assumed with fewer than `LEAST_OPENINGS`
openings."""
QUARTILE = 0.25
"""Quantile of a model's times that other work does not delay."""
CROWDED = 0.1
"""Largest share of the threads' time that other processes may take; above it wall times say nothing."""
NOISY = 1.1
"""Factor of noise that hides relevant differences."""
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
        """Number of CPU threads that the models use; 0 if the provider is another device."""
        return self.threads if self.provider == "CPUExecutionProvider" else 0

    @property
    def clock(self) -> Clock:
        """The thread's CPU time with one thread, since onnxruntime then works in the calling thread; else wall time."""
        return "cpu" if self.on_cpu == 1 else "wall"


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run, one time per pair.

    `clock`: "cpu": CPU time of the calling thread, to which other processes add nothing, or "wall". `crowd`: share of
    the time that others took: other processes of wall time, a hypervisor of CPU time. `short`: why there are fewer
    pairs than an interval needs. `openings`: the number of the session behind each time.
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
        """Whether other work on the machine disturbed the times."""
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
    """Time of the baseline over that of the model, with a 95 % interval from `low` to `high`. `reason`: why it is
    unknown now, or empty."""

    speedup: float
    low: float
    high: float
    reason: str = ""

    @property
    def within_noise(self) -> bool:
        """Whether equal speed is inside the interval."""
        return self.low <= 1 <= self.high

    def undecided(self, limit: float) -> str:
        """Return why it is unknown on which side of `limit` the truth is: `reason`, or noise larger than the
        difference. Return "" where it is known, or so close that no measurement could tell."""
        noise = math.sqrt(self.high / self.low)
        if self.reason or noise <= NOISY or not self.low <= limit <= self.high:
            return self.reason
        difference = "the difference" if limit == 1 else f"the difference to {limit:g}"
        return f"the noise of this machine is {noise - 1:.0%}, more than {difference}"

    def words(self, other: str = "baseline") -> str:
        """Return one sentence that claims no more than was measured. `other`: a name for the baseline."""
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
    """Time each model, once per pair. A pair runs every model, in alternating order, so that drift of the machine
    affects all alike. A time is the mean over a window of consecutive runs. Windows of all models are about equally
    long, because interruptions hit a longer window more often, and start with an untimed run that fills the caches.
    Models that open quickly are reopened during the measurement, because their place in memory affects their speed.

    It ends after `how.pairs` pairs if given; else after `how.seconds` and `MIN_PAIRS` pairs, after `MAX_PAIRS` pairs,
    or after `PATIENCE` times `how.seconds`.
    """
    before = MachineLoad.now()
    timed = _TimedModels(dict(runs), how)
    was_enabled, most = gc.isenabled(), how.pairs or MAX_PAIRS
    shown: Iterator[int] = progress(iter(range(1, 101)), "measuring latency (%)", 100)
    percent = next(shown)
    gc.disable()
    try:
        for turn in range(most):
            if timed.done(turn):
                break
            timed.pair(turn)
            while percent < 100 * timed.part(turn + 1):
                percent = next(shown, 100)
        for _ in shown:  # the bar ends with the measurement
            pass
    finally:
        if was_enabled:
            gc.enable()
    crowd, count = MachineLoad.now().crowd(before, how), len(timed.openings)
    few = how.pairs is None and count < MIN_PAIRS
    short = f"only {count} runs of each model fit into {PATIENCE * how.seconds:g} seconds" if few else ""
    return {name: Latency(np.array(times), how, crowd, short=short, openings=np.array(timed.openings))
            for name, times in timed.found().items()}  # fmt: skip


class _TimedModels:
    """The models being timed: their windows, and the times of the pairs so far."""

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
        """Seconds of the clock since the start."""
        return (self.clock() - self.own) / 1e9

    def done(self, turn: int) -> bool:
        if self.how.pairs is not None:
            return False
        late = time.perf_counter() - self.began > PATIENCE * self.how.seconds
        return late or (turn >= MIN_PAIRS and self.spent() > self.how.seconds)

    def part(self, turn: int) -> float:
        """Return the fraction of the measurement that is done after `turn` pairs."""
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
        """Open each model again. The old session is closed afterwards; otherwise the new one would lie in the same
        place."""
        for name, run in self.runs.items():
            assert run.again is not None
            self.runs[name] = run.again()
            self.windows[name] = replace(self.windows[name], run=self.runs[name].run)
        self.opened += 1

    def found(self) -> dict[str, list[float]]:
        """Return the times; the warm-up's time where one run takes longer than all pairs may."""
        return {name: times or [1e3 * self.windows[name].once] for name, times in self.times.items()}


@dataclass(frozen=True)
class _Window:
    """`count` consecutive runs after `lead` uncounted ones. `once`: seconds of a warm run."""

    run: Callable[[], Any]
    once: float
    turns: int
    lead: int

    def milliseconds(self, clock: Callable[[], int]) -> float:
        """Return the mean time of one run."""
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
    """Return the seconds of the fastest warm-up run, of a few or as many as fit into the time."""
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
    """CPU seconds of the machine at one time: busy in total, used by this process, stolen by other guests of the
    hypervisor. `cpus`: number of CPUs, 0 if unknown."""

    at: float
    own: float
    busy: float = 0.0
    stolen: float = 0.0
    cpus: int = 0

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> MachineLoad:
        """Read Linux' counters. Busy is all time that is not idle, stolen time included."""
        at, own = time.perf_counter(), time.process_time()
        try:
            lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
            user, nice, system, _, _, *interrupts, stolen = (int(n) / os.sysconf("SC_CLK_TCK") for n in lines[0][1:9])
            return cls(at, own, user + nice + system + sum(interrupts) + stolen, stolen=stolen, cpus=len(lines) - 1)
        except (OSError, ValueError, IndexError):
            return cls(at, own)

    def crowd(self, before: MachineLoad, how: TimingOptions) -> float:
        """Return the share of the time since `before` that others took, in [0, 1]. For wall time: what other processes
        used beyond the CPUs that the threads leave free, over the threads' time. For CPU time: stolen over busy time,
        since the thread's clock counts stolen time. 0 where unknown, or where the models do not run on these CPUs."""
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
    """Return the factor by which the choice of sessions may distort the ratio: Student's interval of the logarithms of
    the sessions' medians."""
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
