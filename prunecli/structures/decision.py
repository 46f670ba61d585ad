"""A decided cut as rows of a report and as a plan file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from prunecli.arrays import Array
from prunecli.dependency.catalogue import Group, Orders
from prunecli.dependency.cut import Removed
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec
from prunecli.model import Model, find_weights
from prunecli.model.floating import floats_of
from prunecli.model.plan_file import identity
from prunecli.model.shape_inference import Shape
from prunecli.model.sizes import row_of
from prunecli.structures.cut_plan import ANEW, positions_json
from prunecli.structures.cut_reference import Forced
from prunecli.structures.prunable import AnalysedAs, Cuttable, LeftOut
from prunecli.types import Json, LayerRow

MAX_ELEMENTS = 1 << 28
"""Most elements of one input, as for random inputs."""


@dataclass(frozen=True)
class Decided:
    """A decision: a mask over units, their scores, and the recipe that is recorded. `left`: groups that may not be cut,
    and why. `latency`: measurements, if that was the budget."""

    removed: Array
    scores: Array
    recipe: Json
    left: Mapping[str, LeftOut]
    notes: Sequence[str] = ()
    latency: Json | None = None


@dataclass(frozen=True)
class GroupRow:
    """One group of units. `params` and `macs`: what removing a single unit saves, at the analysed dimensions.
    Scores are None where there are none. `touches`: the weights' slices, as NAME[axis]. `kept`, `removed`: the scores
    of the units that stayed and went."""

    name: str
    kind: str
    before: int
    after: int
    params: int
    macs: int
    lowest: float | None
    highest: float | None
    touches: tuple[str, ...]
    note: str = ""
    kept: Sequence[float] = ()
    removed: Sequence[float] = ()


def group_rows(cuttable: Cuttable, decided: Decided) -> list[GroupRow]:
    """Every group, in the order of the catalogue."""
    rows = []
    for group, (params, macs) in zip(cuttable.units.groups, cuttable.prices, strict=True):
        mine = decided.scores[group.units]
        finite, gone = mine[np.isfinite(mine)], decided.removed[group.units]
        rows.append(
            GroupRow(
                name=group.name,
                kind=group.kind,
                before=group.count,
                after=group.count - int(gone.sum()),
                params=params,
                macs=macs,
                lowest=float(finite.min()) if finite.size else None,
                highest=float(finite.max()) if finite.size else None,
                touches=tuple(f"{name}[{axis}]" for name, axis in group.weights),
                note=decided.left[group.name].reason if group.name in decided.left else group.approximation,
                kept=mine[np.isfinite(mine) & ~gone].tolist(),
                removed=mine[np.isfinite(mine) & gone].tolist(),
            )
        )
    return rows


# -- the plan file ----------------------------------------------------------------------------------


def plan_json(cuttable: Cuttable, decided: Decided, removed: Removed) -> Json:
    """The whole plan, without its schema."""
    forced, listed = cuttable.forced(removed, decided.removed), cuttable.listed(removed)
    return {
        "model": identity(cuttable.file),
        "recipe": decided.recipe,
        "weights": positions_json({name: axes for name, axes in listed.items() if cuttable.is_stored(name)}),
        "tensors": positions_json({name: axes for name, axes in listed.items() if not cuttable.is_stored(name)}),
        "units": list(_units(cuttable, decided)),
        "frozen": [asdict(axis) for axis in cuttable.units.frozen],
        "averaged": sorted(
            [n, a] for n, a in forced.averaged for own in (forced.positions, forced.merged) if a in own.get(n, ())
        ),
        **({"merged": _merged_json(forced)} if forced.merged else {}),
        **({"neutral": _neutral_json(forced, listed)} if listed.keys() & forced.neutral.keys() else {}),
    }


def _neutral_json(forced: Forced, listed: Removed) -> Json:
    return {
        name: {str(axis): neutral for axis, neutral in axes.items() if axis in listed[name]}
        for name, axes in forced.neutral.items()
        if name in listed
    }


def _merged_json(forced: Forced) -> Json:
    return {
        name: {
            str(axis): {"split": list(one.split), "positions": {str(k): gone.tolist() for k, gone in one.gone.items()}}
            for axis, one in axes.items()
        }
        for name, axes in forced.merged.items()
    }


def _units(cuttable: Cuttable, decided: Decided) -> Iterator[Json]:
    everything = np.ones(cuttable.units.count, bool)
    full = cuttable.listed(cuttable.units.removed(everything))
    for group, (params, macs) in zip(cuttable.units.groups, cuttable.prices, strict=True):
        slices = list(_slices(cuttable, group, full))
        for place in range(group.count):
            number = group.first + place
            score = float(decided.scores[number])
            weights: dict[str, dict[str, list[int]]] = {}
            for name, axis, index in slices:
                weights.setdefault(name, {})[str(axis)] = index[place]
            yield {
                "id": number,
                "group": group.name,
                "kind": group.kind,
                "score": score if np.isfinite(score) else None,
                "removed": bool(decided.removed[number]),
                "params": params,
                "macs": macs,
                "weights": weights,
            }


def _slices(cuttable: Cuttable, group: Group, full: Removed) -> Iterator[tuple[str, int, list[list[int]]]]:
    """(weight, axis, positions of every unit) for the weights of a group that a plan can name."""
    units, solved = cuttable.units, cuttable.units.analysis.components
    atoms, _ = units.rows(group)
    where = units.axis_of_atom[atoms]
    for name, axis in group.weights:
        if group.kind != "block" and axis in full.get(name, {}):
            value = cuttable.work.graph.initializers[name]
            root = solved.table.find(solved.table.axis(value, axis, 0))
            mine = atoms[where == root].reshape(group.count, -1) - solved.offset[root]
            yield name, axis, np.sort(mine, axis=1).tolist()


def read_analysed_as(path: Path, recipe: Json, specs: Sequence[InputSpec]) -> AnalysedAs:
    """How the model of a plan was analysed (`AnalysedAs.to_json`), for a model with these inputs.

    Raises:
        PruneError: a part of it is missing or malformed, or the model has other inputs.
    """
    granularity = recipe.get("granularity")
    if not isinstance(granularity, str):
        raise PruneError(f"{path}: the recipe has no granularity", ANEW)
    shapes, whole = _shapes(recipe, specs), _whole(recipe)
    return AnalysedAs(
        granularity, shapes, whole, include=_names(recipe, "include"), convolved=_names(recipe, "convolved"),
        orders=_orders(recipe),
    )  # fmt: skip


def _names(recipe: Json, key: str) -> tuple[str, ...]:
    """A list of names in a plan's recipe; empty where there is none."""
    given = recipe.get(key)
    return tuple(name for name in given if isinstance(name, str)) if isinstance(given, list) else ()


