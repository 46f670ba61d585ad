"""`prune gradient` from end to end on small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.errors import PruneError
from prunecli.masks.criteria import element_names
from prunecli.zeros.gradient import gradient
from tests.model.build import floats, node, proto, save_proto

SAMPLES = Path(__file__).parents[2] / "sample_models"
BY_GRADIENT = element_names(lambda evidence: evidence is not None and evidence.differentiates)
DATA = ("gradient", "smoothed", "taylor", "fisher", "snip")


def net(folder: Path, **changes: Any) -> Path:
    """Two dense layers; input 0 is never fed anything, so its row of w1 moves no output."""
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"], "fc1"),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["y"], "fc2"),
    ]
    weights = {"w1": floats(6, 8, seed=1), "b1": floats(8, seed=3), "w2": floats(8, 4, seed=2)}
    weights["w1"][0] *= 10  # the largest weights of all
    return save_proto(proto(nodes, {"x": ("batch", 6)}, weights={**weights, **changes}), folder)


def data(folder: Path, labels: bool = False, count: int = 64) -> Path:
    x = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    x[:, 0] = 0
    path = folder / "data.npz"
    np.savez(path, x=x, **({"labels": np.arange(count) % 4} if labels else {}))
    return path


def stored(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def pruned(model: Path, **options: Any) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    found = gradient(model, output=model.with_name("out.onnx"), force=True, **options)
    assert found.output is not None
    return found, stored(Path(found.output.path))


def test_every_criterion_is_here() -> None:
    assert {*DATA, "synflow"} == set(BY_GRADIENT)


@pytest.mark.parametrize("criterion", BY_GRADIENT)
@pytest.mark.parametrize(
    ("pattern", "scope", "zeros"),
    [
        ("element", "global", 40),
        ("element", "layer", 40),
        ("element", "row", 40),
        ("2:4", None, 40),
        ("1x2", "global", 40),
    ],
)
def test_the_sparsity_is_exact(tmp_path: Path, criterion: str, pattern: str, scope: str | None, zeros: int) -> None:
    """w1 and w2 have 80 elements, half of them go. Rows of w1 hold 6 inputs: of the last two of a row none or as many
    go as the window's rule says, so N:M is counted by window."""
    model, made = net(tmp_path), data(tmp_path)
    asked = {} if pattern == "2:4" else {"sparsity": 0.5}
    found, arrays = pruned(model, data=made, criterion=criterion, pattern=pattern, scope=scope, **asked)
    gone = sum(int((arrays[name] == 0).sum()) for name in ("w1", "w2"))
    if pattern == "2:4":
        assert ((arrays["w2"].T.reshape(-1, 4) == 0).sum(axis=1) == 2).all()
    else:
        assert gone == zeros and found.sparsity == pytest.approx(0.5)
    before = stored(model)
    assert all(((arrays[n] == 0) | (arrays[n] == before[n])).all() for n in before)  # zeroed or untouched
    assert found.verification.kind == "exact" and found.command == "gradient"
    assert found.recipe["criterion"] == criterion and found.recipe["steps"] == (30 if criterion == "synflow" else 6)


FORMULAS = {
    "gradient": lambda w, x: (w != 0) * np.abs(x).mean(0)[:, None],
    "taylor": lambda w, x: np.abs(w) * np.abs(x).mean(0)[:, None],
    "smoothed": lambda w, x: np.abs(w) * (np.abs(x).mean(0)[:, None] + np.abs(x).mean()),
    "fisher": lambda w, x: w**2 * (x**2).mean(0)[:, None],
    "snip": lambda w, x: np.abs(w) * np.abs(x).mean(0)[:, None],  # of batches of one: see below
}


@pytest.mark.parametrize("criterion", FORMULAS)
def test_what_goes_is_what_the_formula_scores_lowest(tmp_path: Path, criterion: str) -> None:
    """y = x w and directions of signs: |dy_j / dw_ij| = |x_i| of every sample, whatever the signs, so each score is
    known. Inputs of very different size and rows of different length keep any blend with a mean from agreeing. `snip`
    takes batches of eight: with the model's batch fixed at one, a batch is a sample."""
    x = (np.random.default_rng(0).normal(size=(64, 6)) * 10.0 ** np.arange(-2, 4)).astype(np.float32)
    w = floats(6, 40, seed=1) * np.array([300, 30, 3, 1, 0.1, 0.01], np.float32)[:, None]
    built = proto([node("MatMul", ["x", "w"], ["y"], "fc")], {"x": (1, 6)}, weights={"w": w})
    np.savez(tmp_path / "data.npz", x=x)
    _, arrays = pruned(
        save_proto(built, tmp_path), data=tmp_path / "data.npz", criterion=criterion, sparsity=0.5, steps=1
    )
    scores = FORMULAS[criterion](w.astype(np.float64), x.astype(np.float64))
    gone = arrays["w"] == 0
    assert gone.sum() == 120 and scores[gone].max() <= scores[~gone].min() * (1 + 1e-5)  # float32 sums


