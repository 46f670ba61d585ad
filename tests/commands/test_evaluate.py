"""`prune evaluate` end to end on the sample models; scikit-learn, scipy and onnxruntime are asked directly."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from scipy.stats import binomtest, ttest_rel
from sklearn import metrics

from prunecli.cli.output import to_json_text
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.evaluate import EvaluateOptions, evaluate
from prunecli.evaluation.figures import Evaluation, figures, known, needs
from prunecli.report.document import Level, Text
from prunecli.report.render import to_terminal
from prunecli.types import Json

SAMPLES = Path(__file__).parents[2] / "sample_models"
SIZES = {"params", "nonzero", "sparsity", "macs", "file_bytes", "gzip_bytes"}

# model -> its input, the stem of its data
CLASSIFIERS = {
    "digits-mlp": ("image", "digits"),
    "digits-cnn": ("image", "digits"),
    "cancer-mlp": ("features", "cancer"),
}


def measured(model: str, data: str | None = None, baseline: str | None = None, **more: Any) -> Evaluation:
    options = EvaluateOptions(
        data=DataOptions(str(SAMPLES / data)) if data else None, **{"latency": False, "batch_size": 64, **more}
    )
    return evaluate(SAMPLES / f"{model}.onnx", SAMPLES / f"{baseline}.onnx" if baseline else None, options)


def as_json(found: Evaluation) -> Json:
    return json.loads(to_json_text(found))


@cache
def answers(model: str, data: str) -> tuple[Any, Any]:
    """(labels, scores) by onnxruntime alone, in the batches that `measured` uses."""
    arrays = np.load(SAMPLES / data)
    session = onnxruntime.InferenceSession(SAMPLES / f"{model}.onnx")
    name = session.get_inputs()[0].name
    values = arrays[name].astype(np.float32)
    parts = [session.run(None, {name: values[i : i + 64]})[0] for i in range(0, len(values), 64)]
    return arrays["labels"], np.concatenate(parts)


@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
@pytest.mark.parametrize("model", CLASSIFIERS)
def test_classification_is_what_scikit_learn_says(model: str, average: Any) -> None:
    data = f"{CLASSIFIERS[model][1]}-test.npz"
    truth, scores = answers(model, data)
    found = as_json(measured(model, data, average=average, per_class=True))["models"][0]
    predicted = scores.argmax(axis=1)
    expected = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "precision": metrics.precision_score(truth, predicted, average=average),
        "recall": metrics.recall_score(truth, predicted, average=average),
        "f1": metrics.f1_score(truth, predicted, average=average),
    }
    if scores.shape[1] > 5:
        expected["top5"] = metrics.top_k_accuracy_score(truth, scores, k=5)
    assert {name: found["metrics"][name] for name in expected} == expected  # to the last digit
    assert set(found["metrics"]) == {*expected, "log_loss"}
    exact = np.exp(scores.astype(np.float64))
    loss = metrics.log_loss(truth, exact / exact.sum(axis=1, keepdims=True))
    assert math.isclose(found["metrics"]["log_loss"], loss, rel_tol=1e-9)  # sums of float64 in another order
    assert found["confusion_matrix"]["counts"] == metrics.confusion_matrix(truth, predicted).tolist()
    columns = metrics.precision_recall_fscore_support(truth, predicted)
    rows = [[c[key] for key in ("precision", "recall", "f1", "support")] for c in found["per_class"]]
    assert rows == [list(row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    assert found["average"] == average


def test_the_confusion_matrix_is_there_with_per_class_only() -> None:
    models = [
        as_json(measured("digits-mlp", "digits-test.npz", per_class=asked))["models"][0] for asked in (False, True)
    ]
    assert [("confusion_matrix" in found, "per_class" in found) for found in models] == [(False, False), (True, True)]


def test_regression_is_what_scikit_learn_says() -> None:
    truth, predicted = answers("diabetes-mlp", "diabetes-test.npz")
    truth, predicted = truth.astype(np.float64), predicted[:, 0].astype(np.float64)
    found = as_json(measured("diabetes-mlp", "diabetes-test.npz"))["models"][0]
    assert found["metrics"] == {
        "mae": metrics.mean_absolute_error(truth, predicted),
        "rmse": metrics.root_mean_squared_error(truth, predicted),
        "r2": metrics.r2_score(truth, predicted),
    }
    assert found["average"] is None
    assert "confusion_matrix" not in found


def test_the_first_samples_only() -> None:
    options = DataOptions(str(SAMPLES / "digits-test.npz"), limit=100)
    found = evaluate(SAMPLES / "digits-mlp.onnx", None, EvaluateOptions(data=options, latency=False))
    truth, scores = answers("digits-mlp", "digits-test.npz")
    assert found.model.metrics["accuracy"] == np.mean(truth[:100] == scores[:100].argmax(axis=1))
    assert found.samples == 100


def test_a_baseline_has_deltas_fidelity_and_a_test() -> None:
    found = as_json(measured("digits-mlp", "digits-test.npz", "digits-cnn"))
    truth, mine = answers("digits-mlp", "digits-test.npz")
    _, other = answers("digits-cnn", "digits-test.npz")
    assert [m["role"] for m in found["models"]] == ["model", "baseline"]
    for name in found["models"][0]["metrics"]:
        key, sign = ("rise", 1) if name == "log_loss" else ("drop", -1)
        change = found["models"][0]["metrics"][name] - found["models"][1]["metrics"][name]
        assert found["delta"][name] == {key: sign * change}
    right, before = mine.argmax(axis=1) == truth, other.argmax(axis=1) == truth
    lost, won = int((before & ~right).sum()), int((right & ~before).sum())
    assert found["significance"]["p"] == pytest.approx(binomtest(min(lost, won), lost + won).pvalue, rel=1e-9)
    assert found["significance"]["difference"] == (won - lost) / len(truth)
    mine, other = mine.astype(np.float64), other.astype(np.float64)
    fidelity = found["fidelity"]
    assert fidelity["top1_agreement"] == np.mean(mine.argmax(axis=1) == other.argmax(axis=1))
    assert fidelity["max_abs"] == np.abs(mine - other).max()
    dots = (mine * other).sum(axis=1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(other, axis=1)
    assert fidelity["cosine"] == pytest.approx(dots.mean(), rel=1e-12)  # float64 sums in another order
    noise = np.square(mine - other).sum()
    assert fidelity["snr_db"] == pytest.approx(10 * math.log10(np.square(other).sum() / noise), rel=1e-12)


def test_a_model_against_itself() -> None:
    found = as_json(measured("diabetes-mlp", "diabetes-test.npz", "diabetes-mlp"))
    assert [found["delta"][name] for name in ("mae", "rmse", "r2")] == [{"rise": 0}, {"rise": 0}, {"drop": 0}]
    assert (found["significance"]["p"], found["fidelity"]["cosine"], found["fidelity"]["max_abs"]) == (1, None, 0)
    assert found["fidelity"]["snr_db"] is None  # infinite
    assert found["fidelity"]["top1_agreement"] is None  # one number per sample has no classes


def worse(path: Path) -> Path:
    """digits-mlp and diabetes-mlp with noise on every weight."""
    rng = np.random.default_rng(0)
    for name in ("digits-mlp", "diabetes-mlp"):
        proto = onnx.load(SAMPLES / f"{name}.onnx")
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            array = array + 0.3 * array.std() * rng.standard_normal(array.shape).astype(array.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(proto, path / f"{name}.onnx")
    return path


def test_a_regression_difference_is_a_paired_t_test(tmp_path: Path) -> None:
    path = worse(tmp_path) / "diabetes-mlp.onnx"
    options = EvaluateOptions(data=DataOptions(str(SAMPLES / "diabetes-test.npz")), latency=False)
    found = evaluate(path, SAMPLES / "diabetes-mlp.onnx", options)
    arrays = np.load(SAMPLES / "diabetes-test.npz")
    errors = [
        np.abs(
            onnxruntime.InferenceSession(p).run(None, {"features": arrays["features"].astype(np.float32)})[0][:, 0]
            - arrays["labels"]
        )
        for p in (path, SAMPLES / "diabetes-mlp.onnx")
    ]
    assert found.significance is not None
    # float32 outputs of other batch sizes differ in the last bits
    assert found.significance.p == pytest.approx(ttest_rel(*errors).pvalue, rel=1e-3)
    assert found.significance.difference == pytest.approx((errors[1] - errors[0]).mean(), rel=1e-4)


# what the function returns, seconds allowed, whether there is a difference to tell
OWN = [("labels == predictions.argmax(1)", 60.0, True), ("float((labels == predictions.argmax(1)).mean())", 60.0, True),
       ("float((labels == predictions.argmax(1)).mean())", -1.0, False)]  # fmt: skip


@pytest.mark.parametrize(("returned", "allowed", "told"), OWN)
def test_a_difference_in_a_metric_of_samples(
    returned: str, allowed: float, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As scipy has it where the function gives a number per sample; by blocks of samples nearly so."""
    (tmp_path / "mine.py").write_text(f"def mine(predictions, labels):\n    return {returned}\n")
    monkeypatch.setattr("prunecli.evaluation.passes.LONGEST", allowed)
    found = measured("digits-mlp", "digits-test.npz", "digits-cnn", metric=(f"{tmp_path / 'mine.py'}:mine",))
    truth, *scores = (
        answers("digits-mlp", "digits-test.npz")[0],
        *(answers(name, "digits-test.npz")[1] for name in ("digits-mlp", "digits-cnn")),
    )
    text = "".join(part.body for part in found.to_document().sections if isinstance(part, Text))
    assert ("within a minute" in text) is (not told)
    if not told:
        assert found.differences == {} and found.significance is None
        return
    wanted = ttest_rel(*((s.argmax(axis=1) == truth).astype(float) for s in scores))
    low, high = wanted.confidence_interval()
    json_ = as_json(found)
    assert json_["significance"] == json_["differences"]["mine"]
    assert json_["significance"]["interval"] == pytest.approx([low, high], abs=0.002)
    assert json_["significance"]["difference"] == pytest.approx(-json_["delta"]["mine"]["drop"], abs=1e-12)
    assert "in mine beyond chance" in text or "difference in mine is within chance" in text


