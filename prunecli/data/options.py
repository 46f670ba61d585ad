"""Where data comes from, as it is asked for: what `open_data` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunecli.data import Dataset, ImageOptions, open_data
from prunecli.data.axes import Axes
from prunecli.data.synthetic import SYNTHETIC, check_synthetic
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
