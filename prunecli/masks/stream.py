"""Exact selection over any number of arrays of any size, reading each about once and copying none.

The lowest units that fit a budget are found as a *cut* per source: a key, and how many of its ties stay.

1. A stratified random sample of every array brackets the cut.
2. One pass, in cache-sized pieces, counts what lies below the bracket and collects the keys inside it
   (about one in a hundred).
3. The exact cut is found among the collected keys. If the sample was unlucky and the cut lies outside the
   bracket, the bracket is widened and the pass repeated, so the result is always exact.

Values so frequent that collecting them would cost memory (the zeros of an already sparse model) are counted
instead; they are called atoms here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.arrays import Array, Mask
from prunecli.errors import PruneError
from prunecli.float_keys import (
    CHUNK_BYTES,
    KeyFormat,
    common_format,
    key_chunks,
    key_format,
    narrow,
    values_of,
    widen,
    words,
)
from prunecli.types import Progress, no_progress

SAMPLE = 1 << 16  # keys sampled of one array
TOTAL = 1 << 19  # of all arrays together, in proportion to their sizes
LEAST = 1 << 11  # but at least of each
HEAVY = 32  # times a value appears in the sample before it is an atom


@dataclass(frozen=True)
class Bracket:
    """Keys `first <= key < end`, between which the cut is believed to lie, and the atoms just outside."""

    first: int
    end: int
    atoms: tuple[int, ...] = ()


@dataclass
class Census:
    """What one pass over a source found, in weights. `inside` is in the source's own key format and order."""

    source: ScoreSource
    inside: Array
    inside_sizes: Array | None
    below: int = 0
    atoms: list[int] = field(default_factory=list)
    nonzero: int = 0
    above_squares: float = 0.0

    @property
    def size(self) -> int | Array:
        """Weights per unit inside: one number, or one for each."""
        return self.source.width if self.inside_sizes is None else self.inside_sizes

    @property
    def inside_weight(self) -> int:
        return int(np.sum(np.broadcast_to(self.size, self.inside.shape)))


