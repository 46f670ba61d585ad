"""Batches: every sample once, in order, at the size that the model accepts; views of data sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.data.columns import InputColumn
from prunecli.data.dataset import Chunk, Dataset, build
from prunecli.errors import PruneError
from tests.tiny import spec


def dataset(text: str = "x: float32 (N, 2)", count: int = 10) -> Dataset:
    """Sample k is (k, -k) with the label k."""
    x = np.stack([np.arange(count), -np.arange(count)], axis=1).astype(np.float16)
    labels = InputColumn.of("labels", np.arange(count))
    return build([spec(text)], {"x": InputColumn.of("x", x)}, labels, "data")


def seen(data: Dataset, batch_size: int) -> list[int]:
    return [int(v) for b in data.batches(batch_size) for v in b.feed["x"][: b.count, 0]]


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_batches_hold_every_sample_once_in_order(count: int, batch_size: int) -> None:
    data = dataset(count=count)
    batches = list(data.batches(batch_size))
    assert seen(data, batch_size) == list(range(count))
    assert [int(v) for b in batches for v in b.labels] == list(range(count))
    assert all(len(b.feed["x"]) == batch_size for b in batches[:-1])
    assert all(b.feed["x"].dtype == np.float32 and b.padded == 0 for b in batches)
    assert data.batch_count(batch_size) == len(batches)


@given(count=st.integers(1, 40), fixed=st.integers(1, 9), asked=st.integers(1, 50))
def test_a_fixed_batch_is_padded_and_trimmed(count: int, fixed: int, asked: int) -> None:
    data = dataset(f"x: float32 ({fixed}, 2)", count)
    batches = list(data.batches(asked))
    assert all(b.feed["x"].shape == (fixed, 2) for b in batches)
    assert data.batch_count(asked) == len(batches) == -(-count // fixed)
    outputs = np.concatenate([b.trim("y", b.feed["x"] * 2) for b in batches])
    assert outputs[:, 0].tolist() == [2 * k for k in range(count)]
    times = np.bincount(np.concatenate([b.feed["x"][:, 0] for b in batches]).astype(int), minlength=count)
    assert times.max() <= times.min() + 1  # none weighs much more than the others in what is fitted on the batches


def test_a_padded_output_without_rows_is_refused() -> None:
    last = list(dataset("x: float32 (4, 2)", 6).batches())[-1]
    with pytest.raises(PruneError, match="does not have one row per sample"):
        last.trim("y", np.zeros(3))
    with pytest.raises(PruneError, match="does not have one row per sample"):
        last.trim("y", np.float32(3).reshape(()))


@given(count=st.integers(1, 30), take=st.integers(1, 40), seed=st.integers(0, 5))
def test_views_are_permutations_and_prefixes(count: int, take: int, seed: int) -> None:
    data = dataset(count=count)
    assert seen(data.take(take), 7) == list(range(min(take, count)))
    shuffled = data.shuffled(seed)
    order = seen(shuffled, 7)
    assert sorted(order) == list(range(count))
    assert order == seen(data.shuffled(seed), 3)
    assert [int(v) for b in shuffled.batches(4) for v in b.labels] == order
    assert seen(shuffled.take(take), 7) == order[:take]


@given(count=st.integers(2, 40), fraction=st.floats(0.05, 0.95), seed=st.integers(0, 5))
def test_split_is_a_partition(count: int, fraction: float, seed: int) -> None:
    size = round(fraction * count)
    if not 0 < size < count:
        with pytest.raises(PruneError):
            dataset(count=count).split(fraction, seed)
        return
    first, second = dataset(count=count).split(fraction, seed)
    assert len(first) == size
    assert sorted(seen(first, 8) + seen(second, 8)) == list(range(count))


def test_chunks_of_other_shapes_stay_apart() -> None:
    chunks = [
        Chunk({"x": InputColumn.of("x", np.full((n, w), n, np.float32))}, np.arange(n)) for n, w in ((3, 2), (4, 5))
    ]
    data = Dataset([spec("x: float32 (N, W)")], chunks)
    assert [b.feed["x"].shape for b in data.batches(2)] == [(2, 2), (1, 2), (2, 5), (2, 5)]
    assert [b.feed["x"].shape for b in data.take(5).batches(9)] == [(3, 2), (2, 5)]


def test_whole_chunks_run_as_they_are() -> None:
    chunk = Chunk({"x": InputColumn.of("x", np.zeros((5, 2), np.float32))}, np.arange(5), whole=True)
    data = Dataset([spec("x: float32 (N, 2)")], [chunk, chunk])
    assert [b.feed["x"].shape for b in data.batches(2)] == [(5, 2), (5, 2)]
    assert [b.feed["x"].shape for b in data.take(2).batches(2)] == [(5, 2)]


def test_inputs_without_a_batch_axis_run_one_by_one() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    data = build([spec("x: float32 (2, 2)")], {"x": InputColumn.of("x", x)}, None, "data")
    batches = list(data.batches(8))
    assert [b.feed["x"].shape for b in batches] == [(2, 2)] * 3
    assert np.array_equal(np.concatenate([b.trim("y", b.feed["x"]) for b in batches]), x)


def test_scalars_go_with_every_batch() -> None:
    columns = {
        "x": InputColumn.of("x", np.zeros((5, 2), np.float32)),
        "s": InputColumn.of("s", np.array(0.5)),
    }
    data = build([spec("x: float32 (N, 2)"), spec("s: float32 ()")], columns, None, "data")
    assert [(b.feed["x"].shape, float(b.feed["s"])) for b in data.batches(3)] == [
        ((3, 2), 0.5),
        ((2, 2), 0.5),
    ]


# inputs, array shapes, label shape -> message
REFUSED = {
    "different counts": (["a: float32 (N, 2)", "b: float32 (N, 2)"], [(3, 2), (4, 2)], None, "a 3, b 4"),
    "no samples": (["a: float32 (N, 2)"], [(0, 2)], None, "a holds no samples"),
    "wrong size": (["a: float32 (N, 2)"], [(3, 5)], None, "samples of shape"),
    "wrong rank": (["a: float32 (N, 2)"], [(3, 2, 2, 2)], None, "samples of shape"),
    "label count": (["a: float32 (N, 2)"], [(3, 2)], (4,), "labels has 4 labels for 3 samples"),
    "one label": (["a: float32 (N, 2)"], [(3, 2)], (), "labels has a single labels"),
    "one name, two sizes": (
        ["a: float32 (N, T)", "b: float32 (N, T)"],
        [(3, 2), (3, 5)],
        None,
        "dimension T is 2 in a but 5 in b",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    texts, shapes, label_shape, message = REFUSED[case]
    specs = [spec(t) for t in texts]
    columns = {s.name: InputColumn.of(s.name, np.zeros(shape)) for s, shape in zip(specs, shapes, strict=True)}
    labels = None if label_shape is None else InputColumn.of("labels", np.zeros(label_shape))
    with pytest.raises(PruneError, match=message):
        build(specs, columns, labels, "data")


@pytest.mark.parametrize(
    ("values", "message"),
    [([0.0, np.nan], "NaN"), ([1j, 0], "complex128"), (np.array([None, 1], object), "object")],
)
def test_labels_must_be_finite_numbers_or_text(values: object, message: str) -> None:
    columns = {"x": InputColumn.of("x", np.zeros((2, 2)))}
    with pytest.raises(PruneError, match=message):
        build([spec("x: float32 (N, 2)")], columns, InputColumn.of("labels", np.array(values)), "data")


def test_bad_values_are_found_in_their_batch() -> None:
    x = np.zeros((6, 2))
    x[4, 1] = np.nan
    data = build([spec("x: float32 (N, 2)")], {"x": InputColumn.of("d.npz:x", x)}, None, "data")
    batches = data.batches(2)
    next(batches), next(batches)
    with pytest.raises(PruneError, match=r"d.npz:x has NaN"):
        next(batches)


def test_inputs_fixed_at_different_sizes() -> None:
    columns = {n: InputColumn.of(n, np.zeros((6, 2))) for n in "ab"}
    data = build([spec("a: float32 (2, 2)"), spec("b: float32 (3, 2)")], columns, None, "data")
    with pytest.raises(PruneError, match="different batches: a: "):
        next(data.batches())


def test_groups_stay_together() -> None:
    numbers = np.repeat([7, 3, 9, 1, 4], [2, 2, 1, 3, 2])[np.random.default_rng(0).permutation(10)]
    parts = [seen(part, 8) for part in dataset(count=10).split(0.4, 1, numbers)]
    first, second = ({int(numbers[sample]) for sample in part} for part in parts)
    assert sorted(parts[0] + parts[1]) == list(range(10)) and len(first) == 2 and not first & second
