"""Arrays held in memory up to a limit, and in files of a temporary folder beyond it."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from prunecli.files import Scratch

Array = np.ndarray[Any, Any]
LIMIT = 4 << 30
"""Bytes of arrays in memory, unless something else is asked for."""


class Store:
    """Arrays by key. What does not fit into `limit` bytes when it is put lies in a file and is mapped when read.

    Use as a context manager: the files go with it. A thing that is no array (text, sequences) stays in memory.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.held = 0
        self.spilled = 0
        self._arrays: dict[Hashable, Any] = {}
        self._files: dict[Hashable, Path] = {}
        self._folder: Scratch | None = None
        self._serial = 0

    def put(self, key: Hashable, value: Any) -> None:
        self.drop(key)
        size = value.nbytes if isinstance(value, np.ndarray) and value.dtype != object else 0
        if size and self.held + size > self.limit:
            self._files[key] = self._write(value)
            self.spilled += size
        else:
            self._arrays[key] = value
            self.held += size

    def _write(self, value: Array) -> Path:
        if self._folder is None:
            self._folder = Scratch()
        self._serial += 1
        path = self._folder.path / f"{self._serial}.npy"
        carrier = value if value.dtype.isbuiltin else value.view(f"u{value.dtype.itemsize}")  # bfloat16
        np.save(path, carrier, allow_pickle=False)
        self._arrays[path] = value.dtype
        return path

    def get(self, key: Hashable) -> Any:
        """Raises KeyError if there is none."""
        if key in self._files:
            path = self._files[key]
            return np.load(path, mmap_mode="r", allow_pickle=False).view(self._arrays[path])
        return self._arrays[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays or key in self._files

    def drop(self, key: Hashable) -> None:
        """Forget it, if it is there."""
        if key in self._files:
            path = self._files.pop(key)
            del self._arrays[path]
            path.unlink(missing_ok=True)
        elif key in self._arrays:
            value = self._arrays.pop(key)
            if isinstance(value, np.ndarray) and value.dtype != object:
                self.held -= value.nbytes

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arrays.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.close()
