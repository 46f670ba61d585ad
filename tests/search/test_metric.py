"""The metric, its noise, and the damage that steers the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli.arrays import Array
from prunecli.data import Batch, Classes
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import FidelitySums
from prunecli.evaluation.passes import ReadingOptions
from prunecli.evaluation.quality import METRICS, compute_metrics
from prunecli.search.metric import FIDELITY, TrialMetric, agreement, choose_metric
from tests.evaluation.test_fidelity import detections

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(400, 7)).astype(np.float32)
NOISY = (LOGITS + RNG.normal(scale=0.7, size=LOGITS.shape)).astype(np.float32)
CLASSES = np.where(RNG.random(400) < 0.8, LOGITS.argmax(1), RNG.integers(0, 7, 400))
NUMBERS = RNG.normal(size=(400, 1)).astype(np.float32)


def batches(labels: Array | None) -> list[Batch]:
    return [Batch({}, 100, None if labels is None else labels[i : i + 100]) for i in range(0, 400, 100)]


def pieces(values: Array) -> list[dict[str, Array]]:
    return [{"y": values[i : i + 100]} for i in range(0, 400, 100)]


def judged(metric: str | None, labels: Array | None, base: Array, trial: Array) -> tuple[TrialMetric, dict[str, Array]]:
    found = choose_metric(metric, ReadingOptions(), labels, batches(labels), pieces(base), heads={"y": False})
    return found, found.records(zip(batches(labels), pieces(trial), pieces(base), strict=True))


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_of_evaluate_is_a_goal(metric: str) -> None:
    regression = METRICS[metric].regression
    labels, base = (NUMBERS + 0.1, NUMBERS) if regression else (CLASSES, LOGITS)
    trial = base + RNG.normal(scale=0.7, size=base.shape).astype(np.float32)
    found, records = judged(metric, labels, base, trial)
    assert found.reference is not None
    own, whole = found.of(records), compute_metrics(found.reference)[metric]
    assert found.baseline == pytest.approx(whole)
    assert found.value(records) == pytest.approx(compute_metrics(own)[metric])
    drop = found.drop(records)
    sign = 1 if METRICS[metric].higher else -1
    assert drop.value == pytest.approx(sign * (whole - found.value(records))) and drop.value != 0
    assert 0 < drop.error() < 0.2 * max(1, abs(whole)) and drop.error(100) > drop.error()


@pytest.mark.slow
def test_the_error_of_a_metric_that_is_no_mean_is_that_of_a_bootstrap() -> None:
    """Macro recall and the like: the jackknife against 150 resamples, within a third (their own error is 6 %)."""
    found, records = judged("f1", CLASSES, LOGITS, NOISY)
    assert found.reference is not None
    from dataclasses import replace

    def f1(p: Any, rows: Array) -> float:
        return compute_metrics(replace(p, truth=p.truth[rows], predicted=p.predicted[rows], sample=np.arange(400),
                                       in_top=None, log_prob=None))["f1"]  # fmt: skip

    rng, own = np.random.default_rng(1), found.of(records)
    drawn = [rng.integers(0, 400, 400) for _ in range(150)]
    spread = np.std([f1(found.reference, rows) - f1(own, rows) for rows in drawn])
    assert found.drop(records).error() == pytest.approx(spread, rel=0.34)


def test_an_accuracy_that_did_not_change_is_not_certain() -> None:
    found, records = judged(None, CLASSES, LOGITS, LOGITS)
    drop = found.drop(records)
    assert (found.name, drop.value) == ("accuracy", 0.0)
    assert drop.error() == pytest.approx(1 / 400)  # as if one sample had changed


@pytest.mark.parametrize("metric", FIDELITY)
def test_fidelity_is_that_of_evaluate(metric: str) -> None:
    found, records = judged(metric, None, LOGITS, NOISY)
    sums = FidelitySums("logits")
    sums.add(LOGITS.astype(np.float64), NOISY.astype(np.float64))
    whole = sums.values()[metric] or 0.0
    assert found.value(records) == pytest.approx(whole)
    assert found.drop(records).value == pytest.approx(1 - whole) and found.baseline == 1.0


def test_a_nan_is_the_worst() -> None:
    broken = np.where(np.arange(400)[:, None] == 3, np.nan, LOGITS).astype(np.float32)
    assert agreement("cosine", LOGITS, broken)[3] == -1.0
    found, records = judged("log_loss", CLASSES, LOGITS, broken)
    assert found.drop(records).value > 0
    [damage] = [found.damage({"y": LOGITS}, {"y": broken}, 400)]
    assert np.isinf(damage[3]) and damage[4] == 0


def test_damage_is_the_divergence_of_scores_and_relative_elsewhere() -> None:
    found, _ = judged(None, CLASSES, LOGITS, LOGITS)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (LOGITS.astype(float), NOISY.astype(float)))
    divergence = (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(found.damage({"y": LOGITS}, {"y": NOISY}, 400), divergence, rtol=1e-6)  # float64
    maps = RNG.normal(size=(400, 2, 3, 3)).astype(np.float32)
    other = choose_metric("cosine", ReadingOptions(), None, batches(None), pieces(maps))
    np.testing.assert_allclose(other.damage({"y": maps}, {"y": maps * 0.5}, 400).mean(), 0.25, rtol=1e-6)


def test_what_labels_mean_does_not_depend_on_the_part() -> None:
    """One output, targets that are counts: a part that happens to hold 0 and 1 alone is no yes-or-no question."""
    counts, part = np.arange(400) % 3, np.arange(400) % 2
    found = choose_metric(None, ReadingOptions(), np.concatenate([part, counts]), batches(part), pieces(NUMBERS))
    assert found.name == "r2"
    assert choose_metric(None, ReadingOptions(), part, batches(part), pieces(NUMBERS)).name == "accuracy"


def test_folders_of_other_classes_are_refused() -> None:
    """Three folders, numbered 0 to 2, and a model of seven classes."""
    three = Classes({0: "a", 1: "b", 2: "c"}, complete=True)
    with pytest.raises(PruneError, match="3 classes"):
        choose_metric(None, ReadingOptions(), CLASSES % 3, batches(CLASSES % 3), pieces(LOGITS), three)


def test_an_original_that_gives_no_numbers_is_refused() -> None:
    broken = np.where(np.arange(400)[:, None] < 9, np.nan, LOGITS).astype(np.float32)
    for metric in FIDELITY:
        with pytest.raises(PruneError, match="not a number on 9 of 400"):
            judged(metric, None, broken, broken)


def test_damage_is_told_of_the_numbers_that_the_original_gives() -> None:
    """Masked scores, minus infinity in both."""
    masked = np.where(np.arange(7) == 2, -np.inf, LOGITS).astype(np.float32)
    worse = np.where(np.arange(7) == 2, -np.inf, NOISY).astype(np.float32)
    found, _ = judged(None, CLASSES, np.where(CLASSES[:, None] == 2, LOGITS, masked), LOGITS)
    damage = found.damage({"y": masked}, {"y": worse}, 400)
    assert np.isfinite(damage).all() and (damage > 0).all()


def test_damage_of_outputs_without_a_row_per_sample_is_that_of_the_run() -> None:
    found, _ = judged("cosine", None, LOGITS, LOGITS)
    scale = found.scales["y"]
    damage = found.damage({"y": LOGITS[0]}, {"y": NOISY[0]}, 100)
    assert damage == pytest.approx(np.full(100, np.square(LOGITS[0] - NOISY[0]).mean() / scale), rel=1e-5)
    assert not found.damage({"y": np.array(["a"])}, {"y": np.array(["b"])}, 100).any()


def test_damage_and_cosine_of_boxes_beside_scores_are_of_either_part() -> None:
    """Less what a sample's elements are on average in the original."""
    base, lost = detections("elements last")  # four elements of a box, six scores
    found = choose_metric("cosine", ReadingOptions(), None, [Batch({}, 4)], [{"y": base}])
    cuts, level = [slice(0, 4), slice(4, 10)], base.mean(axis=1, keepdims=True)
    own, other = base - level, lost - level
    parts = [(np.square(own[..., c] - other[..., c]).mean(axis=(1, 2)), np.square(own[..., c]).mean()) for c in cuts]
    wanted = np.mean([error / size for error, size in parts], axis=0)
    assert found.damage({"y": base}, {"y": lost}, 4) == pytest.approx(wanted)
    mixture = found.mixtures["y"]
    rows = [(own[..., c].reshape(4, -1), other[..., c].reshape(4, -1)) for c in cuts]
    wanted = np.min([[a @ b / np.sqrt(a @ a * (b @ b)) for a, b in zip(*pair, strict=True)] for pair in rows], axis=0)
    assert agreement("cosine", base, lost, mixture) == pytest.approx(wanted)