@pytest.mark.parametrize("criterion", [name for name in DATA if name != "smoothed"])
def test_what_moves_no_output_goes_first(tmp_path: Path, criterion: str) -> None:
    """Magnitude would keep the row of the dead input, which is ten times the rest."""
    _, arrays = pruned(
        net(tmp_path), data=data(tmp_path), criterion=criterion, sparsity=8 / 48, include=["w1"], steps=1
    )
    assert not arrays["w1"][0].any() and arrays["w1"][1:].all()


def test_it_is_the_same_every_time_and_for_every_order_of_the_data(tmp_path: Path) -> None:
    model, made = net(tmp_path), data(tmp_path)
    first, one = pruned(model, data=made, sparsity=0.5)
    _, two = pruned(model, data=made, sparsity=0.5)
    assert all(np.array_equal(one[n], two[n]) for n in one)
    assert first.recipe["loss"] == "output" and first.recipe["samples"] == 64
    assert first.recipe["scope"] == "global" and first.recipe["criterion"] == "smoothed"


def test_steps_only_ever_remove(tmp_path: Path) -> None:
    """With more steps other weights may stay, but the number is the same."""
    model, made = net(tmp_path), data(tmp_path)
    for steps in (1, 2, 9):
        found, arrays = pruned(model, data=made, sparsity=0.7, steps=steps)
        assert sum(int((arrays[n] == 0).sum()) for n in ("w1", "w2")) == 56 and found.recipe["steps"] == steps


def test_labels_are_used_when_asked_for(tmp_path: Path) -> None:
    model = net(tmp_path)
    found, _ = pruned(model, data=data(tmp_path, labels=True), sparsity=0.5, loss="labels")
    assert found.recipe["loss"] == "labels"
    found, _ = pruned(model, data=data(tmp_path, labels=True), sparsity=0.5)
    assert found.recipe["loss"] == "output"


def test_a_plan_is_replayed_without_data(tmp_path: Path) -> None:
    model, plan = net(tmp_path), tmp_path / "plan.json"
    _, one = pruned(model, data=data(tmp_path), sparsity=0.6, save_plan=plan)
    _, two = pruned(model, plan=plan)
    assert all(np.array_equal(one[n], two[n]) for n in one)


def test_half_precision_keeps_its_type(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w1"], ["h"], "fc1"), node("MatMul", ["h", "w2"], ["y"], "fc2")]
    weights = {"w1": floats(6, 8, seed=1).astype(np.float16), "w2": floats(8, 4, seed=2).astype(np.float16)}
    built = proto(nodes, {"x": ("batch", 6)}, weights=weights)
    for value in (*built.graph.input, *built.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    found, arrays = pruned(save_proto(built, tmp_path), data=data(tmp_path), sparsity=0.5)
    assert arrays["w1"].dtype == np.float16 and found.sparsity == 0.5


def test_what_no_output_depends_on_is_left_and_told(tmp_path: Path) -> None:
    model = onnx.load(net(tmp_path))
    model.graph.initializer.append(numpy_helper.from_array(floats(4, 5), "w3"))
    model.graph.node.append(helper.make_node("MatMul", ["y", "w3"], ["other"], name="fc3"))
    model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None))
    path = save_proto(model, tmp_path)
    both, _ = pruned(path, data=data(tmp_path), sparsity=0.5)
    assert {layer.weight for layer in both.layers} == {"w1", "w2", "w3"}
    one, arrays = pruned(path, data=data(tmp_path), sparsity=0.5, output_name="y")
    assert {layer.weight for layer in one.layers} == {"w1", "w2"} and arrays["w3"].all()
    assert any(s.name == "w3" and "depends on it" in s.reason for s in one.skipped)


@pytest.mark.parametrize("criterion", BY_GRADIENT)
@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (1.0, 80)])
def test_nothing_and_everything(tmp_path: Path, criterion: str, sparsity: float, zeros: int) -> None:
    _, arrays = pruned(net(tmp_path), data=data(tmp_path), criterion=criterion, sparsity=sparsity)
    assert sum(int((arrays[name] == 0).sum()) for name in ("w1", "w2")) == zeros


