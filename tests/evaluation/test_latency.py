"""Latency: the bookkeeping and the statistics, on made-up times; what the clock says is for the slow tests alone."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.busy import chain, load, repeated
from prunecli.evaluation import latency
from prunecli.evaluation.latency import (
    CROWDED,
    MAX_PAIRS,
    MIN_PAIRS,
    Clock,
    Latency,
    MachineLoad,
    Speedup,
    TimingOptions,
    measure,
    measure_pair,
    speedup,
)
from prunecli.runtime import PreparedRun


def times(scale: float, noise: float, seed: int, count: int = 100) -> np.ndarray:
    return scale * np.exp(noise * np.random.default_rng(seed).standard_normal(count))


CPU, THREADS = "CPUExecutionProvider", {"cpu": 1, "wall": 2}


def told(
    model: Any, baseline: Any, clock: Clock = "cpu", crowd: float = 0.0, seed: int = 0, short: str = ""
) -> Speedup:
    how = TimingOptions(THREADS[clock], CPU, seed=seed)
    return speedup(*(Latency(np.asarray(times), how, crowd, short) for times in (model, baseline)))


@pytest.mark.parametrize("ratio", [0.5, 1.5, 3.0])
def test_a_clear_difference_is_found(ratio: float) -> None:
    found = told(times(1, 0.05, 1), times(ratio, 0.05, 2))
    assert found.low < ratio < found.high
    assert not found.within_noise and not found.reason
    assert found.low <= found.speedup <= found.high


@pytest.mark.parametrize("ratio", [1.0, 1.75])
def test_the_interval_covers_the_truth(ratio: float) -> None:
    found = [told(times(1, 0.3, k), times(ratio, 0.3, 1000 + k)) for k in range(100)]
    assert sum(not each.low <= ratio <= each.high for each in found) <= 5  # nominally 5 %, and it is widened besides


@pytest.mark.parametrize("count", [MIN_PAIRS, 12, 40])
@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_few_pairs_make_a_wide_interval(count: int, noise: float) -> None:
    """Of noise with heavy tails, too."""
    how, found = TimingOptions(1, CPU), []
    for seed in range(100):
        off = np.exp(noise * np.random.default_rng(seed).standard_t(3, (2, count)))
        found.append(speedup(Latency(off[0], how), Latency(1.75 * off[1], how)))
    assert sum(not each.low <= 1.75 <= each.high for each in found) <= 5


def sessions(truth: float, seed: int, spread: float, count: int = 5) -> tuple[Latency, Latency]:
    """Times of models that were opened `count` times; each time the ratio is off by a factor of its own."""
    rng, each = np.random.default_rng(seed), 20
    off = np.repeat(np.exp(spread * rng.standard_normal(count)), each)
    numbers, how = np.repeat(np.arange(count), each), TimingOptions(1, CPU)
    both = (times(1, 0.05, 2 * seed, count * each), truth * off * times(1, 0.05, 2 * seed + 1, count * each))
    model, baseline = (Latency(values, how, openings=numbers) for values in both)
    return model, baseline


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1])
def test_where_models_lie_in_memory_is_part_of_the_interval(spread: float) -> None:
    found = [speedup(*sessions(1.75, seed, spread)) for seed in range(100)]
    assert sum(not each.low <= 1.75 <= each.high for each in found) <= 5
    assert np.median([each.high / each.low for each in found]) < 1.1 * np.exp(3 * spread)


def test_models_that_open_quickly_are_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times in all, evenly over the pairs; those that take longer to open three times, or once."""
    machine = SlowMachine(1e-3)
    monkeypatch.setattr(latency, "time", machine)
    quick, fair, slow = (
        measure({"": machine.model(1, seconds)}, TimingOptions(1, CPU, seconds=1))[""] for seconds in (0.01, 0.1, 0.6)
    )
    assert quick.openings is not None and slow.openings is not None
    assert np.unique(quick.openings, return_counts=True)[1].tolist() == pytest.approx([len(quick.times) / 5] * 5, abs=2)
    assert [np.unique(found.openings).tolist() for found in (fair, slow)] == [[1, 2, 3], [1]]


def test_two_percent_may_be_placement_in_memory() -> None:
    steady = np.ones(50)
    assert told(steady, 1.015 * steady).within_noise
    assert not told(steady, 1.03 * steady).within_noise


