"""Sparse arrays and models for the tests of storage, and what other programs make of packed files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from prunecli.arrays import Array

SHAPE = (32, 48)


def sparse(kind: str, dtype: Any = np.float32, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Array:
    """An array whose zeros follow a pattern; `NN%`: that share of zeros, anywhere."""
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape).astype(dtype)
    flat = array.reshape(shape[0], -1)
    if kind.endswith("%"):
        array[rng.random(shape) < float(kind[:-1]) / 100] = 0
    elif kind == "none":
        array[...] = 0
    elif kind == "odd":  # values that arithmetic would not leave as they are
        array[rng.random(shape) < 0.6] = 0
        flat[0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    elif kind == "last":
        array[...] = 0
        array.reshape(-1)[-1] = 1
    elif ":" in kind:
        keep, width = map(int, kind.split(":"))
        windows = flat.reshape(shape[0], -1, width)
        order = rng.random(windows.shape).argsort(axis=2)
        np.put_along_axis(windows, order[:, :, keep:], np.zeros((), dtype), 2)
    else:
        r, c = (size if edge == "*" else int(edge) for edge, size in zip(kind.split("x"), flat.shape, strict=True))
        gone = rng.random((flat.shape[0] // r, flat.shape[1] // c)) < 0.6
        flat[np.kron(gone, np.ones((r, c), bool))] = 0
    return array


def matmul(weight: Array, opset: int = 13) -> onnx.ModelProto:
    """y = x w in float32, whatever the type of w."""
    nodes, name = [helper.make_node("MatMul", ["x", "w32"], ["y"])], "w32"
    if weight.dtype != np.float32:
        nodes.insert(0, helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT))
        name = "w"
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, name)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(path: Path, feed: dict[str, Array], optimise: bool = True) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed))


def optimised(path: Path, folder: Path) -> list[str]:
    """The operators that onnxruntime runs by default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


DTYPES: dict[str, Any] = {
    "float32": np.float32, "float16": np.float16, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16,
}  # fmt: skip
