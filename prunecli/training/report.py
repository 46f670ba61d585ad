"""How a training run reads: as JSON, and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING

from prunecli.packing.report import packed_json, packed_sections
from prunecli.report.contract import grown, report_json
from prunecli.report.document import Chart, ChartAxis, Column, Document, Mark, Panel, Section, Series, Table, Text
from prunecli.training.trainer import Epoch
from prunecli.types import Json, Report

if TYPE_CHECKING:
    from prunecli.training.finetune import FinetuneResult
    from prunecli.training.gradual import Retrained


def to_json(found: FinetuneResult) -> Json:
    """The contract's keys, with `epochs`, `score` and `recipe`."""
    after = found.after
    report = Report(
        command="finetune",
        model=found.model,
        output=found.output,
        before=found.before,
        after=after,
        sparsity=after.sparsity,
        layers=found.layers,
        skipped=found.skipped,
        verification=found.verification,
        seconds=found.seconds,
        notes=found.notes,
        extra={
            "recipe": found.recipe,
            "samples": found.samples,
            "validation_samples": found.validation_samples,
            "trained_params": found.trained,
            "best_epoch": found.best_epoch,
            "score": {"name": found.score_name, "before": found.score_before, "after": found.score_after},
            "epochs": [asdict(epoch) for epoch in found.epochs],
            **packed_json(found.packed),
        },
    )
    return report_json(report)


def to_document(found: FinetuneResult) -> Document:
    """The epochs, what was gained, what stayed."""
    rows = [
        (
            str(e.number),
            e.loss,
            e.score,
            e.rate,
            e.seconds,
            e.samples_per_second,
            "kept" if e.number == found.best_epoch else "",
        )
        for e in found.epochs
    ]
    columns = (
        Column("epoch"), Column("loss", "number"), Column(found.score_name, "number"), Column("rate", "number", 2),
        Column("seconds", "number", 3), Column("samples/s", "number", 1), Column(""),
    )  # fmt: skip
    sections: list[Section] = [Text(note, "warning") for note in grown(found.before, found.after)]
    sections.append(Table("Training", columns, rows, _note(found)))
    sections += training_charts([found.epochs], found.score_name, [found.score_before])
    sections.append(_gain(found))
    zeros = found.after.params - found.after.nonzero
    sections.append(Text(f"{zeros:,} of {found.after.params:,} parameters are zero; every pruned weight stayed zero."))
    sections += packed_sections(found.packed)
    sections += [Text(note, "warning") for note in found.notes]
    proof = found.verification
    if proof.kind == "exact":
        sections.append(Text(f"verified: {proof.detail} (largest difference {proof.max_abs_error:.2g})", "good"))
    if found.output is not None:
        sections.append(Text(f"written: {found.output.path}", "good"))
    return Document(f"{found.model.path}: finetune", sections)


def _note(found: FinetuneResult) -> str:
    held = f"{found.validation_samples:,} held out to choose the best" if found.validation_samples else "none held out"
    return f"{found.trained:,} weights trained on {found.samples:,} samples, {held}"


def _gain(found: FinetuneResult) -> Text:
    if found.score_before is None or found.score_after is None:
        return Text(
            "No data was held out, so the last weights were kept and nothing says how good they are.", "warning"
        )
    body = f"{found.score_name} on held-out data: {found.score_before:.4f} before, {found.score_after:.4f} after"
    if found.best_epoch == 0:
        kept = "nothing was written" if found.output is None else "its weights were kept"
        return Text(f"{body}; no epoch improved on the start: {kept}", "warning")
    return Text(body, "good" if found.score_after > found.score_before else "warning")


