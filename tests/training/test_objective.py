"""What is trained towards: labels that do not count, one-output heads, several outputs, teachers of every kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.special import expit

from prunecli import finetune
from prunecli.arrays import Array
from prunecli.autodiff import differentiate
from prunecli.calibration.objective import ObjectiveOptions, choose_objective
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import heads_of
from prunecli.model import load
from prunecli.runtime import Session
from prunecli.training.session import mean_ratio
from tests.model.build import floats, node, proto, save_proto

X = np.random.default_rng(0).normal(size=(512, 6)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
QUICK: dict[str, Any] = {
    "epochs": 12,
    "optimizer": "adam",
    "rate": 0.2,
    "weight_decay": 0.0,
    "batch_size": 32,
    "threads": 1,
}


def model(
    folder: Path, *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), name: str = "m.onnx", **weights: Array
) -> Path:
    built = proto(list(nodes), {"x": ("batch", 6)}, outputs=outputs, weights=weights)
    path = save_proto(built, folder)
    return path.rename(folder / name)


def stored(path: Path) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def data(folder: Path, labels: Array | None = None) -> Path:
    path = folder / "data.npz"
    np.savez(path, x=X, **({} if labels is None else {"labels": labels}))
    return path


def linear(folder: Path, end: str = "", outputs: int = 4) -> Path:
    nodes = [node("Gemm", ["x", "w", "b"], ["z" if end else "y"], "fc")]
    nodes += [node(end, ["z"], ["y"])] if end else []
    return model(folder, *nodes, w=floats(6, outputs, seed=3) * 0.1, b=np.zeros(outputs, np.float32))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("teacher", [False, True])
def test_ignored_labels_of_sigmoid_tasks_do_not_count(tmp_path: Path, mixup: float, teacher: bool) -> None:
    """Three of five entries say nothing; the others are learned. Trained on as numbers they drove every score down."""
    labels = (X @ W > 0).astype(np.int64)
    labels[np.random.default_rng(2).random(labels.shape) < 0.6] = -100
    told = {"teacher": model(tmp_path, node("Gemm", ["x", "w", "b"], ["z"]), node("Sigmoid", ["z"], ["y"]), name="t.onnx",
                             w=W, b=np.zeros(4, np.float32))} if teacher else {}  # fmt: skip
    found = finetune(
        linear(tmp_path, "Sigmoid"),
        data=data(tmp_path, labels),
        output=tmp_path / "o.onnx",
        mixup=mixup,
        **told,
        **QUICK,
    )
    assert all(epoch.loss > 0 for epoch in found.epochs)
    got = X @ stored(tmp_path / "o.onnx")["w"] + stored(tmp_path / "o.onnx")["b"] > 0
    assert (got == (X @ W > 0)).mean() > 0.9


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_ignored_labels_of_classes_do_not_count(tmp_path: Path, mixup: float) -> None:
    labels = (X @ W).argmax(1)
    known = np.random.default_rng(2).random(512) < 0.75
    found = finetune(
        linear(tmp_path),
        data=data(tmp_path, np.where(known, labels, -100)),
        output=tmp_path / "o.onnx",
        mixup=mixup,
        **QUICK,
    )
    got = X @ stored(tmp_path / "o.onnx")["w"] + stored(tmp_path / "o.onnx")["b"]
    assert (got.argmax(1) == labels).mean() > 0.85 and found.score_name == "accuracy"


def test_labels_that_all_do_not_count_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="every label is -100"):
        finetune(linear(tmp_path), data=data(tmp_path, np.full(512, -100)), output=tmp_path / "o.onnx", **QUICK)


HEADS = {
    "Gemm": ([node("Gemm", ["x", "w", "b"], ["y"])], (1,)),
    "MatMul and Add": ([node("MatMul", ["x", "w"], ["z"]), node("Add", ["z", "b"], ["y"])], (1,)),
    "Add and MatMul": ([node("MatMul", ["x", "w"], ["z"]), node("Add", ["b", "z"], ["y"])], (1, 1)),
}


@pytest.mark.parametrize("case", HEADS)
def test_the_bias_of_a_head_with_one_output_is_trained(tmp_path: Path, case: str) -> None:
    nodes, shape = HEADS[case]
    path = model(tmp_path, *nodes, w=floats(6, 1, seed=3), b=np.zeros(shape, np.float32))
    target = X @ W[:, :1] + 3.0
    finetune(path, data=data(tmp_path, target), output=tmp_path / "o.onnx", **QUICK)
    assert stored(tmp_path / "o.onnx")["b"].item() == pytest.approx(3, abs=0.3)


def test_one_slope_is_trained_and_constants_of_formulas_are_not(tmp_path: Path) -> None:
    """PReLU has one slope by default; 1 / sqrt(d) and an epsilon are single numbers too."""
    nodes = [
        node("MatMul", ["x", "w"], ["z"]), node("Mul", ["z", "scale"], ["s"]), node("Add", ["s", "epsilon"], ["e"]),
        node("PRelu", ["e", "slope"], ["y"]),
    ]  # fmt: skip
    one = {
        "scale": np.array(0.5, np.float32),
        "epsilon": np.array([1e-5], np.float32),
        "slope": np.array([0.25], np.float32),
    }
    path = model(tmp_path, *nodes, w=W, **one)
    z = X @ W * 0.5
    finetune(path, data=data(tmp_path, np.where(z > 0, z, 0.8 * z)), output=tmp_path / "o.onnx", **QUICK)
    after = stored(tmp_path / "o.onnx")
    assert after["slope"].item() > 0.5 and all(after[n] == one[n] for n in ("scale", "epsilon"))


def two_headed(folder: Path, name: str, w: Array, v: Array) -> Path:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["x", "v"], ["b"])]
    return model(folder, *nodes, outputs=("a", "b"), name=name, w=w, v=v * 1e3)


@pytest.mark.parametrize("labelled", [False, True])
def test_every_output_of_the_teacher_is_imitated(tmp_path: Path, labelled: bool) -> None:
    """The second output is a thousand times the first, which must not hide it."""
    teacher = two_headed(tmp_path, "t.onnx", W, W[:, ::-1])
    student = two_headed(tmp_path, "s.onnx", W + floats(6, 4, seed=5), W[:, ::-1] + floats(6, 4, seed=6) * 1e-3)
    made = data(tmp_path, X @ W) if labelled else data(tmp_path)
    found = finetune(student, data=made, teacher=teacher, output=tmp_path / "o.onnx", **QUICK)
    before, after, wanted = stored(student), stored(tmp_path / "o.onnx"), stored(teacher)
    for name in ("w", "v"):
        assert np.abs(after[name] - wanted[name]).mean() < 0.5 * np.abs(before[name] - wanted[name]).mean()
    assert found.verification.kind == "exact"
    finetune(student, data=made, teacher=teacher, output=tmp_path / "one.onnx", output_name="a", **QUICK)
    assert (stored(tmp_path / "one.onnx")["v"] == before["v"]).all()


def test_an_output_that_is_right_already_leaves_the_others_their_say(tmp_path: Path) -> None:
    """Its signal-to-noise ratio is infinite, and falls as soon as anything is trained."""
    nodes = [node("MatMul", ["x", "u"], ["h"]), node("MatMul", ["h", "w"], ["a"]), node("MatMul", ["h", "v"], ["b"])]
    u, w, v = floats(6, 5, seed=1), floats(5, 4, seed=2), floats(5, 4, seed=3)
    teacher = model(tmp_path, *nodes, outputs=("a", "b"), name="t.onnx", u=u, w=w, v=v)
    student = model(tmp_path, *nodes, outputs=("a", "b"), name="s.onnx", u=u, w=w, v=v * 0.5)
    finetune(student, data=data(tmp_path), teacher=teacher, output=tmp_path / "o.onnx", **QUICK | {"rate": 0.01})
    after = stored(tmp_path / "o.onnx")
    for name, wanted, most in (("w", u @ w, 0.1), ("v", u @ v, 0.1)):
        assert np.abs(after["u"] @ after[name] - wanted).mean() < most * np.abs(wanted).mean()


@pytest.mark.parametrize(("decibels", "wanted"), [
    ((20.0, 20.0), 20.0), ((math.inf, 20.0), 23.0103), ((math.inf, math.inf), math.inf), ((), -math.inf),
    ((-math.inf, 20.0), -math.inf),
])  # fmt: skip
def test_ratios_are_averaged_as_noise(decibels: tuple[float, ...], wanted: float) -> None:
    assert mean_ratio(decibels) == pytest.approx(wanted, abs=1e-4)


def test_an_output_that_has_no_gradient_is_left_out_and_named(tmp_path: Path) -> None:
    """Its shape depends on the data, as that of detections does."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Greater", ["a", "zero"], ["high"]), node("NonZero", ["high"], ["at"]),
        node("Transpose", ["at"], ["rows"]), node("GatherND", ["a", "rows"], ["found"]),
    ]  # fmt: skip
    zero = np.array(0, np.float32)
    teacher = model(tmp_path, *nodes, outputs=("found", "a"), name="t.onnx", w=W, zero=zero)
    student = model(tmp_path, *nodes, outputs=("found", "a"), name="s.onnx", w=W + floats(6, 4, seed=5), zero=zero)
    found = finetune(student, data=data(tmp_path), teacher=teacher, output=tmp_path / "o.onnx", **QUICK)
    np.testing.assert_allclose(stored(tmp_path / "o.onnx")["w"], W, atol=0.3)
    assert any("the output found is not imitated: the shape of found is not known" in note for note in found.notes)


