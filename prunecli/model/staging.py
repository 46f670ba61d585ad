"""Writing files so that a reader sees the old ones or the new ones, whatever happens in between.

Everything is written into a hidden folder beside the target, synced, and renamed. The one rename that counts
is that of the .onnx file: its data file carries a name derived from its content, so that a new one never
replaces one that the old .onnx needs. A folder left behind by a killed process is recognised by its lock
(locks end with their process) and removed by the next save.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # no advisory locks on this platform: leftovers are then only removed by their own process
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".prune-tmp"


@dataclass(frozen=True)
class Staging:
    """A hidden folder for the files that will replace `target` and its data file."""

    target: Path
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / self.target.name

    def commit(self, data_name: str | None) -> None:
        """Move the data file, then the model, to their final names; then drop data files nobody needs."""
        home = self.target.parent
        with locked(home):
            if data_name is not None:
                (self.folder / data_name).replace(home / data_name)
                sync(home)
            self.model.replace(self.target)
            sync(home)
            for orphan in orphans(self.target):
                orphan.unlink(missing_ok=True)


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Staging]:
    """A fresh staging folder for `target`, removed at the end; leftovers of killed processes go first."""
    with locked(target.parent):
        _remove_leftovers(target)
        folder = Path(tempfile.mkdtemp(SUFFIX, f".{target.name}.", target.parent))
        handle = _lock(folder, wait=True)
    try:
        yield Staging(target, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _remove_leftovers(target: Path) -> None:
    for folder in target.parent.glob(f".{_escaped(target.name)}.*{SUFFIX}"):
        handle = _lock(folder, wait=False)
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _escaped(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _lock(folder: Path, wait: bool) -> int | None:
    """An open descriptor that holds the lock of `folder`; None if it is taken or there are no locks."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` against other runs of this program, where the file system has locks."""
    handle = _lock(folder, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # some file systems cannot sync folders
            raise
    finally:
        os.close(handle)


def data_name(target: Path, digest: str) -> str:
    """Name of the data file of `target` with this SHA-256."""
    return f"{target.name}.{digest[:12]}.data"


def orphans(target: Path) -> list[Path]:
    """Data files that earlier saves of `target` wrote and that no model in the folder mentions any more."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
    found = [p for p in target.parent.iterdir() if pattern.fullmatch(p.name) and not p.is_symlink()]
    models = [p for p in target.parent.iterdir() if p.suffix == ".onnx" and p.is_file()] if found else []
    return [p for p in found if not any(_mentions(model, p.name) for model in {*models, target})]


def _mentions(model: Path, name: str) -> bool:
    """Whether the bytes of `model` contain `name`; a file that cannot be read might."""
    import mmap

    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(name.encode()) >= 0
    except (OSError, ValueError):
        return True