def told(found: Evaluation) -> str:
    """The report in one line."""
    return " ".join(to_terminal(found.to_document(), width=400, color=False, level=Level.DETAIL).split())


def recorded(folder: Path, names: tuple[str, ...]) -> DataOptions:
    """Two samples of the digits with outputs by another model's hand: half of what the model gives."""
    session = onnxruntime.InferenceSession(SAMPLES / "digits-mlp.onnx")
    for number, image in enumerate(np.load(SAMPLES / "digits-test.npz")["image"][:2].astype(np.float32)):
        place = folder / f"test_data_set_{number}"
        place.mkdir()
        (scores,) = session.run(None, {"image": image[None]})
        for kind, array, name in (("input", image[None], "image"), *(("output", scores / 2, name) for name in names)):
            (place / f"{kind}_0.pb").write_bytes(onnx.numpy_helper.from_array(array, name).SerializeToString())
    return DataOptions(str(folder))


@pytest.mark.parametrize("name", ["logits", "another"])
def test_recorded_outputs_are_compared_by_name_or_in_their_order(name: str, tmp_path: Path) -> None:
    options = EvaluateOptions(data=recorded(tmp_path, (name,)), latency=False)
    found = evaluate(SAMPLES / "digits-mlp.onnx", None, options)
    assert found.fidelity is not None and found.fidelity.short()["snr_db"] == pytest.approx(0, abs=1e-3)


