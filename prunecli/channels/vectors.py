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
Entry = int | tuple[str, int] | None  # a constant, (graph input, axis), or what was computed
Dimensions = dict[tuple[str, int], tuple[str, list[int]]]  # (graph input, axis) -> (name, length per view)


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
        steps.append((1, 1, 0) if _follows(computed, column, wildcard) else _entry(computed, list(column)))
    if any(step is None for step in steps):
        return None
    factor, divisor, constant = zip(*(step for step in steps if step is not None), strict=True)
    return Affine(list(factor), list(divisor), list(constant))


def as_factor(current: Sequence[Array | None], wanted: Sequence[Array | None]) -> Array | None:
    """The constant that makes what is computed of what is wanted, by multiplication of floating-point numbers, or None.

    A count of elements that lost a part of them is too small by the same factor at all dimensions.
    """
    pairs = [(c, w) for c, w in zip(current, wanted, strict=True) if c is not None and w is not None]
    if len(pairs) < len(wanted) or any(c.shape != w.shape or w.dtype.kind != "f" or not c.all() for c, w in pairs):
        return None
    factors = [w.astype(np.float64) / c for c, w in pairs]
    same = all(f.shape == factors[0].shape and np.allclose(f, factors[0], rtol=1e-5, atol=0) for f in factors)
    return factors[0].astype(pairs[0][1].dtype) if same else None


def as_dimensions(
    dimensions: Dimensions, current: list[Array | None], wanted: Wanted, wildcard: bool = False
) -> list[Entry] | None:
    """Entry by entry: a constant, what is computed already, or the only dynamic dimension that is as long; or None.

    A dimension itself is preferred to a correction of what was computed (4 heads * batch // 4 is not the batch any
    more with 2 heads, nor twice that an odd batch).
    """
    out: list[Entry] = []
    for i, column in enumerate(zip(*wanted, strict=True)):
        same = [where for where, (_, lengths) in dimensions.items() if lengths == list(column)]
        computed = [int(c[i]) for c in current if c is not None and c.ndim == 1 and len(c) == len(wanted[0])]
        constant = _same(column)
        if len(computed) == len(wanted) and _follows(computed, column, wildcard):
            out.append(None)
        elif constant is not None:
            out.append(constant)
        elif len({dimensions[where][0] for where in same}) == 1:
            out.append(same[0])
        else:
            return None
    return out if any(isinstance(entry, tuple) for entry in out) else None


def _follows(computed: list[int], wanted: Sequence[int], wildcard: bool) -> bool:
    return computed == list(wanted) or (wildcard and _same(computed) in (0, -1))


def _entry(computed: list[int], wanted: list[int]) -> tuple[int, int, int] | None:
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
