"""Fitted layers in a file, one after another, so that no more than one of them is in memory.

The file is appended to as layers are done. Where it stays, a run that was cut short goes on behind the last whole
record, to the same result. Format: a line of JSON that says of what it is; then records, each a line of JSON (what it
is, its arrays and their CRC-32) and the bytes of the arrays.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, content_digest
from prunecli.errors import PruneError
from prunecli.files import Scratch, appeared, lock_state, state_entry
from prunecli.masks.decide import Decision, Masked
from prunecli.model import Model
from prunecli.model.constants import Holder
from prunecli.model.loading import file_sha256
from prunecli.model.tensors import MappedTensor
from prunecli.model.writing import CHUNK
from prunecli.storage.stored import unmap
from prunecli.types import Json

SCHEMA = "prunecli-layers/1"
LONGEST = 1 << 24
"""Bytes of a line of JSON."""
ANEW = "name another file with --state, or remove this one"


@dataclass(frozen=True)
class StoredArray:
    """An array in the file. `owner` keeps a temporary folder from going."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    owner: object = None

    def read(self) -> Array:
        """Mapped; its pages leave memory with the last view."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        raw = np.memmap(self.path, np.uint8, "r", self.offset, (self.nbytes,))
        return raw.view(np.ndarray).view(self.dtype).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def put_into(self, holder: Holder, dtype: ir.DataType) -> None:
        """Let a model store it; what was there is let go."""
        unmap(holder.tensor)
        tensor = MappedTensor(
            self.path, self.offset, dtype, shape=ir.Shape(self.shape), name=holder.name, owner=self.owner
        )
        holder.put(tensor)


@dataclass(frozen=True)
class StoredMask(Decision):
    """As `Masked`, with bits and values in a file."""

    bits: StoredArray
    content: StoredArray

    @property
    def values(self) -> Array:
        """Of the whole weight."""
        return self.content.read()

    def drop(self, array: Array) -> Array:
        return Masked(self.bits.read()).drop(array)

    def apply(self, array: Array) -> Array:
        return self.values


@dataclass(frozen=True)
class StoredLayer:
    """A record of the file: what was measured or said of a layer, and its arrays."""

    details: Json
    arrays: Sequence[StoredArray]


@dataclass(frozen=True)
class FittedLayer:
    """A layer that is done: its weight's mask and values, the vector beside it if that moved, and what was measured."""

    weight: StoredMask
    vector: StoredArray | None
    details: Json

    @classmethod
    def kept(cls, journal: LayerJournal, name: str, new: Masked, vector: Array | None, details: Json) -> FittedLayer:
        """Put into the journal."""
        assert new.values is not None
        return cls.of(journal.put(name, details, [new.packed, new.values, *([] if vector is None else [vector])]))

    @classmethod
    def of(cls, stored: StoredLayer) -> FittedLayer:
        """Rebuild the layer from what `kept` stored."""
        bits, values, *vector = stored.arrays
        return cls(StoredMask(bits, values), vector[0] if vector else None, stored.details)

    @property
    def moved(self) -> Masked | None:
        """The vector as a decision."""
        if self.vector is None:
            return None
        found = self.vector.read()
        return Masked(np.packbits(np.zeros(found.size, np.bool_)), found)


