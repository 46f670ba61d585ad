"""Files that are written: which may be, and how, so that a reader sees the old one or the new one, whatever happens.

A file is made in a hidden folder beside its target, synced, and moved. Of a model the move that counts is that of the
.onnx file: its data file carries a name derived from its content, so that a new one never replaces one that the old
.onnx needs. A folder that a killed process left behind is recognised by its lock (locks end with their process); every
command removes those in the folders that it reads or writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from prunecli.errors import PruneError

try:
    import fcntl
except ImportError:  # no advisory locks on this platform: leftovers are then only removed by their own process
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".prune-tmp"
OWNER = ".owner"
"""In each such folder; locked while its process lives. Not the folder itself: that is locked by who moves files."""
_OURS = re.compile(r"(?:\.(?P<target>.+)\.|prune-)[^.]+" + re.escape(SUFFIX))
WRITTEN = ("output", "save_plan", "report", "log", "state", "checkpoint", "save_front")
"""Options that name what a command writes; every other path is one that it reads."""
FOLDERS = ("checkpoint", "save_front")
REPLACED = ("output", "save_plan")
"""Of those, what an existing file is replaced by only with --force. A report replaces reports, a log and a state file
go on: see those."""
MADE = (".onnx", ".json")
"""What may be replaced in a folder of data that is read."""

appeared: list[Path] = []
"""What this process has written under its final name, for who interrupts it."""


# --- what may be written ---


def named(asked: object, name: str = "") -> Iterator[tuple[str, Path]]:
    """Every path in options (a mapping or data classes), with the name of the outermost option it belongs to. A text
    counts if there is a file or folder of that name, or of what stands before a colon (`loader.py:function`)."""
    if isinstance(asked, Path) or (isinstance(asked, str) and name in WRITTEN):
        yield name, Path(asked)
    elif isinstance(asked, str):
        yield from ((name, Path(text)) for text in (asked, asked.rpartition(":")[0]) if text and os.path.lexists(text))
    elif isinstance(asked, Mapping):
        for key, value in asked.items():
            yield from named(value, name or str(key))
    elif isinstance(asked, list | tuple):
        yield from ((name, item) for item in asked if isinstance(item, Path))
    elif dataclasses.is_dataclass(asked) and not isinstance(asked, type):
        for each in dataclasses.fields(asked):
            if each.name != "output":  # given apart: it may be of a default name, or not be written
                yield from named(getattr(asked, each.name), each.name if each.name in WRITTEN else name or each.name)


def check_paths(asked: object, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Refuse, before any work, to write over what is read or over something else that is written, over what is no
    regular file, into a folder that does not exist, or over an existing file without `force`.

    Args:
        asked: options; see `named`.
        inputs: further files that are read.
    Raises:
        PruneError: naming the path, and the option in the hint.
    """
    paths = list(named(asked))
    written = list(dict.fromkeys((name, path) for name, path in paths if name in WRITTEN))
    read = [*inputs, *(path for name, path in paths if name not in WRITTEN)]
    for at, (name, path) in enumerate(written):
        _check_kind(name, path)
        _check_apart(name, path, read, before=written[:at])
        if name in REPLACED and os.path.lexists(path) and not force:
            raise PruneError(f"{path} already exists", f"choose another name with {option(name)}, or pass --force")


def option(name: str) -> str:
    """As it is given on the command line."""
    return f"--{name.replace('_', '-')}"


def _check_kind(name: str, path: Path) -> None:
    other = f"choose another name with {option(name)}"
    if name in FOLDERS:
        if os.path.lexists(path) and not path.is_dir():
            raise PruneError(f"{path} is not a folder", other)
        return
    if not path.parent.is_dir():
        raise PruneError(f"the folder {path.parent} does not exist", f"create it first, or {other}")
    if path.is_dir():
        raise PruneError(f"{path} is a folder", f"give {option(name)} a file name")
    if path.exists() and not path.is_file():
        raise PruneError(f"{path} is not a regular file", other)


def _check_apart(name: str, path: Path, read: list[Path], before: list[tuple[str, Path]]) -> None:
    other = f"choose another name with {option(name)}"
    if any(same(path, source) for source in read):
        raise PruneError(f"{path} is the input itself", other)
    for earlier, place in before:
        if same(path, place):
            raise PruneError(f"{option(earlier)} and {option(name)} both write {path}", other)
    if path.is_file() and path.suffix not in MADE:
        home = path.resolve()
        if any(home.is_relative_to(folder.resolve()) for folder in read if folder.is_dir()):
            raise PruneError(f"{path} is part of the input", other)


def same(one: Path, other: Path) -> bool:
    """Whether both are one file, through links of any kind, or would be."""
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


# --- how it is written ---


