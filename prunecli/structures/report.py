"""The contract's JSON of a structural cut, and its tables and charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from prunecli.errors import some
from prunecli.evaluation.report import speed_delta, speed_ms, speed_rows, speed_sections
from prunecli.packing.report import packed_json, packed_sections
from prunecli.quantization.report import quantised_json, quantised_sections
from prunecli.report.contract import grown, report_json
from prunecli.report.document import (
    Bars,
    Cell,
    Chart,
    ChartAxis,
    Column,
    Document,
    Mark,
    Panel,
    Section,
    Series,
    Table,
    Text,
)
from prunecli.report.render_cells import how_many
from prunecli.report.sections import (
    KEPT,
    MOST,
    REMOVED,
    headline,
    layer_bars,
    proof_text,
    removed_of,
    shape_text,
    share,
    size_bars,
    size_table,
    warnings,
    written,
)
from prunecli.structures.recovery import recovery_json, recovery_sections
from prunecli.training.report import training_json, training_sections
from prunecli.types import Json, Skipped, Verification

if TYPE_CHECKING:
    from prunecli.structures.carry_out import StructuredResult
    from prunecli.structures.decision import GroupRow

TOP = 24


def to_json(found: StructuredResult) -> Json:
    """The contract's keys, with `groups`, `frozen`, `recipe` and the fractions that remain."""
    extra: Json = {
        "dry_run": found.dry_run,
        "recipe": found.recipe,
        "remains": {
            name: share(getattr(found.after, name), getattr(found.before, name)) for name in ("params", "macs")
        },
        "groups": [_group_json(group) for group in found.groups],
        "frozen": [asdict(axis) for axis in found.frozen],
        "plan": found.plan,
        **({"latency": found.latency} if found.latency else {}),
        **recovery_json(found.recovery),
        **training_json(found.training),
        **quantised_json(found.quantised),
        **packed_json(found.packed),
        **speed_delta(found.speed),
    }
    return report_json(
        found, "structured", found.layers, skipped=skipped(found), sparsity=found.after.sparsity, extra=extra,
        latency_ms=speed_ms(found.speed),
    )  # fmt: skip


def _group_json(group: GroupRow) -> Json:
    return {
        "name": group.name,
        "kind": group.kind,
        "units_before": group.before,
        "units_after": group.after,
        "params_per_unit": group.params,
        "macs_per_unit": group.macs,
        "score": None if group.lowest is None else {"lowest": group.lowest, "highest": group.highest},
        "touches": list(group.touches),
        "note": group.note,
    }


def skipped(found: StructuredResult) -> list[Skipped]:
    """Axes of weights that stay as they are, then groups that the user left out."""
    frozen = [
        Skipped(axis.tensor, f"axis {axis.axis}, {axis.positions} of {axis.size} positions: {axis.reason}")
        for axis in found.frozen
    ]
    return [*frozen, *found.left]


def to_document(found: StructuredResult) -> Document:
    """What people read: a summary, the proof, the groups, the layers, and what stays and why."""
    title = f"{found.model.path}: structured{', what would be cut' if found.dry_run else ''}"
    recovered = recovery_sections(found.recovery)
    sections: list[Section] = [_headline(found)]
    sections += [size_table(found.before, found.after, speed_rows(found.speed)), *speed_sections(found.speed)]
    sections += [_proof(found.verification), *(recovered[:1] or _without_data(found))]
    sections += warnings([*grown(found.before, found.after), *found.notes])
    sections += training_sections(found.training)
    sections += quantised_sections(found.quantised)
    sections += packed_sections(found.packed)
    sections += [_groups(found), _layers(found), *recovered[1:], *_charts(found), *_frozen(found)]
    sections += written(found)
    return Document(title, sections)


def _headline(found: StructuredResult) -> Text:
    verb = "would be removed" if found.dry_run else "removed"
    return headline(f"{removed_of(found.before, found.after)} {verb}", "good")


def _without_data(found: StructuredResult) -> list[Section]:
    """Say what data would add, where there are none and nothing was trained."""
    if "data" in found.recipe or found.training is not None:
        return []
    fitted = "" if found.recovery is not None else ", and nothing was fitted"
    more = ""
    if found.recovery is None and found.plan is not None:
        more = "; a plan is of the cut alone, which zeros in the original check (--recover fold makes up for a part)"
    data = "a few hundred unlabelled samples (--data) keep the outputs much closer"
    return [Text(f"chosen without data{fitted}: {data}{more}")]


def _charts(found: StructuredResult) -> list[Section]:
    rows = [(row.weight, row.params_before, row.params_after) for row in found.layers if len(row.shape_before) > 1]
    return [
        size_bars(found.before, found.after),
        *layer_bars(rows, REMOVED),
        *group_bars(found.groups),
        *score_charts(found.groups),
    ]


