"""How a training run reads: as JSON, and as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prunecli.pipeline.charts_training import training_charts
from prunecli.pipeline.pack_report import packed_json, packed_sections
from prunecli.report.contract import grown, report_json
from prunecli.report.document import Column, Document, Section, Table, Text
from prunecli.types import Json, Report

if TYPE_CHECKING:
    from prunecli.pipeline.finetune import FinetuneResult


def to_json(found: FinetuneResult) -> Json:
    """The contract's keys, with `epochs`, `score` and `recipe`."""
    after = found.after
    report = Report(
        command="finetune",
        model=found.model,
        output=found.output,
        before=found.before,
        after=after,
        sparsity=1 - after.nonzero / after.params if after.params else 0.0,
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
