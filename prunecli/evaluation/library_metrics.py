"""Metrics of maps, images, tokens, text and embeddings, computed by the libraries of each field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data.columns import is_float
from prunecli.errors import PruneError
from prunecli.evaluation.reading import IGNORED
from prunecli.evaluation.sample_metrics import Entry, SampleBatch, sample_metric

VOID = 255
"""Class of maps that is not counted, as in PASCAL VOC and Cityscapes, unless the model has such a class."""
MOST_DB = 100.0
"""The signal-to-noise ratio of equal images, in place of infinity."""


# -- maps of classes ------------------------------------------------------------------------------


def _mean_iou(entries: Sequence[Entry]) -> float:
    """Mean over classes of (pixels of the class in both) / (pixels of it in either), over all samples. Classes in
    neither are left out."""
    size = max(each.shape[1] for each in entries)
    both, either = np.sum([np.pad(each, ((0, 0), (0, size - each.shape[1]))) for each in entries], axis=0)
    seen = either > 0
    return float(np.mean(both[seen] / either[seen])) if seen.any() else math.nan


@sample_metric("miou", _mean_iou)
def miou(batch: SampleBatch) -> Sequence[Entry]:
    """Mean intersection over union. Labels (N, H, W) of class numbers, -100 and 255 are not counted; the output has the
    scores of classes on axis 1 or the last, one score (N, 1, H, W) of class 1, or class numbers. A score that is no
    number is of no class. Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010."""
    labels = _whole(batch)
    found, classes = _classes_at(batch.predictions, labels)
    return [_overlap(f.reshape(-1), t.reshape(-1), classes) for f, t in zip(found, labels, strict=True)]


def _overlap(found: Array, truth: Array, classes: int) -> Array:
    """Return, by class, the pixels in both and in either."""
    counted = (truth >= 0) & (truth < classes)
    wrong = counted & (found != truth)
    other = found[wrong]
    both = np.bincount(truth[counted & ~wrong], minlength=classes)
    return np.stack([both, both + np.bincount(truth[wrong], minlength=classes)
                     + np.bincount(other[(other >= 0) & (other < classes)], minlength=classes)])  # fmt: skip


def _classes_at(output: Array, labels: Array) -> tuple[Array, int]:
    """Return the class at each position, -1 where there is none, and the number of classes."""
    spot = labels.shape[1:]
    for axis in (1, -1):
        if output.ndim == labels.ndim + 1 and np.delete(output.shape, axis)[1:].tolist() == list(spot):
            classes = output.shape[axis]
            lost = np.isnan(output).any(axis)
            if classes > 1:
                return _checked(np.where(lost, -1, output.argmax(axis)), labels, classes), classes
            scores = output.reshape(labels.shape)
            cut = 0.5 if scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1 else 0.0
            return _checked(np.where(lost, -1, scores > cut), labels, 2), 2
    if output.shape == labels.shape and not is_float(output.dtype):
        found = output.astype(np.int64)
        return found, 1 + max(int(each[each != VOID].max(initial=0)) for each in (found, labels))
    raise PruneError(f"--metric miou: the output is {output.shape}, the labels are {labels.shape}",
                     "give one class number for each position of the output")  # fmt: skip


def _checked(found: Array, labels: Array, classes: int) -> Array:
    top = int(labels[labels != VOID].max(initial=0))
    if top >= classes:
        raise PruneError(f"--metric miou: the labels hold the class {top}, the output has 0 to {classes - 1}",
                         f"mark positions that do not count with {IGNORED} or {VOID}")  # fmt: skip
    return found


def _whole(batch: SampleBatch) -> Array:
    assert batch.labels is not None
    if batch.labels.dtype.kind not in "biu" and not (batch.labels.dtype.kind == "f" and (batch.labels % 1 == 0).all()):
        raise PruneError("the labels are no class numbers", "this metric needs whole numbers as labels")
    return batch.labels.astype(np.int64)


# -- images ---------------------------------------------------------------------------------------


def _each(entries: Sequence[Entry]) -> Array:
    return np.array(entries, np.float64)


@sample_metric("psnr", _each, span=(-math.inf, math.inf), library="skimage.metrics", extra="metrics")
def psnr(batch: SampleBatch) -> Sequence[Entry]:
    """Peak signal-to-noise ratio in dB, mean over images, each at most 100. Labels are the wanted images in the
    output's shape; channels may be first or last. The peak is the largest value of the labels' type for uint8 and
    uint16, else 255 if they exceed 2, else 1."""
    from skimage import metrics

    ratio: Any = metrics.peak_signal_noise_ratio  # which has no types

    found, wanted, peak = _images(batch)
    with np.errstate(divide="ignore"):
        values = [ratio(w, f, data_range=peak) for f, w in zip(found, wanted, strict=True)]
    return [min(float(value), MOST_DB) for value in values]


@sample_metric("ssim", _each, span=(-1, 1), library="skimage.metrics", extra="metrics")
def ssim(batch: SampleBatch) -> Sequence[Entry]:
    """Structural similarity, mean over images, with a Gaussian window (Wang et al., Image Quality Assessment, IEEE TIP
    2004). Labels and peak as for psnr."""
    from skimage import metrics

    similarity: Any = metrics.structural_similarity  # which has no types

    found, wanted, peak = _images(batch)
    channels = next((axis for axis in (1, -1) if wanted.ndim == 4 and wanted.shape[axis] in (1, 3, 4)), None)
    axis = None if channels is None else 0 if channels == 1 else -1
    if min(np.delete(wanted.shape[1:], axis) if axis is not None else wanted.shape[1:]) < 11:
        raise PruneError("--metric ssim needs images of at least 11 pixels", "use psnr")
    how: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [float(similarity(w, f, data_range=peak, channel_axis=axis, **how))
            for f, w in zip(found, wanted, strict=True)]  # fmt: skip


def _images(batch: SampleBatch) -> tuple[Array, Array, float]:
    assert batch.labels is not None
    found, wanted = batch.predictions, batch.labels
    images = None if wanted.dtype.kind not in "biuf" or found.ndim < 3 else _laid_out(wanted, found.shape)
    if images is None:
        raise PruneError(f"the output is {found.shape}, the labels are {wanted.shape}",
                         "give the wanted images as labels, of the output's shape")  # fmt: skip
    peak = _PEAKS.get(wanted.dtype.name, 255.0 if batch.known.top > 2 else 1.0)
    return found.astype(np.float64), images.astype(np.float64), peak


_PEAKS = {"uint8": 255.0, "uint16": 65535.0}


def _laid_out(images: Array, shape: tuple[int, ...]) -> Array | None:
    """Return images in an output's shape; axes of size 1 and the place of the channels may differ. None where they
    differ otherwise."""

    def plain(sizes: tuple[int, ...]) -> list[int]:
        return [size for size in sizes[1:] if size != 1]

    turned = [images] + [np.moveaxis(images, a, b) for a, b in ((-1, 1), (1, -1)) if images.ndim == 4]
    return next((each.reshape(shape) for each in turned
                 if len(each) == shape[0] and plain(each.shape) == plain(shape)), None)  # fmt: skip


# -- tokens and text ------------------------------------------------------------------------------


def _perplexity(entries: Sequence[Entry]) -> float:
    total, count = np.sum(entries, axis=0)
    return math.exp(min(total / count, 700.0)) if count else math.nan


@sample_metric("perplexity", _perplexity, higher=False, span=(1, math.inf), needs_labels=False)
def perplexity(batch: SampleBatch) -> Sequence[Entry]:
    """exp of the mean of -ln(probability of the token) over all tokens. Labels (N, T) are the tokens predicted by the
    logits (N, T, V) at each position; -100 is not counted. Without labels they are the input tokens shifted by one, as
    for causal language models; an input named "mask" says which count."""
    from scipy.special import logsumexp

    logits = batch.predictions
    if logits.ndim != 3 or not is_float(logits.dtype):
        raise PruneError(
            f"--metric perplexity: the output is {logits.shape}", "it needs logits (samples, tokens, classes)"
        )
    wanted = _next_tokens(batch, logits) if batch.labels is None else _whole(batch)
    logits = logits[:, : wanted.shape[1]].astype(np.float64)
    if wanted.shape != logits.shape[:2] or wanted.max(initial=0) >= logits.shape[2]:
        what = f"tokens {wanted.shape} up to {wanted.max(initial=0)} for logits {logits.shape}"
        raise PruneError(f"--metric perplexity: {what}", "give one token per place")
    counted = wanted >= 0
    own = np.take_along_axis(logits, np.where(counted, wanted, 0)[..., None], axis=2)[..., 0]
    lost = np.where(counted, logsumexp(logits, axis=2) - own, 0.0)
    return list(zip(lost.sum(axis=1).tolist(), counted.sum(axis=1).tolist(), strict=True))


def _next_tokens(batch: SampleBatch, logits: Array) -> Array:
    tokens = [v for n, v in batch.inputs.items()
              if v.shape == logits.shape[:2] and v.dtype.kind in "iu" and not _auxiliary(n)]  # fmt: skip
    if len(tokens) != 1:
        raise PruneError("--metric perplexity: no single input holds the tokens", "give them as labels, one place on")
    masks = [v for n, v in batch.inputs.items() if v.shape == tokens[0].shape and "mask" in n.lower()]
    wanted = tokens[0][:, 1:].astype(np.int64)
    return np.where(masks[0][:, 1:] != 0, wanted, IGNORED) if masks else wanted


def _auxiliary(name: str) -> bool:
    return any(word in name.lower() for word in ("mask", "position", "type", "segment"))


def _error_rate(entries: Sequence[Entry]) -> float:
    wrong, words = np.sum(entries, axis=0)
    return float(wrong / words) if words else math.nan


@sample_metric("wer", _error_rate, higher=False, span=(0, math.inf), library="jiwer", extra="metrics")
def wer(batch: SampleBatch) -> Sequence[Entry]:
    """Word error rate: (substitutions + deletions + insertions) / (words of the labels). The output is text, token
    numbers, or scores (N, T, classes) of CTC (Graves et al., ICML 2006): the best class of each step, repeats joined,
    blanks left out; the blank is class 0, or the last one where any label is 0. Labels are text, or numbers with -100
    where there is none; each number is a word."""
    from jiwer import process_words

    assert batch.labels is not None
    blank = -1 if batch.known.zero else 0
    if (batch.labels.dtype.kind == "U") != (batch.predictions.dtype.kind in "OU"):
        raise PruneError(f"--metric wer: labels of type {batch.labels.dtype} for an output {batch.predictions.shape}",
                         "give labels as the output writes them: text for text, numbers for tokens")  # fmt: skip
    found, wanted = _texts(batch.predictions, blank), _texts(batch.labels, blank)
    entries = []
    for mine, theirs in zip(found, wanted, strict=True):
        words = len(theirs.split())
        if not words or not mine.split():
            entries.append((max(words, len(mine.split())), words))
            continue
        told = process_words(theirs, mine)
        entries.append((told.substitutions + told.deletions + told.insertions, words))
    return entries


def _texts(values: Array, blank: int) -> list[str]:
    """Return one text per sample from token numbers, joined by blanks."""
    if values.dtype.kind in "OU":
        return [" ".join(map(str, np.atleast_1d(row).reshape(-1).tolist())) for row in values]
    if is_float(values.dtype) and values.ndim == 3:
        best = values.argmax(axis=2)
        changed = np.concatenate([np.ones((len(best), 1), bool), best[:, 1:] != best[:, :-1]], axis=1)
        kept = changed & (best != blank % values.shape[2])
        return [" ".join(map(str, row[mine].tolist())) for row, mine in zip(best, kept, strict=True)]
    if values.ndim > 2 or (is_float(values.dtype) and (values % 1 != 0).any()):
        raise PruneError(f"--metric wer: {values.shape} are neither tokens nor scores of CTC", "choose another output")
    rows = values.reshape(len(values), -1).astype(np.int64)
    return [" ".join(map(str, row[row >= 0].tolist())) for row in rows]


# -- embeddings -----------------------------------------------------------------------------------


def rank_correlation(one: Sequence[float] | Array, other: Sequence[float] | Array) -> float:
    """Return Spearman's: the correlation of the ranks, ties at their mean; NaN where all of one are equal."""
    from scipy.stats import spearmanr

    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(spearmanr(one, other).statistic)


