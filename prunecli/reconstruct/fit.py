"""One matrix of a layer: which weights go, by method, and what the others become, by kind of recovery.

Once the mask is settled the others solve least squares with given zeros (`masked_least_squares`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import linalg

from prunecli.arrays import Array, evenly_spread
from prunecli.errors import PruneError
from prunecli.lanes import in_order, one_blas_thread
from prunecli.masks.criteria import Evidence, of_elements
from prunecli.masks.patterns import Pattern, parse_pattern
from prunecli.reconstruct.obs import Columns, columns_of, removal_losses, suited
from prunecli.reconstruct.sparsegpt import Quota, factor, solved, sparsegpt
from prunecli.registry import Registry

DIRECT = 2e11
"""Multiplications up to which every row is solved by Cholesky; beyond, all rows at once by conjugate gradients."""
QUICK = 1e9
"""The same for estimates, which a sweep gives too."""
_THREADED = 1e7  # multiplications below which threads cost more than they save
_STEPS = 60
_TOLERANCE = 1e-5
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Of the sum of squares of the inputs: products taken in float32 move no eigenvalue of their Gram matrix as far, so
that what is added beyond that makes it positive without a look."""


def damping(gram: Array, count: float) -> float:
    """What is added to the diagonal of G = X X^T / R, from R = `count` positions: a thousandth of its mean, more where
    the data are few for so many columns, and never nothing."""
    mean = float(np.trace(gram)) / max(len(gram), 1)
    return max(mean, 1e-30) * (1e-3 + 0.1 * len(gram) / max(count, 1))


def with_diagonal(gram: Array, added: float) -> Array:
    """G + added I."""
    out = gram.copy()
    out.reshape(-1)[:: len(gram) + 1] += added
    return out


def affordable(keep: Array, most: float) -> bool:
    """Whether every row of the mask can be solved on its own, with so many multiplications at most."""
    kept = keep.sum(axis=1, dtype=np.float64)
    return float((kept**3).sum()) / 3 <= most


def masked_least_squares(gram: Array, cross: Array, keep: Array, start: Array, workers: int = 1) -> Array:
    """argmin over W, zero outside `keep`, of sum_rows w^T G w - 2 c^T w.

    Args:
        gram: (K, K), positive definite. cross: (rows, K). keep: (rows, K). start: (rows, K), where the search starts
            for layers too large for a direct solution.

    Returns:
        (rows, K) float64.

    Raises:
        LinAlgError: the Gram matrix is not positive definite.
    """
    if not affordable(keep, DIRECT):
        return _by_gradients(gram, cross, keep, start=start)
    out = np.zeros(cross.shape)
    if cross.shape[1] <= SMALL:
        only: Array = small_least_squares(gram[None], cross[None], keep[None])[0]
        return only
    (posv,) = linalg.get_lapack_funcs(("posv",), (gram, cross))  # `linalg.solve` estimates the condition, too
    same: dict[bytes, list[int]] = {}
    for row, bits in enumerate(np.packbits(keep, axis=1)):
        same.setdefault(bits.tobytes(), []).append(row)

    def solve(rows: list[int]) -> None:
        at, these = np.flatnonzero(keep[rows[0]]), np.array(rows)
        if at.size:
            part, wanted = gram[np.ix_(at, at)].T, cross[np.ix_(these, at)].T  # columns in one piece, for LAPACK
            _, found, info = posv(part, wanted, overwrite_a=True, overwrite_b=True)
            if info:
                raise linalg.LinAlgError("a part of the Gram matrix is not positive definite")
            out[np.ix_(these, at)] = found.T

    few = float((keep.sum(axis=1, dtype=np.float64) ** 3).sum()) < _THREADED
    with one_blas_thread():
        list(in_order(solve, same.values(), 1 if few else workers))
    return out


SMALL = 32
"""Inputs up to which all rows of all matrices are solved at once."""


