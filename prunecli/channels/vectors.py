"""Integer vectors that carry a node's geometry (targets, sizes, bounds): how each entry follows a cut.

An entry is `kept` where what is computed at run time already follows, `constant` where it is the same at all
dimensions, `scaled` where it is computed from constants that knew the old width (batch * 64).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.model.facts import Array

Wanted = Sequence[Sequence[int]]  # per view, per entry


@dataclass(frozen=True)
class Affine:
    """What to do with a computed vector: `computed * factor // divisor + constant`."""

    factor: list[int]
    divisor: list[int]
    constant: list[int]


def agrees(current: Array | None, wanted: Sequence[int], wildcard: bool) -> bool:
    """Whether a vector already says what is wanted; with `wildcard` 0 and -1 stand for anything."""
    if current is None or current.ndim != 1 or len(current) != len(wanted):
        return False
    return all(int(c) == w or (wildcard and int(c) in (0, -1)) for c, w in zip(current, wanted, strict=True))


def as_constant(current: list[Array | None], wanted: Wanted, wildcard: bool) -> list[int] | None:
    """A constant vector good at all dimensions, or None. Entries that vary may stay 0 or -1; one may become -1."""
    template = current[0]
    out = [_same(column) for column in zip(*wanted, strict=True)]
    for i, entry in enumerate(out):
        if entry is None and wildcard and template is not None and int(template[i]) in (0, -1):
            out[i] = int(template[i])
    loose = [i for i, entry in enumerate(out) if entry is None]
    if wildcard and len(loose) == 1 and -1 not in out:
        out[loose[0]], loose = -1, []
    return None if loose else [int(entry) for entry in out if entry is not None]


def as_affine(current: list[Array | None], wanted: Wanted, wildcard: bool = False) -> Affine | None:
    """How to correct the computed vector entry by entry, or None where an entry cannot follow.

    With `wildcard`, entries that are 0 or -1 at all dimensions stay.
    """
    if any(c is None or c.ndim != 1 or len(c) != len(w) for c, w in zip(current, wanted, strict=True)):
        return None
    steps = []
    for i, column in enumerate(zip(*wanted, strict=True)):
        computed = [int(c[i]) for c in current if c is not None]
        loose = wildcard and _same(computed) in (0, -1)
        steps.append((1, 1, 0) if loose else _entry(computed, list(column)))
    if any(step is None for step in steps):
        return None
    factor, divisor, constant = zip(*(step for step in steps if step is not None), strict=True)
    return Affine(list(factor), list(divisor), list(constant))


def _entry(computed: list[int], wanted: list[int]) -> tuple[int, int, int] | None:
    if computed == wanted:
        return 1, 1, 0
    constant = _same(wanted)
    if constant is not None:
        return 0, 1, constant
    common = int(np.gcd(computed[0], wanted[0]))
    if common == 0:
        return None
    factor, divisor = wanted[0] // common, computed[0] // common
    exact = all(c * factor == w * divisor for c, w in zip(computed, wanted, strict=True))
    return (factor, divisor, 0) if exact and divisor > 0 else None


def _same(column: Sequence[int]) -> int | None:
    return int(column[0]) if all(c == column[0] for c in column) else None
