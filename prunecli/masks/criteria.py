"""Criteria: units -> importance, higher = keep. One registry, for elements and for structures.

An entry says what it is called, its formula, what has to be measured for it, and of which units it is defined:

    elements     single weights, and blocks of them: one score per unit from its weights and a figure that was measured
                 of each. Scores of blocks are means, so that units of different sizes compare.
    structures   coupled units (channels, heads, ...): from the slices of all weights that a unit touches. `sums_of`
                 makes a criterion of structures from the term of elements: it is added up over each slice.

To add one that is the product of |w| and a figure that is measured already:

    CRITERIA.add(
        Criterion("half-fisher", "|w| E[g^2]: fisher that does not square the weight",
                  "|w| E[g^2], g the gradient of one sample", Elements(PRODUCT, SQUARED))
    )

Commands read their choices and help texts off the registry, so nothing here imports numpy before a score is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prunecli.errors import PruneError
from prunecli.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from prunecli.arrays import Array


@dataclass(frozen=True)
class Evidence:
    """What has to be measured before units can be scored.

    name: as messages call it. source: what is run for it; `flow` and `unit graph` need no
    data. steps: how often it is measured anew,
    at the weights as they are by then, unless something else is asked for.
    Of gradients, the mean over runs of |g|^power, g the gradient of one run of `batch` samples; smoothed: plus the mean
    of that over the tensor's weights that are not gone, which steadies it and keeps small tensors from being emptied.
    anew: of structures, whether further steps measure again.
    """

    name: str
    source: Literal["activations", "gradients", "flow", "Gram matrices", "unit graph"]
    steps: int = 1
    power: Literal[1, 2] = 1
    batch: int = 1
    smoothed: bool = False
    anew: bool = False

    @property
    def differentiates(self) -> bool:
        return self.source in ("gradients", "flow")

    @property
    def on_data(self) -> bool:
        return self.source not in ("flow", "unit graph")


@dataclass(frozen=True)
class Block:
    """Some units of one tensor, a row each.

    weights: (units, width), float64, so that sums hardly depend on their order and equal units tie. evidence: of that
    shape, where the criterion asks for any. rng: seeded by the user's seed and the tensor's name.
    """

    weights: Array
    evidence: Array | None
    rng: np.random.Generator


@dataclass(frozen=True)
class WeightPart:
    """One weight's slices: `read` gives a matrix (units, width), anew each time, since weights may be large. `role`:
    out (rows that compute the unit), in (columns that read it), bias, norm, or other; `scale`: the factors of a
    BatchNormalization. `evidence`: by name, arrays of the matrix's shape, or (units, samples)."""

    weight: str
    role: str
    read: Callable[[], Array]
    scale: bool = False
    evidence: Mapping[str, Array] = field(default_factory=dict)

    @property
    def matrix(self) -> Array:
        return self.read()


@dataclass(frozen=True)
class UnitGroup:
    """What a criterion of structures sees: the parts of one group of like units. `rng` draws for that group alone.
    `damage`: that each unit adds, where it was measured. `importance`: of each unit in the unit graph. `added`: the
    power that each unit adds to what it is summed with, where that was measured as such."""

    name: str
    count: int
    parts: Sequence[WeightPart]
    rng: np.random.Generator
    damage: Array | None = None
    importance: Array | None = None
    added: Array | None = None

    def of(self, *roles: str) -> list[WeightPart]:
        return [part for part in self.parts if part.role in roles]


@dataclass(frozen=True)
class Elements:
    """How single weights and blocks of them are scored.

    score: block -> (units,) floats, finite and not negative. by_magnitude: single weights rank as |w| does, which
    allows selecting on the stored bits.
    """

    score: Callable[[Block], Array]
    evidence: Evidence | None = None
    by_magnitude: bool = False


@dataclass(frozen=True)
class Structures:
    """How coupled units are scored.

    score: group -> one row of units per slice looked at, float64, at least one row; how rows become one score per unit
    is the normaliser's choice. normalize: the normaliser that suits it; `none` where scores mean the same in every
    group.
    """

    score: Callable[[UnitGroup], list[Array]]
    evidence: Evidence | None = None
    normalize: str = "share"


@dataclass(frozen=True)
class Criterion:
    """A named importance. `formula`: with its source. `elements`, `structures`: None where it is not defined."""

    name: str
    help: str
    formula: str
    elements: Elements | None = None
    structures: Structures | None = None


CRITERIA: Registry[Criterion] = Registry("criterion")


def of_elements(name: str) -> Elements:
    """How a criterion scores elements.

    Raises:
        PruneError: there is none of that name for elements.
    """
    found = CRITERIA.only(lambda entry: entry.elements is not None).get(name).elements
    assert found is not None
    return found


def element_names(wanted: Callable[[Evidence | None], bool] = lambda evidence: True) -> list[str]:
    """Criteria of elements whose evidence is as wanted."""
    return [entry.name for entry in CRITERIA if entry.elements is not None and wanted(entry.elements.evidence)]


