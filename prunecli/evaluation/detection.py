"""Detections: boxes, scores and classes read from the common layouts of outputs, and their mean average precision."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.errors import PruneError
from prunecli.evaluation.sample_metrics import Entry, SampleBatch, sample_metric

Array = np.ndarray[Any, Any]
LEAST_SCORE, OVERLAP, MOST = 0.001, 0.65, 100
"""Detections that count at all; the overlap above which the weaker one of a class goes; the most of an image."""
_LAYOUTS = (
    "one output (N, boxes, 5 + classes) or (N, 4 + classes, boxes) as of YOLO, (N, boxes, 6) of corners, score and"
    " class, or boxes (N, boxes, 4) with scores (N, boxes, classes)"
)


@dataclass(frozen=True)
class Detections:
    """Of one image: corners (M, 4), scores (M,) and classes (M,)."""

    corners: Array
    scores: Array
    classes: Array


def read_detections(outputs: Mapping[str, Any], size: tuple[int, int] | None = None) -> list[Detections]:
    """Return the detections of each image, the best `MOST` of those over `LEAST_SCORE`, after suppression of overlaps
    where the layout is one of raw scores. `size`: height and width of the input, which scales boxes in fractions.

    Raises:
        PruneError: the outputs are of no known layout.
    """
    arrays = {n: v.astype(np.float64) for n, v in outputs.items() if isinstance(v, np.ndarray) and v.ndim == 3}
    boxes = next((n for n, v in arrays.items() if v.shape[2] == 4 and _paired(n, arrays)), None)
    if boxes is not None:
        scores = next(v for n, v in arrays.items() if n != boxes and v.shape[1] == arrays[boxes].shape[1])
        own = _probabilities(scores)
        centred = not (arrays[boxes][..., 2:] >= arrays[boxes][..., :2]).all()
        return [_kept(_corners(b, size, centred), s) for b, s in zip(arrays[boxes], own, strict=True)]
    if len(arrays) != 1:
        listed = ", ".join(f"{n} {np.shape(v)}" for n, v in outputs.items())
        raise PruneError(f"no layout of boxes is known for the outputs {listed}", f"known are {_LAYOUTS}")
    (value,) = arrays.values()
    if value.shape[2] == 6 and (value[..., 5] % 1 == 0).all():
        return [_ended(rows, size) for rows in value]
    if value.shape[1] < value.shape[2]:
        return [_kept(_corners(rows[:, :4], size, True), rows[:, 4:]) for rows in value.transpose(0, 2, 1)]
    if value.shape[2] < 6:
        raise PruneError(f"no layout of boxes is known for an output {value.shape}", f"known are {_LAYOUTS}")
    return [_kept(_corners(rows[:, :4], size, True), rows[:, 4:5] * rows[:, 5:]) for rows in value]


def _paired(name: str, arrays: Mapping[str, Array]) -> bool:
    """Whether another output has a row for each of these boxes."""
    return any(n != name and v.shape[1] == arrays[name].shape[1] for n, v in arrays.items())


def _probabilities(scores: Array) -> Array:
    """Scores as probabilities of classes: softmax without its last class, "no object", of logits (N, A, classes + 1) as
    of DETR, where that class leads most; sigmoid of other logits."""
    if scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1:
        total = scores.sum(axis=2)
        return scores[..., :-1] if scores.shape[2] > 2 and np.abs(total - 1).max(initial=0) < 1e-3 else scores
    if scores.shape[2] > 1 and (scores.argmax(axis=2) == scores.shape[2] - 1).mean() > 0.5:
        raised = np.exp(scores - scores.max(axis=2, keepdims=True))
        return np.asarray((raised / raised.sum(axis=2, keepdims=True))[..., :-1])
    return np.asarray(1 / (1 + np.exp(-scores.clip(-60, 60))))


def _corners(boxes: Array, size: tuple[int, int] | None, centred: bool) -> Array:
    """Boxes, of a centre and a size or of corners, as corners x1, y1, x2, y2 in pixels."""
    if centred:
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    if size is not None and np.abs(boxes).max(initial=0) <= 2:
        boxes = boxes * np.array([size[1], size[0], size[1], size[0]])
    return boxes


def _ended(rows: Array, size: tuple[int, int] | None) -> Detections:
    """Rows of corners, score and class, after suppression."""
    rows = rows[rows[:, 4] > LEAST_SCORE]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")[:MOST]]
    return Detections(_corners(rows[:, :4], size, False), rows[:, 4], rows[:, 5].astype(np.int64))


def _kept(corners: Array, scores: Array) -> Detections:
    """Return the best detections after greedy suppression within each class."""
    at, kinds = np.nonzero(scores > LEAST_SCORE)
    values = scores[at, kinds]
    order = np.argsort(-values, kind="stable")[: 30 * MOST]
    at, kinds, values = at[order], kinds[order], values[order]
    found = suppress(corners[at], kinds)[:MOST]
    return Detections(corners[at][found], values[found], kinds[found])


def suppress(corners: Array, classes: Array) -> Array:
    """Return which boxes, the best first, overlap no better one of their class by more than `OVERLAP`."""
    area = (corners[:, 2:] - corners[:, :2]).clip(0).prod(axis=1)
    left, kept = np.arange(len(corners)), list[int]()
    while left.size and len(kept) < MOST:
        first, left = left[0], left[1:]
        kept.append(int(first))
        low = np.maximum(corners[first, :2], corners[left, :2])
        high = np.minimum(corners[first, 2:], corners[left, 2:])
        shared = (high - low).clip(0).prod(axis=1)
        overlap = shared / np.maximum(area[first] + area[left] - shared, 1e-12)
        left = left[(overlap <= OVERLAP) | (classes[left] != classes[first])]
    return np.array(kept, np.int64)


def _boxed(batch: SampleBatch) -> Sequence[Entry]:
    """Mean average precision over classes, at overlaps of 0.5 to 0.95 (`map`) or at 0.5 (`map50`), as of COCO (Lin et
    al., ECCV 2014). Labels (N, boxes, 5): class, x1, y1, x2, y2 in pixels of the input, rows of -1 where there is none.
    """
    labels = batch.labels
    assert labels is not None
    if labels.ndim != 3 or labels.shape[2] != 5 or labels.dtype.kind not in "biuf":
        raise PruneError(f"--metric map: the labels are {labels.shape}", "give rows of class, x1, y1, x2, y2")
    sizes = [v.shape[2:] if v.shape[1] in (1, 3, 4) else v.shape[1:3] for v in batch.inputs.values() if v.ndim == 4]
    found = read_detections(batch.outputs, (sizes[0][0], sizes[0][1]) if sizes else None)
    return [(each, truth[truth[:, 0] >= 0]) for each, truth in zip(found, labels.astype(np.float64), strict=True)]


def _precision(entries: Sequence[Entry], place: int) -> float:
    """Figure `place` of COCO's summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = [(image, row) for image, (_, rows) in enumerate(entries) for row in rows]
    if not truth:
        return math.nan
    known = sorted({int(row[0]) for _, row in truth})
    wanted = COCO()
    wanted.dataset = {
        "info": {}, "images": [{"id": image} for image in range(len(entries))],
        "categories": [{"id": kind} for kind in known],
        "annotations": [
            {"id": number + 1, "image_id": image, "category_id": int(row[0]), "bbox": _sized(row[1:]), "iscrowd": 0,
             "area": float((row[3] - row[1]) * (row[4] - row[2]))}
            for number, (image, row) in enumerate(truth)
        ],
    }  # fmt: skip
    found = [
        {"image_id": image, "category_id": int(kind), "bbox": _sized(box), "score": float(score)}
        for image, (each, _) in enumerate(entries)
        for box, score, kind in zip(each.corners, each.scores, each.classes, strict=True) if np.isfinite(box).all()
    ]  # fmt: skip
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # the library tells what it does
        wanted.createIndex()
        judge = COCOeval(wanted, wanted.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[place])


def _sized(corners: Array) -> list[float]:
    x1, y1, x2, y2 = map(float, corners)
    return [x1, y1, x2 - x1, y2 - y1]


def _map(entries: Sequence[Entry]) -> float:
    return _precision(entries, 0)


def _map50(entries: Sequence[Entry]) -> float:
    return _precision(entries, 1)


sample_metric("map", _map, library="pycocotools.coco", extra="metrics", needs_labels=True)(_boxed)
sample_metric("map50", _map50, library="pycocotools.coco", extra="metrics", needs_labels=True)(_boxed)
