"""Data in .npz and .npy files. Headers are checked against the bytes there are before memory is asked for, objects are
refused, large files are mapped, compressed ones are read only as far as needed."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data.axes import Axes
from prunecli.data.columns import InputColumn, check_budget
from prunecli.data.dataset import Dataset, build, match, split_labels
from prunecli.data.language import tokens_of, windows
from prunecli.data.options import DataOptions, has_suffix, source
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

MAP_ABOVE = 64 << 20
_CHUNK = 1 << 22
_BOMB_SIZE, _BOMB_RATIO = 256 << 20, 200


@dataclass(frozen=True)
class Header:
    shape: tuple[int, ...]
    dtype: Any
    fortran: bool
    length: int

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)


def read_header(name: str, stream: IO[bytes], size: int) -> Header:
    """Read the header of a .npy of `size` bytes, and leave the stream at the data.

    Raises:
        PruneError: not .npy, Python objects, or a header that does not match `size`.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
        if version > (2, 0):
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy's parser raises many kinds on garbage
        raise PruneError(f"{name} is not a readable .npy array", "write it with numpy.save or numpy.savez") from error
    if dtype.hasobject:
        raise PruneError(f"{name} holds Python objects", "save plain numbers or text; pickles are never read")
    header = Header(tuple(int(n) for n in shape), dtype, bool(fortran), length=stream.tell())
    if min(header.shape, default=0) < 0 or header.length + header.data_bytes != size:
        raise PruneError(
            f"{name} says it holds {dtype} {header.shape}, but has {size - header.length} bytes",
            "it is damaged",
        )
    return header


def open_npy(path: Path, name: str, limit: int | None = None) -> InputColumn:
    """A .npy file as a column; mapped when large. See `read_header` for errors."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = read_header(name, stream, size)

    def read() -> Array:
        if size > MAP_ABOVE and header.shape:
            return _map(path, header, 0)
        with path.open("rb") as stream:
            stream.seek(header.length)
            return _read_rows(name, stream, header, rows=header.shape[0] if header.shape else None)

    return _limited(InputColumn(name, header.shape, header.dtype, read=read), limit)


def open_npz(path: Path, limit: int | None = None) -> dict[str, InputColumn]:
    """Return the arrays of a .npz by name; they are read when used. With `limit`, only that many rows are.

    Raises:
        PruneError: not a zip archive, a member that is no .npy array, or one that would expand absurdly.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [i for i in archive.infolist() if i.filename.endswith(".npy")]
            return {i.filename[:-4]: _member(path, archive, i, limit=limit) for i in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PruneError(f"{path} is not a readable .npz archive: {error}", "write it with numpy.savez") from error


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int | None) -> InputColumn:
    name = f"{path.name}:{info.filename[:-4]}"
    if info.file_size > _BOMB_SIZE and info.file_size > _BOMB_RATIO * max(info.compress_size, 1):
        raise PruneError(
            f"{name} would expand from {info.compress_size:,} to {info.file_size:,} bytes",
            "such compression is not data; save it uncompressed (numpy.savez) if it is",
        )
    with archive.open(info) as stream:
        header = read_header(name, stream, info.file_size)
    stored = info.compress_type == zipfile.ZIP_STORED
    rows = header.shape[0] if header.shape else None
    if rows is not None and limit is not None and not header.fortran:
        rows = min(rows, limit)

    def read() -> Array:
        if stored and info.file_size > MAP_ABOVE:
            return _map(path, header, _data_offset(path, info))
        return _read_member(path, info, name, header=header, rows=rows)

    return _limited(InputColumn(name, header.shape, header.dtype, read=read), limit)


def _read_member(path: Path, info: zipfile.ZipInfo, name: str, header: Header, rows: int | None) -> Array:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
            stream.read(header.length)
            return _read_rows(name, stream, header, rows=rows)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PruneError(f"{name} is damaged: {error}", "write it again with numpy.savez") from error


def _read_rows(name: str, stream: IO[bytes], header: Header, rows: int | None) -> Array:
    """Read the first `rows` rows (None: a scalar) in pieces, so that a stream shorter than its header claims ends in an
    error."""
    shape = header.shape if rows is None else (rows, *header.shape[1:])
    check_budget(name, shape, header.dtype)
    array = np.empty(math.prod(shape), header.dtype)
    view = memoryview(array.view(np.uint8)) if array.nbytes else memoryview(b"")  # type: ignore[arg-type]
    done = 0
    while done < len(view):
        piece = stream.read(min(_CHUNK, len(view) - done))
        if not piece:
            raise PruneError(f"{name} ends after {done} of {len(view)} bytes", "it is damaged")
        view[done : done + len(piece)] = piece
        done += len(piece)
    return array.reshape(shape, order="F" if header.fortran else "C")


def _map(path: Path, header: Header, offset: int) -> Array:
    order: Any = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", offset + header.length, shape=header.shape, order=order)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored member start: after its local header, whose lengths of names may differ from
    the directory's (APPNOTE.TXT 4.3.7)."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        local = stream.read(30)
    start = info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if local[:4] != b"PK\x03\x04" or start + info.file_size > path.stat().st_size:
        raise PruneError(f"{path.name}:{info.filename} is damaged", "write it again with numpy.savez")
    return start


def _limited(column: InputColumn, limit: int | None) -> InputColumn:
    """The column cut to its first `limit` rows."""
    if limit is None or not column.shape or column.shape[0] <= limit:
        return column
    shape = (limit, *column.shape[1:])
    return InputColumn(column.name, shape, column.dtype, read=lambda: column.array()[:limit])


@source("npy", "x.npy with --labels y.npy", has_suffix(".npy"), options=("--labels",))
def read_npy(asked: DataOptions, specs: Sequence[InputSpec], axes: Axes) -> Dataset:
    limit = asked.limit if tokens_of(specs) is None else None  # a row of tokens is no sample
    column = open_npy(asked.path, asked.path.name, limit)
    labels = None if asked.labels is None else read_labels(asked.labels, limit)
    column, following = windows(column, specs, asked.windows)
    labels = following if labels is None else labels
    columns = match(specs, {asked.path.stem: column}, asked.path.name, axes=axes)
    found = build(specs, columns, labels, source=asked.text, axes=axes)
    return found if asked.limit is None else found.take(asked.limit)


def read_labels(path: Path, limit: int | None) -> InputColumn:
    """The .npy given to --labels.

    Raises:
        PruneError: it is missing or no .npy file.
    """
    if not path.is_file():
        raise PruneError(f"the labels file {path} does not exist", "check the path given to --labels")
    if path.suffix.lower() != ".npy":
        raise PruneError(f"--labels {path} is not a .npy file", "write the labels with numpy.save")
    return open_npy(path, path.name, limit)


@source("npz", "data.npz with arrays named as the inputs and labels", has_suffix(".npz"), options=("--labels",))
def read_npz(asked: DataOptions, specs: Sequence[InputSpec], axes: Axes) -> Dataset:
    columns = open_npz(asked.path, asked.limit)
    feeds, labels = split_labels(columns, specs)
    if asked.labels is not None:
        labels = read_labels(asked.labels, asked.limit)
    matched = match(specs, feeds, asked.path.name, axes=axes)
    return build(specs, matched, labels, source=asked.text, axes=axes)
