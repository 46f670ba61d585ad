"""Small models for the tests of `prunecli.model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.errors import PruneError
from prunecli.model import Model, load

Node = onnx.NodeProto
node = helper.make_node


def floats(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def info(name: str, shape: Sequence[int | str | None] | None, dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def proto(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[int | str | None]] | None = None,
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of float inputs and outputs; `x` of shape (2, 3) if no inputs are named."""
    given = {"x": (2, 3)} if inputs is None else inputs
    graph = helper.make_graph(
        list(nodes),
        "g",
        [info(name, shape) for name, shape in given.items()],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def save_proto(model: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def loaded(model: onnx.ModelProto, folder: Path) -> Model:
    return load(save_proto(model, folder))


def refused(path: Path, words: str, hint: str = "") -> None:
    """Loading `path` fails with one line of `words` and a hint."""
    with pytest.raises(PruneError) as caught:
        load(path)
    assert words in caught.value.message, caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint
    assert hint in caught.value.hint


def linear(k: int = 3, n: int = 4) -> onnx.ModelProto:
    """y = x w + b."""
    model = proto([node("Gemm", ["x", "w", "b"], ["y"], "fc")], weights={"w": floats(k, n), "b": floats(n)})
    model.graph.output[0].CopyFrom(info("y", [2, n]))
    return model


def big(n: int = 64) -> onnx.ModelProto:
    """y = x w with w large enough to leave the file."""
    return proto([node("MatMul", ["x", "w"], ["y"])], {"x": (1, n)}, weights={"w": floats(n, n)})


def external(folder: Path, location: str = "m.data", offset: int = 0, length: int | None = None) -> Path:
    """y = x w with w (3, 4) in an external file of that name; the data file itself is not written."""
    model = proto([node("MatMul", ["x", "w"], ["y"])], weights={"w": floats(3, 4)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value=str(offset))
    tensor.external_data.add(key="length", value=str(48 if length is None else length))
    return save_proto(model, folder)


def run(path: Path, feed: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Outputs of onnxruntime."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))