@pytest.mark.parametrize("end", ["", "Sigmoid"])
def test_a_teacher_of_two_classes_is_learned_as_logits_or_probabilities(tmp_path: Path, end: str) -> None:
    """Logits taken for probabilities have no lowest loss."""
    ends = [node(end, ["z"], ["y"])] if end else []
    teacher = model(tmp_path, node("MatMul", ["x", "w"], ["z" if end else "y"]), *ends, name="t.onnx", w=W)
    labels = (np.random.default_rng(4).random((512, 4)) < expit(X @ W)).astype(np.int64)
    found = finetune(
        linear(tmp_path, end),
        data=data(tmp_path, labels),
        teacher=teacher,
        output=tmp_path / "o.onnx",
        alpha=1.0,
        **QUICK,
    )
    assert all(epoch.loss > 0 for epoch in found.epochs)
    np.testing.assert_allclose(stored(tmp_path / "o.onnx")["w"], W, atol=0.4)  # the teacher's own weights


def test_data_that_makes_the_first_loss_not_a_number_is_said(tmp_path: Path) -> None:
    path = model(tmp_path, node("Log", ["x"], ["l"]), node("MatMul", ["l", "w"], ["y"]), w=W)
    with pytest.raises(PruneError, match="before anything was trained") as refused:
        finetune(path, data=data(tmp_path, X @ W), output=tmp_path / "o.onnx", **QUICK)
    assert "data" in refused.value.hint and not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(
    ("bias", "classes", "last", "both"),
    [(True, 40, (), True), (False, 40, (), False), (True, 40, ("Relu",), False), (True, 1, (), False)],
)
def test_logits_are_learned_as_scores_and_as_numbers(
    bias: bool, classes: int, last: tuple[str, ...], both: bool, tmp_path: Path
) -> None:
    """A shift of all logits and one of a few count; of other vectors the squared difference alone."""
    together = 0 if bias else 3 * floats(6, 1, seed=5)  # logits do not move together
    weights = {"w": floats(6, classes, seed=3) + together} | ({"b": floats(classes, seed=4)} if bias else {})
    ends = [node(end, ["z"], ["y"]) for end in last]
    path = model(tmp_path, node("Gemm", ["x", *weights], ["z" if last else "y"], "fc"), *ends, **weights)
    teacher = Session.open(path).run({"x": X[:8]})
    samples = DataOptions(str(data(tmp_path))).open(Session.open(path).inputs)
    loss = choose_objective(samples, teacher, teacher, ObjectiveOptions(), heads_of(load(path).ir.graph)).loss
    built = differentiate(load(path).ir, ["w"], loss, shapes={"x": (8, 6)})
    session, target = Session.open(built.model), "prune/teacher/y"
    feed = {"x": X[:8], "w": weights["w"], target: teacher["y"]}
    feed = {spec.name: feed[spec.name] for spec in session.inputs}
    few = teacher["y"].copy()
    few[:, 0] += 9.0
    losses = [float(session.run(feed | {target: told})[built.loss]) for told in (teacher["y"], teacher["y"] + 1, few)]
    square = [float(np.square(told - teacher["y"]).mean() / np.square(teacher["y"]).mean())
              for told in (teacher["y"] + 1, few)]  # fmt: skip
    assert losses[0] == pytest.approx(0, abs=1e-5) and losses[1] == pytest.approx(square[0], rel=1e-3)
    assert (losses[2] > 1.05 * square[1]) == both
