import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prunecli.masks.patterns import drop_within, keep_slots, keep_top
from tests.masks.naive import drop_lowest

FEW = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1.0, 2.0])  # so that ties are common
POOLS = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=2, max_side=9), elements=FEW)


def naive_keep(pool: np.ndarray, quota: int) -> np.ndarray:
    return ~np.array(drop_lowest(list(pool), [1] * len(pool), len(pool) - quota))


@given(POOLS, st.data())
def test_keep_top_is_a_stable_sort(scores: np.ndarray, data: st.DataObject) -> None:
    quota = data.draw(st.integers(0, scores.shape[-1]))
    want = np.array([naive_keep(pool, quota) for pool in scores.reshape(-1, scores.shape[-1])])
    assert np.array_equal(keep_top(scores, quota), want.reshape(scores.shape))


@given(
    hnp.arrays(np.uint32, st.tuples(st.integers(2, 20), st.integers(1, 5)), elements=st.integers(0, 3)),
    st.data(),
)
def test_keep_slots_is_keep_top(slots: np.ndarray, data: st.DataObject) -> None:
    quota = data.draw(st.integers(0, len(slots)))
    assert np.array_equal(np.array(keep_slots(list(slots), quota)).T, keep_top(slots.T, quota))


@given(POOLS.filter(lambda a: a.ndim == 2), st.data())
def test_drop_within_stops_at_the_first_that_does_not_fit(scores: np.ndarray, data: st.DataObject) -> None:
    equal = st.integers(1, 4).map(lambda size: np.full(scores.shape, size))
    sizes = data.draw(hnp.arrays(np.int64, scores.shape, elements=st.integers(1, 4)) | equal)
    budgets = data.draw(hnp.arrays(np.int64, scores.shape[0], elements=st.integers(0, 25)))
    want = [drop_lowest(list(s), list(n), b) for s, n, b in zip(scores, sizes, budgets, strict=True)]
    assert np.array_equal(drop_within(scores, sizes, budgets), np.array(want))


@pytest.mark.parametrize("quota", [-1, 4])
def test_an_impossible_quota_is_refused(quota: int) -> None:
    with pytest.raises(ValueError, match="cannot keep"):
        keep_top(np.zeros(3), quota)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        keep_top(np.array([1.0, np.nan]), 1)


def test_more_slots_than_a_byte_counts() -> None:
    slots = np.zeros((300, 1), np.uint8)
    kept = np.array(keep_slots(list(slots), 299)).ravel()
    assert kept[:299].all() and not kept[299]
