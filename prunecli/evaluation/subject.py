"""A model under measurement: its file, its sizes, and an open session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.data import Dataset
from prunecli.model import Dims, Model, concrete_shapes, load, totals
from prunecli.runtime import Execution, Session
from prunecli.types import FileRef, Totals


@dataclass(frozen=True)
class OpenedModel:
    """A validated model and its session."""

    file: Model
    session: Session

    @property
    def ref(self) -> FileRef:
        return self.file.ref

    def totals(self, dims: Dims) -> Totals:
        return totals(self.file, concrete_shapes(self.file, dims))


def open_subject(path: Path, execution: Execution) -> OpenedModel:
    """Load and open a model.

    Raises:
        PruneError: the file is not a valid model, or onnxruntime cannot open it.
    """
    file = load(path)
    return OpenedModel(file, execution.open(path))


def data_dims(data: Dataset, names: Mapping[str, str], session: Session) -> Dims:
    """The sizes at which to count work: one sample of the data, or the model's fixed batch. `names` maps the
    data's input names to this session's."""
    shapes: dict[str, Sequence[int]] = {}
    chunk = data.chunks[0]
    specs = {s.name: s for s in session.inputs}
    for name, column in chunk.columns.items():
        spec = specs[names.get(name, name)]
        shape = list(column.shape[1:] if data.unbatched else column.shape)
        if shape and spec.shape and not chunk.whole and not data.unbatched:
            axis = data.axes.get(spec.name, 0)
            size = spec.shape[axis]
            shape[:1] = []
            shape.insert(axis, size if isinstance(size, int) else 1)
        if len(shape) == len(spec.shape):
            shapes[spec.name] = tuple(shape)
    return Dims(shapes={name: tuple(shape) for name, shape in shapes.items()})
