"""Batches for training: shuffled and augmented, with the targets of the loss; the same again after a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.calibration.objective import Objective
from prunecli.data import Batch, Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.robustness import channel_axis, is_image
from prunecli.model import Model
from prunecli.registry import into
from prunecli.training.hyperparameters import Hyperparameters

Teacher = Callable[[Mapping[str, Array]], Mapping[str, Array]]
LEAST_RUN, LEAST_NORMALISED = 4, 16
"""Least samples of a run before a batch is halved: of images, which have many positions, and of values normalised over
the samples alone."""
LEAST_SIDE = 0.5
"""Least side of a crop, as a fraction of the image's."""


@dataclass(frozen=True)
class Supply:
    """Draws batches from `data`. `like`: an output of the model for one run, for the targets' shape.

    A batch is several runs of `run_size` samples, of which a model may ask for a fixed number. Samples that do not fill
    a batch wait for the next epoch's order.
    """

    data: Dataset
    objective: Objective
    batch_size: int
    run_size: int
    like: Array
    seed: int
    teacher: Teacher | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data) // self.batch_size

    def feeds(
        self, epoch: int, step: int, rng: np.random.Generator, hyper: Hyperparameters
    ) -> list[Mapping[str, Array]]:
        """Return the runs of a step: inputs of the model and of the loss."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        parts = [rows[i : i + self.run_size] for i in range(0, len(rows), self.run_size)]
        return [self._feed(next(self.data.select(part).batches(self.run_size)), rng, hyper) for part in parts]

    def _feed(self, batch: Batch, rng: np.random.Generator, hyper: Hyperparameters) -> dict[str, Array]:
        feed = apply_augments(dict(batch.feed), hyper.augment, rng)
        targets = self.objective.targets(batch.labels, self.like)
        if hyper.mixup:
            feed, targets = self._mixed(feed, targets, rng, alpha=hyper.mixup)
        if self.teacher is not None:
            targets |= self.objective.answers(self.teacher(feed), batch.labels)
        return feed | targets

    def _mixed(
        self, feed: dict[str, Array], targets: dict[str, Array], rng: np.random.Generator, alpha: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        axes = self.data.axes
        floats = {n: np.moveaxis(a, axes.get(n, 0), 0) for n, a in feed.items() if np.issubdtype(a.dtype, np.floating)}
        mixed = mixup(floats | targets, alpha, rng)
        back = {n: np.ascontiguousarray(np.moveaxis(mixed[n], 0, axes.get(n, 0))) for n in floats}
        return feed | back, {n: mixed[n] for n in targets}


def size_of_run(batch_size: int, fixed: int | None, model: Model) -> int:
    """Return how many samples of a batch are run together: halves run side by side on two threads (data-parallel
    training), each normalised by its own statistics where BatchNormalization uses those of the batch.

    Args:
        fixed: the batch that the model requires.
    """
    normalised = any(node.op_type == "BatchNormalization" for node in model.ir.graph)
    images = all(value.shape is not None and len(value.shape) >= 4 for value in model.ir.graph.inputs)
    least = LEAST_NORMALISED if normalised and not images else LEAST_RUN
    return fixed or (batch_size // 2 if batch_size % 2 == 0 and batch_size >= 2 * least else batch_size)


def check_trainable(data: Dataset, batch_size: int) -> int:
    """Return the batch size of the training: at most the number of samples, a multiple of a fixed batch, and at least
    that.

    Raises:
        PruneError: recorded test sets or several shapes (their batches cannot be drawn), too few samples.
    """
    if len(data.chunks) != 1 or data.chunks[0].whole or data.unbatched:
        raise PruneError(f"{data.source} holds samples that cannot be drawn at random", "give arrays of one shape")
    if len(data) < 2:
        raise PruneError(f"{data.source} leaves {len(data)} sample to train on", "give more samples")
    fixed = data.fixed_batch or 1
    size = min(max(batch_size, fixed), len(data)) // fixed * fixed
    if size == 0:
        raise PruneError(f"{len(data)} samples do not fill the model's batch of {fixed}", "give more samples")
    return size


Augment = Callable[[Array, np.random.Generator], Array]
AUGMENTS: dict[str, Augment] = {}


augment = into(AUGMENTS)
"""Registers a change: `change(images, rng)` returns images of the same shape and type."""


@augment("flip")
def flip(images: Array, rng: np.random.Generator) -> Array:
    """Mirror left and right, each image with probability one half."""
    chosen = rng.random(len(images)) < 0.5
    out = images.copy()
    out[chosen] = images[chosen][..., ::-1]
    return out


@augment("shift")
def shift(images: Array, rng: np.random.Generator) -> Array:
    """Move each image by up to an eighth of its sides; what enters is zero (the mean of normalised images)."""
    n, _, height, width = images.shape
    reach = (max(height // 8, 1), max(width // 8, 1))
    padded = np.pad(images, ((0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2))
    top = rng.integers(0, 2 * reach[0] + 1, n)
    left = rng.integers(0, 2 * reach[1] + 1, n)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    return np.ascontiguousarray(windows[np.arange(n), :, top, left])


@augment("crop")
def crop(images: Array, rng: np.random.Generator) -> Array:
    """Enlarge a random window of each image, of LEAST_SIDE to all of a side, to the whole (Szegedy et al. 2015)."""
    windows = [[_window(size, rng).astype(images.dtype) for size in images.shape[2:]] for _ in images]
    return np.stack([rows @ image @ columns.T for image, (rows, columns) in zip(images, windows, strict=True)])


def _window(size: int, rng: np.random.Generator) -> Array:
    """Return the weights (size, size) of bilinear interpolation at `size` places across a random part of an axis."""
    share = rng.uniform(LEAST_SIDE, 1.0)
    places = rng.uniform(0.0, (1.0 - share) * (size - 1)) + share * np.arange(size)
    return np.asarray(np.maximum(1.0 - np.abs(places[:, None] - np.arange(size)), 0.0))


@augment("cutout")
def cutout(images: Array, rng: np.random.Generator) -> Array:
    """Zero one square of a quarter of the shorter side, at a random centre (DeVries and Taylor 2017)."""
    n, _, height, width = images.shape
    side = max(min(height, width) // 4, 1)
    rows, columns = rng.integers(0, height, n), rng.integers(0, width, n)
    inside = (np.abs(np.arange(height)[None, :, None] - rows[:, None, None]) <= side // 2) & (
        np.abs(np.arange(width)[None, None, :] - columns[:, None, None]) <= side // 2
    )
    return np.where(inside[:, None], np.zeros((), images.dtype), images)


def apply_augments(feed: dict[str, Array], names: Sequence[str], rng: np.random.Generator) -> dict[str, Array]:
    """The feed with its image-like inputs changed. Channels are the last axis where only
    that has 1, 3 or 4 entries, else the first after the batch."""
    out = dict(feed)
    for name in names:
        for key, value in feed.items():
            if is_image(value):
                channels = channel_axis(value.shape) or 1
                changed = AUGMENTS[name](np.moveaxis(out[key], channels, 1), rng)
                out[key] = np.ascontiguousarray(np.moveaxis(changed, 1, channels))
    return out


def mixup(arrays: dict[str, Array], alpha: float, rng: np.random.Generator) -> dict[str, Array]:
    """Each sample x_i becomes m x_i + (1 - m) x_j, m ~ Beta(alpha, alpha), j a permutation, the same for every
    array, so labels given as distributions mix alike (Zhang et al. 2018)."""
    count = len(next(iter(arrays.values())))
    other = rng.permutation(count)
    share = np.float32(rng.beta(alpha, alpha))
    return {name: (share * a + (1 - share) * a[other]).astype(a.dtype) for name, a in arrays.items()}
