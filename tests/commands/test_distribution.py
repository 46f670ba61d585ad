"""Thresholds that are told to the user are exact: numpy counts the same weights below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.inspection.distribution import FRACTIONS, PICTURE_BINS, distribution, pattern_fit
from prunecli.inspection.options import parse_nm
from prunecli.model import find_weights, load

SAMPLES = Path(__file__).parents[2] / "sample_models"


def gemm_chain(folder: Path, arrays: list[Array]) -> Path:
    """A model of one MatMul per array, each (inputs, outputs); the outputs need not fit one another."""
    nodes, inits, inputs, outputs = [], [], [], []
    for i, array in enumerate(arrays):
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(onnx.helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], name=f"layer{i}"))
        inits.append(onnx.numpy_helper.from_array(array, f"w{i}"))
        inputs.append(onnx.helper.make_tensor_value_info(f"x{i}", kind, [1, array.shape[0]]))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{i}", kind, [1, array.shape[1]]))
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, inits)
    opset = onnx.helper.make_opsetid("", 17)
    path = folder / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def measured(path: Path) -> tuple[Array, Any]:
    weights = find_weights(load(path)).prunable
    flat = np.concatenate([np.abs(w.array()).ravel() for w in weights])
    return flat, distribution(weights)


RNG = np.random.default_rng(0)
# name -> arrays whose distribution is awkward in its own way
ARRAYS = {
    "normal": [
        RNG.standard_normal((64, 32)).astype(np.float32),
        RNG.standard_normal((16, 8)).astype(np.float32),
    ],
    "tiny and huge": [(RNG.standard_normal((64, 32)) * 10.0 ** RNG.integers(-30, 30, (64, 32))).astype(np.float32)],
    "mostly zero": [np.where(RNG.random((64, 32)) < 0.8, 0, 1).astype(np.float32)],
    "few values": [RNG.integers(-2, 3, (40, 40)).astype(np.float32)],
    "subnormal": [(RNG.random((20, 20)) * 1e-40).astype(np.float32)],
    "float16": [RNG.standard_normal((64, 64)).astype(np.float16)],
    "float64": [RNG.standard_normal((64, 64))],
    "two values": [np.array([[1.0, 2.0]], np.float32)],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_counts_below_thresholds_are_numpys(name: str, tmp_path: Path) -> None:
    flat, found = measured(gemm_chain(tmp_path, ARRAYS[name]))
    for threshold in [*found.hints, *found.steps]:
        below = int(np.count_nonzero((flat < flat.dtype.type(threshold.value)) | (flat == 0)))
        assert (threshold.below, threshold.sparsity) == (below, below / flat.size)
    # a threshold is rounded to float16 before it is compared, as numpy does, and may lose its own tie
    lost = 0.001 if flat.dtype == np.float16 else 0
    for hint in found.hints:
        assert hint.sparsity >= hint.wanted - lost
    if found.steps:
        assert found.steps[-1].sparsity >= 1 - lost


def test_hints_are_close_from_above() -> None:
    flat, found = measured(SAMPLES / "digits-cnn.onnx")
    for hint in found.hints:
        exact = np.quantile(flat, hint.wanted)
        # a cell of the fine histogram is 1/512 wide, the fourth digit adds at most 1/1000
        assert exact <= hint.value <= exact * (1 + 1 / 512 + 1 / 1000 + 1e-4)
        assert hint.sparsity < hint.wanted + 0.005


@pytest.mark.parametrize("name", ["normal", "few values", "float16"])
def test_spread_of_each_weight(name: str, tmp_path: Path) -> None:
    weights = find_weights(load(gemm_chain(tmp_path, ARRAYS[name]))).prunable
    found = distribution(weights)
    for weight in weights:
        flat, spread = np.abs(weight.array()).ravel().astype(np.float64), found.spreads[weight.name]
        assert sum(spread.picture) == flat.size
        assert len(spread.picture) == PICTURE_BINS
        assert flat.max() <= spread.largest <= flat.max() * (1 + 1 / 512)
        for fraction, quantile in zip(FRACTIONS, spread.quantiles, strict=True):
            assert np.count_nonzero(flat <= quantile) >= fraction * flat.size


def test_all_zero_weights(tmp_path: Path) -> None:
    _, found = measured(gemm_chain(tmp_path, [np.zeros((8, 8), np.float32)]))
    assert [(hint.value, hint.sparsity) for hint in found.hints] == [(0, 1)] * 3
    assert found.steps == []


def test_no_weights() -> None:
    assert distribution([]).hints == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_by_name(bad: float, tmp_path: Path) -> None:
    array = np.ones((8, 8), np.float32)
    array[3, 4] = bad
    with pytest.raises(PruneError, match="'w0' holds NaN or infinity"):
        measured(gemm_chain(tmp_path, [array]))


@pytest.mark.parametrize("text", ["", "2", "4:2", "2:2", "0:4", "a:b", "2:4:8", "-1:4", "²:4"])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(PruneError, match="not an N:M pattern"):
        parse_nm(text)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 10**6))
def test_pattern_fit_is_the_window_count(n: int, groups: int, seed: int) -> None:
    import tempfile

    array = np.where(np.random.default_rng(seed).random((4 * groups, 5)) < 0.5, 0, 1).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        weight = find_weights(load(gemm_chain(Path(folder), [array]))).prunable[0]
        found = pattern_fit(weight, n, 4)
    # MatMul's weight is (inputs, outputs): the windows run down the columns
    good = [np.count_nonzero(array[i : i + 4, j]) <= n for i in range(0, 4 * groups, 4) for j in range(5)]
    assert found.windows == sum(good) / len(good)
    assert found.satisfied == all(good)


def test_pattern_needs_a_divisible_axis(tmp_path: Path) -> None:
    weight = find_weights(load(gemm_chain(tmp_path, [np.zeros((6, 4), np.float32)]))).prunable[0]
    found = pattern_fit(weight, 2, 4)
    assert (found.satisfied, found.windows, found.detail) == (False, None, "6 inputs do not divide by 4")


# (inputs, outputs), whether the layer is quantised, what is said of each
DOUBTS = [
    ((256, 256), False, []),
    ((8, 256), False, ["8 inputs below 256"]),
    ((8, 16), False, ["8 inputs and 16 outputs below 256"]),
    ((256, 256), True, ["Q/DQ around it"]),
]


@pytest.mark.parametrize(("shape", "quantised", "told"), DOUBTS)
def test_where_tensorrt_makes_no_use_of_2_4(
    shape: tuple[int, int], quantised: bool, told: list[str], tmp_path: Path
) -> None:
    path = gemm_chain(tmp_path, [np.tile(np.array([[1], [0], [0], [1]], np.float32), (shape[0] // 4, shape[1]))])
    if quantised:
        model = onnx.load(path)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "scale"))
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["x0"]))
        del model.graph.input[:]
        model.graph.input.append(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.INT8, [1, shape[0]]))
        onnx.save(model, path)
    found = pattern_fit(find_weights(load(path)).prunable[0], 2, 4)
    assert found.satisfied and len(found.doubts) == len(told)
    assert all(piece in doubt and "github.com/NVIDIA/TensorRT/issues" in doubt
               for piece, doubt in zip(told, found.doubts, strict=True))  # fmt: skip
