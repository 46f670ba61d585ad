"""Inputs made from nothing but a model's signature, for calibration without data."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunecli.data.axes import batch_axes
from prunecli.data.columns import InputColumn, check_budget
from prunecli.data.dataset import Chunk, Dataset
from prunecli.errors import PruneError
from prunecli.inputs import DEFAULT_BATCH, SYNTHETIC, InputSpec, numpy_dtype, random_inputs

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
_IMAGE_RANKS = (4, 5)
_COLOURS = (1, 3, 4)
_BYTE_MIDDLE, _BYTE_SPREAD = 115.0, 60.0


def image_like(spec: InputSpec, shape: Sequence[int]) -> bool:
    """Float or 8-bit tensors of rank 4 or 5 (N, C, *space) or (N, *space, C) with more than one place in space."""
    kind = spec.is_float or spec.dtype == "uint8"
    return kind and len(shape) in _IMAGE_RANKS and int(np.prod(shape[2:])) > 1


def synthetic_feed(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], seed: int, limits: Mapping[str, int]
) -> Feed:
    """One run's inputs: `image_noise` for what is like an image, `random_inputs` for everything else.

    Raises:
        PruneError: as `random_inputs`; no samples.
    """
    feed = random_inputs(specs, seed=seed, limits=limits, shapes=shapes)
    for spec in specs:
        shape = tuple(shapes[spec.name])
        if 0 in shape:
            raise PruneError(f"the input {spec.describe()} holds no values", "give its size with --input-shape")
        if image_like(spec, shape):
            values = image_noise(shape, np.random.default_rng([seed, zlib.crc32(spec.name.encode()), 1]))
            if spec.dtype == "uint8":
                values = np.clip(np.rint(values * _BYTE_SPREAD + _BYTE_MIDDLE), 0, 255)
            feed[spec.name] = values.astype(numpy_dtype(spec.dtype))
    return feed


def image_noise(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Noise with the spectrum of photographs, float32, of about mean 0 and variance 1 over all samples.

    The amplitude at spatial frequency f is f^-a: a = 1 is that of natural images (Field 1987), each sample draws its
    own a from [0.5, 1.8], a contrast from [0.4, 1.4] and a brightness. Channels share a part of their noise, as
    colours do.

    Args:
        shape: (N, C, *space), or (N, *space, C) where only the last axis can be colours.
    """
    last = shape[1] not in _COLOURS and shape[-1] in _COLOURS
    n, channels = shape[0], shape[-1] if last else shape[1]
    space = tuple(shape[1:-1] if last else shape[2:])
    out = np.empty((n, channels, *space), np.float32)
    radius = _frequencies(space)
    for sample in out:
        falloff = radius ** -rng.uniform(0.5, 1.8)
        falloff.flat[0] = 0.0
        common, own = _filtered(rng, 1, space, falloff), _filtered(rng, channels, space, falloff)
        share = rng.uniform(0.4, 1.0)
        contrast, brightness = rng.uniform(0.4, 1.4), rng.normal(0.0, 0.4, (channels, *[1] * len(space)))
        sample[:] = contrast * (np.sqrt(share) * common + np.sqrt(1 - share) * own) + brightness
    return np.moveaxis(out, 1, -1) if last else out


def _frequencies(space: Sequence[int]) -> Array:
    """|f| of each coefficient of `rfftn`, in cycles per side."""
    axes = [np.fft.fftfreq(size, 1 / size) for size in space[:-1]] + [np.fft.rfftfreq(space[-1], 1 / space[-1])]
    squares = sum(grid**2 for grid in np.meshgrid(*axes, indexing="ij"))
    return np.asarray(np.sqrt(np.maximum(squares, 1.0)))


def _filtered(rng: np.random.Generator, count: int, space: Sequence[int], falloff: Array) -> Array:
    """White noise times `falloff` in the spectrum, of variance 1 in each of the `count` planes."""
    axes = tuple(range(1, len(space) + 1))
    spectrum = np.fft.rfftn(rng.standard_normal((count, *space)), axes=axes) * falloff
    planes = np.fft.irfftn(spectrum, s=tuple(space), axes=axes)
    spread = planes.std(axis=axes, keepdims=True)
    return np.asarray(planes / np.maximum(spread, 1e-12))


def rows_and_runs(specs: Sequence[InputSpec], count: int, batch: int) -> tuple[int, int, bool]:
    """Return for about `count` samples: the samples of a run, the number of runs, and whether the first axis of every
    input counts samples.

    Runs have one size, of at most `batch`, so that one gradient model serves them all.
    """
    firsts = {spec.shape[0] for spec in specs if spec.shape}
    later = {dim for spec in specs for dim in spec.shape[1:] if isinstance(dim, str)}
    counts_samples = len(firsts) == 1 and not firsts & later and all(spec.shape for spec in specs)
    fixed = next((size for size in firsts if isinstance(size, int)), None)
    if not counts_samples or fixed is not None:
        rows = fixed or 1
        return rows, max(-(-count // rows), 1), counts_samples
    runs = -(-count // batch)
    return -(-count // runs), runs, True


def as_dataset(specs: Sequence[InputSpec], feeds: Sequence[Feed], by_sample: bool, notes: Sequence[str]) -> Dataset:
    """The runs as a data set called `synthetic`: of samples, or of runs that stay whole."""
    if not by_sample:
        chunks = [Chunk(_columns(feed), np.arange(1), whole=True) for feed in feeds]
        return Dataset(specs, chunks, SYNTHETIC, notes=notes)
    joined = {spec.name: np.concatenate([feed[spec.name] for feed in feeds]) for spec in specs}
    rows = len(next(iter(joined.values())))
    return Dataset(specs, [Chunk(_columns(joined), np.arange(rows))], SYNTHETIC, notes=notes)


def check_size(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], runs: int) -> None:
    """Raise PruneError if the inputs would not fit into memory."""
    for spec in specs:
        if spec.is_tensor and spec.dtype != "str":
            check_budget(f"synthetic {spec.name}", (runs, *shapes[spec.name]), numpy_dtype(spec.dtype))


def _columns(feed: Feed) -> dict[str, InputColumn]:
    return {name: InputColumn.of(f"synthetic {name}", value) for name, value in feed.items()}


def random_data(
    specs: Sequence[InputSpec],
    count: int,
    seed: int = 0,
    *,
    limits: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = DEFAULT_BATCH,
    outputs: Sequence[InputSpec] = (),
) -> Dataset:
    """`count` runs of `random_inputs` with the seeds `seed`, `seed + 1`, ...; each is one batch as it is.

    Raises:
        PruneError: an input that random values cannot be made for or that holds none, unknown names in `shapes`.
    """
    chunks, axes = [], {name: axis for name, axis in batch_axes(specs, outputs, {}).items() if axis}
    for turn in range(count):
        feed = random_inputs(specs, None, seed + turn, limits=limits, shapes=shapes, batch=batch)
        sizes = {value.shape[axes.get(name, 0)] for name, value in feed.items() if value.ndim}
        rows = sizes.pop() if len(sizes) == 1 else 1
        if rows == 0:
            raise PruneError(
                f"random inputs hold no samples: {', '.join(s.describe() for s in specs)}",
                "the model's first dimension is fixed at 0; export it with another",
            )
        columns = {name: InputColumn.of(f"random {name}", value) for name, value in feed.items()}
        chunks.append(Chunk(columns, np.arange(rows), whole=True))
    return Dataset(specs, chunks, "seeded random inputs", axes=axes)
