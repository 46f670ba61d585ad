import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.float_keys import (
    census,
    common_format,
    count_nonzero,
    key_chunks,
    key_format,
    key_of,
    magnitude_keys,
    narrow,
    values_of,
    widen,
)

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
by_name = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.name)


def samples(dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Random bit patterns of every magnitude, and the special values."""
    bits = np.random.default_rng(seed).integers(0, 2 ** (8 * dtype.itemsize) - 1, 2000, np.uint64)
    numbers = bits.astype(f"uint{8 * dtype.itemsize}").view(dtype)
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 6e-8, -6e-8]).astype(dtype)
    both = np.concatenate([numbers, special])
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return both[~np.isnan(both.astype(np.float64))]


@by_name
def test_keys_sort_as_magnitudes(dtype: np.dtype) -> None:
    array = samples(dtype)
    keys, wide = magnitude_keys(array), np.abs(array.astype(np.float64))
    order = np.argsort(wide, kind="stable")
    assert np.array_equal(keys[order], np.sort(keys))
    assert np.array_equal(wide[order][1:] == wide[order][:-1], keys[order][1:] == keys[order][:-1])
    assert np.array_equal(values_of(keys, key_format(dtype)), wide)


@by_name
def test_the_limit_divides_finite_from_not(dtype: np.dtype) -> None:
    array = np.concatenate([samples(dtype), np.array([np.nan, -np.nan]).astype(dtype)])
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(array.astype(np.float64))
    assert np.array_equal(magnitude_keys(array) < key_format(dtype).limit, finite)


CENSUS = [
    ([0.0, -0.0, 1.0, 6e-8], (2, True)),
    ([0.0, np.nan], (1, False)),
    ([-np.inf, 2.0, 0.0], (2, False)),
    ([], (0, True)),
]


@pytest.mark.parametrize("dtype", [*DTYPES, np.dtype(ml_dtypes.float8_e5m2)], ids=lambda t: t.name)
@pytest.mark.parametrize(("values", "counted"), CENSUS)
def test_zeros_and_what_is_not_finite_are_counted(
    values: list[float], counted: tuple[int, bool], dtype: np.dtype
) -> None:
    """Whole arrays, and every other element of one twice as long, which does not lie in one piece."""
    array = np.array(values, np.float32).astype(dtype)
    if dtype.itemsize == 1:  # it has no number as small as that
        counted = counted[0] - values.count(6e-8), counted[1]
    assert census(array) == census(np.repeat(array, 2)[::2]) == counted
    assert count_nonzero(array) == counted[0]


@by_name
def test_chunks_are_all_keys_in_order(dtype: np.dtype) -> None:
    array = np.random.default_rng(0).standard_normal(300_001).astype(dtype).reshape(1, -1)
    joined = np.concatenate([keys.copy() for keys in key_chunks(array)])
    assert np.array_equal(joined, magnitude_keys(array).ravel())


@by_name
def test_key_of_rounds_as_numpy_does(dtype: np.dtype) -> None:
    array = samples(dtype)
    near = [0.5, 0.5 + 1e-12, 0.5 - 1e-12, 0.0, 1e-300, 1e300]
    for threshold in [*np.random.default_rng(1).lognormal(-3, 3, 200), *near]:
        with np.errstate(over="ignore", invalid="ignore"):
            below = np.abs(array) < float(threshold)
        assert np.array_equal(magnitude_keys(array) < key_of(float(threshold), dtype), below)


@by_name
@given(st.floats(0, 1e6))
def test_narrow_is_the_smallest_key_not_below(dtype: np.dtype, value: float) -> None:
    form = key_format(dtype)
    common = common_format([key_format(np.float16), key_format(np.float64)])
    wanted = int(np.float64(value).view(np.uint64))
    found = narrow(wanted, form, common)
    assert found == form.limit or widen(np.array([found], form.word), form, common)[0] >= wanted
    assert found == 0 or widen(np.array([found - 1], form.word), form, common)[0] < wanted


def test_integers_have_no_order() -> None:
    with pytest.raises(TypeError, match="int8"):
        key_format(np.int8)
