"""Learning rates over a run: a factory takes the number of steps and returns fraction(step) in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
SCHEDULES: dict[str, Callable[[int], Schedule]] = {}


def schedule(name: str) -> Callable[[Callable[[int], Schedule]], Callable[[int], Schedule]]:
    """Register a factory: `factory(steps)` returns the fraction of the learning rate at step 0 .. steps - 1."""

    def add(factory: Callable[[int], Schedule]) -> Callable[[int], Schedule]:
        SCHEDULES[name] = factory
        return factory

    return add


@schedule("constant")
def constant(steps: int) -> Schedule:
    """Always 1."""
    return lambda step: 1.0


@schedule("cosine")
def cosine(steps: int) -> Schedule:
    """(1 + cos(pi step / steps)) / 2 (Loshchilov and Hutter 2017, without restarts)."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(steps, 1)))


@schedule("step")
def step_down(steps: int) -> Schedule:
    """A tenth after half of the steps, a hundredth after three quarters (He et al. 2016)."""
    return lambda step: 1.0 if 2 * step < steps else 0.1 if 4 * step < 3 * steps else 0.01


@schedule("onecycle")
def one_cycle(steps: int) -> Schedule:
    """From 1/25 up to 1 over the first 30 %, then down to 1e-4, both along a cosine (Smith and Topin 2018)."""
    peak = max(round(0.3 * steps), 1)

    def fraction(step: int) -> float:
        if step < peak:
            low, high, along = 1 / 25, 1.0, step / peak
        else:
            low, high, along = 1.0, 1e-4, min((step - peak) / max(steps - peak, 1), 1.0)
        return low + (high - low) * 0.5 * (1 - math.cos(math.pi * along))

    return fraction


def warmed(fraction: Schedule, warmup: int) -> Schedule:
    """The same with a linear rise over the first `warmup` steps (Goyal et al. 2017)."""
    return lambda step: fraction(step) * min((step + 1) / (warmup + 1), 1.0)
