"""Every contraction: weight . columns(data) equals what onnxruntime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunecli.calibration.grams import Equations, Picker, add_each, addends
from prunecli.model import find_weights, load
from prunecli.operators import named
from prunecli.runtime import Session

RNG = np.random.default_rng(0)
CASES: list[tuple[str, str, tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = [
    # name, operator, shape of the weight, shape of the data, input of the weight, attributes
    ("plain", "Conv", (4, 3, 3, 3), (2, 3, 7, 6), 1, {}),
    ("padded, strided, dilated", "Conv", (4, 3, 3, 2), (2, 3, 9, 8), 1, {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ("groups", "Conv", (6, 2, 3, 3), (2, 4, 5, 5), 1, {"group": 2, "pads": [1, 1, 1, 1]}),
    ("depthwise", "Conv", (4, 1, 3, 3), (2, 4, 5, 5), 1, {"group": 4}),
    ("same upper", "Conv", (4, 3, 4, 3), (2, 3, 7, 8), 1, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("same lower", "Conv", (4, 3, 4, 4), (2, 3, 7, 8), 1, {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("valid", "Conv", (4, 3, 2, 2), (2, 3, 5, 5), 1, {"auto_pad": "VALID"}),
    ("one axis", "Conv", (4, 3, 5), (2, 3, 11), 1, {"pads": [2, 2]}),
    ("three axes", "Conv", (2, 3, 2, 2, 2), (1, 3, 4, 4, 4), 1, {}),
    ("plain", "ConvTranspose", (3, 4, 3, 3), (2, 3, 4, 5), 1, {}),
    ("strided", "ConvTranspose", (3, 4, 3, 3), (2, 3, 4, 5), 1, {"strides": [2, 3], "pads": [1, 0, 1, 1], "output_padding": [1, 2]}),
    ("groups, dilated", "ConvTranspose", (4, 3, 3, 3), (2, 4, 4, 4), 1, {"group": 2, "dilations": [2, 1], "pads": [1, 1, 0, 1]}),
    ("more padding than kernel", "ConvTranspose", (3, 4, 2, 2), (2, 3, 6, 6), 1, {"pads": [2, 2, 2, 2]}),
    ("same upper", "ConvTranspose", (3, 4, 3, 3), (2, 3, 4, 5), 1, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("right", "Gemm", (5, 4), (6, 5), 1, {}),
    ("right, transposed, scaled", "Gemm", (4, 5), (5, 6), 1, {"transA": 1, "transB": 1, "alpha": 0.5}),
    ("left", "Gemm", (4, 5), (5, 6), 0, {}),
    ("left, transposed", "Gemm", (5, 4), (6, 5), 0, {"transA": 1, "transB": 1}),
    ("right", "MatMul", (5, 4), (2, 3, 5), 1, {}),
    ("left", "MatMul", (4, 5), (2, 5, 3), 0, {}),
    ("of a vector", "MatMul", (5, 4), (5,), 1, {}),
    ("to a vector", "MatMul", (4, 5), (5,), 0, {}),
    ("stack", "MatMul", (3, 5, 4), (2, 3, 6, 5), 1, {}),
    ("stack of one", "MatMul", (1, 5, 4), (2, 6, 5), 1, {}),
    ("stack, broadcast data", "MatMul", (3, 5, 4), (6, 5), 1, {}),
    ("stack, left", "MatMul", (3, 4, 5), (2, 3, 5, 6), 0, {}),
]  # fmt: skip


def built(
    path: Path, op: str, weight: np.ndarray, data: tuple[int, ...], index: int, attributes: dict[str, Any]
) -> Path:
    inputs = ["x", "w"] if index == 1 else ["w", "x"]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(data))
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], **attributes)],
        "g",
        [value],
        [output],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def opened(path: Path, case: tuple[Any, ...]) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    _, op, shape, data, index, attributes = case
    weight = RNG.standard_normal(shape).astype(np.float32)
    file = load(built(path / "m.onnx", op, weight, data, index, attributes))
    [found] = find_weights(file).prunable
    x = RNG.standard_normal(data).astype(np.float32)
    return found, weight, x, Session.open(file.path).run({"x": x})["y"]


def test_every_contraction_has_a_case() -> None:
    assert {case[1] for case in CASES} == set(named(lambda operator: operator.contraction))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]} {case[0]}")
def test_it_is_what_the_operator_computes(tmp_path: Path, case: tuple[Any, ...]) -> None:
    weight, values, x, y = opened(tmp_path, case)
    found = weight.uses[0].contraction
    assert found is not None and (found.data, found.output) == ("x", "y")
    batch, rows, taps, cols = weight.layout.canonical_shape
    matrix = weight.layout.canonical(values).reshape(batch, rows, taps * cols)
    every = found.columns(x, y.shape, None)
    assert every.shape[2] == found.positions(y.shape)
    np.testing.assert_allclose(matrix @ every, found.targets(y, None), atol=1e-5)  # sums of some tens of products
    some = np.flatnonzero(RNG.random(every.shape[2]) < 0.5)
    np.testing.assert_array_equal(found.columns(x, y.shape, some), every[..., some])
    np.testing.assert_array_equal(found.targets(y, some), found.targets(y, None)[..., some])


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: f"{case[1]} {case[0]}")
def test_equations_find_the_weight_again(tmp_path: Path, case: tuple[Any, ...], lanes: int) -> None:
    """Given inputs and outputs of a layer, the weight is the solution: float32 products; the error is a
    difference of sums of the size 30 with seven digits."""
    weight, values, x, _ = opened(tmp_path, case)
    found = weight.uses[0].contraction
    assert found is not None
    batch, rows, taps, cols = weight.layout.canonical_shape
    data = RNG.standard_normal((40, *x.shape[1:])).astype(np.float32)
    out = Session.open(built(tmp_path / "n.onnx", case[1], values, data.shape, case[4], case[5])).run({"x": data})["y"]
    sums = Equations.empty(batch, rows, taps * cols)
    places = Picker(1, taps * cols).pick(np.arange(found.positions(out.shape)))
    add_each(addends(found, places, sums, data=data, wanted=out + 3), sums, lanes)
    problem = sums.problem(0, intercept=True)
    solved = np.linalg.solve(problem.gram, problem.cross.T).T
    matrix = weight.layout.canonical(values).reshape(rows, taps * cols)
    np.testing.assert_allclose(solved, matrix, atol=1e-4)
    assert problem.error(solved).max() < 1e-4 < problem.error(solved * 1.1).min()
    np.testing.assert_allclose(problem.y - solved @ problem.x, 3, atol=1e-4)
