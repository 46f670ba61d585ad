"""JSON and tables of a quantised model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.evaluation.report import fidelity_json, fidelity_table, speed_delta, speed_ms, speed_rows, speed_sections
from prunecli.report.contract import grown, report_json
from prunecli.report.document import Cell, Column, Document, Level, Section, Table, Text
from prunecli.report.render_cells import cell_text, how_many
from prunecli.report.sections import (
    detail_text,
    headline,
    proof_text,
    shape_text,
    size_bars,
    size_table,
    warnings,
    written,
)
from prunecli.types import Json, LayerRow

if TYPE_CHECKING:
    from prunecli.evaluation.speed import MeasuredSpeed
    from prunecli.quantization.fitting import QuantisedLayer
    from prunecli.quantization.result import QuantizeResult

TOP = 24
TITLES = {
    "onnxruntime": "onnxruntime's own",
    "nearest": "rounded to the nearest",
    "fitted": "fitted",
    "float": "float",
    "pruned": "pruned",
    "quantised": "quantised by onnxruntime",
    "both": "pruned and quantised",
}
"""Titles of the candidates, and of the models that were timed."""
SHOWN = ("accuracy", "f1", "r2", "spearman", "mse")
"""Metrics that the size table shows, if they were measured."""


def to_json(found: QuantizeResult) -> Json:
    """The contract's keys, with `recipe`, `quantization`, `fidelity` and `quality`."""
    params = sum(math.prod(layer.shape) for layer in found.layers)
    sparsity = 1 - sum(layer.nonzero for layer in found.layers) / params if params else 0.0
    extra: Json = {
        "dry_run": found.dry_run,
        "recipe": found.recipe,
        "quantization": quantization_json(found),
        "fidelity": fidelity_json(found.fidelity),
        **({} if found.quality is None else {"quality": asdict(found.quality)}),
        **speed_delta(found.speed),
    }
    return report_json(
        found, "quantize", map(_row, found.layers), skipped=found.left, sparsity=sparsity, extra=extra,
        latency_ms=speed_ms(found.speed),
    )  # fmt: skip


def quantization_json(found: QuantizeResult) -> Json:
    """The key `quantization`: which candidate was written, and how far each is from the float model; for a pruned model
    also the figures of the stages."""
    speeds = {name: one.speed.to_json() for name, one in found.stages.items() if one.speed is not None}
    stages = {name: {"file_bytes": one.file_bytes, "metrics": dict(one.metrics)} for name, one in found.stages.items()}
    return {
        "chosen": found.chosen,
        "errors": dict(found.errors),
        **({"speeds": speeds} if speeds else {}),
        **({"stages": stages} if stages else {}),
        "methods": dict(Counter(layer.method for layer in found.layers)),
        "onnxruntime": fidelity_json(found.tool),
    }


def quantised_json(found: QuantizeResult | None) -> Json:
    """The key `quantization` of a command with `--quantize`; nothing where nothing was quantised."""
    return {} if found is None else {"quantization": quantization_json(found)}


def quantised_sections(found: QuantizeResult | None) -> list[Section]:
    """The sections of a command with `--quantize`."""
    if found is None:
        return []
    sections: list[Section] = [_errors(found, "those of the pruned model"), *speed_sections(found.speed, "float model")]
    if found.stages:
        sections.append(_stages(found))
    return sections


def _stages(found: QuantizeResult) -> Table:
    """Float, pruned, quantised and both, side by side."""
    shown = [name for name in SHOWN if any(name in one.metrics for one in found.stages.values())]
    timed = [one.speed.pair for one in found.stages.values() if one.speed is not None and one.speed.pair is not None]
    whole = (cell_text(timed[-1].baseline.median, "ms"), "") if timed else ("", "")
    rows = [
        (TITLES[name], one.file_bytes, *(one.metrics.get(metric) for metric in shown),
         *(whole if name == "float" else _speed_cells(one.speed)))
        for name, one in found.stages.items()
    ]  # fmt: skip
    metrics = [Column(metric, "number") for metric in shown]
    columns = (Column("model"), Column("file", "bytes"), *metrics, Column("time"), Column("times as fast"))
    return Table("Side by side", columns, rows, level=Level.NORMAL)


