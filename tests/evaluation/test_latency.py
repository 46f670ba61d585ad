"""Latency: the bookkeeping and the statistics. What the clock says is not tested."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from prunecli.evaluation.latency import REPEATS, Latency, Speedup, measure, speedup


def times(scale: float, noise: float, seed: int, count: int = 100) -> np.ndarray:
    return scale * np.exp(noise * np.random.default_rng(seed).standard_normal(count))


@pytest.mark.parametrize("ratio", [0.5, 1.5, 3.0])
def test_a_clear_difference_is_found(ratio: float) -> None:
    found = speedup(times(1, 0.05, 1), times(ratio, 0.05, 2))
    assert found.low < ratio < found.high
    assert not found.within_noise
    assert found.low <= found.speedup <= found.high


def test_equal_models_are_rarely_told_apart() -> None:
    claims = sum(not speedup(times(1, 0.3, k), times(1, 0.3, 1000 + k)).within_noise for k in range(100))
    assert claims <= 5  # nominally 5 % at most, and the interval is widened besides


def test_two_percent_may_be_placement_in_memory() -> None:
    steady = np.ones(50)
    assert speedup(steady, 1.015 * steady).within_noise
    assert not speedup(steady, 1.03 * steady).within_noise


def test_delays_of_the_slower_model_are_no_speed_up() -> None:
    """Other processes hit the longer runs in more than half of the rounds."""
    rng = np.random.default_rng(0)
    slow = times(2, 0.02, 1) + 30 * (rng.random(100) < 0.6)
    assert speedup(times(1, 0.02, 2), slow).speedup == pytest.approx(2, rel=0.05)


def test_drift_of_the_machine_cancels() -> None:
    drift = np.linspace(1, 2, 100)
    found = speedup(drift * times(1, 0.01, 1), drift * times(1.2, 0.01, 2))
    assert found.low > 1.1
    assert found.high < 1.3


def test_the_interval_is_deterministic() -> None:
    assert speedup(times(1, 0.2, 1), times(1, 0.2, 2), seed=4) == speedup(times(1, 0.2, 1), times(1, 0.2, 2), seed=4)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Speedup(1.05, 0.98, 1.1), "no difference in speed beyond the noise"),
        (Speedup(2.0, 1.9, 2.1), "2.00 times faster than the baseline (95 % interval 1.90 to 2.10)"),
        (Speedup(0.5, 0.4, 0.6), "slower than the baseline: 0.50 times its speed"),
    ],
)
def test_the_sentence_claims_what_was_found(found: Speedup, words: str) -> None:
    assert found.words().startswith(words)


def test_rounds_interleave_in_alternating_order() -> None:
    calls: list[str] = []
    found = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 4)
    timed = "".join(calls[-4 * 2 * REPEATS :])
    assert timed == "aaabbb" + "bbbaaa" + "aaabbb" + "bbbaaa"
    assert {name: len(values) for name, values in found.items()} == {"a": 4, "b": 4}
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error() -> None:
    turns = iter(range(8))

    def fails() -> None:
        if next(turns) == 7:
            raise ValueError

    with pytest.raises(ValueError):
        measure({"a": fails}, 5)
    assert gc.isenabled()


def test_the_figures() -> None:
    found = Latency(np.arange(1, 102, dtype=float), 4, 2, "CPUExecutionProvider").to_json()
    assert found == {
        "median": 51, "p10": 11, "p90": 91, "runs": 101, "batch": 4, "threads": 2,
        "provider": "CPUExecutionProvider",
    }  # fmt: skip
    assert Latency(np.array([1.0] * 50 + [9.0] * 50), 1, 1, "").disturbed
    assert not Latency(np.array([1.0] * 50 + [1.5] * 50), 1, 1, "").disturbed
