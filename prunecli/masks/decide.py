"""From weights and a recipe to what becomes of each weight: units -> scores -> pools -> what goes.

    recipe = Recipe(pattern="element", scope="global", sparsity=0.5)
    for target, decision in zip(targets, decide(targets, recipe)):
        pruned = decision.apply(target.load())

No decision holds a mask: it is recomputed from the weight whenever it is needed, and is the same for the same array. So
a model of any size can be decided on at once and written tensor by tensor.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunecli.arrays import Array, Mask
from prunecli.errors import PruneError
from prunecli.float_keys import key_chunks, key_format, key_of, magnitude_keys, words
from prunecli.masks.allocations import ALLOCATIONS, LossCurve, budget_of
from prunecli.masks.criteria import Block, Elements, of_elements
from prunecli.masks.patterns import (
    Shape4,
    Tiles,
    Tiling,
    Windows,
    drop_within,
    element,
    gather,
    keep_top,
    parse_pattern,
    storage_axes,
    window_drop,
)
from prunecli.masks.scopes import SCOPES, by_allocation
from prunecli.masks.stream import CutPoint, ScoreSource, count_below, not_finite
from prunecli.quantity import Quantity, did_you_mean_percent
from prunecli.types import Json, Progress, no_progress


@dataclass(frozen=True)
class Recipe:
    """What is asked for. One of `sparsity`, `threshold`, or an N:M pattern, which implies its sparsity. `allocate`: how
    much goes from which weight, instead of a scope; `losses`: by weight, what that reads.

    Raises:
        PruneError: on construction, if the parts do not make sense together.
    """

    pattern: str = "element"
    scope: str | None = None
    criterion: str | None = None
    sparsity: float | None = None
    threshold: float | None = None
    seed: int = 0
    allocate: str | None = None
    losses: Mapping[str, LossCurve] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        form = parse_pattern(self.pattern)
        object.__setattr__(self, "pattern", form.text)
        if self.criterion is not None:
            of_elements(self.criterion)
        if self.scope is not None:
            SCOPES.get(self.scope)
        if self.allocate is not None:
            _check_allocation(self, form)
        if isinstance(form, Windows):
            _check_windows(self, form)
        elif self.threshold is not None:
            _check_threshold(self)
        else:
            _check_sparsity(self, form)

    def to_json(self) -> Json:
        """What was asked for, with the defaults that apply."""
        windows = isinstance(parse_pattern(self.pattern), Windows)
        scope = None if windows or self.threshold is not None or self.allocate else self.scope or "layer"
        named = {
            "pattern": self.pattern,
            "scope": scope,
            "criterion": self.criterion or "l1",
            "allocate": self.allocate,
        }
        numbers = {"sparsity": self.sparsity, "threshold": self.threshold, "seed": self.seed}
        return {key: value for key, value in {**named, **numbers}.items() if value is not None}


def _check_allocation(recipe: Recipe, form: Tiles | Windows) -> None:
    ALLOCATIONS.get(recipe.allocate or "")
    if isinstance(form, Windows):
        raise PruneError(f"the pattern {form.text} says how much of each layer goes", "leave --allocate out")
    if recipe.threshold is not None:
        raise PruneError("--threshold looks at each weight by itself", "leave --allocate out, or use --sparsity")
    if recipe.scope is not None:
        raise PruneError(f"--scope {recipe.scope} and --allocate {recipe.allocate} both say how layers compete",
                         "leave one of them out")  # fmt: skip


def _check_windows(recipe: Recipe, form: Windows) -> None:
    if recipe.threshold is not None:
        raise PruneError(
            f"--threshold makes no sense with the pattern {form.text}, which fixes how many weights go",
            "leave --threshold out, or use --pattern element",
        )
    implied = 1 - form.keep / form.window
    if recipe.sparsity is not None and not math.isclose(recipe.sparsity, implied, abs_tol=1e-9):
        raise PruneError(
            f"the pattern {form.text} means a sparsity of {implied:g}, not {recipe.sparsity:g}",
            "leave --sparsity out, or choose another N:M",
        )
    if recipe.scope not in (None, "layer"):
        raise PruneError(
            f"--scope {recipe.scope} makes no sense with the pattern {form.text}: only the weights of one"
            " window compete",
            "leave --scope out",
        )


def _check_threshold(recipe: Recipe) -> None:
    threshold = recipe.threshold or 0.0
    if recipe.sparsity is not None:
        raise PruneError("--threshold and --sparsity contradict each other", "give one of them")
    if not 0 <= threshold < math.inf:
        raise PruneError(f"a threshold of {threshold} is not a number from 0 up", "give a small number such as 0.01")
    if recipe.scope is not None:
        raise PruneError(
            "--scope makes no sense with --threshold, which looks at each weight by itself",
            "leave --scope out, or use --sparsity",
        )
    if recipe.criterion not in (None, "l1") and of_elements(recipe.criterion).evidence is None:
        raise PruneError(
            f"--threshold compares |w| (of units: its mean) or what is measured on data, not {recipe.criterion}",
            "leave --criterion out, or use --sparsity",
        )


def _check_sparsity(recipe: Recipe, form: Tiles) -> None:
    if recipe.sparsity is None:
        raise PruneError("how much to prune is not given", "give --sparsity 0.5, --threshold 0.01, or --pattern 2:4")
    if not 0 <= recipe.sparsity <= 1:
        hint = did_you_mean_percent(Quantity(recipe.sparsity), "write 0.5 or 50%")
        raise PruneError(f"a sparsity of {recipe.sparsity} is outside 0 to 1", hint)
    if recipe.scope == "row" and not form.rows_compete:
        raise PruneError(
            f"--scope row makes no sense with the pattern {form.text}: no two of its units lie in one row",
            "use --scope layer or global",
        )


# -- units and their scores --------------------------------------------------------------------------


def _nothing() -> None:
    """Nothing to let go of."""


@dataclass(frozen=True)
class Target:
    """One weight as selection sees it.

    load: the stored array, C-contiguous; release: let go of its memory.
    canonical: that array as (batch, rows, taps, cols), a view if possible; restore: back to the stored shape.
    evidence: what the criterion asks for of each weight, an array that broadcasts to the canonical shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    load: Callable[[], Array]
    canonical: Callable[[Array], Array]
    restore: Callable[[Array], Array]
    release: Callable[[], None] = _nothing
    evidence: Callable[[], Array] | None = None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Units:
    """How every weight is divided and scored: the same criterion and pattern for all."""

    pattern: Tiles
    criterion: Elements
    seed: int = 0

    @property
    def by_bits(self) -> bool:
        """Whether the stored bits are the scores: single weights ranked by magnitude."""
        return self.pattern.single and self.criterion.by_magnitude

    def source(self, target: Target) -> ScoreSource:
        """The scores of one weight's units, for the search for a cut."""
        if self.by_bits:
            return ScoreSource(
                target.name, target.size, target.dtype, load=target.load, release=target.release, shape=target.shape
            )
        tiling = self.tiling(target, target.load())
        target.release()
        return ScoreSource(
            target.name,
            tiling.units,
            np.float64,
            load=lambda: self.keys(target, target.load()),
            release=target.release,
            width=tiling.width or 1,
            sizes=None if tiling.width else tiling.flat(tiling.sizes()),
            shape=target.shape,
        )

    def tiling(self, target: Target, array: Array) -> Tiling:
        view = target.canonical(array)
        batch, rows, taps, cols = view.shape
        shape: Shape4 = (batch, rows, taps, cols)
        return Tiling(shape, self.pattern.tile(shape), storage_axes(view))

    def keys(self, target: Target, array: Array) -> Array:
        """Scores in unit order, as a Source loads them."""
        tiling = self.tiling(target, array)
        return tiling.flat(self.scores(target, array, tiling))

    def scores(self, target: Target, array: Array, tiling: Tiling) -> Array:
        """One score per tile, in the shape of the grid.

        Raises:
            PruneError: a weight is NaN or infinite, and so the score.
        """
        view = target.canonical(array)
        evidence = None if target.evidence is None else np.broadcast_to(target.evidence(), view.shape)
        rng = np.random.default_rng([self.seed, zlib.crc32(target.name.encode())])
        grid = np.empty(tiling.grid, np.float64)
        for piece in tiling.pieces():
            weights = gather(view, piece)
            scores = self.criterion.score(Block(weights, None if evidence is None else gather(evidence, piece), rng))
            if not (np.isfinite(scores).all() and np.isfinite(weights).all()):
                raise not_finite(target.name, array)
            grid[piece.where] = scores.reshape(grid[piece.where].shape)
        if (grid < 0).any():
            raise ValueError("the criterion gave a negative score")
        return grid

    def dropped(self, target: Target, array: Array, cut: CutPoint) -> Mask:
        """The cut as one flag per element of the stored array."""
        if self.by_bits:
            return cut.mask(array).reshape(array.shape)
        return target.restore(self.tiling(target, array).expand(cut.mask(self.keys(target, array))))


