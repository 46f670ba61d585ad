"""What is said of the speed of a model that was pruned and quantised."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from prunecli.evaluation.latency import Speedup
from prunecli.quantization.after import slow

FAST, MIDDLE, SAME, NOISE = (Speedup(x, x - 0.1, x + 0.1, why) for x, why in ((3, ""), (2, ""), (1, ""), (3, "busy")))
CASES: list[tuple[Mapping[str, Speedup], str]] = [
    # how much faster than the original each is, and what both together are no faster than
    ({"both": FAST, "pruned": MIDDLE, "quantised": MIDDLE}, ""),
    ({"both": MIDDLE, "pruned": SAME, "quantised": MIDDLE}, "in integers without pruning"),
    ({"both": SAME, "pruned": MIDDLE, "quantised": MIDDLE}, "in floating point or in integers without pruning"),
    ({"both": MIDDLE, "pruned": FAST}, "in floating point"),
    ({"both": NOISE, "pruned": FAST}, ""),
    ({"pruned": FAST}, ""),
]


@pytest.mark.parametrize(("gains", "told"), CASES)
def test_what_is_no_faster_is_said(gains: Mapping[str, Speedup], told: str) -> None:
    assert [f"than {told}, only smaller" in note for note in slow(gains, "")] == [True] * bool(told)
