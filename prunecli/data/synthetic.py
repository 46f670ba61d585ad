"""Inputs made from nothing but a model's signature, for calibration without data."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from prunecli.arrays import Array
from prunecli.data.axes import batch_axes
from prunecli.data.columns import InputColumn, check_budget
from prunecli.data.dataset import Chunk, Dataset
from prunecli.errors import PruneError
from prunecli.inputs import DEFAULT_BATCH, SYNTHETIC, InputSpec, numpy_dtype, random_inputs

Feed = dict[str, Array]
_IMAGE_RANKS = (4, 5)
_COLOURS = (1, 3, 4)
_BYTE_MIDDLE, _BYTE_SPREAD = 115.0, 60.0
_TINT = 0.1
"""Of the variance of a colour: what its channels do not share."""
_FEWEST_LEAVES, _MOST_LEAVES, _PLACES = 4, 50, 20
"""Of a picture; one more at most for so many places."""
_SMALL = 64


def image_like(spec: InputSpec, shape: Sequence[int]) -> bool:
    """Float or 8-bit tensors of rank 4 or 5 (N, C, *space) or (N, *space, C) with more than one place in space."""
    kind = spec.is_float or spec.dtype == "uint8"
    return kind and len(shape) in _IMAGE_RANKS and int(np.prod(shape[2:])) > 1


def synthetic_feed(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], seed: int, limits: Mapping[str, int]
) -> Feed:
    """One run's inputs: `dead_leaves` for what is like an image, `random_inputs` for everything else.

    Raises:
        PruneError: as `random_inputs`; no samples.
    """
    feed = random_inputs(specs, seed=seed, limits=limits, shapes=shapes)
    for spec in specs:
        shape = tuple(shapes[spec.name])
        if 0 in shape:
            raise PruneError(f"the input {spec.describe()} holds no values", "give its size with --input-shape")
        if image_like(spec, shape):
            values = dead_leaves(shape, np.random.default_rng([seed, zlib.crc32(spec.name.encode()), 1]))
            if spec.dtype == "uint8":
                values = np.clip(np.rint(values * _BYTE_SPREAD + _BYTE_MIDDLE), 0, 255)
            feed[spec.name] = values.astype(numpy_dtype(spec.dtype))
    return feed


def dead_leaves(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Pictures of nothing, float32, of about mean 0 and variance 1 over all samples: dead leaves.

    Ellipses and boxes of random places, sizes, colours and shades cover each other (Lee, Mumford and Huang 2001), so
    that there are edges, corners and plain areas of all sizes as in photographs; each shows a part of one texture,
    noise with the spectrum f^-a of photographs (Field 1987). What networks compute of such pictures is nearer to what
    they compute of photographs than with noise alone (Baradad et al. 2021; `docs/benchmarks.md`). Colours are mostly
    grey, as they are in photographs, and samples differ in brightness and contrast.

    Args:
        shape: (N, C, *space), or (N, *space, C) where only the last axis can be colours.
    """
    last = shape[1] not in _COLOURS and shape[-1] in _COLOURS
    n, channels = shape[0], shape[-1] if last else shape[1]
    space = tuple(shape[1:-1] if last else shape[2:])
    out = np.empty((n, channels, *space), np.float32)
    for sample in out:
        sample[:] = _leaves(rng, channels, space)
    return np.moveaxis(out, 1, -1) if last else out


def _leaves(rng: np.random.Generator, channels: int, space: tuple[int, ...]) -> Array:
    """One picture (C, *space): computed at twice the size where that is small, so that edges are smooth."""
    finer = 2 if max(space) <= _SMALL else 1
    sides = np.array(space) * finer

    def colour(spread: float) -> Array:
        grey, own = rng.normal(), rng.normal(size=channels)
        return np.asarray(spread * (np.sqrt(1 - _TINT) * grey + np.sqrt(_TINT) * own), np.float32)

    ground, contrast = colour(0.6), rng.uniform(0.3, 1.2)
    falloff = _frequencies(sides.tolist()) ** -rng.uniform(0.5, 1.8)
    falloff.flat[0] = 0.0
    common, own = (_filtered(rng, count, tuple(sides.tolist()), falloff=falloff) for count in (1, channels))
    texture = (contrast * (np.sqrt(1 - _TINT) * common + np.sqrt(_TINT) * own)).astype(np.float32)
    picture = ground.reshape(-1, *[1] * len(space)) + 0.5 * texture
    for _ in range(
        int(rng.integers(_FEWEST_LEAVES, _FEWEST_LEAVES + 1 + min(_MOST_LEAVES, math.prod(space) // _PLACES)))
    ):
        window, inside, shade = _leaf(rng, sides, finer)
        paint = (ground + colour(contrast))[:, None] + shade + rng.uniform(0, 1) * texture[window][:, inside]
        picture[window][:, inside] = paint
    cells = [part for side in space for part in (side, finer)]
    return np.asarray(picture.reshape(channels, *cells).mean(axis=tuple(range(2, 2 * len(space) + 2, 2))))


def _leaf(rng: np.random.Generator, sides: Array, finer: int) -> tuple[tuple[slice, ...], Array, Array]:
    """An ellipse or a box: the window of (C, *space) that holds it, its mask there, and how much brighter than its
    middle it is at each of its places."""
    radius = max(float(sides.max()) / 2 / (1 + rng.pareto(1.5)) * rng.uniform(0.3, 1), 0.75 * finer)
    middle, axes = rng.uniform(-0.1, 1.1, len(sides)) * sides, rng.uniform(0.35, 1, len(sides))
    axes[0] = 1.0
    reach = radius * np.sqrt(len(sides))
    low, high = (np.clip(np.floor(middle + sign * reach), 0, sides).astype(int) for sign in (-1, 1))
    places = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"))
    turn, _ = np.linalg.qr(rng.normal(size=(len(sides), len(sides))))
    offset = (places - middle.reshape(-1, *[1] * len(sides))) / radius
    turned = np.tensordot(turn, offset, 1) / axes.reshape(-1, *[1] * len(sides))
    inside = (turned**2).sum(axis=0) < 1 if rng.random() < 0.5 else np.abs(turned).max(axis=0) < 0.9
    slope = rng.normal(0, 0.3, len(sides))
    shade = np.tensordot(slope, offset[:, inside], 1).astype(np.float32)
    return (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True))), inside, shade


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