# -- decisions ---------------------------------------------------------------------------------------


_SLAB = 1 << 18


class Decision:
    """Which elements of one weight become zero."""

    @property
    def values(self) -> Array | None:
        """Of the whole weight, where the others change too."""
        return None

    def drop(self, array: Array) -> Mask:
        """True where an element of the stored array becomes zero."""
        raise NotImplementedError

    def apply(self, array: Array) -> Array:
        """A copy of the stored array in which those elements are (positive) zero, all others bit for bit
        as they were."""
        return zeroed(array, self.drop(array))


def zeroed(array: Array, drop: Mask) -> Array:
    """`numpy.where(drop, 0, array)` in the array's own type."""
    keep = np.logical_not(drop).reshape(-1)
    out = np.empty(array.shape, array.dtype)
    _times(words(array), keep, out.reshape(-1).view(key_format(array.dtype).word))
    return out


def _times(bits: Array, keep: Mask, out: Array) -> None:
    """Integer multiplication by 0 or 1: several times as fast as a masked copy."""
    step = 1 << 16
    for start in range(0, bits.size, step):
        part = slice(start, start + step)
        np.multiply(bits[part], keep[part], out=out[part])


@dataclass(frozen=True)
class ByBits(Decision):
    """Single weights by magnitude: the cut is replayed on the stored bits."""

    cut: CutPoint

    def drop(self, array: Array) -> Mask:
        return self.cut.mask(array).reshape(array.shape)

    def apply(self, array: Array) -> Array:
        bits, out = words(array), np.empty(array.shape, array.dtype)
        result, start = out.reshape(-1).view(bits.dtype), 0
        for piece in self.cut.masks(array):
            part = slice(start, start + piece.size)
            np.multiply(bits[part], np.logical_not(piece, out=piece), out=result[part])
            start += piece.size
        return out


