"""What may be added to a layer's output, what it comes to, and what cannot be measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunecli.calibration.layers import LinearLayer, ancestors, layers_of, refittable
from prunecli.calibration.layerwise import working_form
from prunecli.model import find_weights, load
from prunecli.runtime import Session

RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape), np.float32)


def model(
    path: Path, nodes: list[Any], constants: dict[str, np.ndarray], shape: list[int], outputs: tuple[str, ...] = ("y",)
) -> Path:
    values = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, shape)], values, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path / "m.onnx")
    return path / "m.onnx"


def found(path: Path, fixed: frozenset[str] = frozenset()) -> tuple[list[LinearLayer], dict[str, str]]:
    file = load(path)
    work = working_form(file.ir)
    weights = find_weights(replace(file, ir=work))
    layers, left = layers_of(work, weights.prunable)
    vectors = {w.holder.name for w in weights.others} - fixed
    return [layer.moving_only(vectors) for layer in layers], {skip.name: skip.reason for skip in left}


N = helper.make_node
BN = {"s": np.abs(f(4)) + 0.5, "b": f(4), "m": f(4), "v": np.abs(f(4)) + 0.5}
OFFSETS: list[tuple[str, list[Any], dict[str, np.ndarray], list[int], str | None]] = [
    # what it is, nodes, constants, shape of x, the vector that moves the output
    ("own bias", [N("Conv", ["x", "w", "c"], ["y"])], {"w": f(4, 3, 3, 3), "c": f(4)}, [2, 3, 5, 5], "c"),
    ("bias of a Gemm", [N("Gemm", ["x", "w", "c"], ["y"], transB=1)], {"w": f(4, 3), "c": f(4)}, [2, 3], "c"),
    ("Add after MatMul", [N("MatMul", ["x", "w"], ["h"]), N("Add", ["h", "c"], ["y"])], {"w": f(3, 4), "c": f(4)}, [2, 5, 3], "c"),
    ("Add before", [N("MatMul", ["x", "w"], ["h"]), N("Add", ["c", "h"], ["y"])], {"w": f(3, 4), "c": f(1, 1, 4)}, [2, 5, 3], "c"),
    ("Add after Conv", [N("Conv", ["x", "w"], ["h"]), N("Add", ["h", "c"], ["y"])], {"w": f(4, 3, 1, 1), "c": f(4, 1, 1)}, [2, 3, 5, 5], "c"),
    ("bias through Identity and Cast", [N("Identity", ["c"], ["d"]), N("Cast", ["d"], ["e"], to=1), N("Conv", ["x", "w", "e"], ["y"])], {"w": f(4, 3, 3, 3), "c": f(4).astype(np.float64)}, [2, 3, 5, 5], "c"),
    ("a bias through Identity that two share", [N("Identity", ["c"], ["d"]), N("Conv", ["x", "w", "d"], ["h"]), N("Conv", ["h", "u", "c"], ["y"])], {"w": f(4, 3, 1, 1), "u": f(4, 4, 1, 1), "c": f(4)}, [2, 3, 5, 5], None),
    ("mean of a BatchNormalization", [N("Conv", ["x", "w"], ["h"]), N("BatchNormalization", ["h", *BN], ["y"])], {"w": f(4, 3, 3, 3), **BN}, [2, 3, 5, 5], "m"),
    ("Add along another axis", [N("MatMul", ["x", "w"], ["h"]), N("Add", ["h", "c"], ["y"])], {"w": f(3, 4), "c": f(4, 1)}, [2, 4, 3], None),
    ("a bias that two share", [N("Conv", ["x", "w", "c"], ["h"]), N("Conv", ["h", "u", "c"], ["y"])], {"w": f(4, 3, 1, 1), "u": f(4, 4, 1, 1), "c": f(4)}, [2, 3, 5, 5], None),
    ("an output that others read", [N("MatMul", ["x", "w"], ["h"]), N("Add", ["h", "c"], ["y"]), N("Relu", ["h"], ["z"])], {"w": f(3, 4), "c": f(4)}, [2, 3], None),
    ("nothing", [N("MatMul", ["x", "w"], ["y"])], {"w": f(3, 4)}, [2, 3], None),
]  # fmt: skip


@pytest.mark.parametrize("case", OFFSETS, ids=lambda case: case[0])
def test_offsets_move_the_output(tmp_path: Path, case: tuple[Any, ...]) -> None:
    _, nodes, constants, shape, name = case
    path = model(tmp_path, nodes, constants, shape)
    layer = found(path)[0][0]
    assert (layer.offset.name if layer.offset else None) == name
    if layer.offset is None or name is None:
        return
    change, x = f(4), f(*shape)
    before = Session.open(path).run({"x": x})["y"]
    moved = layer.offset.content(layer.offset.read(4) + change)
    assert moved.shape == constants[name].shape
    after = Session.open(model(tmp_path, nodes, {**constants, name: moved}, shape)).run({"x": x})["y"]
    axis = 1 if len(shape) == 4 else -1
    wanted = np.moveaxis(np.moveaxis(before, axis, -1) + change * layer.affine()[0].reshape(-1), -1, axis)
    np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-5)
    assert found(path, frozenset({name}))[0][0].offset is None  # what may not change does not


CONV = N("Conv", ["x", "w"], ["h"])
SQUARE = {"w": f(4, 4, 1, 1), **BN}
FORMULAS: list[tuple[str, list[Any], dict[str, np.ndarray], list[int], str, str | None]] = [
    # what it is, nodes, constants, shape of x, the aim, what is carried
    ("own bias", [N("Conv", ["x", "w", "c"], ["y"])], {"w": f(4, 4, 3, 3), "c": f(4)}, [2, 4, 5, 5], "y", None),
    ("a bias that others read, normalised", [N("Conv", ["x", "w", "b"], ["h"]), N("BatchNormalization", ["h", *BN], ["y"])], SQUARE, [2, 4, 5, 5], "y", None),
    ("a bias that is given out, normalised", [N("Conv", ["x", "w", "c"], ["h"]), N("BatchNormalization", ["h", *BN], ["y"])], {**SQUARE, "c": f(4)}, [2, 4, 5, 5], "y", None),
    ("added, then normalised", [CONV, N("Add", ["h", "c"], ["k"]), N("BatchNormalization", ["k", *BN], ["y"])], {**SQUARE, "c": f(4, 1, 1)}, [2, 4, 5, 5], "y", None),
    ("normalised, plainly summed", [CONV, N("BatchNormalization", ["h", *BN], ["n"]), N("Add", ["n", "x"], ["y"])], SQUARE, [2, 4, 5, 5], "y", "x"),
    ("plainly summed", [CONV, N("Add", ["x", "h"], ["y"])], {"w": f(4, 4, 1, 1)}, [2, 4, 5, 5], "y", "x"),
    ("added, normalised, summed", [CONV, N("Add", ["h", "c"], ["k"]), N("BatchNormalization", ["k", *BN], ["n"]), N("Add", ["n", "x"], ["y"])], {**SQUARE, "c": f(4, 1, 1)}, [2, 4, 5, 5], "y", "x"),
    ("normalised, added, summed", [CONV, N("BatchNormalization", ["h", *BN], ["n"]), N("Add", ["n", "c"], ["k"]), N("Add", ["x", "k"], ["y"])], {**SQUARE, "c": f(4, 1, 1)}, [2, 4, 5, 5], "y", "x"),
    ("a bias behind, and a sum", [N("MatMul", ["x", "w"], ["h"]), N("Add", ["c", "h"], ["k"]), N("Add", ["k", "x"], ["y"])], {"w": f(4, 4), "c": f(4)}, [2, 5, 4], "y", "x"),
    ("a weight on the left", [N("MatMul", ["w", "x"], ["h"]), N("Add", ["h", "c"], ["y"])], {"w": f(4, 3), "c": f(4, 1)}, [2, 3, 5], "y", None),
    ("normalised along another axis", [N("MatMul", ["x", "w"], ["h"]), N("BatchNormalization", ["h", *BN], ["y"])], {"w": f(3, 4), **BN}, [2, 4, 3], "h", None),
    ("normalised to another number of channels", [N("MatMul", ["x", "w"], ["h"]), N("BatchNormalization", ["h", *BN], ["y"])], {"w": f(3, 6), **BN}, [2, 4, 3], "h", None),
    ("a sum that is settled later", [CONV, N("Conv", ["h", "u"], ["k"]), N("Add", ["h", "k"], ["y"])], {"w": f(4, 4, 1, 1), "u": f(4, 4, 1, 1)}, [2, 4, 5, 5], "h", None),
]  # fmt: skip


@pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case[0])
def test_what_a_layer_comes_to(tmp_path: Path, case: tuple[Any, ...]) -> None:
    """target = scale * (W X + offset) + shift + carried, of the values that onnxruntime computes."""
    name, nodes, constants, shape, target, carried = case
    path = model(tmp_path, nodes, constants, shape, ("y", "c") if "given out" in name else ("y",))
    layer = next(layer for layer in refittable(working_form(load(path).ir))[0] if layer.name == "w")
    assert (layer.target, layer.carried) == (target, carried)
    x = f(*shape)
    values = {"x": x} | Session.open(path, outputs="all", mode="plain").run({"x": x})
    out = values[layer.output].shape
    product = np.matmul(layer.matrices(), layer.found.columns(values[layer.found.data], out, None))
    scale, shift = (part[..., None] for part in layer.affine())
    assert layer.is_summed_plainly is ("plainly" in name)
    got = scale * (product + layer.constant()[..., None]) + shift
    if carried is not None:
        got = got + layer.found.targets(values[carried], None)
    np.testing.assert_allclose(got, layer.found.targets(values[target], None), rtol=1e-4, atol=1e-4)


def test_branches(tmp_path: Path) -> None:
    nodes = [
        N("Conv", ["x", "w"], ["h"]),
        N("BatchNormalization", ["h", *BN], ["n"]),
        N("Conv", ["x", "u"], ["k"]),
        N("Add", ["n", "k"], ["y"]),
    ]
    path = model(tmp_path, nodes, {"w": f(4, 3, 1, 1), "u": f(4, 3, 1, 1), **BN}, [2, 3, 5, 5])
    first, second = found(path)[0]
    assert (first.carried, second.carried) == (None, "n")  # the later one makes up for both
    np.testing.assert_allclose(first.affine()[0][0], BN["s"] / np.sqrt(BN["v"] + 1e-5), rtol=1e-6)
    norm = working_form(load(path).ir).graph[1]
    assert {node.op_type for node in ancestors(norm)} == {"Conv", "BatchNormalization"}


BACKWARDS = {"end": np.array([-1]), "start": np.array([-100]), "axis": np.array([0]), "back": np.array([-1])}
LEFT: list[tuple[str, list[Any], dict[str, np.ndarray], str]] = [
    ("computed bias", [N("Relu", ["x"], ["r"]), N("ReduceSum", ["r"], ["q"], keepdims=0), N("Expand", ["q", "four"], ["b"]), N("Gemm", ["x", "w", "b"], ["y"])], {"w": f(3, 4), "four": np.array([4])}, "computed"),
    ("a part of a bias", [N("Slice", ["c", "end", "start", "axis", "back"], ["b"]), N("Gemm", ["x", "w", "b"], ["y"])], {"w": f(3, 4), "c": f(4), **BACKWARDS}, "a part of what is stored"),
    ("biases put together", [N("Concat", ["c", "d"], ["b"], axis=0), N("Gemm", ["x", "w", "b"], ["y"])], {"w": f(3, 4), "c": f(2), "d": f(2)}, "a part of what is stored"),
    ("a part of a weight", [N("Slice", ["w", "end", "start", "axis", "back"], ["p"]), N("MatMul", ["x", "p"], ["y"])], {"w": f(3, 4), **BACKWARDS}, "in parts"),
    ("no data", [N("MatMul", ["w", "u"], ["h"]), N("Add", ["x", "h"], ["y"])], {"w": f(2, 4), "u": f(4, 3)}, "a constant, not with data"),
    ("read in two ways", [N("MatMul", ["x", "w"], ["h"]), N("Gemm", ["h", "w"], ["y"], transB=1)], {"w": f(3, 3)}, "several ways that do not fit"),
    ("two biases", [N("Gemm", ["x", "w", "c"], ["h"]), N("Gemm", ["h", "w", "d"], ["y"])], {"w": f(3, 3), "c": f(3), "d": f(3)}, "several operators with biases"),
    ("recurrent", [N("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)], {"w": f(1, 16, 3), "r": f(1, 16, 4)}, "LSTM"),
]  # fmt: skip


@pytest.mark.parametrize("case", LEFT, ids=lambda case: case[0])
def test_what_cannot_be_measured_is_told(tmp_path: Path, case: tuple[Any, ...]) -> None:
    _, nodes, constants, text = case
    shape = [5, 2, 3] if "r" in constants else [2, 3]
    layers, left = found(model(tmp_path, nodes, constants, shape))
    assert not layers and all(text in reason for reason in left.values()) and left


GEMMS: list[tuple[str, Any, np.ndarray, list[int]]] = [
    # what is added is not one number per row of the weight: fitting the product would count it twice
    ("part of it", N("Gemm", ["x", "w", "c"], ["y"], beta=0.5), f(4), [4, 3]),
    ("a number per sample", N("Gemm", ["x", "w", "c"], ["y"]), f(4, 1), [4, 3]),
    ("a matrix", N("Gemm", ["x", "w", "c"], ["y"]), f(4, 4), [4, 3]),
    ("to a weight on the left", N("Gemm", ["w", "x", "c"], ["y"], transA=1, transB=1), f(4), [4, 3]),
]


@pytest.mark.parametrize("case", GEMMS, ids=lambda case: case[0])
def test_a_gemm_that_adds_otherwise_is_left_alone(tmp_path: Path, case: tuple[Any, ...]) -> None:
    _, node, added, shape = case
    layers, left = found(model(tmp_path, [node], {"w": f(3, 4), "c": added}, shape))
    assert not layers and "not one number for each" in left["w"]


def test_a_normalisation_along_another_axis_is_no_gain(tmp_path: Path) -> None:
    """Of (N, 4, 4) from a MatMul, rows of the weight are the last axis, channels the one before."""
    nodes = [N("MatMul", ["x", "w"], ["h"]), N("BatchNormalization", ["h", *BN], ["y"])]
    layer = found(model(tmp_path, nodes, {"w": f(3, 4), **BN}, [2, 4, 3]))[0][0]
    assert layer.offset is None and (layer.affine()[0] == 1).all()
