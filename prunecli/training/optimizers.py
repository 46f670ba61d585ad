"""Optimizers over one flat float32 buffer, in place, chunk by chunk so that operands stay in the cache.

w are the weights, g the gradient, eta the learning rate of the step, lambda the weight decay, t the step from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from prunecli.registry import into

Flat = np.ndarray[Any, np.dtype[np.float32]]
CHUNK = 1 << 16


@dataclass(frozen=True)
class OptimizerSettings:
    """`momentum` is beta1 of the Adams. `weight_decay` applies where the decay mask is 1."""

    momentum: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 5e-4


class Optimizer:
    """Updates weights in place along a `direction` computed from their gradients.

    `state` is all that it remembers, for checkpoints. The decay is added to the gradient, or to the direction
    (`decoupled`). `relative`: the direction does not scale with the gradient, so that steps should scale with the
    weights.
    """

    names: tuple[str, ...] = ()
    decoupled = False
    relative = False

    def __init__(self, size: int, settings: OptimizerSettings) -> None:
        self.settings = settings
        self.state = {name: np.zeros(size, np.float32) for name in self.names}

    def direction(self, g: Flat, part: slice, step: int) -> Flat:
        """Return the direction for the elements `part` of the weights; a step of rate 1 subtracts it."""
        raise NotImplementedError

    def update(self, weights: Flat, gradients: Flat, decays: Flat, rates: Flat, step: int) -> None:
        decay = self.settings.weight_decay
        for part in chunks(len(weights)):
            w, g = weights[part], gradients[part]
            if decay and not self.decoupled:
                g = g + decay * decays[part] * w
            move = self.direction(g, part, step)
            if decay and self.decoupled:
                move = move + decay * decays[part] * w
            w -= rates[part] * move


@dataclass(frozen=True)
class OptimizerEntry:
    """A registered optimizer: how to make one for n weights, and the learning rate it starts from by default."""

    make: Callable[[int, OptimizerSettings], Optimizer]
    rate: float


Kind = TypeVar("Kind", bound=type[Optimizer])
OPTIMIZERS: dict[str, OptimizerEntry] = {}


def optimizer(name: str, rate: float) -> Callable[[Kind], Kind]:
    """Register an optimizer class under a name."""

    def add(cls: Kind) -> Kind:
        OPTIMIZERS[name] = OptimizerEntry(cls, rate)
        return cls

    return add


def chunks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK))


@optimizer("sgd", rate=0.05)
class Momentum(Optimizer):
    """v = mu v + g + lambda w; w -= eta (g + lambda w + mu v): Nesterov's form (Sutskever et al. 2013)."""

    names = ("velocity",)

    def direction(self, g: Flat, part: slice, step: int) -> Flat:
        v = self.state["velocity"][part]
        v *= self.settings.momentum
        v += g
        return g + self.settings.momentum * v


@optimizer("adam", rate=1e-3)
class Adam(Optimizer):
    """w -= eta m / (sqrt(v) + epsilon), the decay added to the gradient (Kingma and Ba 2015)."""

    names, relative = ("first", "second"), True

    def direction(self, g: Flat, part: slice, step: int) -> Flat:
        """m / (sqrt(v) + epsilon), both moments corrected for their start at zero."""
        m, v = self.state["first"][part], self.state["second"][part]
        k = self.settings
        m *= k.momentum
        m += (1 - k.momentum) * g
        v *= k.beta2
        v += (1 - k.beta2) * g * g
        root = np.sqrt(v / (1 - k.beta2**step))
        root += k.epsilon
        return np.asarray(m / (1 - k.momentum**step) / root, np.float32)


@optimizer("adamw", rate=1e-3)
class AdamW(Adam):
    """w -= eta (m / (sqrt(v) + epsilon) + lambda w): decoupled decay (Loshchilov and Hutter 2019)."""

    decoupled = True


def clip_norm(gradients: Flat, limit: float) -> float:
    """Scale the gradient so that its Euclidean norm is at most `limit` (Pascanu et al. 2013). Returns the norm."""
    with np.errstate(over="ignore"):
        norm = float(np.sqrt(sum(float(np.dot(gradients[p], gradients[p])) for p in chunks(len(gradients)))))
    if not np.isfinite(norm):  # float32 squares overflow from 1e19 on
        norm = float(np.linalg.norm(gradients.astype(np.float64)))
    if np.isfinite(norm) and norm > limit:
        gradients *= np.float32(limit / norm)
    return norm


Schedule = Callable[[int], float]
SCHEDULES: dict[str, Callable[[int], Schedule]] = {}


schedule = into(SCHEDULES)
"""Registers a factory: `factory(steps)` returns the fraction of the learning rate at step 0 .. steps - 1."""


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
    """Return the schedule with a linear rise over the first `warmup` steps (Goyal et al. 2017)."""
    return lambda step: fraction(step) * min((step + 1) / (warmup + 1), 1.0)
