"""SparseGPT (Frantar and Alistarh 2023): one sweep over the columns, in which what is still to come makes up for what
went. All rows share one factor of the inverse of G, so that a layer of thousands of columns takes seconds.

The sweep itself is that of rounding, too (`rounding`): a column is settled, at zero or on a grid, and the later ones
make up for how far it moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from prunecli.arrays import Array
from prunecli.masks.patterns import drop_within, keep_top
from prunecli.reconstruct.obs import Columns

BLOCK = 128
"""Columns within which the weights that go are chosen together, and after which the rest is brought up to date."""
FEW = 16
"""Columns after which the rest of the block is: as products of matrices, changes of many columns cost far less."""


@dataclass(frozen=True)
class Quota:
    """How many weights of (rows, K) go: `total`, of which each row has its even share if `by_row`. N:M windows say
    it themselves."""

    total: int
    by_row: bool = False


def sparsegpt(weights: Array, upper: Array, columns: Columns, quota: Quota, gone: Array) -> tuple[Array, Array]:
    """Zero weights and change those that follow, so that the layer's output stays as near as it can.

    Weight w_j of a row costs w_j^2 / U_jj^2, U the upper Cholesky factor of G^-1; its removal changes the later
    weights of the row by -w_j / U_jj times row j of U.

    Args:
        weights: (rows, K), the optimum without zeros. upper: (K, K), what `factor` makes of G in the order of the
            columns. gone: (rows, K), True where a weight is zero already: those go first and stay zero.

    Returns:
        The new weights, of the factor's type, and where they are zero. As many are zero as the quota says, short of it
        by less than a unit; by row, the share of each row is rounded.
    """
    order = columns.order
    sorted_weights = _sorted(weights, order, upper.dtype)
    work = _Sweep(sorted_weights, upper, columns, gone=gone[:, order])
    work.run(quota)
    out, drop = np.empty_like(work.weights), np.empty(work.drop.shape, np.bool_)
    out[:, order], drop[:, order] = work.weights, work.drop
    return out, drop


def _sorted(array: Array, order: Array, dtype: Any) -> Array:
    """Its columns in this order, each in one piece; a copy."""
    found: Array = array.T[order].astype(dtype, order="C", copy=False).T
    return found


def solved(target: Array, upper: Array, order: Array) -> Array:
    """target G^-1, where `upper` is what `factor` makes of G in this order: (rows, K), made anew."""
    found = _sorted(target, order, upper.dtype)
    multiply = linalg.get_blas_funcs("trmm", (upper, found))
    for transposed in (1, 0):  # G^-1 = U^T U
        found = multiply(1.0, upper, found, side=1, lower=0, trans_a=transposed, overwrite_b=1)
    out = np.empty(found.shape, found.dtype)
    out[:, order] = found
    return out


def factor(gram: Array, order: Array, added: float = 0.0) -> Array:
    """U, upper, with U^T U = G^-1, where G is `gram` in this order with `added` on its diagonal: the inverse of the
    upper R with R R^T = G, a Cholesky factor read from the other end. One matrix is made, and all is done in it.

    Raises:
        LinAlgError: G is not positive definite.
    """
    back = order[::-1]
    found: Array = gram[np.ix_(back, back)].T  # it is symmetric, and LAPACK wants columns in one piece
    np.einsum("ii->i", found)[:] += added
    found = linalg.cholesky(found, lower=True, overwrite_a=True, check_finite=False)
    _read_backwards(found.T.reshape(-1))
    invert = linalg.get_lapack_funcs("trtri", (found,))
    found, info = invert(found, lower=0, overwrite_c=1)
    if info:
        raise linalg.LinAlgError("a zero on the diagonal of a Cholesky factor")
    return found


def _read_backwards(numbers: Array) -> None:
    """The last number first, in place."""
    for start in range(0, len(numbers) // 2, _TURNED):
        stop = min(start + _TURNED, len(numbers) // 2)
        last = slice(len(numbers) - stop, len(numbers) - start)
        kept = numbers[start:stop].copy()
        numbers[start:stop] = numbers[last][::-1]
        numbers[last] = kept[::-1]


_TURNED = 1 << 20


def sweep(
    weights: Array, upper: Array, ends: Array, settle: Callable[[int, Array], Array],
    enter: Callable[[int, int], object] = lambda start, stop: None,
) -> None:  # fmt: skip
    """Settle one column after another, in place. If column j of a row moves by d, the later columns of the row change
    by d / U_jj times row j of U, which is what keeps the error w^T G w of the row least.

    Args:
        weights: (rows, K), columns in one piece. upper: U of `factor`. ends: where blocks may end, ascending, the last
            is K.
        settle: (j, column as the sweep has it) -> the column as it stays. All columns up to the next of `ends` are as
            the sweep has them, too.
        enter: is called at the start of each block with its bounds.
    """
    for start, stop in stretches(ends, 0, weights.shape[1], most=BLOCK):
        enter(start, stop)
        moved = np.empty((len(weights), stop - start), weights.dtype, order="F")
        for first, last in stretches(ends, start, stop, most=FEW):
            for j in range(first, last):
                column = weights[:, j]
                settled = settle(j, column)
                move = moved[:, j - start] = (column - settled) / upper[j, j]
                column[:] = settled
                for later in range(j + 1, last):
                    weights[:, later] -= move * upper[j, later]
            _subtract(weights[:, last:stop], moved[:, first - start : last - start], upper[first:last, last:stop])
        _subtract(weights[:, stop:], moved, upper[start:stop, stop:])


def _subtract(changed: Array, left: Array, right: Array) -> None:
    """changed -= left @ right in place, all with columns in one piece: nothing as large as `changed` is made."""
    if changed.size:
        multiply = linalg.get_blas_funcs("gemm", (changed, left, right))
        found = multiply(-1.0, left, right, beta=1.0, c=changed, overwrite_c=True)
        assert np.shares_memory(found, changed)


def stretches(ends: Array, start: int, stop: int, most: int) -> list[tuple[int, int]]:
    """From `start` to `stop` in steps of about `most`, each to one of `ends`."""
    found = []
    while start < stop:
        fit = ends[(ends > start) & (ends <= min(start + most, stop))]
        end = int(fit[-1]) if fit.size else int(ends[ends > start][0])
        found.append((start, end))
        start = end
    return found


@dataclass
class _Sweep:
    weights: Array
    upper: Array
    columns: Columns
    gone: Array

    def __post_init__(self) -> None:
        self.drop = np.zeros(self.weights.shape, np.bool_, order="F")
        self.ever = self.gone.sum(axis=1)
        self.passed, self.dropped = np.zeros_like(self.ever), np.zeros_like(self.ever)

    def run(self, quota: Quota) -> None:
        windows = self.columns.windows
        opening = set() if windows is None else set(np.flatnonzero(np.diff(windows, prepend=-1)).tolist())

        def enter(start: int, stop: int) -> None:
            if windows is None:
                self._choose(start, stop, quota)

        def settle(j: int, column: Array) -> Array:
            if j in opening:
                self._choose_window(j)
            return np.where(self.drop[:, j], 0.0, column)

        sweep(self.weights, self.upper, self._ends(), settle=settle, enter=enter)
        self.weights[self.drop] = 0

    def _ends(self) -> Array:
        """Of units, and of windows, where there are any: each is in one block."""
        if self.columns.windows is None:
            return np.asarray(self.columns.starts[1:])
        return np.append(np.flatnonzero(np.diff(self.columns.windows)) + 1, len(self.columns.windows))

    def _scores(self, start: int, stop: int) -> Array:
        """(rows, stop - start): the loss of each weight; of what is zero already, less than any."""
        losses = np.square(self.weights[:, start:stop] / self.upper.diagonal()[start:stop])
        return np.where(self.gone[:, start:stop], 0, losses + np.finfo(losses.dtype).tiny)

    def _choose_window(self, start: int) -> None:
        windows, drop = self.columns.windows, self.columns.drop
        assert windows is not None and drop is not None
        window = windows[start]
        stop = start + int((windows == window).sum())
        keep = stop - start - int(drop[window])
        self.drop[:, start:stop] = ~keep_top(self._scores(start, stop), keep)

    def _choose(self, start: int, stop: int, quota: Quota) -> None:
        """Of these columns so many go that the share of all columns so far is what the quota says. What is zero already
        counts where it stands; the rest of the quota is spread over what is not."""
        rows = len(self.weights)
        height = self.columns.rows or rows
        losses, sizes = self._units(start, stop, height)
        pools = len(losses) if quota.by_row else 1
        edges = np.arange(0, rows, height) if quota.by_row else np.zeros(1, int)
        heights = np.diff(np.append(edges, rows))
        self.passed += self.gone[:, start:stop].sum(axis=1)
        wanted = self._share(stop, quota.total * heights / rows, edges)
        budgets = np.rint(wanted).astype(np.int64) - np.add.reduceat(self.dropped, edges)
        flat = drop_within(losses.reshape(pools, -1), sizes.reshape(pools, -1), np.maximum(budgets, 0))
        chosen = np.repeat(flat.reshape(losses.shape), height, axis=0)[:rows]
        units = self.columns.unit_of[start:stop]
        self.drop[:, start:stop] = chosen[:, units - units[0]]
        self.dropped += self.drop[:, start:stop].sum(axis=1)

    def _share(self, stop: int, total: Any, edges: Array) -> Array:
        """How many weights of each group of rows, beginning at `edges`, are to be zero up to column `stop`, of `total`
        in all columns."""
        gone, ever = np.add.reduceat(self.passed, edges), np.add.reduceat(self.ever, edges)
        rows = np.diff(np.append(edges, len(self.gone)))
        live, lives = rows * stop - gone, rows * self.gone.shape[1] - ever
        share: Array = gone + np.maximum(total - ever, 0) * live / np.maximum(lives, 1)
        return np.where(ever > total, total * gone / np.maximum(ever, 1), share)

    def _units(self, start: int, stop: int, height: int) -> tuple[Array, Array]:
        """(groups of rows, units): mean loss, and weights, of the units in these columns."""
        scores = self._scores(start, stop)
        units = self.columns.unit_of[start:stop]
        edges = np.flatnonzero(np.diff(units, prepend=-1))
        groups = np.arange(0, len(scores), height)
        if height == 1 and len(edges) == stop - start:
            return scores, np.ones(scores.shape, np.int8)
        sums = np.add.reduceat(np.add.reduceat(scores, edges, axis=1), groups, axis=0)
        heights = np.minimum(height, len(scores) - groups)
        sizes = heights[:, None] * np.diff(np.append(edges, stop - start))[None]
        return sums / sizes, sizes
