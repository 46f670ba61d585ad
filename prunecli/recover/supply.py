"""Batches for training: shuffled, augmented, with the loss's targets, and the same again after a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.data import Batch, Dataset
from prunecli.errors import PruneError
from prunecli.recover.augment import apply_augments, mixup
from prunecli.recover.objective import Objective

Array = np.ndarray[Any, Any]
Teacher = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Supply:
    """Draws batches from `data`. `like`: an output of the model for one run, for the targets' shape.

    A model of fixed batch size gets several runs for one batch. Samples that do not fill a batch wait for the
    next epoch's order.
    """

    data: Dataset
    objective: Objective
    batch_size: int
    like: Array
    seed: int = 0
    augment: tuple[str, ...] = ()
    mixup: float = 0.0
    teacher: Teacher | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data) // self.batch_size

    @property
    def run_size(self) -> int:
        """Samples in one run of the model."""
        return self.data.fixed_batch or self.batch_size

    def feeds(self, epoch: int, step: int, rng: np.random.Generator) -> list[Mapping[str, Array]]:
        """The runs of a step: model inputs and the loss's inputs."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        parts = [rows[i : i + self.run_size] for i in range(0, len(rows), self.run_size)]
        return [self._feed(next(self.data.select(part).batches(self.run_size)), rng) for part in parts]

    def _feed(self, batch: Batch, rng: np.random.Generator) -> dict[str, Array]:
        feed = apply_augments(dict(batch.feed), self.augment, rng)
        targets = self.objective.targets(batch.labels, self.like)
        if self.mixup:
            feed, targets = self._mixed(feed, targets, rng)
        if self.teacher is not None:
            targets |= self.objective.answers(self.teacher(feed), batch.labels)
        return feed | targets

    def _mixed(
        self, feed: dict[str, Array], targets: dict[str, Array], rng: np.random.Generator
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        axes = self.data.axes
        floats = {n: np.moveaxis(a, axes.get(n, 0), 0) for n, a in feed.items() if np.issubdtype(a.dtype, np.floating)}
        mixed = mixup(floats | targets, self.mixup, rng)
        back = {n: np.ascontiguousarray(np.moveaxis(mixed[n], 0, axes.get(n, 0))) for n in floats}
        return feed | back, {n: mixed[n] for n in targets}


def check_trainable(data: Dataset, batch_size: int) -> int:
    """The batch size to train with: at most the samples there are, a multiple of what the model insists on.

    Raises:
        PruneError: recorded test sets or several shapes (their batches cannot be drawn), too few samples.
    """
    if len(data.chunks) != 1 or data.chunks[0].whole or data.unbatched:
        raise PruneError(f"{data.source} holds samples that cannot be drawn at random", "give arrays of one shape")
    if len(data) < 2:
        raise PruneError(f"{data.source} leaves {len(data)} sample to train on", "give more samples")
    fixed = data.fixed_batch or 1
    size = min(batch_size, len(data)) // fixed * fixed
    if size == 0:
        raise PruneError(f"{len(data)} samples do not fill the model's batch of {fixed}", "give more samples")
    return size
