"""Turn an inspection into the contract's JSON, and into a document."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from prunecli.errors import some
from prunecli.inputs import InputSpec
from prunecli.model.shapes import UNKNOWN
from prunecli.report.contract import report_json, totals_json
from prunecli.report.document import (
    Bars,
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
from prunecli.report.render_cells import cell_text, how_many
from prunecli.report.sections import headline, shape_text, warnings
from prunecli.types import Json, LayerRow

if TYPE_CHECKING:
    from prunecli.inspection.cuttable import CuttableUnits
    from prunecli.inspection.distribution import Distribution, WeightSpread
    from prunecli.inspection.graph import GraphView
    from prunecli.inspection.inspect import InspectedLayer, Inspection

TOP = 24
LISTED = 3
"""The number of inputs, outputs, assumed sizes and reasons that are named."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
_WIDTH = 28


def to_json(found: Inspection) -> Json:
    """Return the keys of the contract (before = after: nothing changes), `totals`, `inputs`, and what was asked for."""
    extra: Json = {
        "totals": {**totals_json(found.totals), "sparsity": found.sparsity},
        "about": dict(found.about),
        "inputs": {name: list(shape) for name, shape in found.inputs.items()},
        "assumed": list(found.assumed),
        "interface": {side: [_spec_json(spec) for spec in specs] for side, specs in found.interface.items()},
        "structured": asdict(found.cuttable),
    }
    if found.nm:
        extra["nm"] = f"{found.nm[0]}:{found.nm[1]}"
    if found.graph:
        extra["graph"] = asdict(found.graph)
        for layer in extra["graph"]["layers"]:
            del layer["each"]  # the file has them
    if found.distribution:
        extra["distribution"] = _distribution_json(found.distribution)
    layers = [_row(found, layer) for layer in found.layers]
    return report_json(found, "inspect", layers, skipped=found.skipped, sparsity=found.sparsity, extra=extra)


def _row(found: Inspection, layer: InspectedLayer) -> LayerRow:
    extra: Json = {
        "kind": layer.kind,
        "dtype": layer.dtype,
        "stored": layer.stored,
        "macs": layer.macs,
        "bytes": layer.bytes,
        "share": _share(layer.params, found.totals.params),
        "share_macs": _share(layer.macs, found.totals.macs),
        "notes": list(layer.notes),
    }
    if layer.weight in found.patterns:
        extra["nm"] = asdict(found.patterns[layer.weight])
    if found.distribution and layer.weight in found.distribution.spreads:
        extra["abs_weight"] = _spread_json(found.distribution.spreads[layer.weight])
    return LayerRow(
        name=layer.name,
        op=layer.op,
        weight=layer.weight,
        shape_before=layer.shape,
        shape_after=layer.shape,
        params_before=layer.params,
        params_after=layer.params,
        nonzero=layer.nonzero,
        sparsity=layer.sparsity,
        extra=extra,
    )


def _spec_json(spec: InputSpec) -> Json:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or whole is None else part / whole if whole else 0.0


def _spread_json(spread: WeightSpread) -> Json:
    from prunecli.inspection.distribution import FRACTIONS

    quantiles = [{"sparsity": f, "threshold": q} for f, q in zip(FRACTIONS, spread.quantiles, strict=True)]
    return {"max": spread.largest, "quantiles": quantiles, "histogram": list(spread.picture)}


def _distribution_json(found: Distribution) -> Json:
    def one(threshold: float, below: int, sparsity: float) -> Json:
        return {"threshold": threshold, "below": below, "sparsity": sparsity}

    hints = [{"wanted": t.wanted, **one(t.value, t.below, t.sparsity)} for t in found.hints]
    return {"hints": hints, "steps": [one(t.value, t.below, t.sparsity) for t in found.steps]}


def to_document(found: Inspection) -> Document:
    """Return the document: a summary, the layers, what was asked for, and what cannot be pruned."""
    sections: list[Section] = [_headline(found), _summary(found), *warnings(found.notes)]
    sections += [_layer_table(found), *share_bars(found)]
    sections += [_others(found)] if any(layer.kind not in ("weight", "none") for layer in found.layers) else []
    sections += _distribution_tables(found) if found.distribution else []
    sections += [_pattern_table(found)] if found.nm else []
    sections += graph_sections(found.graph) if found.graph else []
    if found.skipped:
        rows = [(item.name, item.reason) for item in found.skipped]
        sections.append(Table("Not prunable", (Column("name", "name"), Column("reason")), rows, top=TOP))
    return Document(f"{found.model.path}: inspect", sections)


