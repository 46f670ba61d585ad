"""The JSON of a pruning command: the contract's keys, in the contract's order."""

from __future__ import annotations

from dataclasses import asdict

from prunecli._version import __version__
from prunecli.types import Json, LayerRow, Report

SCHEMA = "prunecli/1"


def envelope(command: str) -> Json:
    """The keys that every command's JSON starts with."""
    return {"schema": SCHEMA, "command": command, "version": __version__}


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
        "notes": list(report.notes),
        **report.extra,
    }


def _layer(row: LayerRow) -> Json:
    own = {key: value for key, value in vars(row).items() if key != "extra"}
    return {**own, **row.extra}
