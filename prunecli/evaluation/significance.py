"""Is the difference between two models on the same samples more than chance?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.evaluation.reading import Predictions
from prunecli.types import Json

Array = np.ndarray[Any, Any]

LEVEL = 0.05


@dataclass(frozen=True)
class Significance:
    """`p`: probability of a difference at least this large between equally good models. `difference`: model
    minus baseline in goodness per sample (accuracy, or minus the absolute error). `detail`: the counts."""

    test: str
    p: float
    difference: float
    detail: str

    @property
    def beyond_chance(self) -> bool:
        return self.p < LEVEL

    def words(self) -> str:
        """One sentence."""
        if self.difference == 0 and self.p == 1:
            return f"no difference in quality ({self.detail})"
        verdict = "beyond chance" if self.beyond_chance else "within chance"
        kind = "worse" if self.difference < 0 else "better"
        size = f"the model is {kind} than the baseline" if self.beyond_chance else "the difference is"
        return f"{size} {verdict} ({self.test}, p {format_p(self.p)}; {self.detail})"

    def to_json(self) -> Json:
        return {
            "test": self.test,
            "p": self.p,
            "difference": self.difference,
            "beyond_chance": self.beyond_chance,
            "detail": self.detail,
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
    detail = f"{lost} samples lost, {won} won of {len(model):,}"
    return Significance("McNemar's exact test", p, (won - lost) / max(len(model), 1), detail)


def paired_t(model: Array, baseline: Array) -> Significance:
    """The paired t test on goodness per sample: t = mean(d) / (std(d) / sqrt(n)), two-sided, df = n - 1."""
    from scipy.special import stdtr

    difference = model - baseline
    count, mean = len(difference), float(difference.mean())
    spread = float(difference.std(ddof=1)) if count > 1 else 0.0
    if not math.isfinite(mean):
        p = math.nan
    elif spread == 0:
        p = 1.0 if mean == 0 or count < 2 else 0.0
    else:
        p = 2 * float(stdtr(count - 1, -abs(mean) / (spread / math.sqrt(count))))
    return Significance("paired t test", p, mean, f"{count:,} samples")
