import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli import float_keys as keys
from prunecli.errors import PruneError
from prunecli.masks import stream
from prunecli.masks.lamp import lowest_lamp
from prunecli.masks.stream import CutPoint, ScoreSource, count_below, lowest
from tests.masks.naive import drop_lowest

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def source(array: np.ndarray, sizes: np.ndarray | int = 1, name: str = "w") -> ScoreSource:
    width = sizes if isinstance(sizes, int) else 1
    many = None if isinstance(sizes, int) else sizes
    return ScoreSource(name, array.size, array.dtype, lambda: array, width=width, sizes=many, shape=array.shape)


def replay(cut: CutPoint, array: np.ndarray) -> np.ndarray:
    return np.concatenate([np.empty(0, bool), *(mask.copy() for mask in cut.masks(array))])


def values(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    array = rng.standard_normal(size)
    if kind == "rounded":
        return np.round(array)
    if kind == "sparse":
        return array * (rng.random(size) < 0.3)
    return np.sort(array) if kind == "sorted" else array


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray | int]]:
    """Arrays of mixed types and distributions, with units of one weight, equal width, or mixed sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mode = draw(st.sampled_from(["single", "wide", "mixed"]))
    arrays, sizes = [], []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["normal", "rounded", "sparse", "sorted"]))
        array = values(rng, draw(st.integers(0, 700)), kind).astype(draw(st.sampled_from(DTYPES)))
        arrays.append(array)
        width = draw(st.integers(1, 4))
        sizes.append({"single": 1, "wide": width, "mixed": rng.integers(1, 4, array.size)}[mode])
    return arrays, sizes


@settings(max_examples=150)
@given(problems(), st.floats(0, 1), st.integers(2, 40))
def test_lowest_is_a_stable_sort(problem: tuple[list, list], share: float, sample: int) -> None:
    arrays, sizes = problem
    sources = [source(array, size) for array, size in zip(arrays, sizes, strict=True)]
    spread = [np.broadcast_to(size, array.size) for array, size in zip(arrays, sizes, strict=True)]
    total = sum(int(size.sum()) for size in spread)
    budget = round(share * total)
    with pytest.MonkeyPatch.context() as patch:  # small samples and pieces: every path is taken
        patch.setattr(stream, "SAMPLE", sample)
        patch.setattr(stream, "LEAST", sample)
        patch.setattr(stream, "HEAVY", sample // 3)
        patch.setattr(keys, "CHUNK_BYTES", 512)
        cuts = lowest(sources, budget)
        found = [replay(cut, array) for cut, array in zip(cuts, arrays, strict=True)]
    flat = np.concatenate([np.abs(array.astype(np.float64)) for array in arrays])
    want = drop_lowest(list(flat), list(np.concatenate(spread)), budget)
    assert np.array_equal(np.concatenate(found), np.array(want, bool))
    for cut, drop, size, array in zip(cuts, found, spread, arrays, strict=True):
        assert cut.dropped == size[drop].sum()
        assert cut.nonzero == np.count_nonzero(array)


def naive_lamp(arrays: list[np.ndarray], budget: int) -> np.ndarray:
    """Sort each tensor (of equals the later is lower), divide by the sum of the rest, sort everything."""
    scores = []
    for array in arrays:
        flat = array.astype(np.float64).ravel()
        order = sorted(range(flat.size), key=lambda i: (abs(flat[i]), -i))
        squares = np.square(flat[order])
        sums = np.cumsum(squares[::-1])[::-1]
        score = np.zeros(flat.size)
        score[order] = np.divide(squares, sums, out=np.zeros(flat.size), where=squares > 0)
        scores.append(score)
    ranked = np.concatenate(scores)
    # the order of equals inside a tensor is that of the tie rule already, zeros apart
    return np.array(drop_lowest(list(ranked), [1] * ranked.size, budget))


@settings(max_examples=60)
@given(problems(), st.floats(0, 1), st.booleans())
def test_lamp_is_the_papers_sort(problem: tuple[list, list], share: float, small: bool) -> None:
    arrays = problem[0]
    budget = round(share * sum(array.size for array in arrays))
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(stream, "SAMPLE", 60)
            patch.setattr(stream, "LEAST", 60)
        cuts = lowest_lamp([source(array) for array in arrays], budget)
    found = np.concatenate([replay(cut, array) for cut, array in zip(cuts, arrays, strict=True)])
    assert np.array_equal(found, naive_lamp(arrays, budget))
    assert sum(cut.dropped for cut in cuts) == budget


def test_an_unlucky_sample_is_noticed_and_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    passes = []
    real = stream.survey
    monkeypatch.setattr(stream, "survey", lambda *a, **k: passes.append(1) or real(*a, **k))
    monkeypatch.setattr(stream, "sampled", lambda sources, progress: [np.arange(5000, dtype=np.uint32)])
    [cut] = lowest([source(array)], 50_000)
    assert len(passes) > 1
    assert np.array_equal(replay(cut, array), np.abs(array) < np.sort(np.abs(array))[50_000])


def test_many_equal_values_are_counted_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    array = (rng.standard_normal(1_000_000) * (rng.random(1_000_000) < 0.3)).astype(np.float32)
    collected = []
    real = stream.survey

    def spy(*args: object, **kwargs: object) -> stream.Census:
        census = real(*args, **kwargs)
        collected.append(census.inside.size)
        return census

    monkeypatch.setattr(stream, "survey", spy)
    for share in (0.5, 0.7, 0.72):
        [cut] = lowest([source(array)], int(share * array.size))
        assert replay(cut, array).sum() == int(share * array.size)
    assert max(collected) < 50_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("find", [lambda s: lowest([s], 10), lambda s: lowest([s], 0), lambda s: count_below(s, 9)])
def test_what_is_not_finite_is_refused_by_name(bad: float, dtype: type, find: object) -> None:
    array = np.ones(50_000, dtype)
    array[777] = bad
    with pytest.raises(PruneError, match=r"weight fc\.weight holds 1 NaN or infinite .* 777"):
        find(source(array, name="fc.weight"))