def test_the_train_test_gap() -> None:
    train = DataOptions(str(SAMPLES / "digits-train.npz"))
    run = measured("digits-mlp", "digits-test.npz", train_data=train)
    found, values, gaps = as_json(run)["overfitting"], {}, []
    for model in ("digits-cnn", "digits-mlp"):
        for data in ("digits-train.npz", "digits-test.npz"):
            truth, scores = answers(model, data)
            values[data] = np.mean(truth == scores.argmax(axis=1))
        gaps.append(values["digits-train.npz"] - values["digits-test.npz"])
    words = f"accuracy is {gaps[1]:.4g} better on its training data than on the test data"
    assert f"{words}." in told(run)
    both = told(measured("digits-mlp", "digits-test.npz", "digits-cnn", train_data=train))
    trend = "narrower" if gaps[1] < gaps[0] else "wider"
    assert f"{words}; the baseline's gap is {gaps[0]:.4g}, so the model's is {trend}." in both
    assert f"baseline accuracy {gaps[0]:.4f}"[:8] in both
    assert found["model"]["train"]["accuracy"] == values["digits-train.npz"]
    assert found["model"]["gap"]["accuracy"] == values["digits-train.npz"] - values["digits-test.npz"]
    assert found["train_samples"] == 1000


def test_robustness_is_measured_on_both_models_and_repeats() -> None:
    runs = [measured("digits-mlp", "digits-test.npz", "digits-cnn", robustness=True, seed=3) for _ in range(2)]
    first, second = (as_json(run)["robustness"] for run in runs)
    assert first == second
    assert first["clean"]["model"] == runs[0].model.metrics["accuracy"]
    assert {r["corruption"] for r in first["rows"]} == {"gaussian_noise", "salt_and_pepper", "blur", "contrast"}
    for row in first["rows"]:
        assert row["drop"] == first["clean"]["model"] - row["model"]
        assert row["baseline_drop"] == first["clean"]["baseline"] - row["baseline"]
    by_severity = [r["drop"] for r in first["rows"] if r["corruption"] == "gaussian_noise"]
    assert by_severity == sorted(by_severity)
    # contrast needs no random numbers: recompute one setting
    arrays = np.load(SAMPLES / "digits-test.npz")
    clean = arrays["image"].astype(np.float64)
    mean = clean.mean(axis=(2, 3), keepdims=True)
    flat = (mean + 0.25 * (clean - mean)).astype(np.float32)
    scores = onnxruntime.InferenceSession(SAMPLES / "digits-mlp.onnx").run(None, {"image": flat})[0]
    row = next(r for r in first["rows"] if (r["corruption"], r["severity"]) == ("contrast", 0.75))
    assert row["model"] == np.mean(scores.argmax(axis=1) == arrays["labels"])


