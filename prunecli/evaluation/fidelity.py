"""Fidelity: how close one model's outputs are to another's on the same inputs, without any labels.

Only sums are kept of the batches, so data of any size streams through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.data.columns import is_float
from prunecli.errors import PruneError
from prunecli.operators import Role, operator_of, role_of

BOXES = 8
"""Least rows of four numbers that must all look like boxes: the scores of four classes may look so by chance."""


@dataclass(frozen=True)
class FidelityMeasure:
    """A measure. `higher`: whether more is better. `span`: its least and its largest value."""

    higher: bool
    span: tuple[float, float]


MEASURES = {
    "top1_agreement": FidelityMeasure(True, (0, 1)),
    "cosine": FidelityMeasure(True, (-1, 1)),
    "max_abs": FidelityMeasure(False, (0, math.inf)),
    "max_rel": FidelityMeasure(False, (0, math.inf)),
    "snr_db": FidelityMeasure(True, (-math.inf, math.inf)),
}
"""Measures by name, in the order of reports; `FidelitySums.values` has the formulas."""


def same_place(reference: Array, other: Array) -> Array:
    """Return, per position, whether both outputs have their largest value at the same index of the class axis (axis 1
    of images of rank 4 and more, else the last). Return no position without a sample axis or with one class."""
    axis = class_axis(reference)
    if reference.ndim < 2 or reference.shape[axis] < 2:
        return np.zeros(0, bool)
    return np.asarray((reference.argmax(axis) == other.argmax(axis)) & ~np.isnan(other).any(axis))


def cosines(reference: Array, other: Array) -> Array:
    """Return <a, b> / (|a| |b|) per sample, each sample's output taken as one vector. Equal vectors, two zero vectors
    included, give exactly 1; a zero vector and another one give 0."""
    rows = len(reference) if reference.ndim else 1
    a, b = reference.reshape(rows, -1), other.reshape(rows, -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    equal = (a == b).all(axis=1)  # exactly 1, which rounding would miss, also for two zero vectors
    return np.clip(np.where(equal, 1.0, np.divide(dots, norms, out=np.zeros_like(dots), where=norms != 0)), -1, 1)


def are_boxes(output: Array) -> bool:
    """Return whether all rows of four numbers are ordered corners, or a centre and a size, and are not
    probabilities."""
    if output.ndim < 2 or output.shape[-1] != 4:
        return False
    corners = (output[..., 2:] >= output[..., :2]).all()
    return bool((corners or (output >= 0).all()) and (np.abs(output.sum(axis=-1) - 1) > 1e-3).all())


def is_single(output: Array) -> bool:
    """Whether an output is one number per sample."""
    return output.ndim == 0 or output.size == len(output)


NO_SCORES = ("embed", "feature", "hidden", "state", "pool", "box", "keypoint", "landmark", "coord", "image", "depth")
"""Parts of output names whose values are not class scores."""
SCORES = ("logit", "prob", "softmax")
"""Parts of output names whose values are class scores."""
LEAST_POSITIONS, MOST_ELEMENTS, APART, BOX = 8, 4096, 8.0, 4
COMMON = 0.5
"""Largest variance of the mean of logits, as a multiple of that of independent elements."""
TOGETHER, FEW = 2.0, 64
"""For outputs (samples, elements) with fewer than `FEW` elements: the variance of the mean above which they are not
taken for logits. A few, little-trained classes vary together by chance."""
TINY = float(np.finfo(np.float64).tiny)
_SMOOTHING = frozenset({
    "Cast", "DequantizeLinear", "GlobalAveragePool", "Identity", "QuantizeLinear", "ReduceMean", "Resize", "Upsample",
})  # fmt: skip


def heads_of(graph: ir.Graph) -> dict[str, bool]:
    """Return the outputs that are a product with weights, up to operators that move, average or round it, by name, and
    whether the product has a bias. Logits have this form; values that were normalised or squashed last do not."""
    return {value.name: biased for value in graph.outputs if value.name and (biased := _bias(value)) is not None}


def _bias(value: ir.Value | None) -> bool | None:
    """Return whether the product that yields a value has a bias; None where no product yields it."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if operator_of(node).moves == "axes" or node.op_type in _SMOOTHING:
        return _bias(node.inputs[0])
    if node.op_type == "Add":
        return True if sum(_bias(each) is not None for each in node.inputs) == 1 else None
    return None if operator_of(node).contraction is None else any(_is_bias(node, i) for i in range(len(node.inputs)))


