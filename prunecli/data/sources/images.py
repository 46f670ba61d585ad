"""A folder of images: one sub-folder per class, or images alone, without labels or with those of --labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.data.columns import InputColumn
from prunecli.data.dataset import Classes, Dataset, build
from prunecli.data.images.classes import number_folders
from prunecli.data.images.decode import SUFFIXES, need_pillow
from prunecli.data.images.pixels import image_column
from prunecli.data.images.prepare import choose_preparation
from prunecli.data.sources.npy import read_labels
from prunecli.data.sources.registry import Request, source
from prunecli.errors import PruneError

Array = np.ndarray[Any, Any]

_SEEN_AT_FIRST = 1000


@dataclass(frozen=True)
class FoundImages:
    """Files in order, their labels, and what the labels stand for."""

    files: list[Path]
    labels: InputColumn | None = None
    classes: Classes | None = None
    notes: tuple[str, ...] = ()


def _is_images(request: Request) -> bool:
    """Whether one of the first files, in the folder or below, has an image's suffix."""
    if not request.path.is_dir():
        return False
    files = chain.from_iterable(request.path.glob(pattern) for pattern in ("*.*", "*/*.*", "*/*/*.*"))
    return any(file.suffix.lower() in SUFFIXES for file in islice(files, _SEEN_AT_FIRST))


@source("images", "a folder of images, one sub-folder per class", _is_images, ("--labels",))
def read(request: Request) -> Dataset:
    """Nothing is decoded yet but the first image: rows are, when they are asked for."""
    need_pillow()
    if len(request.specs) != 1:
        raise PruneError(f"images feed a model of one input, this one has {len(request.specs)}", "give arrays (.npz)")
    (spec,) = request.specs
    how = choose_preparation(request.images, spec)
    found = _find(request)
    if not found.files:
        raise PruneError(f"{request.text} holds no images", f"they end in {', '.join(sorted(SUFFIXES))}")
    column = image_column(request.text, found.files, how)
    data = build(request.specs, {spec.name: column}, found.labels, request.text, request.axes)
    return replace(data, classes=found.classes, notes=(f"images: {how.describe()}", *found.notes))


def _find(request: Request) -> FoundImages:
    folders = [entry for entry in _entries(request.path) if entry.is_dir()]
    loose = [entry for entry in _entries(request.path) if _is_image(entry)]
    if folders and loose:
        raise PruneError(f"{request.text} holds images beside folders, as {loose[0].name} beside {folders[0].name}",
                         "put every image into the folder of its class")  # fmt: skip
    if folders:
        return _by_class(request, folders)
    if request.images.classes is not None:
        raise PruneError(f"{request.text} has no sub-folders, so --classes has no meaning", "leave it out")
    labels = None if request.labels is None else read_labels(request.labels, request.limit)
    return FoundImages(loose[: request.limit], labels)


def _by_class(request: Request, folders: list[Path]) -> FoundImages:
    """The classes take turns, each with its images by path: the first N samples have all classes."""
    if request.labels is not None:
        raise PruneError(f"--labels does not go with {request.text}", "its sub-folders are the labels; see --classes")
    numbering = number_folders([_text(folder.name) for folder in folders], request.images.classes, request.text)
    files = [
        [(file, number) for file in _below(folder, set())]
        for folder, number in zip(folders, numbering.numbers, strict=True)
    ]
    turns = [pair for turn in zip_longest(*files) for pair in turn if pair is not None][: request.limit]
    empty = [_text(folder.name) for folder, own in zip(folders, files, strict=True) if not own]
    notes = (f"folders without images, which are classes all the same: {', '.join(empty)}",) if empty else ()
    if request.images.classes is None and numbering.numbers != list(range(len(folders))):
        notes = ("the folders are class numbers; --classes sorted takes them in the order of text, as torchvision does",
                 *notes)  # fmt: skip
    labels = InputColumn.of(f"{request.text} labels", np.array([number for _, number in turns], np.int64))
    return FoundImages([file for file, _ in turns], labels, numbering.classes, notes)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, by name, without what file managers and archives hide there."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All images in a folder and its folders; `seen`: folders already visited, which a link may lead back to."""
    at = folder.stat()
    if (at.st_dev, at.st_ino) in seen:
        return
    seen.add((at.st_dev, at.st_ino))
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _below(entry, seen)
        elif _is_image(entry):
            yield entry


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _text(name: str) -> str:
    """A file name that can be written anywhere: bytes that are no text become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
