"""How zeroed weights read: as the contract's JSON, and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prunecli.packing.report import packed_json, packed_sections
from prunecli.quantization.report import quantised_json, quantised_sections
from prunecli.report.contract import grown, report_json
from prunecli.report.document import Chart, ChartAxis, Column, Document, Mark, Panel, Section, Series, Table, Text
from prunecli.report.render_cells import cell_text, how_many
from prunecli.report.sections import (
    KEPT,
    MOST,
    ZEROED,
    detail_text,
    headline,
    layer_bars,
    proof_text,
    shape_text,
    size_bars,
    size_table,
    warnings,
    written,
)
from prunecli.shrinking.report import shrunk_json, shrunk_sections
from prunecli.training.report import training_json, training_sections
from prunecli.types import Json, LayerRow
from prunecli.zeros.select import KINDS

if TYPE_CHECKING:
    from prunecli.zeros.result import MagnitudeResult, ZeroedLayer
    from prunecli.zeros.spread import ZeroedSpread

TOP = 24
NAMED = 3
"""Kinds of weights that the headline names."""
HONEST = (
    "Zeros make no model faster in onnxruntime, and the file smaller only where it is compressed or stored with "
    "--pack; `prune structured` makes both smaller."
)
HONEST_SHRUNK = (
    "Units that became empty are gone: the model is smaller and faster as it is. The zeros that are left make it "
    "smaller only where it is compressed or stored with --pack."
)
HONEST_PACKED = "The file is small; once loaded, the model takes the memory and the time of the dense one."


def to_json(found: MagnitudeResult) -> Json:
    """The contract's keys, with `recipe`, `left_alone` and `plan`."""
    extra: Json = {
        "dry_run": found.dry_run,
        "recipe": found.recipe,
        "left_alone": {kind: {"tensors": tensors, "params": params} for kind, (tensors, params) in found.left.items()},
        "plan": found.plan,
        **training_json(found.training),
        **quantised_json(found.quantised),
        **packed_json(found.packed),
        **shrunk_json(found.shrunk),
    }
    return report_json(
        found, found.command, map(_row, found.layers), skipped=found.skipped, sparsity=found.sparsity, extra=extra
    )


def _row(layer: ZeroedLayer) -> LayerRow:
    return LayerRow.of(
        name=layer.name,
        op=layer.op,
        weight=layer.weight,
        shape=layer.shape,
        nonzero=layer.nonzero,
        kind=layer.kind,
        dtype=layer.dtype,
        nonzero_before=layer.nonzero_before,
        macs=layer.macs,
        notes=list(layer.notes),
        **layer.details,
    )


def to_document(found: MagnitudeResult) -> Document:
    """What people read: sizes, the proof, the layers, what was left alone, and what zeros are good for."""
    title = f"{found.model.path}: {found.command}{', what would be zeroed' if found.dry_run else ''}"
    sections: list[Section] = [_headline(found), _summary(found), proof_text(found.verification), *_how(found)]
    sections += warnings([*grown(found.before, found.after), *found.notes])
    sections += training_sections(found.training)
    sections += quantised_sections(found.quantised)
    sections += packed_sections(found.packed)
    sections += shrunk_sections(found.shrunk)
    sections += [_layers(found), *_scores(found), *_charts(found), *_left(found)]
    sections += [Text(_honest(found)), *written(found)]
    return Document(title, sections)


def _headline(found: MagnitudeResult) -> Text:
    """How much of what could be pruned is zero, and what could not be, the most first."""
    would = "would be" if found.dry_run else "are"
    said = f"{cell_text(found.sparsity, 'percent')} of {found.params:,} weights that could be pruned {would} zero"
    reasons = Counter(item.reason for item in found.skipped if item.name not in _named(found)).most_common(1)
    why = {"weight": f"weights: {reasons[0][0]}"} if reasons else {}
    left = sorted(found.left.items(), key=lambda item: -item[1][1])[:NAMED]
    if left:
        parts = [f"{params:,} {why.get(kind) or KINDS.get(kind, 'other weights')}" for kind, (_, params) in left]
        said += f"; {sum(params for _, params in found.left.values()):,} were left alone ({', '.join(parts)})"
    return headline(said, "good")


def _honest(found: MagnitudeResult) -> str:
    """What the zeros are good for in the file that is written."""
    if found.packed is not None:
        return HONEST_PACKED
    return HONEST if found.shrunk is None or found.shrunk.removed.nothing else HONEST_SHRUNK


def _charts(found: MagnitudeResult) -> list[Section]:
    sizes = {layer.weight: layer.params for layer in found.layers}
    rows = [(layer.weight, layer.params, layer.nonzero) for layer in found.layers]
    return [size_bars(found.before, found.after), *layer_bars(rows, ZEROED), *spread_charts(found.spreads, sizes)]


