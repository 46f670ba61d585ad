"""Quality against labels, and tests of significance for a difference in it.

`@metric` registers a metric. scikit-learn computes those that it has.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prunecli.arrays import Array
from prunecli.evaluation.reading import Predictions, Reading
from prunecli.types import Json

Average = Literal["weighted", "macro", "micro"]
Compute = Callable[[Predictions, Average], float | None]

MAX_CONFUSION = 200


@dataclass(frozen=True)
class Merit:
    """`higher`: more is better. `fraction`: in [0, 1], shown in percent. `span`: least and largest possible value."""

    higher: bool
    fraction: bool
    span: tuple[float, float]

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.higher else -1

    @property
    def change(self) -> str:
        """The contract's word for a loss: drop where more is better, else rise."""
        return "drop" if self.higher else "rise"


@dataclass(frozen=True)
class Metric(Merit):
    """A figure of predictions of classes, or of numbers (`regression`)."""

    compute: Compute
    regression: bool


METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    regression: bool = False,
    higher: bool = True,
    fraction: bool = True,
    span: tuple[float, float] = (0, 1),
) -> Callable[[Compute], Compute]:
    """Register a metric; the function may return None where it has no meaning."""

    def add(compute: Compute) -> Compute:
        METRICS[name] = Metric(higher, fraction, span, compute=compute, regression=regression)
        return compute

    return add


def compute_metrics(predictions: Predictions, average: Average = "weighted") -> dict[str, float]:
    """Return every registered metric that has a meaning for these predictions, by name. `average`: how precision,
    recall and F1 of the classes are averaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without predictions: their terms are 0, as documented
        values = {
            name: m.compute(predictions, average)
            for name, m in METRICS.items()
            if m.regression == predictions.reading.regression
        }
    return {name: float(value) for name, value in values.items() if value is not None}


def primary(reading: Reading) -> str:
    """Return the metric that robustness is measured by."""
    return "rmse" if reading.regression else "accuracy"


@metric("accuracy")
def accuracy(p: Predictions, average: Average) -> float | None:
    """Fraction of correct predictions; with several labels per sample, of all labels."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(p.truth, p.predicted))


@metric("balanced_accuracy")
def balanced_accuracy(p: Predictions, average: Average) -> float | None:
    """Mean recall over the classes that occur."""
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(p.truth, p.predicted))


@metric("precision")
def precision(p: Predictions, average: Average) -> float | None:
    """Per class, the right fraction of its predictions; averaged. 0 for classes never predicted. Here and below, of
    several labels per sample these are the classes, and what is absent is none."""
    from sklearn.metrics import precision_score

    return float(precision_score(*p.for_sklearn, average=average, zero_division=0))


@metric("recall")
def recall(p: Predictions, average: Average) -> float | None:
    """Per class, the fraction of its samples found; averaged."""
    from sklearn.metrics import recall_score

    return float(recall_score(*p.for_sklearn, average=average, zero_division=0))


@metric("f1")
def f1(p: Predictions, average: Average) -> float | None:
    """Per class, the harmonic mean of precision and recall; averaged."""
    from sklearn.metrics import f1_score

    return float(f1_score(*p.for_sklearn, average=average, zero_division=0))


@metric("top5")
def top5(p: Predictions, average: Average) -> float | None:
    """Fraction of samples whose class is among the five best scores; only with more than five classes."""
    return None if p.in_top is None else float(np.average(p.in_top))


@metric("log_loss", higher=False, fraction=False, span=(0, math.inf))
def log_loss(p: Predictions, average: Average) -> float | None:
    """Mean of -ln(probability of the true class), in nats; logits go through softmax or sigmoid first."""
    return None if p.log_prob is None else float(np.average(-p.log_prob))


@metric("mae", regression=True, higher=False, fraction=False, span=(0, math.inf))
def mae(p: Predictions, average: Average) -> float | None:
    """Mean absolute error, in the labels' unit."""
    from sklearn.metrics import mean_absolute_error

    return _finite(p, lambda: mean_absolute_error(p.truth, p.predicted))


@metric("rmse", regression=True, higher=False, fraction=False, span=(0, math.inf))
def rmse(p: Predictions, average: Average) -> float | None:
    """Root of the mean squared error, in the labels' unit; the mean of that over several targets."""
    from sklearn.metrics import root_mean_squared_error

    return _finite(p, lambda: root_mean_squared_error(p.truth, p.predicted))


@metric("r2", regression=True, fraction=False, span=(-math.inf, 1))
def r2(p: Predictions, average: Average) -> float | None:
    """1 - (squared error) / (squared deviation from the mean); 1 is perfect, 0 no better than the mean."""
    from sklearn.metrics import r2_score

    return _finite(p, lambda: r2_score(p.truth, p.predicted)) if len(p.truth) > 1 else None


def _finite(p: Predictions, compute: Callable[[], Any]) -> float:
    return float(compute()) if p.invalid == 0 else float("nan")


def per_class(p: Predictions) -> list[Json]:
    """Precision, recall, F1 and support of every class that occurs, in order, or of each of several labels."""
    from sklearn.metrics import precision_recall_fscore_support

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = list(range(p.reading.several)) or _classes(p)
        columns = precision_recall_fscore_support(*p.for_sklearn, labels=classes, zero_division=0)
    rows = zip(classes, *columns, strict=True)
    return [
        {"class": _name(p, c), "precision": float(a), "recall": float(b), "f1": float(f), "support": int(n)}
        for c, a, b, f, n in rows
    ]


