"""The contract's JSON of an evaluation, and its tables and charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from prunecli.evaluation.fidelity import MEASURES, Fidelity
from prunecli.evaluation.figures import SIZES, delta, gaps, sizes
from prunecli.evaluation.gates import GateResult
from prunecli.evaluation.quality import METRICS
from prunecli.report.contract import envelope
from prunecli.report.document import (
    Bars,
    Cell,
    Chart,
    ChartAxis,
    Column,
    Document,
    Level,
    Mark,
    NumberForm,
    Panel,
    Section,
    Series,
    Table,
    Text,
    Tone,
)
from prunecli.report.render_cells import cell_text, how_many
from prunecli.report.sections import at_sizes, detail_text, headline, warnings
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.evaluation.figures import Evaluation, Scored
    from prunecli.evaluation.robustness import Stress
    from prunecli.evaluation.speed import MeasuredSpeed

SIZE_TITLES = {
    "params": ("parameters", "count"),
    "nonzero": ("nonzero", "count"),
    "sparsity": ("sparsity", "percent"),
    "macs": ("MACs", "count"),
    "file_bytes": ("file", "bytes"),
    "gzip_bytes": ("file, gzipped", "bytes"),
}


def to_json(found: Evaluation) -> Json:
    """The contract's keys for `prune evaluate`, and `data`, `significance`, `differences`, `overfitting`,
    `robustness`."""
    return {
        **envelope("evaluate", found.seconds),
        "model": asdict(found.model.ref),
        "output": None,
        "data": _data_json(found),
        "models": [_model_json(scored, found) for scored in found.models],
        "delta": delta(found),
        "fidelity": fidelity_json(found.fidelity),
        "significance": found.significance.to_json() if found.significance else None,
        "differences": {name: each.to_json() for name, each in found.differences.items()},
        "overfitting": _overfitting_json(found),
        "robustness": found.stress.to_json() if found.stress else None,
        "gates": [gate.to_json() for gate in found.gates],
        "notes": list(found.notes),
    }


def _data_json(found: Evaluation) -> Json:
    classes = found.classes.names if found.classes else {}
    return {
        "source": found.source,
        "samples": found.samples,
        "batch_size": found.batch_size,
        "classes": [{"number": number, "name": classes[number]} for number in sorted(classes)],
        "notes": list(found.data_notes),
    }


def _model_json(scored: Scored, found: Evaluation) -> Json:
    entry: Json = {
        "path": scored.ref.path,
        "sha256": scored.ref.sha256,
        "role": scored.role,
        "metrics": dict(scored.metrics),
        "latency_ms": scored.latency.to_json() if scored.latency else None,
        **sizes(scored),
    }
    if scored.predictions is not None:
        entry["average"] = None if scored.predictions.reading.regression else found.average
        entry["output_name"] = scored.predictions.reading.output
    if scored.confusion is not None:
        entry["confusion_matrix"] = scored.confusion
    if scored.classes:
        entry["per_class"] = list(scored.classes)
    return entry


def _overfitting_json(found: Evaluation) -> Json | None:
    if not found.train_samples:
        return None
    roles = {s.role: {"train": dict(s.train), "gap": gaps(s, found.merits)} for s in found.models}
    return {"train_samples": found.train_samples, **roles}


def to_document(found: Evaluation) -> Document:
    """The result, the gates, and one table of quality, speed and size; every figure after that."""
    title = found.model.ref.path + (f" against {found.baseline.ref.path}" if found.baseline else "")
    sections: list[Section] = [_headline(found), *gate_sections(found.gates), _overview(found), *_verdicts(found)]
    sections += warnings(found.notes)
    sections += [*_quality(found), *quality_bars(found)]
    if found.fidelity is not None:
        sections.append(fidelity_table(found.fidelity))
    sections += [*_train_gap(found), *_latency(found), *latency_chart(found), _size(found)]
    sections += [*_per_class(found), *class_bars(found)]
    if found.stress is not None:
        sections += [_robustness(found.stress, found.baseline is not None), robustness_chart(found.stress)]
    sections += [detail_text(_sentence(note)) for note in _about_data(found)]
    return Document(f"Evaluation of {title}", sections)


SHOWN = 2
"""Number of metrics in the first table: those asked for, else the first ones."""
CLOSE = ("top1_agreement", "cosine", "snr_db")
UNSEEN = ("nonzero",)


def _headline(found: Evaluation) -> Text:
    """The quality, or the fidelity without labels, and the speed."""
    figures = list(found.model.metrics.items())[:1] or [(k, v) for k, v in _fidelity(found) if v is not None][:1]
    parts = [f"{title_of(name)} {number(value)}" for name, value in figures]
    if found.baseline is not None and figures and figures[0][0] in found.baseline.metrics:
        parts = [f"{part}, baseline {number(found.baseline.metrics[figures[0][0]])}" for part in parts]
    if found.speedup is not None:
        parts.append(found.speedup.words())
    elif found.model.latency is not None:
        parts.append(f"{cell_text(found.model.latency.median, 'ms')} a run")
    return headline("; ".join(parts) or f"{found.model.totals.params:,} parameters")


def title_of(figure: str) -> str:
    """Return a figure's name as people read it."""
    return {"snr_db": "SNR in dB"}.get(figure, figure.replace("_", " "))