def of_structures() -> dict[str, Structures]:
    """By name, the criteria that are defined for structures."""
    return {entry.name: entry.structures for entry in CRITERIA if entry.structures is not None}


# -- from terms to scores -----------------------------------------------------------------------------

Term = Callable[[Any, Any], Any]
"""(weights, evidence) -> importance of each element, by arithmetic alone."""


def mean_of(term: Term) -> Callable[[Block], Array]:
    """Of blocks: the mean of the term over each unit."""
    return lambda block: term(block.weights, block.evidence).mean(axis=1)


def sums_of(term: Term, *roles: str, evidence: str = "") -> Callable[[UnitGroup], list[Array]]:
    """Of structures: the sum of the term over each slice of the given roles. Without evidence, where a unit has none of
    them, over everything it has; with evidence, a unit that nothing measured touches stays."""

    def rows(group: UnitGroup) -> list[Array]:
        if not evidence:
            return [term(part.matrix, None).sum(axis=1) for part in group.of(*roles) or group.parts]
        measured = [part for part in group.of(*roles) if evidence in part.evidence]
        return [term(p.matrix, p.evidence[evidence]).sum(axis=1) for p in measured] or _staying(group)

    return rows


def over_samples(term: Callable[[Any], Any]) -> Callable[[UnitGroup], list[Array]]:
    """Of structures: the mean over samples of the term of sum w g. Sums of all readers come first: what one adds
    another may take away. Where nothing measured reads the unit, the weights that compute it; where none does, it
    stays."""

    def rows(group: UnitGroup) -> list[Array]:
        import numpy as np

        reading = [part for part in group.of("in") if "gates" in part.evidence]
        found = reading or [part for part in group.of("out", "bias") if "gates" in part.evidence]
        if not found:
            return _staying(group)
        return [term(np.sum([part.evidence["gates"] for part in found], axis=0)).mean(axis=1)]

    return rows


def _activation(group: UnitGroup) -> list[Array]:
    readers = sums_of(lambda w, moments: moments * (w * w), "in", evidence="moments")
    return readers(group) if group.added is None else [group.added]


def _staying(group: UnitGroup) -> list[Array]:
    import numpy as np

    return [np.full(group.count, np.inf)]


def _magnitude(w: Any, evidence: Any) -> Any:
    return abs(w)


def _square(w: Any, evidence: Any) -> Any:
    return w * w


def _lamp(group: UnitGroup) -> list[Array]:
    import numpy as np

    def row(square: Array) -> Array:
        order = np.argsort(square, kind="stable")
        rest = np.cumsum(square[order][::-1])[::-1]
        out = np.empty_like(square)
        out[order] = square[order] / np.maximum(rest, np.finfo(float).tiny)
        return out

    return [row(square) for square in sums_of(_square, "out", "in")(group)]


def _fpgm(group: UnitGroup) -> list[Array]:
    import numpy as np

    rows = np.concatenate([part.matrix for part in group.of("out") or group.parts], axis=1)
    square = np.square(rows).sum(axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distance, 0)
    return [np.asarray(distance.sum(axis=1))]


def _bn_scale(group: UnitGroup) -> list[Array]:
    scales = [part for part in group.parts if part.scale]
    if not scales:
        raise PruneError(
            f"--criterion bn-scale: the units of {group.name} have no BatchNormalization",
            "choose another criterion, or --exclude what has none; exporters often fold it into the convolution",
        )
    return [abs(part.matrix).sum(axis=1) for part in scales]


# -- the registry -------------------------------------------------------------------------------------

PRODUCT = mean_of(lambda w, figure: abs(w) * figure)
INPUT_NORM = Evidence("input norm", "activations")
REMOVAL_LOSS = Evidence("removal loss", "Gram matrices")
ABSOLUTE = Evidence("absolute gradient", "gradients", steps=6)
SMOOTHED = Evidence("smoothed absolute gradient", "gradients", steps=6, smoothed=True)
SQUARED = Evidence("squared gradient", "gradients", steps=6, power=2)
OF_BATCHES = Evidence("absolute batch gradient", "gradients", steps=6, batch=8)
FLOW = Evidence("flow", "flow", steps=30)
MOMENTS = Evidence("moments", "activations")
GATES = Evidence("gates", "gradients", anew=True)
DAMAGE = Evidence("damage", "Gram matrices")
IMPORTANCE = Evidence("importance", "unit graph")

