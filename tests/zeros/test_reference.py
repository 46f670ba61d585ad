"""The reference of the proof is the file with its weights masked, wherever they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunecli.errors import PruneError
from prunecli.masks.decide import Recipe, decide
from prunecli.model import SaveOptions, find_weights, load, save
from prunecli.zeros.reference import masked_reference
from prunecli.zeros.zero import Zeroed, target_of
from tests.model.build import big, floats, info, linear, node, proto, save_proto

W = floats(3, 4)
MASKED = np.where(np.abs(W) < 0.5, np.float32(0), W)
RECIPE = Recipe(threshold=0.5)


def zeroed_of(path: Path) -> list[Zeroed]:
    weights = find_weights(load(path)).prunable
    decisions = decide([target_of(w) for w in weights], RECIPE)
    return [Zeroed(w, d, w.tensor) for w, d in zip(weights, decisions, strict=True)]


def reference(path: Path) -> onnx.ModelProto:
    return masked_reference(path, zeroed_of(path))


def constants(graph: onnx.GraphProto | onnx.FunctionProto) -> list[np.ndarray[Any, Any]]:
    return [numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"]


def test_initializers(tmp_path: Path) -> None:
    model = linear()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(W, "w"))
    found = reference(save_proto(model, tmp_path))
    assert numpy_helper.to_array(found.graph.initializer[0]).tobytes() == MASKED.tobytes()
    assert found.graph.initializer[1] == model.graph.initializer[1]


@pytest.mark.parametrize("kind", ["value", "value_floats"])
def test_constants(kind: str, tmp_path: Path) -> None:
    given: Any = numpy_helper.from_array(W) if kind == "value" else W.reshape(-1).tolist()
    if kind == "value_floats":  # as a vector that MatMul reads
        nodes = [node("Constant", [], ["w"], value_floats=given), node("MatMul", ["x", "w"], ["y"])]
        path = save_proto(proto(nodes, {"x": (2, 12)}), tmp_path)
    else:
        nodes = [node("Constant", [], ["w"], value=given), node("MatMul", ["x", "w"], ["y"])]
        path = save_proto(proto(nodes), tmp_path)
    assert constants(reference(path).graph)[0].reshape(-1).tobytes() == MASKED.tobytes()


def two_branches(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """Both branches of an If hold a tensor of the same name."""
    graphs = [
        helper.make_graph([node("MatMul", ["x", "w"], [name])], name, [], [info(name, [2, 4])],
                          [numpy_helper.from_array(values, "w")])
        for name, values in (("yes", left), ("no", right))
    ]  # fmt: skip
    model = proto(
        [node("If", ["cond"], ["y"], then_branch=graphs[0], else_branch=graphs[1])], {"x": (2, 3), "cond": ()}
    )
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    return model


@pytest.mark.parametrize("same", [True, False])
def test_tensors_of_one_name_in_two_branches(same: bool, tmp_path: Path) -> None:
    other = W if same else 2 * W
    found = reference(save_proto(two_branches(W, other), tmp_path))
    graphs = {a.g.name: a.g for a in found.graph.node[0].attribute}
    for name, values in (("yes", W), ("no", other)):
        wanted = np.where(np.abs(values) < 0.5, np.float32(0), values)
        assert numpy_helper.to_array(graphs[name].initializer[0]).tobytes() == wanted.tobytes()


def test_local_functions(tmp_path: Path) -> None:
    body = [node("Constant", [], ["w"], value=numpy_helper.from_array(W)), node("MatMul", ["a", "w"], ["o"])]
    function = helper.make_function("local", "Dense", ["a"], ["o"], body, [helper.make_opsetid("", 17)])
    model = proto([node("Dense", ["x"], ["y"], domain="local")], functions=[function], domains=["local"])
    path = save_proto(model, tmp_path)
    found = zeroed_of(path)
    masked = masked_reference(path, found)
    assert constants(masked.functions[0])[0].tobytes() == (MASKED if found else W).tobytes()


@pytest.mark.parametrize("linear_places", [True, False])
def test_sparse_initializers(linear_places: bool, tmp_path: Path) -> None:
    model = linear()
    places = np.array([1, 6, 11])
    at = places if linear_places else np.stack(np.unravel_index(places, (3, 4)), axis=1)
    values = np.array([0.1, 2.0, -3.0], np.float32)
    sparse = model.graph.sparse_initializer.add(dims=[3, 4])
    sparse.values.CopyFrom(numpy_helper.from_array(values, "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(at.astype(np.int64), "places"))
    del model.graph.initializer[0]
    found = reference(save_proto(model, tmp_path))
    assert not found.graph.sparse_initializer
    dense = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer}["w"]
    wanted = np.zeros(12, np.float32)
    wanted[[6, 11]] = [2.0, -3.0]
    assert dense.reshape(-1).tobytes() == wanted.tobytes()


def test_external_data(tmp_path: Path) -> None:
    save(load(save_proto(big(), tmp_path)), tmp_path / "out.onnx", SaveOptions("always"))
    values = numpy_helper.to_array(big().graph.initializer[0])
    found = reference(tmp_path / "out.onnx")
    wanted = np.where(np.abs(values) < 0.5, np.float32(0), values)
    assert numpy_helper.to_array(found.graph.initializer[0]).tobytes() == wanted.tobytes()


def test_a_weight_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = save_proto(linear(), tmp_path)
    found = zeroed_of(path)
    other = linear()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(2 * W, "w"))
    with pytest.raises(PruneError, match="w was not found again"):
        masked_reference(save_proto(other, tmp_path), found)
