"""JSON and tables of sensitivity: the loss at each fraction, the most sensitive layer first."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prunecli.evaluation.report import number
from prunecli.report.contract import envelope
from prunecli.report.document import (
    Cell,
    Chart,
    ChartAxis,
    Column,
    Document,
    Level,
    Panel,
    Section,
    Series,
    Table,
    Text,
)
from prunecli.report.render_cells import how_many
from prunecli.report.sections import detail_text, headline
from prunecli.search.metric import SURE
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.search.sensitivity import SensitivityResult, SensitivityRow

TOP = 8


def to_json(found: SensitivityResult) -> Json:
    """`layers`: the most sensitive first, each with its `points`."""
    return {
        **envelope("sensitivity", found.seconds),
        "model": asdict(found.model),
        "granularity": found.granularity,
        "criterion": found.criterion,
        "metric": None
        if found.metric is None
        else {
            "name": found.metric,
            "output": found.output,
            "baseline": found.baseline,
            "change": found.change,
        },
        "samples": found.samples,
        "data": found.source,
        "proxy": None
        if found.proxy is None
        else {
            "correlation": None,
            "checked": 0,
            **(asdict(found.ranking) if found.ranking else {}),
            "by": found.proxy,
        },
        "jobs": {"measured": found.measured, "reused": found.reused},
        "layers": [_row(row) for row in found.rows],
        "skipped": [asdict(item) for item in found.skipped],
        "notes": found.notes,
    }


def _row(row: SensitivityRow) -> Json:
    layer = row.layer
    return {
        "name": layer.name, "kind": layer.kind, "count": layer.count, "params": layer.params, "macs": layer.macs,
        "touches": list(layer.touches), "damage": row.mean_damage, "spare": row.spare,
        "points": [asdict(point) for point in row.points],
    }  # fmt: skip


def to_document(found: SensitivityResult) -> Document:
    sections: list[Section] = [*_answer(found), _table(found), Text(_what(found)), sensitivity_chart(found)]
    if found.proxy is not None:
        sections.append(_proxy(found))
    sections += [Text(note, "warning") for note in found.notes]
    if found.reused:
        sections.append(
            detail_text(f"{found.reused} of {found.reused + found.measured} measurements came from the state file")
        )
    return Document(f"{found.model.path}: sensitivity", sections)


def _what(found: SensitivityResult) -> str:
    things = "weight" if found.granularity == "element" else "group of coupled units"
    how = f"by --criterion {found.criterion}"
    if found.source is not None:
        how += f", on {how_many(found.samples, 'sample')} of {found.source}"
    if found.proxy is not None:
        means = "from gradients, in no unit" if found.proxy == "gradients" else "from the file by a neural network"
        return f"Each {things} cut alone, {how}: damage as predicted {means}."
    return (
        f"Each {things} cut alone, {how}: by how much {found.metric} gets worse ({found.change} from"
        f" {number(found.baseline)}). Damage says how far the outputs move, before anything is counted right or wrong."
    )


def _answer(found: SensitivityResult) -> list[Section]:
    """Say how many layers tolerate how much, and which tolerate least."""
    spare = {row.layer.name: row.spare for row in found.rows if row.spare is not None}
    if not spare:
        return [headline(f"The most sensitive: {', '.join(row.layer.name for row in found.rows[:3])}.")]
    levels = sorted({share for share in spare.values() if share}, reverse=True)
    counts = [f"{sum(share >= level for share in spare.values())} stand {100 * level:.3g} %" for level in levels]
    none = sum(not share for share in spare.values())
    said = ", ".join([*counts, *([f"{none} not even the least that was tried"] if none else [])])
    least = ", ".join(row.layer.name for row in found.rows[:3])
    return [headline(f"Cut alone, without a loss beyond {SURE:g} standard errors: of {len(spare)}, {said}."
                     f" The most sensitive: {least}.", "good")]  # fmt: skip


def _table(found: SensitivityResult) -> Table:
    levels = sorted({round(p.fraction, 4) for row in found.rows for p in row.points})
    columns = [
        Column("layer" if found.granularity == "element" else "group", "name"),
        Column("parameters", "count", drop=2),
    ]
    columns += [
        Column(f"{level:.0%}" if level * 100 % 1 == 0 else f"{level:.1%}", "number", drop=int(place % 2 == 0))
        for place, level in enumerate(levels)
    ]
    columns.append(Column("mean damage", "number"))
    rows = [[row.layer.name, row.layer.params, *_cells(row, levels), number(row.mean_damage)] for row in found.rows]
    title = "Predicted damage" if found.proxy else f"{_metric(found)}: {found.change}"
    return Table(f"{title}, by the fraction removed", columns, rows, note=_note(found), top=TOP, level=Level.NORMAL)


def _cells(row: SensitivityRow, levels: list[float]) -> list[Cell]:
    known = {round(p.fraction, 4): p.damage if p.drop is None else p.drop for p in row.points}
    return [number(known[level]) if level in known else None for level in levels]


def _metric(found: SensitivityResult) -> str:
    return (found.metric or "").replace("_", " ")


def _note(found: SensitivityResult) -> str:
    errors = [p.error for row in found.rows for p in row.points if p.error is not None]
    if not errors:
        return "the most sensitive first"
    return f"the most sensitive first; standard errors from {min(errors):.2g} to {max(errors):.2g}"


def _proxy(found: SensitivityResult) -> Text:
    ranking = found.ranking
    if ranking is None:
        return Text("Nothing was measured: with --data a few of these settings are, beside the prediction.",
                    "warning")  # fmt: skip
    good, option = ranking.correlation >= 0.8, "fast" if found.proxy == "gradients" else "predicted"
    said = f"{ranking.correlation:.2f}" if ranking.correlation == ranking.correlation else "not defined"
    return Text(
        f"The prediction's rank correlation with the damage measured on {ranking.checked} of these settings is {said}"
        f" (1 is the same order){'' if good else f'; run without --{option} for the truth'}.",
        "good" if good else "warning",
    )


def sensitivity_chart(found: SensitivityResult) -> Chart:
    """Small multiples, the most sensitive layer first, all on the same axes: the loss, or its prediction, over the
    removed fraction."""
    panels = [Panel([_curve(row)], row.layer.name) for row in found.rows]
    if found.proxy is not None:
        y = ChartAxis("predicted damage")
        return Chart("Predicted damage by layer", panels, ChartAxis("removed", "percent"), y=y)
    y = ChartAxis(f"{_metric(found)} {found.change}")
    note = "bands: one standard error to both sides"
    return Chart("Loss by layer", panels, ChartAxis("removed", "percent"), y=y, note=note)


def _curve(row: SensitivityRow) -> Series:
    x = [0.0, *(p.fraction for p in row.points)]
    if any(p.drop is None or p.error is None for p in row.points):
        return Series("", x, [0.0, *(p.damage for p in row.points)])
    pairs = [(p.drop or 0.0, p.error or 0.0) for p in row.points]
    return Series("", x, [0.0, *(d for d, _ in pairs)], low=[0.0, *(d - e for d, e in pairs)],
                  high=[0.0, *(d + e for d, e in pairs)])  # fmt: skip
