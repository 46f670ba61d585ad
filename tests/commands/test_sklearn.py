"""Pipelines of scikit-learn as skl2onnx writes them: a scaler, a network, names of classes, a ZipMap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli

NAMES = ("red", "rose", "white")
HIDDEN = 16
RNG = np.random.default_rng(0)


def pipeline(path: Path, zipmap: bool, classes: int = 3) -> Path:
    """StandardScaler and MLPClassifier of three classes, or of two, which have one logit; what skl2onnx 1.20 makes of
    them, node by node."""
    names, logits = NAMES[:classes], classes if classes > 2 else 1
    weights = {"c0": RNG.normal(size=(4, HIDDEN)), "i0": np.zeros((1, HIDDEN)),
               "c1": RNG.normal(size=(HIDDEN, logits)), "i1": np.zeros((1, logits)), "one": np.ones(())}  # fmt: skip
    inits = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    inits += [
        numpy_helper.from_array(np.array(names, object), "classes"),
        numpy_helper.from_array(np.array([-1]), "shape"),
    ]
    made, learned = helper.make_node, "ai.onnx.ml"
    nodes = [
        made("Scaler", ["X"], ["scaled"], domain=learned, offset=[1.0] * 4, scale=[0.5] * 4),
        made("Cast", ["scaled"], ["cast"], to=onnx.TensorProto.FLOAT),
        made("MatMul", ["cast", "c0"], ["m0"]), made("Add", ["m0", "i0"], ["a0"]), made("Relu", ["a0"], ["r0"]),
        made("MatMul", ["r0", "c1"], ["m1"]), made("Add", ["m1", "i1"], ["a1"]),
        *([made("Softmax", ["a1"], ["p"])] if classes > 2 else
          [made("Sigmoid", ["a1"], ["s"]), made("Sub", ["one", "s"], ["t"]), made("Concat", ["t", "s"], ["p"], axis=1)]),
        made("ArgMax", ["p"], ["best"], axis=1),
        made("ArrayFeatureExtractor", ["classes", "best"], ["named"], domain=learned),
        made("Reshape", ["named", "shape"], ["label"]), made("Identity", ["label"], ["output_label"]),
    ]  # fmt: skip
    last = made("ZipMap", ["p"], ["output_probability"], domain=learned, classlabels_strings=names)
    nodes.append(last if zipmap else made("Identity", ["p"], ["output_probability"]))
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(onnx.TensorProto.STRING, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, []))
    )
    kind = maps if zipmap else helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [None, classes])
    outputs = [helper.make_tensor_value_info("output_label", onnx.TensorProto.STRING, [None]),
               helper.make_value_info("output_probability", kind)]  # fmt: skip
    inputs = [helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, [None, 4])]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(learned, 3)]
    graph = helper.make_graph(nodes, "pipeline", inputs, outputs, inits)
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def data_of(path: Path, classes: int = 3) -> Path:
    """Two hundred samples, whose labels are names that follow from the first feature."""
    samples = RNG.normal(1, 2, (200, 4)).astype(np.float32)
    labels = np.array(NAMES)[np.digitize(samples[:, 0], (0, 2)[: classes - 1])]
    np.savez(path, X=samples, labels=labels)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_of(tmp_path / "data.npz")


@pytest.mark.parametrize(("zipmap", "classes"), [(True, 3), (False, 3), (True, 2)])
def test_a_pipeline_is_cut_recovered_trained_and_measured(tmp_path: Path, zipmap: bool, classes: int) -> None:
    model, small = pipeline(tmp_path / "m.onnx", zipmap, classes), tmp_path / "small.onnx"
    data = data_of(tmp_path / "data.npz", classes)
    done: dict[str, Any] = prunecli.structured(model, ratio=0.5, data=data, output=small, timing=False).to_json()
    assert done["after"]["params"] < 0.6 * done["before"]["params"]
    weights = {each.name: tuple(each.dims) for each in onnx.load(small).graph.initializer}
    assert (4, HIDDEN // 2) in weights.values() and (classes,) in weights.values()  # the names of the classes are there
    # what training improves is the probabilities, not the text that is the first output
    trained = tmp_path / "trained.onnx"
    found = prunecli.finetune(small, data=data, epochs=8, rate=0.1, output=trained, timing=False)
    assert found.to_json()["output"] is not None
    before, after = (prunecli.evaluate(each, data=data, latency=False) for each in (small, trained))
    assert after.model.metrics["accuracy"] > before.model.metrics["accuracy"] + 0.1
    named = prunecli.evaluate(trained, data=data, latency=False, output_name="output_label")
    assert named.model.metrics["accuracy"] == after.model.metrics["accuracy"]


def test_text_is_no_obstacle_for_zeros(tmp_path: Path, data: Path) -> None:
    model = pipeline(tmp_path / "m.onnx", True)
    found: dict[str, Any] = prunecli.oneshot(model, sparsity=0.5, data=data, output=tmp_path / "o.onnx").to_json()
    assert found["sparsity"] == pytest.approx(0.5, abs=0.02)
