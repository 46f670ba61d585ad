"""The outline of a model is blind to values of weights and to form, and to nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.model import find_weights, load, save
from prunecli.verify.outline import outline
from tests.model.build import floats, info, node, proto, save_proto
from tests.tiny import REAL_MODELS

Change = Callable[[onnx.ModelProto], object]


def rich() -> onnx.ModelProto:
    """One of each part that an outline looks at."""
    inner = helper.make_graph([node("MatMul", ["h", "v"], ["i"], "in")], "then", [], [info("i", [2, 4])],
                              [numpy_helper.from_array(floats(4, 4), "v")])  # fmt: skip
    other = helper.make_graph([node("Identity", ["h"], ["e"])], "else", [], [info("e", [2, 4])])
    body = [node("Constant", [], ["c"], value_float=2.0), node("Mul", ["a", "c"], ["o"])]
    function = helper.make_function("local", "Scaled", ["a"], ["o"], body, [helper.make_opsetid("", 17)])
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "fc"),
        node("If", ["cond"], ["b"], then_branch=inner, else_branch=other),
        node("Scaled", ["b"], ["s"], domain="local"),
        node("ConstantOfShape", ["n"], ["z"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        node("Constant", [], ["k"], value=numpy_helper.from_array(floats(3), "k")),
        node("Constant", [], ["axes"], value_ints=[0, 1]),
        node("Flip", ["s", "z", "k", "axes"], ["y"], "", domain="custom", order="down", zero=0.0),
    ]
    weights = {"w": floats(3, 4), "b": floats(4), "n": np.array([4])}
    model = proto(nodes, {"x": ("batch", 3), "cond": ()}, ["y"], weights, 17, [function], ["local", "custom"])
    model.graph.value_info.extend([info("h", [2, 4]), info("s", [2, 4])])
    model.metadata_props.add(key="author", value="somebody")
    model.graph.quantization_annotation.add(tensor_name="h")
    return model


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def branch(model: onnx.ModelProto) -> onnx.GraphProto:
    return next(a.g for a in model.graph.node[1].attribute if a.name == "then_branch")


def reverse(parts: object) -> None:
    kept = [type(p).FromString(p.SerializeToString()) for p in parts][::-1]  # type: ignore[attr-defined]
    del parts[:]  # type: ignore[attr-defined]
    parts.extend(kept)  # type: ignore[attr-defined]


def as_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(floats(1), "b"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1]), "places"))
    model.graph.initializer.remove(initializer(model, "b"))


def as_floats(model: onnx.ModelProto) -> None:
    """A Constant that holds its floats in another of the three forms."""
    del model.graph.node[4].attribute[:]
    model.graph.node[4].attribute.append(helper.make_attribute("value_floats", [1.0, 2.0, 3.0]))


# a change of form or of weights -> no difference
SAME: dict[str, Change] = {
    "nothing": lambda m: None,
    "weights": lambda m: initializer(m, "w").CopyFrom(numpy_helper.from_array(floats(3, 4, seed=1), "w")),
    "inner weights": lambda m: branch(m).initializer[0].CopyFrom(numpy_helper.from_array(floats(4, 4, seed=1), "v")),
    "form of a constant": as_floats,
    "sparse": as_sparse,
    "absent and empty domain": lambda m: m.graph.node[0].ClearField("domain"),
    "present and empty domain": lambda m: setattr(m.graph.node[0], "domain", ""),
    "standard domain": lambda m: setattr(m.graph.node[0], "domain", "ai.onnx"),
    "standard opset": lambda m: setattr(m.opset_import[0], "domain", "ai.onnx"),
    "empty text": lambda m: setattr(m, "doc_string", ""),
    "order of infos": lambda m: reverse(m.graph.value_info),
    "order of initializers": lambda m: reverse(m.graph.initializer),
    "order of nodes": lambda m: reverse(m.graph.node),
    "order of opsets": lambda m: reverse(m.opset_import),
    "repeated initializer": lambda m: m.graph.initializer.append(initializer(m, "w")),
    "own metadata": lambda m: m.metadata_props.add(key="prunecli.version", value="1"),
    "outputs left out at the end": lambda m: m.graph.node[0].output.extend(["", ""]),
    "untyped info": lambda m: m.graph.value_info.add(name="s2"),
    "order of attributes": lambda m: reverse(m.graph.node[1].attribute),
    "metadata twice": lambda m: m.metadata_props.add(key="author", value="somebody"),
    "info twice": lambda m: m.graph.value_info.append(info("h", [2, 4])),
    "opset twice": lambda m: m.opset_import.add(domain="", version=17),
    "opset under both names": lambda m: m.opset_import.add(domain="ai.onnx", version=17),
    "opset that a later one replaces": lambda m: m.opset_import.insert(0, helper.make_opsetid("", 9)),
    "opset of a function twice": lambda m: m.functions[0].opset_import.add(domain="ai.onnx", version=17),
    "model version of 0": lambda m: setattr(m, "model_version", 0),
    "value of another type": lambda m: setattr(m.graph.node[6].attribute[0], "i", 3),
}
# a change of meaning -> a difference
OTHER: dict[str, Change] = {
    "node name": lambda m: setattr(m.graph.node[0], "name", "other"),
    "operator": lambda m: setattr(m.graph.node[0], "op_type", "Gemm"),
    "operator domain": lambda m: setattr(m.graph.node[0], "domain", "custom"),
    "input": lambda m: m.graph.node[0].input.__setitem__(1, "b"),
    "attribute": lambda m: setattr(m.graph.node[6].attribute[0], "s", b"up"),
    "attribute tensor": lambda m: m.graph.node[3].attribute[0].t.CopyFrom(numpy_helper.from_array(floats(1))),
    "integers of a constant": lambda m: m.graph.node[5].attribute[0].ints.append(2),
    "dropped node": lambda m: m.graph.node.pop(),
    "inner node": lambda m: setattr(branch(m).node[0], "name", "other"),
    "inner initializer": lambda m: setattr(branch(m).initializer[0], "name", "u"),
    "initializer name": lambda m: setattr(initializer(m, "b"), "name", "c"),
    "initializer type": lambda m: setattr(initializer(m, "b"), "data_type", TensorProto.DOUBLE),
    "initializer shape": lambda m: initializer(m, "b").dims.insert(0, 1),
    "dropped initializer": lambda m: m.graph.initializer.remove(initializer(m, "b")),
    "function body": lambda m: setattr(m.functions[0].node[1], "op_type", "Add"),
    "function name": lambda m: setattr(m.functions[0], "name", "Other"),
    "input dimension": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "n"),
    "info": lambda m: m.graph.value_info.pop(),
    "annotation": lambda m: m.graph.quantization_annotation.pop(),
    "metadata": lambda m: setattr(m.metadata_props[0], "value", "somebody else"),
    "text": lambda m: setattr(m, "doc_string", "a model"),
    "opset": lambda m: setattr(m.opset_import[0], "version", 18),
    "producer": lambda m: setattr(m, "producer_name", "else"),
    "output": lambda m: setattr(m.graph.output[0], "name", "s"),
    "opset that replaces one": lambda m: m.opset_import.add(domain="ai.onnx", version=18),
    "metadata that replace some": lambda m: m.metadata_props.add(key="author", value="else"),
    "dimension of 0": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 0),
    "sign of a zero": lambda m: setattr(m.graph.node[6].attribute[1], "f", -0.0),
}


@pytest.mark.parametrize(("change", "same"), [(n, True) for n in SAME] + [(n, False) for n in OTHER])
def test_what_an_outline_sees(change: str, same: bool, tmp_path: Path) -> None:
    before, after = rich(), rich()
    {**SAME, **OTHER}[change](after)
    found = [outline(save_proto(model, tmp_path)) for model in (before, after)]
    assert (found[0] == found[1]) == same


def test_an_old_version_is_raised_to_the_first_with_free_initializers(tmp_path: Path) -> None:
    models = [rich(), rich(), rich()]
    for model, version in zip(models, (3, 4, 5), strict=True):
        model.ir_version = version
    three, four, five = (outline(save_proto(model, tmp_path)) for model in models)
    assert three == four
    assert four != five


@pytest.mark.parametrize("path", REAL_MODELS)
def test_loading_and_saving_real_models_leaves_the_outline(path: Path, tmp_path: Path) -> None:
    model = load(path)
    find_weights(model)
    save(model, tmp_path / "m.onnx")
    assert outline(tmp_path / "m.onnx") == outline(path)