def _headline(found: Inspection) -> Text:
    sizes, prunable = found.totals, sum(layer.params for layer in found.prunable)
    macs = f", {cell_text(sizes.macs, 'count')} MACs" if sizes.macs else ""
    return headline(f"{sizes.params:,} parameters, of which {prunable:,} can be pruned{macs}")


def graph_sections(graph: GraphView) -> list[Section]:
    """Return a table of the importance of each layer, a table of the strongest links, and a drawing of the graph."""
    said = f"{graph.units:,} units, {graph.edges:,} edges: {graph.path}"
    columns = (
        Column("layer", "name"),
        Column("kind", drop=1),
        Column("units", "count"),
        Column("importance", "number"),
    )
    rows = [(layer.name, layer.kind, layer.units or None, layer.importance) for layer in graph.layers]
    note = "importance: PageRank of its units, from the outputs backwards through what each reads, added up"
    table = Table(f"Unit graph: {said}", columns, rows, note=note, top=TOP, level=Level.NORMAL)
    return [table, _drawn(graph)]


QUARTERS = ("the least important quarter of the units", "the second", "the third", "the most important")
LINKS = (("hands on little importance", 0.0, 0.1, 0.6), ("some", 0.1, 0.5, 1.6), ("much", 0.5, 2.0, 4.0))
"""Classes of links: name, lower and upper bound, and width of the line. The bounds are of the importance that a link
hands on to the layer that is read, as a share of the largest."""
SHOWN = 64
"""The number of units of a layer that are drawn at most; of a wider layer, evenly spaced ones are."""