def test_an_output_whose_size_follows_the_weights_is_no_measure() -> None:
    parts = [{"y": LOGITS[i : i + 100], "found": LOGITS[: 10 + i // 100]} for i in range(0, 400, 100)]
    assert set(choose_metric(None, ReadingOptions(), CLASSES, batches(CLASSES), parts).scales) == {"y"}
    alone = [{"found": part["found"]} for part in parts]
    found = choose_metric("cosine", ReadingOptions(), None, batches(None), alone)
    with pytest.raises(PruneError, match="changes its size"):
        found.damage({"found": LOGITS[:10]}, {"found": LOGITS[:9]}, 100)


REFUSED: list[tuple[str | None, Array | None, str]] = [
    ("snr_db", None, "no mean"), ("max_abs", CLASSES, "no mean"), ("accuracy", None, "needs labels"),
    ("fun", None, "no metric fun"), ("fun", CLASSES, "no metric fun"), ("r2", CLASSES, "no meaning"),
]  # fmt: skip


def test_outputs_that_are_no_measure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="no floating-point output"):
        judged(None, None, CLASSES[:, None], CLASSES[:, None])
    with pytest.raises(PruneError, match="--output-name z is no floating-point output"):
        choose_metric("cosine", ReadingOptions(output_name="z"), None, batches(None), pieces(LOGITS))
    (tmp_path / "own.py").write_text("def none(predictions):\n    return float('nan')\n")
    with pytest.raises(PruneError, match="--metric none of the original is nan"):
        judged(f"{tmp_path / 'own.py'}:none", None, LOGITS, LOGITS)


@pytest.mark.parametrize(("metric", "labels", "message"), REFUSED)
def test_what_promises_nothing_is_refused(metric: str | None, labels: Array | None, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        judged(metric, labels, LOGITS, LOGITS)


def test_defaults() -> None:
    assert judged(None, NUMBERS, NUMBERS, NUMBERS)[0].name == "r2"
    assert judged(None, None, LOGITS, LOGITS)[0].name == "cosine"  # nothing says that they are
    centred = LOGITS - LOGITS.mean(axis=1, keepdims=True)
    assert judged(None, None, centred, centred)[0].name == "top1_agreement"
    assert judged(None, None, NUMBERS, NUMBERS)[0].name == "cosine"


@pytest.mark.slow
def test_a_metric_of_samples_is_a_goal_with_its_noise() -> None:
    """A figure of the registry that is no mean, by blocks; one number per sample, as the metric of the same name."""
    found, records = judged("miou", CLASSES[:, None], LOGITS[..., None], NOISY[..., None])
    assert found.sample_metric is not None and set(records) == {"parts", "samples"} and found.higher
    drop = found.drop(records)
    assert drop.value == pytest.approx(found.baseline - found.value(records)) and 0 < drop.value < 0.4
    plain, rows = judged("f1", CLASSES, LOGITS, NOISY)
    assert 0.5 < drop.error() / plain.drop(rows).error() < 2  # F1 and IoU say nearly the same
    assert found.drop(found.own).value == 0 and found.drop(found.own).error() == pytest.approx(1 / 400)


@pytest.mark.parametrize(("prefix", "sign"), [("", 1), ("lower:", -1)])
def test_a_function_of_the_user_is_a_goal(tmp_path: Path, prefix: str, sign: int) -> None:
    (tmp_path / "own.py").write_text("def right(predictions, labels):\n    return predictions.argmax(1) == labels\n")
    found, records = judged(f"{prefix}{tmp_path / 'own.py'}:right", CLASSES, LOGITS, NOISY)
    plain, rows = judged("accuracy", CLASSES, LOGITS, NOISY)
    own, wanted = found.drop(records), plain.drop(rows)
    assert (found.name, found.baseline, found.higher) == ("right", plain.baseline, sign == 1)
    assert (own.value, own.variance) == pytest.approx((sign * wanted.value, wanted.variance))
    assert str(tmp_path) in found.identity


@pytest.mark.parametrize(("scale", "sure"), [(1.0, False), (100.0, True)])
def test_a_function_that_may_count_samples_is_not_certain_where_none_changed(
    scale: float, sure: bool, tmp_path: Path
) -> None:
    """One number of a function that lies within 0 and 1 is as uncertain as the accuracy of the same samples."""
    (tmp_path / "own.py").write_text(
        f"def right(predictions, labels):\n    return {scale} * float((predictions.argmax(1) == labels).mean())\n"
    )
    found, records = judged(f"{tmp_path / 'own.py'}:right", CLASSES, LOGITS, LOGITS)
    plain, rows = judged("accuracy", CLASSES, LOGITS, LOGITS)
    drop = found.drop(records)
    assert drop.value == 0 and drop.error() == pytest.approx(0.0 if sure else plain.drop(rows).error())
