"""Count what `prune structured` could cut from a model, and say why it leaves the rest alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunecli.dependency.analysis import analyse, analysed_shapes, kept_together
from prunecli.dependency.catalogue import Catalogue, catalogue
from prunecli.dependency.costs import costs
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError
from prunecli.model import Dims, Model, concrete_shapes
from prunecli.model.floating import floating
from prunecli.model.shapes import require_ranks


@dataclass(frozen=True)
class CuttableUnits:
    """What can be cut.

    units: the number of units by kind (channel, head). groups: the number of groups. params, macs: the fraction that is
    saved if one unit of each group stays; None if the model has none. frozen: each reason for which axes of weights
    stay, with their number, the most frequent first. problem: why the model could not be analysed, else empty.
    """

    units: Mapping[str, int] = field(default_factory=dict)
    groups: int = 0
    params: float | None = None
    macs: float | None = None
    frozen: Sequence[tuple[str, int]] = ()
    problem: str = ""


def cuttable_units(file: Model, dims: Dims) -> CuttableUnits:
    """Analyse a model as `prune structured` does."""
    try:
        require_ranks(file, dims)
        form = floating(prepare(file.ir))
        work, (whole, blocks) = replace(file, ir=form.model), kept_together(form)
        shapes = analysed_shapes(work, dims, concrete_shapes(work, dims))
        found = catalogue(analyse(work.ir, shapes, whole=whole, blocks=blocks))
    except PruneError as error:
        return CuttableUnits(problem=error.message)
    units = Counter[str]()
    for group in found.groups:
        units[group.kind] += group.count
    shares = _shares(found)
    reasons = Counter(axis.reason for axis in found.frozen).most_common()
    return CuttableUnits(units, len(found.groups), shares["params"], macs=shares["macs"], frozen=reasons)


def _shares(found: Catalogue) -> dict[str, float | None]:
    """Return the fractions of the parameters and of the work that are saved if only the first unit of each group
    stays."""
    gone = np.ones(found.count, bool)
    gone[[group.first for group in found.groups]] = False
    priced = costs(found)
    whole, left = priced.of(found.sizes), priced.of(found.kept(gone))
    return {name: 1 - left[name] / whole[name] if whole[name] else None for name in whole}
