"""Data for calibration, training and evaluation: read from what the command line allows, matched to a model's
inputs, cast to their types, in batches that the model accepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunecli.data.dataset import Batch, Classes, Dataset
from prunecli.data.images.options import ImageOptions
from prunecli.data.random import random_data
from prunecli.data.sources import Request, find_source
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

__all__ = ["Batch", "Classes", "Dataset", "ImageOptions", "open_data", "random_data"]


def open_data(
    text: str,
    specs: Sequence[InputSpec],
    *,
    labels: str | Path | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    images: ImageOptions | None = None,
) -> Dataset:
    """The data that `--data TEXT` names, for a model with the inputs `specs`.

    Args:
        text: a path, or `module:function`; see `prunecli.data.sources`.
        labels: the .npy of `--labels`, for a .npy or .npz of inputs.
        label_column: the label's column in a .csv.
        limit: only the first so many samples; nothing after them is read.
        images: how the images of a folder become inputs, and what its sub-folders mean.

    Raises:
        PruneError: unreadable, empty, or not fitting the model; the message names the input.
    """
    if not specs:
        raise PruneError("the model has no inputs, so it takes no data", "leave out --data")
    request = Request(
        text, specs, None if labels is None else Path(labels), label_column, limit, images or ImageOptions()
    )
    try:
        return find_source(request).read(request)
    except OSError as error:
        raise PruneError(
            f"cannot read {text}: {error.strerror or error}", "check the path and its permissions"
        ) from error
