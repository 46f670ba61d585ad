"""Casts to the type of the input, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from prunecli.data.columns import cast, check_dtype, check_sample_shape
from prunecli.errors import PruneError
from tests.tiny import spec

# values, their dtype, the input's dtype -> expected values, or the reason for refusal
CASTS: list[tuple[list[Any], Any, str, Any]] = [
    ([1.5, -2], "float32", "float32", [1.5, -2]),
    ([1.5, -2], "float16", "float32", [1.5, -2]),
    ([1.1, -2], "float64", "float32", [np.float32(1.1), -2]),
    ([1.5, -2], "float64", "bfloat16", [1.5, -2]),
    ([1.5, -2], ml_dtypes.bfloat16, "float32", [1.5, -2]),
    ([0, 255], "uint8", "float32", [0, 255]),
    ([1.0, 2.0], "float32", "int64", [1, 2]),
    ([3, 4], "int32", "int64", [3, 4]),
    ([3, 4], ">i8", "int64", [3, 4]),
    ([2**40], "int64", "int32", "values from 1099511627776 to 1099511627776"),
    ([2**63], "uint64", "int64", "values from"),
    ([-1], "int64", "uint8", "values from -1 to -1"),
    ([300.0], "float32", "uint8", "values from 300 to 300"),
    ([1.5], "float32", "int64", "fractions"),
    ([1e30], "float32", "int64", "values from"),
    ([1e30], "float32", "float16", "too large"),
    ([70000], "int64", "float16", "too large"),
    ([0, 1], "int64", "bool", [False, True]),
    ([0.0, 1.0], "float32", "bool", [False, True]),
    ([2], "int64", "bool", "other than 0 and 1"),
    ([True, False], "bool", "float32", [1, 0]),
    ([np.nan], "float32", "float32", "NaN values"),
    ([np.inf], "float64", "float32", "infinite values"),
    ([np.nan], "float32", "int64", "NaN values"),
    ([], "float32", "int64", []),
    (["a", "bc"], "U", "str", ["a", "bc"]),
    (["a", "bc"], np.dtypes.StringDType(), "str", ["a", "bc"]),
]


@pytest.mark.parametrize(("values", "dtype", "wanted", "expected"), CASTS, ids=str)
def test_casts(values: list[Any], dtype: Any, wanted: str, expected: Any) -> None:
    array, target = np.array(values, dtype), spec(f"x: {wanted} (N)")
    if isinstance(expected, str):
        with pytest.raises(PruneError, match=f"^x .*{expected}"):
            cast("x", array, target)
        return
    result = cast("x", array, target)
    assert result.dtype.name == ("object" if wanted == "str" else wanted)
    assert result.tolist() == [pytest.approx(e, abs=0) if isinstance(e, float) else e for e in expected]


@pytest.mark.parametrize(
    ("dtype", "wanted", "message"),
    [
        ("O", "float32", "Python objects"),
        ("complex64", "float32", "complex64"),
        ("M8[s]", "int64", "datetime64"),
        ("S4", "str", "S4"),
        ("U4", "float32", "is text, the model's input x wants float32"),
        ("int64", "str", "wants text"),
        ("float32", "seq(tensor(float))", "not a tensor"),
    ],
)
def test_types_that_cannot_feed(dtype: str, wanted: str, message: str) -> None:
    with pytest.raises(PruneError, match=message.replace("(", "\\(")):
        check_dtype("x", np.dtype(dtype), spec(f"x: {wanted} (N)"))


@pytest.mark.parametrize(
    ("shape", "wanted", "hint"),
    [
        ((32, 32, 3), "(N, 3, 32, 32)", r"transpose\(0, 3, 1, 2\)"),
        ((3, 32, 32), "(N, 32, 32, 3)", r"transpose\(0, 2, 3, 1\)"),
        ((8, 8), "(N, 64)", r"reshape\(-1, 64\)"),
        ((7,), "(N, 64)", "first axis"),
        ((64,), "(N, 1, 8, 8)", r"reshape\(-1, 1, 8, 8\)"),
    ],
)
def test_wrong_sample_shapes_name_both_and_help(shape: tuple[int, ...], wanted: str, hint: str) -> None:
    with pytest.raises(PruneError, match="model's input is x: float32") as caught:
        check_sample_shape("x", shape, spec(f"x: float32 {wanted}"))
    import re

    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize(
    ("shape", "wanted"), [((3, 5, 7), "(N, 3, ?, W)"), ((4,), "(1, 4)"), ((9, 9), "()"), ((), "(N)")]
)
def test_fitting_sample_shapes(shape: tuple[int, ...], wanted: str) -> None:
    assert fits(shape, wanted)


def fits(shape: tuple[int, ...], wanted: str) -> bool:
    try:
        check_sample_shape("x", shape, spec(f"x: float32 {wanted}"))
    except PruneError:
        return False
    return True
