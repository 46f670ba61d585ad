"""Budgets hold over all that is stored and all that is run, counted alike before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.errors import PruneError
from prunecli.report.document import Text
from prunecli.structures.target import Budget
from prunecli.types import Totals
from tests.model.build import floats, info, node, proto, save_proto


def constant(name: str, array: np.ndarray[Any, Any]) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def table_in_a_constant() -> onnx.ModelProto:
    """A table of positions in a Constant node, larger than all weights together."""
    nodes = [node("MatMul", ["x", "w1"], ["h"]), constant("table", floats(1, 16, 16)), node("Add", ["h", "table"], ["t"]),
             node("Relu", ["t"], ["r"]), node("MatMul", ["r", "w2"], ["y"])]  # fmt: skip
    return proto(nodes, {"x": ("batch", 16, 4)}, weights={"w1": floats(4, 16), "w2": floats(16, 4)})


def work_in_a_branch() -> onnx.ModelProto:
    """An If with more multiplications than its surroundings."""
    inner = {"a": floats(4, 24), "b": floats(24, 4, seed=1)}
    then = helper.make_graph(
        [node("MatMul", ["m", "a"], ["i"]), node("MatMul", ["i", "b"], ["o"])], "then", [], [info("o", None)],
        [numpy_helper.from_array(array, name) for name, array in inner.items()],
    )  # fmt: skip
    other = helper.make_graph([node("Identity", ["m"], ["p"])], "else", [], [info("p", None)])
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["m"]),
             node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "never"], ["c"]),
             node("If", ["c"], ["y"], then_branch=then, else_branch=other)]  # fmt: skip
    weights = {"w1": floats(4, 32), "w2": floats(32, 4), "never": np.array(-1e9, np.float32)}
    return proto(nodes, {"x": ("batch", 4)}, weights=weights)


def computed_constant() -> onnx.ModelProto:
    """A small tensor that is spread to a large one before it meets the data."""
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Expand", ["small", "large"], ["t"]), node("Add", ["h", "t"], ["a"]),
             node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w2"], ["y"])]  # fmt: skip
    weights = {"w1": floats(4, 16), "w2": floats(16, 4), "small": floats(1, 1, 16), "large": np.array([1, 20, 16])}
    return proto(nodes, {"x": ("batch", 20, 4)}, weights=weights)


MODELS: list[Callable[[], onnx.ModelProto]] = [table_in_a_constant, work_in_a_branch, computed_constant]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("budget", [{"params": 0.7}, {"params": 0.95}, {"macs": 0.7}, {"macs": 0.9}], ids=str)
def test_a_budget_is_kept(build: Callable[[], onnx.ModelProto], budget: dict[str, float], tmp_path: Path) -> None:
    path = save_proto(build(), tmp_path)
    ((kind, target),) = budget.items()
    found = prunecli.structured(path, output=tmp_path / "out.onnx", **budget)
    before, after = getattr(found.before, kind), getattr(found.after, kind)
    assert 0 < after <= target * before
    assert before == getattr(prunecli.inspect(path).totals, kind)  # counted alike everywhere
    assert after == getattr(prunecli.inspect(tmp_path / "out.onnx").totals, kind)


def test_everything_that_is_stored_counts(tmp_path: Path) -> None:
    assert prunecli.inspect(save_proto(table_in_a_constant(), tmp_path)).totals.params == 64 + 256 + 64
    assert prunecli.inspect(save_proto(work_in_a_branch(), tmp_path)).totals.params == 2 * 128 + 2 * 96


def test_a_budget_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    """Over two fifths of the work lie in the branch."""
    path = save_proto(work_in_a_branch(), tmp_path)
    with pytest.raises(PruneError, match=r"--macs 0\.4 \([0-9,]+\) cannot be reached: 0\.5 "):
        prunecli.structured(path, macs=0.4, output=tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == [path]


def sizes(params: int, macs: int | None = 1000) -> Totals:
    return Totals(params, params, macs, 1, 1)


MISSED = [
    # budget, what there was, what is left, whether that is: kept, told, refused
    (Budget("params", 0.5), sizes(1000), sizes(500), "kept"),
    (Budget("params", 0.5), sizes(1000), sizes(505), "told"),
    (Budget("params", 0.5), sizes(1000), sizes(506), "refused"),
    (Budget("params", 0.5), sizes(3), sizes(2), "kept"),  # 1.5 is no count
    (Budget("params", 700, True), sizes(1000), sizes(706), "told"),
    (Budget("macs", 0.5), sizes(1), sizes(1, 596), "refused"),
    (Budget("macs", 0.5), sizes(1), sizes(1, None), "kept"),  # not known
    (Budget("ratio", 0.5), sizes(1000), sizes(1000), "kept"),  # of units
]


@pytest.mark.parametrize(("budget", "before", "after", "what"), MISSED, ids=range(len(MISSED)))
def test_what_is_missed(budget: Budget, before: Totals, after: Totals, what: str) -> None:
    if what == "refused":
        with pytest.raises(PruneError, match="is missed"):
            budget.missed(before, after)
    else:
        assert bool(budget.missed(before, after)) is (what == "told")


def test_a_larger_result_is_said(tmp_path: Path) -> None:
    path = save_proto(computed_constant(), tmp_path)
    found = prunecli.structured(path, ratio=0.1, output=tmp_path / "out.onnx")
    assert found.after.file_bytes > found.before.file_bytes  # what made it is recorded in it
    assert found.notes[0].startswith("the result is larger than its input: ")
    assert Text(found.notes[0], "warning") in found.to_document().sections  # at the level that is shown by default
