"""Measures allocations: known results are reused, the others are computed by the worker pool."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import PicklingError
from typing import Any, BinaryIO, Protocol

import numpy as np

from prunecli.errors import PruneError
from prunecli.files import appeared, lock_state, state_entry
from prunecli.search.options import TrialOptions
from prunecli.search.pruner import Allocation
from prunecli.search.trials import Outcome, TrialGroup, Workspace, forget, run_group
from prunecli.types import Json, Progress, no_progress
from prunecli.workers import WAIT, dask_client, end_with_parent


@dataclass
class TrialRunner:
    """`measured` counts groups of allocations, `reused` those that the journal had from an earlier run."""

    workspace: Workspace
    pool: WorkerPool
    journal: Journal
    progress: Progress = no_progress
    measured: int = 0
    reused: int = 0

    def measure(self, groups: Sequence[TrialGroup], label: str = "measuring") -> list[list[Outcome]]:
        """Return the outcomes of every group, in order. Each is written to the journal before the next is awaited."""
        found = {n: known for n, group in enumerate(groups) if (known := self.journal.get(group)) is not None}
        missing = [n for n in range(len(groups)) if n not in found]
        self.reused += sum(groups[n].key in self.journal.earlier for n in found)
        for number, outcomes in self.progress(self._run([groups[n] for n in missing]), label, len(missing)):
            self.measured += 1
            self.journal.put(groups[missing[number]], outcomes)
            found[missing[number]] = outcomes
        return [found[n] for n in range(len(groups))]

    def _run(self, groups: Sequence[TrialGroup]) -> Iterator[tuple[int, list[Outcome]]]:
        if groups:
            yield from self.pool.run(self.workspace, groups)

    def try_all(self, allocations: Sequence[Allocation], label: str = "trying") -> list[Outcome]:
        """Return the outcome of each allocation, measured by itself on all samples."""
        return [
            outcomes[0] for outcomes in self.measure([TrialGroup.of(allocation) for allocation in allocations], label)
        ]

    def close(self) -> None:
        """Close the pool and the journal's file."""
        self.pool.close()
        self.journal.close()


SCHEMA = "prunecli-state/1"
ANEW = "name another file, or remove this one"
MOST_BYTES = 1 << 28
"""Largest size of a journal, which is read as a whole."""


class Journal:
    """Outcomes by the key of their group, kept in a file; without a path in memory only."""

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
            lock_state(self._file, path)
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

    def get(self, group: TrialGroup) -> list[Outcome] | None:
        """Return the outcomes of a group, None if unknown. Raise PruneError if those in the file do not fit it."""
        found = self._found.get(group.key)
        missing = not group.probe and any(outcome.records is None for outcome in found or ())
        if found is not None and (len(found) != len(group.allocations) or missing):
            raise PruneError("the state file is damaged", ANEW)
        return found

    def close(self) -> None:
        """Close the file and release its lock."""
        if self._file is not None:
            self._file.close()

    def put(self, group: TrialGroup, outcomes: Sequence[Outcome]) -> None:
        """Keep what was measured; written before this returns.

        Raises:
            PruneError: the file cannot be written, as on a full disk.
        """
        self._found[group.key] = list(outcomes)
        if self._file is not None:
            try:
                self._append({"job": group.key, "outcomes": [_to_json(o) for o in outcomes]})
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
        head = state_entry(lines[0])
        if head.get("schema") != SCHEMA:
            raise PruneError(f"{path} is not a state file of this program", ANEW)
        if head.get("identity") != identity:
            raise PruneError(f"{path} is of another model, other data or other options", ANEW)
        whole = lines[:-1]  # what follows the last line end was cut off
        for line in whole[1:]:
            try:
                entry = state_entry(line)
                self._found[str(entry["job"])] = [_from_json(o) for o in entry["outcomes"]]
            except (KeyError, TypeError, ValueError) as error:
                raise PruneError(f"{path} is damaged", ANEW) from error
        self.earlier = frozenset(self._found)
        if lines[-1] and self._file is not None:
            self._file.truncate(self._file.tell() - len(lines[-1]))


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


Result = tuple[int, list[Outcome]]
MAPPED = 10_000
"""Arrays of more bytes are written once and mapped by every process; smaller ones are sent with each group."""
RESTARTS = 3
"""How often dead workers are replaced without a result in between."""


