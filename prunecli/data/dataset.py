"""Data sets: arrays matched to a model's inputs and checked, in batches that the model accepts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunecli.arrays import Array, content_digest
from prunecli.data.axes import Axes, samples_first
from prunecli.data.columns import InputColumn, cast, check_dtype, check_sample_shape, fits
from prunecli.data.language import made_beside, tokens_of
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

SPLITTABLE = 20


@dataclass(frozen=True)
class Batch:
    """One run's worth of samples.

    `feed` is what a session takes. The first `count` samples are the batch's own, any after them are the first of the
    set again (a model of fixed batch size); `trim` takes them off the outputs. `labels` and `reference` (recorded
    outputs of a model-zoo test set) hold the batch's own only. `axes`: of inputs and outputs whose samples lie on
    another axis than the first.
    """

    feed: dict[str, Array]
    count: int
    labels: Array | None = None
    reference: dict[str, Array] | None = None
    padded: int = 0
    unbatched: bool = False
    axes: Axes = field(default_factory=dict)

    def trim(self, name: str, output: Array) -> Array:
        """An output (or input) of the run with one row per real sample, on the first axis.

        Raises:
            PruneError: rows were padded, but the output does not have one row per sample.
        """
        if self.unbatched:
            return output[None]
        axis = self.axes.get(name, 0)
        output = np.moveaxis(output, axis, 0) if axis < output.ndim else output
        if not self.padded:
            return output
        if not output.shape or output.shape[0] != self.count + self.padded:
            raise PruneError(
                f"the output {name} of shape {output.shape} does not have one row per sample, and the last"
                f" batch of {self.count} had to be padded to {self.count + self.padded}",
                "choose --limit as a multiple of the model's batch size",
            )
        return output[: self.count]


@dataclass(frozen=True)
class Chunk:
    """Samples of one shape: columns by model input, and which of their rows belong to the set, in order.

    `whole` chunks run as they are, in one batch: recorded test sets, whose first axis may mean anything.
    """

    columns: Mapping[str, InputColumn]
    index: Array
    labels: InputColumn | None = None
    whole: bool = False
    constants: Mapping[str, Array] = field(default_factory=dict)
    reference: Mapping[str, Array] | None = None

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Classes:
    """Names by class number. `complete`: the data has all classes of its model, so a model with another number of
    classes does not fit the data."""

    names: Mapping[int, str]
    complete: bool


@dataclass(frozen=True)
class Dataset:
    """Samples for the inputs `specs`. Immutable: `take`, `split`, `shuffled` and `select` return new ones
    over the same columns, which have the samples first. `source` is how the user named it; `classes` are those of
    integer labels, where known; `notes` say how samples were made. `axes`: of inputs and outputs whose samples
    lie on another axis than the first when the model runs."""

    specs: Sequence[InputSpec]
    chunks: Sequence[Chunk]
    source: str = "data"
    unbatched: bool = False
    classes: Classes | None = None
    notes: Sequence[str] = ()
    axes: Axes = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def has_labels(self) -> bool:
        return bool(self.chunks) and all(chunk.labels is not None for chunk in self.chunks)

    @property
    def has_reference(self) -> bool:
        return bool(self.chunks) and all(chunk.reference is not None for chunk in self.chunks)

    @property
    def labels(self) -> Array | None:
        """All labels in order, one row per sample; None without them."""
        if not self.has_labels:
            return None
        parts = [chunk.labels.rows(chunk.index) for chunk in self.chunks if chunk.labels is not None]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def fixed_batch(self) -> int | None:
        """Return the fixed batch size of the model; None if any will do."""
        if self.unbatched:
            return 1
        batched = [s for s in self.specs if s.shape and s.name not in self._constants]
        sizes = {s.shape[self.axes.get(s.name, 0)] for s in batched}
        fixed = sorted(size for size in sizes if isinstance(size, int))
        if len(fixed) > 1:
            raise PruneError(
                f"the model's inputs have different batches: {', '.join(s.describe() for s in batched)}",
                "say where the samples lie with --batch-axis NAME=N, or give runs as test_data_set_0/input_0.pb, ...",
            )
        return fixed[0] if fixed else None

    @property
    def _constants(self) -> set[str]:
        return {name for chunk in self.chunks for name in chunk.constants}

    def batch_count(self, batch_size: int) -> int:
        size = self._size(batch_size)
        return sum(1 if c.whole else math.ceil(len(c) / size) for c in self.chunks if len(c))

    def batches(self, batch_size: int = 32) -> Iterator[Batch]:
        """Feeds in order. A model of fixed batch size gets exactly that, whatever `batch_size` says.

        Raises:
            PruneError: values that the input cannot take (NaN, infinity, lossy casts).
        """
        return (self._batch(feed.chunk, feed.rows) for feed in self.feeds(batch_size))

    def _size(self, batch_size: int) -> int:
        return (self.fixed_batch if any(not c.whole for c in self.chunks) else None) or batch_size

    def feeds(self, batch_size: int = 32) -> list[SampleFeed]:
        """What the batches feed, each made when it is read."""
        size = self._size(batch_size)
        return [
            SampleFeed(self, chunk, chunk.index[start : start + step])
            for chunk in self.chunks
            for step in [max(len(chunk), 1) if chunk.whole else size]
            for start in range(0, len(chunk), step)
        ]

    def _batch(self, chunk: Chunk, rows: Array) -> Batch:
        feed = SampleFeed(self, chunk, rows)
        labels = None if chunk.labels is None else chunk.labels.rows(rows)
        reference = None if chunk.reference is None else dict(chunk.reference)
        return Batch(
            dict(feed),
            len(rows),
            labels,
            reference=reference,
            padded=feed.padded,
            unbatched=self.unbatched,
            axes=self.axes,
        )

    def select(self, positions: Array) -> Dataset:
        """The samples at those positions, chunk by chunk in the order given within each chunk."""
        start, chunks = 0, []
        for chunk in self.chunks:
            mine = positions[(positions >= start) & (positions < start + len(chunk))] - start
            if chunk.whole:  # kept when its first sample is, and then complete
                mine = np.arange(len(chunk) if (mine == 0).any() else 0)
            if len(mine):
                chunks.append(replace(chunk, index=chunk.index[mine]))
            start += len(chunk)
        return replace(self, chunks=chunks)

    def take(self, count: int) -> Dataset:
        """The first `count` samples (recorded test sets stay whole)."""
        return self.select(np.arange(min(count, len(self))))

    def without_labels(self) -> Dataset:
        """The same samples, with nothing known of them."""
        return replace(self, chunks=[replace(chunk, labels=None) for chunk in self.chunks], classes=None)

    def shuffled(self, seed: int) -> Dataset:
        """The same samples in an order drawn from `seed`; chunks keep together."""
        return self.select(np.random.default_rng(seed).permutation(len(self)))

    def split(self, fraction: float, seed: int = 0, groups: Array | None = None) -> tuple[Dataset, Dataset]:
        """Two disjoint sets: `round(fraction * len)` samples drawn by `seed`, and the others, both in order. `groups`:
        numbers of which samples with the same one stay together; then that fraction of the groups.

        Raises:
            PruneError: one side would be empty.
        """
        group = np.arange(len(self)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
        total = len(np.unique(group))
        first = round(fraction * total)
        if not 0 < first < total:
            raise PruneError(f"cannot split {len(self)} samples at {fraction:g}", "give more samples")
        chosen = np.isin(group, np.random.default_rng(seed).permutation(total)[:first])
        return self.select(np.flatnonzero(chosen)), self.select(np.flatnonzero(~chosen))


class SampleFeed(Mapping[str, Array]):
    """What one run takes, by input, made anew each time it is read: samples take the room of what their source keeps
    (bytes of pixels, say), not of what the model takes.

    Args:
        rows: of the columns of a chunk. `padded`: how many are missing from a model's fixed batch, in whose place come
            the chunk's first ones again: one sample many times would be most of what is fitted or measured.
    """

    def __init__(self, data: Dataset, chunk: Chunk, rows: Array) -> None:
        self.data, self.chunk, self.rows = data, chunk, rows
        self.padded = 0 if chunk.whole or data.fixed_batch is None else data.fixed_batch - len(rows)
        self._specs = {spec.name: spec for spec in data.specs if spec.name in chunk.columns}

    def __getitem__(self, name: str) -> Array:
        """Raises PruneError for values that the input cannot take (NaN, infinity, lossy casts)."""
        if name in self.chunk.constants:
            return self.chunk.constants[name]
        spec, column, whole = self._specs[name], self.chunk.columns[name], self.chunk.whole
        rows = np.append(self.rows, np.resize(self.chunk.index, self.padded)) if self.padded else self.rows
        values = column.array() if whole else column.rows(rows)
        axis = 0 if whole else self.data.axes.get(name, 0)
        values = np.ascontiguousarray(np.moveaxis(values, 0, axis)) if axis else values
        return cast(column.name, values[0] if self.data.unbatched else values, spec)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.chunk.constants, *self._specs]))

    def __len__(self) -> int:
        return len(set(self.chunk.constants) | set(self._specs))


def hold_out(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """The samples to fit on, and those held out to judge by; of fewer than SPLITTABLE none are."""
    if fraction <= 0 or len(data) < SPLITTABLE:
        return data, None
    return data.split(1 - fraction, seed)


def build(
    specs: Sequence[InputSpec],
    columns: Mapping[str, InputColumn],
    labels: InputColumn | None,
    source: str,
    axes: Axes | None = None,
) -> Dataset:
    """A data set of one chunk from columns already matched to inputs, after checking that they fit.

    `axes`: of inputs and outputs; the first where none is named. Columns have the samples there, too.

    Raises:
        PruneError: wrong dtype, shape or count of an input, no samples, or a wrong number of labels.
    """
    constants = {s.name: cast(columns[s.name].name, columns[s.name].array(), s)
                 for s in specs if not columns[s.name].shape and not s.shape}  # fmt: skip
    batched = [s for s in specs if s.name not in constants]
    unbatched = _is_unbatched(batched, columns)
    axes = {} if unbatched else {name: axis for name, axis in (axes or {}).items() if axis}
    columns = {s.name: _moved(columns[s.name], s, axes.get(s.name, 0)) for s in batched}
    batched = [samples_first(spec, axes.get(spec.name, 0)) for spec in batched]
    for spec in batched:
        column = columns[spec.name]
        check_dtype(column.name, column.dtype, spec)
        shifted = replace(spec, shape=(None, *spec.shape)) if unbatched else spec
        check_sample_shape(column.name, column.shape[1:], shifted, axis=axes.get(spec.name, 0))
    count = _common_count([columns[s.name] for s in batched], source)
    _check_named_dims(batched, columns, 0 if unbatched else 1)
    check_labels(labels, count)
    kept = {s.name: columns[s.name] for s in batched}
    chunk = Chunk(kept, np.arange(count), labels, constants=constants)
    notes = tuple(dict.fromkeys(column.made for column in columns.values() if column.made))
    return Dataset(specs, [chunk], source, unbatched=unbatched, notes=notes, axes=axes)


def _moved(column: InputColumn, spec: InputSpec, axis: int) -> InputColumn:
    if axis and len(column.shape) != len(spec.shape):
        raise PruneError(f"{column.name} has the shape {column.shape}, the model's input is {spec.describe()}",
                         f"give an array of {len(spec.shape)} axes, with the samples on axis {axis}")  # fmt: skip
    return column.samples_first(axis)


def _is_unbatched(specs: Sequence[InputSpec], columns: Mapping[str, InputColumn]) -> bool:
    """Whether the model has no batch axis: every array has one axis more than its input."""
    return bool(specs) and all(s.shape and len(columns[s.name].shape) == len(s.shape) + 1 for s in specs)


_WHERE = "the first axis counts samples; --batch-axis NAME=N names another for an input"


def _common_count(columns: Sequence[InputColumn], source: str) -> int:
    if not columns:
        raise PruneError(f"{source} holds nothing that the model takes per sample", "check the array names")
    counts = {c.name: c.shape[0] if c.shape else 0 for c in columns}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise PruneError(f"the inputs differ in their number of samples: {listed}", _WHERE)
    count = next(iter(counts.values()))
    if count == 0:
        raise PruneError(f"{columns[0].name} holds no samples", _WHERE)
    return count


def _check_named_dims(specs: Sequence[InputSpec], columns: Mapping[str, InputColumn], skip: int) -> None:
    """A dimension name means one size in all inputs."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs:
        shape = columns[spec.name].shape[1:]
        for dim, size in zip(spec.shape[skip:], shape, strict=False):
            if isinstance(dim, str) and seen.setdefault(dim, (size, spec.name))[0] != size:
                raise PruneError(
                    f"the dimension {dim} is {seen[dim][0]} in {seen[dim][1]} but {size} in {spec.name}",
                    "one name means one size in all inputs",
                )