def _fidelity(found: Evaluation) -> list[tuple[str, float | None]]:
    return [] if found.fidelity is None else list(found.fidelity.short().items())


def _overview(found: Evaluation) -> Table:
    """Quality, speed and size in one table; without labels, fidelity in place of quality."""
    rows, other = _quality_rows(found)[: len(found.asked) or SHOWN], "baseline" if found.baseline else "original"
    close = [(key, value) for key, value in _fidelity(found) if key in CLOSE and value is not None]
    empty: list[Cell] = [] if found.baseline is None else [None, None]
    rows += [[f"{title_of(key)} with the {other}", number(value), *empty]
             for key, value in (close[:1] if rows else close)]  # fmt: skip
    rows += [row for row in _size_rows(found) if row[0] not in UNSEEN]
    notes = [
        f"{how_many(found.samples, 'sample')} of {found.source}" if found.samples else "",
        at_sizes(found.model.totals),
    ]
    return Table("Figures", _columns(found, ""), rows, note="; ".join(filter(None, notes)), level=Level.NORMAL)


def _verdicts(found: Evaluation) -> Iterator[Section]:
    """Whether the differences in quality and speed are beyond chance."""
    for each in found.differences.values():
        worse = each.beyond_chance and each.difference < 0
        yield Text(_sentence(each.words()), "warning" if worse else "plain")
    if found.untested:
        names = " and ".join(found.untested)
        yield Text(f"Whether the difference in {names} is beyond chance is open: there are too few samples, or too many"
                   " to tell within a minute (--limit).")  # fmt: skip
    timed = [s for s in found.models if s.latency is not None]
    measured = found.speedup is None or not found.speedup.reason
    if measured and any(s.latency.disturbed for s in timed if s.latency is not None):
        yield Text("The machine was busy with other work: repeat this when it is idle.", "warning")
    if found.slower_because:
        yield Text(found.slower_because)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _about_data(found: Evaluation) -> Iterator[str]:
    yield from found.data_notes
    if found.classes is not None:
        names = [f"{number} {found.classes.names[number]}" for number in sorted(found.classes.names)]
        more = f", ... {len(names)} in all" if len(names) > 12 else ""
        yield f"classes: {', '.join(names[:12])}{more}"


def _columns(found: Evaluation, first: str) -> list[Column]:
    columns = [Column(first), Column("model", "number")]
    return columns if found.baseline is None else [*columns, Column("baseline", "number"), Column("change", "number")]


def _quality_rows(found: Evaluation) -> list[list[Cell]]:
    rows = []
    for name, value in found.model.metrics.items():
        row: list[Cell] = [name.replace("_", " "), number(value)]
        if found.baseline is not None:
            other = found.baseline.metrics.get(name)
            row += [number(other), changed(value, other)]
        rows.append(row)
    return rows