@dataclass(frozen=True)
class ByUnits(Decision):
    """Tiles, or elements by another criterion: scored anew, then cut."""

    target: Target
    units: Units
    cut: CutPoint

    def drop(self, array: Array) -> Mask:
        return self.units.dropped(self.target, array, self.cut)


@dataclass(frozen=True)
class InWindows(Decision):
    """N:M, over the scores of single weights."""

    target: Target
    units: Units
    keep: int
    window: int

    def drop(self, array: Array) -> Mask:
        if self.units.by_bits:
            check_finite(self.target.name, array)
            scores = self.target.canonical(array)
        else:
            scores = self.units.scores(self.target, array, self.units.tiling(self.target, array))
        return self.target.restore(window_drop(scores, self.keep, self.window))


@dataclass(frozen=True)
class InRows(Decision):
    """Every row is a pool: round(S * n) of its n weights go."""

    target: Target
    units: Units
    sparsity: float

    def drop(self, array: Array) -> Mask:
        view = self.target.canonical(array)
        if self.units.by_bits:
            check_finite(self.target.name, array)
            return self.target.restore(row_drop(view, self.sparsity))
        tiling = self.units.tiling(self.target, array)
        scores = self.units.scores(self.target, array, tiling)
        return self.target.restore(tiling.expand(tiling.flat(_drop_in_rows(tiling, scores, self.sparsity))))


@dataclass(frozen=True)
class Masked(Decision):
    """Elements that are zero where `packed` (numpy.packbits of the flat mask) has a 1, as a plan holds them. With
    `values`, of the stored shape and type and zero there, the others change too, as closed-form fitting has it.
    """

    packed: Array
    values: Array | None = None

    @classmethod
    def rewritten(cls, values: Array, drop: Mask, dtype: np.dtype[Any]) -> Masked:
        """`values` rounded to `dtype`. One that would become zero by rounding alone keeps the least size there is, so
        that exactly what `drop` names is zero."""
        rounded = np.where(drop, 0, values).astype(dtype)
        lost = (rounded == 0) & ~drop & (values != 0)
        if lost.any():
            least = np.array(1, key_format(dtype).word).view(dtype)
            rounded[lost] = np.where(values[lost] < 0, -least, least)
        return cls(np.packbits(drop.reshape(-1)), rounded)

    def drop(self, array: Array) -> Mask:
        return np.unpackbits(self.packed, count=array.size).view(np.bool_).reshape(array.shape)

    def apply(self, array: Array) -> Array:
        return super().apply(array) if self.values is None else self.values


