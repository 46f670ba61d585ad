"""Data types shared by every part of the program. Imports nothing heavy, so that any module may use it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

Json = dict[str, Any]
T = TypeVar("T")


class Progress(Protocol):
    """Passes items through while telling the user how far it is: `for b in progress(batches, "running", 10)`."""

    def __call__(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]: ...


def no_progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The Progress that says nothing; the default of every function that takes one."""
    return iter(items)


@dataclass(frozen=True)
class FileRef:
    """A model file as the report names it. `sha256` is that of the .onnx file itself."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Totals:
    """Size of one model. `params` and `nonzero` count elements of all prunable-kind weights and their
    biases and normalisation parameters (every floating-point tensor of rank 1 or more); `macs` are multiply-accumulates
    of one inference at the stated dimensions, None where a shape is unknown; bytes include external data.
    `gzip_estimated`: the files are large and only samples of them were compressed. `assumed`: sizes of dynamic
    dimensions that nobody stated, at which the work was counted."""

    params: int
    nonzero: int
    macs: int | None
    file_bytes: int
    gzip_bytes: int
    gzip_estimated: bool = False
    assumed: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return 1 - self.nonzero / self.params if self.params else 0.0


@dataclass(frozen=True)
class LayerRow:
    """One weight before and after. `sparsity` is the fraction of zeros afterwards, in [0, 1]."""

    name: str
    op: str
    weight: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    params_before: int
    params_after: int
    nonzero: int
    sparsity: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, *, name: str, op: str, weight: str, shape: tuple[int, ...], nonzero: int, **extra: Any) -> LayerRow:
        """A weight that keeps its shape; `extra`: keys of its own in the JSON."""
        params = math.prod(shape)
        sparsity = 1 - nonzero / params if params else 0.0
        return cls(name, op, weight, shape_before=shape, shape_after=shape, params_before=params, params_after=params,
                   nonzero=nonzero, sparsity=sparsity, extra=extra)  # fmt: skip


@dataclass(frozen=True)
class Skipped:
    """Something that was not pruned, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """What the proof after a write compared, and the largest difference it saw.

    `exact`: both sides must agree to rounding (or to the bit); `approximate`: a stated approximation;
    `none`: not run, `detail` says why.
    """

    kind: Literal["exact", "approximate", "none"]
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    samples: int = 0
    detail: str = ""


UNVERIFIED = Verification("none", detail="left out by --no-verify")