def training_json(found: Retrained | None) -> Json:
    """`{"training": ...}`, empty where nothing was trained. `share`: of what was asked, cut by the end of the step."""
    if found is None:
        return {}
    last = found.last
    steps = [
        {
            "step": number,
            "share": one.share,
            "params": one.trained.before.params,
            "nonzero": one.trained.before.nonzero,
            "macs": one.trained.before.macs,
            "best_epoch": one.trained.best_epoch,
            "score": {"before": one.trained.score_before, "after": one.trained.score_after},
            "epochs": [asdict(epoch) for epoch in one.trained.epochs],
            "proof": asdict(one.cut.verification),
        }
        for number, one in enumerate(found.rounds, 1)
    ]
    return {
        "training": {
            "teacher": found.teacher,
            "recipe": last.recipe | {"teacher": found.teacher},
            "samples": last.samples,
            "validation_samples": last.validation_samples,
            "trained_params": last.trained,
            "score": {"name": last.score_name, "before": last.score_before, "after": last.score_after},
            "steps": steps,
            "verification": asdict(last.verification),
        }
    }


def training_sections(found: Retrained | None) -> list[Section]:
    """A row per epoch, what was gained, and what training was told."""
    if found is None:
        return []
    last = found.last
    rows = [
        (number, one.trained.before.nonzero, epoch.number, epoch.loss, epoch.score, epoch.rate, epoch.seconds,
         "kept" if epoch.number == one.trained.best_epoch else "")
        for number, one in enumerate(found.rounds, 1)
        for epoch in one.trained.epochs
    ]  # fmt: skip
    columns = (
        Column("step", "count"), Column("not zero", "count"), Column("epoch", "count"), Column("loss", "number"),
        Column(last.score_name, "number"), Column("rate", "number", 3), Column("seconds", "number", 2), Column(""),
    )  # fmt: skip
    taught = f", teacher {found.teacher}" if found.teacher else ""
    note = (
        f"{last.trained:,} weights trained on {last.samples:,} samples, {last.validation_samples:,} held out to choose"
        f" the best{taught}"
    )
    runs = [one.trained for one in found.rounds]
    curves = training_charts([run.epochs for run in runs], last.score_name, [run.score_before for run in runs])
    return [Table("Training", columns, rows, note), *curves, *_gains(found)]


def _gains(found: Retrained) -> list[Section]:
    last = found.last
    kept = Text("What was cut stayed cut: the proof is of each cut before training, sizes are of the trained model.")
    if last.score_before is None or last.score_after is None:
        told = "No data was held out, so the last weights were kept and nothing says how good they are."
        return [Text(told, "warning"), kept]
    body = f"{last.score_name} on held-out data: {last.score_before:.4f} after the last cut, {last.score_after:.4f}"
    if last.best_epoch == 0:
        return [Text(f"{body} trained: no epoch of the last step improved it", "warning"), kept]
    return [Text(f"{body} after training", "good"), kept]


def training_charts(runs: Sequence[Sequence[Epoch]], score: str, before: Sequence[float | None]) -> Iterator[Section]:
    """Loss and score over the epochs.

    Args:
        runs: the epochs of each run; a mark stands where each but the first begins.
        score: the name of the score.
        before: each run's score before its first epoch; it is that run's point before its first epoch.
    """
    epochs = [epoch for run in runs for epoch in run]
    if not epochs:
        return
    starts = [0, *accumulate(len(run) for run in runs)][: len(runs)]
    marks = [Mark("x", start + 0.5, f"cut {number}") for number, start in enumerate(starts[1:], 2)]
    over = list(range(1, len(epochs) + 1))
    panels = [Panel([Series("loss", over, [epoch.loss for epoch in epochs])], "", marks, y=ChartAxis("loss"))]
    if any(epoch.score is not None for epoch in epochs):
        series = Series(score, over, [epoch.score for epoch in epochs])
        known = [(start + 0.5, value) for start, value in zip(starts, before, strict=True) if value is not None]
        first = Series(f"{score} before training", [x for x, _ in known], [y for _, y in known], "points")
        panels.append(Panel([series, first], "", marks, y=ChartAxis(f"{score}, held out")))
    yield Chart("Training curves", panels, ChartAxis("epoch", "count"), ChartAxis("loss"), shared="x", detail=True)
