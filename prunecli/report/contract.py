"""The JSON of a pruning command: the contract's keys, in the contract's order."""

from __future__ import annotations

from dataclasses import asdict

from prunecli._version import __version__
from prunecli.types import Json, LayerRow, Report, Totals

SCHEMA = "prunecli/1"
RECORD = 2048, 0.01
"""Bytes, and a share of the file, that what is recorded of how a model was made may take."""


def envelope(command: str) -> Json:
    """The keys that every command's JSON starts with."""
    return {"schema": SCHEMA, "command": command, "version": __version__}


def grown(before: Totals, after: Totals) -> list[str]:
    """That a result is larger than its input, by more than the record of how it was made."""
    old, new = before.file_bytes, after.file_bytes
    if new <= old + max(RECORD[0], RECORD[1] * old):
        return []
    return [f"the result is larger than the input: {old:,} bytes became {new:,}"]


def report_json(report: Report) -> Json:
    """A Report as the contract has it; `extra` follows at the top level."""
    return {
        **envelope(report.command),
        "seconds": round(report.seconds, 3),
        "model": asdict(report.model),
        "output": None if report.output is None else asdict(report.output),
        "before": asdict(report.before),
        "after": asdict(report.after),
        "sparsity": report.sparsity,
        "layers": [_layer(layer) for layer in report.layers],
        "skipped": [asdict(item) for item in report.skipped],
        "verification": asdict(report.verification),
        "notes": [*grown(report.before, report.after), *report.notes],
        **report.extra,
    }


def _layer(row: LayerRow) -> Json:
    own = {key: value for key, value in vars(row).items() if key != "extra"}
    return {**own, **row.extra}
