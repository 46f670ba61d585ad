"""Seeded random samples, for when the user has no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prunecli.data.axes import batch_axes
from prunecli.data.columns import Column
from prunecli.data.dataset import Chunk, Dataset
from prunecli.errors import PruneError
from prunecli.inputs import DEFAULT_BATCH, InputSpec, random_inputs


def random_data(
    specs: Sequence[InputSpec],
    count: int,
    seed: int = 0,
    *,
    limits: Mapping[str, int] | None = None,
    dims: Mapping[str, int] | None = None,
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
        feed = random_inputs(specs, dims, seed + turn, limits=limits, shapes=shapes, batch=batch)
        sizes = {value.shape[axes.get(name, 0)] for name, value in feed.items() if value.ndim}
        rows = sizes.pop() if len(sizes) == 1 else 1
        if rows == 0:
            raise PruneError(
                f"random inputs hold no samples: {', '.join(s.describe() for s in specs)}",
                "the model's first dimension is fixed at 0; export it with another",
            )
        columns = {name: Column.of(f"random {name}", value) for name, value in feed.items()}
        chunks.append(Chunk(columns, np.arange(rows), whole=True))
    return Dataset(specs, chunks, "seeded random inputs", axes=axes)
