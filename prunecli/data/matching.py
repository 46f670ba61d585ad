"""Which array feeds which input: by exact name, by the same name spelt differently, or by elimination."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from prunecli.data.axes import Axes, samples_first
from prunecli.data.casting import fits
from prunecli.data.columns import InputColumn
from prunecli.data.dataset import Batch, Dataset
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

LABEL_NAMES = ("labels", "label", "targets", "target", "y")


def match(
    specs: Sequence[InputSpec], columns: Mapping[str, InputColumn], source: str, axes: Axes | None = None
) -> dict[str, InputColumn]:
    """A column for every input.

    Exact names first; then names that agree without case, punctuation and a ":0" suffix; then, among what is
    left, inputs that exactly one column fits in shape. A single input and a single column always match.

    Raises:
        PruneError: an input has no column, or several could be meant; both sides are named.
    """
    found = {s.name: columns[s.name] for s in specs if s.name in columns}
    for spec in specs:
        if spec.name not in found:
            close = [k for k in _left(columns, found) if _plain(k) == _plain(spec.name)]
            if len(close) == 1:
                found[spec.name] = columns[close[0]]
    missing = [s for s in specs if s.name not in found]
    found |= _by_elimination(missing, _left(columns, found), axes or {})
    missing = [s for s in specs if s.name not in found]
    if missing:
        raise PruneError(
            f"no array of {source} is for the model's input {missing[0].describe()}",
            f"{source} has {_listed(columns)}; the model takes {', '.join(s.describe() for s in specs)}",
        )
    return {s.name: found[s.name] for s in specs}


def split_labels(
    columns: Mapping[str, InputColumn], specs: Sequence[InputSpec]
) -> tuple[dict[str, InputColumn], InputColumn | None]:
    """The columns without the labels, and the labels: the first of LABEL_NAMES that is no input's name."""
    names = {s.name for s in specs}
    name = next((n for n in LABEL_NAMES if n in columns and n not in names), None)
    if name is None or (len(columns) == 1 and len(specs) == 1):
        return dict(columns), None
    return {k: v for k, v in columns.items() if k != name}, columns[name]


def _by_elimination(
    specs: Sequence[InputSpec], columns: Mapping[str, InputColumn], axes: Axes
) -> dict[str, InputColumn]:
    if len(specs) == len(columns) == 1:
        return {specs[0].name: next(iter(columns.values()))}
    fitting = {s.name: [k for k, c in columns.items() if _could_feed(c, s, axes.get(s.name, 0))] for s in specs}
    single = {name: keys[0] for name, keys in fitting.items() if len(keys) == 1}
    taken = list(single.values())
    return {name: columns[key] for name, key in single.items() if taken.count(key) == 1}


def _could_feed(column: InputColumn, spec: InputSpec, axis: int) -> bool:
    if not column.shape or not spec.shape:
        return column.shape == spec.shape
    if axis >= len(column.shape):
        return False
    shape, wanted = column.samples_first(axis).shape[1:], samples_first(spec, axis).shape[1:]
    return fits(shape, wanted) and (column.dtype.kind in "UT") == (spec.dtype == "str")


def _left(columns: Mapping[str, InputColumn], found: Mapping[str, InputColumn]) -> dict[str, InputColumn]:
    used = {id(column) for column in found.values()}
    return {k: c for k, c in columns.items() if id(c) not in used}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r":\d+$", "", name.lower()))


def _listed(columns: Mapping[str, InputColumn]) -> str:
    return ", ".join(f"{k}: {c.dtype} {tuple(c.shape)}" for k, c in columns.items()) or "no arrays"


def shared(one: Dataset, other: Dataset) -> int:
    """How many samples of `one` are also in `other`: all inputs equal, bit for bit, as the model gets them."""
    known = set(_digests(other))
    return sum(digest in known for digest in _digests(one))


def _digests(data: Dataset) -> Iterator[bytes]:
    for batch in data.batches():
        for row in range(batch.count):
            yield _digest(batch, row)


def _digest(batch: Batch, row: int) -> bytes:
    found, rows = hashlib.sha256(), batch.count + batch.padded
    for name, array in sorted(batch.feed.items()):
        axis = batch.axes.get(name, 0)
        counts = not batch.unbatched and array.ndim > axis and array.shape[axis] == rows
        own = np.take(array, row, axis) if counts else array
        plain = np.asarray(own).dtype.kind in "biuf"
        found.update(f"{name} {np.shape(own)}".encode())
        found.update(np.ascontiguousarray(own).tobytes() if plain else repr(own).encode())
    return found.digest()