def small_least_squares(grams: Array, cross: Array, keep: Array) -> Array:
    """`masked_least_squares` of many small matrices: (B, K, K), (B, rows, K), (B, rows, K)."""
    both = keep[..., :, None] & keep[..., None, :]
    system = np.where(both, grams[:, None], np.eye(grams.shape[-1]))
    found: Array = np.linalg.solve(system, np.where(keep, cross, 0.0)[..., None])[..., 0]
    return np.where(keep, found, 0.0)


def _by_gradients(gram: Array, cross: Array, keep: Array, start: Array) -> Array:
    """Conjugate gradients with the diagonal as preconditioner, every row with steps of its own."""
    scale, least = 1 / gram.diagonal(), np.finfo(gram.dtype).tiny
    found = np.where(keep, start, 0.0)
    rest = np.where(keep, cross - found @ gram, 0.0)
    ahead = rest * scale
    way, size = ahead.copy(), np.einsum("ij,ij->i", rest, ahead)
    goal = _TOLERANCE**2 * np.maximum(np.einsum("ij,ij->i", cross * keep, cross * scale), least)
    for _ in range(_STEPS):
        if (size <= goal).all():
            break
        pushed = np.where(keep, way @ gram, 0.0)
        bend = np.einsum("ij,ij->i", way, pushed)
        step = np.where(bend > 0, size / np.maximum(bend, least), 0.0)[:, None]
        found += step * way
        rest -= step * pushed
        ahead = rest * scale
        new = np.einsum("ij,ij->i", rest, ahead)
        way = ahead + (new / np.maximum(size, least))[:, None] * way
        size = new
    return found


Recover = Literal["none", "bias", "bn", "lstsq"]


