"""`x.npy`, with `--labels y.npy`: the one input of a model."""

from __future__ import annotations

from pathlib import Path

from prunecli.data.columns import InputColumn
from prunecli.data.dataset import Dataset, build
from prunecli.data.matching import match
from prunecli.data.npy import open_npy
from prunecli.data.sources.registry import Request, has_suffix, source
from prunecli.errors import PruneError


@source("npy", "x.npy with --labels y.npy", has_suffix(".npy"), ("--labels",))
def read(request: Request) -> Dataset:
    column = open_npy(request.path, request.path.name, request.limit)
    labels = None if request.labels is None else read_labels(request.labels, request.limit)
    columns = match(request.specs, {request.path.stem: column}, request.path.name, request.axes)
    return build(request.specs, columns, labels, request.text, request.axes)


def read_labels(path: Path, limit: int | None) -> InputColumn:
    """The .npy given to --labels.

    Raises:
        PruneError: it is missing or no .npy file.
    """
    if not path.is_file():
        raise PruneError(f"the labels file {path} does not exist", "check the path given to --labels")
    if path.suffix.lower() != ".npy":
        raise PruneError(f"--labels {path} is not a .npy file", "write the labels with numpy.save")
    return open_npy(path, path.name, limit)