for _entry in (
    Criterion(
        "l1", "mean |w| of the unit",
        "|w|; structures: sum |x| per slice of matrices and kernels (Li et al. 2017)",
        elements=Elements(mean_of(_magnitude), by_magnitude=True),
        structures=Structures(sums_of(_magnitude, "out", "in")),
    ),
    Criterion(
        "l2", "root mean square of the unit",
        "sqrt(mean(w^2)); structures: sum x^2 per slice, whose sum over slices is the unit's energy",
        elements=Elements(lambda block: (block.weights * block.weights).mean(axis=1) ** 0.5, by_magnitude=True),
        structures=Structures(sums_of(_square, "out", "in")),
    ),
    Criterion(
        "l2-in", "squared norm of what reads the unit",
        "sum x^2 per slice that reads the unit: how much its readers would miss it, if all units were equally active",
        structures=Structures(sums_of(_square, "in")),
    ),
    Criterion(
        "lamp", "l2 over that of the units not below it",
        "s_u / sum of s_v over the units v with s_v >= s_u, s = sum x^2 per slice (Lee et al. 2021)",
        structures=Structures(_lamp),
    ),
    Criterion(
        "fpgm", "distance from the other units of the group",
        "sum over the other units of |x_u - x_v|_2, x the rows that compute them: what is far from the geometric median"
        " is hard to replace (He et al. 2019)",
        structures=Structures(_fpgm),
    ),
    Criterion(
        "bn-scale", "factors of BatchNormalization",
        "|gamma| per BatchNormalization of the unit (network slimming, Liu et al. 2017)",
        structures=Structures(_bn_scale),
    ),
    Criterion(
        "pagerank", "importance propagated from the outputs through the unit graph; --damping 1: NISP",
        "r = g (A r + o) + (1 - g) s on the reversed unit graph, A the share of a unit in what its reader reads (Yu et"
        " al. 2018; Page et al. 1999; `dependency/unit_graph.py`)",
        structures=Structures(
            lambda group: _staying(group) if group.importance is None else [group.importance], IMPORTANCE, "none"
        ),
    ),
    Criterion(
        "random", "seeded random scores, the baseline that others must beat",
        "uniform in [0, 1); the same for the same seed and tensor or group",
        elements=Elements(lambda block: block.rng.random(len(block.weights))),
        structures=Structures(lambda group: [group.rng.random(group.count)]),
    ),
    Criterion(
        "activation", "energy that the unit adds to what its readers compute",
        "E[x^2] |W|^2 per slice W that reads the unit x (the structural form of wanda, Sun et al. 2024); of an expert"
        " E[(g |y|)^2], y what it makes of a token and g the weight that the router gives it there",
        structures=Structures(_activation, MOMENTS),
    ),
    Criterion(
        "gradient", "E|g|: the size of the gradient alone",
        "E|g|, g the gradient of one sample; 0 of weights that are zero already",
        elements=Elements(mean_of(lambda w, gradient: (w != 0) * gradient), ABSOLUTE),
    ),
    Criterion(
        "smoothed", "|w| (E|g| + its mean over the tensor): taylor, steadied",
        "|w| (E|g| + m), m the mean of E|g| over the tensor's weights that are not gone",
        elements=Elements(PRODUCT, SMOOTHED),
    ),
    Criterion(
        "taylor", "|w| E|g|: what the outputs lose without w, to first order",
        "|w| E|g|, g the gradient of one sample (Molchanov et al. 2017); structures: E|sum w g| over the weights that"
        " read the unit (Molchanov et al. 2019)",
        elements=Elements(PRODUCT, ABSOLUTE), structures=Structures(over_samples(abs), GATES, "none"),
    ),
    Criterion(
        "fisher", "w^2 E[g^2]: what the outputs lose without w, to second order",
        "w^2 E[g^2], g the gradient of one sample (LeCun et al. 1990; Theis et al. 2018); structures: E[(sum w g)^2]",
        elements=Elements(mean_of(lambda w, square: w * w * square), SQUARED),
        structures=Structures(over_samples(lambda gates: gates * gates), GATES, "none"),
    ),
    Criterion(
        "snip", "|w| E|g|, g of a batch: connection sensitivity",
        "|w| E|g|, g the gradient of a batch (Lee et al. 2019)", elements=Elements(PRODUCT, OF_BATCHES),
    ),
    Criterion(
        "synflow", "|w dR/dw|, R what passes through all |w| from inputs of one; no data",
        "|w| |dR / d|w|| (Tanaka et al. 2020)", elements=Elements(PRODUCT, FLOW),
    ),
    Criterion(
        "wanda", "|w| times the norm of its input: what it adds to the output",
        "|w| sqrt(E[x^2]), x the input that w multiplies (Sun et al. 2024)", elements=Elements(PRODUCT, INPUT_NORM),
    ),
    Criterion(
        "obs", "what the layer's output loses when w goes and the rest makes up for it",
        "the loss at which exact Optimal Brain Surgeon removes w (Frantar and Alistarh 2022); structures: the damage to"
        " the outputs that the unit adds in its turn, its readers refitted each time (`structures/damage.py`)",
        elements=Elements(mean_of(lambda w, loss: loss), REMOVAL_LOSS),
        structures=Structures(
            lambda group: _staying(group) if group.damage is None else [group.damage], DAMAGE, "none"
        ),
    ),
):  # fmt: skip
    CRITERIA.add(_entry)