@dataclass(frozen=True)
class FitTask:
    """One matrix W (rows, K) of a layer with taps x cols = K, and what it should compute.

    Attributes:
        weights: as they are; cross, gram: of X and the wanted Y (`Problem` of evidence), less their means where an
            intercept may change; x, y: those means; variance: (rows,) of Y; count: of positions.
        offset: (rows,) what is added to the output; free: whether that may change.
        ridge: added to the diagonal of the Gram matrix, in parts of its mean; None: see `damping`.
        added: to the diagonal, where that is settled: for several fits, or for rows of one.
        upper: the factor that `sparsegpt` needs, where it is to be made once for several fits (`factored`).
    """

    weights: Array
    gram: Array
    cross: Array
    x: Array
    y: Array
    variance: Array
    count: float
    offset: Array
    free: bool
    taps: int
    ridge: float | None = None
    added: float | None = None
    upper: Array | None = None

    def settled(self) -> FitTask:
        """A copy whose damping is computed now, so that parts taken by `rows` use the same one."""
        return replace(self, added=self.damping)

    def factored(self, pattern: Pattern) -> FitTask:
        """The same with the factor that `sparsegpt` needs for a pattern."""
        with suited(len(self.gram)):
            upper = factor(self.gram, self.columns(pattern).order, self.damping)
        return replace(self.settled(), upper=upper)

    @cached_property
    def damping(self) -> float:
        """`damping`, and more where the Gram matrix is not positive even so: rounding is all that is left of it where
        inputs hardly move about a large mean, as behind a layer that is empty."""
        if self.added is not None:
            return self.added
        usual, trace = damping(self.gram, self.count), float(np.trace(self.gram))
        if self.ridge is not None:
            usual = max(trace / max(len(self.gram), 1), 1e-30) * self.ridge
        if usual > _ROUNDING * (trace + float(self.x @ self.x)):
            return usual
        try:
            linalg.cholesky(with_diagonal(self.gram, usual / 2).T, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            return usual + 10 * abs(float(linalg.eigvalsh(self.gram, check_finite=False)[0]))
        return usual

    @property
    def damped(self) -> Array:
        """The Gram matrix with `damping` on its diagonal."""
        return with_diagonal(self.gram, self.damping)

    @property
    def target(self) -> Array:
        """(rows, K): the wanted Y times X^T, damped towards the weights as they are."""
        wanted: Array = self.cross + self.weights * self.damping
        return wanted

    def optimum(self) -> FitTask:
        """The same with the weights that, without more zeros, come nearest to the wanted output."""
        with suited(len(self.gram)):
            lower = linalg.cho_factor(self.damped.T, lower=True, overwrite_a=True, check_finite=False)
            solved = linalg.cho_solve(lower, self.target.T, overwrite_b=True, check_finite=False).T
        return replace(self, weights=np.where(self.gone, 0.0, solved))

    @property
    def gone(self) -> Array:
        return np.equal(self.weights, 0)

    def columns(self, pattern: Pattern) -> Columns:
        rows, size = self.weights.shape
        return columns_of(pattern, rows, self.taps, cols=size // self.taps)

    def rows(self, chosen: Array) -> FitTask:
        """The same problem for the chosen rows."""
        names = ("weights", "cross", "y", "variance", "offset")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def error(self, weights: Array, shift: Array) -> float:
        """`loss` over the mean square of the wanted output about its mean."""
        total = float(self.variance.sum())
        return self.loss(weights, shift) / total if total > 0 else 0.0

    def loss(self, weights: Array, shift: Array) -> float:
        """The mean square of what is wrong with the output, summed over rows."""
        wrong = self.variance.copy()
        step = max(1, AT_ONCE // max(weights.shape[1], 1))
        for rows in (slice(start, start + step) for start in range(0, len(weights), step)):
            wrong[rows] += np.einsum("ij,ij->i", weights[rows] @ self.gram - 2 * self.cross[rows], weights[rows])
        if self.free:
            wrong = wrong + np.square(weights @ self.x + self.offset + shift - self.y)
        return float(np.maximum(wrong, 0).sum())


@dataclass(frozen=True)
class Fitted:
    """`weights` (rows, K), zero where `drop`; `shift` (rows,): by how much the output's constant changes."""

    weights: Array
    drop: Array
    shift: Array


@dataclass(frozen=True)
class Method:
    """How weights are chosen. `criterion`: the score of `select` that ranks them, from `scores` below; None where they
    are chosen on the way (`sparsegpt`). `updates`: whether the others change even without recovery. `estimate`: the
    method whose losses, nearly the same and sooner had, tell layers apart. `iterates`: from how many operations of
    exact elimination on `admm` ranks them instead, None: never."""

    name: str
    help: str
    criterion: str | None
    updates: bool
    estimate: str | None = None
    iterates: float | None = None

    def is_iterated(self, pattern: Pattern, shape: tuple[int, ...]) -> bool:
        """Whether `admm` chooses the weights of a layer of (matrices, rows, taps, cols)."""
        matrices, rows, taps, cols = shape
        return (
            self.iterates is not None
            and pattern.text != "row"
            and matrices * rows * (taps * cols) ** 3 >= self.iterates
        )

    @property
    def evidence(self) -> Evidence:
        """What its criterion asks for."""
        found = of_elements(self.criterion or "").evidence
        assert found is not None
        return found

    def stand_in(self, pattern: Pattern) -> Method:
        """The method to estimate losses with."""
        return METHODS.get(self.estimate) if self.estimate and pattern.text != "row" else self


WIDE = 1e11
"""Rows times inputs cubed, from which on exact elimination takes more than some seconds."""
METHODS: Registry[Method] = Registry("method")
for _method in (
    Method(
        "auto",
        "obs, and admm for layers where that takes long",
        "obs",
        updates=True,
        estimate="sparsegpt",
        iterates=WIDE,
    ),
    Method(
        "obs",
        "exact Optimal Brain Surgeon, row by row: the least loss; slow on very wide layers",
        "obs",
        updates=True,
        estimate="sparsegpt",
    ),
    Method(
        "admm",
        "as good as obs, in far less time on wide layers",
        "obs",
        updates=True,
        estimate="sparsegpt",
        iterates=0.0,
    ),
    Method("sparsegpt", "one sweep over the columns: nearly as good, quick on the widest layers", None, updates=True),
    Method("wanda", "|w| times the norm of its input: no inverse, the least memory", "wanda", updates=False),
):
    METHODS.add(_method)


def check(method: Method, pattern: Pattern) -> None:
    """Raises PruneError if the method cannot follow the pattern."""
    if method.criterion is None and pattern.text == "row":
        raise PruneError(
            f"--method {method.name} makes up for what goes within a row, and the pattern row leaves nothing of it",
            "use --method obs or wanda",
        )


def scores(evidence: Evidence, tasks: Sequence[FitTask], pattern: Pattern, workers: int) -> Array:
    """(matrices, rows, K): the evidence that a criterion asks for, of all matrices of a layer."""
    weights = np.stack([task.weights for task in tasks])
    if evidence.source == "activations":
        raw = np.stack([task.gram.diagonal() + (np.square(task.x) if task.free else 0) for task in tasks])
        return np.broadcast_to(np.sqrt(np.maximum(raw, 0))[:, None], weights.shape)
    damped = np.stack([task.damped for task in tasks])
    if pattern.text == "row":
        whole = np.einsum("brk,brk->br", weights @ damped, weights) / weights.shape[2]
        return np.broadcast_to(whole[..., None], weights.shape)
    return removal_losses(weights, damped, tasks[0].columns(pattern), workers=workers)


RIDGES = (1e-3, 1e-2, 1e-1, 0.4, 1.5, 6.0)
"""Parts of the mean of G's diagonal, of which held-out samples choose one."""
_SWEPT = 0.1
WORTH = 0.99
"""Of the error with the next smaller ridge: what gains less is noise."""
OVERFITTED = 1.1
"""Times the error of fitted samples, below which that of the others leaves a larger ridge nothing to gain."""
_TRIED = 64
"""Rows of a layer on which ridges are tried, of as many matrices at most."""
_TRIED_WORK, _LEAST_TRIED = 1e10, 8
"""Multiplications that the solutions of those rows may take, and the fewest rows of a matrix all the same."""


@dataclass(frozen=True)
class RidgeChoice:
    """`ridge`, and by it the errors on the samples that were fitted and on those held out."""

    ridge: float
    fitted: float
    held: float


def best_ridge(
    fitted: Sequence[FitTask], held: Sequence[FitTask], recover: Recover, pattern: Pattern, density: float,
    workers: int = 1,
) -> RidgeChoice:  # fmt: skip
    """The ridge with which a layer, pruned to `density`, errs least on samples that it is not fitted on.

    From the smallest on, until one errs more, or hardly more than on fitted samples; on some of the rows, with the mask
    that `sparsegpt` finds at a ridge of its own: large ones make a better one of its sweep, which says nothing of the
    fit.
    """
    chosen = evenly_spread(len(fitted), _TRIED)
    each = tried_rows(len(fitted), fitted[0].weights.shape, density)
    pairs = [(_some(fitted[i], each), _some(held[i], each)) for i in chosen]
    if pattern.text == "row":  # a row is left whole, or nothing of it is left
        pattern, density = parse_pattern("element"), 1.0
    masks = [
        fit(METHODS.get("sparsegpt"), recover, replace(one, ridge=_SWEPT), pattern=pattern,
            chosen=Quota(round((1 - density) * one.weights.size)), refine=False).drop for one, _ in pairs
    ]  # fmt: skip
    total = sum(float(judge.variance.sum()) for _, judge in pairs) or 1.0
    power = sum(float(task.variance.sum()) for task, _ in pairs) or 1.0
    best: RidgeChoice | None = None
    for ridge in RIDGES:
        losses = np.zeros(2)
        for (one, judge), mask in zip(pairs, masks, strict=True):
            task = replace(one, ridge=ridge)
            found = fit(METHODS.get("obs"), recover, task, pattern=pattern, chosen=mask, workers=workers)
            losses += task.loss(found.weights, found.shift), judge.loss(found.weights, found.shift)
        now = RidgeChoice(ridge, float(losses[0]) / power, float(losses[1]) / total)
        if best is None or now.held < WORTH * best.held:
            best = now
        elif WORTH * now.held > best.held or now.held < OVERFITTED * now.fitted:
            break
    assert best is not None
    return best


def tried_rows(matrices: int, shape: tuple[int, ...], density: float) -> int:
    """Rows of each matrix (rows, K) on which ridges are tried: fewer where each of them takes long."""
    most = _TRIED // min(matrices, _TRIED)
    return max(min(most, int(_TRIED_WORK / max((density * shape[1]) ** 3 / 3, 1.0))), min(most, _LEAST_TRIED), 1)


def _some(task: FitTask, rows: int) -> FitTask:
    return task.rows(evenly_spread(len(task.weights), rows))


def fit(
    method: Method, recover: Recover, task: FitTask, pattern: Pattern, chosen: Array | Quota, workers: int = 1, *,
    refine: bool = True,
) -> Fitted:  # fmt: skip
    """The matrix with what was `chosen` at zero (a mask, or how many `sparsegpt` may choose) and the rest fitted.

    none: to what the matrix itself computes on these inputs, if the method updates at all. bias: also the constant, so
    that the means are as wanted. bn: also a factor per row, so that the variances are, as re-estimating a
    BatchNormalization does. lstsq: everything, to what is wanted. Without `refine` a sweep's own weights stay
    where solving for better ones takes long. Of matrices of more than `AT_ONCE` weights some rows are fitted at a time,
    of which each has its even share of what goes.
    """
    if isinstance(chosen, Quota) and task.upper is None:
        task = task.factored(pattern)
    parts = _row_parts(task, pattern)
    if len(parts) > 1:
        task = task.settled()
        shares = [_share(chosen, part, len(task.weights)) for part in parts]
        each = [
            fit(method, recover, task.rows(part), pattern=pattern, chosen=share, workers=workers, refine=refine)
            for part, share in zip(parts, shares, strict=True)
        ]
        return Fitted(*(np.concatenate([getattr(one, name) for one in each]) for name in ("weights", "drop", "shift")))
    with suited(task.weights.shape[1]):
        if isinstance(chosen, Quota):
            assert task.upper is not None
            columns, best = task.columns(pattern), task.weights
            if recover == "lstsq":
                best = np.where(task.gone, 0, solved(task.target, task.upper, columns.order))
            weights, drop = sparsegpt(best, task.upper, columns, quota=chosen, gone=task.gone)
            drop = drop | task.gone
            update = affordable(~drop, DIRECT if refine else QUICK)
        else:
            weights, drop = task.weights, chosen | task.gone
            update = method.updates or recover == "lstsq"
        if update:
            target = task.target if recover == "lstsq" else task.weights @ task.damped
            weights = masked_least_squares(task.damped, target, ~drop, start=weights, workers=workers)
        return _finished(task, recover, np.where(drop, 0.0, weights), drop=drop)


AT_ONCE = 1 << 24
"""Weights; but no fewer rows than there are inputs, whose factor is made for each part."""


def _row_parts(task: FitTask, pattern: Pattern) -> list[Array]:
    """Rows that are fitted together: whole units, of about as many weights in each part."""
    rows, size = task.weights.shape
    height = task.columns(pattern).rows or rows
    count = min(-(-rows * size // AT_ONCE), max(rows // max(height, size), 1))
    edges = [round(k * rows / count / height) * height for k in range(count)]
    return [np.arange(*pair) for pair in pairwise([*edges, rows])]


def _share(chosen: Array | Quota, part: Array, rows: int) -> Array | Quota:
    if not isinstance(chosen, Quota):
        return chosen[part]
    start, stop = (round(chosen.total * end / rows) for end in (int(part[0]), int(part[-1]) + 1))
    return replace(chosen, total=stop - start)


def _finished(task: FitTask, recover: Recover, weights: Array, drop: Array) -> Fitted:
    """The constant, and for bn the size, of every row's output."""
    if recover == "bn":
        has = np.einsum("ij,ij->i", weights @ task.gram, weights)
        fine = (has > 1e-12 * task.variance) & (task.variance > 0)
        weights = weights * np.sqrt(np.divide(task.variance, has, out=np.ones_like(has), where=fine))[:, None]
    shift = np.zeros(len(weights))
    if task.free and recover != "none":
        shift = task.y - weights @ task.x - task.offset
    return Fitted(weights, drop, shift)