def _shapes(recipe: Json, specs: Sequence[InputSpec]) -> dict[str, Shape]:
    """The input shapes a plan was made at, for a model with these inputs.

    Raises:
        PruneError: they are malformed, are not those of the model's inputs, or are absurdly large.
    """
    shapes = recipe.get("inputs")
    good = isinstance(shapes, dict) and all(
        isinstance(shape, list) and all(type(d) is int and 0 < d < MAX_ELEMENTS for d in shape)
        for shape in shapes.values()
    )
    if not isinstance(shapes, dict) or not good:
        raise PruneError("the plan's recipe does not say at which input shapes it was made", ANEW)
    for spec in specs:
        shape = shapes.get(spec.name, [])
        fits = len(shape) == len(spec.shape) and math.prod(shape) < MAX_ELEMENTS
        fixed = zip(shape, spec.shape, strict=False)
        if len(shapes) != len(specs) or not fits or any(isinstance(d, int) and d != n for n, d in fixed):
            raise PruneError(f"the plan's input shapes do not fit the input {spec.describe()}", ANEW)
    return {name: tuple(shape) for name, shape in shapes.items()}


def _whole(recipe: Json) -> dict[tuple[str, int], str]:
    """The axes that stayed whole because they could not follow a cut, and why.

    Raises:
        PruneError: they are malformed.
    """
    rows = recipe.get("whole", [])
    if not isinstance(rows, list) or not all(
        isinstance(r, list) and list(map(type, r)) == [str, int, str] for r in rows
    ):
        raise PruneError("the plan's recipe does not say which axes stay whole", ANEW)
    return {(name, axis): why for name, axis, why in rows}


def _orders(recipe: Json) -> Orders:
    """How the parts of units are combined.

    Raises:
        PruneError: an order is no permutation.
    """
    found = recipe.get("orders", {})
    listed = isinstance(found, dict) and all(isinstance(own, list) for own in found.values())
    rows = [row for own in found.values() for row in own] if listed else [None]
    if not all(isinstance(r, list) and {*map(type, r)} <= {int} and sorted(r) == [*range(len(r))] for r in rows):
        raise PruneError("the plan's recipe does not say how heads of a group are combined", ANEW)
    return dict(found)


# -- layers -----------------------------------------------------------------------------------------


def layer_rows(cuttable: Cuttable, removed: Collection[str], saved: Model) -> list[LayerRow]:
    """Every weight that is prunable or was cut (named in `removed`), before and after."""
    after = {weight.name: weight for weight in find_weights(floats_of(saved)).all()}
    found = find_weights(floats_of(cuttable.file))
    prunable = {weight.name for weight in found.prunable}
    shown = [w for w in found.all() if w.name in after and (w.name in prunable or w.name in removed)]
    return [row_of(weight, after[weight.name]) for weight in shown]