def _spearman(entries: Sequence[Entry]) -> float:
    if isinstance(entries[0], float | int) or np.ndim(entries[0][0]) == 0:
        found, wanted = np.array(entries, np.float64).T
    else:
        pairs: dict[float, list[Entry]] = {}
        for each in entries:
            pairs.setdefault(each[1], []).append(each)
        whole = [pair for pair in pairs.values() if len(pair) == 2]
        found = np.array([float(a[0] @ b[0]) for a, b in whole])
        wanted = np.array([a[2] for a, _ in whole])
    return rank_correlation(found, wanted) if len(found) > 2 else math.nan


@sample_metric("spearman", _spearman, span=(-1, 1))
def spearman(batch: SampleBatch) -> Sequence[Entry]:
    """Spearman's rank correlation. For an output of one number per sample: with the labels. For embeddings (N, D): of
    the cosine of two samples with their similarity; labels (N, 2) are the number of the pair and the similarity. Pairs
    with one sample missing are left out."""
    assert batch.labels is not None
    output = batch.predictions.reshape(len(batch.predictions), -1).astype(np.float64)
    if output.shape[1] == 1 and batch.labels.size == len(output):
        return list(zip(output[:, 0].tolist(), batch.labels.reshape(-1).astype(float).tolist(), strict=True))
    if batch.labels.ndim != 2 or batch.labels.shape[1] != 2:
        what = f"the output is {batch.predictions.shape}, the labels are {batch.labels.shape}"
        raise PruneError(f"--metric spearman: {what}",
                         "of embeddings, labels are rows (number of the pair, how alike the two are)")  # fmt: skip
    rows = _unit(output)
    return [(row, float(pair), float(like)) for row, (pair, like) in zip(rows, batch.labels.tolist(), strict=True)]


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))