def test_a_weight_that_holds_nan_is_named(tmp_path: Path) -> None:
    broken = net(tmp_path, w2=np.full((8, 4), np.nan, np.float32))
    with pytest.raises(PruneError, match="weight w2 holds 32 NaN"):
        gradient(broken, data=data(tmp_path), sparsity=0.5, output=tmp_path / "out.onnx")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": 0.5, "data": None}, "measured on data"),
    ({"sparsity": 0.5, "criterion": "l1"}, "weights alone"),
    ({"threshold": 0.1, "steps": 2}, "no steps"),
    ({}, "how much to prune"),
    ({"pattern": "4x1"}, "how much to prune"),
    ({"sparsity": 0.5, "loss": "labels"}, "has no labels"),
    ({"sparsity": 0.5, "loss": "labels", "criterion": "synflow"}, "--criterion synflow reads no labels"),
    ({"sparsity": 0.5, "output_name": "h2"}, "no floating-point output"),
    ({"sparsity": 0.5, "criterion": "nothing"}, "nothing"),
    ({"sparsity": 0.5, "include": ["nope"]}, "matches nothing"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_done_is_refused_and_nothing_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    model, out = net(tmp_path), tmp_path / "out.onnx"
    with pytest.raises(PruneError, match=message):
        gradient(model, output=out, **{"data": data(tmp_path), **options})
    assert not out.exists()


@pytest.mark.parametrize("criterion", BY_GRADIENT)
def test_magnitude_sends_gradient_criteria_on(tmp_path: Path, criterion: str) -> None:
    with pytest.raises(PruneError, match="does not measure") as refused:
        prunecli.magnitude(net(tmp_path), sparsity=0.5, criterion=criterion)
    assert f"prune gradient --criterion {criterion}" in refused.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["smoothed", "fisher"])
def test_it_beats_magnitude_on_a_trained_network(tmp_path: Path, criterion: str) -> None:
    """With 70 % zeros, the accuracy on images that neither has seen; magnitude at its better scope."""
    model, test = SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-test.npz"
    made, _ = pruned_copy(model, tmp_path, criterion)
    best = 0.0
    for scope in ("layer", "global"):
        out = tmp_path / f"{scope}.onnx"
        prunecli.magnitude(model, sparsity=0.7, scope=scope, output=out)
        best = max(best, accuracy(out, test))
    assert accuracy(made, test) > best + 0.2  # measured: 0.80 against 0.14


def pruned_copy(model: Path, folder: Path, criterion: str) -> tuple[Path, Any]:
    out = folder / f"{criterion}.onnx"
    return out, gradient(model, data=SAMPLES / "digits-calib.npz", sparsity=0.7, criterion=criterion, output=out)


def accuracy(path: Path, test: Path) -> float:
    from prunecli.data.options import DataOptions
    from prunecli.evaluation.evaluate import evaluate
    from prunecli.evaluation.options import EvaluateOptions

    found = evaluate(path, options=EvaluateOptions(data=DataOptions(str(test)), latency=False))
    return float(found.to_json()["models"][0]["metrics"]["accuracy"])


@pytest.mark.parametrize("name", ["wanda", "obs"])
def test_criteria_of_other_evidence_name_their_command(name: str, tmp_path: Path) -> None:
    model, samples = SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-calib.npz"
    with pytest.raises(PruneError) as refused:
        prunecli.gradient(model, data=samples, sparsity=0.5, criterion=name, output=tmp_path / "o.onnx")
    assert f"oneshot --method {name}" in str(refused.value.hint)
    with pytest.raises(PruneError) as refused:
        prunecli.magnitude(model, sparsity=0.5, criterion=name, output=tmp_path / "o.onnx")
    assert f"oneshot --method {name}" in str(refused.value.hint)


@pytest.mark.parametrize("criterion", FORMULAS)
@pytest.mark.parametrize("pattern", ["element", "1x2"])
def test_what_scores_below_a_threshold_goes(tmp_path: Path, criterion: str, pattern: str) -> None:
    """y = x w, as above; outputs are differentiated as shares of their root mean square in the first run. So every score
    is known, and the report's quantiles are those of the scores."""
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    w = floats(6, 8, seed=1)
    np.savez(tmp_path / "data.npz", x=x)
    model = save_proto(proto([node("MatMul", ["x", "w"], ["y"], "fc")], {"x": (1, 6)}, weights={"w": w}), tmp_path)
    size = np.sqrt(np.square(x[:1] @ w).mean())
    scores = FORMULAS[criterion](w.astype(np.float64), x.astype(np.float64)) / size ** (
        2 if criterion == "fisher" else 1
    )
    if pattern == "1x2":  # of a row's inputs, which lie along the first stored axis
        scores = scores.reshape(3, 2, 8).mean(axis=1).repeat(2, axis=0)
    cut = float(np.sort(np.unique(scores))[len(np.unique(scores)) // 3 :][:2].mean())
    found, arrays = pruned(model, data=tmp_path / "data.npz", criterion=criterion, threshold=cut, pattern=pattern)
    assert np.array_equal(arrays["w"] == 0, scores < cut) and 0 < (scores < cut).sum() < w.size
    assert found.recipe["threshold"] == cut and "scope" not in found.recipe and found.recipe["steps"] == 1
    told = found.layers[0].details["scores"]
    assert told["max"] == pytest.approx(scores.max()) and told["0.1"] < cut < told["0.9"]