def test_the_median_of_ratios_is_taken_not_the_ratio_of_medians() -> None:
    """The machine has two speeds, each for a pair: 1 and 3 ms against 2 and 6, and once a pair that straddles."""
    pace = np.where(np.arange(101) % 2, 1.0, 3.0)
    model, baseline = pace.copy(), 2 * pace
    model[0] = 1.0
    assert told(model, baseline).speedup == 2
    assert np.median(np.roll(baseline, 1) / model) != 2


def test_delays_that_hit_windows_of_equal_length_alike_cancel() -> None:
    rng = np.random.default_rng(0)
    delayed = [30 * (rng.random(200) < 0.4) for _ in range(2)]
    found = told(times(1, 0.02, 1, 200) + delayed[0], times(2, 0.02, 2, 200) + delayed[1])
    assert found.speedup == pytest.approx(2, rel=0.05)


def test_drift_of_the_machine_cancels() -> None:
    drift = np.linspace(1, 2, 100)
    found = told(drift * times(1, 0.01, 1), drift * times(1.2, 0.01, 2))
    assert 1.15 < found.low < found.high < 1.25


def test_the_interval_is_deterministic() -> None:
    assert told(times(1, 0.2, 1), times(1, 0.2, 2), seed=4) == told(times(1, 0.2, 1), times(1, 0.2, 2), seed=4)


# noise, truth, clock, what others took -> a piece of the reason
MEASURABLE: list[tuple[float, float, Clock, float, str]] = [
    (0.01, 1.0, "cpu", 0.0, ""),
    (0.01, 1.0, "wall", 0.0, ""),
    (0.01, 2.0, "wall", CROWDED / 2, ""),
    (0.8, 1.05, "cpu", 0.0, "more than the difference"),
    (0.8, 5.0, "cpu", 0.0, ""),
    (0.01, 2.0, "wall", 0.5, "other processes took 50 % of the CPU time"),
    (0.01, 9.0, "wall", CROWDED + 0.01, "other processes took 11 % of the CPU time"),
]


@pytest.mark.parametrize(("noise", "truth", "clock", "crowd", "reason"), MEASURABLE)
def test_what_cannot_be_told_is_not(noise: float, truth: float, clock: Clock, crowd: float, reason: str) -> None:
    found = told(times(1, noise, 1, 40), times(truth, noise, 2, 40), clock, crowd)
    assert reason in found.reason if reason else not found.reason
    value = found.to_json()
    assert (value["speedup"] is None) == (value["low"] is None) == (value["high"] is None) == bool(reason)
    assert value.get("reason", "") == found.reason
    assert found.words().startswith("the difference in speed is not measurable now") == bool(reason)


def test_what_others_took_widens_the_interval() -> None:
    steady = np.ones(50)
    found = told(steady, 2 * steady, "wall", 0.1)
    assert (found.low, found.high) == (pytest.approx(2 / 1.02 / 1.1), pytest.approx(2 * 1.02 * 1.1))


# speed-up, interval, reason, limit of a gate -> whether it decides, and a piece of the reason why not
LIMITS = [
    (Speedup(1.52, 1.48, 1.56), 1.5, ""),  # so near that no measurement would tell
    (Speedup(2.0, 1.4, 2.6), 1.5, "more than the difference to 1.5"),
    (Speedup(2.0, 1.4, 2.6), 1.3, ""),
    (Speedup(2.0, 1.4, 2.6), 3.0, ""),
    (Speedup(1.0, 0.7, 1.4), 1.0, "more than the difference"),
    (Speedup(9.6, 9.0, 10.0, "busy"), 1.5, "busy"),
]


@pytest.mark.parametrize(("found", "limit", "reason"), LIMITS)
def test_noise_decides_nothing(found: Speedup, limit: float, reason: str) -> None:
    assert reason in found.undecided(limit) if reason else not found.undecided(limit)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Speedup(1.05, 0.98, 1.1), "no difference in speed beyond the noise"),
        (Speedup(2.0, 1.9, 2.1), "2.00 times faster than the baseline (95 % interval 1.90 to 2.10)"),
        (Speedup(0.5, 0.4, 0.6), "slower than the baseline: 0.50 times its speed"),
        (Speedup(9.6, 9.0, 10.0, "busy"), "the difference in speed is not measurable now: busy"),
    ],
)
def test_the_sentence_claims_what_was_found(found: Speedup, words: str) -> None:
    assert found.words().startswith(words)


