"""What every test has: measurements of speed for reports that take no time."""

from __future__ import annotations

import pytest
from hypothesis import settings

from prunecli.evaluation import speed


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run or two, whose figures nobody looks at, and no profile."""
    monkeypatch.setattr(speed, "REPORT_SECONDS", 1e-4)
    monkeypatch.setattr(speed, "SLOW_SECONDS", 0.0)


# no test asserts on time: the first example of a test may import what the others find loaded
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
