"""A model under measurement: its file, its sizes, and an open session."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.model import Dims, Model, concrete_shapes, load, totals
from prunecli.runtime import Session, providers
from prunecli.types import FileRef, Totals

MOST_THREADS = 64
"""Where the machine has fewer cores: onnxruntime crashes when the system has no more threads to give."""


def check_parallel(option: str, count: int | None) -> None:
    """Raises PruneError if this machine cannot have so many threads or processes."""
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if count is not None and not 1 <= count <= most:
        raise PruneError(f"{option} {count} is not between 1 and {most}", "leave it out for one per core")


@dataclass(frozen=True)
class Execution:
    """How sessions run. `threads` None: one per core that this process may use."""

    provider: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_parallel("--threads", self.threads)

    @property
    def thread_count(self) -> int:
        if self.threads is not None:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def check(self) -> None:
        """Raises PruneError if onnxruntime lacks the provider, for commands that may not open a session at all."""
        known = [name.lower().removesuffix("executionprovider") for name in providers()]
        if self.provider.lower().removesuffix("executionprovider") not in known:
            problem = f"the execution provider {self.provider} is not available"
            raise PruneError(problem, f"available: {', '.join(known)}")

    def open(self, path: Path) -> Session:
        return Session.open(path, provider=self.provider, threads=self.thread_count)


@dataclass(frozen=True)
class Subject:
    """A validated model and its session."""

    file: Model
    session: Session

    @property
    def ref(self) -> FileRef:
        return self.file.ref

    def totals(self, dims: Dims) -> Totals:
        return totals(self.file, concrete_shapes(self.file, dims))


def open_subject(path: Path, execution: Execution) -> Subject:
    """Load and open a model.

    Raises:
        PruneError: the file is not a valid model, or onnxruntime cannot open it.
    """
    file = load(path)
    return Subject(file, execution.open(path))


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
