"""NaN: weights that hold it are refused by name, and outputs that are nothing else prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunecli.errors import PruneError
from prunecli.packing.pack import pack
from prunecli.search.adaptive import adaptive
from prunecli.structures.structured import structured
from prunecli.training.finetune import finetune
from prunecli.zeros.magnitude import magnitude
from prunecli.zeros.oneshot import oneshot
from tests.spellings import cnn, data


def changed(path: Path, name: str, value: float) -> Path:
    """With one element of a tensor replaced."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[0] = value
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def silent(path: Path, infinite: str = "") -> Path:
    """Its output is log(-1 - y^2), or, with `infinite` given, y plus a mask that hides the first class."""
    model = onnx.load(cnn(path))
    model.graph.node[-1].output[0] = "z"
    if infinite:
        extra = {infinite: np.array([[-np.inf, 0, 0, 0]], np.float32)}
        model.graph.node.append(helper.make_node("Add", ["z", infinite], ["y"]))
    else:
        extra = {"one": np.array(1, np.float32)}
        steps = (("Mul", ["z", "z"], "s"), ("Neg", ["s"], "n"), ("Sub", ["n", "one"], "t"), ("Log", ["t"], "y"))
        model.graph.node.extend(helper.make_node(op, read, [made]) for op, read, made in steps)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in extra.items())
    onnx.save(model, path)
    return path


COMMANDS: dict[str, Callable[..., Any]] = {
    "magnitude": lambda path, fed, out: magnitude(path, sparsity=0.5, output=out),
    "oneshot": lambda path, fed, out: oneshot(path, sparsity=0.5, data=fed, output=out),
    "structured": lambda path, fed, out: structured(path, ratio=0.4, output=out),
    "blocks": lambda path, fed, out: structured(path, ratio=0.4, granularity="all", output=out),
    "adaptive": lambda path, fed, out: adaptive(
        path, max_drop=0.3, granularity="channel", data=fed, output=out, jobs=1
    ),
    "finetune": lambda path, fed, out: finetune(path, data=fed, teacher=path, epochs=1, output=out),
}


@pytest.mark.parametrize(("name", "value"), [("w2", np.nan), ("w2", np.inf), ("c2", np.nan), ("g", np.nan)])
@pytest.mark.parametrize("command", COMMANDS)
def test_weights_are_refused_by_name(command: str, name: str, value: float, tmp_path: Path) -> None:
    path, out = changed(cnn(tmp_path / "m.onnx"), name, value), tmp_path / "out.onnx"
    if name != "w2" and command == "magnitude":
        pytest.skip("biases and normalisation parameters are not zeroed: the next test")
    with pytest.raises(PruneError, match=rf"\b{name}\b.*(NaN|infinit)"):
        COMMANDS[command](path, data(tmp_path / "data.npz"), out)
    assert not out.exists()


PROOFS: dict[str, Callable[..., Any]] = {
    "magnitude": COMMANDS["magnitude"],
    "structured": COMMANDS["structured"],
    "structured with data": lambda path, fed, out: structured(path, ratio=0.4, data=fed, output=out),
    "pack": lambda path, fed, out: pack(path, output=out, min_saving=0.0),
}


@pytest.mark.parametrize("proof", PROOFS)
def test_outputs_that_are_no_numbers_prove_nothing(proof: str, tmp_path: Path) -> None:
    path, out = silent(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    if proof == "pack":
        magnitude(path, sparsity=0.98, output=tmp_path / "zeros.onnx", verify=False)
        path = tmp_path / "zeros.onnx"
    with pytest.raises(PruneError, match="NaN or infinite"):
        PROOFS[proof](path, data(tmp_path / "data.npz"), out)
    assert not out.exists()


@pytest.mark.parametrize("proof", ["magnitude", "structured", "structured with data"])
def test_a_mask_of_infinity_is_no_obstacle(proof: str, tmp_path: Path) -> None:
    path, out = silent(tmp_path / "m.onnx", infinite="mask"), tmp_path / "out.onnx"
    found = PROOFS[proof](path, data(tmp_path / "data.npz"), out)
    assert found.verification.kind == "exact" and out.exists()
