"""Initializers that are listed as inputs: constants before IR version 4, since then an interface that is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.errors import PruneError
from prunecli.inspection.inspect import inspect
from prunecli.packing.pack import pack
from prunecli.runtime import Session
from prunecli.search.adaptive import adaptive
from prunecli.search.sensitivity import sensitivity
from prunecli.structures.structured import structured
from prunecli.training.finetune import finetune
from prunecli.zeros.gradient import gradient
from prunecli.zeros.magnitude import magnitude
from prunecli.zeros.oneshot import oneshot
from tests.spellings import PARAMETERS, cnn, data

COMMANDS: dict[str, Callable[..., Any]] = {
    "magnitude": lambda path, given, out, **more: magnitude(path, sparsity=0.5, output=out, **more),
    "gradient": lambda path, given, out, **more: gradient(path, sparsity=0.5, data=given, output=out, **more),
    "oneshot": lambda path, given, out, **more: oneshot(path, sparsity=0.5, data=given, output=out, **more),
    "structured": lambda path, given, out, **more: structured(path, ratio=0.4, data=given, output=out, **more),
    "adaptive": lambda path, given, out, **more: adaptive(
        path, max_drop=0.3, granularity="channel", jobs=1, data=given, output=out, **more
    ),
    "finetune": lambda path, given, out, **more: finetune(
        path, data=given, epochs=1, rate=1e-2, batch_size=16, val_split=0.0, output=out, **more
    ),
}


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def given(folder: Path, command: str) -> Path:
    path = data(folder / "data.npz")
    if command == "finetune":
        with np.load(path) as file:
            np.savez(path, x=file["x"], labels=np.arange(64) % 4)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_before_ir_4_they_are_constants(command: str, tmp_path: Path) -> None:
    found, fed = [], given(tmp_path, command)
    for version, listed in ((8, ()), (3, PARAMETERS)):
        path, out = cnn(tmp_path / f"{version}.onnx", "plain", version, listed), tmp_path / f"{version}.out.onnx"
        COMMANDS[command](path, fed, out)
        with np.load(fed) as file:
            found.append(Session.open(out).run({"x": file["x"]})["y"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-4)  # the same operators, of another opset
    saved = onnx.load(out)
    listed_now = {info.name for info in saved.graph.input} - {"x"}
    assert listed_now == ({t.name for t in saved.graph.initializer} if saved.ir_version < 4 else set())
    onnx.checker.check_model(saved)


def test_a_file_of_ir_3_stays_one(tmp_path: Path) -> None:
    path = cnn(tmp_path / "m.onnx", "plain", 3, PARAMETERS)
    magnitude(path, sparsity=0.98, output=tmp_path / "out.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    assert after.ir_version == 3 and list(after.graph.input) == list(before.graph.input)
    pack(tmp_path / "out.onnx", output=tmp_path / "packed.onnx", min_saving=0.0)
    assert sensitivity(path, data=data(tmp_path / "data.npz"), granularity="channel", jobs=1).rows
    assert inspect(path).totals.params == inspect(tmp_path / "out.onnx").totals.params


@pytest.mark.parametrize("command", COMMANDS)
def test_since_ir_4_they_are_left_alone(command: str, tmp_path: Path) -> None:
    """Neither values nor shape change, and the report says why; the rest is pruned."""
    listed, fed, out = ("w3", "c3"), given(tmp_path, command), tmp_path / "out.onnx"
    path = cnn(tmp_path / "m.onnx", "plain", 8, listed)
    result = COMMANDS[command](path, fed, out)
    before, after = arrays(path), arrays(out)
    for name in listed:
        assert np.array_equal(before[name], after[name]), name
    assert [i.name for i in onnx.load(out).graph.input] == ["x", *listed]
    assert "may feed other values" in str(result.to_json()) and "w3" in str(result.to_json())
    assert any(not np.array_equal(before[name], after.get(name)) for name in ("w1", "w2"))


@pytest.mark.parametrize("command", COMMANDS)
def test_named_they_are_pruned(command: str, tmp_path: Path) -> None:
    listed, fed, out = ("w2", "c2"), given(tmp_path, command), tmp_path / "out.onnx"
    path = cnn(tmp_path / "m.onnx", "plain", 8, listed)
    COMMANDS[command](path, fed, out, include=("*",))
    assert not np.array_equal(arrays(path)["w2"], arrays(out)["w2"])
    inputs = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in onnx.load(out).graph.input}
    assert all(inputs[name] == list(arrays(out)[name].shape) for name in listed)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "adaptive"])
def test_a_model_of_inputs_alone_is_refused_with_what_helps(command: str, tmp_path: Path) -> None:
    path = cnn(tmp_path / "m.onnx", "plain", 8, PARAMETERS)
    with pytest.raises(PruneError) as caught:
        COMMANDS[command](path, given(tmp_path, command), tmp_path / "out.onnx")
    assert "also a graph input" in caught.value.message and "--include" in f"{caught.value.message} {caught.value.hint}"