def _is_bias(node: ir.Node, index: int) -> bool:
    tensor = ir.convenience.get_const_tensor(value) if (value := node.inputs[index]) is not None else None
    role = None if tensor is None else role_of(node, index, tuple(tensor.shape.numpy()))
    return isinstance(role, Role) and role.kind == "bias"


def class_axis(output: Array) -> int:
    """Return the axis of classes: axis 1 of images (rank 4 and more), else the last."""
    return 1 if output.ndim >= 4 else output.ndim - 1


def are_scores(name: str, output: Array) -> bool | None:
    """Whether an output is scores of classes, for which something must speak: probabilities, which may be logarithms,
    sum to 1 over the classes, or a name says so (`SCORES`). None: if it ends in a product, `LogitMoments` decide.

    Vectors of length 1 are embeddings, many exact zeros come from a Relu, three planes are an image, and boxes beside
    scores are more than scores."""
    axis = class_axis(output)
    if output.ndim < 2 or output.shape[axis] < 2 or not output.size or not np.isfinite(output).all():
        return False
    if any(word in name.lower() for word in NO_SCORES):
        return False
    if any(np.abs(values.sum(axis=axis) - 1).max() < 1e-3 for values in (output, np.exp(np.minimum(output, 1)))):
        return True
    lengths = np.linalg.norm(output, axis=axis)
    features = np.abs(lengths - 1).max() < 1e-3 or (output == 0).mean() > 0.2
    if features or (output.ndim >= 4 and output.shape[axis] == 3) or mixture_of(output) is not None:
        return False
    return any(word in name.lower() for word in SCORES) or None


@dataclass
class LogitMoments:
    """Tells logits from other products by the variance of the mean over the classes. Softmax ignores what is added to
    all classes, so the gradients of cross-entropy with respect to the logits of a sample sum to 0: the rows of the last
    layer diverge while their sum stays. So for C logits of variance v, the variance of their mean is less than v / C,
    the value of independent elements; coordinates, which move together, have more.

    An output (samples, elements) of a product with a bias, which nearly every classifier has, is taken for logits until
    the values contradict it. `biased`: from `heads_of`.
    """

    biased: bool = False
    count: int = 0
    start: Array | None = None
    sums: Any = 0.0
    squares: Any = 0.0
    vectors: bool = True

    def add(self, output: Array) -> None:
        """Add one batch of the output."""
        axis = class_axis(output)
        self.vectors &= output.ndim == 2
        values = np.moveaxis(output, axis, -1).reshape(-1, output.shape[axis])
        values = np.column_stack([values, values.mean(axis=1)])
        self.start = values.mean(axis=0) if self.start is None else self.start
        values = values - self.start
        self.count += len(values)
        self.sums, self.squares = self.sums + values.sum(axis=0), self.squares + np.square(values).sum(axis=0)

    @property
    def of_logits(self) -> bool:
        formed = self.biased and self.vectors
        if self.count < LEAST_POSITIONS:
            return formed
        *each, mean = self.squares / self.count - np.square(self.sums / self.count)
        most = TOGETHER if formed and len(each) < FEW else COMMON
        return bool(mean < most * np.mean(each) / len(each))


@dataclass(frozen=True)
class Mixture:
    """An output whose elements have different meanings, such as boxes and scores: parts of `axis` that end at
    `cuts`."""

    axis: int
    cuts: tuple[int, ...]

    def parts(self, reference: Array, other: Array) -> list[tuple[Array, Array]]:
        """Return the parts of both outputs, each minus the reference's mean over the positions of a sample, so that
        constants such as the grid of boxes do not count."""
        positions = tuple(a for a in range(1, reference.ndim) if a != self.axis)
        mean = reference.mean(axis=positions, keepdims=True)
        split = [np.split(values - mean, self.cuts, axis=self.axis) for values in (reference, other)]
        return list(zip(*split, strict=True))

    def words(self, size: int) -> list[str]:
        """Name the elements of each part."""
        ends = [0, *self.cuts, size]
        return [f"{first} to {last - 1}" if last - 1 > first else str(first)
                for first, last in pairwise(ends)]  # fmt: skip


