"""One network in the forms that exporters give it: parameters stored, or reached through other operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prunecli.arrays import Array

N = helper.make_node


def _plain(name: str, array: Array) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    return {name: array}, []


def _identity(name: str, array: Array) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    return {f"{name}.0": array}, [N("Identity", [f"{name}.0"], [name])]


def _cast(name: str, array: Array) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    return {f"{name}.0": array.astype(np.float64)}, [N("Cast", [f"{name}.0"], [name], to=1)]


def _half(name: str, array: Array) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    return {f"{name}.0": array.astype(np.float16)}, [N("Cast", [f"{name}.0"], [name], to=1)]


def _transposed(name: str, array: Array) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    if array.ndim == 1:
        return _identity(name, array)
    order = list(reversed(range(array.ndim)))
    return {f"{name}.0": array.T.copy()}, [N("Transpose", [f"{name}.0"], [name], perm=order)]


def _constant(name: str, array: Array) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    held = N("Constant", [], [f"{name}.0"], value=numpy_helper.from_array(array))
    return {}, [held, N("Identity", [f"{name}.0"], [f"{name}.1"]), N("Cast", [f"{name}.1"], [name], to=1)]


SPELLINGS: dict[str, Callable[[str, Array], tuple[dict[str, Array], list[onnx.NodeProto]]]] = {
    "plain": _plain, "identity": _identity, "cast": _cast, "half": _half, "transposed": _transposed,
    "constant": _constant,
}  # fmt: skip


def cnn(path: Path, spelling: str = "plain", ir_version: int = 8, inputs: tuple[str, ...] = ()) -> Path:
    """Conv, BatchNormalization, Relu, Conv with a bias, Relu, mean over space, Gemm: (N, 3, 6, 6) -> (N, 4). `inputs`:
    parameters that are graph inputs too."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> Array:
        array = rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        return array.astype(np.float16).astype(np.float32)  # the same numbers in half precision

    arrays = {
        "w1": draw(12, 3, 3, 3), "g": np.abs(draw(12)) + 0.5, "b": draw(12), "m": draw(12), "v": np.abs(draw(12)) + 0.5,
        "w2": draw(10, 12, 3, 3), "c2": draw(10), "w3": draw(4, 10), "c3": draw(4),
    }  # fmt: skip
    arrays = {name: array.astype(np.float16).astype(np.float32) for name, array in arrays.items()}
    stored: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    for name, array in arrays.items():
        own, way = SPELLINGS[spelling](name, array)
        stored, nodes = stored | own, nodes + way
    nodes += [
        N("Conv", ["x", "w1"], ["h1"], pads=[1] * 4), N("BatchNormalization", ["h1", "g", "b", "m", "v"], ["n1"]),
        N("Relu", ["n1"], ["r1"]), N("Conv", ["r1", "w2", "c2"], ["h2"]), N("Relu", ["h2"], ["r2"]),
        N("GlobalAveragePool", ["r2"], ["p"]), N("Flatten", ["p"], ["f"]), N("Gemm", ["f", "w3", "c3"], ["y"], transB=1),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    fed = [info("x", 1, ["N", 3, 6, 6])] + [info(name, 1, stored[name].shape) for name in inputs]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", fed, [info("y", 1, ["N", 4])], tensors)
    opset = 9 if ir_version < 4 else 17
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version), path)
    return path


PARAMETERS = ("w1", "g", "b", "m", "v", "w2", "c2", "w3", "c3")


def data(path: Path, rows: int = 64) -> Path:
    """Inputs of that network, correlated, so that what is left can make up for what is cut."""
    rng = np.random.default_rng(4)
    hidden = rng.standard_normal((rows, 6)).astype(np.float32)
    mixed = hidden @ rng.standard_normal((6, 108)).astype(np.float32)
    noise = rng.standard_normal((rows, 108)).astype(np.float32)
    np.savez(path, x=(mixed + 0.3 * noise).reshape(rows, 3, 6, 6))
    return path
