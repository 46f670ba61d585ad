"""Fidelity measures, against their formulas on the whole arrays at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import MEASURES, FidelityCollector, cosines, mixture_of

RNG = np.random.default_rng(3)
A = RNG.standard_normal((40, 6)).astype(np.float32)
A -= A.mean(axis=1, keepdims=True)  # as logits, which have nothing in common
B = (A + 0.7 * RNG.standard_normal((40, 6))).astype(np.float32)
A64, B64 = A.astype(float), B.astype(float)


def row_cosines() -> Any:
    return (A64 * B64).sum(1) / np.sqrt((A64**2).sum(1) * (B64**2).sum(1))


FORMULAS: dict[str, Callable[[], float]] = {
    "top1_agreement": lambda: (A.argmax(1) == B.argmax(1)).mean(),
    "cosine": lambda: row_cosines().mean(),
    "max_abs": lambda: np.abs(A64 - B64).max(),
    "max_rel": lambda: np.abs(A64 - B64).max() / np.abs(A64).max(),
    "snr_db": lambda: 10 * np.log10((A64**2).sum() / ((A64 - B64) ** 2).sum()),
}


def measured(
    reference: Any, other: Any, batch: int = 7, name: str = "y", biased: bool | None = False
) -> dict[str, float | None]:
    collector = FidelityCollector(heads={} if biased is None else {name: biased})
    for start in range(0, max(len(reference), 1), batch):
        part = slice(start, start + batch)
        collector.add({name: reference[part]}, {name: other[part]}, len(reference[part]))
    result = collector.result("the other")
    assert result is not None
    assert result.samples == len(reference)
    return result.short()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("batch", [7, 40, 1])
def test_measures_follow_their_formulas(name: str, batch: int) -> None:
    # sums in another order: 240 additions in float64
    assert measured(A, B, batch)[name] == pytest.approx(FORMULAS[name](), rel=1e-12)


def test_every_measure_has_a_formula() -> None:
    assert set(FORMULAS) == set(MEASURES)


UNIT = A / np.linalg.norm(A, axis=1, keepdims=True)
# reference, other -> measures that matter
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "equal": (A, A, {"top1_agreement": 1, "cosine": 1, "max_abs": 0, "max_rel": 0, "snr_db": math.inf}),
    "negated": (A, -A, {"cosine": -1, "max_rel": 2}),
    "scaled": (A, 2 * A, {"cosine": 1, "top1_agreement": 1, "snr_db": 0}),
    "both zero": (0 * A, 0 * A, {"cosine": 1, "max_abs": 0, "max_rel": 0, "snr_db": math.inf}),
    "zero and not": (0 * A, A, {"cosine": 0, "max_rel": math.inf, "snr_db": -math.inf}),
    "not and zero": (A, 0 * A, {"cosine": 0, "max_rel": 1, "snr_db": 0}),
    "equal infinities": (np.where(A > 1, np.inf, A), np.where(A > 1, np.inf, A), {"max_abs": 0}),
    "integers": (np.array([[1, 5], [7, 2]]), np.array([[1, 5], [2, 7]]), {"top1_agreement": 0.5, "max_abs": 5}),
    "booleans": (np.array([True, False]), np.array([True, True]), {"max_abs": 1, "top1_agreement": None}),
    "one class": (A[:, :1], B[:, :1], {"top1_agreement": None, "cosine": None}),
    "one number": (A[:, 0], B[:, 0], {"top1_agreement": None, "cosine": None}),
    "boxes by corners": (np.sort(A[:, :4]), B[:, :4], {"top1_agreement": None, "cosine": None}),
    "boxes by centres": (abs(A[:, None, :4]), B[:, None, :4], {"top1_agreement": None, "cosine": None}),
    "four scores": (A[:, :4], A[:, :4], {"top1_agreement": 1, "cosine": 1}),
    "four probabilities": (A[:, :4] ** 2 / (A[:, :4] ** 2).sum(1, keepdims=True), A[:, :4] ** 2, {"top1_agreement": 1}),
    "too few rows to be boxes": (np.sort(A[:5, :4]), np.sort(A[:5, :4]), {"top1_agreement": 1, "cosine": 1}),
    "image classes are axis 1": (
        np.arange(8.0).reshape(1, 2, 2, 2), np.arange(8.0)[::-1].reshape(1, 2, 2, 2), {"top1_agreement": 0},
    ),
    "embeddings of length 1": (UNIT, UNIT, {"top1_agreement": None, "cosine": 1}),
    "features of a Relu": (np.maximum(A, 0), np.maximum(B, 0), {"top1_agreement": None}),
    "three planes": (A.reshape(2, 3, 8, 5), A.reshape(2, 3, 8, 5), {"top1_agreement": None, "cosine": 1}),
    "maps of classes": (A.reshape(2, 4, 6, 5), A.reshape(2, 4, 6, 5), {"top1_agreement": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_special_values(case: str) -> None:
    reference, other, expected = CASES[case]
    found = measured(reference, other, name="logits" if expected.get("top1_agreement") is not None else "y")
    for name, value in expected.items():
        assert found[name] == (value if value is None else pytest.approx(value, abs=1e-9)), name


def softmax(scores: Any) -> Any:
    return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)


LANDMARKS = np.array([0.3, 0.7, 0.5, 0.4, 0.6, 0.9]) + 0.05 * RNG.standard_normal((40, 1)) + 0.01 * A64
WIDE = RNG.standard_normal((40, 64))
KINDS: dict[str, tuple[str, Any, bool | None, bool]] = {
    "logits by their values": ("191", A64, False, True),
    "logits with a common level": ("191", A64 + 7, False, True),
    "two classes": ("191", np.stack([A64[:, 0], 0.1 - 0.8 * A64[:, 0]], axis=1), False, True),
    "maps of logits": ("out", A64.reshape(2, 20, 6).transpose(0, 2, 1).reshape(2, 6, 4, 5), False, True),
    "tokens": ("out", A64.reshape(4, 10, 6), False, True),
    "logits by their name": ("head_logits", LANDMARKS, None, True),
    "probabilities": ("y", softmax(A64), None, True),
    "logarithms of probabilities": ("y", np.log(softmax(A64)), None, True),
    "landmarks": ("y", LANDMARKS, False, False),
    "numbers of no relation": ("y", RNG.standard_normal((40, 6)), False, False),
    "normalised features": ("y", A64, None, False),
    "scores each between 0 and 1": ("y", 1 / (1 + np.exp(-A64)), None, False),
    "boxes of one spread": ("y", RNG.uniform(0, 1, (4, 10, 6)), False, False),
    "a classifier, of few samples": ("191", A64[:4] + 3, True, True),
    "a classifier without training": ("191", WIDE[:, :6], True, True),
    "landmarks of a product with a bias": ("y", LANDMARKS, True, False),
    "an embedding of a product with a bias": ("y", WIDE, True, False),
    "tokens of a product with a bias": ("y", WIDE.reshape(4, 10, 64), True, False),
    "a name of something else": ("box_logits", A64, False, False),
}  # fmt: skip
"""Name, values, whether the output ends in a product with a bias (None: in no product), and whether it is scores of
classes."""


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_agreement_is_of_scores_of_classes(kind: str, batch: int) -> None:
    name, values, biased, scores = KINDS[kind]
    assert (measured(values, values, batch, name, biased)["top1_agreement"] is not None) == scores


def test_labels_say_what_an_output_is() -> None:
    for said in (True, False):
        collector = FidelityCollector(scores={"y": said})
        collector.add({"y": A}, {"y": A}, 40)
        found = collector.result("x")
        assert found is not None and (found.short()["top1_agreement"] == 1) == said


def test_one_number_per_sample_is_judged_around_its_mean() -> None:
    """A model that always answers 1000 knows nothing of numbers about 1000, whose size would give it 60 dB."""
    numbers = 1000 + A64[:, :1]
    assert measured(numbers, np.full_like(numbers, 1000))["snr_db"] == pytest.approx(
        10 * np.log10(numbers.var() / np.square(A64[:, 0]).mean()), abs=1e-6
    )
    assert measured(numbers, numbers)["snr_db"] == math.inf
    constant = np.full((9, 1), 0.1)
    assert measured(constant, constant + 1)["snr_db"] is None and measured(numbers[:1], numbers[1:2])["snr_db"] is None


@pytest.mark.parametrize("name", ["cosine", "max_abs", "max_rel", "snr_db"])
@pytest.mark.parametrize("row", [0, 39])
def test_nan_is_never_hidden(name: str, row: int) -> None:
    other = B.copy()
    other[row, 0] = np.nan
    assert math.isnan(measured(A, other)[name] or 0)


def test_nan_is_no_agreement() -> None:
    other = A.copy()
    other[:10] = np.nan
    assert measured(A, other)["top1_agreement"] == 0.75


def test_the_worst_output_speaks() -> None:
    collector = FidelityCollector()
    collector.add({"a": A, "b": A}, {"a": A, "b": B}, 40)
    result = collector.result("x")
    assert result is not None
    assert result.short() == result.worst() == result.outputs["b"] and result.output == "b"
    chosen = FidelityCollector("a")
    chosen.add({"a": A, "b": A}, {"a": A, "b": B}, 40)
    asked = chosen.result("x")
    assert asked is not None and asked.short() == asked.outputs["a"] and asked.output == "a"
    broken = FidelityCollector()
    broken.add({"a": A, "b": A}, {"a": A * np.nan, "b": B}, 40)
    worst = broken.result("x")
    assert worst is not None
    assert math.isnan(worst.worst()["cosine"] or 0)


def test_other_shapes_are_refused_and_text_is_equal_or_not() -> None:
    collector = FidelityCollector()
    with pytest.raises(PruneError, match=r"y is \(40, 6\) in one model"):
        collector.add({"y": A}, {"y": A[:, :3]}, 40)
    text = FidelityCollector()
    for other in ("a", "b"):
        text.add({"t": np.array(["a"], object), "y": A}, {"t": np.array([other], object), "y": A}, 40)
        assert (found := text.result("x")) is not None and found.alike == (other == "a")
    result = text.result("x")
    assert result is not None
    assert list(result.outputs) == ["y"]
    assert result.skipped == ["t is text, of which 1 of 2 values differ"]
    assert FidelityCollector().result("x") is None


def test_parts_of_sequences_are_compared_and_maps_are_not() -> None:
    collector = FidelityCollector()
    collector.add({"s": [A, B], "m": [{0: 1.0}]}, {"s": [A, A], "m": [{0: 1.0}, {0: 2.0}]}, 40)
    found = collector.result("x")
    assert found is not None and list(found.outputs) == ["s[0]", "s[1]"] and not found.alike
    assert found.outputs["s[1]"]["max_abs"] == pytest.approx(np.abs(A64 - B64).max(), rel=1e-6)
    assert found.skipped == ["not compared: m is not a tensor in both models"]


def detections(layout: str) -> tuple[Any, Any]:
    """Boxes of 40 places in pixels and scores of 6 classes, of which a few are high; and the same with half of the high
    scores gone."""
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0, 320, (4, 40, 4))
    scores = rng.uniform(0, 0.01, (4, 40, 6))
    high = rng.random((4, 40)) < 0.1
    scores[..., 2][high] = rng.uniform(0.6, 0.9, int(high.sum()))
    lost = scores.copy()
    lost[..., 2][high & (np.arange(40) % 2 == 0)] = 0.01
    found = [np.concatenate([boxes, each], axis=-1) for each in (scores, lost)]
    if layout == "elements first":
        found = [each.transpose(0, 2, 1) for each in found]
    if layout == "maps":
        found = [each.transpose(0, 2, 1).reshape(4, 10, 8, 5) for each in found]
    if layout == "scores first":
        found = [each[..., ::-1] for each in found]
    return found[0], found[1]


@pytest.mark.parametrize("layout", ["elements last", "elements first", "maps", "scores first"])
def test_scores_beside_boxes_are_compared_by_their_own_spread(layout: str) -> None:
    reference, other = detections(layout)
    assert cosines(reference, other).min() > 0.9999  # what the whole would say
    found = measured(reference, other, 2)
    assert (found["cosine"] or 1) < 0.85 and (found["snr_db"] or 99) < 6 and found["top1_agreement"] is None
    same = measured(reference, reference, 2)
    assert same["cosine"] == 1 and same["snr_db"] == math.inf
    collector = FidelityCollector()
    collector.add({"y": reference}, {"y": other}, 4)
    result = collector.result("x")
    assert result is not None
    parts = "0 to 3 and 4 to 9" if layout != "scores first" else "0 to 5 and 6 to 9"
    worse = parts.split(" and ")[layout != "scores first"]
    assert parts in result.skipped[0] and result.skipped[0].endswith(f"worse ones, {worse}")


def network(width: float, small: float, places: int, often: int) -> tuple[Any, Any]:
    """Centres and sizes up to `width` and `small` and scores of 40 classes, (N, 44, places), most nowhere and the first
    one often there; and the same without any scores."""
    rng = np.random.default_rng(0)
    scores = 1e-6 * rng.random((2, 40, places))
    for kind, share in ((0, 0.02 * often), (17, 0.01)):
        there = rng.random((2, places)) < share
        scores[:, kind][there] = rng.uniform(0.4, 0.9, int(there.sum()))
    scores[:, 3, 0] = 0.7
    boxes = rng.uniform(0, 1, (2, 4, places)) * np.array([width, width, small, small])[:, None]
    return np.concatenate([boxes, scores], 1), np.concatenate([boxes, scores * 0], 1)


@pytest.mark.parametrize(
    ("width", "small", "places", "often"),
    [(640, 300, 400, 1), (1280, 900, 2100, 1), (640, 12, 400, 1), (1, 0.6, 400, 1), (1, 0.8, 400, 10), (64, 40, 20, 5)],
)
def test_lost_scores_are_seen_beside_boxes_of_any_size(width: float, small: float, places: int, often: int) -> None:
    """Where classes are rare, boxes in fractions, objects small, or places fewer than elements."""
    reference, lost = network(width, small, places, often)
    mixture = mixture_of(reference)
    assert mixture is not None and mixture.axis == 1 and mixture.cuts[-1] == 4
    assert (measured(reference, lost, 2)["cosine"] or 1) < 0.1
    turned = mixture_of(reference.transpose(0, 2, 1))
    assert turned is not None and turned.axis == 2 and turned.cuts == mixture.cuts


@pytest.mark.parametrize("output", [
    RNG.normal(size=(2, 30, 9)), np.exp(A64.reshape(4, 10, 6)) / np.exp(A64.reshape(4, 10, 6)).sum(-1, keepdims=True),
    RNG.normal(size=(2, 8, 5, 5)), A64, np.zeros((2, 9, 4)),
])  # fmt: skip
def test_elements_that_are_alike_are_no_mixture(output: Any) -> None:
    assert mixture_of(output) is None