def test_pairs_alternate_in_windows_of_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of `b` takes twice as long, so a window has two of `a`; each begins with one that does not count."""
    calls: list[str] = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = {id(runs["a"]): 2e-3, id(runs["b"]): 4e-3}
    prepared = {name: PreparedRun(run) for name, run in runs.items()}
    monkeypatch.setattr(latency, "_warm_up", lambda run: seconds[id(run)])
    found = measure(prepared, TimingOptions(1, CPU, pairs=4))
    assert "".join(calls) == "aaabb" + "bbaaa" + "aaabb" + "bbaaa"
    assert {name: len(each.times) for name, each in found.items()} == {"a": 4, "b": 4}
    assert gc.isenabled()


class SlowMachine:
    """A clock that nothing but runs moves on: `a` takes so many seconds, `b` twice as many."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now

    def thread_time_ns(self) -> int:
        return round(1e9 * self.now)

    def perf_counter_ns(self) -> int:
        return round(1e9 * self.now)

    def model(self, factor: int, opening: float = math.inf) -> PreparedRun:
        def run() -> None:
            self.now += factor * self.seconds

        return PreparedRun(run, lambda: self.model(factor, opening), opening)


# seconds of a run, those that are allowed -> pairs, at most so many seconds in all, whether an interval follows
BOUNDED = [
    (1e-6, 2.0, MAX_PAIRS, 2.0, True),
    (1e-3, 2.0, 285, 2.1, True),
    (0.05, 3.0, MIN_PAIRS, 4.5, True),
    (0.25, 3.0, MIN_PAIRS, 9.5, True),
    (0.5, 3.0, 6, 10.5, False),
    (30.0, 3.0, 1, 90.0, False),
]


