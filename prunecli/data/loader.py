"""`loader.py:function` or `package.module:function`: the user's own code, run without arguments, yields a
dict from input names to arrays, or (dict, labels), one batch or one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data.axes import Axes
from prunecli.data.columns import InputColumn, memory_budget
from prunecli.data.dataset import Chunk, Dataset, build, match
from prunecli.data.options import DataOptions, source
from prunecli.data.user_code import UserFunction, names_function
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec


def _is_loader(asked: DataOptions) -> bool:
    return names_function(asked.text) and not asked.path.exists()


@source("loader", "loader.py:function or package.module:function", _is_loader)
def read_loader(asked: DataOptions, specs: Sequence[InputSpec], axes: Axes) -> Dataset:
    """All that the function yields, up to --limit samples, in memory. What has one shape is joined."""
    groups: dict[Any, list[Chunk]] = {}
    pieces: list[Dataset] = []
    count = size = 0
    for item in _yielded(asked.text):
        piece = _piece(asked.text, item, specs, axes=axes)
        if asked.limit is not None:
            piece = piece.take(asked.limit - count)
        (chunk,) = piece.chunks
        pieces.append(piece)
        groups.setdefault(_kind(chunk), []).append(chunk)
        count += len(chunk)
        size += sum(column.rows(chunk.index).nbytes for column in chunk.columns.values())
        if size > memory_budget():
            raise PruneError(f"{asked.text} yields over {size / 1e9:.1f} GB", "use --limit")
        if asked.limit is not None and count >= asked.limit:
            break
    if not count:
        raise PruneError(f"{asked.text} yields no samples", "yield dicts of arrays, or (dict, labels)")
    _check_labels(asked.text, pieces)
    return replace(pieces[0], chunks=[_join(asked.text, chunks) for chunks in groups.values()], source=asked.text)


def _kind(chunk: Chunk) -> tuple[Any, ...]:
    """Chunks of equal kind can be joined along the first axis."""
    shapes = tuple((name, c.shape[1:], np.dtype(c.dtype).str) for name, c in sorted(chunk.columns.items()))
    return shapes, None if chunk.labels is None else chunk.labels.shape[1:]


def _check_labels(name: str, pieces: Sequence[Dataset]) -> None:
    labels = [piece.chunks[0].labels for piece in pieces]
    if len({piece.unbatched for piece in pieces}) > 1 or len({column is None for column in labels}) > 1:
        raise PruneError(f"{name} yields labels with some samples only", "yield (dict, labels) always")
    shapes = sorted({column.shape[1:] for column in labels if column is not None})
    if len(shapes) > 1:
        raise PruneError(
            f"{name} yields labels of the shapes (N, {', '.join(map(str, shapes[0]))}) and"
            f" (N, {', '.join(map(str, shapes[1]))})".replace("(N, )", "(N,)"),
            "yield one label per sample, or one per position with -100 for padding",
        )


def _join(name: str, chunks: Sequence[Chunk]) -> Chunk:
    def joined(what: str, columns: Iterable[InputColumn]) -> InputColumn:
        rows = [column.rows(chunk.index) for column, chunk in zip(columns, chunks, strict=True)]
        return InputColumn.of(f"{name} {what}", np.concatenate(rows))

    columns = {each: joined(each, (chunk.columns[each] for chunk in chunks)) for each in chunks[0].columns}
    labels = [chunk.labels for chunk in chunks if chunk.labels is not None]
    count = sum(map(len, chunks))
    return Chunk(columns, np.arange(count), joined("labels", labels) if labels else None, constants=chunks[0].constants)


def _yielded(name: str) -> Iterator[Any]:
    """What the user's function returns, one after the other."""
    user = UserFunction(name, "--data")
    function = user.load()
    with user.guarded():
        found = function()
        if isinstance(found, Mapping | tuple):
            found = [found]
        if not isinstance(found, Iterable):
            raise PruneError(f"{name} returned {type(found).__name__}", "make it a generator of dicts")
        iterator = iter(found)
    end = object()  # unlike None, nothing that is yielded
    while True:
        with user.guarded():
            item = next(iterator, end)
        if item is end:
            return
        yield item


def _piece(name: str, item: Any, specs: Sequence[InputSpec], axes: Axes) -> Dataset:
    """One thing that the function yielded, checked, as a data set of one chunk."""
    feed, labels = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if not isinstance(feed, Mapping):
        raise PruneError(f"{name} yielded {type(feed).__name__}", "yield a dict, or (dict, labels)")
    columns = {str(n): InputColumn.of(f"{name} {n}", _array(f"{name} {n}", v)) for n, v in feed.items()}
    matched = match(specs, columns, name, axes=axes)
    label_array = None if labels is None else _array(f"{name} labels", labels)
    if _is_sample(specs, matched):
        matched = {n: InputColumn.of(c.name, np.expand_dims(c.array(), axes.get(n, 0))) for n, c in matched.items()}
        label_array = None if label_array is None else label_array[None]
    label_column = None if label_array is None else InputColumn.of(f"{name} labels", label_array)
    return build(specs, matched, label_column, source=name, axes=axes)


def _is_sample(specs: Sequence[InputSpec], columns: Mapping[str, InputColumn]) -> bool:
    """Whether a yield is a single sample: every array lacks the model's first axis."""
    return all(s.shape and len(columns[s.name].shape) == len(s.shape) - 1 for s in specs)


def _array(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, tensors of other libraries on other devices
        raise PruneError(f"{name} cannot become an array: {error}", "yield numpy arrays") from error
    if array.dtype.kind == "O":
        raise PruneError(f"{name} holds Python objects", "yield arrays of numbers")
    return array
