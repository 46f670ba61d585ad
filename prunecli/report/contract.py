"""The JSON of a pruning command: the contract's keys, in the contract's order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from prunecli._version import __version__
from prunecli.report.result import ModelResult
from prunecli.types import Json, LayerRow, Skipped, Totals

SCHEMA = "prunecli/1"
RECORD = 2048, 0.01
"""Bytes, and share of the file, that the record of how a model was made may take."""


def envelope(command: str, seconds: float) -> Json:
    """The keys that every command's JSON starts with."""
    return {"schema": SCHEMA, "command": command, "version": __version__, "seconds": round(seconds, 3)}


def grown(before: Totals, after: Totals) -> list[str]:
    """Return a note if the result is larger than its input by more than the record of how it was made, else nothing."""
    old, new = before.file_bytes, after.file_bytes
    if new <= old + max(RECORD[0], RECORD[1] * old):
        return []
    return [f"the result is larger than the input: {old:,} bytes became {new:,}"]


def report_json(
    found: ModelResult, command: str, layers: Iterable[LayerRow], skipped: Iterable[Skipped], *, sparsity: float,
    extra: Json, latency_ms: tuple[Json | None, Json | None] = (None, None),
) -> Json:  # fmt: skip
    """A result as the contract has it; `extra` follows at the top level. `latency_ms`: before and after."""
    times = [{} if each is None else {"latency_ms": each} for each in latency_ms]
    return {
        **envelope(command, found.seconds),
        "model": asdict(found.model),
        "output": None if found.output is None else asdict(found.output),
        "before": totals_json(found.before) | times[0],
        "after": totals_json(found.after) | times[1],
        "sparsity": sparsity,
        "layers": [_layer(layer) for layer in layers],
        "skipped": [asdict(item) for item in skipped],
        "verification": asdict(found.verification),
        "notes": [*grown(found.before, found.after), *found.notes],
        **extra,
    }


def totals_json(found: Totals) -> Json:
    """The sizes of a model; `assumed` where sizes were."""
    return {key: value for key, value in asdict(found).items() if key != "assumed" or value}


def _layer(row: LayerRow) -> Json:
    own = {key: value for key, value in vars(row).items() if key != "extra"}
    return {**own, **row.extra}
