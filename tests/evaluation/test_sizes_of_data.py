"""Sizes of dynamic dimensions are those of the data, where nobody states them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import prunecli

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g ({inputs}) => (float[N, 8, L] y)
<float[8, 4, 3] w = {{{weights}}}>
{{ y = Conv <kernel_shape = [3], pads = [1, 1]> (x, w) }}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    weights = ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).normal(size=96))
    text = MODEL.format(inputs="float[N, 4, L] x", weights=weights)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).normal(size=(12, 4, 20)).astype(np.float32))
    return tmp_path / "m.onnx", tmp_path / "d.npz"


CASES: list[tuple[dict[str, Any], bool, int]] = [
    # options, whether data are given, the length at which the work is counted
    ({}, False, 16),
    ({}, True, 20),
    ({"dim": ("L=50",)}, True, 50),
    ({"input_shape": ("x:1,4,30",)}, True, 30),
]


@pytest.mark.parametrize(("options", "with_data", "length"), CASES)
def test_work_is_counted_at(options: dict[str, Any], with_data: bool, length: int, files: tuple[Path, Path]) -> None:
    model, data = files
    if with_data:
        found = prunecli.oneshot(model, data=data, method="wanda", sparsity=0.5, dry_run=True, **options)
    else:
        found = prunecli.magnitude(model, sparsity=0.5, dry_run=True, **options)
    assert found.before.macs == 8 * 4 * 3 * length
    assert any(size.startswith("L of x") for size in found.before.assumed) == (length == 16)
    if with_data:
        evaluated = prunecli.evaluate(model, data=data, latency=False).models[0].totals
        assert evaluated.macs == 8 * 4 * 3 * 20


# what runs on the data with the options -> the MACs that it counts, of 8 * 4 * 3 per place
COMMANDS = {
    "sensitivity": lambda model, data, out: prunecli.sensitivity(model, data=data, jobs=1, levels=(0.5,), metric="cosine").rows[0].layer.macs,
    "adaptive": lambda model, data, out: prunecli.adaptive(model, data=data, jobs=1, max_drop=0.9, output=out, rounds=1, metric="cosine").result.before.macs,
    "finetune": lambda model, data, out: prunecli.finetune(model, data=data, teacher=model, epochs=1, output=out, timing=False).before.macs,
    "shrink": lambda model, data, out: prunecli.shrink(model, data=data, tolerance=0, output=out).before.macs,
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_counts_at_the_sizes_of_its_data(command: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    assert COMMANDS[command](*files, tmp_path / "out.onnx") == 8 * 4 * 3 * 20
