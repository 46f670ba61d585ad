"""Totals: parameters, zeros, bytes."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from prunecli.inputs import numpy_dtype
from prunecli.model import SaveOptions, concrete_shapes, find_weights, load, save, sizes, totals
from tests.model.build import floats, linear, loaded, node, proto


def test_totals_of_a_small_model(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    result = totals(model, concrete_shapes(model))
    assert (result.params, result.nonzero, result.macs) == (16, 16, 24)
    assert result.file_bytes == (tmp_path / "m.onnx").stat().st_size
    assert not result.gzip_estimated
    assert totals(model).macs is None


def test_what_counts_as_a_parameter(tmp_path: Path) -> None:
    """Floating-point tensors, initializers or in Constant nodes, weights or tables; not indices, not single numbers."""
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(floats(3, 4))),
        node("Constant", [], ["s"], value_float=2.0),
        node("MatMul", ["x", "w"], ["h"]),
        node("Mul", ["h", "s"], ["i"]),
        node("Mul", ["i", "t"], ["j"]),
        node("Constant", [], ["table"], value=numpy_helper.from_array(floats(2, 4))),
        node("Add", ["j", "table"], ["k"]),
        node("Mul", ["k", "u"], ["l"]),
        node("Gather", ["l", "index"], ["y"]),
    ]
    weights = {
        "u": np.array(3.0, np.float32),
        "t": np.array([0.0, -0.0, np.nan, 1.0], np.float32),
        "index": np.array([0]),
    }
    result = totals(loaded(proto(nodes, weights=weights), tmp_path))
    assert (result.params, result.nonzero) == (24, 22)


def test_zeros_are_counted_after_replacement(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    find_weights(model).prunable[0].replace(lambda a: np.where(a > 0, a, 0).astype(a.dtype))
    assert totals(model).nonzero == 4 + int((floats(3, 4) > 0).sum())


def test_bytes_include_external_data(tmp_path: Path) -> None:
    model = proto([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 64)}, weights={"w": floats(64, 64)})
    save(loaded(model, tmp_path), tmp_path / "out.onnx", SaveOptions("always"))
    (tmp_path / "m.onnx").unlink()
    assert totals(load(tmp_path / "out.onnx")).file_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_small_files_are_really_compressed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(np.where(floats(1000) > 0, floats(1000), 0).tobytes())
    assert sizes.gzip_bytes(path) == len(gzip.compress(path.read_bytes(), 6, mtime=0))


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_large_files_are_estimated(zeros: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a homogeneous file is sampled: within 2 %, most of it gzip's warming up in each sample."""
    monkeypatch.setattr(sizes, "EXACT_UP_TO", 1 << 20)
    monkeypatch.setattr(sizes, "SAMPLE_BYTES", 1 << 16)
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1 << 22, dtype=np.float32)
    values[rng.random(values.size) < zeros] = 0
    path = tmp_path / "data"
    values.tofile(path)
    exact = len(gzip.compress(values.tobytes(), 6))
    assert abs(sizes.gzip_bytes(path) - exact) < 0.02 * exact


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float32", "float64"])
def test_zeros_and_odd_values_of_every_width(dtype: str) -> None:
    """NaN is not zero, and says nothing on the way."""
    values = np.array([0.0, -0.0, 1.0, np.nan]).astype(numpy_dtype(dtype))
    assert sizes.count_nonzero(ir.tensor(values)) == 2
    assert not sizes.is_finite(ir.tensor(values))
    assert sizes.is_finite(ir.tensor(values[:3]))