def _speed_cells(found: MeasuredSpeed | None) -> tuple[Cell, Cell]:
    if found is None:
        return "", ""
    if found.pair is None:
        return "", f"not measured: {found.reason}"
    gain = found.pair.gain
    interval = "not measurable now" if gain.reason else f"{gain.speedup:.2f} ({gain.low:.2f} to {gain.high:.2f})"
    return cell_text(found.pair.model.median, "ms"), interval


def _row(layer: QuantisedLayer) -> LayerRow:
    return LayerRow.of(name=layer.node, op=layer.op, weight=layer.name, shape=layer.shape, nonzero=layer.nonzero,
                       method=layer.method, errors=layer.errors)  # fmt: skip


def to_document(found: QuantizeResult) -> Document:
    """What people read: sizes, what the rounding costs, the proof, the layers."""
    title = f"{found.model.path}: quantize{', what would be written' if found.dry_run else ''}"
    sections: list[Section] = [_headline(found), _sizes(found), _errors(found), proof_text(found.verification)]
    sections += speed_sections(found.speed, "float model")
    sections += warnings([*grown(found.before, found.after), *found.notes])
    sections += [detail_text(f"fitted on {how_many(found.recipe['samples'], 'sample')} of {found.recipe['data']}")]
    if found.fidelity is not None:
        sections.append(fidelity_table(found.fidelity))
    sections += [size_bars(found.before, found.after), _layers(found), *_left(found), *written(found)]
    return Document(title, sections)


def _headline(found: QuantizeResult) -> Text:
    size = cell_text(found.after.file_bytes / max(found.before.file_bytes, 1), "percent")
    takes = "would take" if found.dry_run else "takes"
    said = f"{found.recipe['weights']} weights: the file {takes} {size} of what it took"
    fidelity = found.fidelity.short() if found.fidelity is not None else {}
    same, cosine = fidelity.get("top1_agreement"), fidelity.get("cosine")
    if same is not None:
        said += f", and {cell_text(same, 'percent')} of the predictions on held-out samples are the same"
    elif cosine is not None:
        said += f", and outputs on held-out samples have a cosine of {cosine:.4f} with the float model's"
    return headline(said, "good")


def _sizes(found: QuantizeResult) -> Table:
    rows: list[tuple[Cell, ...]] = []
    if found.quality is not None:
        for name in SHOWN:
            if name in found.quality.before:
                before, after = found.quality.before[name], found.quality.after.get(name)
                rows.append((f"{name} on {Path(found.quality.source).name}", f"{before:.4f}", f"{after:.4f}", None))
    return size_table(found.before, found.after, speed_rows(found.speed), columns=("float", "quantised"), top=rows)


def _errors(found: QuantizeResult, floats: str = "those") -> Table:
    """The error of each candidate, and which one was written. `floats`: the outputs that are compared."""
    rows = [
        (TITLES.get(name, name), error, "written" if name == found.chosen else "")
        for name, error in found.errors.items()
    ]
    note = (
        f"error: mean squared difference of the outputs from {floats} in floating point over their variance, on"
        " held-out samples; where none is in floating point, the share of elements that differ"
    )
    return Table(
        "Rounding", (Column("weights"), Column("error", "number"), Column("")), rows, note=note, level=Level.NORMAL
    )


def _layers(found: QuantizeResult) -> Table:
    names = list(dict.fromkeys(name for layer in found.layers for name in layer.errors))
    rows = [
        (layer.name, layer.op, shape_text(layer.shape), math.prod(layer.shape), layer.method,
         *(layer.errors.get(name) for name in names))
        for layer in found.layers
    ]  # fmt: skip
    columns = (
        Column("weight", "name"), Column("operator", drop=2), Column("shape", drop=1), Column("parameters", "count"),
        Column("rounding"), *(Column(name, "number", drop=3) for name in names),
    )  # fmt: skip
    note = (
        "the last columns: squared error of the layer's output over its variance, on held-out samples" if names else ""
    )
    return Table("Layers", columns, rows, note=note, top=TOP, top_by="parameters")


def _left(found: QuantizeResult) -> Iterator[Section]:
    if found.left:
        rows = [(item.name, item.reason) for item in found.left]
        yield Table("Quantised, but not fitted", (Column("what", "name"), Column("why")), rows, top=TOP)
