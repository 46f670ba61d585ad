"""Data as commands open them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunecli.data import DataOptions, Dataset
from prunecli.inputs import InputSpec


def open_text(
    text: str,
    specs: Sequence[InputSpec],
    outputs: Sequence[InputSpec] = (),
    labels: str | Path | None = None,
    **options: Any,
) -> Dataset:
    return DataOptions(text, None if labels is None else Path(labels), **options).open(specs, outputs)
