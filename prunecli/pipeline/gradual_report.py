"""How training after pruning reads, in the reports of every pruning command."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prunecli.pipeline.charts_training import training_charts
from prunecli.report.document import Column, Section, Table, Text
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.pipeline.gradual import Retrained


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
