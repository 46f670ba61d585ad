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
from tests.evidence.test_gradients import BIAS, RNG, V, W, X, saved

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
    use = layers["w"].uses[0]
    share = power.sum(1) / np.mean([power[:24].sum(1).mean(), power[24:].sum(1).mean()])
    for number, part in enumerate((share[:24], share[24:])):
        np.testing.assert_allclose(found.of_positions(use, number, len(part)), 0.5 + 0.5 * part, rtol=1e-4)
    last = layers["v"].uses[0]
    np.testing.assert_allclose(found.of_positions(last, 0, 24), np.ones(24), rtol=1e-5)
    assert found.of_positions(last, 0, 7) is None and found.of_positions(last, 9, 24) is None


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
