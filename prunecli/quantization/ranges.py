"""Ranges of activations: the observed range on calibration data, and the part of it with the least quantisation error.

A range up to the largest value makes the step coarse for all values because of a few. A narrower one clips those few.
Among ranges that end at fractions of the observed one, the one with the least squared error over sampled values is
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.runtime import Session
from prunecli.types import Progress, no_progress

Range = tuple[float, float]
SAMPLED = 60_000
"""Values of each activation by which ranges are compared."""
PARTS = np.linspace(1.0, 0.3, 36)
"""Fractions of the observed ends that are tried."""
RUNS = 8
"""Samples of a run: all their activations are in memory."""


@dataclass
class Observed:
    """Least and largest value of an activation, and some of its values."""

    low: float = np.inf
    high: float = -np.inf
    some: list[Array] = field(default_factory=list)

    def add(self, values: Array, count: int, rng: np.random.Generator) -> None:
        finite = values[np.isfinite(values)] if not np.isfinite(values.sum(dtype=np.float64)) else values
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            flat = finite.reshape(-1)
            self.some.append(flat if flat.size <= count else flat[rng.integers(flat.size, size=count)])

    @property
    def whole(self) -> Range:
        """The observed range, extended to 0."""
        return min(self.low, 0.0), max(self.high, 0.0)


def observe(
    open_session: Callable[..., Session], model: Any, feeds: Iterable[Mapping[str, Array]], total: int,
    progress: Progress = no_progress,
) -> dict[str, Observed]:  # fmt: skip
    """Every floating-point activation and input of a model on the data; `total` runs."""
    session = open_session(model, outputs="all", mode="plain")
    found: dict[str, Observed] = {}
    rng, count = np.random.default_rng(0), -(-SAMPLED // max(total, 1))
    for feed in progress(feeds, "observing activations", total):
        for name, value in {**feed, **session.run(feed)}.items():
            if isinstance(value, np.ndarray) and value.dtype in (np.float32, np.float16) and value.size:
                found.setdefault(name, Observed()).add(value, count, rng)
    return {name: seen for name, seen in found.items() if seen.some}


def fitted_ranges(seen: Mapping[str, Observed], least: int, greatest: int) -> dict[str, Range]:
    """Return the range of each activation with the least error in integers from `least` to `greatest`."""
    return {name: _fitted(one, least, greatest) for name, one in seen.items()}


def _fitted(seen: Observed, least: int, greatest: int) -> Range:
    """Both ends are shortened together first, then each by itself."""
    low, high = seen.whole
    values = np.concatenate(seen.some).astype(np.float32)

    def error(ends: Range) -> float:
        return _error(values, ends, least, greatest=greatest)

    best = min(((low * part, high * part) for part in PARTS), key=error)
    if low < 0 < high:
        best = min(((low * part, best[1]) for part in PARTS), key=error)
        best = min(((best[0], high * part) for part in PARTS), key=error)
    return best


def _error(values: Array, ends: Range, least: int, greatest: int) -> float:
    """Mean squared error of quantising between these ends, as onnxruntime's tool sets scale and zero point."""
    step = (ends[1] - ends[0]) / (greatest - least)
    if step <= 0:
        return float(np.square(values, dtype=np.float64).mean())
    zero = np.clip(np.rint(least - ends[0] / step), least, greatest)
    found = (np.clip(np.rint(values / np.float32(step)) + np.float32(zero), least, greatest) - zero) * step
    return float(np.square(found - values, dtype=np.float64).mean())
