"""Which array feeds which input."""

from __future__ import annotations

import numpy as np
import pytest

from prunecli.data.columns import InputColumn
from prunecli.data.dataset import match, split_labels
from prunecli.errors import PruneError
from tests.tiny import spec


def columns(**shapes: tuple[int, ...]) -> dict[str, InputColumn]:
    return {name: InputColumn.of(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()}


# inputs, arrays -> input: array
MATCHED = {
    "exact": (["a: float32 (N, 2)", "b: float32 (N, 2)"], {"b": (4, 2), "a": (4, 2)}, {"a": "a", "b": "b"}),
    "exact with others around": (["a: float32 (N, 2)"], {"ids": (4,), "a": (4, 2)}, {"a": "a"}),
    "spelling": (
        ["Input_Ids:0: int64 (N, 2)"],
        {"input_ids": (4, 2), "mask": (4, 2)},
        {"Input_Ids:0": "input_ids"},
    ),
    "one and one, whatever the name": (["image: float32 (N, 2)"], {"x": (4, 2)}, {"image": "x"}),
    "only one fits": (["image: float32 (N, 3, 8, 8)"], {"x": (4, 3, 8, 8), "ids": (4,)}, {"image": "x"}),
    "each fits one": (
        ["p: float32 (N, 2)", "q: float32 (N, 3)"],
        {"u": (4, 3), "v": (4, 2)},
        {"p": "v", "q": "u"},
    ),
    "what is left after exact names": (
        ["p: float32 (N, 2)", "q: float32 (N, 2)"],
        {"p": (4, 2), "z": (4, 2)},
        {"p": "p", "q": "z"},
    ),
}


@pytest.mark.parametrize("case", MATCHED)
def test_matches(case: str) -> None:
    texts, arrays, expected = MATCHED[case]
    specs = [spec(t) for t in texts]
    found = match(specs, columns(**arrays), "data")
    assert {name: column.name for name, column in found.items()} == expected


@pytest.mark.parametrize(
    ("texts", "arrays"),
    [
        (["p: float32 (N, 2)", "q: float32 (N, 2)"], {"u": (4, 2), "v": (4, 2)}),
        (["p: float32 (N, 2)", "q: float32 (N, 2)"], {"u": (4, 2)}),
        (["p: float32 (N, 2)"], {}),
        (["p: float32 (N, 2)"], {"u": (4, 2), "v": (4, 2)}),
        (["p: float32 (N, 2)"], {"u": (4, 3), "v": (4, 5)}),
    ],
)
def test_ambiguity_names_both_sides(texts: list[str], arrays: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(PruneError, match="p: float32") as caught:
        match([spec(t) for t in texts], columns(**arrays), "data")
    for name in (*arrays, "p"):
        assert name in caught.value.hint


@pytest.mark.parametrize(
    ("arrays", "inputs", "labels"),
    [
        (("x", "labels"), ("x",), "labels"),
        (("x", "y"), ("x",), "y"),
        (("x", "y", "labels"), ("x",), "labels"),
        (("x", "labels"), ("x", "labels"), None),
        (("y",), ("input",), None),
        (("x",), ("x",), None),
    ],
)
def test_labels_are_told_from_inputs(arrays: tuple[str, ...], inputs: tuple[str, ...], labels: str | None) -> None:
    given = columns(**dict.fromkeys(arrays, (4,)))
    rest, found = split_labels(given, [spec(f"{name}: float32 (N)") for name in inputs])
    assert (None if found is None else found.name) == labels
    assert set(rest) == set(arrays) - {labels}