def _recall(k: int) -> Any:
    def figure(entries: Sequence[Entry]) -> Array:
        from sklearn.neighbors import NearestNeighbors

        rows, labels = np.stack([row for row, _ in entries]), np.array([label for _, label in entries])
        if len(rows) < 2 or not np.isfinite(rows).all():
            return np.full(len(rows), math.nan)
        near = NearestNeighbors(n_neighbors=min(k, len(rows) - 1), algorithm="brute").fit(rows)
        found = near.kneighbors(return_distance=False)  # of the samples themselves, each without itself
        return np.asarray((labels[found] == labels[:, None]).any(axis=1), np.float64)

    return figure


def _embedded(batch: SampleBatch) -> Sequence[Entry]:
    """Return whether one of the k nearest samples by cosine has the sample's class; mean over samples. Musgrave et al.,
    A Metric Learning Reality Check, ECCV 2020."""
    assert batch.labels is not None
    if batch.predictions.ndim < 2 or batch.labels.size != len(batch.predictions):
        raise PruneError(f"recall of embeddings: the output is {batch.predictions.shape}, labels {batch.labels.shape}",
                         "it needs embeddings (samples, values) and one class per sample")  # fmt: skip
    rows = _unit(batch.predictions.reshape(len(batch.predictions), -1).astype(np.float64))
    return list(zip(rows, batch.labels.reshape(-1).tolist(), strict=True))


for _k in (1, 5, 10):
    sample_metric(f"recall_at_{_k}", _recall(_k))(_embedded)
