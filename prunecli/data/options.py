"""Where data comes from, as it is asked for: what `open_data` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecli.data import Dataset, ImageOptions, open_data
from prunecli.data.axes import Axes, parse_axes
from prunecli.data.synthetic import SYNTHETIC, check_synthetic
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec


@dataclass(frozen=True)
class DataOptions:
    """One source of data."""

    text: str
    labels: Path | None = None
    label_column: str | None = None
    limit: int | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    batch_axes: Axes = field(default_factory=dict)

    @classmethod
    def given(cls, what: str | Path | DataOptions) -> DataOptions:
        """From a caller's argument: a path, or all of it."""
        return what if isinstance(what, DataOptions) else cls(str(what))

    @classmethod
    def of(
        cls,
        text: str | None,
        labels: Path | None,
        label_column: str | None,
        limit: int | None,
        images: ImageOptions | None = None,
        other: str | None = None,
        synthetic: bool = False,
        batch_axes: Sequence[str] | None = None,
    ) -> DataOptions | None:
        """From the command line; None without --data. `other`: data that options of images may be for instead;
        `synthetic`: whether data may be made.

        Raises:
            PruneError: labels or options of images without data, or with data that is made.
        """
        if text == SYNTHETIC:
            check_synthetic(synthetic, labels, label_column, images)
        if text is not None:
            return cls(text, labels, label_column, limit, images or ImageOptions(), parse_axes(batch_axes or ()))
        if labels is not None or label_column is not None:
            raise PruneError("labels were given without data", "add --data")
        if images is not None and images.given and other is None:
            raise PruneError(f"{images.given[0]} was given without data", "add --data with a folder of images")
        return None

    @classmethod
    def read(cls, changes: dict[str, Any], *names: str) -> None:
        """Replace those of a caller's arguments that name data, where given."""
        for name in names:
            if changes.get(name) is not None:
                changes[name] = cls.given(changes[name])

    def like(self, text: str) -> DataOptions:
        """Other data of the same kind: training or validation data beside the test data."""
        return DataOptions(text, None, self.label_column, None, self.images, self.batch_axes)

    def open(self, specs: Sequence[InputSpec], outputs: Sequence[InputSpec] = ()) -> Dataset:
        """`outputs`: of the model, where they will be looked at sample by sample."""
        check_synthetic(self.text != SYNTHETIC)
        return open_data(
            self.text, specs, labels=self.labels, label_column=self.label_column, limit=self.limit, images=self.images,
            outputs=outputs, batch_axes=self.batch_axes,
        )  # fmt: skip
