"""Calls side by side on threads of this process: numpy and onnxruntime let go of the interpreter while they compute.

Where arrays are small, several calls of one thread each compute more than one call of several threads.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

S = TypeVar("S")
T = TypeVar("T")


def in_order(function: Callable[[S], T], items: Iterable[S], lanes: int) -> Iterator[T]:
    """`map(function, items)` by up to `lanes` threads. Items are taken in the calling thread, as many more than results
    have been asked for as there are lanes. An exception of a call is raised where its result would be."""
    if lanes == 1:
        yield from map(function, items)
        return
    pool, begun = ThreadPoolExecutor(lanes), deque[Future[T]]()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > lanes:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def _controller() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looking for the libraries takes milliseconds


def one_blas_thread() -> AbstractContextManager[object]:
    """A context in which BLAS runs on the calling thread alone."""
    found: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return found
