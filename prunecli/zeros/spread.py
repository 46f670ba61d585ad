"""How large what was zeroed and what was kept is, weight by weight, for the charts of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import Array
from prunecli.types import Progress
from prunecli.zeros.zero import Zeroed

_SHIFT = 22  # a cell of float32 bit patterns: half an octave, edges at 2^k and 1.5 * 2^k
_CELLS = 1 << (31 - _SHIFT)
_DOWN_TO = 12  # octaves below the largest that are shown; what is smaller is counted in the lowest cell


@dataclass(frozen=True)
class ZeroedSpread:
    """Counts of |w| between `edges`, of what was kept and what was zeroed; `cut`: the largest |w| that was zeroed,
    None if nothing was; `sharp`: whether everything kept is at least as large."""

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    zeroed: tuple[int, ...]
    cut: float | None
    sharp: bool


@dataclass
class _Counted:
    kept: Array
    zeroed: Array
    cut: float
    least: float

    def plus(self, other: _Counted) -> _Counted:
        cut, least = max(self.cut, other.cut), min(self.least, other.least)
        return _Counted(self.kept + other.kept, self.zeroed + other.zeroed, cut, least=least)


def zeroed_spreads(zeroed: Sequence[Zeroed], progress: Progress) -> dict[str, ZeroedSpread]:
    """One more pass over the weights, each read once, in half octaves of |w|. The name "" holds the sum of all."""
    counts = {one.weight.name: _count(one) for one in progress(zeroed, "measuring what was zeroed", len(zeroed))}
    total = _Counted(np.zeros(_CELLS, np.int64), np.zeros(_CELLS, np.int64), 0.0, least=np.inf)
    for one in counts.values():
        total = total.plus(one)
    used = np.flatnonzero(total.kept + total.zeroed)
    if not len(used):
        return {}
    first, last = max(int(used[0]), int(used[-1]) - 2 * _DOWN_TO), int(used[-1])
    return {name: _spread(one, first, last) for name, one in (("", total), *counts.items())}


def _count(one: Zeroed) -> _Counted:
    before = one.values()
    after = one.decision.apply(before)
    size = np.abs(before.astype(np.float32)).reshape(-1)
    kept = (after != 0).reshape(-1)
    gone = ~kept & (size > 0)
    cells = size.view(np.uint32) >> _SHIFT
    result = _Counted(
        np.bincount(cells[kept], minlength=_CELLS),
        np.bincount(cells[gone], minlength=_CELLS),
        float(size[gone].max(initial=0.0)),
        least=float(size[kept].min(initial=np.inf)),
    )
    one.release()
    return result


def _spread(one: _Counted, first: int, last: int) -> ZeroedSpread:
    bits = np.arange(first, last + 2, dtype=np.uint32) << np.uint32(_SHIFT)
    edges = tuple(float(value) for value in bits.view(np.float32))

    def shown(counts: Array) -> tuple[int, ...]:
        return (int(counts[: first + 1].sum()), *(int(n) for n in counts[first + 1 : last + 1]))

    cut = one.cut if one.zeroed.any() else None
    return ZeroedSpread(edges, shown(one.kept), shown(one.zeroed), cut=cut, sharp=one.cut <= one.least)
