"""Metrics of maps, images, tokens, text, embeddings and boxes, and the user's own functions."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli.arrays import Array
from prunecli.data import Batch
from prunecli.errors import PruneError
from prunecli.evaluation import detection
from prunecli.evaluation.sample_metrics import (
    LabelFacts,
    MetricCollector,
    SampleBatch,
    SampleMetric,
    UserMetric,
    find_metrics,
    registered,
)

RNG = np.random.default_rng(0)


def value(name: str, output: Any, labels: Array | None, feed: dict[str, Array] | None = None, batch: int = 2) -> float:
    """The figure of a metric, computed batch by batch."""
    metric = find_metrics([name])
    outputs = output if isinstance(output, dict) else {"y": output}
    count = len(next(iter(outputs.values())))
    (judge,) = metric.values()
    assert isinstance(judge, SampleMetric)
    collector = MetricCollector({"m": judge}, known=LabelFacts.of(labels))
    for i in range(0, count, batch):
        part = slice(i, i + batch)
        inputs = {n: v[part] for n, v in (feed or {}).items()}
        own = None if labels is None else labels[part]
        collector.add(Batch(inputs, len(range(count)[part]), own), {n: v[part] for n, v in outputs.items()})
    parts = judge.parts(collector.found["m"], labels)
    found = judge.value(collector.found["m"])
    assert math.isnan(found) or found == pytest.approx(parts["each"].mean() if "each" in parts else parts["parts"][0])
    return found


def one_hot(labels: Array, classes: int, axis: int = 1) -> Array:
    return np.moveaxis(np.eye(classes, dtype=np.float32)[labels], -1, axis)


MAPS = RNG.integers(0, 3, (4, 6, 5))
WRONG = np.where(RNG.random(MAPS.shape) < 0.3, (MAPS + 1) % 3, MAPS)
IMAGES = RNG.random((3, 3, 16, 16)).astype(np.float32)
NOISY = (IMAGES + RNG.normal(scale=0.05, size=IMAGES.shape)).astype(np.float32)
LOGITS = RNG.normal(size=(4, 5, 7)).astype(np.float32)
TOKENS = RNG.integers(0, 7, (4, 5))
VECTORS = RNG.normal(size=(12, 6)).astype(np.float32)
KINDS = np.repeat(np.arange(4), 3)


def iou() -> float:
    from sklearn.metrics import jaccard_score

    return float(jaccard_score(MAPS.reshape(-1), WRONG.reshape(-1), average="macro"))


def noise_ratio() -> float:
    return float(
        np.mean([10 * np.log10(1 / np.square(a - b).mean()) for a, b in zip(IMAGES.astype(float), NOISY, strict=True)])
    )


def grey_ratio() -> float:
    return float(np.mean([10 * np.log10(1 / np.square(a - b).mean())
                          for a, b in zip(IMAGES[:, 0].astype(float), NOISY[:, 0], strict=True)]))  # fmt: skip


def surprise(logits: Array, tokens: Array) -> float:
    raised = np.exp(logits.astype(float))
    chosen = np.take_along_axis(raised / raised.sum(-1, keepdims=True), tokens[..., None], -1)
    return float(np.exp(-np.log(chosen).mean()))


def steps(*rows: list[int], classes: int = 5) -> Array:
    return one_hot(np.array(rows), classes, -1)


def pairs(found: Array) -> float:
    from scipy.stats import spearmanr

    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    return float(spearmanr((unit[0::2] * unit[1::2]).sum(1), found).statistic)


def neighbours(k: int) -> float:
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    near = unit @ unit.T - 9 * np.eye(12)
    return float(np.mean([(KINDS[np.argsort(-row)[:k]] == kind).any() for row, kind in zip(near, KINDS, strict=True)]))


ALIKE = np.linspace(0, 1, 6)
PAIRED = np.stack([np.repeat(np.arange(6), 2), np.repeat(ALIKE, 2)], axis=1)

# metric, outputs, labels, inputs, wanted
VALUES = [
    ("miou", one_hot(WRONG, 3), MAPS, {}, iou()),
    ("miou", one_hot(WRONG, 3, -1), MAPS, {}, iou()),
    ("miou", WRONG, MAPS, {}, iou()),
    ("miou", one_hot(MAPS, 3), np.where(RNG.random(MAPS.shape) < 0.5, 255, MAPS), {}, 1.0),
    ("miou", one_hot(MAPS, 3), np.where(RNG.random(MAPS.shape) < 0.5, -100, MAPS), {}, 1.0),
    ("miou", np.array([[[[0.9, 0.2], [0.6, 0.4]]]]), np.array([[[1, 1], [1, 0]]]), {}, (2 / 3 + 1 / 2) / 2),
    ("miou", np.array([[[[3.0, -1.0], [2.0, -2.0]]]]), np.array([[[1, 0], [0, 0]]]), {}, (1 / 2 + 2 / 3) / 2),
    ("miou", np.where(MAPS == 1, 5, MAPS), MAPS, {}, 1 / 2),  # classes 1 and 5 have no pixel in common
    ("miou", np.where(one_hot(MAPS, 3) * (MAPS == 1)[:, None], np.nan, one_hot(MAPS, 3)), MAPS, {}, 2 / 3),
    ("psnr", NOISY, IMAGES, {}, noise_ratio()),
    ("psnr", NOISY, np.moveaxis(IMAGES, 1, -1), {}, noise_ratio()),
    ("psnr", NOISY[:, :1], IMAGES[:, 0], {}, grey_ratio()),
    ("psnr", NOISY, np.where(IMAGES > 0.999, 1 + 1e-6, IMAGES), {}, noise_ratio()),
    ("psnr", np.ones((1, 2, 2)), np.zeros((1, 2, 2), np.uint8), {}, 20 * math.log10(255)),
    ("psnr", 255 * NOISY, 255 * IMAGES, {}, noise_ratio()),
    ("psnr", IMAGES, IMAGES, {}, 100.0),
    ("ssim", IMAGES, IMAGES, {}, 1.0),
    ("ssim", IMAGES[:, 0], IMAGES[:, 0], {}, 1.0),
    ("perplexity", LOGITS, TOKENS, {}, surprise(LOGITS, TOKENS)),
    ("perplexity", np.zeros((2, 3, 8)), np.zeros((2, 3), int), {}, 8.0),
    ("perplexity", LOGITS, np.where(np.arange(5) < 3, TOKENS, -100), {}, surprise(LOGITS[:, :3], TOKENS[:, :3])),
    ("perplexity", LOGITS, None, {"input_ids": TOKENS}, surprise(LOGITS[:, :-1], TOKENS[:, 1:])),
    ("perplexity", LOGITS, None, {"input_ids": TOKENS, "attention_mask": np.tile(np.arange(5) < 3, (4, 1)).astype(int)},
     surprise(LOGITS[:, :2], TOKENS[:, 1:3])),
    ("wer", steps([1, 1, 0, 1, 2], [3, 0, 0, 0, 4]), np.array([[1, 1, 2], [3, 4, -100]]), {}, 0.0),
    ("wer", steps([1, 1, 0, 1, 2], [3, 0, 0, 0, 0]), np.array([[1, 1, 2], [3, 4, -100]]), {}, 1 / 5),
    ("wer", steps([4, 0, 4, 1, 1]), np.array([[0, 1]]), {}, 0.0),  # the blank is the last class
    ("wer", steps([1, 4, 1], [2, 4, 2], [3, 4, 3], [0, 4, 1]), np.array([[1, 1], [2, 2], [3, 3], [0, 1]]), {}, 0.0),
    ("wer", np.array([[1, 2, 3]]), np.array([[1, 3, -100]]), {}, 1 / 2),
    ("wer", steps([0, 0, 0]), np.array([[1, 2]]), {}, 1.0),
    ("wer", np.array(["a fat cat", "sat"], object), np.array(["a cat", "sat"]), {}, 1 / 3),
    ("spearman", ALIKE[:, None] ** 3, ALIKE, {}, 1.0),
    ("spearman", -ALIKE[:, None], ALIKE, {}, -1.0),
    ("spearman", VECTORS, PAIRED, {}, pairs(ALIKE)),
    ("spearman", np.array([[1.0], [2], [2], [3]]), np.array([1, 2, 3, 3]), {}, 5 / 6),  # ties have their mean rank
    ("recall_at_1", VECTORS, KINDS, {}, neighbours(1)),
    ("recall_at_1", np.where(KINDS[:, None] == 1, np.nan, VECTORS), KINDS, {}, math.nan),
    ("recall_at_5", VECTORS, KINDS, {}, neighbours(5)),
    ("recall_at_10", VECTORS, KINDS, {}, neighbours(10)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "output", "labels", "feed", "wanted"), VALUES)
def test_values(name: str, output: Array, labels: Array | None, feed: dict[str, Array], wanted: float) -> None:
    assert value(name, output, labels, feed) == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def parts_of(name: str, vectors: Array, labels: Array) -> dict[str, Array]:
    (judge,) = find_metrics([name]).values()
    assert isinstance(judge, SampleMetric)
    output = vectors.reshape(labels.shape) if labels.size == vectors.size else vectors
    return judge.parts(judge.entries(SampleBatch({"y": output}, "y", labels, {}, count=len(labels))), labels)


NEAR = np.random.default_rng(1).normal(size=(600, 8))
NOISE = np.random.default_rng(2).normal(size=(600, 8))
LIKE = np.stack([np.tile(np.arange(300), 2),  # the two of a pair lie far apart
                 np.tile((NEAR[:300] * NEAR[300:]).sum(1) / np.linalg.norm(NEAR[:300], axis=1)
                         / np.linalg.norm(NEAR[300:], axis=1), 2)], 1)  # fmt: skip
# metric, labels, noise of the baseline's outputs and of the model's, verdict, what the sentence has
COMPARED = [
    ("spearman", LIKE, 0, 0, None, "no difference in spearman (600 samples in 40 blocks)"),
    ("spearman", LIKE, 0, 1, -1, "worse than the baseline in spearman"),
    ("spearman", LIKE, 1, 0, 1, "better by"),
    ("spearman", LIKE, 1, -1, None, "worse to"),
    ("recall_at_1", np.arange(600) // 6 % 4, 1, -1, None, "the difference in recall_at_1 is within chance"),
    ("psnr", NEAR[..., None], 0.1, 0.3, -1, "worse by 9.5 to 9.5"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "labels", "base", "model", "verdict", "said"), COMPARED)
def test_differences(name: str, labels: Array, base: float, model: float, verdict: int | None, said: str) -> None:
    (judge,) = find_metrics([name]).values()
    assert isinstance(judge, SampleMetric)
    new, old = (parts_of(name, NEAR + size * NOISE, labels) for size in (model, base))
    found = judge.compare(new, old)
    assert found is not None and found.interval is not None and said in found.words()
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert found.beyond_chance == (verdict is not None) and verdict in (None, np.sign(found.difference))
    assert found.beyond_chance == (found.interval[0] > 0 or found.interval[1] < 0)


def test_a_figure_that_is_no_number_has_no_difference() -> None:
    (judge,) = find_metrics(["spearman"]).values()
    assert isinstance(judge, SampleMetric)
    assert judge.compare(parts_of("spearman", 0 * NEAR, LIKE), parts_of("spearman", NEAR, LIKE)) is None


def test_blocks_of_pairs_hold_both() -> None:
    """300 pairs in 40 blocks: without one of them 292 or 293 are whole."""
    whole: list[int] = []

    def counted(entries: list[tuple[Array, float, float]]) -> float:
        seen = [number for _, number, _ in entries]
        whole.append(sum(seen.count(number) == 2 for number in set(seen)))
        return 1.0

    (judge,) = find_metrics(["spearman"]).values()
    replace(judge, summarise=counted).parts(list(zip(NEAR, *LIKE.T, strict=True)), LIKE)  # type: ignore[call-arg, attr-defined]
    assert len(whole) == 41 and whole[0] == 300 and set(whole[1:]) == {292, 293}


def test_ssim_is_lower_with_noise() -> None:
    assert 0.3 < value("ssim", NOISY, IMAGES, {}) < 0.999
    last = value("ssim", np.moveaxis(NOISY, 1, -1), np.moveaxis(IMAGES, 1, -1), {})
    assert last == pytest.approx(value("ssim", NOISY, IMAGES, {}))


# metric, outputs, labels, part of the message
REFUSED = [
    ("miou", one_hot(MAPS, 3), MAPS[:, :4], "the labels are"),
    ("miou", one_hot(MAPS, 3), MAPS + 1, "the class 3"),
    ("miou", one_hot(MAPS, 3), None, "needs labels"),
    ("miou", one_hot(MAPS, 3), np.where(MAPS == 0, 255, MAPS + 1), "the class 3"),
    ("psnr", IMAGES, MAPS[:3], "give the wanted images"),
    ("psnr", IMAGES[..., :12], np.swapaxes(IMAGES[..., :12], 1, 2), "give the wanted images"),
    ("ssim", IMAGES[..., :8], IMAGES[..., :8], "at least 11"),
    ("perplexity", LOGITS, TOKENS + 1, "up to 7"),
    ("perplexity", LOGITS, None, "no single input"),
    ("wer", LOGITS, np.array(["a"] * 4), "give labels as the output writes them"),
    ("spearman", VECTORS, KINDS, "number of the pair"),
    ("recall_at_1", VECTORS, PAIRED, "one class per sample"),
    ("perplexity", LOGITS, TOKENS + 0.5, "no class numbers"),
    ("perplexity", VECTORS, KINDS, "needs logits (samples, tokens, classes)"),
    ("wer", VECTORS, KINDS, "neither tokens nor scores of CTC"),
    ("map", LOGITS, np.zeros((4, 2, 4)), "class, x1, y1, x2, y2"),
    ("map", np.zeros((4, 9, 5)), np.tile([0.0, 1, 1, 2, 2], (4, 2, 1)), "no layout"),
    ("map", LOGITS, np.tile([0.0, 50, 20, 30, 40], (4, 1, 1)), "corners, not a size"),
    ("map", LOGITS, np.tile([0.0, 0.1, 0.2, 0.3, 0.4], (4, 1, 1)), "are fractions"),
]


@pytest.mark.parametrize(("name", "output", "labels", "part"), REFUSED)
def test_refusals(name: str, output: Array, labels: Array | None, part: str) -> None:
    with pytest.raises(PruneError) as error:
        value(name, output, labels, batch=8)
    assert part in f"{error.value.message} {error.value.hint}"


def test_every_metric_of_the_registry_has_a_value_here() -> None:
    assert {name for name, *_ in VALUES} | {"map", "map50"} == set(registered())


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(PruneError, match="--metric wer needs jiwer") as error:
        find_metrics(["wer"])
    assert error.value.hint == "pip install 'prunecli[metrics]'"


# -- boxes ----------------------------------------------------------------------------------------

TRUTH = np.array([[[1, 10, 10, 30, 40], [0, 50, 20, 80, 60]], [[1, 5, 5, 25, 25], [-1, -1, -1, -1, -1]]], float)
"""Two images of 100 pixels, three boxes: class and corners."""


@dataclass(frozen=True)
class Found:
    """Detections as a network would find them: the boxes themselves, one box nowhere, and one again beside itself."""

    @staticmethod
    def rows() -> list[list[tuple[Array, int, float]]]:
        images = []
        for image in TRUTH:
            real = [(row[1:], int(row[0]), 0.9) for row in image if row[0] >= 0]
            again = [(real[0][0] + 1, real[0][1], 0.6)]
            images.append(
                [*real, *again, (np.array([70.0, 70, 90, 95]), 1, 0.2), *[(np.zeros(4), 0, 0.0)] * (9 - len(real))]
            )
        return images


def centred(box: Array) -> Array:
    return np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])


def scores(kind: int, score: float) -> list[float]:
    return [score * (kind == k) for k in range(2)]


def layout(name: str) -> dict[str, Array]:
    rows = Found.rows()
    if name == "yolo5":
        return {"y": np.array([[[*centred(b), s, *scores(k, 1.0)] for b, k, s in image] for image in rows])}
    if name == "yolo8":
        return {
            "y": np.array([[[*centred(b), *scores(k, s)] for b, k, s in image] for image in rows]).transpose(0, 2, 1)
        }
    if name == "ended":
        return {"y": np.array([[[*b, s, k] for b, k, s in image[:3]] for image in rows])}
    fractions = name == "fractions"
    boxes = np.array([[centred(b) / 100 if fractions else b for b, *_ in image] for image in rows])
    return {"scores": np.array([[scores(k, s) for _, k, s in image] for image in rows]), "boxes": boxes}


FEED = {"x": np.zeros((2, 3, 100, 100), np.float32)}


@pytest.mark.parametrize("name", ["yolo5", "yolo8", "ended", "corners", "fractions"])
def test_boxes_of_every_layout(name: str) -> None:
    assert value("map50", layout(name), TRUTH, FEED) == pytest.approx(1.0)
    assert value("map", layout(name), TRUTH, FEED) == pytest.approx(1.0)


def test_a_class_that_is_lost_costs_its_precision() -> None:
    lost = layout("yolo8")
    lost["y"][:, 4] = 0  # scores of class 0
    assert value("map50", lost, TRUTH, FEED) == pytest.approx(0.5)
    moved = layout("corners")
    moved["boxes"][:, :, 2] += 8  # overlaps of 0.71 to 0.79: right at 0.5, wrong at 0.8 and more
    assert value("map50", moved, TRUTH, FEED) == pytest.approx(1.0) and value("map", moved, TRUTH, FEED) < 0.8


def pair_of(name: str) -> dict[str, Array]:
    """Boxes and scores as other networks give them."""
    given = layout("corners")
    boxes, found = given["boxes"], given["scores"]
    if name == "four classes, scores first":
        return {"scores": np.pad(found, ((0, 0), (0, 0), (0, 2))), "boxes": boxes}
    if name == "points between":
        return {"boxes": boxes, "points": np.full((2, boxes.shape[1], 10), 0.5), "scores": found}
    if name == "no numbers":
        first = np.full((2, 1, 4), np.nan)
        return {"boxes": np.concatenate([first, boxes], 1), "scores": np.concatenate([found[:, :1], found], 1)}
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["four classes, scores first", "points between", "no numbers"])
def test_boxes_and_scores_are_told_apart(name: str) -> None:
    assert value("map50", pair_of(name), TRUTH, FEED) == pytest.approx(1.0)


def test_a_few_corners_out_of_order_are_corners() -> None:
    corners = np.tile([10.0, 20, 30, 40], (1, 20, 1))
    corners[0, 3] = [30, 20, 29, 40]
    (found,) = detection.read_detections({"boxes": corners, "scores": np.ones((1, 20, 1))})
    assert found.corners.tolist() == [[10, 20, 30, 40], [30, 20, 29, 40]]


@pytest.mark.parametrize("softmax", [True, False])
def test_a_first_class_of_nothing_is_no_detection(softmax: bool) -> None:
    """As of SSD: all other classes keep their numbers."""
    likely = np.array([[[0.98, 0.01, 0.01], [0.04, 0.95, 0.01], [0.9, 0.05, 0.05], [0.99, 0.005, 0.005]]])
    boxes = np.arange(16.0).reshape(1, 4, 4) * 10
    scores = likely if softmax else np.log(likely)
    (found,) = detection.read_detections({"boxes": boxes, "scores": scores})
    assert found.classes[0] == 1 and found.scores[0] == pytest.approx(0.95) and 0 not in found.classes


def test_which_of_two_alike_are_boxes_must_be_told() -> None:
    with pytest.raises(PruneError, match="which are boxes"):
        detection.read_detections({"a": np.ones((1, 3, 4)), "b": np.ones((1, 3, 4))})


def test_overlaps_are_suppressed_within_a_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [20, 0, 30, 10]], float)
    assert detection.suppress(boxes, np.array([0, 0, 1, 0])).tolist() == [0, 2, 3]


def test_logits_without_a_class_of_nothing_go_through_the_sigmoid() -> None:
    logits = np.array([[[2.0, -3], [-3, 1.0], [-3, 2.0], [2.5, -4]]])
    (found,) = detection.read_detections({"boxes": np.arange(16.0).reshape(1, 4, 4) * 10, "logits": logits})
    assert found.scores.tolist()[:2] == pytest.approx([1 / (1 + np.exp(-2.5)), 1 / (1 + np.exp(-2.0))])


def test_nothing_there_and_nothing_found() -> None:
    assert math.isnan(value("map", layout("corners"), -np.ones_like(TRUTH), FEED))
    nowhere = layout("corners")
    assert value("map", {**nowhere, "boxes": nowhere["boxes"] * np.nan}, TRUTH, FEED) == 0


def test_logits_of_detr_have_a_class_of_nothing() -> None:
    logits = np.array([[[5.0, 0, 0], [0, 0, 5.0], [0, 0, 6.0]]])
    boxes = np.tile([0.5, 0.5, 0.2, 0.4], (1, 3, 1))
    (found,) = detection.read_detections({"pred_boxes": boxes, "logits": logits}, (100, 100))
    assert found.classes[0] == 0 and found.scores[0] > 0.9
    assert found.scores[1:].max() < 0.02
    assert found.corners[0].tolist() == pytest.approx([40, 30, 60, 70])


# -- the user's own -------------------------------------------------------------------------------

CODE = """
import numpy as np

