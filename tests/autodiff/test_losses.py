"""Every loss against its formula in numpy, float64: its value, and its gradient by central differences of that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper
from scipy.special import expit, log_softmax, softmax

from prunecli.arrays import Array
from prunecli.autodiff import Loss, differentiate
from prunecli.autodiff.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Distillation,
    MeanSquaredError,
    Projection,
    Weighted,
)
from tests.autodiff.checker import OutputProduct, compare_directions, models, run_gradients

RNG = np.random.default_rng(0)
NAN, IGNORED = np.nan, -100
Z = RNG.standard_normal((4, 3))
IMAGE = RNG.standard_normal((2, 3, 2, 2))
CLASSES, PADDED = np.array([0, 2, 1, 2]), np.array([0, IGNORED, 1, 2])
PIXELS = np.array([[[0, 1], [IGNORED, 2]], [[1, IGNORED], [0, 0]]])
SOFT = softmax(RNG.standard_normal((4, 3)), axis=1)
BITS = (RNG.random((4, 3)) < 0.5).astype(float)
GAPS = np.where(np.arange(12).reshape(4, 3) % 5 == 1, NAN, 1.0)  # NaN at some places
ROWS = np.array([1.0, NAN, 1.0, NAN])[:, None]
OTHER = RNG.standard_normal((4, 3))


def cross_entropy(z: Array, t: Array, smoothing: float = 0.0, axis: int = 1) -> float:
    """torch.nn.functional.cross_entropy(z, t, ignore_index=-100, label_smoothing=smoothing)."""
    rows, labels = np.moveaxis(z, axis, -1).reshape(-1, z.shape[axis]), t.reshape(-1)
    logp, labels = log_softmax(rows, axis=1)[labels != IGNORED], labels[labels != IGNORED]
    own = -logp[np.arange(len(labels)), labels]
    return float(((1 - smoothing) * own + smoothing * -logp.mean(1)).mean())


def soft_cross_entropy(z: Array, t: Array, smoothing: float = 0.0) -> float:
    kept = ~np.isnan(t).any(1)
    q = (1 - smoothing) * t[kept] + smoothing / t.shape[1]
    return float(-(q * log_softmax(z[kept], axis=1)).sum(1).mean())


def binary(z: Array, t: Array) -> float:
    """torch.nn.functional.binary_cross_entropy_with_logits over what is no NaN."""
    kept = ~np.isnan(t)
    p = expit(z[kept])
    return float(-(t[kept] * np.log(p) + (1 - t[kept]) * np.log(1 - p)).mean())


def distillation(z: Array, t: Array, T: float, probabilities: bool = False) -> float:  # noqa: N803
    kept = ~np.isnan(t).any(1)
    wanted = log_softmax((np.log(t[kept]) if probabilities else t[kept]) / T, axis=1)
    return float((np.exp(wanted) * (wanted - log_softmax(z[kept] / T, axis=1))).sum(1).mean() * T * T)


Formula = Callable[[Array, Array], float]
CASES: dict[str, tuple[Loss, str, Array, Array, Formula]] = {
    "classes": (CrossEntropy("y"), "labels", Z, CLASSES, cross_entropy),
    "classes, ignored": (CrossEntropy("y", ignore=IGNORED), "labels", Z, PADDED, cross_entropy),
    "classes, smoothed": (CrossEntropy("y", smoothing=0.2, ignore=IGNORED), "labels", Z, PADDED,
                          lambda z, t: cross_entropy(z, t, 0.2)),
    "pixels": (CrossEntropy("y", ignore=IGNORED), "labels", IMAGE, PIXELS, cross_entropy),
    "tokens": (CrossEntropy("y", ignore=IGNORED), "labels", RNG.standard_normal((2, 3, 4)), np.array([[3, IGNORED, 0], [1, 2, 2]]),
               lambda z, t: cross_entropy(z, t, axis=2)),
    "soft": (CrossEntropy("y", soft=True, smoothing=0.1), "labels", Z, SOFT, lambda z, t: soft_cross_entropy(z, t, 0.1)),
    "soft, ignored": (CrossEntropy("y", soft=True, smoothing=0.1, masked=True), "labels", Z, SOFT * ROWS,
                      lambda z, t: soft_cross_entropy(z, t, 0.1)),
    "binary": (BinaryCrossEntropy("y"), "labels", Z, BITS, binary),
    "binary, ignored": (BinaryCrossEntropy("y", masked=True), "labels", Z, BITS * GAPS, binary),
    "binary, of logits": (BinaryCrossEntropy("y", logits=True), "labels", Z, OTHER * 3, lambda z, t: binary(z, expit(t))),
    "squares": (MeanSquaredError("y"), "labels", Z, OTHER, lambda z, t: float(np.square(z - t).mean())),
    "distillation": (Distillation("y", temperature=3.0), "teacher", Z, OTHER, lambda z, t: distillation(z, t, 3)),
    "distillation, ignored": (Distillation("y", temperature=3.0, masked=True), "teacher", Z, OTHER * GAPS, lambda z, t: distillation(z, t, 3)),
    "distillation of probabilities": (Distillation("y", temperature=2.0, probabilities=True, masked=True), "teacher", Z, SOFT * ROWS,
                                      lambda z, t: distillation(z, t, 2, True)),
    "projection": (Projection("y"), "direction", Z, OTHER, lambda z, t: float((z * t).sum())),
    "weighted": (Weighted(((0.3, MeanSquaredError("y")), (2.0, OutputProduct("y", None)))), "labels", Z, OTHER,
                 lambda z, t: float(0.3 * np.square(z - t).mean() + 2 * z.sum())),
    "nothing counts": (BinaryCrossEntropy("y", masked=True), "labels", Z, np.full((4, 3), NAN), lambda z, t: 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_follow_the_formula(name: str) -> None:
    loss, wanted, z, target, formula = CASES[name]
    model = models([helper.make_node("Identity", ["w"], ["y"])], {}, ["y"], {"w": z.astype(np.float32)})
    graph = differentiate(model, ["w"], loss, shapes={})
    value, gradients = run_gradients(graph, {"w": z, wanted: target})
    assert value == pytest.approx(formula(z, target), rel=1e-5, abs=1e-6)  # float32 sums of a few terms
    compare_directions(lambda point: formula(point["w"], target), {"w": z}, gradients, np.random.default_rng(1))


@pytest.mark.parametrize("end", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("last", ["", "Cast", "Reshape"])
def test_the_end_of_the_model_is_seen_through(end: str, last: str) -> None:
    """The loss of probabilities is that of the logits before them."""
    nodes = [helper.make_node(end, ["w"], ["p" if last else "y"])]
    if last:
        nodes.append(
            helper.make_node(
                last, ["p", "shape"][: 1 + (last == "Reshape")], ["y"], **({"to": 1} if last == "Cast" else {})
            )
        )
    model = models(nodes, {}, ["y"], {"w": Z.astype(np.float32), "shape": np.array([4, 3])})
    loss, target, formula = (
        (CrossEntropy("y"), CLASSES, cross_entropy) if end == "Softmax" else (BinaryCrossEntropy("y"), BITS, binary)
    )
    graph = differentiate(model, ["w"], loss, shapes={})
    value, _ = run_gradients(graph, {"w": Z, "labels": target})
    assert value == pytest.approx(formula(Z, target), rel=1e-5) and f"before the final {end}" in graph.notes[0]