def confusion(p: Predictions) -> Json | None:
    """Rows are the truth, columns the prediction, over the classes that occur; None above 200 of them."""
    from sklearn.metrics import confusion_matrix

    classes = _classes(p)
    if len(classes) > MAX_CONFUSION:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn asks to name the labels of a single class, which is done
        counts = confusion_matrix(p.truth, p.predicted, labels=classes)
    return {"classes": [_name(p, c) for c in classes], "counts": counts.tolist()}


def _classes(p: Predictions) -> list[Any]:
    return list(np.unique(np.concatenate([p.truth, p.predicted])).tolist())


def _name(p: Predictions, number: Any) -> str | int:
    names, title = p.reading.names, p.reading.titles.get(number)
    if names is not None and isinstance(number, int) and 0 <= number < len(names):
        return names[number]
    return number if title is None else title


LEVEL = 0.05


@dataclass(frozen=True)
class Significance:
    """`p`: probability of a difference at least this large between equally good models. `difference`: model minus
    baseline in goodness per sample (accuracy, or minus the absolute error, or plus or minus `metric`). `interval`: 95 %
    confidence interval of the true difference, None where the test has none. `detail`: the counts."""

    test: str
    p: float
    difference: float
    detail: str
    metric: str = ""
    interval: tuple[float, float] | None = None

    @property
    def beyond_chance(self) -> bool:
        return self.p < LEVEL

    def words(self) -> str:
        """One sentence."""
        if self.difference == 0 and self.p == 1:
            return f"no difference in {self.metric or 'quality'} ({self.detail})"
        verdict = "beyond chance" if self.beyond_chance else "within chance"
        kind = "worse" if self.difference < 0 else "better"
        what = f" in {self.metric}" if self.metric else ""
        size = f"the model is {kind} than the baseline{what}" if self.beyond_chance else f"the difference{what} is"
        return f"{size} {verdict} ({self.test}, p {format_p(self.p)}{self._range}; {self.detail})"

    @property
    def _range(self) -> str:
        """How much better or worse the model is, as `words` say it."""
        if not self.metric or self.interval is None:
            return ""
        low, high = self.interval
        if high < 0:
            return f"; worse by {-high:.2g} to {-low:.2g}, 95 % interval"
        if low > 0:
            return f"; better by {low:.2g} to {high:.2g}, 95 % interval"
        return f"; from {-low:.2g} worse to {high:.2g} better, 95 % interval"

    def to_json(self) -> Json:
        return {
            "test": self.test,
            "p": self.p,
            "difference": self.difference,
            "beyond_chance": self.beyond_chance,
            "detail": self.detail,
            "interval": None if self.interval is None else list(self.interval),
        }


def format_p(p: float) -> str:
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def compare_predictions(model: Predictions, baseline: Predictions) -> Significance:
    """McNemar's test where every sample has one class, the paired t test otherwise."""
    single = len(model.sample) == model.samples and not model.reading.regression
    if single:
        return mcnemar(model.predicted == model.truth, baseline.predicted == baseline.truth)
    return paired_t(model.goodness(), baseline.goodness())


def mcnemar(model: Array, baseline: Array) -> Significance:
    """The exact McNemar test on whether each sample was right (booleans of equal length).

    Under equal quality, of the n samples that exactly one model gets right, the count that favours the
    baseline is binomial(n, 1/2): p = min(1, 2 P(X <= min(b, c))). McNemar, Psychometrika 12 (1947).
    """
    from scipy.special import bdtr

    lost = int((baseline & ~model).sum())
    won = int((model & ~baseline).sum())
    total = lost + won
    p = min(1.0, 2 * float(bdtr(min(lost, won), total, 0.5))) if total else 1.0
    detail = f"{lost} sample{'s' * (lost != 1)} lost, {won} won of {len(model):,}"
    return Significance("McNemar's exact test", p, (won - lost) / max(len(model), 1), detail=detail)


def paired_t(model: Array, baseline: Array) -> Significance:
    """The paired t test on goodness per sample: t = mean(d) / (std(d) / sqrt(n)), two-sided, df = n - 1; the interval
    is mean(d) +- t(0.975) std(d) / sqrt(n)."""
    from scipy.special import stdtr, stdtrit

    difference = model - baseline
    count, mean = len(difference), float(difference.mean())
    spread = float(difference.std(ddof=1)) if count > 1 else 0.0
    if not math.isfinite(mean):
        p = math.nan
    elif spread == 0:
        p = 1.0 if mean == 0 or count < 2 else 0.0
    else:
        p = 2 * float(stdtr(count - 1, -abs(mean) / (spread / math.sqrt(count))))
    known = math.isfinite(mean) and count > 1
    wide = float(stdtrit(count - 1, 1 - LEVEL / 2)) * spread / math.sqrt(count) if known else math.nan
    return Significance(
        "paired t test", p, mean, detail=f"{count:,} samples", interval=(mean - wide, mean + wide) if known else None
    )
