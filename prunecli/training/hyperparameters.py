"""Training options that are left open: chosen from the data, or by short runs scored on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from prunecli.options.training import FinetuneOptions
from prunecli.training.optimizers import OPTIMIZERS

EPOCHS, LONGEST = 5, 100
"""Default passes over the data: at least, and at most where samples are few."""
STEPS, TAUGHT_STEPS = 1000, 2000
"""Default steps of a run, where LONGEST allows: with labels, and with a teacher alone, whose batches are smaller."""
WORK = 1.5e12
"""Multiply-accumulates of the forward runs of a run with a teacher alone, by default at most: some minutes."""
BLOCKS = 0.25
"""Default fraction of the run in which each block learns alone."""
PATIENT = 0.5
"""Default fraction of the run before epochs without a better score count: while the rate is high, few are better."""
TRIAL = 0.08
"""Length of a short run, as a fraction of the whole."""
CHANGES = ((("flip", "shift"), 1.0), (("flip", "crop"), 0.0))
"""Augmentations and mixup that are tried on small images, and on images to be enlarged. The teacher answers for the
changed images."""
TAUGHT = 0.3
"""Learning rate of the first short run with a teacher alone, as a fraction of the optimizer's."""
RATE, MOST = 3.0, 6
"""Factor between learning rates, tried up and down from the best so far, and the most short runs for it."""
CHANGED, STEEP = 0.5, 0.1
"""Corrections, in dB, for what a short run does not show: augmented images are memorised less, and three times the rate
gets further in a long run (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Hyperparameters:
    """`epochs`; `blocks`: the fraction of them in which each block learns alone; `rate`: learning rate; `features`:
    weight of hidden values; `augment` and `mixup`: changes of the samples; `patience`: epochs without a better score
    before the run stops, 0 for any number, counted after the fraction `patient` of the run."""

    epochs: int
    blocks: float
    patience: int
    patient: float
    rate: float
    features: float
    augment: tuple[str, ...]
    mixup: float

    def trial(self) -> Hyperparameters:
        """Return the same for a short run."""
        return replace(self, epochs=max(1, round(TRIAL * self.epochs)), blocks=0.0, patience=0)


def settle(options: FinetuneOptions, steps: int, alone: bool, work: int = 0) -> Hyperparameters:
    """Choose values for options that are left open.

    Args:
        steps: of an epoch.
        alone: whether the teacher is the only target.
        work: multiply-accumulates of the model in an epoch.
    """
    o = options
    longest = min(LONGEST, int(WORK // max(work, 1))) if alone else LONGEST
    epochs = o.epochs or max(EPOCHS, min(longest, math.ceil((TAUGHT_STEPS if alone else STEPS) / max(steps, 1))))
    return Hyperparameters(
        epochs=epochs,
        blocks=(float(alone) * BLOCKS) if o.blocks is None else o.blocks,
        patience=max(2, math.ceil(epochs / 3)) if o.patience is None else o.patience,
        patient=PATIENT if o.patience is None else 0.0,
        rate=OPTIMIZERS[o.optimizer].rate * (TAUGHT if alone else 1.0) if o.rate is None else o.rate,
        features=float(alone) if o.features is None else o.features,
        augment=o.augment or (),
        mixup=o.mixup or 0.0,
    )


def tuned(
    first: Hyperparameters, options: FinetuneOptions, images: bool, score: Callable[[Hyperparameters], float]
) -> Hyperparameters:
    """Return the best by `score`, higher is better, of the given hyperparameters and of one change after the other:
    rates, then augmentations.

    Args:
        images: whether the model reads images, which can be augmented.
    """
    found: dict[Hyperparameters, float] = {}

    def best() -> Hyperparameters:
        return max(found, key=lambda one: found[one])

    def consider(one: Hyperparameters) -> None:
        if one not in found:
            longer = STEEP * math.log(one.rate / first.rate, 3) + (CHANGED if one.augment or one.mixup else 0.0)
            found[one] = score(one) + longer

    free = images and options.augment is None and options.mixup is None
    if not free and options.rate is not None:
        return first
    consider(first)
    for factor in (RATE, 1 / RATE) if options.rate is None else ():
        while (one := replace(best(), rate=best().rate * factor)) not in found and len(found) < MOST:
            consider(one)
    settled = best()
    for augment, mixup in CHANGES if free else ():
        consider(replace(settled, augment=augment, mixup=mixup))
    return best()