class WorkerPool(Protocol):
    """Runs groups and yields (number, outcomes), in any order."""

    def run(self, workspace: Workspace, groups: Sequence[TrialGroup]) -> Iterator[Result]: ...

    def close(self) -> None:
        """Release its resources."""
        ...


class InProcess:
    """Runs one group after the other in this process."""

    def run(self, workspace: Workspace, groups: Sequence[TrialGroup]) -> Iterator[Result]:
        for number, group in enumerate(groups):
            yield number, run_group(workspace, group)

    def close(self) -> None:
        forget()


def _numbered(workspace: Workspace, number: int, group: TrialGroup) -> Result:
    return number, run_group(workspace, group)


def _in_child(workspace: Workspace, number: int, group: TrialGroup) -> Result:
    end_with_parent()
    return _numbered(workspace, number, group)


def _persistent(
    once: Callable[[dict[int, TrialGroup]], Iterator[Result]], groups: Sequence[TrialGroup],
    losses: tuple[type[BaseException], ...], given_up: PruneError,
) -> Iterator[Result]:  # fmt: skip
    """Yield the results of `once` for the remaining groups, and start again after a loss of workers; raise `given_up`
    after too many losses without a result in between."""
    left, failures = dict(enumerate(groups)), 0
    while left:
        try:
            for number, outcomes in once(left):
                del left[number]
                failures = 0
                yield number, outcomes
        except losses as error:
            failures += 1
            if failures > RESTARTS:
                raise given_up from error


@dataclass(frozen=True)
class LocalProcesses:
    """joblib's processes on this machine. Large arrays of the workspace are mapped, not copied."""

    workers: int

    def run(self, workspace: Workspace, groups: Sequence[TrialGroup]) -> Iterator[Result]:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        given_up = PruneError("the processes that run trials die again and again",
                              "use fewer --jobs: memory may be short")  # fmt: skip
        yield from _persistent(partial(self._once, workspace), groups, (TerminatedWorkerError,), given_up=given_up)

    def _once(self, workspace: Workspace, left: dict[int, TrialGroup]) -> Iterator[Result]:
        from joblib import Parallel, delayed

        tasks = [delayed(_in_child)(workspace, number, group) for number, group in left.items()]
        parallel = Parallel(self.workers, return_as="generator_unordered", batch_size=1, pre_dispatch="all",
                            max_nbytes=MAPPED)  # fmt: skip
        try:
            yield from parallel(tasks)
        except PicklingError as error:
            why = error.__cause__ or error
            raise PruneError(f"trials cannot be handed to their processes: {why}",
                             "make room in the temporary folder, or use --jobs 1") from error  # fmt: skip

    def close(self) -> None:
        """joblib ends idle processes itself."""


def pool_of(options: TrialOptions) -> WorkerPool:
    """Where trials run.

    Raises:
        PruneError: the cluster cannot be reached.
    """
    if options.backend == "dask":
        return Dask(str(options.address))
    workers = options.jobs or options.execution.thread_count
    return LocalProcesses(workers) if workers > 1 else InProcess()


class Dask:
    """A Dask cluster. The workspace is sent to every worker once. joblib's Dask backend returns no result before all
    are there."""

    def __init__(self, address: str) -> None:
        self._client = dask_client(address)
        self._sent: dict[str, Any] = {}

    def run(self, workspace: Workspace, groups: Sequence[TrialGroup]) -> Iterator[Result]:
        from distributed import CancelledError, KilledWorker

        lost = (CancelledError, KilledWorker, TimeoutError)
        given_up = PruneError("the cluster's workers die again and again", "look into their logs")
        yield from _persistent(partial(self._once, workspace), groups, lost, given_up=given_up)

    def _once(self, workspace: Workspace, left: dict[int, TrialGroup]) -> Iterator[Result]:
        from distributed import as_completed

        if workspace.name not in self._sent:
            self._client.wait_for_workers(1, timeout=WAIT)
            self._sent = {workspace.name: self._client.scatter(workspace, broadcast=True, hash=False)}
        sent = self._sent[workspace.name]
        futures = [self._client.submit(_numbered, sent, number, group, pure=False) for number, group in left.items()]
        try:
            for future in as_completed(futures):
                yield future.result()
        except Exception:  # every worker that had the workspace is gone, or one group took several with it
            self._sent = {}
            raise
        finally:
            self._client.cancel([f for f in futures if not f.done()])

    def close(self) -> None:
        self._client.close()