def _summary(found: MagnitudeResult) -> Table:
    zeros = sum(layer.params - layer.nonzero_before for layer in found.layers)
    before = cell_text(zeros / found.params if found.params else None, "percent")
    top = [("zeros in the pruned weights", before, cell_text(found.sparsity, "percent"), None)]
    return size_table(found.before, found.after, top=top)


def _how(found: MagnitudeResult) -> list[Section]:
    """What the weights were chosen by, where that was measured on data."""
    recipe = found.recipe
    if "samples" not in recipe:
        return []
    chosen = recipe.get("method") or recipe.get("criterion") or recipe.get("scope")
    said = f"chosen by {chosen} on {how_many(recipe['samples'], 'sample')} of {recipe.get('data')}"
    if recipe.get("allocate"):
        said += f", layers given their share by {recipe['allocate']}"
    if recipe.get("recover", "none") != "none":
        said += f", what is left fitted to the original's outputs ({recipe['recover']})"
    return [detail_text(said)]


def _layers(found: MagnitudeResult) -> Table:
    errors = [layer.details.get("reconstruction_error") for layer in found.layers]
    fitted = any(error is not None for error in errors)
    rows = [
        (layer.weight, layer.op, shape_text(layer.shape), layer.params, layer.nonzero, layer.sparsity,
         layer.macs, *((error,) if fitted else ()), "; ".join(layer.notes))
        for layer, error in zip(found.layers, errors, strict=True)
    ]  # fmt: skip
    columns = (
        Column("weight", "name"), Column("operator", drop=2), Column("shape", drop=1), Column("parameters", "count"),
        Column("not zero", "count"), Column("zeros", "percent"), Column("MACs", "count", drop=3),
        *((Column("output error", "number", drop=1),) if fitted else ()), Column("note", drop=4),
    )  # fmt: skip
    note = "output error: mean squared change of the layer's outputs, as a share of their variance" if fitted else ""
    return Table("Layers", columns, rows, note=note, top=TOP, top_by="parameters")


def _scores(found: MagnitudeResult) -> Iterator[Section]:
    """Quantiles of what the weights were scored with, where that was measured."""
    scored = {layer.weight: layer.details["scores"] for layer in found.layers if "scores" in layer.details}
    if scored:
        names = list(next(iter(scored.values())))
        columns = [Column(name if name == "max" else f"{float(name):.0%}", "number") for name in names]
        rows = [(weight, *(quantiles[name] for name in names)) for weight, quantiles in scored.items()]
        note = (
            "Below which score so much of a weight lies, in the model as it was. --threshold T zeroes what is below T."
        )
        yield Table("Scores", (Column("weight", "name"), *columns), rows, note=note, top=TOP)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _left(found: MagnitudeResult) -> list[Section]:
    """What was not touched, and why."""
    sections: list[Section] = []
    if found.left:
        parts = [f"{KINDS.get(kind, 'other weights')} ({_counted(tensors, 'tensor')}, {_counted(params, 'element')})"
                 for kind, (tensors, params) in found.left.items()]  # fmt: skip
        sections.append(detail_text(f"not zeroed: {', '.join(parts)} (--also, --include and --exclude choose)"))
    others = [item for item in found.skipped if item.name not in _named(found)]
    if others:
        rows = [(item.name, item.reason) for item in others]
        sections.append(Table("Cannot be pruned", (Column("what", "name"), Column("why")), rows, top=TOP))
    return sections


def _named(found: MagnitudeResult) -> set[str]:
    """Names whose reason is that of their kind or of the user's patterns: told in one sentence."""
    texts = ("are left alone unless", "not matched by --include", "left out by --exclude", "not in the plan")
    return {item.name for item in found.skipped if any(text in item.reason for text in texts)}


def spread_charts(spreads: Mapping[str, ZeroedSpread], sizes: Mapping[str, int]) -> Iterator[Section]:
    """|w| of what was zeroed and kept, over all weights and in each; `sizes`: elements by weight."""
    if not spreads:
        return
    x, y = ChartAxis("|w|", log=True), ChartAxis("weights", "count")
    note = "The leftmost bar also holds what is smaller."
    yield Chart("What was zeroed: |w| over all weights", [_spread_panel(spreads[""], "")], x, y=y, note=note)
    largest = sorted((name for name in spreads if name), key=lambda name: -sizes[name])[:MOST]
    panels = [_spread_panel(spreads[name], name) for name in spreads if name in largest]
    if len(largest) < len(spreads) - 1:
        note += f" The {len(largest)} largest of {len(spreads) - 1} weights."
    yield Chart("What was zeroed: |w| in each weight", panels, x, y=y, note=note, shared="x")


def _spread_panel(spread: ZeroedSpread, title: str) -> Panel:
    both = ((KEPT, spread.kept), (ZEROED, spread.zeroed))
    series = [Series(name, spread.edges, counts, draw="histogram") for name, counts in both]
    name = f"{'cut' if spread.sharp else 'largest zeroed'} {spread.cut:.3g}" if spread.cut else ""
    return Panel(series, title, [Mark("x", spread.cut, name)] if spread.cut else [])
