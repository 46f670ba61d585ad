"""Concrete shapes agree with what onnxruntime computes, and open dimensions are stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.errors import PruneError
from prunecli.inputs import random_inputs
from prunecli.model import Dims, concrete_shapes, load
from prunecli.model.shapes import input_specs
from tests.model.build import floats, info, loaded, node, proto
from tests.tiny import REAL_MODELS


def ints(name: str, *values: int) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))


def scalar(name: str, value: Any) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))


def body(name: str, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, inputs, [info(o, None) for o in outputs])


FLATTEN = [
    node("Shape", ["x"], ["s"]), ints("zero", 0), ints("rest", -1),
    node("Gather", ["s", "zero"], ["n"]), node("Concat", ["n", "rest"], ["t"], axis=0),
    node("Reshape", ["x", "t"], ["y"]),
]  # fmt: skip
THEN = body("then", [node("Relu", ["x"], ["t"])], [], ["t"])
SAME = body("same", [node("Neg", ["x"], ["e"])], [], ["e"])
FLAT = body("flat", [node("Flatten", ["x"], ["e"])], [], ["e"])
STEP = body(
    "step",
    [node("MatMul", ["h", "w"], ["h2"]), node("Identity", ["h2"], ["o"]), node("Identity", ["c"], ["c2"])],
    [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("h", None)],
    ["c2", "h2", "o"],
)
GROW = body(
    "grow",
    [node("Concat", ["h", "h"], ["h2"], axis=0), node("Identity", ["c"], ["c2"])],
    [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("h", None)],
    ["c2", "h2"],
)
SCAN = body(
    "scan",
    [node("Add", ["acc", "row"], ["acc2"]), node("Identity", ["acc2"], ["out"])],
    [info("acc", None), info("row", None)],
    ["acc2", "out"],
)


def if_node(condition: str, other: onnx.GraphProto) -> onnx.NodeProto:
    return node("If", [condition], ["y"], then_branch=THEN, else_branch=other)


def loop(condition: str, outputs: list[str], steps: onnx.GraphProto = STEP) -> list[onnx.NodeProto]:
    return [scalar("m", np.int64(5)), node("Loop", ["m", condition, "x"], outputs, body=steps)]


def scan(outputs: list[str]) -> list[onnx.NodeProto]:
    start = [ints("a", 0), node("ReduceSum", ["x", "a"], ["s"], keepdims=0)]
    return [*start, node("Scan", ["s", "x"], outputs, body=SCAN, num_scan_inputs=1)]


def counting(stop: int, step: int) -> list[onnx.NodeProto]:
    bounds = [scalar(name, np.int64(v)) for name, v in zip("abc", (0, stop, step), strict=True)]
    return [*bounds, node("Range", ["a", "b", "c"], ["y"])]


CASES: list[tuple[str, list[onnx.NodeProto], tuple[int, ...] | None]] = [
    ("shape arithmetic", FLATTEN, (4, 6)),
    ("if with equal branches", [if_node("cond", SAME)], (4, 2, 3)),
    ("if with other branches", [if_node("cond", FLAT)], None),
    ("if that is decided", [scalar("b", False), if_node("b", FLAT)], (4, 6)),
    ("loop carried", loop("", ["y", "z"]), (4, 2, 3)),
    ("loop stacked", loop("", ["z", "y"]), (5, 4, 2, 3)),
    ("loop that may end", loop("cond", ["z", "y"]), None),
    ("loop that grows", loop("", ["y"], GROW), None),
    ("scan state", scan(["y", "z"]), (2, 3)),
    ("scan stacked", scan(["z", "y"]), (4, 2, 3)),
    ("data dependent", [node("NonZero", ["x"], ["y"])], None),
    ("after a data dependent one", [node("NonZero", ["x"], ["n"]), node("Neg", ["n"], ["y"])], None),
    ("unknown operator", [node("Odd", ["x"], ["y"], domain="my")], None),
    ("malformed loop", [node("Loop", ["x"], ["y"])], None),
    ("loop with too many inputs", [scalar("n", 3), node("Loop", ["n", "", "x", "x"], ["y"], body=GROW)], None),
    ("scan of a scalar", [scalar("n", 1.0), node("Scan", ["x", "n"], ["a", "y"], body=SCAN, num_scan_inputs=1)], None),
    ("range", counting(7, 2), (4,)),
    (
        "range without a step",
        [scalar("a", 0), scalar("b", 7), scalar("c", 0), node("Range", ["a", "b", "c"], ["y"])],
        (0,),
    ),
    ("absurd range", counting(1 << 60, 1), (1 << 60,)),
    (
        "range beyond the integers",
        [
            scalar("a", -(1 << 62) * 2),
            scalar("b", (1 << 63) - 1),
            scalar("c", 1 << 31),
            node("Range", ["a", "b", "c"], ["y"]),
        ],
        (0,),
    ),
    ("comparison before opset 16", [scalar("n", np.float32(1)), node("GreaterOrEqual", ["n", "x"], ["y"])], (4, 2, 3)),
    ("no input", [node("QuickGelu", [""], ["y"], domain="com.microsoft")], None),
    ("no opset of the domain", [node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml")], None),
    ("scan with too few inputs", [node("Scan", ["x"], ["z", "y"], body=SCAN, num_scan_inputs=1)], None),
    ("absurd tile", [ints("r", 1 << 40, 1, 1), node("Tile", ["x", "r"], ["y"])], (1 << 42, 2, 3)),
    ("window larger than the input", [node("MaxPool", ["x"], ["y"], kernel_shape=[9])], None),
]


@pytest.mark.parametrize(("name", "nodes", "shape"), CASES, ids=[c[0] for c in CASES])
def test_shapes_of_hard_cases(
    name: str, nodes: list[onnx.NodeProto], shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    opset = 13 if "before" in name else 17
    model = proto(nodes, {"x": ("n", 2, 3), "cond": ()}, weights={"w": floats(3, 3)}, opset=opset, domains=["my"])
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    shapes = concrete_shapes(loaded(model, tmp_path), Dims({"n": 4}))
    y = shapes_by_name(shapes)["y"]
    assert y == shape
    assert (shape is None) <= bool(shapes.facts.problems)


def shapes_by_name(shapes: Any) -> dict[str, Any]:
    return {v.name: None for v in _values(shapes)} | {v.name: shape for v, shape in shapes.facts.shapes.items()}


def _values(shapes: Any) -> list[Any]:
    return [out for n in shapes.facts.problems for out in n.outputs]


def test_functions_take_shapes_and_attributes_from_the_call(tmp_path: Path) -> None:
    function = helper.make_function(
        "my", "Flat", ["a", "unused"], ["o"], [node("Flatten", ["a"], ["o"])], [helper.make_opsetid("", 17)], ["axis"]
    )
    function.node[0].attribute.add(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    nodes = [node("Flat", ["x"], ["a"], domain="my", axis=2), node("Flat", ["x", ""], ["b"], domain="my")]
    model = proto(nodes, {"x": (4, 2, 3)}, ["a", "b"], functions=[function], domains=["my"])
    shapes = concrete_shapes(loaded(model, tmp_path))
    assert [shapes.facts.shapes[n.outputs[0]] for n in shapes.facts.inner] == [(8, 3), (4, 6)]


def dims_of(inputs: dict[str, Any], tmp_path: Path, **given: Any) -> Any:
    nodes = [node("Identity", [name], [f"y{i}"]) for i, name in enumerate(inputs)]
    model = loaded(proto(nodes, inputs, [f"y{i}" for i in range(len(inputs))]), tmp_path)
    return concrete_shapes(model, Dims.parse(given.get("dim", ()), given.get("shape", ())))


def test_open_dimensions_are_assumed_and_stated(tmp_path: Path) -> None:
    shapes = dims_of({"x": ("batch", 3, "h", None), "t": ("batch", "length")}, tmp_path)
    assert shapes.inputs == {"x": (1, 3, 64, 64), "t": (1, 16)}
    assert shapes.assumed == (
        "batch = 1",  # of both
        "h of x = 64",
        "axis 3 of x = 64",
        "length of t = 16",
    )


def test_a_target_of_another_number_of_elements_is_a_problem(tmp_path: Path) -> None:
    """Exporters bake a length into a Reshape and still call it dynamic: at another one there is no shape."""
    model = loaded(proto([ints("t", 2, 5, 4), node("Reshape", ["x", "t"], ["y"])], {"x": ("n", 4)}), tmp_path)
    right, wrong = (concrete_shapes(model, Dims({"n": n})) for n in (10, 16))
    (y,) = model.ir.graph.outputs
    assert (right.facts.shape(y), wrong.facts.shape(y)) == ((2, 5, 4), None)
    assert list(wrong.facts.problems.values()) == ["(16, 4) does not fit into (2, 5, 4)"]


def test_stated_dimensions_are_not_assumptions(tmp_path: Path) -> None:
    inputs = {"x": ("batch", 3, "h", "w"), "t": ("batch", "length")}
    shapes = dims_of(inputs, tmp_path, dim=["batch=2", "h=32", "w=32", "length=5"])
    assert (shapes.inputs, shapes.assumed) == ({"x": (2, 3, 32, 32), "t": (2, 5)}, ())
    shapes = dims_of(inputs, tmp_path, shape=["x:2,3,8,8", "t:2,9"])
    assert (shapes.inputs, shapes.assumed) == ({"x": (2, 3, 8, 8), "t": (2, 9)}, ())


def test_negative_dimensions_are_open(tmp_path: Path) -> None:
    assert dims_of({"x": (-1, 3)}, tmp_path).inputs == {"x": (1, 3)}


def test_images_take_the_first_size_that_fits(tmp_path: Path) -> None:
    """A pooling window of 100 does not fit into 64 pixels."""
    nodes = [node("MaxPool", ["x"], ["y"], kernel_shape=[100, 100])]
    shapes = concrete_shapes(loaded(proto(nodes, {"x": ("n", 3, "h", "w")}), tmp_path))
    assert shapes.inputs["x"][2] in (128, 224)


BAD_DIMS = [
    ({"dim": ["batch"]}, "not understood"),
    ({"dim": ["batch=x"]}, "not understood"),
    ({"dim": ["batch=0"]}, "not understood"),
    ({"dim": ["=3"]}, "not understood"),
    ({"dim": ["batch=1,2"]}, "one number"),
    ({"dim": ["batch=9223372036854775807"]}, "would be of shape (9223372036854775807, 3, "),
    ({"shape": ["x:1,3,8,99999999999999999999"]}, "would be of shape"),
    ({"dim": ["bath=1"]}, "no dimension of that name"),
    ({"shape": ["x"]}, "not understood"),
    ({"shape": ["x:1,,2"]}, "not understood"),
    ({"shape": ["z:1,2"]}, "no input named z"),
    ({"shape": ["x:1,3,8"]}, "3 dimensions"),
    ({"shape": ["x:1,4,8,8"]}, "does not fit"),
]


@pytest.mark.parametrize(("given", "words"), BAD_DIMS, ids=[str(b[0]) for b in BAD_DIMS])
def test_bad_dimensions(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError) as caught:
        dims_of({"x": ("batch", 3, "h", "w")}, tmp_path, **given)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("path", REAL_MODELS)
def test_real_models_against_onnxruntime(path: Path, tmp_path: Path) -> None:
    """Every value of the main graph: known, and of the shape that onnxruntime computes."""
    model = load(path)
    shapes = concrete_shapes(model)
    assert not shapes.facts.problems
    produced = {out.name: shapes.facts.shape(out) for n in model.ir.graph for out in n.outputs if out.name}
    assert None not in produced.values()
    feed = random_inputs(input_specs(model.ir), shapes=shapes.inputs)
    for name, array in computed(path, list(produced), feed, tmp_path).items():
        assert array.shape == produced[name], name


def computed(path: Path, names: list[str], feed: dict[str, Any], folder: Path) -> dict[str, Any]:
    import onnxruntime

    whole = onnx.load(str(path))
    kept = {o.name for o in whole.graph.output}
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = whole.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feed), strict=True))


LEARNT: dict[str, dict[str, Any]] = {
    "Scaler": {"offset": [0.1] * 3, "scale": [2.0] * 3},
    "Imputer": {"imputed_value_floats": [0.5], "replaced_value_float": 0.0},
    "Normalizer": {"norm": "L2"},
    "Binarizer": {"threshold": 0.5},
    "FeatureVectorizer": {"inputdimensions": [3]},
    "LinearRegressor": {"coefficients": [1.0] * 6, "intercepts": [0.0, 0.0], "targets": 2},
    "SVMRegressor": {"coefficients": [1.0, 2.0], "kernel_params": [1.0, 0.0, 3.0], "kernel_type": "LINEAR",
                     "n_supports": 2, "rho": [0.1], "support_vectors": [1.0] * 6},
}  # fmt: skip


@pytest.mark.parametrize("op", LEARNT)
def test_classical_operators(op: str, tmp_path: Path) -> None:
    """Shape and type as onnxruntime computes them."""
    import onnxruntime

    model = proto([node(op, ["x"], ["y"], domain="ai.onnx.ml", **LEARNT[op])], {"x": ("n", 3)}, domains=["ai.onnx.ml"])
    file = loaded(model, tmp_path)
    found = concrete_shapes(file, Dims({"n": 5}))
    ran = onnxruntime.InferenceSession(str(file.path)).run(None, {"x": np.ones((5, 3), np.float32)})[0]
    assert found.facts.shape(file.ir.graph.outputs[0]) == ran.shape and not found.facts.problems
    assert found.facts.dtypes[file.ir.graph.outputs[0]] == helper.np_dtype_to_tensor_dtype(ran.dtype)