def test_robustness_of_tables_without_labels_is_agreement(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.load(SAMPLES / "cancer-test.npz")["features"])
    options = EvaluateOptions(data=DataOptions(str(tmp_path / "x.npy")), latency=False, robustness=True)
    found = evaluate(SAMPLES / "cancer-mlp.onnx", None, options)
    assert found.stress is not None
    assert (found.stress.metric, found.stress.clean) == ("top1_agreement", {"model": 1.0})
    assert {r.corruption for r in found.stress.rows} == {"feature_noise", "feature_outliers"}
    assert found.model.metrics == {}


TOP = {"schema", "command", "version", "seconds", "model", "output", "models", "delta", "fidelity", "gates"}
LATENCY = {"median", "p10", "p90", "runs", "batch", "threads"}
# what is asked -> model, data, baseline, options
PATHS: dict[str, tuple[str, str | None, str | None, dict[str, Any]]] = {
    "nothing": ("digits-mlp", None, None, {"latency": True}),
    "no latency": ("digits-mlp", None, None, {}),
    "baseline": ("digits-mlp", None, "digits-cnn", {"latency": True}),
    "labels": ("digits-mlp", "digits-test.npz", None, {"latency": True}),
    "regression": ("diabetes-mlp", "diabetes-test.npz", "diabetes-mlp", {"latency": True}),
    "all": ("digits-mlp", "digits-test.npz", "digits-cnn", {"latency": True, "robustness": True, "latency_batch": 4}),
}


@pytest.mark.parametrize("case", PATHS)
def test_every_path_has_the_keys_of_the_contract(case: str) -> None:
    model, data, baseline, more = PATHS[case]
    run = measured(model, data, baseline, latency_runs=3, gates=["file_bytes>1"], **more)
    found = as_json(run)
    assert found.keys() >= TOP
    assert (found["schema"], found["command"], found["output"]) == ("prunecli/1", "evaluate", None)
    for entry in found["models"]:
        assert entry.keys() >= {"path", "role", "metrics", "latency_ms"} | SIZES
        assert all(isinstance(entry[name], int | float) for name in SIZES)
        assert bool(entry["metrics"]) is (data is not None)
        assert (entry["latency_ms"] is not None) is more.get("latency", False)
        if entry["latency_ms"]:
            assert entry["latency_ms"].keys() >= LATENCY
            assert entry["latency_ms"]["batch"] == more.get("latency_batch", 1)
            assert entry["latency_ms"]["runs"] == 3
    gate = found["gates"][0]
    assert gate == {"expr": "file_bytes>1", "value": found["models"][0]["file_bytes"], "passed": False}
    if baseline is None:
        assert (found["delta"], found["fidelity"]) == ({}, None)
    else:
        assert found["fidelity"].keys() >= {"top1_agreement", "cosine", "max_abs", "snr_db"}
        gain = found["delta"]["latency"]
        assert gain.keys() - {"reason"} == {"speedup", "low", "high"}
        assert (
            all(gain[name] is None for name in ("speedup", "low", "high"))
            if "reason" in gain
            else gain["low"] <= gain["high"]
        )
    assert "Size" in to_terminal(run.to_document(), width=100, color=False, level=Level.DETAIL)