@dataclass(frozen=True)
class Joined(Decision):
    """A weight whose parts along its first axis, such as the matrices of experts, are decided on one by one."""

    parts: Sequence[Decision]

    @property
    def values(self) -> Array | None:
        found = [part.values for part in self.parts]
        return None if any(each is None for each in found) else np.stack(found)  # type: ignore[arg-type]

    def drop(self, array: Array) -> Mask:
        return np.stack([part.drop(each) for part, each in zip(self.parts, array, strict=True)])

    def apply(self, array: Array) -> Array:
        return np.stack([part.apply(each) for part, each in zip(self.parts, array, strict=True)])


def check_finite(name: str, array: Array) -> None:
    """Raises PruneError if a value is NaN or infinite."""
    limit = key_format(array.dtype).limit
    if any(keys.max() >= limit for keys in key_chunks(array)):
        raise not_finite(name, array)


def row_drop(view: Array, sparsity: float) -> Mask:
    """True for the round(S * n) smallest magnitudes of each row of (batch, rows, taps, cols)."""
    inner = [axis for axis in storage_axes(view) if axis > 1]
    lines = view.transpose(0, 1, *inner)
    if lines.shape[1] == 1:  # grouped convolutions with one output each: many batches of one row
        lines = lines.swapaxes(0, 1)
    drop, width = np.empty(lines.shape, np.bool_), math.prod(lines.shape[2:])
    quota = width - budget_of(width, sparsity)
    step = max(1, _SLAB // max(1, width))
    for batch in range(lines.shape[0]):
        for start in range(0, lines.shape[1], step):
            part = lines[batch, start : start + step]
            keys = magnitude_keys(np.ascontiguousarray(part)).reshape(len(part), width)
            drop[batch, start : start + step] = ~keep_top(keys, quota).reshape(part.shape)
    if view.shape[1] == 1:
        drop = drop.swapaxes(0, 1)
    return drop.transpose(np.argsort([0, 1, *inner]))


def _drop_in_rows(tiling: Tiling, scores: Array, sparsity: float) -> Mask:
    """The same for tiles: pools are rows of the grid, budgets are in weights."""
    inner = [axis for axis in tiling.order if axis > 1]
    ordered = scores.transpose(0, 1, *inner)
    sizes = np.broadcast_to(tiling.sizes(), tiling.grid).transpose(0, 1, *inner)
    pools = ordered.shape[0] * ordered.shape[1]
    sizes = sizes.reshape(pools, -1)
    budgets = np.array([budget_of(int(total), sparsity) for total in sizes.sum(axis=1)], np.int64)
    drop = drop_within(ordered.reshape(pools, -1), sizes, budgets)
    return drop.reshape(ordered.shape).transpose(np.argsort([0, 1, *inner]))


# -- deciding ----------------------------------------------------------------------------------------


def decide(targets: Sequence[Target], recipe: Recipe, progress: Progress = no_progress) -> list[Decision]:
    """One decision per weight. Reads every weight about once, or not at all where pools lie inside weights.

    Raises:
        PruneError: a weight holds NaN or infinity; where pools lie in weights, once a decision is applied.
    """
    live = [target for target in targets if target.size]
    found = dict(zip((target.name for target in live), _decide(live, recipe, progress), strict=True))
    return [found.get(target.name, ByBits(CutPoint(0))) for target in targets]  # an empty weight stays as it is


def _decide(targets: Sequence[Target], recipe: Recipe, progress: Progress) -> Sequence[Decision]:
    pattern = parse_pattern(recipe.pattern)
    criterion = of_elements(recipe.criterion or "l1")
    if isinstance(pattern, Windows):
        single = Units(element(), criterion, recipe.seed)
        return [InWindows(target, single, pattern.keep, window=pattern.window) for target in targets]
    units = Units(pattern, criterion, recipe.seed)
    if recipe.threshold is not None:
        return [_below(target, units, recipe.threshold) for target in progress(targets, "comparing", len(targets))]
    cuts = (
        by_allocation(recipe.allocate, recipe.losses) if recipe.allocate else SCOPES.get(recipe.scope or "layer").cuts
    )
    sparsity = recipe.sparsity or 0.0
    if cuts is None:
        return [InRows(target, units, sparsity) for target in targets]
    found = cuts([units.source(target) for target in targets], sparsity, progress)
    return [
        ByBits(cut) if units.by_bits else ByUnits(target, units, cut)
        for target, cut in zip(targets, found, strict=True)
    ]


def _below(target: Target, units: Units, threshold: float) -> Decision:
    """|w| < T as numpy compares: T is rounded to the weight's own type. Scores of units and of other criteria are
    compared in float64."""
    source = units.source(target)
    cut = count_below(source, key_of(threshold, source.dtype))
    return ByBits(cut) if units.by_bits else ByUnits(target, units, cut)
