"""Parts of reports that `evaluate` and `compare` share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunecli.evaluation.fidelity import MEASURES, Fidelity
from prunecli.evaluation.gates import GateResult
from prunecli.report.document import Cell, Column, Section, Table, Text
from prunecli.types import Json


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
    return f"{new - old:+.4f}" if abs(new - old) >= 5e-5 or new == old else f"{new - old:+.1e}"


def fidelity_json(found: Fidelity | None) -> Json | None:
    """The contract's flat keys for the main output, and all outputs under `outputs`."""
    if found is None:
        return None
    return {
        **found.short(),
        "output": found.main,
        "reference": found.reference,
        "samples": found.samples,
        "inputs": found.inputs,
        "outputs": {name: dict(values) for name, values in found.outputs.items()},
    }


def fidelity_table(found: Fidelity) -> Table:
    """One row per output."""
    rows: list[list[Cell]] = [
        [name, *(number(values.get(key)) for key in MEASURES)] for name, values in found.outputs.items()
    ]
    columns = [Column("output"), *(Column(key.replace("_", " "), "number") for key in MEASURES)]
    note = f"against {found.reference}, {found.samples:,} samples of {found.inputs}"
    return Table("Fidelity", columns, rows, note)


def gate_sections(gates: Sequence[GateResult]) -> list[Section]:
    """The gates as a table, and a sentence on them."""
    if not gates:
        return []
    rows: list[list[Cell]] = [
        [g.gate.expr, "not measurable" if g.reason else number(g.value), "passed" if g.passed else "FAILED"]
        for g in gates
    ]
    failed = sum(not g.passed for g in gates)
    table = Table("Gates", [Column("fails if"), Column("value", "number"), Column("result")], rows)
    if failed:
        return [table, Text(f"{failed} of {len(gates)} gates failed.", "warning")]
    return [table, Text(f"All {len(gates)} gates passed." if len(gates) > 1 else "The gate passed.", "good")]
