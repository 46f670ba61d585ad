"""Places where work is done that keeps a state of its own from call to call: this process, others of this machine, or
the workers of a Dask cluster. Work of one number goes to the same place for as long as that lives."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from multiprocessing import parent_process
from threading import Thread
from typing import Any, Protocol

from prunecli.errors import PruneError

Call = Callable[[], Any]
LOST = None
"""What a call gives whose worker died."""
WAIT = 60
"""Seconds that a cluster may be without workers."""
POLL = 2
"""Seconds after which it is looked whether workers are still there."""


class Workers(Protocol):
    """Runs calls at once and waits for all of them."""

    @property
    def places(self) -> int:
        """Calls that run at once, at most."""
        ...

    def run(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        """What each call gives, by its number; LOST where the worker died."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class InThisProcess:
    """One call after another, here."""

    places = 1

    def run(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        return {number: call() for number, call in calls.items()}

    def close(self) -> None:
        """Nothing is held."""


class InProcesses:
    """Processes of this machine, of one call at a time each."""

    def __init__(self, count: int) -> None:
        self.places = count
        self._pools: list[Any] = [None] * count

    def run(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        from joblib.externals.loky.process_executor import BrokenProcessPool

        found: dict[int, Any] = dict.fromkeys(calls, LOST)
        futures: dict[int, Any] = {}
        broken = set[int]()
        for number, call in calls.items():
            try:
                futures[number] = self._pool(number).submit(partial(_in_child, call))
            except BrokenProcessPool:
                broken.add(number % len(self._pools))
        for number, future in futures.items():
            try:
                found[number] = future.result()
            except BrokenProcessPool:
                broken.add(number % len(self._pools))
        for place in broken:
            self._end(place)
        return found

    def _pool(self, number: int) -> Any:
        from joblib.externals.loky.process_executor import ProcessPoolExecutor

        place = number % len(self._pools)
        if self._pools[place] is None:
            self._pools[place] = ProcessPoolExecutor(max_workers=1)
        return self._pools[place]

    def _end(self, place: int) -> None:
        pool, self._pools[place] = self._pools[place], None
        if pool is not None:
            pool.shutdown(wait=False, kill_workers=True)

    def close(self) -> None:
        for place in range(len(self._pools)):
            self._end(place)


class OnCluster:
    """The workers of a Dask cluster."""

    def __init__(self, address: str) -> None:
        self._client = dask_client(address)
        self._home: dict[int, str] = {}

    @property
    def places(self) -> int:
        return len(self._client.nthreads())

    def run(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        from distributed import wait

        self._settle(calls)
        futures = {
            number: self._client.submit(call, workers=[self._home[number]], allow_other_workers=False, pure=False)
            for number, call in calls.items()
        }
        found: dict[int, Any] = {}
        while futures:
            with contextlib.suppress(TimeoutError):
                wait(list(futures.values()), timeout=POLL, return_when="FIRST_COMPLETED")
            alive = self._client.nthreads()
            for number, future in list(futures.items()):
                if future.done():
                    found[number] = self._result(futures.pop(number))
                elif self._home[number] not in alive:
                    self._client.cancel([futures.pop(number)])
                    found[number] = LOST
        return found

    def _settle(self, numbers: Mapping[int, Call]) -> None:
        """A worker for each number: the one it had, or that of the fewest."""
        self._client.wait_for_workers(1, timeout=WAIT)
        alive = sorted(self._client.nthreads())
        self._home = {number: home for number, home in self._home.items() if home in alive}
        for number in numbers:
            if number not in self._home:
                self._home[number] = min(alive, key=lambda one: list(self._home.values()).count(one))

    @staticmethod
    def _result(future: Any) -> Any:
        from distributed import CancelledError, KilledWorker

        try:
            return future.result()
        except (CancelledError, KilledWorker):
            return LOST

    def close(self) -> None:
        self._client.close()


def dask_client(address: str) -> Any:
    """A client of the cluster.

    Raises:
        PruneError: no scheduler answers.
    """
    import distributed

    try:
        return distributed.Client(address, timeout=20)
    except (OSError, ValueError) as error:
        raise PruneError(f"no Dask scheduler answers at {address}", "write --address tcp://HOST:8786") from error


def _in_child(call: Call) -> Any:
    end_with_parent()
    return call()


@cache
def end_with_parent() -> None:
    """From now on a child ends within a second of its parent, however that ends; what is no child stays."""
    if (parent := parent_process()) is None:
        return

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":
        Thread(target=watch, daemon=True).start()
