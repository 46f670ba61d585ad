"""Paired tests, against scipy.stats."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from prunecli.evaluation.quality import compare_predictions, mcnemar, paired_t
from prunecli.evaluation.reading import Predictions, Reading


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 15), (182, 146), (30, 30), (2000, 2300)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    model = np.array([True] * won + [False] * lost + [True, False] * 50)
    baseline = np.array([False] * won + [True] * lost + [True, False] * 50)
    found = mcnemar(model, baseline)
    expected = stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)  # two ways to the same sum of binomial terms
    assert found.difference == pytest.approx((won - lost) / len(model))
    assert found.detail == f"{lost} sample{'' if lost == 1 else 's'} lost, {won} won of {len(model):,}"


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("count", [2, 5, 300])
def test_paired_t(shift: float, count: int) -> None:
    rng = np.random.default_rng(count)
    a = rng.standard_normal(count)
    b = a + shift + 0.3 * rng.standard_normal(count)
    found = paired_t(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert found.difference == pytest.approx((a - b).mean())


def test_paired_t_without_spread() -> None:
    same = np.ones(5)
    assert paired_t(same, same).p == 1
    assert paired_t(same, same + 1).p == 0
    assert paired_t(np.ones(1), np.zeros(1)).p == 1
    assert np.isnan(paired_t(np.array([np.nan, 1]), np.ones(2)).p)


def predictions(truth: list[int], predicted: list[int], sample: list[int]) -> Predictions:
    return Predictions(Reading("y", "scores"), np.array(truth), np.array(predicted), np.array(sample))


def test_single_classes_go_to_mcnemar_and_positions_to_t() -> None:
    one = predictions([0, 1, 1], [0, 1, 0], [0, 1, 2])
    assert compare_predictions(one, one).test == "McNemar's exact test"
    many = predictions([0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1])
    assert compare_predictions(many, many).test == "paired t test"
    assert many.goodness().tolist() == [1, 0.5]
    numbers = Predictions(Reading("y", "numbers"), np.array([[1.0], [2]]), np.array([[1.5], [2]]), np.arange(2))
    assert compare_predictions(numbers, numbers).test == "paired t test"
    assert numbers.goodness().tolist() == [-0.5, 0]


@pytest.mark.parametrize(
    ("lost", "won", "words"),
    [
        (0, 0, "no difference in quality"),
        (12, 10, "the difference is within chance"),
        (40, 2, "the model is worse than the baseline beyond chance"),
        (2, 40, "the model is better than the baseline beyond chance"),
    ],
)
def test_the_sentence_claims_what_was_found(lost: int, won: int, words: str) -> None:
    model = np.array([True] * won + [False] * lost + [True] * 50)
    baseline = np.array([False] * won + [True] * lost + [True] * 50)
    assert mcnemar(model, baseline).words().startswith(words)
