"""Calls side by side give what the same calls give one after the other."""

from __future__ import annotations

import threading
import time

import pytest

from prunecli.lanes import in_order


def slow_square(number: int) -> int:
    time.sleep(0.002 * (number % 3))  # later ones are done before earlier ones
    if number == 13:
        raise ValueError(number)
    return number * number


@pytest.mark.parametrize("lanes", [1, 2, 4, 40])
def test_results_come_in_the_order_of_the_items(lanes: int) -> None:
    assert list(in_order(slow_square, iter(range(12)), lanes)) == [n * n for n in range(12)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_exception_comes_where_its_result_would_be(lanes: int) -> None:
    got: list[int] = []
    with pytest.raises(ValueError, match="13"):
        got.extend(in_order(slow_square, range(20), lanes))
    assert got == [n * n for n in range(13)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_items_are_taken_when_they_are_needed_and_by_the_caller(lanes: int) -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(50):
            assert threading.current_thread() is threading.main_thread()
            taken.append(number)
            yield number

    results = in_order(slow_square, items(), lanes)  # type: ignore[arg-type, var-annotated]
    assert taken == [] and next(results) == 0 and len(taken) <= lanes + 1
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= lanes + 1


def test_calls_overlap() -> None:
    """Each of three waits until all three have begun."""
    meeting = threading.Barrier(3, timeout=30)
    assert sorted(in_order(lambda number: meeting.wait() * 0 + number, range(3), 3)) == [0, 1, 2]
