"""What was measured already: a file of one JSON line per job, so that a run that was cut short continues.

The first line names what the measurements depend on; a journal of anything else is refused. A line that was cut off in
the middle, by a crash, is dropped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from prunecli.errors import PruneError
from prunecli.files import appeared
from prunecli.search.trials import Job, Outcome
from prunecli.types import Json

SCHEMA = "prunecli-state/1"
ANEW = "name another file, or remove this one"
MOST_BYTES = 1 << 28
"""Of one journal; it is read as a whole."""


class Journal:
    """Outcomes by the key of their job. Without a path they are only held in memory."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self._file: BinaryIO | None = None
        self._found = dict[str, list[Outcome]]()
        self.earlier = frozenset[str]()
        """Keys of what was in the file."""
        if path is None:
            return
        if path.exists() and not path.is_file():
            raise PruneError(f"the state file {path} is not a regular file", "name a writable file")
        try:
            self._file = path.open("ab")
            _lock(self._file, path)
            if self._file.tell():
                self._read(path, identity)
            else:
                self._append({"schema": SCHEMA, "identity": identity})
            appeared.append(path)
        except OSError as error:
            raise PruneError(f"cannot use the state file {path}: {error.strerror}", "name a writable file") from error
        except PruneError:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._found)

    def get(self, job: Job) -> list[Outcome] | None:
        """Raises PruneError if what is kept is not of such a job."""
        found = self._found.get(job.key)
        missing = not job.probe and any(outcome.records is None for outcome in found or ())
        if found is not None and (len(found) != len(job.settings) or missing):
            raise PruneError("the state file is damaged", ANEW)
        return found

    def close(self) -> None:
        """Let others use the file."""
        if self._file is not None:
            self._file.close()

    def put(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        """Keep what was measured; written before this returns.

        Raises:
            PruneError: the file cannot be written, as on a full disk.
        """
        self._found[job.key] = list(outcomes)
        if self._file is not None:
            try:
                self._append({"job": job.key, "outcomes": [_to_json(o) for o in outcomes]})
            except OSError as error:
                raise PruneError(
                    f"cannot write the state file: {error.strerror}", "make room, and run it again"
                ) from error

    def _append(self, entry: Json) -> None:
        assert self._file is not None
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def _read(self, path: Path, identity: str) -> None:
        if path.stat().st_size > MOST_BYTES:
            raise PruneError(f"{path} is too large for a state file", ANEW)
        lines = path.read_bytes().split(b"\n")
        head = _parsed(lines[0])
        if head.get("schema") != SCHEMA:
            raise PruneError(f"{path} is not a state file of this program", ANEW)
        if head.get("identity") != identity:
            raise PruneError(f"{path} is of another model, other data or other options", ANEW)
        whole = lines[:-1]  # what follows the last line end was cut off
        for line in whole[1:]:
            try:
                entry = _parsed(line)
                self._found[str(entry["job"])] = [_from_json(o) for o in entry["outcomes"]]
            except (KeyError, TypeError, ValueError) as error:
                raise PruneError(f"{path} is damaged", ANEW) from error
        self.earlier = frozenset(self._found)
        if lines[-1] and self._file is not None:
            self._file.truncate(self._file.tell() - len(lines[-1]))


def _lock(file: BinaryIO, path: Path) -> None:
    """Refuse a file that another run is writing, where the system can tell."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PruneError(f"the state file {path} is in use by another run", "wait for it, or name another") from error


def _parsed(line: bytes) -> Json:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _to_json(outcome: Outcome) -> Json:
    records = outcome.records
    return {"damage": repr(outcome.damage), "error": repr(outcome.error), "records": records and _packed(records)}


def _from_json(found: Json) -> Outcome:
    records = found["records"]
    return Outcome(float(found["damage"]), float(found["error"]), None if records is None else _unpacked(records))


def _packed(records: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **records)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _unpacked(text: str) -> dict[str, Any]:
    import zipfile

    try:
        packed = io.BytesIO(base64.b64decode(text, validate=True))
        with zipfile.ZipFile(packed) as members:
            if sum(member.file_size for member in members.infolist()) > MOST_BYTES:
                raise ValueError("records that are too large")
        with np.load(packed, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise ValueError(str(error)) from error