def test_every_figure_has_a_name_and_every_name_a_figure() -> None:
    """Over a classification of images and a regression of tables; `needs` agrees with what there is."""
    seen: set[str] = set()
    for model, data in (("digits-mlp", "digits"), ("diabetes-mlp", "diabetes")):
        train = DataOptions(str(SAMPLES / f"{data}-train.npz"), limit=50)
        full = {"train_data": train, "robustness": True, "latency": True, "latency_runs": 3}
        values = figures(measured(model, f"{data}-test.npz", model, **full))
        seen |= set(values)
    assert seen == set(known({}))
    alone = figures(measured("digits-mlp", "digits-test.npz"))
    assert all(needs(name, {}) in ([], ["labels"]) for name in alone)
    assert all(
        needs(name, {}) for name in known({}) if name not in alone and not name.startswith(("mae", "rmse", "r2"))
    )


# gate -> what it lacks in an evaluation of a model alone, without data
UNANSWERABLE = {
    "accuracy<0.5": "labelled data",
    "f1.drop>1%": "a model to compare with",
    "cosine<0.99": "a model to compare with",
    "latency.speedup<1.5": "a model to compare with",
    "baseline.params>1": "a model to compare with",
    "latency.median>3ms": "latency",
    "accuracy.gap>1%": "labelled data",
    "robustness.drop>1%": "robustness",
    "significance.p<0.05": "a model to compare with",
}


@pytest.mark.parametrize("gate", UNANSWERABLE)
def test_gates_that_cannot_be_answered_are_refused_before_the_work(gate: str) -> None:
    with pytest.raises(PruneError, match=f"needs {UNANSWERABLE[gate]}"):
        measured("digits-mlp", gates=[gate])


# options -> what is refused
REFUSED: list[tuple[str, str | None, dict[str, Any], str]] = [
    ("digits-mlp", None, {"robustness": True}, "--robustness needs data"),
    (
        "digits-mlp",
        None,
        {"train_data": DataOptions(str(SAMPLES / "digits-train.npz"))},
        "--train-data is compared with test data",
    ),
    ("digits-mlp", "digits-test.npz", {"gates": ["mae>1"]}, "mae was not measured"),
    ("digits-mlp", "digits-test.npz", {"gates": ["acc>1"]}, "no figure named acc"),
    ("digits-mlp", "digits-test.npz", {"gates": ["accuracy<0"]}, "accuracy lies between 0 and 1"),
    (
        "digits-mlp",
        "digits-test.npz",
        {"gates": ["robustness.drop>1"], "robustness": True},
        "robustness.drop lies between -1 and 1",
    ),
    ("digits-mlp", "digits-test.npz", {"task": "regression"}, "fit no output of the model for regression"),
    ("digits-mlp", "digits-test.npz", {"output_name": "probs"}, "no output named probs"),
    ("digits-mlp", "cancer-test.npz", {}, "cancer-test.npz:features"),
    ("digits-mlp", "digits-test.npz", {"metric": ("mae",)}, "--metric mae has no meaning"),
    ("diabetes-mlp", "diabetes-test.npz", {"task": "classification"}, "fit no output of the model for class"),
]


@pytest.mark.parametrize(("model", "data", "options", "message"), REFUSED)
def test_what_does_not_fit_is_refused(model: str, data: str | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        measured(model, data, **options)


def test_two_models_that_do_not_match() -> None:
    with pytest.raises(PruneError, match="different inputs"):
        measured("digits-mlp", "digits-test.npz", "cancer-mlp")


def test_labels_that_are_text_say_what_they_are_taken_for(tmp_path: Path) -> None:
    with np.load(SAMPLES / "cancer-test.npz") as data:
        words = np.array(["benign", "malignant"])[data["labels"]]
        np.savez(tmp_path / "d.npz", features=data["features"], labels=words)
    found = evaluate(SAMPLES / "cancer-mlp.onnx", None, EvaluateOptions(data=tmp_path / "d.npz", latency=False))
    assert any(note.endswith("in their order: 0 benign, 1 malignant") for note in found.notes)
