"""Figures of merit, against scikit-learn called directly on the whole arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn import metrics as sk

from prunecli.data import Batch
from prunecli.data.columns import InputColumn
from prunecli.data.dataset import build
from prunecli.errors import PruneError
from prunecli.evaluation.passes import run_pass
from prunecli.evaluation.quality import METRICS, compute_metrics, confusion, per_class, primary
from prunecli.evaluation.reading import Collector, Predictions, choose_reading
from tests.tiny import spec

RNG = np.random.default_rng(7)
COUNT, CLASSES = 500, 8
LABELS = RNG.integers(0, CLASSES, COUNT)
LOGITS = (RNG.standard_normal((COUNT, CLASSES)) + 1.5 * np.eye(CLASSES)[LABELS]).astype(np.float32)
PROBABILITIES = (np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum(1, keepdims=True)).astype(np.float32)
TARGETS = RNG.standard_normal(COUNT) * 10
VALUES = (TARGETS + RNG.standard_normal(COUNT)).astype(np.float32)


def collect(labels: Any, output: Any, batch: int = 64, task: Any = "auto") -> Predictions:
    collector = Collector(choose_reading(labels, {"y": output}, task))
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        collector.add(labels[part], {"y": output[part]})
    return collector.result()


def best(scores: Any) -> Any:
    return scores.argmax(1)


# metric -> scikit-learn's figure for (LABELS, LOGITS), or for (TARGETS, VALUES)
ORACLE: dict[str, Callable[[], float]] = {
    "accuracy": lambda: sk.accuracy_score(LABELS, best(LOGITS)),
    "balanced_accuracy": lambda: sk.balanced_accuracy_score(LABELS, best(LOGITS)),
    "precision": lambda: sk.precision_score(LABELS, best(LOGITS), average="weighted"),
    "recall": lambda: sk.recall_score(LABELS, best(LOGITS), average="weighted"),
    "f1": lambda: sk.f1_score(LABELS, best(LOGITS), average="weighted"),
    "top5": lambda: sk.top_k_accuracy_score(LABELS, LOGITS, k=5),
    "log_loss": lambda: sk.log_loss(LABELS, PROBABILITIES.astype(float)),
    "mae": lambda: sk.mean_absolute_error(TARGETS, VALUES),
    "rmse": lambda: sk.root_mean_squared_error(TARGETS, VALUES),
    "r2": lambda: sk.r2_score(TARGETS, VALUES),
}


@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.parametrize("batch", [64, 500, 1])
def test_figures_are_those_of_scikit_learn(name: str, batch: int) -> None:
    regression = METRICS[name].regression
    labels, output = (TARGETS, VALUES) if regression else (LABELS, LOGITS)
    found = compute_metrics(collect(labels, output, batch))[name]
    # log loss: the oracle's probabilities are rounded to float32 (relative error 6e-8 each)
    assert found == (pytest.approx(ORACLE[name](), rel=1e-6) if name == "log_loss" else ORACLE[name]())


def test_every_metric_has_an_oracle() -> None:
    assert set(ORACLE) == set(METRICS)


@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
def test_averages(average: Any) -> None:
    found = compute_metrics(collect(LABELS, LOGITS), average)
    assert found["f1"] == sk.f1_score(LABELS, best(LOGITS), average=average)
    assert found["precision"] == sk.precision_score(LABELS, best(LOGITS), average=average)


def test_probabilities_and_logits_give_the_same_log_loss() -> None:
    plain = compute_metrics(collect(LABELS, PROBABILITIES))
    assert collect(LABELS, PROBABILITIES).reading.scale == "probabilities"
    assert collect(LABELS, LOGITS).reading.scale == "logits"
    assert plain["log_loss"] == sk.log_loss(LABELS, PROBABILITIES.astype(float))
    soft = compute_metrics(collect(LABELS, LOGITS))
    assert soft["log_loss"] == pytest.approx(plain["log_loss"], rel=1e-6)


def test_log_loss_survives_certainty_and_huge_logits() -> None:
    labels = np.array([0, 1, 1])
    sure = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    assert compute_metrics(collect(labels, sure))["log_loss"] == sk.log_loss(
        labels, sure.astype(float), labels=range(4)
    )
    huge = np.array([[1e30, 0, 0], [0, 1e30, 0], [0, 1e30, 0]], np.float32)
    assert compute_metrics(collect(labels, huge))["log_loss"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_ties_are_ranked_as_scikit_learn_ranks_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(9), rng.integers(0, 9, 60)])
    scores = rng.integers(0, 3, (len(labels), 9)).astype(np.float32)
    found = compute_metrics(collect(labels, scores))
    assert found["top5"] == sk.top_k_accuracy_score(labels, scores, k=5)
    assert found["accuracy"] == sk.accuracy_score(labels, scores.argmax(1))


def test_classes_without_samples_or_predictions() -> None:
    labels = np.array([0, 0, 3, 3])
    scores = np.eye(5, dtype=np.float32)[[0, 1, 3, 1]]
    found = compute_metrics(collect(labels, scores), "macro")
    assert found["precision"] == sk.precision_score(labels, [0, 1, 3, 1], average="macro", zero_division=0)
    assert [row["class"] for row in per_class(collect(labels, scores))] == [0, 1, 3]


def test_top5_needs_more_than_five_classes() -> None:
    assert "top5" not in compute_metrics(collect(LABELS % 5, LOGITS[:, :5]))


# how the same 0/1 truth may be answered: output -> expected class 1
HALF = RNG.random(COUNT).astype(np.float32)
TRUTH = (HALF + 0.3 * RNG.standard_normal(COUNT) > 0.5).astype(np.int64)
LOGIT = np.log(HALF / (1 - HALF))


@pytest.mark.parametrize(
    ("output", "predicted"),
    [(HALF, HALF > 0.5), (HALF[:, None], HALF > 0.5), (LOGIT, LOGIT > 0), (LOGIT[:, None], LOGIT > 0)],
)
def test_one_output_for_two_classes(output: Any, predicted: Any) -> None:
    found = compute_metrics(collect(TRUTH, output))
    assert found["accuracy"] == sk.accuracy_score(TRUTH, predicted)
    assert found["log_loss"] == pytest.approx(sk.log_loss(TRUTH, HALF.astype(float)), rel=1e-5)


def test_one_hot_labels() -> None:
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS]
    assert compute_metrics(collect(one_hot, LOGITS)) == compute_metrics(collect(LABELS, LOGITS))


def test_text_labels() -> None:
    names = np.array([f"class {chr(97 + k)}" for k in range(CLASSES)])
    found = collect(names[LABELS], LOGITS)
    assert compute_metrics(found) == compute_metrics(collect(LABELS, LOGITS))
    assert [row["class"] for row in per_class(found)] == names.tolist()
    assert confusion(found)["classes"] == names.tolist()  # type: ignore[index]


def test_text_answers() -> None:
    names = np.array(["cat", "dog", "eel"])
    truth, answer = names[LABELS % 3], names[(LABELS * 2) % 3].astype(object)
    found = compute_metrics(collect(truth, answer))
    assert found["f1"] == sk.f1_score(truth, answer.astype(str), average="weighted")
    assert "log_loss" not in found


def test_labels_per_position_with_padding() -> None:
    labels = RNG.integers(0, 4, (20, 7))
    scores = RNG.standard_normal((20, 7, 4)).astype(np.float32)
    labels[RNG.random(labels.shape) < 0.3] = -100
    kept = labels != -100
    found = collect(labels, scores, 6)
    assert compute_metrics(found)["f1"] == sk.f1_score(labels[kept], scores.argmax(-1)[kept], average="weighted")
    assert np.array_equal(found.sample, np.nonzero(kept)[0])
    moved = collect(labels, np.moveaxis(scores, -1, 1), 6)
    assert compute_metrics(moved) == compute_metrics(found)


def test_nothing_but_padding_is_refused() -> None:
    with pytest.raises(PruneError, match="every label is -100"):
        collect(np.full((4, 3), -100), np.zeros((4, 3, 5), np.float32))


def test_broken_scores_count_as_wrong() -> None:
    scores = LOGITS.copy()
    scores[LABELS == 2] = np.nan
    found = collect(LABELS, scores)
    assert found.invalid == (LABELS == 2).sum()
    expected = np.where(LABELS == 2, -1, best(LOGITS))
    assert compute_metrics(found)["accuracy"] == sk.accuracy_score(LABELS, expected)


def test_broken_regressions_have_no_figure() -> None:
    values = VALUES.copy()
    values[3] = np.nan
    assert all(np.isnan(v) for v in compute_metrics(collect(TARGETS, values)).values())


def test_several_targets() -> None:
    targets, values = RNG.standard_normal((50, 3)), RNG.standard_normal((50, 3)).astype(np.float32)
    found = compute_metrics(collect(targets, values))
    assert found["r2"] == sk.r2_score(targets, values)
    assert found["rmse"] == sk.root_mean_squared_error(targets, values)


def test_confusion_and_classes() -> None:
    found = collect(LABELS, LOGITS)
    assert confusion(found)["counts"] == sk.confusion_matrix(LABELS, best(LOGITS)).tolist()  # type: ignore[index]
    rows = per_class(found)
    expected = sk.precision_recall_fscore_support(LABELS, best(LOGITS))
    assert [[r[k] for k in ("precision", "recall", "f1", "support")] for r in rows] == [
        list(column) for column in zip(*expected, strict=True)
    ]


def test_confusion_of_very_many_classes_is_left_out() -> None:
    labels = np.arange(201)
    assert confusion(collect(labels, np.eye(201, dtype=np.float32))) is None


def test_the_one_figure() -> None:
    assert primary(collect(LABELS, LOGITS).reading) == "accuracy"
    assert primary(collect(TARGETS, VALUES).reading) == "rmse"


class Picked:
    """A model of one score: a column of its input."""

    heads: ClassVar[Mapping[str, bool]] = {}

    def __init__(self, column: int) -> None:
        self.column = column

    def run(self, batch: Batch) -> dict[str, Any]:
        return {"y": batch.feed["x"][:, self.column]}


@pytest.mark.parametrize(
    ("original", "pruned", "classes"),
    [
        ([-3.0, 2.0, 4.0, -1.0], [0.2, 0.4, 0.9, 0.1], [1, 1, 1, 1]),  # logits: all above 0
        ([0.1, 0.9, 0.8, 0.2], [-0.1, 0.6, 1.2, 0.4], [0, 1, 1, 0]),  # probabilities: cut at 0.5
    ],
)
def test_scores_of_a_pruned_model_are_what_those_of_the_original_are(
    original: list[float], pruned: list[float], classes: list[int]
) -> None:
    """However they lie by themselves."""
    rows = np.stack([pruned, original], axis=1).astype(np.float32)
    labels = InputColumn.of("labels", np.array([0, 1, 1, 0]))
    data = build([spec("x: float32 (N, 2)")], {"x": InputColumn.of("x", rows)}, labels, "data")
    runners: Any = {"model": Picked(0), "baseline": Picked(1)}
    found = run_pass(runners, data, 4).predictions
    assert found["model"].predicted.tolist() == classes
    assert found["model"].reading.scale == found["baseline"].reading.scale
    assert found["model"].log_prob is not None and np.isfinite(found["model"].log_prob).all()


PRESENT = (RNG.random((COUNT, 5)) < [0.05, 0.1, 0.3, 0.5, 0.0]).astype(np.int64)
MANY = (PRESENT - 0.5 + 0.6 * RNG.standard_normal(PRESENT.shape)).astype(np.float32)
# labels, output, what scikit-learn is given
KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "binary": (TRUTH, LOGIT, TRUTH, LOGIT > 0),
    "margins": (2 * TRUTH - 1, LOGIT, TRUTH, LOGIT > 0),
    "classes": (LABELS, LOGITS, LABELS, LOGITS.argmax(1)),
    "several": (PRESENT, MANY, PRESENT, MANY > 0),
    "several, as floats": (PRESENT.astype(np.float32), MANY, PRESENT, MANY > 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
def test_precision_recall_and_f1_are_those_of_scikit_learn(kind: str, average: Any) -> None:
    labels, output, truth, predicted = KINDS[kind]
    found = compute_metrics(collect(labels, output), average)
    for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        assert found[name] == score(truth, predicted, average=average, zero_division=0), name


def test_each_of_several_labels() -> None:
    columns = sk.precision_recall_fscore_support(PRESENT, MANY > 0, zero_division=0)
    rows = per_class(collect(PRESENT, MANY))
    assert [row["class"] for row in rows] == [0, 1, 2, 3, 4]
    assert [[row[k] for row in rows] for k in ("precision", "recall", "f1", "support")] == [c.tolist() for c in columns]


def test_a_score_that_is_no_number_is_wrong_for_its_label() -> None:
    broken = MANY.copy()
    broken[:7, 2] = np.nan
    wrong = (MANY > 0).astype(np.int64)
    wrong[:7, 2] = 1 - PRESENT[:7, 2]
    assert compute_metrics(collect(PRESENT, broken), "macro")["f1"] == sk.f1_score(PRESENT, wrong, average="macro")
