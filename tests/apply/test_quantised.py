"""Zeros in quantised models: counted, written at the zero point, and proved in onnxruntime with its integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import prunecli
from prunecli.model import find_weights, load
from prunecli.model.floating import floats_of
from tests.model.quantised_models import CASES, IMAGE, Net, qdq

PRUNABLE = [case for case in CASES if case[3] and not case[0].startswith(("bias", "per input"))]
"""onnxruntime itself does not run scales per input channel where it fuses."""


def written(folder: Path, made: Callable[[], Net], shape: tuple[int, ...]) -> Path:
    onnx.save(made().model(shape), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize(("name", "made", "shape", "weight"), PRUNABLE, ids=[case[0] for case in PRUNABLE])
def test_the_smallest_become_zero(
    tmp_path: Path, name: str, made: Callable[[], Net], shape: tuple[int, ...], weight: str
) -> None:
    path = written(tmp_path, made, shape)
    found = prunecli.magnitude(path, sparsity=0.5, include=[weight], output=tmp_path / "z.onnx")
    before, after = (
        next(w for w in find_weights(floats_of(load(file))).all() if w.name == weight).array().astype(np.float64)
        for file in (path, tmp_path / "z.onnx")
    )
    gone = after == 0
    assert gone.sum() >= gone.size // 2
    assert np.array_equal(after[~gone], before[~gone])
    assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
    assert found.verification.kind == "exact"
    row = next(row for row in found.layers if row.weight == weight)
    assert row.nonzero == np.count_nonzero(after)
    assert row.dtype in ("int8", "uint8", "int4")
    assert "bit for bit" in found.verification.detail


def test_inspect_counts_the_numbers_that_integers_stand_for(tmp_path: Path) -> None:
    """Zero is where the zero point is; scales are no parameters."""
    net = qdq(np.uint8, 128)
    net.constants["w"] = np.where(np.arange(108).reshape(4, 3, 3, 3) % 4 == 0, 128, 7).astype(np.uint8)
    onnx.save(net.model(IMAGE), tmp_path / "m.onnx")
    found = prunecli.inspect(tmp_path / "m.onnx")
    row = next(layer for layer in found.layers if layer.weight == "w")
    assert (row.params, row.nonzero, row.dtype, row.bytes) == (108, 81, "uint8", 108)
    assert found.totals.params == 108 + 8
    assert found.totals.macs == 2 * 36 * (108 + 8)
    assert found.skipped == []
