"""`loader.py:function` or `package.module:function`: the user's own code, run without arguments, yields a
dict from input names to arrays, or (dict, labels), one batch or one sample at a time."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.data.columns import InputColumn, memory_budget
from prunecli.data.dataset import Chunk, Dataset, build
from prunecli.data.matching import match
from prunecli.data.sources.registry import Request, source
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LoadedPiece:
    """One thing the function yielded, checked: `data` has one chunk."""

    data: Dataset
    arrays: Mapping[str, Array]
    labels: Array | None

    @property
    def kind(self) -> tuple[Any, ...]:
        """Pieces of equal kind can be joined along the first axis."""
        shapes = tuple((n, a.shape[1:], a.dtype.str) for n, a in sorted(self.arrays.items()))
        return shapes, None if self.labels is None else self.labels.shape[1:], self.data.unbatched


def _is_loader(request: Request) -> bool:
    module, sign, function = request.text.rpartition(":")
    return bool(sign and module) and function.isidentifier() and not request.path.exists()


@source("loader", "loader.py:function or package.module:function", _is_loader)
def read(request: Request) -> Dataset:
    """All that the function yields, up to --limit samples, in memory. Pieces of one shape are joined."""
    groups: dict[Any, list[LoadedPiece]] = {}
    count = size = 0
    for piece in _pieces(request):
        if request.limit is not None:
            piece = _cut(piece, request.limit - count)
        groups.setdefault(piece.kind, []).append(piece)
        count += len(piece.data)
        size += sum(a.nbytes for a in piece.arrays.values())
        if size > memory_budget():
            raise PruneError(f"{request.text} yields over {size / 1e9:.1f} GB", "use --limit")
        if request.limit is not None and count >= request.limit:
            break
    if not count:
        raise PruneError(f"{request.text} yields no samples", "yield dicts of arrays, or (dict, labels)")
    _check_labels(request, [p for pieces in groups.values() for p in pieces])
    chunks = [_join(request.text, pieces) for pieces in groups.values()]
    first = next(iter(groups.values()))[0].data
    return replace(first, chunks=chunks, source=request.text)


def _check_labels(request: Request, pieces: Sequence[LoadedPiece]) -> None:
    if len({p.data.unbatched for p in pieces}) > 1 or len({p.labels is None for p in pieces}) > 1:
        raise PruneError(f"{request.text} yields labels with some samples only", "yield (dict, labels) always")
    shapes = sorted({p.labels.shape[1:] for p in pieces if p.labels is not None})
    if len(shapes) > 1:
        raise PruneError(
            f"{request.text} yields labels of the shapes (N, {', '.join(map(str, shapes[0]))}) and"
            f" (N, {', '.join(map(str, shapes[1]))})".replace("(N, )", "(N,)"),
            "yield one label per sample, or one per position with -100 for padding",
        )


def _cut(piece: LoadedPiece, count: int) -> LoadedPiece:
    arrays = {n: a[:count] for n, a in piece.arrays.items()}
    labels = None if piece.labels is None else piece.labels[:count]
    return LoadedPiece(piece.data.take(count), arrays, labels)


def _join(name: str, pieces: Sequence[LoadedPiece]) -> Chunk:
    arrays = {n: np.concatenate([p.arrays[n] for p in pieces]) for n in pieces[0].arrays}
    parts = [p.labels for p in pieces if p.labels is not None]
    labels = InputColumn.of(f"{name} labels", np.concatenate(parts)) if parts else None
    columns = {n: InputColumn.of(f"{name} {n}", a) for n, a in arrays.items()}
    count = sum(len(p.data) for p in pieces)
    return Chunk(columns, np.arange(count), labels, constants=pieces[0].data.chunks[0].constants)


def _pieces(request: Request) -> Iterator[LoadedPiece]:
    with contextlib.redirect_stdout(sys.stderr), _as_error(request.text):  # stdout carries the report only
        yielded = _function(request.text)()
        if isinstance(yielded, Mapping | tuple):
            yielded = [yielded]
        if not isinstance(yielded, Iterable):
            raise PruneError(f"{request.text} returned {type(yielded).__name__}", "make it a generator of dicts")
        iterator = iter(yielded)
    while True:
        with contextlib.redirect_stdout(sys.stderr), _as_error(request.text):
            item = next(iterator, None)
        if item is None:
            return
        yield _piece(request, item)


def _piece(request: Request, item: Any) -> LoadedPiece:
    feed, labels = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if not isinstance(feed, Mapping):
        raise PruneError(f"{request.text} yielded {type(feed).__name__}", "yield a dict, or (dict, labels)")
    columns = {str(n): InputColumn.of(f"{request.text} {n}", _array(f"{request.text} {n}", v)) for n, v in feed.items()}
    matched = match(request.specs, columns, request.text, request.axes)
    label_array = None if labels is None else _array(f"{request.text} labels", labels)
    if _is_sample(request.specs, matched):
        matched = {
            n: InputColumn.of(c.name, np.expand_dims(c.array(), request.axes.get(n, 0))) for n, c in matched.items()
        }
        label_array = None if label_array is None else label_array[None]
    label_column = None if label_array is None else InputColumn.of(f"{request.text} labels", label_array)
    data = build(request.specs, matched, label_column, request.text, request.axes)
    arrays = {n: c.array() for n, c in data.chunks[0].columns.items()}
    return LoadedPiece(data, arrays, label_array)


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


def _function(text: str) -> Callable[[], Any]:
    place, _, name = text.rpartition(":")
    module = _module_from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise PruneError(f"{place} has no function {name}", "write --data FILE.py:FUNCTION")
    return function  # type: ignore[no-any-return]


def _module_from_file(path: Path) -> Any:
    if not path.is_file():
        raise PruneError(f"{path} does not exist", "write --data FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"_prunecli_loader_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PruneError(f"{path} is not a Python file", "write --data FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # as if the file were run as a script
    try:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@contextlib.contextmanager
def _as_error(text: str) -> Iterator[None]:
    try:
        yield
    except PruneError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        python = frame.filename.startswith("<")  # importlib: the message says which module
        where = "" if python else f" ({Path(frame.filename).name} line {frame.lineno})"
        raise PruneError(
            f"{text} raised {type(error).__name__}: {error}{where}",
            "run it on its own; PRUNE_DEBUG=1 shows more",
        ) from error
