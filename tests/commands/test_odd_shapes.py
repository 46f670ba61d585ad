"""Shapes that a file does not state, or states wrongly: cut like any other, or refused with the option that helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import prunecli
from prunecli.errors import PruneError
from tests.dependency.net import Net

FLOAT = onnx.TensorProto.FLOAT


def net(opset: int = 17, dims: Any = ("N", 3, 8, 8)) -> Net:
    n = Net(opset)
    n.ir_version = 8
    n.inputs.append(helper.make_tensor_value_info("x", FLOAT, dims))
    return n


def classifier(n: Net, h: str, width: int = 8) -> Net:
    h = n("Flatten", n("GlobalAveragePool", n("Relu", h)))
    return n.out(n("Gemm", h, n.w(width, 3), n.w(3)))


def saved(n: Net, path: Path, stale: dict[str, Any] | None = None, functions: Any = ()) -> Path:
    outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in n.outputs]
    infos = [helper.make_tensor_value_info(name, FLOAT, dims) for name, dims in (stale or {}).items()]
    graph = helper.make_graph(n.nodes, "g", n.inputs, outputs, n.initializers, value_info=infos)
    domains = [helper.make_opsetid(d, n.domains.get(d, 1)) for d in {node.domain for node in n.nodes} if d]
    imports = [helper.make_opsetid("", n.opset), *domains]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions)), path)
    return path


def unstated(dims: Any) -> Callable[[Path], Path]:
    def build(path: Path) -> Path:
        n = net(dims=dims)
        h = n("BatchNormalization", n.conv("x", 3, 8, 3), n.positive(8), n.w(8), n.w(8), n.positive(8))
        return saved(classifier(n, h), path)

    return build


def per_element(path: Path) -> Path:
    n = net(7)
    h = n("BatchNormalization", n.conv("x", 3, 8), *[n.positive(8, 8, 8) for _ in range(4)], spatial=0)
    return saved(classifier(n, h), path)


def rounded_up(op: str, opset: int) -> Callable[[Path], Path]:
    """7x7 padded by one, in steps of two: ONNX infers 5x5 before opset 22, onnxruntime computes 4x4."""

    def build(path: Path) -> Path:
        n = net(opset, ("N", 3, 7, 7))
        h = n(op, n("Relu", n.conv("x", 3, 8)), kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4, ceil_mode=1)
        return saved(n.out(n("Gemm", n("Flatten", h), n.w(8 * 16, 3), n.w(3))), path)

    return build


def stale(*dims: Any) -> Callable[[Path], Path]:
    """onnxruntime takes a wrong shape where the operator's own inference says nothing against it."""

    def build(path: Path) -> Path:
        n = net(17, ("N", 16))
        h = n("MatMul", n("Relu", n("MatMul", "x", n.w(16, 8))), n.w(8, 3))
        return saved(n.out(h), path, {n.nodes[0].output[0]: dims})

    return build


def stale_parts(*dims: Any) -> Callable[[Path], Path]:
    """The lengths of the parts of a sequence do not follow the file's word on shapes."""

    def build(path: Path) -> Path:
        n = net(17, ("N", 16))
        h = n("Relu", n("Gemm", "x", n.w(16, 8), n.w(8)))
        parts = n("SplitToSequence", h, n.c(np.int64(4)), axis=1)
        h = n("Concat", *[n("SequenceAt", parts, n.c(np.int64(k))) for k in (1, 0)], axis=1)
        return saved(n.out(n("Gemm", h, n.w(8, 3), n.w(3))), path, {n.nodes[1].output[0]: dims} if dims else None)

    return build


def function(own: int, opset: int) -> Callable[[Path], Path]:
    """A body written for another opset than the model's."""

    def build(path: Path) -> Path:
        n = net(opset, ("N", 16))
        body = [helper.make_node("MatMul", ["a", "w"], ["h"]), helper.make_node("Relu", ["h"], ["b"])]
        made = helper.make_function("d", "f", ["a", "w"], ["b"], body, [helper.make_opsetid("", own)])
        h = n("f", "x", n.w(16, 8), domain="d")
        return saved(n.out(n("Gemm", h, n.w(8, 3), n.w(3))), path, functions=[made])

    return build


def scaled(kind: int) -> Callable[[Path], Path]:
    """What scikit-learn puts before a net, of float32, float64 or int64 features."""

    def build(path: Path) -> Path:
        n = Net(17, **{"ai.onnx.ml": 3})
        n.ir_version = 8
        n.inputs.append(helper.make_tensor_value_info("x", kind, ("N", 16)))
        h = n("Scaler", "x", domain="ai.onnx.ml", offset=[0.1] * 16, scale=[2.0] * 16)
        h = n("Relu", n("Gemm", n("Normalizer", h, domain="ai.onnx.ml", norm="L2"), n.w(16, 8), n.w(8)))
        return saved(n.out(n("Gemm", h, n.w(8, 3), n.w(3))), path)

    return build


def empty(n: Net, h: str) -> str:
    return str(n("Concat", h, n.c(np.zeros((0, 8), np.float32)), axis=0))