def mixture_of(output: Array) -> Mixture | None:
    """Return the parts of an output (samples, positions, elements), in either order, or (samples, elements, height,
    width): where the spread of the elements changes by a factor of `APART` or more (`_cuts`), on the axis where it
    changes more. None where the elements are alike, or probabilities."""
    if output.ndim < 3 or not output.size or not np.isfinite(output).all():
        return None
    found = [(each.max() / max(each.min(), TINY), axis, _cuts(each, _are_plain(output, axis)))
             for axis in ((1,) if output.ndim >= 4 else (1, 2))
             if (each := _spread(output, axis)) is not None]  # fmt: skip
    cut = [(ratio, axis, cuts) for ratio, axis, cuts in found if cuts]
    if not cut:
        return None
    _, axis, cuts = max(cut)
    return Mixture(axis, tuple(cuts))


def _spread(output: Array, axis: int) -> Array | None:
    """Return the spread of each element along an axis; None where it is unknown."""
    size = output.shape[axis]
    if size > MOST_ELEMENTS or size < 2 or output.size < LEAST_POSITIONS * size:
        return None
    if np.abs(output.sum(axis=axis) - 1).max() < 1e-3:
        return None
    spread: Array = output.std(axis=tuple(a for a in range(output.ndim) if a != axis))
    return spread if spread.max() else None


def _are_plain(output: Array, axis: int) -> Array:
    """Return, per element along an axis, whether all its values are in [0, 1]."""
    return np.asarray(((output >= 0) & (output <= 1)).all(axis=tuple(a for a in range(output.ndim) if a != axis)))


def _cuts(spread: Array, plain: Array, start: int = 0) -> list[int]:
    """Return where elements of another kind begin: after the first four, as of boxes, where these are wider by a factor
    of `APART` in the medians of both sides; else where both sides are nearest to their medians, if these differ so.
    Then within both sides, but for such as lie between 0 and 1: there classes that are rare spread less than others.

    What spreads less than half of that factor below the widest counts as that, as scores beside pixels do."""
    known = np.log(np.maximum(spread, spread.max() / (2 * APART))) if spread.max() else np.zeros(len(spread))
    if known.max() - known.min() <= math.log(APART):
        return []

    def jump(k: int) -> float:
        return float(np.median(known[:k]) - np.median(known[k:]))

    def misfit(k: int) -> float:
        return sum(float(np.abs(side - np.median(side)).sum()) for side in (known[:k], known[k:]))

    boxed = len(known) > BOX and jump(BOX) > math.log(APART)
    k = BOX if boxed else min(range(1, len(known)), key=misfit)
    if abs(jump(k)) <= math.log(APART):
        return []
    sides = [[] if part_plain.all() else _cuts(part, part_plain, start + at)
             for at, part, part_plain in ((0, spread[:k], plain[:k]), (k, spread[k:], plain[k:]))]  # fmt: skip
    return [*sides[0], start + k, *sides[1]]


