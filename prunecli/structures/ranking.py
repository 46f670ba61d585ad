"""Units whose parts may be exchanged: query heads of which each key head keeps as many, but not the same ones.

Position s of one key head has nothing to do with position s of another. So the parts of each kind are ranked by their
scores, and unit j gets the part of rank j of every kind: the weakest query head of every key head, then the next.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunecli.masks.criteria import MOMENTS, of_structures
from prunecli.structures.calibrate import measure
from prunecli.structures.choose import UnitRecipe, decide_units, resolve_criterion
from prunecli.structures.options import CutOptions
from prunecli.structures.prunable import Cuttable
from prunecli.structures.target import Budget
from prunecli.structures.widths import Alignment
from prunecli.types import Progress


def ranked(cuttable: Cuttable, options: CutOptions, progress: Progress) -> Cuttable:
    """Return the model with units made of parts of one rank.

    Parts are scored by the criterion, or where that measures whole units, by `activation` on data and by `l2-in`
    without.

    Raises:
        PruneError: the data do not fit the model, or the criterion does not fit the units.
    """
    units = cuttable.units.apart()
    if not units.groups:
        return cuttable
    single = replace(cuttable, units=units)
    asked = options.part(CutOptions, criterion=_criterion(options), normalize="auto", max_ratio=None)
    recipe = UnitRecipe(Budget("ratio", 0.5), asked, widths=Alignment())
    found = decide_units(units, recipe, evidence=measure(single, asked, progress), progress=progress)
    cuttable.made, cuttable.sample_notes = single.made, single.sample_notes
    parts = {group.name: group.parts for group in cuttable.units.groups}
    scores = {group.name: found.scores[group.units].reshape(parts[group.name], -1) for group in units.groups}
    return cuttable.regrouped({n: np.argsort(own, axis=1, kind="stable").tolist() for n, own in scores.items()})


def _criterion(options: CutOptions) -> str:
    name = resolve_criterion(options.criterion, options.source is not None)
    entry = of_structures().get(name)
    if entry is not None and entry.evidence not in (None, MOMENTS):
        return "activation" if options.source is not None else "l2-in"
    return name