def survey(source: ScoreSource, bracket: Bracket, common: KeyFormat, squares: bool = False) -> Census:
    """One pass: count below the bracket and at its atoms, collect inside it, and check for NaN.

    With `squares`, also add up the squared values beyond the bracket.

    Raises:
        PruneError: a value is NaN or infinite.
    """
    form, word = source.form, source.form.word.type
    first, end = (narrow(key, form, common) for key in (bracket.first, bracket.end))
    own = [_exact(atom, form, common) for atom in bracket.atoms]
    atoms = [(i, key) for i, key in enumerate(own) if key is not None]
    floor = min([first, *(key for _, key in atoms)])
    census = Census(source, np.empty(0, form.word), None, atoms=[0] * len(bracket.atoms))
    found, found_sizes = [census.inside], []
    array = source.load()
    buffer = np.empty(CHUNK_BYTES // form.word.itemsize, np.bool_)
    for keys, size in _sized_chunks(source, array):
        mask = buffer[: keys.size]
        if keys.max() >= form.limit:
            raise not_finite(source.name, array)
        census.nonzero += int(np.count_nonzero(keys))
        census.below += _weigh(np.less(keys, word(floor), out=mask), size) if floor else 0
        for i, key in atoms:
            census.atoms[i] += _weigh(np.equal(keys, word(key), out=mask), size)
        if squares:
            census.above_squares += _squares(keys, end, form)
        np.subtract(keys, word(first), out=keys)  # wraps below zero, so that one comparison tests both ends
        np.less(keys, word(end - first), out=mask)
        found.append(keys[mask])
        if not isinstance(size, int):
            found_sizes.append(size[mask])
    census.inside = np.concatenate(found)
    census.inside += word(first)
    census.inside_sizes = np.concatenate(found_sizes) if found_sizes else None
    source.release()
    return census


def _sized_chunks(source: ScoreSource, array: Array) -> Iterator[tuple[Array, int | Array]]:
    """Key chunks with the weights per unit: one number, or an array beside the keys."""
    seen = 0
    for keys in key_chunks(array):
        yield keys, source.width if source.sizes is None else source.sizes[seen : seen + keys.size]
        seen += keys.size


def _weigh(mask: Array, size: int | Array) -> int:
    return int(np.count_nonzero(mask)) * size if isinstance(size, int) else int(size[mask].sum())


def _squares(keys: Array, end: int, form: KeyFormat) -> float:
    values = values_of(keys * (keys >= form.word.type(end)), form)
    np.square(values, out=values)
    return float(values.sum())  # not by BLAS, whose threads and order of adding differ between machines


def _exact(key: int, form: KeyFormat, common: KeyFormat) -> int | None:
    """The key in `form` that equals `key` in `common`, if there is one."""
    own = narrow(key, form, common)
    return own if int(widen(np.array([own], form.word), form, common)[0]) == key else None


def count_below(source: ScoreSource, key: int = 0) -> CutPoint:
    """The cut that drops every unit below `key` (by default none). Raises PruneError for NaN or infinity."""
    census = survey(source, Bracket(key, key), source.form)
    return CutPoint(key, EVERY, census.below, nonzero=census.nonzero)


def lowest(sources: Sequence[ScoreSource], budget: int, progress: Progress = no_progress) -> list[CutPoint]:
    """The cuts that drop, over all sources together, the lowest units while they fit the budget.

    Units go in the order of ascending score; among equals the last unit of the last source goes first. The
    first unit that does not fit ends it. Of units of one weight each, exactly `budget` go.

    Args:
        sources: scores to compare, of any mixture of float formats.
        budget: weights that may be dropped.

    Returns:
        One cut per source.

    Raises:
        PruneError: a score is NaN or infinite.
    """
    total = sum(source.weights for source in sources)
    budget = min(budget, total)
    if budget <= 0:
        return [count_below(source) for source in progress(sources, "reading", len(sources))]
    common = common_format([source.form for source in sources])
    samples, widening = sampled(sources, progress), 1
    while True:
        bracket = _bracket(sources, samples, budget / total, widening=widening, common=common)
        found = [survey(source, bracket, common) for source in progress(sources, "choosing", len(sources))]
        below = sum(census.below for census in found)
        inside = sum(census.inside_weight + sum(census.atoms) for census in found)
        if below < budget <= below + inside:
            return _cuts(
                found, _kth(found, bracket, common, budget=budget - below), common, bracket=bracket, budget=budget
            )
        widening *= 8


def sampled(sources: Sequence[ScoreSource], progress: Progress = no_progress) -> list[Array]:
    """Sorted keys of a sample of each source: one from a random place in each of equal stretches."""
    total = sum(source.size for source in sources)
    samples = []
    for index, source in enumerate(progress(sources, "sampling", len(sources))):
        wanted = min(SAMPLE, max(LEAST, TOTAL * source.size // max(total, 1)))
        bits = words(source.load())
        if source.size > 4 * wanted:
            places = np.arange(wanted) + np.random.default_rng(index).random(wanted)
            bits = bits[(places * (source.size / wanted)).astype(np.int64)]
        samples.append(np.sort(bits & source.form.word.type(source.form.mask)))
        del bits
        source.release()
    return samples


def _bracket(
    sources: Sequence[ScoreSource], samples: list[Array], share: float, widening: int, common: KeyFormat
) -> Bracket:
    """Around the sample's quantile at `share`: four standard errors to each side, times `widening`."""
    live = [(source, sample) for source, sample in zip(sources, samples, strict=True) if sample.size]
    keys = np.concatenate([widen(sample, source.form, common) for source, sample in live])
    mass = np.concatenate([np.full(sample.size, source.weights / sample.size) for source, sample in live])
    effective = mass.sum() ** 2 / np.dot(mass, mass)
    margin = widening * (4 * np.sqrt(share * (1 - share) / effective) + 4 / effective)
    if margin >= 0.5 or all(source.size == sample.size for source, sample in live):
        return Bracket(0, common.limit)
    order = np.argsort(keys, kind="stable")
    keys, mass = keys[order], np.cumsum(mass[order])
    low, high = np.searchsorted(mass, np.array([share - margin, share + margin]) * mass[-1])
    first = int(keys[low]) if low > 0 else 0
    last = int(keys[high]) if high < keys.size else common.limit - 1
    if any(source.sizes is not None for source in sources):  # a count alone does not tell which units tie
        return Bracket(first, last + 1)
    heavy = tuple(key for key in dict.fromkeys((first, last)) if _times(keys, key) > HEAVY)
    first, end = first + (first in heavy), last + (last not in heavy)
    return Bracket(first, max(first, end), heavy)


def _times(keys: Array, key: int) -> int:
    word = keys.dtype.type(key)
    return int(np.searchsorted(keys, word, "right") - np.searchsorted(keys, word, "left"))


def _kth(found: list[Census], bracket: Bracket, common: KeyFormat, budget: int) -> int:
    """The smallest key up to which, from the bracket's start, there are at least `budget` weights."""
    counted = [sum(census.atoms[i] for census in found) for i in range(len(bracket.atoms))]
    for atom, count in zip(bracket.atoms, counted, strict=True):
        if atom < bracket.first:
            if budget <= count:
                return atom
            budget -= count
    if budget > sum(census.inside_weight for census in found):
        return bracket.atoms[-1]
    keys = np.concatenate([widen(census.inside, census.source.form, common) for census in found])
    widths = {int(size) for census in found for size in np.unique(census.size)}
    if len(widths) == 1:
        place = -(-budget // widths.pop()) - 1
        return int(np.partition(keys, place)[place])
    mass = np.concatenate([np.broadcast_to(census.size, census.inside.shape) for census in found])
    order = np.argsort(keys, kind="stable")
    return int(keys[order[np.searchsorted(np.cumsum(mass[order]), budget)]])


def _cuts(found: list[Census], key: int, common: KeyFormat, bracket: Bracket, budget: int) -> list[CutPoint]:
    """Everything below `key` goes; of its ties the last ones go, while they fit."""
    lower = [_weight_below(census, key, common, bracket=bracket) for census in found]
    room, cuts = budget - sum(lower), []
    for census, dropped in zip(reversed(found), reversed(lower), strict=True):
        ties, gone, spent = _fitting_ties(census, key, common, bracket=bracket, room=room)
        room = room - spent if gone == ties else 0  # the first unit that does not fit ends it
        own = narrow(key, census.source.form, common)
        cuts.append(CutPoint(own, ties - gone if gone else EVERY, dropped + spent, nonzero=census.nonzero))
    return cuts[::-1]


def _weight_below(census: Census, key: int, common: KeyFormat, bracket: Bracket) -> int:
    counted = sum(n for atom, n in zip(bracket.atoms, census.atoms, strict=True) if atom < key)
    lower = census.inside < narrow(key, census.source.form, common)
    return census.below + counted + _weigh(lower, census.size)


def _fitting_ties(census: Census, key: int, common: KeyFormat, bracket: Bracket, room: int) -> tuple[int, int, int]:
    """How many units tie at `key`, how many of them go, and the weights in those."""
    width = census.source.width
    if key in bracket.atoms:
        ties = census.atoms[bracket.atoms.index(key)] // width
        return ties, min(ties, room // width), min(ties, room // width) * width
    own = _exact(key, census.source.form, common)
    tied = np.flatnonzero(census.inside == own) if own is not None else np.empty(0, np.intp)
    if census.inside_sizes is None:
        return tied.size, min(tied.size, room // width), min(tied.size, room // width) * width
    spent = np.cumsum(census.inside_sizes[tied[::-1]])
    gone = int(np.searchsorted(spent, room, "right"))
    return tied.size, gone, int(spent[gone - 1]) if gone else 0


EVERY = 1 << 62
"""More ties than there can be."""


def _nothing() -> None:
    """What releasing memory means for an array that is simply held."""


@dataclass(frozen=True)
class ScoreSource:
    """The scores of one tensor's units, loaded when needed.

    `load` returns floats, whose magnitudes are the scores, in storage order of the units. A unit is `width` weights;
    units of unequal size give `sizes` instead, in the same order.
    """

    name: str
    size: int
    dtype: Any
    load: Callable[[], Array]
    release: Callable[[], None] = _nothing
    width: int = 1
    sizes: Array | None = None
    shape: tuple[int, ...] = ()
    """Of the stored tensor, where a scope asks for it."""

    @property
    def form(self) -> KeyFormat:
        return key_format(self.dtype)

    @property
    def weights(self) -> int:
        """Return the number of weights in all units."""
        return self.size * self.width if self.sizes is None else int(self.sizes.sum())


@dataclass(frozen=True)
class CutPoint:
    """Which units of one source go: those with a key below `key`, and its ties but for the first `ties_kept`.

    `dropped` counts the weights (not units) that go; `nonzero` the units whose key was not zero before.
    """

    key: int
    ties_kept: int = EVERY
    dropped: int = 0
    nonzero: int = 0

    def masks(self, array: Array) -> Iterator[Mask]:
        """True where a unit goes, in cache-sized pieces in storage order, each overwritten by the next."""
        kept, mask = 0, np.empty(0, np.bool_)
        for keys in key_chunks(array):
            mask = mask if mask.size == keys.size else np.empty(keys.size, np.bool_)
            ties = int(np.count_nonzero(keys == self.key)) if kept <= self.ties_kept < EVERY else 0
            if kept < self.ties_kept and kept + ties > self.ties_kept:  # the first tie to go is here
                np.less(keys, self.key, out=mask)
                mask[np.flatnonzero(keys == self.key)[self.ties_kept - kept :]] = True
            else:
                (np.less if kept + ties <= self.ties_kept else np.less_equal)(keys, self.key, out=mask)
            kept += ties
            yield mask

    def mask(self, array: Array) -> Mask:
        """True where a unit goes, in storage order."""
        mask, start = np.empty(array.size, np.bool_), 0
        for piece in self.masks(array):
            mask[start : start + piece.size] = piece
            start += piece.size
        return mask


def not_finite(name: str, array: Array) -> PruneError:
    """The refusal of a tensor with NaN or infinity, saying how many and where the first one is."""
    flat = np.asarray(array).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(flat.astype(np.float32) if flat.dtype.itemsize < 4 else flat))
    if not bad.size:
        return PruneError(f"the scores of {name} are not finite", "leave it out with --exclude")
    what = "NaN" if np.isnan(float(flat[bad[0]])) else "infinity"
    return PruneError(
        f"weight {name} holds {bad.size} NaN or infinite values (first: {what} at flat index {bad[0]})",
        "repair the model, or leave this weight out with --exclude",
    )
