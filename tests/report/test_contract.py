"""The JSON of a result has the contract's keys, whatever the command."""

from __future__ import annotations

import pytest

from prunecli.report.contract import report_json
from prunecli.report.result import ModelResult
from prunecli.types import FileRef, Json, LayerRow, Skipped, Totals, Verification

KEYS = {"schema", "command", "version", "seconds", "model", "output", "before", "after", "sparsity", "layers"}
KEYS |= {"skipped", "verification"}
TOTALS = {"params", "nonzero", "macs", "file_bytes", "gzip_bytes"}
LAYER = {"name", "op", "weight", "shape_before", "shape_after", "params_before", "params_after", "nonzero"}
LAYER |= {"sparsity"}


def report(output: FileRef | None) -> Json:
    layer = LayerRow("conv", "Conv", "w", (2, 2), (2, 1), 4, 2, 1, 0.5, {"macs": 7})
    found = ModelResult(
        model=FileRef("a.onnx", "00"),
        output=output,
        before=Totals(4, 4, None, 10, 9),
        after=Totals(4, 2, 12, 10, 5),
        verification=Verification("exact", 0.0, 0.0, 4),
        seconds=1.23456,
        notes=["note"],
    )
    extra = {"recipe": {"sparsity": 0.5}}
    return report_json(found, "magnitude", [layer], [Skipped("b", "a bias")], sparsity=0.5, extra=extra)


@pytest.mark.parametrize("output", [None, FileRef("b.onnx", "11")])
def test_contract_keys(output: FileRef | None) -> None:
    found = report(output)
    assert set(found) >= KEYS
    assert found["schema"] == "prunecli/1"
    assert found["output"] == (None if output is None else {"path": "b.onnx", "sha256": "11"})
    assert set(found["before"]) >= TOTALS <= set(found["after"])
    assert set(found["layers"][0]) >= LAYER
    assert set(found["verification"]) >= {"kind", "max_abs_error", "max_rel_error", "samples"}
    assert found["skipped"] == [{"name": "b", "reason": "a bias"}]


def test_extras_are_merged_where_they_belong() -> None:
    found = report(None)
    assert found["recipe"] == {"sparsity": 0.5}
    assert found["layers"][0]["macs"] == 7
    assert "extra" not in found["layers"][0]
    assert found["seconds"] == 1.235
