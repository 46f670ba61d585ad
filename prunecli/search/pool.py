"""Where trials run: in this process, in local ones, or on a cluster. A job's result is the same everywhere.

A pool yields results as they come. A worker that dies takes nothing with it: Dask repeats its jobs on others, and local
processes are started anew for those that are missing, a few times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import parent_process
from pickle import PicklingError
from threading import Thread
from typing import Any, Protocol

from prunecli.errors import PruneError
from prunecli.search.trials import Job, Outcome, Workspace, forget, run_job

Result = tuple[int, list[Outcome]]
MAPPED = 10_000
"""Arrays of more bytes are written once and mapped by every process; smaller ones are sent with each job."""
WAIT = 60
"""Seconds that a cluster may be without workers."""
RESTARTS = 3
"""How often workers that died are replaced without a single result in between."""


class Pool(Protocol):
    """Runs jobs and yields (number, outcomes), in any order."""

    def run(self, workspace: Workspace, jobs: Sequence[Job]) -> Iterator[Result]: ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class InProcess:
    """One job after another, here."""

    def run(self, workspace: Workspace, jobs: Sequence[Job]) -> Iterator[Result]:
        for number, job in enumerate(jobs):
            yield number, run_job(workspace, job)

    def close(self) -> None:
        forget()


def _numbered(workspace: Workspace, number: int, job: Job) -> Result:
    return number, run_job(workspace, job)


def _in_child(workspace: Workspace, number: int, job: Job) -> Result:
    _end_with_parent()
    return _numbered(workspace, number, job)


@cache
def _end_with_parent() -> None:
    """From now on this process ends within a second of its parent, however that ends."""
    parent = parent_process()

    def watch() -> None:
        while parent is not None and os.getppid() == parent.pid:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":
        Thread(target=watch, daemon=True).start()


def _persistent(
    once: Callable[[dict[int, Job]], Iterator[Result]], jobs: Sequence[Job],
    losses: tuple[type[BaseException], ...], given_up: PruneError,
) -> Iterator[Result]:  # fmt: skip
    """What `once` yields of the jobs that are left, begun anew after a loss; `given_up` is raised after too many
    of them without a result in between."""
    left, failures = dict(enumerate(jobs)), 0
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

    def run(self, workspace: Workspace, jobs: Sequence[Job]) -> Iterator[Result]:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        given_up = PruneError("the processes that run trials die again and again",
                              "use fewer --jobs: memory may be short")  # fmt: skip
        yield from _persistent(partial(self._once, workspace), jobs, (TerminatedWorkerError,), given_up)

    def _once(self, workspace: Workspace, left: dict[int, Job]) -> Iterator[Result]:
        from joblib import Parallel, delayed

        tasks = [delayed(_in_child)(workspace, number, job) for number, job in left.items()]
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


class Dask:
    """A Dask cluster. The workspace is sent to every worker once. Not by joblib's backend, which hands over no result
    before all are there."""

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError as error:
            problem = "--backend dask needs the package distributed"
            raise PruneError(problem, "pip install 'prunecli[distributed]'") from error
        try:
            self._client = distributed.Client(address, timeout=20)
        except (OSError, ValueError) as error:
            raise PruneError(f"no Dask scheduler answers at {address}", "write --address tcp://HOST:8786") from error
        self._sent: dict[str, Any] = {}

    def run(self, workspace: Workspace, jobs: Sequence[Job]) -> Iterator[Result]:
        from distributed import CancelledError, KilledWorker

        lost = (CancelledError, KilledWorker, TimeoutError)
        given_up = PruneError("the cluster's workers die again and again", "look into their logs")
        yield from _persistent(partial(self._once, workspace), jobs, lost, given_up)

    def _once(self, workspace: Workspace, left: dict[int, Job]) -> Iterator[Result]:
        from distributed import as_completed

        if workspace.name not in self._sent:
            self._client.wait_for_workers(1, timeout=WAIT)
            self._sent = {workspace.name: self._client.scatter(workspace, broadcast=True, hash=False)}
        sent = self._sent[workspace.name]
        futures = [self._client.submit(_numbered, sent, number, job, pure=False) for number, job in left.items()]
        try:
            for future in as_completed(futures):
                yield future.result()
        except Exception:  # every worker that had the workspace is gone, or one job took several with it
            self._sent = {}
            raise
        finally:
            self._client.cancel([f for f in futures if not f.done()])

    def close(self) -> None:
        self._client.close()
