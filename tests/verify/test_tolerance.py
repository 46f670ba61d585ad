"""What counts as agreement: rounding, measured, and nothing beyond."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from prunecli.verify.tolerance import differences, distance

X = np.array([1.0, -2.0, 3.0], np.float32)
NAN, INF = np.nan, np.inf

CASES = [
    # got, wanted, another run of the reference, agrees
    (X, X, X, True),
    (X * np.float32(1 + 5e-6), X, X, True),
    (X * np.float32(1 + 2e-5), X, X, False),
    (X * np.float32(1 + 2e-5), X, X * np.float32(1 + 5e-6), True),  # within eight times the noise
    (X * np.float32(1 + 1e-3), X, X * np.float32(1 + 5e-6), False),
    (X * np.float32(1e-12), X * np.float32(1e-12), X * np.float32(1e-12), True),
    (X * np.float32(1.1e-12), X * np.float32(1e-12), X * np.float32(1e-12), False),  # small is not the same as equal
    (X[:2], X, X, False),
    (
        X * np.float32(1 + 1e-3),
        X,
        np.array([NAN, -2, 3], np.float32),
        False,
    ),  # a failed run of the reference excuses nothing
    (X.astype(np.float64), X, X, False),
    (np.array([NAN, 1], np.float32), np.array([NAN, 1], np.float32), np.array([NAN, 1], np.float32), True),
    (np.array([NAN, 1], np.float32), np.array([2, 1], np.float32), np.array([2, 1], np.float32), False),
    (np.array([INF, 1], np.float32), np.array([-INF, 1], np.float32), np.array([-INF, 1], np.float32), False),
    (np.array([1, 2]), np.array([1, 2]), np.array([1, 2]), True),
    (np.array([1, 2]), np.array([1, 3]), np.array([1, 3]), False),
    (np.array([1, 2]), np.array([1, 3]), np.array([1, 4]), True),  # the reference does not agree with itself
    (np.array(["a"]), np.array(["b"]), np.array(["b"]), False),
    (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), True),
    ([X, X], [X, X], [X, X], True),
    ([X], [X, X], [X, X], False),
    ([{1: X[0]}], [{1: X[1]}], [{1: X[1]}], False),
    (None, None, None, True),
    (None, X, X, False),
]


@pytest.mark.parametrize(("got", "wanted", "other", "agrees"), CASES)
def test_agreement(got: Any, wanted: Any, other: Any, agrees: bool) -> None:
    found = differences({"y": got}, {"y": wanted}, [{"y": other}])
    assert all(d.agrees for d in found) == agrees


def test_noise_as_large_as_the_result_proves_nothing() -> None:
    found = differences({"y": X}, {"y": X}, [{"y": X + np.float32(0.5)}])
    assert found[0].hopeless
    assert not differences({"y": X}, {"y": X}, [{"y": X + np.float32(1e-6)}])[0].hopeless


def test_low_precision_is_compared_as_numbers() -> None:
    x = X.astype(ml_dtypes.bfloat16)
    assert distance(x, x + x.dtype.type(1)) == 1
    assert not differences({"y": x * x.dtype.type(1.1)}, {"y": x}, [], relative=3e-2)[0].agrees
