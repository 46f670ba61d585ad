"""What is said where nothing could be done: true, and no hint at what was given already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from prunecli.errors import PruneError, advice
from prunecli.evaluation.evaluate import evaluate
from prunecli.structures.recovery import Recovery, recovery_sections
from prunecli.structures.structured import structured
from prunecli.types import Skipped
from prunecli.zeros.magnitude import magnitude
from tests.spellings import cnn, data

SHARED = [
    Skipped("a", "it is shared by several layers"),
    Skipped("b", "it is shared by several layers"),
    Skipped("c", "x"),
]
RECOVERIES: list[tuple[dict[str, Any], str]] = [
    ({"left": SHARED}, "no layer could be measured, 2 of 3 since it is shared by several layers"),
    ({}, "no layer that could make up for the cut reads anything that it changed"),
    ({"error_before": 0.0}, "there is nothing to make up for, the outputs are the original's on 6 held-out samples"),
    ({"tried": 2, "left": SHARED}, "no closed form lowers the error of the outputs"),
]


@pytest.mark.parametrize(("found", "words"), RECOVERIES)
def test_why_nothing_was_recovered(found: Mapping[str, Any], words: str) -> None:
    given: dict[str, Any] = {"error_before": 0.25, **found}
    sections = recovery_sections(Recovery("auto", "none", 48, 6, error_after=0.25, **given))
    assert words in str(sections[0])


def test_a_model_of_which_nothing_can_be_measured_says_so(tmp_path: Path) -> None:
    """Its only reader of what is cut is an output of the model too, and so is not refitted."""
    model = onnx.load(cnn(tmp_path / "m.onnx"))
    model.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in ("w3",))
    onnx.save(model, tmp_path / "m.onnx")
    fed = data(tmp_path / "d.npz")
    found = structured(tmp_path / "m.onnx", ratio=0.4, data=fed, include=("w1",), recover="lstsq", criterion="l2",
                       output=tmp_path / "out.onnx").recovery  # fmt: skip
    assert found is not None and "w3" in {skip.name for skip in found.left}


def test_advice_names_what_is_left() -> None:
    assert advice(("a", True), ("b", False), ("c", True), ("d", True)) == "a, c or d"
    assert advice(("a", True), ("b", False)) == "a" and advice(("a", False)) == ""


def refusal(function: Any, *args: Any, **given: Any) -> PruneError:
    with pytest.raises(PruneError) as caught:
        function(*args, **given)
    return caught.value


HINTS: list[tuple[dict[str, Any], str, str]] = [
    # options, what the hint offers, what it does not
    ({"macs": 0.01}, "--max-ratio", "leave fewer"),
    ({"macs": 0.01, "max_ratio": 1.0}, "ask for less", "--max-ratio"),
    ({"macs": 0.2, "exclude": ("w1",)}, "leave fewer layers out", "--granularity"),
    ({"ratio": 0.4, "exclude": ("*",)}, "could be cut without", "--include"),
]


@pytest.mark.parametrize(("options", "offered", "given"), HINTS)
def test_hints_of_structured(options: dict[str, Any], offered: str, given: str, tmp_path: Path) -> None:
    error = refusal(structured, cnn(tmp_path / "m.onnx"), output=tmp_path / "o.onnx", **options)
    assert offered in error.hint and given not in error.hint
    assert "--include" not in error.message, "it was not given"


def test_hints_of_choices_and_readings(tmp_path: Path) -> None:
    path = cnn(tmp_path / "m.onnx")
    error = refusal(magnitude, path, sparsity=0.5, exclude=("*",), output=tmp_path / "o.onnx")
    assert "--include" not in error.message + error.hint and "exclude less" in error.hint
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 3, 6, 6), np.float32), labels=np.zeros((8, 7, 5)))
    error = refusal(evaluate, path, data=tmp_path / "d.npz", output_name="y", task="regression", latency=False)
    assert "--output-name" not in error.hint and "--task" not in error.hint and "labels" in error.hint