def of_nothing(path: Path) -> Path:
    n = net(17, ("N", 16))
    h = empty(n, n("Relu", n("Gemm", "x", n.w(16, 8), n.w(8))))
    return saved(n.out(n("Gemm", h, n.w(8, 3), n.w(3))), path)


CASES: dict[str, Callable[[Path], Path]] = {
    "rank unknown": unstated(None),
    "every dimension unknown": unstated([None] * 4),
    "every dimension ?": unstated(["?"] * 4),
    "every dimension named": unstated(list("abcd")),
    "BatchNormalization per element": per_element,
    **{f"{op} rounded up, opset {k}": rounded_up(op, k) for op in ("MaxPool", "AveragePool") for k in (10, 12, 22)},
    "rank 1 stated": stale(9),
    "rank 5 stated": stale("N", None, 3, 5, 1),
    "length -1 stated": stale(-1, -1),
    "parts, nothing stated": stale_parts(),
    "parts, another length stated": stale_parts("N", 12),
    "parts, another rank stated": stale_parts(9),
    "function of opset 16": function(16, 17),
    "function of opset 9": function(9, 21),
    "function of opset 18": function(18, 17),
    "axis of length 0": of_nothing,
    **{f"Scaler of {k}": scaled(helper.np_dtype_to_tensor_dtype(np.dtype(k))) for k in ("float32", "float64", "int64")},
}


@pytest.mark.parametrize("case", CASES)
def test_half_of_the_units_go(case: str, tmp_path: Path) -> None:
    path = CASES[case](tmp_path / "m.onnx")
    result = prunecli.structured(path, ratio=0.5, output=tmp_path / "out.onnx")
    assert result.verification.kind == "exact" and result.verification.samples > 0, result.verification
    assert result.after.params < 0.6 * result.before.params
    sizes = {tuple(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert any(4 in dims for dims in sizes) or case == "BatchNormalization per element"


@pytest.mark.parametrize(
    ("dims", "words", "hint"),
    [(None, "how many dimensions the input x has", "--input-shape x:"),
     ([None] * 4, "Dimension mismatch", "--input-shape and --dim state the sizes; assumed were axis 0 of x = 1")],
)  # fmt: skip
def test_what_cannot_be_told_is_asked_for(dims: Any, words: str, hint: str, tmp_path: Path) -> None:
    n = net(17, dims)
    path = saved(
        n.out(n.linear(n("Relu", n("Gemm", n("Flatten", "x"), n.w(48, 8), n.w(8))), 8, 3)), tmp_path / "m.onnx"
    )
    with pytest.raises(PruneError) as caught:
        prunecli.structured(path, ratio=0.5, output=tmp_path / "out.onnx")
    assert words in caught.value.message and hint in caught.value.hint
    result = prunecli.structured(path, ratio=0.5, output=tmp_path / "out.onnx", input_shape="x:1,3,4,4")
    assert result.after.params < 0.6 * result.before.params


def test_sizes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    n = net(17, ("N", "c", "h", "w"))
    path = saved(classifier(n, n.conv("x", 3, 8, 3)), tmp_path / "m.onnx")
    with pytest.raises(PruneError) as caught:
        prunecli.structured(path, ratio=0.5, output=tmp_path / "out.onnx", dim="c=4")
    assert "axes of 3 and 4 positions meet" in caught.value.message and "--dim" in caught.value.hint


def test_outputs_without_elements_prove_nothing(tmp_path: Path) -> None:
    n = net(17, (0, 16))
    h = n("Relu", n("Gemm", "x", n.w(16, 8), n.w(8)))
    path = saved(n.out(n("Gemm", h, n.w(8, 3), n.w(3))), tmp_path / "m.onnx")
    with pytest.raises(PruneError, match=r"no elements"):
        prunecli.structured(path, ratio=0.5, output=tmp_path / "out.onnx")
    with pytest.raises(PruneError, match="no macs at these sizes"):
        prunecli.structured(path, macs=0.5, output=tmp_path / "out.onnx")


def test_an_output_without_elements_is_not_trained_on(tmp_path: Path) -> None:
    n = net(17, ("N", 16))
    h = n("Relu", n("Gemm", "x", n.w(16, 8), n.w(8)))
    path = saved(n.out(n("Gemm", h, n.w(8, 0), n.w(0)), n("Gemm", h, n.w(8, 3), n.w(3))), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32))
    result = prunecli.gradient(path, sparsity=0.5, data=tmp_path / "d.npz", output=tmp_path / "out.onnx")
    assert result.verification.kind == "exact"


@pytest.mark.parametrize("dims", [None, [None] * 4, list("abcd")])
def test_random_inputs_have_the_sizes_that_operators_ask_for(dims: Any, tmp_path: Path) -> None:
    path = unstated(dims)(tmp_path / "m.onnx")
    assert prunecli.compare(path, path, samples=2).fidelity.samples == 2
    prunecli.magnitude(path, sparsity=0.5, output=tmp_path / "out.onnx")