def right(predictions, labels):
    print("noise on stdout")
    return float((predictions.argmax(1) == labels).mean())

def each(predictions, labels):
    return predictions.argmax(1) == labels

def error(y_true, y_pred):
    return np.abs(y_pred - y_true).mean()

def of_inputs(inputs, outputs, k=3):
    return float((inputs["x"].sum() + outputs["y"].sum()) / k)

def sizes(predictions):
    return np.array([len(p) for p in predictions])

def total(predictions):
    return float(sum(p.sum() for p in predictions))

def breaks(predictions):
    return predictions @ np.ones(99)

def words(predictions):
    return "many"

def pairs(predictions):
    return np.ones((2, 2))

def alien(scores):
    return 1.0
"""
CLASSES = np.array([0, 1, 2, 0])
RIGHT = one_hot(np.array([0, 1, 1, 0]), 3, -1)


@pytest.fixture
def code(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return str(path)


def test_functions_of_the_user(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert value(f"{code}:right", RIGHT, CLASSES) == 0.75
    assert value(f"{code}:each", RIGHT, CLASSES) == 0.75
    assert value(f"lower:{code}:error", RIGHT, RIGHT + 2) == 2.0
    assert value(f"{code}:of_inputs", RIGHT, None, {"x": np.ones((4, 2))}) == pytest.approx(12 / 3)
    assert value("sklearn.metrics:accuracy_score", np.array([0, 1, 1, 0]), CLASSES) == 0.75
    assert capsys.readouterr().out == ""  # which is the report's


def test_functions_take_lists_where_sizes_differ(code: str) -> None:
    metric = UserMetric(True, False, (-math.inf, math.inf), "sizes", text=f"{code}:sizes")
    collector = MetricCollector({"m": metric})
    for size in (2, 3):
        collector.add(Batch({}, 1), {"y": np.zeros((1, size))})
    assert metric.value(collector.found["m"]) == 2.5
    found = MetricCollector({"m": metric})
    found.add(Batch({}, 1), {"y": np.zeros((7, 6))})  # boxes that were found in one image
    assert metric.value(found.found["m"]) == 7
    with pytest.raises(PruneError, match="no row for each") as error:
        found.add(Batch({}, 2), {"y": np.zeros((7, 6))})
    assert "--batch-size 1" in error.value.hint


def test_functions_may_write_to_what_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "writes.py"
    path.write_text(
        "def f(predictions):\n    for p in predictions:\n        p += 1\n    return float(predictions[0].max())"
    )
    metric = UserMetric(True, False, (-math.inf, math.inf), "f", text=f"{path}:f")
    collector = MetricCollector({"m": metric})
    for size in (2, 3):
        collector.add(Batch({}, 1), {"y": np.zeros((1, size))})
    assert [metric.value(collector.found["m"]) for _ in range(2)] == [1, 1]


def test_the_output_that_counts_is_that_of_the_first_batch(code: str) -> None:
    (metric,) = find_metrics([f"{code}:total"]).values()
    assert isinstance(metric, SampleMetric)
    collector = MetricCollector({"m": metric})
    for first in (np.ones((1, 2)), np.ones((1, 0))):
        collector.add(Batch({}, 1), {"y": first, "z": np.full((1, 2), 9.0)})
    assert metric.value(collector.found["m"]) == 2


# function, part of the message
WRONG_CODE = [
    (":breaks", "raised ValueError"), (":words", "returned no number"), (":pairs", "returned float64 of shape (2, 2)"),
    (":alien", "has the parameter scores"), (":missing", "has no function missing"), (":right", "takes labels"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part"), WRONG_CODE)
def test_what_goes_wrong_in_the_users_code_is_told(code: str, name: str, part: str) -> None:
    with pytest.raises(PruneError) as error:
        value(code + name, RIGHT, None)
    assert part in error.value.message
    if name == ":breaks":
        assert (
            f"(mine.py line {CODE.splitlines().index('    return predictions @ np.ones(99)') + 1})"
            in error.value.message
        )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("acuracy", "did you mean accuracy?"),
        ("lower:accuracy", "is for functions"),
        ("no.py:f", "FILE.py:FUNCTION"),
        ("psnr psnr", "leave one out"),
    ],
)
def test_unknown_metrics(text: str, hint: str) -> None:
    with pytest.raises(PruneError) as error:
        find_metrics(text.split())
    assert hint in error.value.hint


def test_functions_have_no_name_of_another_figure(tmp_path: Path) -> None:
    from prunecli.evaluation.figures import known

    names = {name.partition(".")[0] for name in known({})}
    (tmp_path / "mine.py").write_text("".join(f"def {name}(predictions):\n    return 1.0\n" for name in names))
    for name in names:
        with pytest.raises(PruneError, match=f"{name} is the name of a figure"):
            find_metrics([f"{tmp_path / 'mine.py'}:{name}"])


def test_imports_are_those_of_a_script_and_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name, text in {
        "own/lazily.py": "import sys\nsys.path.insert(0, 'added')\n"
                         "def f(predictions):\n    import beside_it\n    return beside_it.VALUE\n",
        "own/beside_it.py": "VALUE = 3.0\n",
        "package_of_his/measures.py": "def g(predictions):\n    return 4.0\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    before = list(sys.path)
    assert value("own/lazily.py:f", RIGHT, None) == 3.0
    assert value("package_of_his.measures:g", RIGHT, None) == 4.0
    assert sys.path == ["added", *before]


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = 1\ndef f(predictions:\n")
    with pytest.raises(PruneError, match=r"SyntaxError.*bad.py line 2"):
        find_metrics([f"{tmp_path / 'bad.py'}:f"])


def test_functions_go_to_other_processes_by_name(code: str) -> None:
    (metric,) = find_metrics([f"{code}:each"]).values()
    assert isinstance(metric, UserMetric)
    again = pickle.loads(pickle.dumps(metric))
    entries = [{"predictions": RIGHT[i], "labels": CLASSES[i]} for i in range(4)]
    assert again.value(entries) == metric.value(entries) == 0.75
    before = metric.identity
    Path(code).write_text(CODE + "\n# other\n")
    assert metric.identity != before