class LayerJournal:
    """The file. Use as a context manager.

    Args:
        path: where it stays; None: in a temporary folder, for as long as what it gave is used.
        identity: of all that decides the result; a file of another one is refused.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._scratch = Scratch() if path is None else None
        self._path = path if self._scratch is None else self._scratch.path / "layers"
        assert self._path is not None
        self.layers: dict[str, StoredLayer] = {}
        self.amounts: Json | None = None
        self._file: BinaryIO | None = None
        try:
            self._file = self._path.open("a+b")
            lock_state(self._file, self._path)
            self._begin(identity)
            if path is not None:
                appeared.append(path)
        except OSError as error:
            self.close()
            raise PruneError(f"cannot use the state file {path}: {error.strerror}", "name a writable file") from error
        except PruneError:
            self.close()
            raise

    def __enter__(self) -> LayerJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs use the file; what it gave can still be read."""
        if self._file is not None:
            with suppress(OSError):  # every record was written out, or its error told
                self._file.close()

    def put_amounts(self, found: Json) -> None:
        """Keep how much goes from which layer."""
        self._append({"amounts": found}, [])
        self.amounts = found

    def put(self, name: str, details: Json, arrays: Sequence[Array] = ()) -> StoredLayer:
        """Keep a layer; written before this returns.

        Raises:
            PruneError: the file cannot be written, as on a full disk.
        """
        found = StoredLayer(details, self._append({"layer": name, "details": details}, arrays))
        self.layers[name] = found
        return found

    def _append(self, entry: Json, arrays: Sequence[Array]) -> list[StoredArray]:
        assert self._file is not None and self._path is not None
        plain = [np.ascontiguousarray(array) for array in arrays]
        described = [{"dtype": array.dtype.name, "shape": list(array.shape)} for array in plain]
        views = [memoryview(array.reshape(-1).view(np.uint8)) for array in plain]  # type: ignore[arg-type]
        line = json.dumps({**entry, "arrays": described, "crc": _crc(views)}).encode() + b"\n"
        try:
            start = self._file.seek(0, 2) + len(line)
            self._file.write(line)
            for view in views:
                self._file.write(view)
            self._file.flush()
        except OSError as error:
            raise PruneError(f"cannot write fitted layers to {self._path.parent}: {error.strerror}",
                             "make room, or name a file elsewhere with --state") from error  # fmt: skip
        return self._arrays(described, start)

    def _arrays(self, described: Iterable[Mapping[str, Any]], start: int) -> list[StoredArray]:
        found: list[StoredArray] = []
        for each in described:
            dtype = ir.DataType[str(each["dtype"]).upper()].numpy() if each["dtype"] == "bfloat16" else each["dtype"]
            shape = tuple(int(size) for size in each["shape"])
            assert self._path is not None
            found.append(StoredArray(self._path, start, np.dtype(dtype), shape=shape, owner=self._scratch))
            start += found[-1].nbytes
        return found

    def _begin(self, identity: str) -> None:
        assert self._file is not None
        self._file.seek(0)
        head = self._file.readline(LONGEST)
        if not head.endswith(b"\n"):  # new, or cut off within its first line
            if head and not f'{{"schema": "{SCHEMA}"'.encode().startswith(head[:20]):
                raise PruneError(f"{self._path} is not a state file of fitted layers", ANEW)
            self._file.truncate(0)
            self._file.write(json.dumps({"schema": SCHEMA, "identity": identity}).encode() + b"\n")
            self._file.flush()
            return
        found = state_entry(head)
        if found.get("schema") != SCHEMA:
            raise PruneError(f"{self._path} is not a state file of fitted layers", ANEW)
        if found.get("identity") != identity:
            raise PruneError(f"{self._path} is of another model, other data or other options", ANEW)
        self._file.truncate(self._read())

    def _read(self) -> int:
        """Take in the whole records, and say where they end."""
        assert self._file is not None
        end = self._file.seek(0, 2)
        self._file.seek(0)
        place = len(self._file.readline(LONGEST))
        while place < end:
            line = self._file.readline(LONGEST)
            if not line.endswith(b"\n"):
                break
            entry, start = state_entry(line), place + len(line)
            try:
                arrays = self._arrays(entry["arrays"], start)
                size = sum(array.nbytes for array in arrays)
                if start + size > end:
                    break
                if _crc(_chunks(self._file, size)) != entry["crc"]:
                    raise ValueError
                if "layer" in entry:
                    self.layers[str(entry["layer"])] = StoredLayer(entry["details"], arrays)
                else:
                    self.amounts = entry["amounts"]
            except (KeyError, TypeError, ValueError) as error:
                raise PruneError(f"{self._path} is damaged", ANEW) from error
            place = start + size
        return place


def _crc(parts: Iterable[Any]) -> int:
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        part = file.read(min(CHUNK, size))
        if not part:
            return
        yield part
        size -= len(part)


def identity_of(file: Model, feeds: Iterable[Mapping[str, Any]], *decisive: object) -> str:
    """A name for a model's content, its data, and what else decides the result, which is told by its text."""
    stored = [file_sha256(path) for path in file.data_files]
    parts = (file.sha256, stored, [content_digest(feed) for feed in feeds], decisive)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
