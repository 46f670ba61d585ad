"""What every test has: measurements of speed for reports that take no time."""

from __future__ import annotations

import pytest

from prunecli.evaluation import speed


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run or two, whose figures nobody looks at, and no profile."""
    monkeypatch.setattr(speed, "REPORT_SECONDS", 1e-4)
    monkeypatch.setattr(speed, "SLOW_SECONDS", 0.0)