def _quality(found: Evaluation) -> Iterator[Section]:
    predictions = found.model.predictions
    if not found.model.metrics:
        return
    note = f"{how_many(found.samples, 'sample')} of {found.source}"
    if predictions is not None:
        scale = f", read as {predictions.reading.scale}" if predictions.reading.scale else ""
        note += f"; output {predictions.reading.output}{scale}"
        if not predictions.reading.regression:
            note += f"; precision, recall and F1 are {found.average} averages"
    yield Table("Quality", _columns(found, "metric"), _quality_rows(found), note=note)


def _train_gap(found: Evaluation) -> Iterator[Section]:
    if not found.train_samples:
        return
    rows: list[list[Cell]] = []
    for scored in found.models:
        for name, gap in gaps(scored, found.merits).items():
            figures = (scored.train[name], scored.metrics[name], gap)
            rows.append([scored.role, name.replace("_", " "), *map(number, figures)])
    columns = [Column("of"), Column("metric"), *(Column(c, "number") for c in ("train", "test", "gap"))]
    note = f"{found.train_samples:,} training samples; gap: how much better the training data is answered"
    yield Table("Over-fitting", columns, rows, note=note)
    yield detail_text(_gap_words(found))


def _gap_words(found: Evaluation) -> str:
    name = next((n for n in ("rmse", "accuracy") if n in found.model.metrics), next(iter(found.model.metrics)))
    own = gaps(found.model, found.merits)[name]
    text = f"The model's {name} is {abs(own):.4g} {'better' if own > 0 else 'worse'} on its training data"
    if found.baseline is None:
        return f"{text} than on the test data."
    other = gaps(found.baseline, found.merits)[name]
    trend = "narrower" if own < other else "wider" if own > other else "the same"
    return f"{text} than on the test data; the baseline's gap is {other:.4g}, so the model's is {trend}."


def _latency(found: Evaluation) -> Iterator[Section]:
    timed = [s for s in found.models if s.latency is not None]
    if not timed:
        return
    rows: list[list[Cell]] = []
    for scored in timed:
        figures = scored.latency.to_json() if scored.latency else {}
        rows.append([scored.role, *(figures[key] for key in ("median", "p10", "p90", "runs"))])
    columns = [Column("of"), *(Column(c, "ms") for c in ("median", "p10", "p90")), Column("runs", "count")]
    first = timed[0].latency
    assert first is not None
    threads = f"{first.how.threads} thread{'' if first.how.threads == 1 else 's'}"
    clock = "CPU time of a run" if first.clock == "cpu" else "time of a run"
    note = f"{clock}, batch {first.how.batch}, {threads}, {first.how.provider}"
    if len(timed) > 1:
        note += "; both models in turn, the difference is the median over pairs"
    yield Table("Latency", columns, rows, note=note)


def _size(found: Evaluation) -> Table:
    return Table("Size", _columns(found, "figure"), _size_rows(found))


def _size_rows(found: Evaluation) -> list[list[Cell]]:
    new, old = sizes(found.model), sizes(found.baseline) if found.baseline else {}
    rows: list[list[Cell]] = list(_time_rows(found))
    for name in SIZES:
        title, form = SIZE_TITLES[name]
        row: list[Cell] = [title, cell_text(new[name], form)]
        if found.baseline is not None:
            row += [cell_text(old[name], form), _ratio(name, new[name], old[name])]
        rows.append(row)
    return rows


def _time_rows(found: Evaluation) -> Iterator[list[Cell]]:
    """The time of a run, and the speedup with its interval."""
    if found.model.latency is None:
        return
    own: list[Cell] = ["latency", cell_text(found.model.latency.median, "ms")]
    if found.baseline is None or found.baseline.latency is None or found.speedup is None:
        yield own
        return
    gain = found.speedup
    told = (
        "not measurable now" if gain.reason else f"x {1 / gain.speedup:.3f} ({1 / gain.high:.3f} to {1 / gain.low:.3f})"
    )
    yield [*own, cell_text(found.baseline.latency.median, "ms"), told]


