"""Where data come from: what is asked for, and the kinds of sources, which register themselves by `@source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prunecli.data.axes import Axes, batch_axes
from prunecli.data.dataset import Dataset, hold_out
from prunecli.data.language import TokenWindows
from prunecli.data.preprocessing import ImageOptions
from prunecli.errors import PruneError
from prunecli.inputs import SYNTHETIC, InputSpec


@dataclass(frozen=True)
class DataOptions:
    """What the command line says of one set of data.

    `text`: as given to --data, a path or `module:function`. `labels`: the .npy of --labels. `label_column`: of a .csv.
    `limit`: only so many samples; nothing after them is read. `batch_axes`: of inputs and outputs that have the samples
    on another axis than their names say. `held_out`: the fraction that is left out, to judge by, and the seed that draws
    it (see `hold_out`). `windows`: how a row of tokens becomes samples.
    """

    text: str
    labels: Path | None = None
    label_column: str | None = None
    limit: int | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    batch_axes: Axes = field(default_factory=dict)
    held_out: tuple[float, int] | None = None
    windows: TokenWindows = field(default_factory=TokenWindows)

    @property
    def path(self) -> Path:
        return Path(self.text)

    @property
    def synthetic(self) -> bool:
        """Whether inputs are to be made from the model alone."""
        return self.text == SYNTHETIC

    def like(self, text: str) -> DataOptions:
        """Other data of the same kind: training or validation data beside the test data."""
        return replace(self, text=text, labels=None, limit=None, held_out=None)

    def check_synthetic(self, allowed: bool) -> None:
        """Refuse made data where real data is needed, and options of real data beside it.

        Raises:
            PruneError: naming the option.
        """
        if not self.synthetic:
            return
        if not allowed:
            hint = (
                "it is for `prune oneshot`, `gradient` and `structured`; a file or folder of that name is ./synthetic"
            )
            raise PruneError("synthetic data does not do here: give real data", hint)
        options = {"--labels": self.labels, "--label-column": self.label_column}
        if given := [*(name for name, value in options.items() if value is not None), *self.images.given]:
            raise PruneError(f"{given[0]} does not go with synthetic data", "leave it out, or give real data")

    def open(self, specs: Sequence[InputSpec], outputs: Sequence[InputSpec] = ()) -> Dataset:
        """The data, for a model with the inputs `specs`. `outputs`: of the model, where they are looked at sample by
        sample.

        Raises:
            PruneError: unreadable, empty, or not fitting the model; the message names the input.
        """
        self.check_synthetic(False)
        if not specs:
            raise PruneError("the model has no inputs, so it takes no data", "leave out --data")
        if self.windows != TokenWindows() and self.path.suffix.lower() != ".npy":
            raise PruneError(
                f"--window and --stride are of a row of tokens in a .npy, not of {self.text}", "leave them out"
            )
        axes = {name: axis for name, axis in batch_axes(specs, outputs, self.batch_axes).items() if axis}
        inside = any(spec.name in axes for spec in specs)  # then the rows of a file are no samples
        asked = replace(self, limit=None) if inside else self
        try:
            found = _find_source(asked).read(asked, specs, axes)
            found = found.take(self.limit) if inside and self.limit is not None else found
            return found if self.held_out is None else hold_out(found, *self.held_out)[0]
        except OSError as error:
            raise PruneError(
                f"cannot read {self.text}: {error.strerror or error}", "check the path and its permissions"
            ) from error


Reader = Callable[[DataOptions, Sequence[InputSpec], Axes], Dataset]
"""Reads the data for a model's inputs, whose samples lie on these axes where not on the first."""


@dataclass(frozen=True)
class DataSource:
    """One kind of data. `takes`: whether data are of it; `options`: the options of labels that it has."""

    description: str
    takes: Callable[[DataOptions], bool]
    read: Reader
    options: frozenset[str]


SOURCES: dict[str, DataSource] = {}


def source(
    name: str, description: str, takes: Callable[[DataOptions], bool], options: Sequence[str] = ()
) -> Callable[[Reader], Reader]:
    """Register a reader under `name`. Sources are asked in the order of their names."""

    def add(read: Reader) -> Reader:
        SOURCES[name] = DataSource(description, takes, read, options=frozenset(options))
        return read

    return add


def has_suffix(suffix: str) -> Callable[[DataOptions], bool]:
    """Whether the name of a file ends so."""
    return lambda asked: asked.path.suffix.lower() == suffix


def _find_source(asked: DataOptions) -> DataSource:
    """The source that takes the data.

    Raises:
        PruneError: none does, the file is missing, or an option does not go with the source.
    """
    text, path = asked.text, asked.path
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise PruneError(f"{text} is neither a file nor a folder", "data cannot be read from a pipe or device")
    sources = dict(sorted(SOURCES.items()))
    name = next((name for name, each in sources.items() if each.takes(asked)), None)
    if name is None:
        what = "is not a readable data source" if path.exists() else "does not exist"
        readable = "; ".join(each.description for each in sources.values())
        raise PruneError(f"{text} {what}", f"readable are: {readable}")
    if name != "loader" and not path.exists():
        raise PruneError(f"{text} does not exist", "check the path given to --data")
    for option, value in (("--labels", asked.labels), ("--label-column", asked.label_column)):
        if value is not None and option not in sources[name].options:
            owners = [owner for owner, each in sources.items() if option in each.options]
            raise PruneError(f"{option} does not go with {text}", f"it is for {', '.join(owners)} data")
    if asked.images.given and name != "images":
        raise PruneError(f"{asked.images.given[0]} does not go with {text}", "it is for a folder of images")
    return sources[name]