@pytest.mark.parametrize(("seconds", "allowed", "pairs", "spent", "enough"), BOUNDED)
def test_it_takes_no_longer_than_it_may(
    seconds: float, allowed: float, pairs: int, spent: float, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SlowMachine(seconds)
    monkeypatch.setattr(latency, "time", machine)
    found = measure_pair(machine.model(1), machine.model(2), TimingOptions(1, CPU, seconds=allowed))
    assert len(found.model.times) == len(found.baseline.times) <= MAX_PAIRS
    assert len(found.model.times) == pytest.approx(pairs, abs=1)
    assert machine.now <= spent
    assert found.gain.speedup == pytest.approx(2)
    assert ("runs of each model fit into" in found.gain.reason) == (not enough)


def test_a_number_of_pairs_that_is_asked_for_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SlowMachine(30.0)
    monkeypatch.setattr(latency, "time", machine)
    found = measure({"": machine.model(1)}, TimingOptions(1, CPU, seconds=1, pairs=MIN_PAIRS + 1))[""]
    assert len(found.times) == MIN_PAIRS + 1 and not found.short


def test_the_bar_ends_though_the_least_pairs_take_longer_than_they_may() -> None:
    how = TimingOptions(1, CPU, seconds=1e-4)
    found = measure({"a": PreparedRun(lambda: sum(range(20000)))}, how)["a"]
    assert len(found.times) >= 1


@pytest.mark.parametrize(
    ("threads", "provider", "clock"),
    [(1, CPU, "cpu"), (2, CPU, "wall"), (1, "CUDAExecutionProvider", "wall")],
)
def test_one_thread_is_measured_by_its_own_clock(threads: int, provider: str, clock: str) -> None:
    found = measure({"a": PreparedRun(lambda: time.sleep(0.003))}, TimingOptions(threads, provider, pairs=3))["a"]
    assert found.clock == clock
    assert (found.times.max() < 2) == (clock == "cpu")  # waiting takes no CPU time
    assert provider == CPU or found.crowd == 0  # other devices are not these CPUs


def test_the_collector_comes_back_after_an_error() -> None:
    turns = iter(range(8))

    def fails() -> None:
        if next(turns) == 7:
            raise ValueError

    with pytest.raises(ValueError):
        measure({"a": PreparedRun(fails)}, TimingOptions(1, CPU, pairs=5))
    assert gc.isenabled()


# seconds of all CPUs, of this process and of other guests in 10 seconds on 4 CPUs, threads asked for -> others' share
CROWDS = [
    (0.0, 0.0, 0.0, 2, 0.0),
    (20.0, 20.0, 0.0, 2, 0.0),
    (40.0, 20.0, 0.0, 2, 0.0),
    (40.0, 30.0, 0.0, 4, 0.25),
    (40.0, 10.0, 0.0, 4, 0.75),
    (30.0, 0.0, 0.0, 2, 0.5),
    (41.0, 0.0, 0.0, 4, 1.0),
    (40.0, 30.0, 10.0, 4, 0.25),
    (40.0, 10.0, 0.0, 1, 0.0),
    (40.0, 10.0, 8.0, 1, 0.2),
]


@pytest.mark.parametrize(("busy", "own", "stolen", "threads", "share"), CROWDS)
def test_what_others_took(busy: float, own: float, stolen: float, threads: int, share: float) -> None:
    """Of wall time: beyond the CPUs that are left. Of one thread's CPU time: what the hypervisor took."""
    before, after = MachineLoad(100, 7, 500, 3, 4), MachineLoad(110, 7 + own, 500 + busy, 3 + stolen, 4)
    assert after.crowd(before, TimingOptions(threads, CPU)) == pytest.approx(share)
    assert after.crowd(before, TimingOptions(threads, "CUDAExecutionProvider")) == 0
    assert MachineLoad(110, 7 + own).crowd(MachineLoad(100, 7), TimingOptions(threads, CPU)) == 0


def test_the_load_is_read_as_linux_counts(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  {ticks} {ticks} {ticks} 999 999 {ticks} {ticks} {5 * ticks} 77 77\ncpu0 1\ncpu1 1\nintr 5\n")
    found = MachineLoad.now(stat)
    assert (found.busy, found.stolen, found.cpus) == (10.0, 5.0, 2)  # user, nice, system, both interrupts, and stolen
    stat.write_text("cpu\n")
    assert MachineLoad.now(stat).cpus == MachineLoad.now(tmp_path / "none").cpus == 0


def test_the_figures() -> None:
    how = TimingOptions(2, CPU, 4)
    assert Latency(np.arange(1, 102, dtype=float), how).to_json() == {
        "median": 51, "p10": 11, "p90": 91, "runs": 101, "batch": 4, "threads": 2, "provider": CPU, "clock": "wall",
    }  # fmt: skip
    assert Latency(np.array([1.0] * 50 + [9.0] * 50), how).disturbed
    assert not Latency(np.array([1.0] * 50 + [1.5] * 50), how).disturbed
    assert Latency(np.ones(9), how, 0.5).disturbed


# -- onnxruntime, by the clock ----------------------------------------------------------------------


def convolutions(count: int, threads: int) -> PreparedRun:
    """A run of so many equal layers one after the other: its work is exactly proportional to them."""
    return chain("Conv", count, 32, threads)


def test_one_thread_is_the_calling_thread() -> None:
    """Shares of CPU time, not of the wall clock: all that a run takes is in the thread that called it."""
    run = convolutions(8, 1).run
    mine, whole = time.thread_time(), time.process_time()
    for _ in range(200):
        run()
    assert time.thread_time() - mine > 0.9 * (time.process_time() - whole)


@pytest.fixture
def busy() -> Iterator[None]:
    """Two processes per CPU that compute, as a busy machine has."""
    with load("cpu", 2 * (os.cpu_count() or 1)):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("truth", [1, 2])
def test_the_interval_covers_the_truth_beside_other_work(truth: int, busy: None) -> None:
    """A model and itself, run once and twice: in 19 of 20 runs the truth is inside the interval, and most
    are told."""
    found = []
    for _ in range(20):
        how = TimingOptions(1, CPU, seconds=0.5)
        found.append(measure_pair(convolutions(8, 1), repeated(convolutions(8, 1), truth), how).gain)
    assert sum(each.low <= truth <= each.high for each in found) >= 19, found
    assert sum(not each.reason for each in found) >= 11, found


@pytest.mark.slow
def test_nothing_is_told_of_several_threads_beside_other_work(busy: None) -> None:
    threads = max(2, os.cpu_count() or 1)
    for _ in range(3):
        found = measure_pair(convolutions(8, threads), convolutions(16, threads), TimingOptions(threads, CPU, pairs=50))
        assert "other processes took" in found.gain.reason
