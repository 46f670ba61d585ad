"""A layout only moves elements: restore undoes canonical, exactly, and nothing is copied needlessly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.operators import layout
from prunecli.operators.layout import Layout, Transpose

sizes = st.integers(1, 4)


def check(reading: Layout, shares_memory: bool = True) -> np.ndarray:
    array = np.arange(int(np.prod(reading.shape)), dtype=np.int64).reshape(reading.shape)
    four = reading.canonical(array)
    assert four.shape == reading.canonical_shape
    assert np.array_equal(reading.restore(four), array)
    if shares_memory:
        assert np.shares_memory(four, array)
    return four


@given(sizes, sizes, sizes, st.lists(sizes, min_size=1, max_size=3))
def test_conv_puts_each_filter_in_its_group(g: int, m: int, c: int, kernel: list[int]) -> None:
    four = check(layout.kernel((g * m, c, *kernel), g))
    array = np.arange(four.size).reshape(g * m, c, *kernel)
    for group in range(g):
        for row in range(m):
            taps_by_cols = array[group * m + row].reshape(c, -1).T
            assert np.array_equal(four[group, row], taps_by_cols)


@given(sizes, sizes, sizes, st.lists(sizes, min_size=1, max_size=3))
def test_conv_transpose_reads_inputs_first(g: int, m: int, c: int, kernel: list[int]) -> None:
    four = check(layout.transposed_kernel((g * c, m, *kernel), g))
    array = np.arange(four.size).reshape(g * c, m, *kernel)
    for group in range(g):
        for col in range(c):
            rows_by_taps = array[group * c + col].reshape(m, -1)
            assert np.array_equal(four[group, :, :, col], rows_by_taps)


@given(st.lists(sizes, min_size=2, max_size=4), st.data())
def test_matrices_keep_their_stack(shape: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, len(shape) - 1))
    cols = data.draw(st.integers(0, len(shape) - 1).filter(lambda a: a != rows))
    batch_first = all(axis in (rows, cols) for axis in range(2 - len(shape), 0)) or len(shape) == 2
    four = check(layout.matrix(tuple(shape), rows, cols), shares_memory=batch_first)
    assert four.shape[1:] == (shape[rows], 1, shape[cols])


@given(st.permutations(range(4)), st.lists(sizes, min_size=4, max_size=4), st.data())
def test_any_arrangement_is_undone(order: list[int], shape: list[int], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3)))
    bounds = [0, *cuts, 4]
    parts = (order[a:b] for a, b in itertools.pairwise(bounds))
    roles = dict(zip(("batch", "rows", "taps", "cols"), parts, strict=True))
    check(layout.arrange(tuple(shape), tuple(shape), **roles), shares_memory=False)


@given(st.permutations(range(3)))
def test_steps_before_a_layout_are_undone_too(perm: list[int]) -> None:
    stored = (2, 3, 4)
    seen = tuple(stored[axis] for axis in perm)
    reading = layout.matrix(seen, -1, -2).after([Transpose(tuple(perm))], stored)
    four = check(reading, shares_memory=False)
    array = np.arange(24).reshape(stored).transpose(perm)
    assert np.array_equal(four[:, :, 0, :], array.transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("reading", "canonical"),
    [
        (layout.vector(()), (1, 1, 1, 1)),
        (layout.vector((7,)), (1, 7, 1, 1)),
        (layout.vector((1, 5, 1, 1)), (1, 5, 1, 1)),
        (layout.last_axis_cols((10, 4)), (1, 10, 1, 4)),
        (layout.last_axis_cols((2, 10, 4)), (1, 20, 1, 4)),
        (layout.last_axis_cols(()), (1, 1, 1, 1)),
        (layout.kernel((8, 1, 3, 3), 8), (8, 1, 9, 1)),
        (layout.matrix((6, 5), 0, 1), (1, 6, 1, 5)),
        (layout.matrix((2, 6, 5), 2, 1), (2, 5, 1, 6)),
    ],
)
def test_canonical_shapes(reading: Layout, canonical: tuple[int, ...]) -> None:
    assert check(reading).shape == canonical
