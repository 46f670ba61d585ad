import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.masks import patterns as tiles
from prunecli.masks.patterns import Tiling, gather, storage_axes, window_drop
from tests.masks import naive

FOUR = st.tuples(*[st.integers(1, 5)] * 4)


@given(FOUR, FOUR, st.permutations(range(4)), st.integers(1, 60))
def test_tiles_cover_everything_once_and_are_numbered_by_storage(
    shape: tuple, tile: tuple, order: list, slab: int
) -> None:
    stored = np.arange(np.prod(shape)).reshape([shape[axis] for axis in order])
    view = stored.transpose(np.argsort(order))
    tiling = Tiling(shape, tuple(map(min, tile, shape)), storage_axes(view))
    target = naive.Target("w", stored.shape, stored.dtype, lambda: stored, lambda a: view, lambda a: a)
    units = naive.tiles_of(target, tiling.tile)
    assert tiling.units == len(units)
    assert [len(unit) for unit in units] == tiling.flat(tiling.sizes()).tolist()
    grid = np.empty(tiling.grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_SLAB", slab)
        for piece in tiling.pieces():
            grid[piece.where] = gather(view, piece).sum(axis=1).reshape(grid[piece.where].shape)
    assert [unit.sum() for unit in units] == tiling.flat(grid).tolist()
    for chosen in range(len(units)):
        flags = np.arange(len(units)) == chosen
        assert set(view[tiling.expand(flags)]) == set(units[chosen])


@pytest.mark.parametrize(("window", "keep"), [(4, 2), (20, 7)])
@pytest.mark.parametrize("shape", [(3, 5, 2, 41), (2, 1, 7, 8), (1, 600, 1, 900)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_windows_in_any_memory_order(window: int, keep: int, shape: tuple, order: tuple) -> None:
    """The mask depends on the values alone, however the view is laid out and cut into pieces."""
    values = np.round(np.random.default_rng(0).standard_normal(shape) * 2).astype(np.float32)
    view = np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    kept = ~window_drop(view, keep, window)
    padded = np.full((*shape[:3], -(-shape[3] // window) * window), -1.0)
    padded[..., : shape[3]] = np.abs(values)
    windows = padded.reshape(*shape[:3], -1, window)
    best = np.argsort(-windows, axis=-1, kind="stable")[..., :keep]
    want = np.zeros(windows.shape, bool)
    np.put_along_axis(want, best, True, axis=-1)
    assert np.array_equal(kept, want.reshape(padded.shape)[..., : shape[3]])
