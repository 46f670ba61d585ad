"""BLAS threads: our own workers each do with one, as threads of threads only wait for each other."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

from threadpoolctl import ThreadpoolController


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looking for the libraries takes milliseconds


def one_blas_thread() -> AbstractContextManager[object]:
    """A context in which BLAS runs on the calling thread alone."""
    found: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return found


def suited(size: int) -> AbstractContextManager[object]:
    """A context for factors and products of matrices of `size` columns: threads pay for large ones only."""
    return nullcontext() if size > 1024 else one_blas_thread()
