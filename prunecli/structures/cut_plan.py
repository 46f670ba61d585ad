"""Plan files of structural pruning: which positions of which values go, and which units that makes.

    {"schema": "prunecli-plan/1", "model": {"sha256": "..."}, "recipe": {...},
     "weights": {"INITIALIZER": {"AXIS": [positions]}}, "tensors": {"VALUE": {"AXIS": [positions]}},
     "units": [{"id": 0, "group": "...", "kind": "channel", "score": 0.1, "removed": true, "params": n,
                "macs": n, "weights": {"INITIALIZER": {"AXIS": [positions]}}}],
     "frozen": [{"tensor", "axis", "reason", "positions", "size"}], "averaged": [["VALUE", AXIS]],
     "merged": {"VALUE": {"AXIS": {"split": [lengths], "positions": {"PLACE IN SPLIT": [positions]}}}},
     "neutral": {"VALUE": {"AXIS": "lowest"}}}

`weights` and `tensors` list floating-point values only, in the names of the user's file: forcing them to zero
in the original gives what the cut model computes. `averaged` are the axes where that is not so, because a
normalisation averages over them (width): it has to see the kept positions only. `merged` are those of
them whose length varies (channels x height x width): the axis, taken apart row-major into the lengths of `split`
(-1 is the one that varies), loses the positions of some of these. `neutral` names the axes on which an absent position
is not zero but the lowest finite number of the type: the logits by which tokens choose experts. A replay takes the
units with `removed` and requires that exactly the listed positions follow from them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.edit import Removed
from prunecli.dependency.neutral import MASKED_BEFORE, passes
from prunecli.errors import PruneError
from prunecli.files import written
from prunecli.model import Model
from prunecli.model.plan_file import SCHEMA, read_plan
from prunecli.types import Json

Positions = Mapping[str, Mapping[int, Array]]
MAX_BYTES = 1 << 30
ANEW = "make the plan anew with --save-plan"


def positions_json(positions: Positions) -> Json:
    return {name: {str(a): np.asarray(gone).tolist() for a, gone in axes.items()} for name, axes in positions.items()}


def save_cut_plan(path: Path, plan: Json, force: bool = False) -> None:
    """Write a plan; the file appears complete or not at all.

    Raises:
        PruneError: it cannot be written.
    """
    with written(path, "plan", force) as file:
        file.write(json.dumps({"schema": SCHEMA, **plan}, allow_nan=False) + "\n")


def load_cut_plan(path: Path, model: Model) -> Json:
    """Read a plan for this very model. What it lists is checked by `chosen_units` and `check_positions`.

    Raises:
        PruneError: not a structural plan, or one for another model.
    """
    plan = read_plan(path, model, MAX_BYTES)
    if plan.get("masks"):
        raise PruneError(f"{path} zeroes weights, it does not cut channels", "replay it with `prune magnitude`")
    for key in ("recipe", "weights", "tensors"):
        if not isinstance(plan.get(key), dict):
            raise PruneError(f"{path}: {key!r} is missing or not an object", ANEW)
    if not isinstance(plan.get("units"), list) or not plan["units"]:
        raise PruneError(f"{path} holds no units", ANEW)
    return plan


def chosen_units(path: Path, plan: Json, groups: list[str]) -> tuple[Array, Array]:
    """(mask of removed units, their scores): one entry per unit, in the order of the model's units.

    Args:
        groups: the group's name of every unit of the model.
    Raises:
        PruneError: an entry is malformed, or the units are not those of the model.
    """
    removed, scores = np.zeros(len(groups), bool), np.zeros(len(groups))
    if len(plan["units"]) != len(groups):
        raise PruneError(f"{path} has {len(plan['units'])} units, the model has {len(groups)}", ANEW)
    for number, entry in enumerate(plan["units"]):
        if not isinstance(entry, dict) or not _is_int(entry.get("id")) or not isinstance(entry.get("removed"), bool):
            raise PruneError(f"{path}: unit {number} is malformed", ANEW)
        if entry["id"] != number or entry.get("group") != groups[number]:
            raise PruneError(f"{path}: unit {number} is not one of the model's", ANEW)
        score = entry.get("score")
        removed[number] = entry["removed"]
        scores[number] = score if isinstance(score, int | float) and not isinstance(score, bool) else np.nan
    if not removed.any():
        raise PruneError(f"{path} removes nothing", ANEW)
    return removed, scores


def read_positions(path: Path, plan: Json, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[int, Array]]:
    """`weights` and `tensors` of a plan.

    Args:
        shapes: of every value of the model, in the names of the user's file.
    Raises:
        PruneError: an unknown value, an axis it does not have, or positions that are no ascending integers in range.
    """
    out: dict[str, dict[int, Array]] = {}
    for key in ("weights", "tensors"):
        for name, axes in plan[key].items():
            if name not in shapes or not isinstance(axes, dict):
                raise PruneError(f"{path}: {key} lists {name!r}, which the model does not have", ANEW)
            for axis, listed in axes.items():
                size = _axis_size(path, name, axis, shape=shapes[name])
                out.setdefault(name, {})[int(axis)] = _positions(path, name, axis, listed=listed, size=size)
    return out


def _axis_size(path: Path, name: str, axis: str, shape: tuple[int, ...]) -> int:
    if not (axis.isascii() and axis.isdigit() and len(axis) < 4 and int(axis) < len(shape)):
        raise PruneError(f"{path}: {name!r} of shape {shape} has no axis {axis[:20]!r}", ANEW)
    return shape[int(axis)]


def _positions(path: Path, name: str, axis: str, listed: object, size: int) -> Array:
    if not isinstance(listed, list) or not listed or not all(map(_is_int, listed)):
        raise PruneError(f"{path}: the positions of {name!r} axis {axis} are not a list of integers", ANEW)
    if min(listed) < 0 or max(listed) >= size:
        raise PruneError(f"{path}: {name!r} axis {axis} has positions 0 to {size - 1}, the plan lists others", ANEW)
    found = np.array(listed, np.int64)
    if (np.diff(found) <= 0).any():
        raise PruneError(f"{path}: the positions of {name!r} axis {axis} are not ascending", ANEW)
    return found


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_positions(path: Path, listed: Positions, follows: Positions) -> None:
    """Refuse a plan whose positions are not exactly those that its units have.

    Raises:
        PruneError: naming the first tensor where they differ: the cut would not be closed under coupling.
    """
    for name in [*follows, *(n for n in listed if n not in follows)]:
        have, want = listed.get(name, {}), follows.get(name, {})
        for axis in sorted({*have, *want}):
            a, b = (set(np.asarray(side.get(axis, ())).tolist()) for side in (have, want))
            if a != b:
                what = f"lacks {min(b - a)}" if b - a else f"also lists {min(a - b)}"
                raise PruneError(
                    f"{path}: the positions of {name!r} axis {axis} do not follow from the removed units: it {what}",
                    "coupled positions can only be removed together; " + ANEW,
                )


def needed(graph: ir.Graph, listed: Removed, kept: Collection[str] = ()) -> Removed:
    """Leave out computed values that are only read by passing operators whose results are listed, and what Flatten
    makes of listed ones.

    Args:
        graph: of the user's file.
        listed: everything that loses positions, by the names of that file.
        kept: values that stay listed in any case, since zeros before them are no zeros at them.
    """
    inner = _captured(graph)
    passing = {
        value.name
        for node in graph
        for value in node.outputs
        if node.op_type != "Constant" and value not in inner and _is_passed_on(value, listed)
    }
    # onnxruntime's own inference of flattened lengths is wrong for pools with ceil_mode: a mask there cannot be opened
    moved = {
        n.outputs[0].name for n in graph if n.op_type in MASKED_BEFORE and _name(n.inputs[0]) in listed.keys() - passing
    }
    return {name: axes for name, axes in listed.items() if name in kept or name not in passing | moved}


def _name(value: ir.Value | None) -> str | None:
    return None if value is None else value.name


def _is_passed_on(value: ir.Value, listed: Collection[str]) -> bool:
    uses = list(value.uses())
    return bool(uses) and not value.is_graph_output() and all(_passes(use.node, listed) for use in uses)


def _passes(node: ir.Node, listed: Collection[str]) -> bool:
    return passes(node) and all(o.name in listed for o in node.outputs if o.name)


def _captured(graph: ir.Graph) -> set[ir.Value]:
    """Values that the bodies of nodes use."""
    inner = (node for node in graph.all_nodes() if node.graph is not graph)
    return {value for node in inner for value in node.inputs if value is not None and value.graph is graph}
