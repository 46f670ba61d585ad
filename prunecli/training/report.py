"""JSON and tables of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prunecli.evaluation.report import speed_delta, speed_ms, speed_rows, speed_sections
from prunecli.packing.report import packed_json, packed_sections
from prunecli.report.contract import grown, report_json, totals_json
from prunecli.report.document import (
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
    Tone,
)
from prunecli.report.sections import headline, proof_text, size_table, warnings, written
from prunecli.shrinking.report import shrunk_json, shrunk_sections
from prunecli.training.trainer import Epoch
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.training.finetune import FinetuneResult
    from prunecli.training.gradual import Retrained, Round


HELD_OUT_NONE = "No data was held out, so the last weights were kept and nothing says how good they are."


def to_json(found: FinetuneResult) -> Json:
    """The contract's keys, with `epochs`, `score` and `recipe`."""
    extra: Json = {
        **_asked(found),
        "best_epoch": found.best_epoch,
        "score": {"name": found.score_name, **_score(found)},
        "epochs": [asdict(epoch) for epoch in found.epochs],
        **packed_json(found.packed),
        **shrunk_json(found.shrunk),
        **_speed_json(found),
    }
    return report_json(
        found, "finetune", found.layers, skipped=found.skipped, sparsity=found.after.sparsity, extra=extra,
        latency_ms=(None, speed_ms(found.speed)[1]),
    )  # fmt: skip


def _asked(found: FinetuneResult) -> Json:
    return {
        "recipe": found.recipe,
        "samples": found.samples,
        "validation_samples": found.validation_samples,
        "trained_params": found.trained,
    }


def _score(found: FinetuneResult) -> Json:
    return {"before": found.score_before, "after": found.score_after}


def _speed_json(found: FinetuneResult) -> Json:
    """`teacher`, with the sizes and the latency of the model that `delta` compares with; nothing without one."""
    if found.teacher is None:
        return {}
    before, _ = speed_ms(found.speed)
    times = {} if before is None else {"latency_ms": before}
    return {"teacher": totals_json(found.teacher) | times, **speed_delta(found.speed)}


def to_document(found: FinetuneResult) -> Document:
    """The epochs, the gain, and what is unchanged."""
    rows = [
        (str(epoch.number), *_epoch(epoch), epoch.samples_per_second, _kept(epoch, found)) for epoch in found.epochs
    ]
    columns = (Column("epoch"), *_epoch_columns(found), Column("samples/s", "number", 1), Column(""))
    sections: list[Section] = [_gain(found)]
    if zeros := found.after.params - found.after.nonzero:
        kept = "every pruned weight stayed zero"
        sections.append(Text(f"{zeros:,} of {found.after.params:,} parameters are zero; {kept}."))
    sections += [Text(_note(found)), *warnings(grown(found.before, found.after))]
    sections.append(Table("Training", columns, rows))
    sections += training_charts([found.epochs], found.score_name, [found.score_before])
    if found.teacher is not None:
        sections.append(size_table(found.teacher, found.after, speed_rows(found.speed), columns=("teacher", "model")))
        sections += speed_sections(found.speed, "teacher")
    sections += [*packed_sections(found.packed), *shrunk_sections(found.shrunk), *warnings(found.notes)]
    proof = found.verification
    if proof.kind == "exact":
        sections.append(proof_text(proof, f"largest difference {proof.max_abs_error:.2g}", exact=("verified", "good")))
    return Document(f"{found.model.path}: finetune", [*sections, *written(found)])


def _epoch(epoch: Epoch) -> tuple[Cell, ...]:
    return epoch.loss, epoch.score, epoch.rate, epoch.seconds


def _epoch_columns(found: FinetuneResult) -> tuple[Column, ...]:
    return (Column("loss", "number"), Column(found.score_name, "number"), Column("rate", "number", 2),
            Column("seconds", "number", 3))  # fmt: skip


def _kept(epoch: Epoch, found: FinetuneResult) -> str:
    return "kept" if epoch.number == found.best_epoch else ""


