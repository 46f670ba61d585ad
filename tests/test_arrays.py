"""The digest of arrays: equal for equal content, another for anything that differs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from prunecli.arrays import content_digest

GRID = np.arange(6, dtype=np.float32).reshape(2, 3)
OTHERS: dict[str, dict[str, Any]] = {
    "another name": {"y": GRID},
    "another type of the same bytes": {"x": GRID.view(np.int32)},
    "another shape": {"x": GRID.reshape(3, 2)},
    "another content": {"x": GRID + 1},
    "one more": {"x": GRID, "y": GRID},
    "nothing": {},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_has_another_digest(name: str) -> None:
    assert content_digest({"x": GRID}) != content_digest(OTHERS[name])


SAME: dict[str, tuple[Any, Any]] = {
    "not contiguous": (GRID, np.asfortranarray(GRID)),
    "empty": (GRID[:0], GRID[:0].copy()),
    "a number": (np.float32(1), np.array(1, np.float32)),
    "texts": (np.array(["a", "bc"]), np.array(["a", "bc"])),
    "objects": (np.array(["a", "bc"], object), np.array(["a", "".join("bc")], object)),
    "bfloat16": (GRID.astype(ml_dtypes.bfloat16), GRID.astype(ml_dtypes.bfloat16)),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_content_has_the_same_digest(name: str) -> None:
    one, other = SAME[name]
    assert content_digest({"a": GRID, "x": one}) == content_digest({"x": other, "a": GRID})


def test_the_digest_of_objects_sees_all_of_them() -> None:
    many = np.array([str(n) for n in range(5000)], object)
    changed = many.copy()
    changed[2500] = "other"
    assert content_digest({"x": many}) != content_digest({"x": changed})


def test_the_head_counts() -> None:
    assert content_digest({"x": GRID}, "a") != content_digest({"x": GRID}, "b")