class Scratch:
    """A new folder, in the system's temporary folder or in `where`, for as long as this object or its `with` block:
    then it goes, with all that is in it. Leftovers of killed processes beside it go first."""

    def __init__(self, where: Path | None = None, prefix: str = "prune-") -> None:
        home = Path(tempfile.gettempdir()) if where is None else where
        remove_leftovers(home)
        while True:
            self.path = Path(tempfile.mkdtemp(SUFFIX, prefix, home))
            handle = _lock(self.path / OWNER, wait=True)
            if self.path.exists():  # else another process took it for a leftover before it was locked
                break
            if handle is not None:
                os.close(handle)
        self.close = weakref.finalize(self, _discard, self.path, handle)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def written_to(target: Path, dry_run: bool) -> Iterator[Path]:
    """Where a result is written: a dry run does everything, too, but in a folder that goes."""
    if not dry_run:
        yield target
        return
    with Scratch() as folder:
        yield folder / target.name


def _discard(folder: Path, handle: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if handle is not None:
        os.close(handle)


def remove_leftovers(home: Path) -> None:
    """Staging folders in `home` whose processes are gone, and data files that those had put in place for models that
    never followed."""
    try:
        found = [(Path(entry.path), _OURS.fullmatch(entry.name)) for entry in os.scandir(home)
                 if entry.name.endswith(SUFFIX) and entry.is_dir(follow_symlinks=False)]  # fmt: skip
    except OSError:
        return
    for folder, ours in found:
        handle = None if ours is None else _lock(folder / OWNER, wait=False)
        if handle is not None:
            _discard(folder, handle)
            if ours and ours["target"]:
                with locked(home):
                    _drop_orphans(home / ours["target"])


@dataclass(frozen=True)
class Staging:
    """A hidden folder for the files that will be `target` and its data file. Without `force`, `target` must not exist
    when they are moved there either."""

    target: Path
    folder: Path
    force: bool = False

    @property
    def file(self) -> Path:
        return self.folder / self.target.name

    def commit(self, data_name: str | None = None) -> None:
        """Move the data file, then the file itself, to their final names; then drop data files nobody needs.

        Raises:
            PruneError: another process has made the target meanwhile.
        """
        home = self.target.parent
        with locked(home):
            if os.path.lexists(self.target) and not self.force:
                raise _taken(self.target)
            if data_name is not None:
                (self.folder / data_name).replace(home / data_name)
                sync(home)
            self._place()
            sync(home)
            _drop_orphans(self.target)
        appeared.append(self.target)

    def _place(self) -> None:
        if self.force:
            self.file.replace(self.target)
            return
        try:
            os.link(self.file, self.target)  # unlike a move it never replaces what another program has just made
        except FileExistsError as error:
            raise _taken(self.target) from error
        except OSError:  # a file system without links
            self.file.rename(self.target)


def _taken(target: Path) -> PruneError:
    return PruneError(f"{target} already exists: another run wrote it meanwhile",
                      "choose another name, or pass --force")  # fmt: skip


@contextlib.contextmanager
def staging(target: Path, force: bool = False) -> Iterator[Staging]:
    """A fresh staging folder for `target`, removed at the end."""
    with Scratch(target.parent, f".{target.name}.") as folder:
        yield Staging(target, folder, force)


@contextlib.contextmanager
def written(path: Path, what: str, force: bool = True) -> Iterator[TextIO]:
    """A text file, which appears complete or not at all. `what`: for errors, as "report".

    Raises:
        PruneError: it cannot be written.
    """
    try:
        with staging(path, force) as stage:
            with stage.file.open("w", encoding="utf-8") as file:
                yield file
            sync(stage.file)
            stage.commit()
    except OSError as error:
        raise PruneError(f"cannot write the {what} {path}: {error.strerror}", "name a writable file") from error


def copy(source: Path, target: Path, force: bool) -> None:
    """Copy a file so that it appears complete or not at all."""
    with staging(target, force) as stage:
        shutil.copyfile(source, stage.file)
        sync(stage.file)
        stage.commit()


def _lock(path: Path, wait: bool) -> int | None:
    """An open descriptor that holds the lock of a folder, or of a file, which is made; None if it is taken or there are
    no locks."""
    if fcntl is None:
        return None
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def lock_state(file: BinaryIO, path: Path) -> None:
    """Hold the lock of an open state file against other runs, where the system has locks.

    Raises:
        PruneError: another run is writing it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PruneError(f"the state file {path} is in use by another run", "wait for it, or name another") from error


def state_entry(line: bytes) -> dict[str, Any]:
    """The JSON object of a line of a state file; empty where the line holds none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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


def _drop_orphans(target: Path) -> None:
    """Data files that earlier saves of `target` wrote and that no model in the folder mentions any more."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
    found = [p for p in target.parent.iterdir() if pattern.fullmatch(p.name) and not p.is_symlink()]
    models = [p for p in target.parent.iterdir() if p.suffix == ".onnx" and p.is_file()] if found else []
    for path in found:
        if not any(_mentions(model, path.name) for model in {*models, *([target] if target.exists() else [])}):
            path.unlink(missing_ok=True)


def _mentions(model: Path, name: str) -> bool:
    """Whether the bytes of `model` contain `name`; a file that cannot be read might."""
    import mmap

    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(name.encode()) >= 0
    except (OSError, ValueError):
        return True