def _note(found: FinetuneResult) -> str:
    held = f"{found.validation_samples:,} held out to choose the best" if found.validation_samples else "none held out"
    return f"{found.trained:,} weights trained on {found.samples:,} samples, {held}"


def _gain(found: FinetuneResult) -> Text:
    if found.score_before is None or found.score_after is None:
        return headline(HELD_OUT_NONE, "warning")
    body = f"{found.score_name} on held-out data: {found.score_before:.4f} before, {found.score_after:.4f} after"
    if found.best_epoch == 0:
        kept = "nothing was written" if found.output is None else "its weights were kept"
        return headline(f"{body}; no epoch improved on the start: {kept}", "warning")
    if found.score_after == found.score_before:
        return headline(f"{body}, given more probability", "dim")
    return headline(body, _gain_tone(found.score_before, found.score_after, found))


def _gain_tone(before: float, after: float, found: FinetuneResult) -> Tone:
    """Good news only where the gain exceeds the standard error of what was measured, where that is known."""
    if after <= before:
        return "warning"
    count = found.validation_samples if found.score_name == "accuracy" else 0
    noise = math.sqrt(after * (1 - after) / count) if count and 0 <= after <= 1 else 0.0
    return "good" if after - before > noise else "dim"


def training_json(found: Retrained | None) -> Json:
    """`{"training": ...}`, empty where nothing was trained. `share`: of what was asked, cut by the end of the step."""
    if found is None:
        return {}
    last = found.last
    return {
        "training": {
            "teacher": found.teacher,
            **_asked(last),
            "recipe": last.recipe | {"teacher": found.teacher},
            "score": {"name": last.score_name, **_score(last)},
            "steps": [_step(number, one) for number, one in enumerate(found.rounds, 1)],
            "verification": asdict(last.verification),
            "notes": list(last.course),
        }
    }


def _step(number: int, one: Round[Any]) -> Json:
    trained = one.trained
    return {
        "step": number,
        "share": one.share,
        "params": trained.before.params,
        "nonzero": trained.before.nonzero,
        "macs": trained.before.macs,
        "best_epoch": trained.best_epoch,
        "score": _score(trained),
        "epochs": [asdict(epoch) for epoch in trained.epochs],
        "proof": asdict(one.cut.verification),
    }


def training_sections(found: Retrained | None) -> list[Section]:
    """A row per epoch, the gain, and the options of the training."""
    if found is None:
        return []
    last, runs = found.last, [one.trained for one in found.rounds]
    rows = [
        (number, run.before.nonzero, epoch.number, *_epoch(epoch), _kept(epoch, run))
        for number, run in enumerate(runs, 1)
        for epoch in run.epochs
    ]
    columns = (Column("step", "count"), Column("not zero", "count"), Column("epoch", "count"), *_epoch_columns(last),
               Column(""))  # fmt: skip
    table = Table("Training", columns, rows, note=_note(last) + (f", teacher {found.teacher}" if found.teacher else ""))
    curves = training_charts([run.epochs for run in runs], last.score_name, [run.score_before for run in runs])
    return [table, *curves, *_gains(last, found.distilled), *warnings(last.course)]


def _gains(last: FinetuneResult, distilled: bool) -> list[Section]:
    kept = Text("What was cut stayed cut: the proof is of each cut before training, sizes are of the trained model.")
    if last.score_before is None or last.score_after is None:
        return [Text(HELD_OUT_NONE, "warning"), kept]
    body = f"{last.score_name} on held-out data: {last.score_before:.4f} after the last cut, {last.score_after:.4f}"
    if last.best_epoch == 0:
        stay = ", and the weights stay as the cut left them" if distilled else ""
        return [Text(f"{body} trained: no epoch of the last step improved it{stay}", "warning"), kept]
    return [Text(f"{body} after training", _gain_tone(last.score_before, last.score_after, last)), kept]


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
        first = Series(f"{score} before training", [x for x, _ in known], [y for _, y in known], draw="points")
        panels.append(Panel([series, first], "", marks, y=ChartAxis(f"{score}, held out")))
    yield Chart("Training curves", panels, ChartAxis("epoch", "count"), y=ChartAxis("loss"), shared="x")
