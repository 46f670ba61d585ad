"""Models around the operators: other float types, dynamic shapes, functions, control flow, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.autodiff import differentiate
from prunecli.errors import PruneError
from tests.autodiff.checker import OutputProduct, models, run_gradients

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 4)).astype(np.float32)
X = RNG.standard_normal((2, 3)).astype(np.float32)
SUM = OutputProduct(vector=None)
node = helper.make_node


def graph(nodes: list[onnx.NodeProto], dtype: int = TensorProto.FLOAT, w: np.ndarray = W, opset: int = 20,
          functions: list[onnx.FunctionProto] | None = None, dims: tuple[Any, ...] = ("N", 3)) -> ir.Model:  # fmt: skip
    """x (N, 3) and a stored w (3, 4) to y."""
    x, y = helper.make_tensor_value_info("x", dtype, dims), onnx.ValueInfoProto(name="y")
    built = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(w, "w")])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return ir.from_proto(helper.make_model(built, opset_imports=imports, functions=functions or [], ir_version=9))


def gradient(model: ir.Model, name: str = "w") -> np.ndarray:
    built = differentiate(model, [name], SUM, shapes={"x": X.shape})
    return run_gradients(built, {"x": X, "w": W})[1][name]


def expected() -> np.ndarray:
    """Of sum(relu(x w)) by w."""
    return X.T @ (X @ W > 0).astype(np.float32)


PLAIN_AGAIN = [node("MatMul", ["x", "w"], ["q"]), node("Relu", ["q"], ["y"])]
PLAIN = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])]


@pytest.mark.parametrize(("dtype", "kind"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)])
def test_other_float_types_are_computed_in_single_precision(dtype: int, kind: Any) -> None:
    # the weights as stored are used: float16 keeps 11 bits of them
    np.testing.assert_allclose(gradient(graph(PLAIN, dtype, W.astype(kind))), expected(), atol=1e-5)


NOT_THERE: list[tuple[str, str, int, dict[str, Any], str]] = [
    # wrt, shape of x, opset, loss, message
    ("v", "x", 20, {}, "no tensor named v"),
    ("w", "z", 20, {}, "the input x has no shape"),
    ("w", "x", 6, {}, "opset 6; gradients need 7"),
    ("w", "x", 20, {"output": "z"}, "no value named z"),
    ("w", "x", 20, {"vector": "x"}, "an input named x, but there is one already"),
]


@pytest.mark.parametrize(("wrt", "given", "opset", "loss", "message"), NOT_THERE, ids=[case[-1] for case in NOT_THERE])
def test_what_is_not_there_is_named(wrt: str, given: str, opset: int, loss: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError) as caught:
        differentiate(
            graph(PLAIN, opset=opset), [wrt], OutputProduct(**{"vector": None, **loss}), shapes={given: X.shape}
        )
    assert message in caught.value.message


def test_names_of_the_model_are_left_to_it() -> None:
    nodes = [node("MatMul", ["x", "w"], ["grad/1"]), node("Relu", ["grad/1"], ["y"])]
    np.testing.assert_allclose(gradient(graph(nodes)), expected(), atol=1e-5)


def test_half_precision_constants_of_a_node_are_read_in_single_precision() -> None:
    fill = numpy_helper.from_array(np.ones(1, np.float16))
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Shape", ["h"], ["s"]), node("ConstantOfShape", ["s"], ["o"], value=fill),
             node("Mul", ["h", "o"], ["m"]), node("Relu", ["m"], ["y"])]  # fmt: skip
    model = graph(nodes, TensorProto.FLOAT16, W.astype(np.float16))
    np.testing.assert_allclose(gradient(model), expected(), atol=1e-5)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20, 21, 23])
def test_any_opset(opset: int) -> None:
    np.testing.assert_allclose(gradient(graph(PLAIN, opset=opset)), expected(), atol=1e-5)


def test_a_dynamic_reshape_is_worked_out() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Shape", ["h"], ["s"]), node("Reshape", ["h", "minus"], ["f"]),
             node("Reshape", ["f", "s"], ["r"]), node("Relu", ["r"], ["y"])]  # fmt: skip
    nodes.insert(0, node("Constant", [], ["minus"], value_ints=[-1]))
    np.testing.assert_allclose(gradient(graph(nodes)), expected(), atol=1e-5)


def test_functions_are_inlined() -> None:
    body = [node("MatMul", ["a", "b"], ["c"]), node("Relu", ["c"], ["d"])]
    own = helper.make_function("own", "Layer", ["a", "b"], ["d"], body, [helper.make_opsetid("", 20)])
    np.testing.assert_allclose(
        gradient(graph([node("Layer", ["x", "w"], ["y"], domain="own")], functions=[own])), expected(), atol=1e-5
    )


def branch(*nodes: onnx.NodeProto, out: str) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [onnx.ValueInfoProto(name=out)])


def if_node(condition: str) -> onnx.NodeProto:
    return node("If", [condition], ["y"], name="choice", then_branch=branch(node("Relu", ["h"], ["a"]), out="a"),
                else_branch=branch(node("Tanh", ["h"], ["b"]), out="b"))  # fmt: skip


def test_an_if_with_a_known_condition_is_its_branch() -> None:
    known = node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    np.testing.assert_allclose(gradient(graph([known, PLAIN[0], if_node("c")])), expected(), atol=1e-5)


def loop(out: str) -> list[onnx.NodeProto]:
    infos = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    state = helper.make_tensor_value_info("s", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [node("Identity", ["c"], ["c2"]), node("Tanh", ["s"], ["s2"])], "body", [*infos, state],
        [onnx.ValueInfoProto(name="c2"), onnx.ValueInfoProto(name="s2")])  # fmt: skip
    return [node("Constant", [], ["n"], value_int=2), node("Loop", ["n", "", "h"], [out], name="again", body=body)]


def scan() -> onnx.NodeProto:
    x = helper.make_tensor_value_info("row", TensorProto.FLOAT, None)
    body = helper.make_graph([node("Tanh", ["row"], ["o"])], "body", [x], [onnx.ValueInfoProto(name="o")])
    return node("Scan", ["h"], ["y"], name="rows", num_scan_inputs=1, body=body)


POSITIVE = [node("ReduceSum", ["x"], ["t"], keepdims=0), node("Greater", ["t", "t"], ["c"])]
# nodes after h = x w -> the words the error must hold: operator, node, what it blocks
REFUSED: dict[str, tuple[list[onnx.NodeProto], tuple[str, ...]]] = {
    "If on data": ([*POSITIVE, if_node("c")], ("If", "choice", "w")),
    "Loop": (loop("y"), ("Loop", "again", "w")),
    "Scan": ([scan()], ("Scan", "rows", "w")),
    "Det": ([node("MatMul", ["h", "h"], ["q"], name="q"), node("Det", ["h"], ["y"], name="volume")], ("Det", "volume", "w")),
    "custom": ([node("Secret", ["h"], ["y"], name="mine", domain="own")], ("Secret", "mine")),
    "quantized": ([node("DynamicQuantizeLinear", ["h"], ["q", "s", "z"], name="quant"), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
                  ("quant",)),
    "Mod by w": ([node("Mod", ["h", "h"], ["y"], name="rest", fmod=1)], ("Mod", "rest")),
    "scatter max": ([node("Constant", [], ["at"], value=numpy_helper.from_array(np.array([[0]]))), node("GatherND", ["h", "at"], ["u"]),
                     node("ScatterND", ["h", "at", "u"], ["y"], name="scatter", reduction="max")], ("ScatterND", "scatter", "max")),
    "data dependent shape": ([node("NonZero", ["h"], ["nz"]), node("Transpose", ["nz"], ["at"]), node("GatherND", ["h", "at"], ["g"]), node("Exp", ["g"], ["y"])],
                             ("shape",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_differentiated_is_named_before_anything_runs(name: str) -> None:
    nodes, words = REFUSED[name]
    with pytest.raises(PruneError) as caught:
        differentiate(graph([PLAIN[0], *nodes]), ["w"], SUM, shapes={"x": X.shape})
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.hint


def test_a_loop_beside_the_path_does_not_matter() -> None:
    nodes = [node("Identity", ["x"], ["h"]), *loop("z"), *PLAIN_AGAIN]
    np.testing.assert_allclose(gradient(graph(nodes)), expected(), atol=1e-5)


def test_blocked_convolutions_share_their_reordered_input_and_keep_names() -> None:
    """Two convolutions of one image, one of them an output of the model; compared with stored weights."""
    from prunecli.autodiff import DifferentiationOptions

    rng = np.random.default_rng(1)
    tensors = {k: rng.standard_normal((16, 16, 3, 3)).astype(np.float32) for k in ("a", "b")}
    nodes = [
        node("Conv", ["x", "a"], ["p"], pads=[1] * 4),
        node("Conv", ["x", "b"], ["q"], pads=[1] * 4),
        node("Mul", ["p", "q"], ["y"]),
    ]
    model = models(nodes, {"x": [2, 16, 5, 6]}, ["y"], tensors)
    feed = {"x": rng.standard_normal((2, 16, 5, 6)).astype(np.float32), **tensors}
    found = []
    for fed in (True, False):
        options = DifferentiationOptions(weights_as_inputs=fed, outputs=("p", "y"))
        built = differentiate(model, ["a", "b"], SUM, shapes={"x": (2, 16, 5, 6)}, options=options)
        assert set(built.outputs) == {"p", "y"}
        found.append(run_gradients(built, feed)[1])
    for name in tensors:
        # sums of 60 products: both kernels are within 1e-5 of their size
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-3)


def embedding_bag(opset: int) -> ir.Model:
    """As PyTorch writes it: a Loop over the bags, each of which means a slice of the table's rows."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            node("Unsqueeze", ["i", "zero"], ["start"]), node("Add", ["start", "one"], ["end"]),
            node("Slice", ["ids", "start", "end", "zero"], ["row"]), node("Gather", ["table", "row"], ["found"]),
            node("ReduceSum", ["found", "zero"], ["bag"], keepdims=0), node("Identity", ["before"], ["after"]),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("before", TensorProto.BOOL, [])],
        [value("after", TensorProto.BOOL, []), value("bag", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        node("Loop", ["three", "true"], ["bags"], body=body, name="/bag/Loop"),
        node("MatMul", ["bags", "w"], ["y"]),
    ]
    stored = {"table": RNG.standard_normal((5, 4)).astype(np.float32), "w": W.T.copy(), "zero": np.array([0]),
              "one": np.array([1]), "three": np.array(3), "true": np.array(True)}  # fmt: skip
    built = helper.make_graph(nodes, "g", [value("ids", TensorProto.INT64, [3])], [onnx.ValueInfoProto(name="y")],
                              [numpy_helper.from_array(a, n) for n, a in stored.items()])  # fmt: skip
    return ir.from_proto(helper.make_model(built, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


@pytest.mark.parametrize(
    ("opset", "wrt", "reason"),
    [
        (
            20,
            "table",
            r"no gradient through Loop '/bag/Loop': control flow is not differentiated; it lies between table",
        ),
        (20, "w", r"the shape of y is not known before running, because of Loop '/bag/Loop'"),
        (17, "w", r"no gradient of a model of opset 17 with Loop '/bag/Loop': control flow"),
    ],
)
def test_the_loop_of_an_embedding_bag_is_refused_by_name(opset: int, wrt: str, reason: str) -> None:
    with pytest.raises(PruneError, match=reason) as refused:
        differentiate(embedding_bag(opset), [wrt], SUM, shapes={"ids": (3,)})
    assert (wrt == "w" and opset == 20) or "EmbeddingBag" in refused.value.hint