def _ratio(name: str, new: float | None, old: float | None) -> Cell:
    if name == "sparsity" or new is None or not old:
        return None
    return f"x {new / old:.3f}"


def _per_class(found: Evaluation) -> Iterator[Section]:
    for scored in found.models:
        if scored.classes:
            keys = ("precision", "recall", "f1")
            rows = [[str(c["class"]), *(number(c[k]) for k in keys), c["support"]] for c in scored.classes]
            columns = [Column("class"), *(Column(k, "number") for k in keys), Column("samples", "count")]
            yield Table(f"Classes of the {scored.role}", columns, rows)


def _robustness(stress: Stress, both: bool) -> Table:
    metric, change = stress.metric.replace("_", " "), stress.change
    roles = ["model", "baseline"] if both else ["model"]
    columns = [Column("corruption"), Column("severity", "number"), Column("of", drop=2)]
    for role in roles:
        columns += [Column(f"{role} {metric}", "number"), Column(f"{role} {change}", "number")]
    rows: list[list[Cell]] = [["none", None, None]]
    for role in roles:
        rows[0] += [number(stress.clean[role]), None]
    for row in stress.rows:
        cells: list[Cell] = [row.corruption.replace("_", " "), row.severity, row.unit]
        for role in roles:
            cells += [number(row.values[role]), number(row.loss[role])]
        rows.append(cells)
    what = "" if stress.metric in METRICS else " with the model's own outputs on clean inputs"
    return Table("Robustness", columns, rows, note=f"{metric}{what}, {stress.samples:,} samples")


def quality_bars(found: Evaluation) -> Iterator[Section]:
    """The metrics that are fractions, before and after."""
    names = [n for n, value in found.model.metrics.items() if found.merits[n].fraction and np.isfinite(value)]
    if names:
        series = [(s.role, [s.metrics.get(name) for name in names]) for s in reversed(found.models)]
        yield Bars("Quality side by side", [n.replace("_", " ") for n in names], series, form="percent")


def latency_chart(found: Evaluation) -> Iterator[Section]:
    """For each model, the share of runs up to each time."""
    timed = [(s.role, np.sort(s.latency.times)) for s in reversed(found.models) if s.latency is not None]
    if not timed:
        return
    series = [
        Series(role, times.tolist(), (np.arange(1, len(times) + 1) / len(times)).tolist(), draw="steps")
        for role, times in timed
    ]
    marks = [Mark("x", float(np.median(times)), f"{role} {np.median(times):.3g} ms") for role, times in timed]
    panel = Panel(series, marks=marks)
    note = "The share of runs that took so long or less; a mark is at each median."
    yield Chart("Latency of single runs", [panel], ChartAxis("time", "ms"), y=ChartAxis("runs", "percent"), note=note)


def robustness_chart(stress: Stress) -> Section:
    """Quality over severity, one panel per corruption; severity 0 is the clean data."""
    form: NumberForm = "percent" if stress.metric not in METRICS or METRICS[stress.metric].fraction else "number"
    panels = []
    for name in dict.fromkeys(row.corruption for row in stress.rows):
        rows = [row for row in stress.rows if row.corruption == name]
        x = [0.0, *(row.severity for row in rows)]
        series = [Series(role, x, [clean, *(row.values[role] for row in rows)])
                  for role, clean in reversed(list(stress.clean.items()))]  # fmt: skip
        panels.append(Panel(series, name.replace("_", " "), x=ChartAxis(f"severity, {rows[0].unit}")))
    y = ChartAxis(stress.metric.replace("_", " "), form)
    return Chart("Robustness curves", panels, ChartAxis("severity"), y=y, shared="y")


def class_bars(found: Evaluation) -> Iterator[Section]:
    """F1 of each class."""
    asked = [s for s in reversed(found.models) if s.classes]
    if asked:
        f1 = {s.role: {str(row["class"]): row["f1"] for row in s.classes} for s in asked}
        names = list(dict.fromkeys(name for values in f1.values() for name in values))
        series = [(role, [values.get(name) for name in names]) for role, values in f1.items()]
        yield Bars("F1 of each class", names, series, form="percent")


