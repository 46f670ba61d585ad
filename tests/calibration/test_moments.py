"""Second moments against plain numpy, for every operator that is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from prunecli.calibration import grams
from prunecli.calibration.gaussian import channel_moments
from prunecli.calibration.grams import second_moments
from prunecli.dependency.prepare import prepare
from prunecli.model.shape_inference import gather_facts
from prunecli.operators import named
from tests import tiny
from tests.dependency.net import Net

X4, X3, X2 = (6, 4, 5, 5), (6, 5, 4), (6, 4)


def mean_square(x: np.ndarray, axis: int) -> np.ndarray:
    return np.square(x.astype(np.float64)).mean(axis=tuple(a for a in range(x.ndim) if a != axis % x.ndim))


CASES: dict[str, tuple[Callable[[Net], Any], tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = {
    # operator: (model that reads w0 or the first weight, input shape, what is wanted)
    "Conv": (lambda n: n("Conv", n.x("N", 4, 5, 5), n.w(3, 4, 3, 3)), X4, lambda x: mean_square(x, 1)),
    "Conv grouped": (
        lambda n: n("Conv", n.x("N", 4, 5, 5), n.w(6, 2, 3, 3), group=2),
        X4,
        lambda x: mean_square(x, 1).reshape(2, 2).mean(0),
    ),
    "Conv of rank 3": (lambda n: n("Conv", n.x("N", 5, 4), n.w(3, 5, 3)), X3, lambda x: mean_square(x, 1)),
    "FusedConv": (
        lambda n: n.ms("FusedConv", n.x("N", 4, 5, 5), n.w(3, 4, 3, 3), activation="Relu"),
        X4,
        lambda x: mean_square(x, 1),
    ),
    "ConvTranspose": (
        lambda n: n("ConvTranspose", n.x("N", 4, 5, 5), n.w(4, 3, 2, 2)),
        X4,
        lambda x: mean_square(x, 1),
    ),
    "MatMul": (lambda n: n("MatMul", n.x("N", 5, 4), n.w(4, 3)), X3, lambda x: mean_square(x, -1)),
    "MatMul weight first": (lambda n: n("MatMul", n.w(3, 5), n.x("N", 5, 4)), X3, lambda x: mean_square(x, -2)),
    "Gemm": (lambda n: n("Gemm", n.x("N", 4), n.w(4, 3)), X2, lambda x: mean_square(x, 1)),
    "Gemm transB": (lambda n: n("Gemm", n.x("N", 4), n.w(3, 4), transB=1), X2, lambda x: mean_square(x, 1)),
    "Gemm transA": (lambda n: n("Gemm", n.x(6, "N"), n.w(6, 3), transA=1), X2, lambda x: mean_square(x, 0)),
    "Gemm weight first": (lambda n: n("Gemm", n.w(3, 6), n.x(6, "N")), X2, lambda x: mean_square(x, 0)),
    "MatMul transposed before": (
        lambda n: n("MatMul", n.x("N", 5, 4), n("Transpose", n.w(3, 4), perm=[1, 0])),
        X3,
        lambda x: mean_square(x, -1),
    ),
    "LSTM": (
        lambda n: n("LSTM", n.x(6, "N", 4), n.w(1, 12, 4), n.w(1, 12, 3), hidden_size=3, outputs=3)[0],
        X3,
        lambda x: mean_square(x, 2),
    ),
    "GRU": (
        lambda n: n("GRU", n.x(6, "N", 4), n.w(1, 9, 4), n.w(1, 9, 3), hidden_size=3, outputs=2)[0],
        X3,
        lambda x: mean_square(x, 2),
    ),
    "RNN": (
        lambda n: n("RNN", n.x(6, "N", 4), n.w(1, 3, 4), n.w(1, 3, 3), hidden_size=3, outputs=2)[0],
        X3,
        lambda x: mean_square(x, 2),
    ),
}


def run(net: Net, x: np.ndarray, batches: int = 1) -> dict[str, np.ndarray]:
    model: onnx.ModelProto = net.model()
    work = prepare(ir.from_proto(model))
    facts = gather_facts(work, {"x0": x.shape})
    ranks = {value.name or "": len(shape) for value, shape in facts.shapes.items()}
    return second_moments(work, ranks, [{"x0": part} for part in np.split(x, batches)])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("opset", [13, 18])
def test_moments_are_those_of_numpy(name: str, opset: int) -> None:
    build, shape, wanted = CASES[name]
    net = Net(opset)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    for axis, size in enumerate(shape):  # no two positions of any axis are alike
        x *= np.arange(1, 1 + size, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    net.out(build(net))
    found = run(net, x)
    np.testing.assert_allclose(found["w0"], wanted(x), rtol=1e-5)  # float32 sums of some hundred squares


def test_every_operator_has_a_case() -> None:
    assert {name.split()[0] for name in CASES} == set(named(lambda operator: operator.sums))


def test_batches_add_up_and_tied_weights_count_both_uses() -> None:
    net = Net()
    w = net.w(4, 4)
    h = net("Relu", net("MatMul", net.x("N", 4), w))
    net.out(net("MatMul", h, w))
    x = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    whole, parts = run(net, x), run(net, x, 3)
    np.testing.assert_allclose(whole["w0"], parts["w0"], rtol=1e-5)
    weight = onnx.numpy_helper.to_array(net.initializers[0])
    hidden = np.maximum(x @ weight, 0)
    np.testing.assert_allclose(whole["w0"], mean_square(x, 1) + mean_square(hidden, 1), rtol=1e-5)


@pytest.mark.parametrize("name", ["Conv grouped", "MatMul weight first", "LSTM"])
def test_moments_of_a_large_model_are_taken_value_by_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "PART", 0)
    monkeypatch.setattr(grams, "_summed", None)
    build, shape, wanted = CASES[name]
    net, x = Net(13), np.random.default_rng(0).normal(size=shape).astype(np.float32)
    net.out(build(net))
    np.testing.assert_allclose(run(net, x)["w0"], wanted(x), rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis", "channels"), [("[2,2,4,4]", 3, 6), ("[2,2,4,4]", 1, None), ("", 1, None)])
def test_what_is_put_side_by_side_is_known_along_channels_alone(shape: str, axis: int, channels: int | None) -> None:
    """Of channels on the last axis and an input without a shape nothing says which axis a Concat's is."""
    body = f"""g (float{shape} x) => (float y)
        <float[3, 2, 1, 1] w = {{1, 2, 3, 4, 5, 6}}, float[3] b = {{1, 2, 3}}>
        {{ a = Conv(x, w, b)  t = Transpose<perm = [0, 2, 3, 1]>(a)  y = Concat<axis = {axis}>(t, t) }}"""
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(tiny.model(body)))
    found = channel_moments(ir.from_proto(proto))
    assert len(found["t"].mean) == 3
    assert (len(found["y"].mean) if "y" in found else None) == channels