@dataclass
class FidelitySums:
    """The sums over batches from which the measures of the output `name` are computed. The first batch decides what
    kind of output it is; `parts` are the sums of the parts of a mixture. `biased`: from `heads_of`, None where no
    product yields the output."""

    name: str = ""
    biased: bool | None = None
    scores: bool | None = None
    moments: LogitMoments | None = None
    known: bool = False
    mixture: Mixture | None = None
    parts: list[FidelitySums] = field(default_factory=list)
    elements: int = 0
    same: float = 0.0
    places: int = 0
    alike: float = 0.0
    vectors: int = 0
    boxes: float = 0.0
    values_seen: int = 0
    largest: float = 0.0
    magnitude: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    numbers: int = 0
    level: float = 0.0

    def add(self, reference: Array, other: Array) -> None:
        """Add one batch of the reference's and the other model's output, float64 and of equal shape."""
        if not self.known and reference.size:
            self.known, self.mixture = True, mixture_of(reference)
            self.scores = are_scores(self.name, reference) if self.scores is None else self.scores
            self.moments = None if self.scores is not None or self.biased is None else LogitMoments(self.biased)
            cuts = self.mixture.cuts if self.mixture else None
            self.parts = [] if cuts is None else [FidelitySums(scores=False) for _ in range(len(cuts) + 1)]
        if self.mixture is not None:
            self.elements = reference.shape[self.mixture.axis]
            for sums, pair in zip(self.parts, self.mixture.parts(reference, other), strict=True):
                sums.add(*pair)
        if self.moments is not None:
            self.moments.add(reference)
        same = same_place(reference, other) if self.scores or self.moments is not None else np.zeros(0, bool)
        self.same, self.places = self.same + float(same.sum()), self.places + same.size
        if is_single(reference):
            self.numbers, self.level = self.numbers + reference.size, self.level + float(reference.sum())
        else:
            alike = cosines(reference, other)
            self.alike, self.vectors = self.alike + float(alike.sum()), self.vectors + alike.size
        self.boxes += reference.size / 4 if are_boxes(reference) else -math.inf  # one batch of none decides
        if reference.size:
            difference = np.where(reference == other, 0.0, reference - other)  # equal infinities differ by 0
            self.values_seen += reference.size
            self.largest = float(np.maximum(self.largest, np.abs(difference).max()))  # NaN stays
            self.magnitude = max(self.magnitude, float(np.abs(reference).max()))
            self.signal += float(np.square(reference).sum())
            self.noise += float(np.square(difference).sum())

    def values(self) -> dict[str, float | None]:
        """Every measure by name; None where it has no meaning for this output, NaN if an output held NaN.

        top1_agreement: mean of `same_place`, of scores of classes. cosine: mean of `cosines`; boxes have none, since
        their values are no directions, and one number per sample has none: it would be its sign. max_abs: the largest
        absolute difference of two corresponding values. max_rel: that over the largest magnitude of the reference; 0 if
        both are all zero. snr_db: 10 log10(sum of squares of the reference / sum of squares of the difference);
        infinite for equal outputs. Of one number per sample the signal is around its mean over the samples, since what
        all have in common tells none of them from another; None where they do not differ. Of a mixture, cosine, max_rel
        and snr_db are those of the part that is worse, each around its mean.
        """
        if self.parts:
            own = [sums.values() for sums in self.parts]
            return self._plain() | {n: _worst(n, [each[n] for each in own]) for n in ("cosine", "max_rel", "snr_db")}
        return self._plain()

    def note(self) -> str:
        """Say which elements were compared apart, and which are worse; empty where all are alike."""
        if self.mixture is None:
            return ""
        words, ratios = self.mixture.words(self.elements), [sums.values()["snr_db"] for sums in self.parts]
        known = [math.inf if ratio is None else ratio for ratio in ratios]
        worse = words[int(np.argmin(known))]
        listed = f"{', '.join(words[:-1])} and {words[-1]}"
        return (f"{self.name}: elements {listed} of axis {self.mixture.axis} are compared apart, since"
                f" they differ in kind; cosine and SNR are those of the worse ones, {worse}")  # fmt: skip

    def _plain(self) -> dict[str, float | None]:
        """The measures over all elements."""
        means = self.boxes < BOXES
        scores = self.scores or (self.moments is not None and self.moments.of_logits)
        seen = self.values_seen > 0
        relative = self.largest / self.magnitude if self.magnitude else math.inf
        signal = self._spread() if self.numbers else self.signal
        with np.errstate(all="ignore"):
            ratio = 10 * float(np.log10(np.float64(signal) / self.noise)) if self.noise else math.inf
        return {
            "top1_agreement": self.same / self.places if self.places and means and scores else None,
            "cosine": self.alike / self.vectors if self.vectors and means else None,
            "max_abs": self.largest if seen else None,
            "max_rel": (relative if self.largest else 0.0) if seen else None,
            "snr_db": ratio if seen and not (self.numbers and ratio == -math.inf) else None,
        }

    def _spread(self) -> float:
        """The sum of squares of numbers around their mean, 0 where that is all rounding."""
        about_zero = self.level**2 / self.numbers
        spread = self.signal - about_zero
        return spread if spread > 1e-12 * about_zero or math.isnan(spread) else 0.0


