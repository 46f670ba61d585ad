"""Statistics of gradients against closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.calibration.gradients import (
    MOST_SHAPES,
    FlowTask,
    OutputTask,
    WeightGradients,
    flow,
    gates,
    mean_powers,
    smooth,
)
from prunecli.data import Batch
from prunecli.errors import PruneError
from prunecli.model import Model, find_weights, load

RNG = np.random.default_rng(0)
W, V = RNG.normal(size=(5, 4)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)
X = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)


def saved(
    folder: Path, nodes: list[onnx.NodeProto], out: str, weights: Mapping[str, Any], shape: tuple[Any, ...] = ("N", 5)
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return load(path)


def linear(folder: Path, softmax: bool = False) -> Model:
    """z = x W, with a Softmax if asked."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"])]
    nodes += [helper.make_node("Softmax", ["z"], ["y"])] if softmax else []
    return saved(folder, nodes, "y" if softmax else "z", {"w": W, "spare": W})


def network(folder: Path) -> Model:
    """Two layers with a bias and a Relu."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"]),
    ]
    return saved(folder, nodes, "z", {"w": W, "b": BIAS, "v": V})


def batches(x: np.ndarray[Any, Any], size: int = 1) -> list[Batch]:
    return [Batch({"x": x[i : i + size]}, size) for i in range(0, len(x), size)]


def gradients(model: Model, *weights: str, output: str = "z", scale: float = 1.0) -> WeightGradients:
    return WeightGradients(model, weights or ("w",), OutputTask({output: scale}))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_of_a_matrix_they_are_moments_of_what_it_reads(tmp_path: Path, softmax: bool, power: int) -> None:
    """One sample: dz_j / dW_ij = x_i, so |r_j x_i| = |x_i| whatever the signs: exact up to float32."""
    output = "y" if softmax else "z"
    found = mean_powers(gradients(linear(tmp_path, softmax), output=output), batches(X), power)["w"]
    wanted = np.repeat((np.abs(X.astype(np.float64)) ** power).mean(0)[:, None], 4, axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def _opened(worked: WeightGradients, x: np.ndarray[Any, Any]) -> WeightGradients:
    worked.open({"x": x})
    return worked


def test_samples_of_one_feed_have_signs_of_their_own(tmp_path: Path) -> None:
    """Opposite samples cancel under a common sign; under independent ones half of all draws double: 2 x^2 on
    average. The mean of n draws of 0 or 4 has a standard deviation of 2 / sqrt(n): five of them for n = 2000."""
    x = np.ones((1, 5), np.float32)
    pair = Batch({"x": np.concatenate([x, -x])}, 2)
    measured = mean_powers(gradients(linear(tmp_path)), [pair] * 2000, 2)["w"]
    assert abs(measured - 2).max() < 5 * 2 / np.sqrt(2000)


def test_it_follows_the_weights_it_is_given(tmp_path: Path) -> None:
    """With w at zero and a negative bias no unit is active, so v gets no gradient and w none."""
    worked = _opened(gradients(network(tmp_path), "w", "v", "b"), X[:1])
    worked.values = {"w": 0 * W, "v": V, "b": -np.abs(BIAS)}
    found = mean_powers(worked, batches(X), 2)
    assert not found["v"].any() and not found["w"].any()


def test_gates_add_up_over_the_other_axes(tmp_path: Path) -> None:
    """sum_j V_ij g_ij = r_i (dz / dr_i) in the direction of the output: x dL/dx of what V reads."""
    worked = _opened(gradients(network(tmp_path), "v"), X[:1])
    found = gates(worked, batches(X))
    hidden = np.maximum(X @ W + BIAS, 0)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (len(X), 1, 3))[:, 0]
    np.testing.assert_allclose(found["v", 0], hidden * (signs @ V.T), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["v", 1], (hidden @ V) * signs, rtol=1e-4, atol=1e-5)


def test_several_outputs_count_alike(tmp_path: Path) -> None:
    outputs = {"a": np.full((2, 3), 100.0, np.float32), "b": np.full((2, 3), 0.01, np.float32)}
    found = OutputTask.of(outputs, ["a", "b"]).scales
    assert found["a"] == pytest.approx(0.01) and found["b"] == pytest.approx(100)
    assert OutputTask.of({"a": np.zeros((1, 2), np.float32)}, ["a"]).scales == {"a": 1.0}


def test_smoothing_adds_the_mean_of_what_is_left() -> None:
    values, alive = {"w": np.array([1.0, 3.0, 100.0])}, {"w": np.array([True, True, False])}
    assert smooth(values, alive)["w"][:2].tolist() == [3.0, 5.0]
    assert smooth({"w": np.ones(2)}, {"w": np.zeros(2, bool)})["w"].tolist() == [1.0, 1.0]


def test_weights_without_a_way_to_the_output(tmp_path: Path) -> None:
    worked = _opened(gradients(linear(tmp_path), "w", "spare"), X[:1])
    assert worked.unreached == ("spare",)
    with pytest.raises(PruneError, match="depends on none"):
        gradients(linear(tmp_path), "spare").open({"x": X[:1]})


def test_a_gradient_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    feed = Batch({"x": np.full((1, 5), np.inf, np.float32)}, 1)
    with pytest.raises(PruneError, match="not finite"):
        mean_powers(gradients(linear(tmp_path)), [feed], 2)


def test_shapes_without_end_are_refused(tmp_path: Path) -> None:
    several = [Batch({"x": X[:size]}, size) for size in range(1, MOST_SHAPES + 2)]
    with pytest.raises(PruneError, match="different shapes"):
        mean_powers(gradients(linear(tmp_path)), several, 2)
    few = mean_powers(gradients(linear(tmp_path)), several[:2], 2)
    assert few["w"].shape == W.shape


def test_flow_is_the_product_of_all_magnitudes(tmp_path: Path) -> None:
    """R = 1 |W| |V| 1 without the bias; dR / d|W|_ij = sum_k |V|_jk, dR / d|V|_jk = sum_i |W|_ij. And w dR/dw adds up
    to R in both layers."""
    model = network(tmp_path)
    biases = [w for w in find_weights(model).others if w.kind == "bias"]
    worked = WeightGradients(model, ["w", "v", *(b.holder.name for b in biases)], FlowTask(("z",)))
    ones = {"x": np.ones((1, 5), np.float32)}
    worked.open(ones)
    found = flow(worked, ones, biases)
    assert [b.holder.name for b in biases] == ["b"] and set(found) == {"w", "v"}
    np.testing.assert_allclose(found["w"], np.broadcast_to(np.abs(V).sum(1), W.shape), rtol=1e-5)
    np.testing.assert_allclose(found["v"], np.broadcast_to(np.abs(W).sum(0)[:, None], V.shape), rtol=1e-5)
    assert (found["w"] * np.abs(W)).sum() == pytest.approx((found["v"] * np.abs(V)).sum(), rel=1e-5)
    np.testing.assert_array_equal(worked.values["w"], W)


def test_flow_beyond_float32_is_scaled_down(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]) for i in range(3)]
    weights = {f"w{i}": np.full((5, 5), 1e15, np.float32) for i in range(3)}
    model = saved(tmp_path, nodes, "h3", weights)
    worked = WeightGradients(model, list(weights), FlowTask(("h3",)))
    ones = {"x": np.ones((1, 5), np.float32)}
    worked.open(ones)
    found = flow(worked, ones, [])
    assert all(np.isfinite(g).all() and (g > 0).all() for g in found.values())


def test_flow_that_stops_is_refused(tmp_path: Path) -> None:
    """A layer normalisation takes the mean of equal inputs away."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "one"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["z"]),
    ]
    model = saved(tmp_path, nodes, "z", {"one": np.ones(5, np.float32), "w": W})
    worked = WeightGradients(model, ["w"], FlowTask(("z",)))
    ones = {"x": np.ones((1, 5), np.float32)}
    worked.open(ones)
    with pytest.raises(PruneError, match="no synaptic flow"):
        flow(worked, ones, [])
