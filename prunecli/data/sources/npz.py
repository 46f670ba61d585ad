"""`data.npz`: arrays named as the model's inputs, and optionally `labels`."""

from __future__ import annotations

from prunecli.data.dataset import Dataset, build
from prunecli.data.matching import match, split_labels
from prunecli.data.npy import open_npz
from prunecli.data.sources.npy import read_labels
from prunecli.data.sources.registry import Request, has_suffix, source


@source("npz", "data.npz with arrays named as the inputs and labels", has_suffix(".npz"), ("--labels",))
def read(request: Request) -> Dataset:
    columns = open_npz(request.path, request.limit)
    feeds, labels = split_labels(columns, request.specs)
    if request.labels is not None:
        labels = read_labels(request.labels, request.limit)
    matched = match(request.specs, feeds, request.path.name, request.axes)
    return build(request.specs, matched, labels, request.text, request.axes)