def number(value: float | None) -> Cell:
    """Four digits after the point for fractions, so that columns line up; four significant ones elsewhere."""
    if value is None:
        return None
    if not math.isfinite(value):
        return "infinite" if value > 0 else "not a number" if math.isnan(value) else "-infinite"
    return f"{value:.4f}" if 1e-3 <= abs(value) <= 1 or value == 0 else f"{value:.4g}"


def changed(new: float, old: float | None) -> Cell:
    """new - old with its sign."""
    if old is None:
        return None
    if not math.isfinite(new - old):
        return None
    return f"{new - old:+.4f}" if abs(new - old) >= 5e-5 or new == old else f"{new - old:+.1e}"


def fidelity_json(found: Fidelity | None) -> Json | None:
    """The contract's flat keys for the main output, and all outputs under `outputs`."""
    if found is None:
        return None
    return {
        **found.short(),
        "output": found.output,
        "reference": found.reference,
        "samples": found.samples,
        "inputs": found.inputs,
        "outputs": {name: dict(values) for name, values in found.outputs.items()},
    }


def fidelity_table(found: Fidelity, level: Level = Level.DETAIL) -> Table:
    """One row per output."""
    rows: list[list[Cell]] = [
        [name, *(number(values.get(key)) for key in MEASURES)] for name, values in found.outputs.items()
    ]
    columns = [Column("output", "name"), *(Column(title_of(key), "number") for key in MEASURES)]
    note = f"against {found.reference}, {how_many(found.samples, 'sample')} of {found.inputs}"
    return Table("Fidelity", columns, rows, note=note, level=level)


def gate_sections(gates: Sequence[GateResult]) -> list[Section]:
    """The gates as a table, and a sentence on them."""
    if not gates:
        return []
    rows: list[list[Cell]] = [
        [g.gate.expr, "not measurable" if g.reason else number(g.value), "passed" if g.passed else "FAILED"]
        for g in gates
    ]
    failed = [g for g in gates if not g.passed]
    table = Table("Gates", [Column("fails if"), Column("value", "number"), Column("result")], rows, level=Level.NORMAL)
    if failed:
        names = ", ".join(g.gate.expr for g in failed)
        return [headline(f"{len(failed)} of {len(gates)} gates failed: {names}", "warning"), table]
    return [headline(f"All {len(gates)} gates passed." if len(gates) > 1 else "The gate passed.", "good"), table]


def speed_ms(found: MeasuredSpeed | None) -> tuple[Json | None, Json | None]:
    """`latency_ms` before and after."""
    if found is None or found.pair is None:
        return None, None
    return found.pair.baseline.to_json(), found.pair.model.to_json()


def speed_delta(found: MeasuredSpeed | None) -> Json:
    """The key `delta` of a command that measures speed, as in `evaluate`; empty where it was not measured."""
    return {} if found is None else {"delta": {"latency": found.to_json()}}


def speed_rows(found: MeasuredSpeed | None) -> list[tuple[Cell, ...]]:
    """The row of `size_table`; `speed_sections` has the speedup and its interval."""
    if found is None or found.pair is None or found.pair.gain.reason:
        return []
    pair, gain = found.pair, found.pair.gain
    title = f"latency{' of int8' * found.int8}{', CPU time' * (pair.model.clock == 'cpu')}"
    times = [cell_text(each.median, "ms") for each in (pair.baseline, pair.model)]
    return [(title, *times, None if gain.within_noise else 1 / gain.speedup)]


def speed_sections(found: MeasuredSpeed | None, other: str = "original") -> list[Section]:
    """What was measured and how, and why the speedup is below the reduction of work. `other`: a name for the
    baseline."""
    if found is None:
        return []
    gain = None if found.pair is None else found.pair.gain
    tone: Tone = "warning" if gain is None or gain.reason or gain.high < 1 else "good" if gain.low > 1 else "dim"
    words = found.words(other)
    return [Text(f"{words[:1].upper()}{words[1:]}.", tone), *([Text(found.why)] if found.why else [])]
