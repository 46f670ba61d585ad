"""Classifiers whose outputs are no tensors of numbers: names of classes, and one map of scores per sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunecli.data.options import DataOptions
from prunecli.evaluation.compare import compare
from prunecli.evaluation.evaluate import evaluate
from prunecli.runtime import Session
from prunecli.search.adaptive import adaptive
from prunecli.structures.structured import structured
from prunecli.training.finetune import finetune
from prunecli.zeros.gradient import gradient
from prunecli.zeros.magnitude import magnitude
from prunecli.zeros.oneshot import oneshot

N = helper.make_node
NAMES = ("ant", "bee", "cow")


def classifier(path: Path, text: bool, shift: float = 0.0) -> Path:
    """As scikit-learn's exporter writes it: the class with the highest score, and the scores as a sequence of maps."""
    rng = np.random.default_rng(2)
    sizes = {"w1": (4, 16), "b1": (1, 16), "w2": (16, 12), "b2": (1, 12), "w3": (12, 3), "b3": (1, 3)}
    arrays = {name: rng.standard_normal(size).astype(np.float32) / 2 for name, size in sizes.items()}
    arrays["b3"] = arrays["b3"] + np.array([[shift, 0, 0]], np.float32)
    nodes = [
        N("MatMul", ["X", "w1"], ["h1"]), N("Add", ["h1", "b1"], ["a1"]), N("Relu", ["a1"], ["r1"]),
        N("MatMul", ["r1", "w2"], ["h2"]), N("Add", ["h2", "b2"], ["a2"]), N("Relu", ["a2"], ["r2"]),
        N("MatMul", ["r2", "w3"], ["h3"]), N("Add", ["h3", "b3"], ["a3"]), N("Softmax", ["a3"], ["p"], axis=1),
        N("ArgMax", ["p"], ["k"], axis=1, keepdims=0),
        N("Constant", [], ["names"], value_strings=NAMES) if text else N("Constant", [], ["names"], value_ints=[0, 1, 2]),
        N("Gather", ["names", "k"], ["label"]),
        N("ZipMap", ["p"], ["probability"], domain="ai.onnx.ml",
          **({"classlabels_strings": NAMES} if text else {"classlabels_int64s": [0, 1, 2]})),
    ]  # fmt: skip
    info, key = helper.make_tensor_value_info, onnx.TensorProto.STRING if text else onnx.TensorProto.INT64
    one = helper.make_map_type_proto(key, helper.make_tensor_type_proto(1, []))
    maps = helper.make_value_info("probability", helper.make_sequence_type_proto(one))
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [info("X", 1, ["N", 4])], [info("label", key, ["N"]), maps], tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def samples(path: Path, model: Path, text: bool) -> Path:
    x = np.random.default_rng(3).standard_normal((96, 4)).astype(np.float32)
    np.savez(path, X=x, labels=Session.open(model).run({"X": x})["label"].astype(np.str_ if text else np.int64))
    return path


COMMANDS: dict[str, Callable[..., Any]] = {
    "magnitude": lambda path, fed, out: magnitude(path, sparsity=0.5, output=out),
    "gradient": lambda path, fed, out: gradient(path, sparsity=0.5, data=fed, output=out),
    "oneshot": lambda path, fed, out: oneshot(path, sparsity=0.5, data=fed, output=out),
    "structured": lambda path, fed, out: structured(path, ratio=0.4, output=out),
    "structured with data": lambda path, fed, out: structured(path, ratio=0.4, data=fed, output=out),
    "adaptive": lambda path, fed, out: adaptive(
        path, max_drop=0.3, granularity="channel", data=fed, output=out, jobs=1
    ),
    "finetune": lambda path, fed, out: finetune(
        path, data=fed, teacher=path, epochs=1, keep_start="always", output=out
    ),
}


CASES = [(command, text) for command in COMMANDS for text in (False, True) if command != "adaptive"]


@pytest.mark.parametrize(("command", "text"), [*CASES, pytest.param("adaptive", True, marks=pytest.mark.slow)])
def test_every_command_takes_them(command: str, text: bool, tmp_path: Path) -> None:
    path, out = classifier(tmp_path / "m.onnx", text), tmp_path / "out.onnx"
    COMMANDS[command](path, samples(tmp_path / "d.npz", path, text), out)
    session = Session.open(out)
    found = session.run({"X": np.ones((2, 4), np.float32)})
    assert found["probability"].shape == (2, 3) and found["probability"].dtype == np.float32
    assert np.allclose(found["probability"].sum(1), 1, atol=1e-5)
    assert [o.name for o in session.outputs] == ["label", "probability"]
    if command == "structured with data":
        assert len(onnx.load(out).graph.initializer[0].dims) == 2


@pytest.mark.parametrize("text", [False, True])
def test_refitting_lowers_the_error_of_the_scores(text: bool, tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", text)
    fed = DataOptions(str(samples(tmp_path / "d.npz", path, text)))
    found = structured(path, ratio=0.4, data=fed, criterion="l2", output=tmp_path / "out.onnx").recovery
    assert found is not None and found.error_after < 0.7 * found.error_before


@pytest.mark.parametrize("text", [False, True])
def test_probabilities_that_differ_are_seen(text: bool, tmp_path: Path) -> None:
    """Scores of the first class are a little higher: few labels change, every probability does."""
    first, second = classifier(tmp_path / "a.onnx", text), classifier(tmp_path / "b.onnx", text, 0.125)
    fed = samples(tmp_path / "d.npz", first, text)
    with np.load(fed) as file:
        x = file["X"]
    wanted, other = (Session.open(path).run({"X": x})["probability"] for path in (first, second))
    found = compare(first, second, data=DataOptions(str(fed)))
    assert not found.identical
    assert found.fidelity.outputs["probability"]["max_abs"] == pytest.approx(np.abs(wanted - other).max(), rel=1e-6)
    assert compare(first, first, data=DataOptions(str(fed))).identical
    told = evaluate(second, baseline=first, data=DataOptions(str(fed)), latency=False).to_json()
    changed = (wanted.argmax(1) != other.argmax(1)).mean()
    assert told["models"][0]["metrics"]["accuracy"] == pytest.approx(1 - changed)


def test_text_that_differs_is_seen(tmp_path: Path) -> None:
    first, second = classifier(tmp_path / "a.onnx", True), classifier(tmp_path / "b.onnx", True, 3.0)
    fed = DataOptions(str(samples(tmp_path / "d.npz", first, True)))
    for path in (first, second):  # the names of the classes alone, and a number that is the same
        model = onnx.load(path)
        del model.graph.output[1]
        model.graph.node.append(N("Size", ["X"], ["size"]))
        model.graph.output.append(helper.make_tensor_value_info("size", 7, []))
        onnx.save(model, path)
    found = compare(first, second, data=fed)
    assert not found.identical and any("label is text" in note for note in found.notes)
