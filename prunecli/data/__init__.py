"""Data for calibration, training and evaluation: read from what the command line allows, matched to a model's
inputs, cast to their types, in batches that the model accepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunecli.data.axes import Axes
from prunecli.data.axes import batch_axes as axes_of
from prunecli.data.dataset import Batch, Classes, Dataset
from prunecli.data.images.options import ImageOptions
from prunecli.data.sources import Request, find_source
from prunecli.data.synthetic import random_data
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
    outputs: Sequence[InputSpec] = (),
    batch_axes: Axes | None = None,
) -> Dataset:
    """The data that `--data TEXT` names, for a model with the inputs `specs`.

    Args:
        text: a path, or `module:function`; see `prunecli.data.sources`.
        labels: the .npy of `--labels`, for a .npy or .npz of inputs.
        label_column: the label's column in a .csv.
        limit: only the first so many samples; nothing after them is read.
        images: how the images of a folder become inputs, and what its sub-folders mean.
        outputs: those of the model, where they will be looked at sample by sample.
        batch_axes: of inputs and outputs that have the samples on another axis than their names say.

    Raises:
        PruneError: unreadable, empty, or not fitting the model; the message names the input.
    """
    if not specs:
        raise PruneError("the model has no inputs, so it takes no data", "leave out --data")
    axes = {name: axis for name, axis in axes_of(specs, outputs, batch_axes or {}).items() if axis}
    inside = any(spec.name in axes for spec in specs)  # rows that are no samples
    request = Request(text, specs, None if labels is None else Path(labels), label_column, None if inside else limit,
                      images or ImageOptions(), axes)  # fmt: skip
    try:
        found = find_source(request).read(request)
        return found.take(limit) if inside and limit is not None else found
    except OSError as error:
        raise PruneError(
            f"cannot read {text}: {error.strerror or error}", "check the path and its permissions"
        ) from error
