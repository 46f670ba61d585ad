"""Detections: boxes, scores and classes read from the common layouts of outputs, and their mean average precision."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.evaluation.sample_metrics import Entry, SampleBatch, sample_metric

LEAST_SCORE, OVERLAP, MOST = 0.001, 0.65, 100
"""The least score of a detection; the overlap above which the weaker of two boxes of a class is dropped; the most
detections of an image."""
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
    pair = _pair(arrays)
    if pair is not None:
        boxes, own = arrays[pair[0]], _probabilities(arrays[pair[1]])
        centred = _are_centred(boxes)
        return [_kept(_corners(b, size, centred), s) for b, s in zip(boxes, own, strict=True)]
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


_BOXES, _SCORES = ("box", "loc", "coord"), ("score", "logit", "conf", "class", "cls", "prob", "label")
"""Parts of output names that tell boxes and scores apart where the shapes do not."""


def _pair(arrays: Mapping[str, Array]) -> tuple[str, str] | None:
    """Return the names of boxes (N, boxes, 4) and of their scores (N, boxes, classes); where several would do, as where
    there are four classes, those whose names say so. None where there are no two such outputs.

    Raises:
        PruneError: several would do, and their names do not tell.
    """
    pairs = [(a, b) for a, x in arrays.items() for b, y in arrays.items()
             if a != b and x.shape[2] == 4 and x.shape[1] == y.shape[1]]  # fmt: skip
    told = [(_says(a, _BOXES) - _says(a, _SCORES), _says(b, _SCORES) - _says(b, _BOXES)) for a, b in pairs]
    best = [pair for pair, weight in zip(pairs, told, strict=True) if sum(weight) == max(map(sum, told))]
    if len(best) > 1:
        listed = ", ".join(f"{n} {v.shape}" for n, v in arrays.items())
        raise PruneError(f"which are boxes and which scores is not clear of the outputs {listed}",
                         "name them boxes and scores: `prune shrink --outputs` leaves out others")  # fmt: skip
    return best[0] if best else None


def _says(name: str, parts: Sequence[str]) -> int:
    return int(any(part in name.lower() for part in parts))


def _are_centred(boxes: Array) -> bool:
    """Return whether boxes are (centre, size). Corners are in order in nearly all rows; a network gets a few wrong."""
    given = boxes[np.isfinite(boxes).all(axis=-1) & (boxes != 0).any(axis=-1)]
    return bool(len(given)) and bool((given[:, 2:] >= given[:, :2]).all(axis=1).mean() < 0.9)


def _probabilities(scores: Array) -> Array:
    """Return scores as probabilities of classes. In a softmax, one class means "no object" and has the largest score in
    most boxes: the last one (DETR) is dropped; the first one (SSD) is set to 0, so that the classes keep their numbers.
    Logits with such a class go through softmax, others through sigmoid."""
    last = scores.shape[2] - 1
    best = np.bincount(scores.argmax(axis=2).reshape(-1), minlength=last + 1) / max(
        scores.shape[0] * scores.shape[1], 1
    )
    nothing = next((kind for kind in (last, 0) if last and best[kind] > 0.5), None)
    plain = scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1
    if plain and (not last or np.abs(scores.sum(axis=2) - 1).max(initial=0) >= 1e-3):
        return scores
    if not plain and nothing is None:
        return np.asarray(1 / (1 + np.exp(-scores.clip(-60, 60))))
    if not plain:
        raised = np.exp(scores - scores.max(axis=2, keepdims=True))
        scores = raised / raised.sum(axis=2, keepdims=True)
    if nothing == 0:
        return np.where(np.arange(last + 1) > 0, scores, 0.0)
    return scores[..., :-1] if nothing == last or last > 1 else scores


def _corners(boxes: Array, size: tuple[int, int] | None, centred: bool) -> Array:
    """Return boxes, given as centre and size or as corners, as corners x1, y1, x2, y2 in pixels."""
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
    """Return the best detections after greedy suppression within each class. Boxes with NaN are dropped."""
    scores = np.where(np.isfinite(corners).all(axis=1, keepdims=True), scores, 0.0)
    at, kinds = np.nonzero(scores > LEAST_SCORE)
    values = scores[at, kinds]
    order = np.argsort(-values, kind="stable")[: 30 * MOST]
    at, kinds, values = at[order], kinds[order], values[order]
    found = suppress(corners[at], kinds)[:MOST]
    return Detections(corners[at][found], values[found], kinds[found])


def suppress(corners: Array, classes: Array) -> Array:
    """Return the boxes, the best first, that overlap no better box of their class by more than `OVERLAP`."""
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
    truth = labels[labels[..., 0] >= 0][:, 1:]
    if (truth[:, 2:] < truth[:, :2]).any():
        raise PruneError("--metric map: boxes of the labels end before they begin",
                         "give rows of class, x1, y1, x2, y2: corners, not a size or a centre")  # fmt: skip
    if truth.size and truth.max() <= 1:
        raise PruneError("--metric map: boxes of the labels are fractions", "give corners in pixels of the input")
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
        coco = COCOeval(wanted, wanted.loadRes(found), "bbox")
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
    return float(coco.stats[place])


def _sized(corners: Array) -> list[float]:
    x1, y1, x2, y2 = map(float, corners)
    return [x1, y1, x2 - x1, y2 - y1]


def _map(entries: Sequence[Entry]) -> float:
    return _precision(entries, 0)


def _map50(entries: Sequence[Entry]) -> float:
    return _precision(entries, 1)


sample_metric("map", _map, library="pycocotools.coco", extra="metrics", needs_labels=True)(_boxed)
sample_metric("map50", _map50, library="pycocotools.coco", extra="metrics", needs_labels=True)(_boxed)