@dataclass(frozen=True)
class Fidelity:
    """Measures per output, in the order of the reference's outputs. The short names (`cosine`, `snr_db`, ...) are those
    of `main`; without it, the worst of each measure over the outputs. `reference`: what the outputs were compared
    with."""

    outputs: Mapping[str, Mapping[str, float | None]]
    main: str | None
    samples: int
    reference: str
    inputs: str = ""
    skipped: Sequence[str] = ()
    alike: bool = True
    """Whether every output without numbers is the same in both models."""

    def short(self) -> dict[str, float | None]:
        return self.worst() if self.main is None else dict(self.outputs[self.main])

    @property
    def output(self) -> str:
        """The main output; without one, the output with the worst SNR."""

        def ratio(name: str) -> float:
            found = self.outputs[name].get("snr_db")
            return math.inf if found is None else -math.inf if math.isnan(found) else found

        return self.main or min(self.outputs, key=ratio)

    def worst(self) -> dict[str, float | None]:
        """Each measure at its worst over the outputs; NaN is the worst of all."""
        return {name: _worst(name, [each.get(name) for each in self.outputs.values()]) for name in MEASURES}


def _worst(name: str, values: Sequence[float | None]) -> float | None:
    """Return the worst value of a measure; NaN is the worst of all; None without values."""
    known = [v for v in values if v is not None]
    if any(math.isnan(v) for v in known):
        return math.nan
    return (min if MEASURES[name].higher else max)(known) if known else None


@dataclass
class FidelityCollector:
    """Takes the outputs of both models batch by batch. `heads`: from `heads_of` of the reference. `scores`: outputs of
    which the labels say whether they are class scores."""

    main: str | None = None
    heads: Mapping[str, bool] = field(default_factory=dict)
    scores: dict[str, bool] = field(default_factory=dict)
    _sums: dict[str, FidelitySums] = field(default_factory=dict)
    _skipped: dict[str, str] = field(default_factory=dict)
    _samples: int = 0
    _other: dict[str, tuple[int, int]] = field(default_factory=dict)
    _alike: bool = True

    def add(self, reference: Mapping[str, Any], other: Mapping[str, Any], count: int) -> None:
        """One batch of `count` samples.

        Raises:
            PruneError: an output has different shapes in the two models.
        """
        self._samples += count
        pairs = [pair for name, value in reference.items() for pair in _tensors(name, value, other.get(name))]
        for name, a, b in pairs:
            if not (_numeric(a) and _numeric(b)):
                self._compare_other(name, a, b)
                continue
            if a.shape != b.shape:
                raise PruneError(
                    f"the output {name} is {a.shape} in one model and {b.shape} in the other",
                    "only models whose outputs have the same shapes can be compared",
                )
            with np.errstate(all="ignore"):
                if name not in self._sums:
                    self._sums[name] = FidelitySums(name, self.heads.get(name), self.scores.get(name))
                self._sums[name].add(a.astype(np.float64), b.astype(np.float64))

    def _compare_other(self, name: str, a: Any, b: Any) -> None:
        """Count the texts that differ. Missing values and values of another kind are not compared."""
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape):
            self._skipped[name], self._alike = f"not compared: {name} is not a tensor in both models", False
            return
        count, size = self._other.get(name, (0, 0))
        self._other[name] = count, size = count + int((a.astype(np.str_) != b.astype(np.str_)).sum()), size + a.size
        self._alike &= not count
        self._skipped[name] = f"{name} is text, of which {count} of {size} values differ"

    def result(self, reference: str, inputs: str = "") -> Fidelity | None:
        """None if no output could be compared."""
        if not self._sums:
            return None
        outputs = {name: sums.values() for name, sums in self._sums.items()}
        main = self.main if self.main in outputs else None
        notes = [*self._skipped.values(), *filter(None, (sums.note() for sums in self._sums.values()))]
        return Fidelity(
            outputs, main, self._samples, reference=reference, inputs=inputs, skipped=notes, alike=self._alike
        )


def _tensors(name: str, reference: Any, other: Any) -> list[tuple[str, Any, Any]]:
    """Return (name, tensor, tensor) of an output; of two sequences of one length, one for each element."""
    if isinstance(reference, list) and isinstance(other, list) and len(reference) == len(other):
        places = enumerate(zip(reference, other, strict=True))
        return [pair for place, (a, b) in places for pair in _tensors(f"{name}[{place}]", a, b)]
    return [(name, reference, other)]


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind in "biuf" or is_float(value.dtype))
