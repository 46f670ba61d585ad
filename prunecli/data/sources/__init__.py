"""The kinds of data the command line reads, one module each. `@source` registers a reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunecli.data.axes import Axes
from prunecli.data.dataset import Dataset
from prunecli.data.images.options import ImageOptions
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec


@dataclass(frozen=True)
class Request:
    """What the user asked for: `text` as given to --data, and the options that belong to it."""

    text: str
    specs: Sequence[InputSpec]
    labels: Path | None = None
    label_column: str | None = None
    limit: int | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    axes: Axes = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.text)


Reader = Callable[[Request], Dataset]


@dataclass(frozen=True)
class Source:
    """One kind of data. `takes` says whether a request is for it; `options`: the label options it knows."""

    name: str
    description: str
    takes: Callable[[Request], bool]
    read: Reader
    options: frozenset[str]


SOURCES: dict[str, Source] = {}


def source(
    name: str, description: str, takes: Callable[[Request], bool], options: Sequence[str] = ()
) -> Callable[[Reader], Reader]:
    """Register a reader under `name`; earlier registrations are asked first."""

    def add(read: Reader) -> Reader:
        SOURCES[name] = Source(name, description, takes, read, frozenset(options))
        return read

    return add


def has_suffix(suffix: str) -> Callable[[Request], bool]:
    """Requests for a file whose name ends so."""
    return lambda request: request.path.suffix.lower() == suffix


def find_source(request: Request) -> Source:
    """The source that takes the request.

    Raises:
        PruneError: none does, the file is missing, or an option does not go with the source.
    """
    from prunecli.data.sources import csv, images, loader, npy, npz, zoo  # noqa: F401 - they register themselves

    path = request.path
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise PruneError(f"{request.text} is neither a file nor a folder", "data cannot be read from a pipe or device")
    chosen = next((s for s in SOURCES.values() if s.takes(request)), None)
    readable = "; ".join(s.description for s in SOURCES.values())
    if chosen is None:
        what = "is not a readable data source" if path.exists() else "does not exist"
        raise PruneError(f"{request.text} {what}", f"readable are: {readable}")
    if chosen.name != "loader" and not path.exists():
        raise PruneError(f"{request.text} does not exist", "check the path given to --data")
    for option, value in (("--labels", request.labels), ("--label-column", request.label_column)):
        if value is not None and option not in chosen.options:
            owners = [s.name for s in SOURCES.values() if option in s.options]
            raise PruneError(f"{option} does not go with {request.text}", f"it is for {', '.join(owners)} data")
    if request.images.given and chosen.name != "images":
        raise PruneError(f"{request.images.given[0]} does not go with {request.text}", "it is for a folder of images")
    return chosen