def _drawn(graph: GraphView) -> Chart:
    """Draw each layer as a column of units, the most important on top. Size and colour show the quartile of a unit's
    importance."""
    order = {"input": 0, "fixed": 0, "output": 2}
    ranked = sorted(range(len(graph.layers)), key=lambda k: (order.get(graph.layers[k].kind, 1), k))
    shown = [each if len(each) <= SHOWN else [each[k * len(each) // SHOWN] for k in range(SHOWN)]
             for each in (graph.layers[k].each for k in ranked)]  # fmt: skip
    every = sorted(value for layer in graph.layers if layer.units for value in layer.each)
    bounds = [every[len(every) * k // 4] for k in (1, 2, 3)] if every else []
    points: list[list[tuple[float, float, str]]] = [[] for _ in QUARTERS]
    for x, (k, each) in enumerate(zip(ranked, shown, strict=True)):
        for y, value in enumerate(each):
            told = f"{graph.layers[k].name}, importance {value:.3g}"
            points[bisect_right(bounds, value)].append((x, (len(each) - 1) / 2 - y, told))
    place = {k: x for x, k in enumerate(ranked)}
    series = list(_links(graph, place, depth=max(map(len, shown), default=1) / 2 + 1))
    for size, (name, some_points) in enumerate(zip(QUARTERS, points, strict=True)):
        if some_points:
            across, up, labels = zip(*some_points, strict=True)
            series.append(Series(name, across, up, draw="points", labels=labels, width=3.0 + 1.5 * size))
    axes = ChartAxis("layer: inputs, then in the order of the network"), ChartAxis("units, the most important on top")
    note = "Lines lead from a layer to what reads it; their width is the importance that they hand on."
    return Chart("Unit graph", [Panel(series)], *axes, note)


def _links(graph: GraphView, place: Mapping[int, int], depth: float) -> Iterator[Series]:
    """Yield the links as lines: straight between neighbouring columns, else as an arc below the columns, which end at
    `depth`."""
    handed = [(a, b, share * graph.layers[b].importance) for a, b, share in graph.links if a != b]
    most = max((value for *_, value in handed), default=0.0) or 1.0
    for name, low, high, width in LINKS:
        x: list[float] = []
        y: list[float | None] = []
        for a, b, value in handed:
            if low <= value / most < high:
                apart = abs(place[b] - place[a]) - 1
                for step in range(ARC + 1):
                    t = step / ARC
                    x.append(place[a] + t * (place[b] - place[a]))
                    y.append(-4 * t * (1 - t) * depth * (1 + apart / len(place)) if apart else 0.0)
                x.append(x[-1])
                y.append(None)
        if x:
            yield Series(name, x, y, draw="path", width=width)


ARC = 16
"""The number of straight parts of an arc."""


def _summary(found: Inspection) -> Table:
    sizes = found.totals
    about = "about " if sizes.gzip_estimated else ""
    inputs = some([f"{name} {shape_text(shape)}" for name, shape in found.inputs.items()], LISTED)
    assumed = f"; assumed: {some(found.assumed, LISTED)}" if found.assumed else ""
    rows: list[tuple[str, str]] = [
        ("made by", f"{found.about['producer']}; {found.about['opsets']}"),
        *((side, some([_spec_text(spec) for spec in specs], LISTED)) for side, specs in found.interface.items()),
        *zip(("weights", "", "", ""), _stored(found), strict=False),
        ("zeros", f"{cell_text(found.sparsity, 'percent')} of the prunable weights"),
        ("MACs", f"{cell_text(sizes.macs, 'count')} at {inputs}{assumed}"),
        (
            "file",
            f"{cell_text(sizes.file_bytes, 'bytes')}, gzip {about}{cell_text(sizes.gzip_bytes, 'bytes')}",
        ),
        *_structured(found.cuttable),
    ]
    return Table("", (Column(""), Column("")), rows, level=Level.NORMAL)


def _stored(found: Inspection) -> list[str]:
    """Say how prunable weights and embeddings are stored, the most frequent way first."""
    kinds: dict[str, list[int]] = {}
    for layer in found.layers:
        if layer.kind in ("weight", "embedding"):
            kinds.setdefault(layer.stored, []).append(layer.params)
    ordered = sorted(kinds.items(), key=lambda kind: -sum(kind[1]))
    return [f"{sum(sizes):,} in {how_many(len(sizes), 'tensor')}: {kind}" for kind, sizes in ordered]


def _spec_text(spec: InputSpec) -> str:
    if spec.dtype == UNKNOWN:
        return f"{spec.name} (no tensor, as a sequence of maps)"
    return f"{spec.name} {spec.dtype} {'×'.join('?' if d is None else str(d) for d in spec.shape) or 'scalar'}"


def _structured(found: CuttableUnits) -> list[tuple[str, str]]:
    """Return rows that say what `prune structured` could cut, how much that is, and what stays."""
    if found.problem:
        return [("structured", f"not analysed: {found.problem}")]
    units = " and ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in found.units.items())
    shares = [f"{cell_text(value, 'percent')} of the {name}"
              for name, value in (("parameters", found.params), ("MACs", found.macs)) if value]  # fmt: skip
    rows = [("structured", f"can cut {units} in {found.groups} groups" if units else "can cut nothing")]
    if units and shares:
        rows.append(("", f"at most {' and '.join(shares)}, with one unit left of each group"))
    why = some([f"{reason} ({axes} ax{'i' if axes == 1 else 'e'}s)" for reason, axes in found.frozen], LISTED)
    return [*rows, ("", f"stays: {why}")] if why else rows


def _layer_table(found: Inspection) -> Table:
    columns = (
        Column("weight", "name"),
        Column("layer", "name", drop=1),
        Column("op", drop=2),
        Column("shape"),
        Column("params", "count"),
        Column("share", "percent", drop=4),
        Column("MACs", "count"),
        Column("bytes", "bytes", drop=5),
        Column("zeros", "percent", drop=3),
    )
    shown = [layer for layer in found.layers if layer.kind in ("weight", "none")]
    rows: list[tuple[Cell, ...]] = [
        (
            layer.weight or f"({layer.name})",
            layer.name,
            layer.op,
            shape_text(layer.shape) if layer.weight else None,
            layer.params,
            _share(layer.params, found.totals.params),
            layer.macs,
            layer.bytes,
            layer.sparsity if layer.weight else None,
        )
        for layer in shown
    ]
    return Table(
        "Layers",
        columns,
        rows,
        note="in brackets: operators that multiply without a prunable weight"
        * any(not layer.weight for layer in shown),
        top=TOP,
        top_by="params",
    )


def _others(found: Inspection) -> Table:
    kinds = Counter(layer.kind for layer in found.layers if layer.kind not in ("weight", "none"))
    columns = (
        Column("kind"),
        Column("tensors", "count"),
        Column("params", "count"),
        Column("bytes", "bytes"),
    )
    rows: list[tuple[Cell, ...]] = []
    for kind, tensors in kinds.items():
        group = [layer for layer in found.layers if layer.kind == kind]
        rows.append((kind, tensors, sum(layer.params for layer in group), sum(layer.bytes for layer in group)))
    return Table("Other kinds", columns, rows, note="left alone unless --also names them")


def _distribution_tables(found: Inspection) -> list[Section]:
    measured = found.distribution
    if measured is None or not measured.spreads:
        return [Text("No prunable weights of finite values, so no distribution.")]
    charts = distribution_charts(found, measured)
    return [_spread_table(found, measured), _step_table(measured), _hint_table(measured), *charts]


def _spread_table(found: Inspection, measured: Distribution) -> Table:
    columns = (
        Column("weight", "name"),
        Column("params", "count", drop=2),
        Column("0 to the largest |w|", "graph"),
        Column("largest", "number", drop=1),
        Column("T for 50 %", "number"),
        Column("70 %", "number"),
        Column("90 %", "number"),
    )
    rows: list[tuple[Cell, ...]] = [
        (layer.weight, layer.params, sparkline(spread.picture), spread.largest, *spread.quantiles)
        for layer in found.prunable
        if (spread := measured.spreads.get(layer.weight)) is not None
    ]
    return Table("|w| per weight", columns, rows, top=TOP, top_by="params", level=Level.NORMAL)


def sparkline(counts: tuple[int, ...]) -> str:
    """Return a bar of one character per count, scaled to the largest count. A count above zero is never blank."""
    largest = max(counts, default=0) or 1
    return "".join(_BLOCKS[-(-8 * count // largest)] for count in counts)


def _step_table(measured: Distribution) -> Table:
    columns = (
        Column("--threshold", "number"),
        Column("zeroes", "percent"),
        Column("weights", "count"),
        Column("in this step", "graph"),
    )
    below = [0, *(step.below for step in measured.steps)]
    counts = [high - low for low, high in pairwise(below)]
    largest = max(counts, default=0) or 1
    rows = [
        (step.value, step.sparsity, step.below, "█" * -(-_WIDTH * count // largest))
        for step, count in zip(measured.steps, counts, strict=True)
    ]
    return Table("|w| over all prunable weights", columns, rows, level=Level.NORMAL)


def _hint_table(measured: Distribution) -> Table:
    columns = (Column("to zero", "percent"), Column("use --threshold", "number"), Column("zeroes", "percent"))
    rows = [(hint.wanted, hint.value, hint.sparsity) for hint in measured.hints]
    note = "--sparsity S zeroes exactly that fraction without a threshold"
    return Table("Choosing a threshold", columns, rows, note=note, level=Level.NORMAL)


def _pattern_table(found: Inspection) -> Table:
    columns = (Column("weight", "name"), Column("op"), Column("follows"), Column("windows", "percent"), Column("note"))
    rows: list[tuple[Cell, ...]] = []
    for layer in found.prunable:
        fit = found.patterns[layer.weight]
        told = "; ".join(filter(None, (fit.detail, *fit.doubts)))
        rows.append((layer.weight, layer.op, "yes" if fit.satisfied else "no", fit.windows, told))
    n, m = found.nm or (0, 0)
    follow = sum(fit.satisfied for fit in found.patterns.values())
    title = f"{n}:{m} along the inputs of each output: {follow} of {len(rows)} weights follow it"
    unused = any(fit.doubts for fit in found.patterns.values())
    note = "TensorRT times sparse and dense kernels, and takes the faster" if unused else ""
    return Table(title, columns, rows, note=note, top=TOP, level=Level.NORMAL)


MOST = 30


def share_bars(found: Inspection) -> Iterator[Section]:
    """Yield bars of each layer's share of all parameters and of all work."""
    layers = [layer for layer in found.layers if layer.kind in ("weight", "none")]
    totals = found.totals
    if layers:
        names = [layer.weight or f"({layer.name})" for layer in layers]
        series = [("parameters", [layer.params / totals.params if totals.params else None for layer in layers])]
        if totals.macs:
            series.append(("MACs", [None if layer.macs is None else layer.macs / totals.macs for layer in layers]))
        yield Bars("Share of the model", names, series, form="percent")


def distribution_charts(found: Inspection, measured: Distribution) -> Iterator[Section]:
    """Yield a chart of the fraction of zeros by threshold, and one of |w| of the largest weights."""
    steps = [step for step in measured.steps if step.value > 0]
    if steps:
        curve = Series("", [0.0, *(s.value for s in steps)], [0.0, *(s.sparsity for s in steps)])
        yield Chart("Zeros by threshold", [Panel([curve])], ChartAxis("--threshold"), y=ChartAxis("zeros", "percent"))
    layers = [layer for layer in found.prunable if layer.weight in measured.spreads]
    largest = sorted(layers, key=lambda layer: -layer.params)[:MOST]
    panels = []
    for layer in (layer for layer in layers if layer in largest):
        spread = measured.spreads[layer.weight]
        edges = np.linspace(0, spread.largest or 1.0, len(spread.picture) + 1).tolist()
        panels.append(Panel([Series("weights", edges, spread.picture, draw="histogram")], layer.weight))
    note = "" if len(panels) == len(layers) else f"The {len(panels)} largest of {len(layers)} weights."
    yield Chart(
        "|w| in each weight", panels, ChartAxis("|w|"), y=ChartAxis("weights", "count"), note=note, shared=False
    )
