"""Sensitivities against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.errors import PruneError
from prunecli.evidence.gradients import Sensitivity
from prunecli.model import Model, load


def linear(folder: Path, softmax: bool) -> Model:
    """z = x W, with a Softmax if asked."""
    weight = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"])]
    nodes += [helper.make_node("Softmax", ["z"], ["y"])] if softmax else []
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("y" if softmax else "z", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight, "spare")],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return load(path)


@pytest.mark.parametrize("softmax", [False, True])
def test_of_a_matrix_it_is_the_second_moment_of_what_it_reads(tmp_path: Path, softmax: bool) -> None:
    """One sample: dz_j / dW_ij = x_i, so (r_j x_i)^2 = x_i^2 whatever the signs: exact up to float32."""
    x = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    found = Sensitivity.of(linear(tmp_path, softmax), ["w"], None, {"x": x[:1]})
    measured = found.measure({"x": row[None]} for row in x)["w"]
    wanted = np.repeat(np.square(x, dtype=np.float64).mean(0)[:, None], 3, axis=1)
    np.testing.assert_allclose(measured, wanted, rtol=1e-5)


def test_samples_of_one_feed_have_signs_of_their_own(tmp_path: Path) -> None:
    """Opposite samples cancel under a common sign; under independent ones half of all draws double: 2 x^2 on
    average. The mean of n draws of 0 or 4 has a standard deviation of 2 / sqrt(n): five of them for n = 2000."""
    x = np.ones((1, 5), np.float32)
    pair = {"x": np.concatenate([x, -x])}
    found = Sensitivity.of(linear(tmp_path, False), ["w"], None, pair)
    measured = found.measure([pair] * 2000)["w"]
    assert abs(measured - 2).max() < 5 * 2 / np.sqrt(2000)


def test_it_follows_the_weights_it_is_given(tmp_path: Path) -> None:
    feed = {"x": np.ones((1, 5), np.float32)}
    found = Sensitivity.of(linear(tmp_path, False), ["w"], "z", feed)
    assert set(found.weights) == {"w"} and found.weights["w"].dtype == np.float32


def test_weights_without_a_way_to_the_output(tmp_path: Path) -> None:
    feed = {"x": np.ones((1, 5), np.float32)}
    found = Sensitivity.of(linear(tmp_path, False), ["w", "spare"], None, feed)
    assert found.unreached == ("spare",)
    with pytest.raises(PruneError, match="depends on none"):
        Sensitivity.of(linear(tmp_path, False), ["spare"], None, feed)


def test_a_gradient_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    feed = {"x": np.full((1, 5), np.inf, np.float32)}
    with pytest.raises(PruneError, match="not finite"):
        Sensitivity.of(linear(tmp_path, False), ["w"], None, feed).measure([feed])
