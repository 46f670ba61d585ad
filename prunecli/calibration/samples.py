"""The samples that a criterion or a fit is measured on: the user's own, or synthetic ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunecli.data import Dataset
from prunecli.data.options import DataOptions
from prunecli.inputs import SYNTHETIC
from prunecli.model import Dims, Model, concrete_shapes
from prunecli.runtime import Execution
from prunecli.types import Json, Progress

FEW = 8


def calibration_samples(
    file: Model, wanted: DataOptions, samples: int, seed: int, dims: Dims, execution: Execution, progress: Progress
) -> Dataset:
    """`samples` samples, drawn at random where there are more; all of them if the user gave a limit.

    Args:
        file: the model, whose `ir` may be a working form of what is at its path.
    Raises:
        PruneError: as `DataOptions.open` and `synthetic_data`; labels of synthetic data.
    """
    session = execution.open(file.path)
    if wanted.synthetic:
        from prunecli.calibration.synthetic import synthetic_data

        wanted.check_synthetic(True)
        shapes, count = concrete_shapes(file, dims).inputs, wanted.limit or samples
        return synthetic_data(file, session, shapes, count, seed, progress, execution.thread_count)
    data = wanted.open(session.inputs)
    if wanted.limit is None and len(data) > samples:
        data = data.shuffled(seed).take(samples)
    return data


def first_feed(data: Dataset) -> Mapping[str, Any]:
    """A few samples, for a proof."""
    return next(data.batches(FEW)).feed


def about(data: Dataset) -> Json:
    """The data's part of a recorded recipe."""
    notes = {"data_notes": list(data.notes)} if data.notes else {}
    return {"samples": len(data), "data": data.source, **notes}


def cautions(data: Dataset) -> list[str]:
    """What readers of the report have to know of the data."""
    return list(data.notes) if data.source == SYNTHETIC else []
