"""Shapes and random values for inputs."""

from __future__ import annotations

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.inputs import TEXTS, index_limits, random_inputs, resolve_shapes
from tests.tiny import model, spec

# specs, dims, shapes, batch -> expected shapes
RESOLVED = {
    "batch is one": (["x: float32 (N, 10)"], {}, {}, 1, {"x": (1, 10)}),
    "batch as asked": (["x: float32 (N, 10)"], {}, {}, 4, {"x": (4, 10)}),
    "unknown image sizes": (["x: float32 (?, 3, ?, ?)"], {}, {}, 1, {"x": (1, 3, 64, 64)}),
    "unknown length": (["x: int64 (N, T)"], {}, {}, 1, {"x": (1, 16)}),
    "stated dimension": (["x: int64 (N, T)"], {"T": 7}, {}, 1, {"x": (1, 7)}),
    "stated shape": (["x: float32 (N, 3, ?, ?)"], {}, {"x": (2, 3, 5, 6)}, 1, {"x": (2, 3, 5, 6)}),
    "a stated shape names its dimensions": (
        ["x: int64 (N, T)", "m: int64 (N, T)"],
        {},
        {"x": (3, 9)},
        1,
        {"x": (3, 9), "m": (3, 9)},
    ),
    "one name, one size": (
        ["x: float32 (N, T, 4)", "l: int64 (T)"],
        {},
        {},
        1,
        {"x": (1, 16, 4), "l": (16,)},
    ),
    "sum of names": (
        ["a: int64 (N, S)", "p: float32 (N, 2, P, 8)", "m: int64 (N, P+S)"],
        {"P": 3},
        {},
        1,
        {"a": (1, 16), "p": (1, 2, 3, 8), "m": (1, 19)},
    ),
    "not an expression": (["x: float32 (N, import os)"], {}, {}, 1, {"x": (1, 16)}),
    "scalar": (["x: float32 ()"], {}, {}, 1, {"x": ()}),
}


@pytest.mark.parametrize("case", RESOLVED)
def test_shapes_are_resolved(case: str) -> None:
    texts, dims, shapes, batch, expected = RESOLVED[case]
    assert resolve_shapes([spec(t) for t in texts], dims, shapes, batch) == expected


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1, 3)}, "no input named y"),
        ({"x": (1, 3, 3)}, "has 3 dimensions"),
        ({"x": (1, 4)}, "does not fit x: float32 \\(N, 3\\)"),
    ],
)
def test_wrong_shapes_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        resolve_shapes([spec("x: float32 (N, 3)")], {}, shapes)


# spec, limit -> (lowest, highest) value that may occur; None: any float
RANGES = {
    "x: float32 (100,)": (None, None),
    "x: float16 (100,)": (None, None),
    "x: bfloat16 (100,)": (None, None),
    "x: float64 (100,)": (None, None),
    "x: int64 (100,)": (None, (0, 1)),
    "ids: int64 (1000,)": (50, (0, 49)),
    "ids: int32 (1000,)": (50, (0, 49)),
    "x: uint8 (5000,)": (None, (0, 255)),
    "x: int8 (5000,)": (None, (-128, 127)),
    "attention_mask: int64 (100,)": (None, (1, 1)),
    "x: bool (100,)": (None, (0, 1)),
}


@pytest.mark.parametrize("text", RANGES)
def test_random_values_are_plausible(text: str) -> None:
    limit, bounds = RANGES[text]
    one = spec(text)
    value = random_inputs([one], limits={} if limit is None else {one.name: limit})[one.name]
    assert value.dtype.name == one.dtype
    if bounds is None:
        assert 0.7 < value.astype(np.float64).std() < 1.3
    else:
        assert (value.min(), value.max()) == bounds  # enough draws that both ends occur


def test_texts_are_drawn() -> None:
    value = random_inputs([spec("x: str (40, 3)")])["x"]
    assert value.shape == (40, 3)
    assert set(np.unique(value)) == set(TEXTS)


def test_each_input_has_its_own_stream() -> None:
    first = random_inputs([spec("a: float32 (4,)"), spec("b: float32 (4,)")], seed=3)
    alone = random_inputs([spec("b: float32 (4,)")], seed=3)
    other = random_inputs([spec("b: float32 (4,)")], seed=4)
    assert np.array_equal(first["b"], alone["b"])
    assert not np.array_equal(first["a"], first["b"])
    assert not np.array_equal(alone["b"], other["b"])


@pytest.mark.parametrize("text", ["x: seq(tensor(float)) ()", "x: float32 (1000000, 1000000)"])
def test_impossible_inputs_are_refused(text: str) -> None:
    with pytest.raises(PruneError):
        random_inputs([spec(text)])


W = "float[7,2] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}"
V = "float[8,2] v = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}"
LIMITS = {
    "direct": f"g (int64[N] i) => (float[N,2] y) <{W}> {{ y = Gather(w, i) }}",
    "cast and reshaped": f"g (int32[N,1] i) => (float[M,2] y) <{W}, int64[1] s = {{-1}}> "
    "{ c = Cast<to: int = 7>(i)  r = Reshape(c, s)  y = Gather(w, r) }",
    "table behind Identity": f"g (int64[N] i) => (float[N,2] y) <{W}> {{ v = Identity(w)  y = Gather(v, i) }}",
    "smallest of two tables": f"g (int64[N] i) => (float[N,2] y) <{W}, {V}> "
    "{ a = Gather(w, i)  b = Gather(v, i)  y = Add(a, b) }",
}


@pytest.mark.parametrize("case", LIMITS)
def test_vocabulary_is_found(case: str) -> None:
    assert index_limits(model(LIMITS[case])) == {"i": 7}


def test_axis_of_the_table_counts() -> None:
    body = f"g (int64[N] i) => (float[7,N] y) <{W}> {{ y = Gather<axis: int = 1>(w, i) }}"
    assert index_limits(model(body)) == {"i": 2}


def test_float_inputs_have_no_vocabulary() -> None:
    assert index_limits(model("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")) == {}