def _proof(proof: Verification) -> Text:
    if proof.kind == "none":
        return proof_text(proof)
    error, relative = f"largest difference {proof.max_abs_error:.2g}", proof.max_rel_error
    if relative and math.isfinite(relative):  # else the original gives zeros alone on one of the inputs
        error += f", {relative:.2g} of the largest element"
    return proof_text(proof, f"{error}, {how_many(proof.samples, 'run')}")


def _groups(found: StructuredResult) -> Table:
    rows = [
        (
            group.name, group.kind, group.before, group.after, share(group.after, group.before),
            group.params, group.macs, group.lowest, group.highest, some(group.touches, 4), group.note,
        )
        for group in found.groups
    ]  # fmt: skip
    columns = (
        Column("group", "name"), Column("kind", drop=2), Column("units", "count"), Column("kept", "count"),
        Column("remains", "percent"), Column("params each", "count", drop=3), Column("MACs each", "count", drop=4),
        Column("lowest score", "number", drop=5), Column("highest score", "number", drop=5),
        Column("touches", drop=7), Column("note", drop=6),
    )  # fmt: skip
    spread = f" Spread by --allocate {found.recipe['allocate']}." if "allocate" in found.recipe else ""
    note = f"Positions that must go together are one unit; a unit's cost is what its removal alone saves.{spread}"
    return Table("Units", columns, rows, note=note, top=TOP)


def _layers(found: StructuredResult) -> Table:
    rows = [
        (
            row.weight,
            row.op,
            shape_text(row.shape_before),
            shape_text(row.shape_after),
            share(row.params_after, row.params_before),
        )
        for row in found.layers
        if len(row.shape_before) > 1
    ]
    columns = (
        Column("weight", "name"),
        Column("operator", drop=2),
        Column("before"),
        Column("after"),
        Column("remains", "percent"),
    )
    return Table("Layers", columns, rows, top=TOP)


def _frozen(found: StructuredResult) -> list[Section]:
    """The reasons why axes of weights cannot be cut, the most frequent first, and the axes of each."""
    if not found.frozen:
        return []
    axes: dict[str, list[tuple[Cell, ...]]] = {}
    for axis in found.frozen:
        axes.setdefault(axis.reason, []).append((axis.tensor, axis.axis, axis.positions, axis.size))
    ordered = sorted(axes.items(), key=lambda item: -len(item[1]))
    why = Table("What stays", (Column("why"), Column("axes", "count")), [(name, len(rows)) for name, rows in ordered])
    columns = (
        Column("weight", "name"),
        Column("axis", "count"),
        Column("positions", "count", drop=1),
        Column("of", "count", drop=1),
    )
    return [why, *(Table(f"Axes that stay: {name}", columns, rows, top=TOP) for name, rows in ordered)]


BINS = 24


def score_charts(groups: Sequence[GroupRow]) -> Iterator[Section]:
    """Scores of the units that stayed and went, group by group."""
    scored = [group for group in groups if group.before > 1 and len(group.kept) + len(group.removed) > 0]
    largest = sorted(scored, key=lambda group: -group.before * max(group.params, 1))[:MOST]
    panels = [_score_panel(group) for group in scored if group in largest]
    if panels:
        more = "" if len(panels) == len(scored) else f" The {len(panels)} largest of {len(scored)} groups."
        note = f"A unit is what must go together; which go is decided by score per cost.{more}"
        x, y = ChartAxis("score"), ChartAxis("units", "count")
        yield Chart("Scores of units, by group", panels, x, y=y, note=note, shared=False)


def _score_panel(group: GroupRow) -> Panel:
    both = np.array([*group.kept, *group.removed])
    log = bool(both.min() > 0 and both.max() > 100 * both.min())
    low, high = (float(np.log(v)) if log else float(v) for v in (both.min(), both.max()))
    edges = np.linspace(low, high if high > low else low + (abs(low) or 1.0) * 1e-3, BINS + 1)
    edges = np.exp(edges) if log else edges
    edges[0], edges[-1] = min(edges[0], both.min()), max(edges[-1], both.max())
    series = [
        Series(name, edges.tolist(), np.histogram(scores, edges)[0].tolist(), draw="histogram")
        for name, scores in ((KEPT, group.kept), (REMOVED, group.removed))
    ]
    last = max(group.removed, default=math.inf)
    clean = last <= min(group.kept, default=math.inf) and math.isfinite(last)
    return Panel(
        series, group.name, [Mark("x", last, f"cut {last:.3g}")] if clean else [], x=ChartAxis("score", log=log)
    )


def group_bars(groups: Sequence[GroupRow]) -> Iterator[Section]:
    """Units kept and removed, by group."""
    if groups:
        names, after = [group.name for group in groups], [group.after for group in groups]
        series = [(KEPT, after), (REMOVED, [group.before - group.after for group in groups])]
        yield Bars("Units by coupled group", names, series, form="count", stacked=True)