def check_labels(labels: InputColumn | None, count: int) -> None:
    """Refuse labels that are not one per sample, not numbers or text, or not finite.

    Raises:
        PruneError: naming the labels and the two counts.
    """
    if labels is None:
        return
    if not labels.shape or labels.shape[0] != count:
        have = labels.shape[0] if labels.shape else "a single"
        raise PruneError(f"{labels.name} has {have} labels for {count} samples", "give one label per sample")
    if np.dtype(labels.dtype).kind not in "biufU":
        raise PruneError(f"{labels.name} has the type {labels.dtype}", "labels are numbers or text")
    if np.dtype(labels.dtype).kind == "f" and not np.isfinite(labels.array()).all():
        raise PruneError(f"{labels.name} has NaN or infinite labels", "remove those samples")


LABEL_NAMES = ("labels", "label", "targets", "target", "y")


def match(
    specs: Sequence[InputSpec], columns: Mapping[str, InputColumn], source: str, axes: Axes | None = None
) -> dict[str, InputColumn]:
    """A column for every input.

    Exact names first; then names that agree without case, punctuation and a ":0" suffix; then, among what is
    left, inputs that exactly one column fits in shape. A single input and a single column always match. Beside the
    tokens of a language model, masks, positions and empty pasts are made.

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
    if (
        (tokens := tokens_of(specs)) is not None
        and tokens.name not in found
        and len(left := _left(columns, found)) == 1
    ):
        found[tokens.name] = next(iter(left.values()))
    found |= made_beside(specs, found)
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
    """Count the samples of `one` that are also in `other`: all inputs equal bit for bit, as the model gets them."""
    known = set(_digests(other))
    return sum(digest in known for digest in _digests(one))


def _digests(data: Dataset) -> Iterator[str]:
    for batch in data.batches():
        for row in range(batch.count):
            yield _digest(batch, row)


def _digest(batch: Batch, row: int) -> str:
    own, rows = {}, batch.count + batch.padded
    for name, array in batch.feed.items():
        axis = batch.axes.get(name, 0)
        counts = not batch.unbatched and array.ndim > axis and array.shape[axis] == rows
        own[name] = np.take(array, row, axis) if counts else array
    return content_digest(own)
