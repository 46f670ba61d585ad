"""Weights on a grid of integers, rounded so that the layer's output moves as little as it can.

    w = scale (q - zero),  q an integer of so many bits

Scales are those that err least of some that clip (`fitted_grid`), not those that reach from the least to the largest
weight. Rounding goes column by column, and the columns that are still to come make up for what each was rounded by:
Optimal Brain Quantization in a fixed order (Frantar and Alistarh 2022; GPTQ, Frantar et al. 2023), by the sweep that
SparseGPT prunes with. Then each column is rounded anew given all others, which only lowers the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.reconstruct.obs import suited
from prunecli.reconstruct.sparsegpt import factor, sweep

SHRINKS = np.linspace(1.0, 0.4, 31)
"""Parts of the range from the least to the largest weight that are tried."""
DESCENTS = 2
"""Times that all columns are rounded anew."""


@dataclass(frozen=True)
class IntegerType:
    """What weights are stored in: integers from `least` to `greatest`. `symmetric`: the zero point is 0."""

    name: str
    bits: int
    least: int
    greatest: int

    @property
    def symmetric(self) -> bool:
        return self.least < 0


INTEGERS = {
    kind.name: kind
    for kind in (
        IntegerType("int8", 8, -127, greatest=127),
        IntegerType("uint8", 8, 0, greatest=255),
        IntegerType("int4", 4, -8, greatest=7),
        IntegerType("uint4", 4, 0, greatest=15),
    )
}


@dataclass(frozen=True)
class IntegerGrid:
    """The grid of one matrix (rows, K). `scale`, `zero`: (rows, B), for stretches of `block` columns; scales are
    float32 numbers, held as float64."""

    kind: IntegerType
    scale: Array
    zero: Array
    block: int

    def integers(self, weights: Array) -> Array:
        """The nearest integers, (rows, K) int64."""
        scale, zero = self._by_column(weights.shape[1])
        found = np.clip(np.rint(weights / scale) + zero, self.kind.least, self.kind.greatest)
        return np.asarray(found, np.int64)

    def values(self, integers: Array) -> Array:
        """What integers stand for."""
        scale, zero = self._by_column(integers.shape[1])
        found: Array = (integers - zero) * scale
        return found

    def nearest(self, column: int, weights: Array) -> Array:
        """The values next to the weights of one column, (rows,)."""
        at = column // self.block
        scale, zero = self.scale[:, at], self.zero[:, at]
        found = np.clip(np.rint(weights / scale) + zero, self.kind.least, self.kind.greatest)
        nearest: Array = (found - zero) * scale
        return nearest

    def _by_column(self, size: int) -> tuple[Array, Array]:
        """Scale and zero point of each column; (rows, 1) where they do not differ."""
        if self.scale.shape[1] == 1:
            return self.scale, self.zero
        blocks = np.arange(size) // self.block
        return self.scale[:, blocks], self.zero[:, blocks]


def fitted_grid(
    weights: Array, importance: Array, kind: IntegerType, block: int = 0, *, shared: bool = False,
    least: Array | None = None,
) -> IntegerGrid:  # fmt: skip
    """The grid on which sum_k importance_k (w_k - nearest)^2 is least, among `SHRINKS` of the range.

    Args:
        weights: (rows, K). importance: (K,), the diagonal of the Gram matrix of what the weights multiply.
        block: columns that share a scale; 0: all of them. shared: all rows share one scale.
        least: (rows,) below which scales must not fall.
    """
    rows, size = weights.shape
    width = block or max(size, 1)
    blocks = -(-size // width)
    held, worth = np.zeros((rows, blocks * width)), np.zeros(blocks * width)
    held[:, :size], worth[:size] = weights, importance + 1e-12 * max(float(importance.max(initial=0)), 1e-30)
    cut, heavy = held.reshape(rows, blocks, width), np.broadcast_to(worth.reshape(blocks, width), (rows, blocks, width))
    if shared:
        cut, heavy = cut.reshape(1, 1, -1), heavy.reshape(1, 1, -1)
    low, high = np.minimum(cut.min(axis=2), 0), np.maximum(cut.max(axis=2), 0)
    best, scale, zero = np.full(low.shape, np.inf), np.ones(low.shape), np.zeros(low.shape)
    for part in SHRINKS:
        step, origin = _spaced(low * part, high * part, kind)
        if least is not None:
            step = np.maximum(step, np.max(least) if shared else least[:, None])
        found = np.clip(np.rint(cut / step[..., None]) + origin[..., None], kind.least, kind.greatest)
        wrong = (np.square((found - origin[..., None]) * step[..., None] - cut) * heavy).sum(axis=2)
        better = wrong < best
        best, scale, zero = (np.where(better, new, old) for new, old in ((wrong, best), (step, scale), (origin, zero)))
    if shared:
        scale, zero = np.broadcast_to(scale, (rows, 1)), np.broadcast_to(zero, (rows, 1))
    return IntegerGrid(kind, scale, zero, block=max(size, 1) if shared else width)


def _spaced(low: Array, high: Array, kind: IntegerType) -> tuple[Array, Array]:
    """Scale, a float32 number, and zero point of a range that holds 0."""
    span = np.maximum(-low, high) if kind.symmetric else high - low
    step = span / (kind.greatest if kind.symmetric else kind.greatest - kind.least)
    step = np.maximum(step.astype(np.float32), np.finfo(np.float32).tiny).astype(np.float64)
    step = np.where((low == 0) & (high == 0), 1.0, step)
    origin = (
        np.zeros_like(step) if kind.symmetric else np.clip(np.rint(kind.least - low / step), kind.least, kind.greatest)
    )
    return step, origin


def rounded(weights: Array, gram: Array, grid: IntegerGrid, zero: Array) -> Array:
    """Values on the grid, (rows, K), with which sum_rows (w - w0)^T G (w - w0) is small.

    Args:
        weights: w0, (rows, K), the optimum off the grid. gram: (K, K), positive definite. zero: (rows, K), True where a
            weight is zero and stays so.
    """
    size = weights.shape[1]
    with suited(size):
        order = np.argsort(-gram.diagonal(), kind="stable")
        work, gone = weights[:, order].astype(np.float64, order="F"), zero[:, order]
        work[gone] = 0.0

        def settle(j: int, column: Array) -> Array:
            return np.where(gone[:, j], 0.0, grid.nearest(int(order[j]), column))

        sweep(work, factor(gram, order), np.arange(1, size + 1), settle=settle)
        out = np.empty_like(work)
        out[:, order] = work
        return descended(out, weights, gram, grid=grid, zero=zero)


def descended(values: Array, weights: Array, gram: Array, grid: IntegerGrid, zero: Array) -> Array:
    """Every column rounded anew to what is best given the others, some times over: coordinate descent on the grid."""
    values = values.copy()
    wrong = (values - weights) @ gram
    for _ in range(DESCENTS):
        for j in range(values.shape[1]):
            best = grid.nearest(j, values[:, j] - wrong[:, j] / gram[j, j])
            step = np.where(zero[:, j], 0.0, best - values[:, j])
            if step.any():
                values[:, j] += step
                wrong += step[:, None] * gram[j]
    return values
