"""Which output answers the labels, and as what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.evaluation.reading import choose_reading

F = np.float32


def zeros(*shape: int, dtype: Any = F) -> np.ndarray:
    return np.zeros(shape, dtype)


INTS = np.array([0, 1, 2, 1])
# labels, outputs of a batch of 4, task -> (output, kind, axis, classes)
READ: dict[str, tuple[Any, dict[str, Any], str, tuple[Any, ...]]] = {
    "class scores": (INTS, {"y": zeros(4, 3)}, "auto", ("y", "scores", -1, 3)),
    "labels as a column": (INTS[:, None], {"y": zeros(4, 3)}, "auto", ("y", "scores", -1, 3)),
    "whole floats are classes": (INTS.astype(F), {"y": zeros(4, 3)}, "auto", ("y", "scores", -1, 3)),
    "first that fits": (INTS, {"f": zeros(4, 3, 7), "y": zeros(4, 5)}, "auto", ("y", "scores", -1, 5)),
    "scores before an integer answer": (
        INTS, {"y": zeros(4, 3), "c": zeros(4, dtype=np.int64)}, "auto", ("y", "scores", -1, 3),
    ),
    "integer answer first": (
        INTS, {"c": zeros(4, dtype=np.int64), "y": zeros(4, 3)}, "auto", ("c", "classes", -1, 2),
    ),
    "text answer": (
        np.array(["a", "b", "a", "b"]),
        {"c": np.array(["a"] * 4, object), "p": zeros(4, 2)},
        "auto",
        ("c", "classes", -1, 2),
    ),
    "text labels by sorted order": (
        np.array(["b", "a", "c", "a"]), {"y": zeros(4, 3)}, "auto", ("y", "scores", -1, 3),
    ),
    "one output, two classes": (np.array([0, 1, 1, 0]), {"y": zeros(4, 1)}, "auto", ("y", "binary", -1, 2)),
    "flat output, two classes": (np.array([0, 1, 1, 0]), {"y": zeros(4)}, "auto", ("y", "binary", -1, 2)),
    "boolean labels": (np.array([True, False] * 2), {"y": zeros(4, 1)}, "auto", ("y", "binary", -1, 2)),
    "two numbers asked as regression": (
        np.array([0, 1, 1, 0]), {"y": zeros(4, 1)}, "regression", ("y", "numbers", -1, 2),
    ),
    "counts are numbers": (np.array([0, 7, 3, 2]), {"y": zeros(4, 1)}, "auto", ("y", "numbers", -1, 2)),
    "continuous": (np.array([0.5, 1, 2, 3]), {"y": zeros(4, 1)}, "auto", ("y", "numbers", -1, 2)),
    "several targets": (np.random.rand(4, 3), {"y": zeros(4, 3)}, "auto", ("y", "numbers", -1, 2)),
    "images": (np.random.rand(4, 3, 8, 8), {"y": zeros(4, 3, 8, 8)}, "auto", ("y", "numbers", -1, 2)),
    "one-hot": (np.eye(3)[INTS], {"y": zeros(4, 3)}, "auto", ("y", "scores", -1, 3)),
    "tokens": (zeros(4, 5, dtype=int), {"y": zeros(4, 5, 9)}, "auto", ("y", "scores", -1, 9)),
    "tokens, classes second": (zeros(4, 5, dtype=int), {"y": zeros(4, 9, 5)}, "auto", ("y", "scores", 1, 9)),
    "pixels": (zeros(4, 6, 6, dtype=int), {"y": zeros(4, 2, 6, 6)}, "auto", ("y", "scores", 1, 2)),
    "several labels": (zeros(4, 5, dtype=int), {"y": zeros(4, 5)}, "auto", ("y", "binary", -1, 2)),
    "margins": (np.array([-1, 1, 1, -1]), {"y": zeros(4, 1)}, "auto", ("y", "binary", -1, 2)),
    "margins as floats": (np.array([-1.0, 1, 1, -1]), {"y": zeros(4)}, "auto", ("y", "binary", -1, 2)),
    "only the lower margin": (np.array([-1, -1, -1, -1]), {"y": zeros(4)}, "auto", ("y", "binary", -1, 2)),
    "margins of two scores": (np.array([-1, 1, 1, -1]), {"y": zeros(4, 2)}, "auto", ("y", "scores", -1, 2)),
    "margins asked as regression": (np.array([-1, 1, 1, -1]), {"y": zeros(4)}, "regression", ("y", "numbers", -1, 2)),
    "numbers in a text answer": (
        np.array([3, 5, 3, 5]), {"y": np.array(["3", "5"] * 2, object)}, "auto", ("y", "classes", -1, 2),
    ),
    "pixel mask": (zeros(4, 6, 6, dtype=int), {"y": zeros(4, 1, 6, 6)}, "auto", ("y", "binary", -1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_outputs_are_read(case: str) -> None:
    labels, outputs, task, expected = READ[case]
    found = choose_reading(labels, outputs, task)  # type: ignore[arg-type]
    classes = found.classes if found.kind == "scores" else 2
    assert (found.output, found.kind, found.axis, classes) == expected


# labels, outputs, task, output name -> message
UNREADABLE: dict[str, tuple[Any, dict[str, Any], str, str | None, str]] = {
    "other length of positions": (zeros(4, 5, dtype=int), {"y": zeros(4, 6, 9)}, "auto", None, "fit no output"),
    "continuous for classes": (np.random.rand(4), {"y": zeros(4, 3)}, "auto", None, "fit no output"),
    "regression asked of classes": (INTS, {"y": zeros(4, 3)}, "regression", None, "for regression"),
    "classes asked of numbers": (np.random.rand(4), {"y": zeros(4, 1)}, "classification", None, "fit no output"),
    "unknown output": (INTS, {"y": zeros(4, 3)}, "auto", "z", "no output named z"),
    "the wrong output": (INTS, {"y": zeros(4, 3), "z": zeros(4, 8, 8)}, "auto", "z", "fit no output"),
    "sequence": (INTS, {"y": [{0: 1.0}]}, "auto", None, "y: a list"),
    "class too high": (np.array([0, 3]), {"y": zeros(4, 3)}, "auto", None, "class 3, y has 0 to 2"),
    "class below zero": (np.array([0, -1]), {"y": zeros(4, 3)}, "auto", None, "class -1"),
    "three names for four classes": (
        np.array(["a", "b", "c"]), {"y": zeros(3, 4)}, "auto", None, "3 names, y has 4 classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_fits_no_output_is_refused(case: str) -> None:
    labels, outputs, task, name, message = UNREADABLE[case]
    with pytest.raises(PruneError, match=message):
        choose_reading(labels, outputs, task, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [None, "auto"])
def test_the_hint_names_options_of_the_command_alone(task: Any) -> None:
    with pytest.raises(PruneError, match="labels with fractions, of shape") as refused:
        choose_reading(np.full(4, 0.5), {"y": zeros(4, 3)}, task)
    assert ("--task" in refused.value.hint) == (task == "auto") and "whole numbers" in refused.value.hint


def test_labels_from_one_get_a_hint() -> None:
    with pytest.raises(PruneError) as caught:
        choose_reading(np.array([1, 2, 3]), {"y": zeros(3, 3)})
    assert "subtract 1" in caught.value.hint


def test_ignored_positions_are_no_class() -> None:
    labels = np.array([[0, 2, -100], [-100, 1, 0]])
    assert choose_reading(labels, {"y": zeros(2, 3, 3)}).kind == "scores"


TWELVE = [str(k) for k in range(12)]
# labels, output, how they are meant -> the class numbers
TRUTH: dict[str, tuple[Any, Any, list[Any]]] = {
    "text of class numbers": (np.array(TWELVE), zeros(12, 12), list(range(12))),
    "some of them": (np.array(["10", "2", "0", "11"]), zeros(4, 12), [10, 2, 0, 11]),
    "text of other numbers": (np.array([str(k) for k in range(1, 13)]), zeros(12, 12), list(range(12))),
    "padded with zeros": (np.array(["03", "01", "02"]), zeros(3, 3), [2, 0, 1]),
    "ignored": (np.array([-1, 1, -100]), zeros(3), [0, 1, -100]),
    "words": (np.array(["c10", "c2", "c1"]), zeros(3, 3), [1, 2, 0]),
    "text of two": (np.array(["1", "0"]), zeros(2, 1), [1, 0]),
    "text of margins": (np.array(["-1", "1"]), zeros(2, 1), [0, 1]),
    "margins": (np.array([-1.0, 1.0]), zeros(2), [0, 1]),
    "several margins": (np.array([[-1, 1, 1]]), zeros(1, 3), [[0, 1, 1]]),
    "numbers of a text answer": (np.array([3, 5]), np.array(["5", "3"], object), ["3", "5"]),
    "text of numbers of a text answer": (np.array(["03", "5"]), np.array(["03", "5"], object), ["03", "5"]),
    "text of an integer answer": (np.array(["3", "5"]), np.array([5, 3]), [3, 5]),
}


@pytest.mark.parametrize("case", TRUTH)
def test_labels_become_class_numbers(case: str) -> None:
    labels, output, numbers = TRUTH[case]
    assert choose_reading(labels, {"y": output}).truth(labels).tolist() == numbers


def test_numbers_are_no_answer_in_words() -> None:
    with pytest.raises(PruneError, match="fit no output"):
        choose_reading(np.array([0, 1]), {"y": np.array(["cat", "dog"], object)})
