"""What errors of hidden values count, against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import prunecli
from prunecli.calibration import importance
from prunecli.calibration.importance import Importance
from prunecli.calibration.layers import layers_of
from prunecli.calibration.layerwise import Store, working_form
from prunecli.errors import PruneError
from prunecli.model import find_weights
from prunecli.runtime import Session
from tests.calibration.test_gradients import BIAS, RNG, V, W, X, saved

FEEDS = [{"x": X[:24]}, {"x": X[24:]}]
NODES = [
    helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
    helper.make_node("Relu", ["h"], ["r"]),
    helper.make_node("MatMul", ["r", "v"], ["z"]),
]


def measured(folder: Path, feeds: list[dict[str, np.ndarray]] = FEEDS) -> tuple[Importance, dict[str, object]]:
    """One output, so that the sign of its direction does not matter."""
    model = saved(folder, NODES, "z", {"w": W, "b": BIAS, "v": V[:, :1]})
    work = working_form(model.ir)
    layers, _ = layers_of(work, find_weights(type(model)(work, model.path, "")).prunable)
    found = Importance.of(work, layers, feeds, Store(), start=Session.open)
    return found, {layer.name: layer for layer in layers}


def test_errors_count_by_the_square_of_the_gradient(tmp_path: Path) -> None:
    """dz / dh_c = v_c where h_c > 0, divided by the root mean square of z; float32 sums of 40 terms."""
    found, layers = measured(tmp_path)
    hidden = X @ W + BIAS
    first = np.sqrt(np.square(np.maximum(hidden[:24], 0) @ V[:, :1]).mean())
    power = np.square((hidden > 0) * V[:, 0] / first)
    rows = np.sqrt(power.sum(0))
    np.testing.assert_allclose(found.of_rows(layers["w"]), np.maximum(rows, 0.01 * rows.max())[None], rtol=1e-4)
    last = layers["v"].uses[0]  # of one position in each sample
    np.testing.assert_allclose(found.of_positions(last, 0, 24, places=np.arange(24)), np.ones(24), rtol=1e-5)
    assert (
        found.of_positions(last, 0, 7, places=np.arange(7)) is None
        and found.of_positions(last, 9, 24, places=np.arange(24)) is None
    )


def test_positions_of_a_sample_count_by_their_gradients(tmp_path: Path) -> None:
    """z = sum over 3 x 2 positions of p relu(h), p what a position counts: g^2 = p^2 v^2 where h > 0."""
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(4, 5, 3, 2)).astype(np.float32), W.T.reshape(4, 5, 1, 1).copy()
    place = rng.normal(size=(1, 1, 3, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Mul", ["r", "p"], ["m"]), helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("ReduceSum", ["f", "one"], ["z"]),
    ]  # fmt: skip
    model = saved(tmp_path, nodes, "z", {"w": kernel, "p": place, "one": np.array([1])}, ("N", 5, 3, 2))
    work = working_form(model.ir)
    layers, _ = layers_of(work, find_weights(type(model)(work, model.path, "")).prunable)
    found = Importance.of(work, layers, [{"x": images}], Store(), start=Session.open)
    hidden = np.einsum("oi,nihw->nohw", W.T, images)
    power = (np.square((hidden > 0) * place)).sum(1).reshape(4, 6)
    wanted = 0.5 + 0.5 * power / power.mean(1, keepdims=True)
    np.testing.assert_allclose(
        found.of_positions(layers[0].uses[0], 0, 24, places=np.arange(24)), wanted.reshape(-1), rtol=1e-4
    )


def test_of_many_outputs_channels_alone_count(tmp_path: Path) -> None:
    """dz_k / dh_c = v_ck where h_c > 0. The mean over 32 samples of four directions each: its root is off by 6 % where
    they are independent."""
    rng = np.random.default_rng(1)
    wide = (rng.normal(size=(V.shape[0], 100)) * np.linspace(0.2, 2, V.shape[0])[:, None]).astype(np.float32)
    model = saved(tmp_path, NODES, "z", {"w": W, "b": BIAS, "v": wide})
    work = working_form(model.ir)
    layers, _ = layers_of(work, find_weights(type(model)(work, model.path, "")).prunable)
    feeds = [{"x": rng.normal(size=(4, 5)).astype(np.float32)} for _ in range(16)]
    found = Importance.of(work, layers, feeds, Store(), start=Session.open)
    first = next(layer for layer in layers if layer.name == "w")
    assert found.of_positions(first.uses[0], 0, 4, places=np.arange(4)) is None
    hidden = np.concatenate([feed["x"][:2] for feed in feeds]) @ W + BIAS
    wanted = np.sqrt((hidden > 0).sum(0) * np.square(wide).sum(1))
    rows = found.of_rows(first)
    assert rows is not None
    np.testing.assert_allclose(rows[0] / rows.mean(), wanted / wanted.mean(), rtol=0.25)


def test_what_has_too_many_shapes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="different shapes"):
        measured(tmp_path, [{"x": X[: n + 1]} for n in range(20)])


def test_one_shot_pruning_goes_without_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, NODES, "z", {"w": W, "b": BIAS, "v": V})
    np.savez(tmp_path / "d.npz", x=RNG.normal(size=(64, 5)).astype(np.float32))
    asked = {"data": tmp_path / "d.npz", "sparsity": 0.5, "force": True, "output": tmp_path / "o.onnx"}
    assert not any("not weighed" in note for note in prunecli.oneshot(tmp_path / "m.onnx", **asked).notes)
    monkeypatch.setattr(importance, "LARGEST", 10)
    assert any("not weighed" in note for note in prunecli.oneshot(tmp_path / "m.onnx", **asked).notes)
