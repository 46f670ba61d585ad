"""Least squares with given zeros: the best weights of a layer whose mask is settled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy import linalg

from prunecli.reconstruct.obs import one_blas_thread

Array = np.ndarray[Any, Any]
DIRECT = 2e11
"""Multiplications up to which every row is solved by Cholesky; beyond, all rows at once by conjugate gradients."""
_THREADED = 1e7  # multiplications below which threads cost more than they save
_STEPS = 60
_TOLERANCE = 1e-5


def damping(gram: Array, count: int) -> float:
    """What is added to the diagonal of G = X X^T / R, from R = `count` positions: a thousandth of its mean, more where
    the data are few for so many columns, and never nothing."""
    mean = float(np.trace(gram)) / max(len(gram), 1)
    return max(mean, 1e-30) * (1e-3 + 0.1 * len(gram) / max(count, 1))


def affordable(keep: Array) -> bool:
    """Whether every row of the mask can be solved on its own."""
    kept = keep.sum(axis=1, dtype=np.float64)
    return float((kept**3).sum()) / 3 <= DIRECT


def masked_least_squares(gram: Array, cross: Array, keep: Array, start: Array, workers: int = 1) -> Array:
    """argmin over W, zero outside `keep`, of sum_rows w^T G w - 2 c^T w.

    Args:
        gram: (K, K), positive definite. cross: (rows, K). keep: (rows, K). start: (rows, K), where the search starts
            for layers too large for a direct solution.

    Returns:
        (rows, K) float64.
    """
    if not affordable(keep):
        return _by_gradients(gram, cross, keep, start)
    out = np.zeros(cross.shape)
    same: dict[bytes, list[int]] = {}
    for row, bits in enumerate(np.packbits(keep, axis=1)):
        same.setdefault(bits.tobytes(), []).append(row)

    def solve(rows: list[int]) -> None:
        at, these = np.flatnonzero(keep[rows[0]]), np.array(rows)
        if at.size:
            part = gram[np.ix_(at, at)]
            found = linalg.solve(part, cross[np.ix_(these, at)].T, assume_a="pos", check_finite=False)
            out[np.ix_(these, at)] = found.T

    few = float((keep.sum(axis=1, dtype=np.float64) ** 3).sum()) < _THREADED
    with one_blas_thread():
        if few or workers == 1:
            for rows in same.values():
                solve(rows)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(solve, same.values()))
    return out


def _by_gradients(gram: Array, cross: Array, keep: Array, start: Array) -> Array:
    """Conjugate gradients with the diagonal as preconditioner, every row with steps of its own."""
    scale = 1 / gram.diagonal()
    found = np.where(keep, start, 0.0)
    rest = np.where(keep, cross - found @ gram, 0.0)
    ahead = rest * scale
    way, size = ahead.copy(), np.einsum("ij,ij->i", rest, ahead)
    goal = _TOLERANCE**2 * np.maximum(np.einsum("ij,ij->i", cross * keep, cross * scale), 1e-300)
    for _ in range(_STEPS):
        if (size <= goal).all():
            break
        pushed = np.where(keep, way @ gram, 0.0)
        bend = np.einsum("ij,ij->i", way, pushed)
        step = np.where(bend > 0, size / np.maximum(bend, 1e-300), 0.0)[:, None]
        found += step * way
        rest -= step * pushed
        ahead = rest * scale
        new = np.einsum("ij,ij->i", rest, ahead)
        way = ahead + (new / np.maximum(size, 1e-300))[:, None] * way
        size = new
    return found
