"""What operators ask of inputs whose sizes the file leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from prunecli.errors import PruneError
from prunecli.model import Dims, concrete_shapes, load
from prunecli.model.shapes import demands, require_ranks
from prunecli.operators import NO_DEMAND, Demand
from tests.dependency.net import Net
from tests.model.build import floats, info, loaded, node, proto, save_proto

WHOLE: dict[str, tuple[Callable[[Net, str], Any], tuple[int | None, ...]]] = {
    "Conv": (lambda n, x: n("Conv", x, n.w(8, 3, 3, 3)), (None, 3, None, None)),
    "Conv in groups": (lambda n, x: n("Conv", x, n.w(8, 3, 3), group=2), (None, 6, None)),
    "ConvTranspose": (lambda n, x: n("ConvTranspose", x, n.w(5, 3, 2, 2)), (None, 5, None, None)),
    "Gemm": (lambda n, x: n("Gemm", x, n.w(6, 4)), (None, 6)),
    "Gemm transposed": (lambda n, x: n("Gemm", x, n.w(4, 6), transA=1, transB=1), (6, None)),
    "Gemm from the right": (lambda n, x: n("Gemm", n.w(4, 6), x), (6, None)),
    "LSTM": (lambda n, x: n("LSTM", x, n.w(1, 8, 5), n.w(1, 8, 2), hidden_size=2), (None, None, 5)),
    "Transpose": (lambda n, x: n("Conv", n("Transpose", x, perm=[0, 3, 1, 2]), n.w(8, 3, 3, 3)), (None, None, None, 3)),
    "Transpose alone": (lambda n, x: n("Transpose", x, perm=[1, 0]), (None, None)),
    "Cast, Relu": (lambda n, x: n("Gemm", n("Relu", n("Cast", x, to=1)), n.w(6, 4)), (None, 6)),
    "BatchNormalization": (
        lambda n, x: n("Conv", n("BatchNormalization", x, *[n.positive(3) for _ in range(4)]), n.w(8, 3, 3, 3)),
        (None, 3, None, None),
    ),
    "pooling, then BatchNormalization": (
        lambda n, x: n("Conv", n("MaxPool", x, kernel_shape=[2, 2]), n.w(8, 3, 3, 3)), (None, 3, None, None)),
    "pooling alone": (lambda n, x: n("MaxPool", x, kernel_shape=[2, 2]), (None,) * 4),
    "constants": (lambda n, x: n("Gemm", n("Sub", x, n.w(1, 6)), n.w(6, 4)), (None, 6)),
    "weight behind Transpose": (lambda n, x: n("Gemm", x, n("Transpose", n.w(4, 6), perm=[1, 0])), (None, 6)),
    "Unsqueeze": (lambda n, x: n("Conv", n("Unsqueeze", x, n.c([1])), n.w(8, 1, 3)), (None, None)),
    "Pad": (lambda n, x: n("Gemm", n("Pad", x, n.c([0, 1, 0, 1])), n.w(6, 4)), (None, 4)),
    "Resize": (
        lambda n, x: n("Conv", n("Resize", x, "", n.c(np.array([1, 1, 2, 2], np.float32))), n.w(8, 3, 1, 1)),
        (None, 3, None, None)),
    "LayerNormalization, Gemm": (lambda n, x: n("Gemm", n("LayerNormalization", x, n.w(6)), n.w(6, 4)), (None, 6)),
}  # fmt: skip
LAST: dict[str, tuple[Callable[[Net, str], Any], tuple[int | None, ...]]] = {
    "MatMul": (lambda n, x: n("MatMul", x, n.w(6, 4)), (None, 6)),
    "constant": (lambda n, x: n("Mul", x, n.w(3, 1, 1)), (3, None, None)),
    "LayerNormalization": (lambda n, x: n("LayerNormalization", x, n.w(6)), (6,)),
    "nothing": (lambda n, x: n("Flatten", x), ()),
    "nothing of two inputs": (lambda n, x: n("Add", x, n.x(2, 3)), ()),
    "malformed": (lambda n, x: n("Conv", x, n.w(8, 3)), ()),
    "by what has no constant weight": (lambda n, x: n("Conv", x, n.x(2, 3, 3)), ()),
}


@pytest.mark.parametrize(
    ("build", "sizes", "whole"),
    [(*case, True) for case in WHOLE.values()] + [(*case, False) for case in LAST.values()],
    ids=[*WHOLE, *LAST],
)
def test_what_an_input_is_asked_for(build: Any, sizes: tuple[int | None, ...], whole: bool) -> None:
    net = Net(17)
    net.inputs.append(info("x", None))
    net.out(build(net, "x"))
    graph = helper.make_graph(net.nodes, "g", net.inputs, [info(o, None) for o in net.outputs], net.initializers)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    found = demands(model)["x"]
    assert found == Demand(sizes, whole)


def test_demands_add_up() -> None:
    assert Demand((None, 3)) | Demand((2, 4, None, None), True) == Demand((2, 4, None, 3), True)
    assert Demand((1, 2), True) | Demand((5, 6, 7)) == Demand((1, 2), True)
    assert NO_DEMAND | Demand((3,)) == Demand((3,))


@pytest.mark.parametrize(
    ("dims", "expected"),
    [(None, (1, 3, 64, 64)), ([None] * 4, (1, 3, 64, 64)), (["?"] * 4, (1, 3, 64, 64)), (list("nchw"), (1, 3, 64, 64)),
     (["n", 3, 8, "w"], (1, 3, 8, 64))],
)  # fmt: skip
def test_sizes_that_a_file_leaves_open(dims: Any, expected: tuple[int, ...], tmp_path: Any) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"])]
    model = loaded(proto(nodes, {"x": dims}, weights={"w": floats(4, 3, 3, 3)}), tmp_path)
    require_ranks(model, Dims())
    shapes = concrete_shapes(model)
    assert shapes.inputs == {"x": expected} and not shapes.facts.problems


def test_channels_last(tmp_path: Any) -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), node("Conv", ["t", "w"], ["y"])]
    model = loaded(proto(nodes, {"x": list("nhwc")}, weights={"w": floats(4, 3, 3, 3)}), tmp_path)
    assert concrete_shapes(model).inputs == {"x": (1, 64, 64, 3)}
    assert concrete_shapes(model, Dims({"h": 9}, {})).inputs == {"x": (1, 9, 64, 3)}


def test_an_input_of_unknown_rank_is_asked_for(tmp_path: Any) -> None:
    model = loaded(proto([node("Flatten", ["x"], ["y"])], {"x": None}), tmp_path)  # type: ignore[dict-item]
    assert concrete_shapes(model).inputs == {}
    with pytest.raises(PruneError) as caught:
        require_ranks(model, Dims())
    assert "how many dimensions the input x has" in caught.value.message and "--input-shape x:" in caught.value.hint
    given = Dims(shapes={"x": (2, 3, 4)})
    require_ranks(model, given)
    assert concrete_shapes(model, given).facts.shape(model.ir.graph.outputs[0]) == (2, 12)


@pytest.mark.parametrize("opset", [10, 11, 12, 18, 19, 22])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pools_round_up_as_onnxruntime_does(op: str, opset: int, tmp_path: Any) -> None:
    """A last window that would begin beyond the input and its padding is left out."""
    if op == "LpPool" and opset < 18:
        pytest.skip("ceil_mode came with opset 18")
    import onnxruntime

    given: list[dict[str, Any]] = [
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 3], "strides": [3, 2], "pads": [1, 0, 1, 1]},
        {"kernel_shape": [1, 1], "strides": [3, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"},
    ]
    for number, attributes in enumerate(given):
        model = proto([node(op, ["x"], ["y"], ceil_mode=1, **attributes)], {"x": ["n", 2, "h", "w"]}, opset=opset)
        path = save_proto(model, tmp_path, f"{number}.onnx")
        found = concrete_shapes(load(path), Dims({"h": 7, "w": 8}))
        ran = onnxruntime.InferenceSession(str(path)).run(None, {"x": floats(1, 2, 7, 8)})[0]
        assert found.facts.shape(found_output(found)) == ran.shape, attributes


def found_output(shapes: Any) -> Any:
    return next(value for value in shapes.facts.shapes if value.name == "y")
