"""How a kind of data is registered, and asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunecli.data.axes import Axes
from prunecli.data.dataset import Dataset
from prunecli.data.images.options import ImageOptions
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
class DataSource:
    """One kind of data. `takes` says whether a request is for it; `options`: the label options it knows."""

    name: str
    description: str
    takes: Callable[[Request], bool]
    read: Reader
    options: frozenset[str]


SOURCES: dict[str, DataSource] = {}


def source(
    name: str, description: str, takes: Callable[[Request], bool], options: Sequence[str] = ()
) -> Callable[[Reader], Reader]:
    """Register a reader under `name`; earlier registrations are asked first."""

    def add(read: Reader) -> Reader:
        SOURCES[name] = DataSource(name, description, takes, read, frozenset(options))
        return read

    return add


def has_suffix(suffix: str) -> Callable[[Request], bool]:
    """Requests for a file whose name ends so."""
    return lambda request: request.path.suffix.lower() == suffix
