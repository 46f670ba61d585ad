"""Plan files: what is written comes back, and whatever does not belong to the model is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.model import Model, load
from prunecli.model.plan_file import identity
from prunecli.options.declare import SELECT, declared_of
from prunecli.structures import decide
from prunecli.structures.cut_plan import (
    check_positions,
    chosen_units,
    load_cut_plan,
    positions_json,
    read_positions,
    save_cut_plan,
)
from prunecli.structures.options import StructuredOptions
from prunecli.structures.prunable import AnalysedAs
from tests.structures import cuts
from tests.structures.cuts import net_file

SHAPES = {"w": (4, 3), "y": (2, 4)}
GROUPS = ["a", "a", "b"]
FOLLOWS = {"w": {0: np.array([1, 3])}, "y": {1: np.array([1, 3])}}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(net_file(tmp_path, cuts.conv_net))


def good(model: Model) -> dict[str, Any]:
    return {
        "model": identity(model),
        "recipe": {"ratio": 0.5},
        "weights": positions_json({"w": FOLLOWS["w"]}),
        "tensors": positions_json({"y": FOLLOWS["y"]}),
        "units": [
            {"id": 0, "group": "a", "score": 0.5, "removed": True},
            {"id": 1, "group": "a", "score": None, "removed": False},
            {"id": 2, "group": "b", "score": 2, "removed": False},
        ],
        "frozen": [],
    }


def read(path: Path, model: Model) -> tuple[np.ndarray, np.ndarray]:
    plan = load_cut_plan(path, model)
    chosen = chosen_units(path, plan, GROUPS)
    check_positions(path, read_positions(path, plan, SHAPES), FOLLOWS)
    return chosen


def test_a_plan_comes_back_as_it_was(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "plan.json"
    save_cut_plan(path, good(model))
    removed, scores = read(path, model)
    assert removed.tolist() == [True, False, False]
    assert scores[0] == 0.5
    assert np.isnan(scores[1])
    assert scores[2] == 2
    assert json.loads(path.read_text())["schema"] == "prunecli-plan/1"


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """Replace what lies under all keys but the last argument by the last argument."""

    def change(plan: dict[str, Any]) -> None:
        at: Any = plan
        for key in keys[:-2]:
            at = at[key]
        at[keys[-2]] = keys[-1]

    return change


HOSTILE = [
    # what is changed, what the refusal says
    (put("model", {"sha256": "0" * 64}), "another model"),
    (put("model", None), "another model"),
    (put("schema", "prunecli-plan/2"), "not a plan"),
    (put("masks", {"w": {}}), "zeroes weights"),
    (put("recipe", []), "'recipe' is missing"),
    (put("weights", 3), "'weights' is missing"),
    (put("tensors", None), "'tensors' is missing"),
    (put("units", []), "no units"),
    (put("units", {"0": True}), "no units"),
    (put("units", [{}]), "has 1 units, the model has 3"),
    (put("units", 0, 7), "unit 0 is malformed"),
    (put("units", 0, "id", True), "unit 0 is malformed"),
    (put("units", 0, "id", 1), "unit 0 is not one of"),
    (put("units", 0, "id", -1), "unit 0 is not one of"),
    (put("units", 2, "group", "a"), "unit 2 is not one of"),
    (put("units", 0, "removed", 1), "unit 0 is malformed"),
    (put("units", 0, "removed", False), "removes nothing"),
    (put("weights", "w", []), "does not have"),
    (put("weights", "z", {"0": [1]}), "does not have"),
    (put("weights", "w", {"2": [1]}), "has no axis '2'"),
    (put("weights", "w", {"-1": [1]}), "has no axis '-1'"),
    (put("weights", "w", {"0x0": [1]}), "has no axis '0x0'"),
    (put("weights", "w", {"²": [1]}), "has no axis"),
    (put("weights", "w", {"9" * 5000: [1]}), "has no axis"),
    (put("weights", "w", "0", [-1, 1]), "positions 0 to 3"),
    (put("weights", "w", "0", [1, 4]), "positions 0 to 3"),
    (put("weights", "w", "0", [10**30]), "positions 0 to 3"),
    (put("weights", "w", "0", [1, 1.5]), "not a list of integers"),
    (put("weights", "w", "0", [1, True]), "not a list of integers"),
    (put("weights", "w", "0", ["1"]), "not a list of integers"),
    (put("weights", "w", "0", {"1": 3}), "not a list of integers"),
    (put("weights", "w", "0", []), "not a list of integers"),
    (put("weights", "w", "0", [3, 1]), "not ascending"),
    (put("weights", "w", "0", [1, 1, 3]), "not ascending"),
    (put("weights", "w", "0", [1]), "'w' axis 0 do not follow from the removed units: it lacks 3"),
    (put("weights", "w", "0", [0, 1, 3]), "'w' axis 0 do not follow from the removed units: it also lists 0"),
    (put("tensors", {}), "'y' axis 1 do not follow from the removed units: it lacks 1"),
    (put("weights", "w", "1", [0]), "'w' axis 1 do not follow from the removed units: it also lists 0"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[f"{i} {m}" for i, (_, m) in enumerate(HOSTILE)])
def test_what_does_not_belong_is_refused(tmp_path: Path, model: Model, change: Any, message: str) -> None:
    path, plan = tmp_path / "plan.json", {"schema": "prunecli-plan/1", **copy.deepcopy(good(model))}
    change(plan)
    path.write_text(json.dumps(plan))
    with pytest.raises(PruneError) as caught:
        read(path, model)
    assert message in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", "[" * 100_000, '{"schema": 1}', "\x00", '"' + "x" * 9, "1" * 5000]
)
def test_what_is_no_plan_is_refused(tmp_path: Path, model: Model, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PruneError, match=r"not JSON|not a plan"):
        load_cut_plan(path, model)


def test_a_file_of_other_bytes_or_none_is_refused(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(PruneError, match="cannot read the plan"):
        load_cut_plan(path, model)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PruneError, match="not JSON"):
        load_cut_plan(path, model)
    with pytest.raises(PruneError, match="cannot read the plan"):
        load_cut_plan(tmp_path, model)


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path: Path, model: Model) -> None:
    with pytest.raises(PruneError, match="cannot write the plan"):
        save_cut_plan(tmp_path / "absent" / "plan.json", good(model))
    with pytest.raises(ValueError, match="Out of range"):
        save_cut_plan(tmp_path / "plan.json", {"units": [{"score": float("nan")}]})
    assert not list(tmp_path.glob("*plan*"))


def test_external_data_is_part_of_the_identity(tmp_path: Path, model: Model) -> None:
    data = tmp_path / "weights.bin"
    data.write_bytes(b"1234")
    model.data_files = (data,)
    before = identity(model)
    data.write_bytes(b"1235")
    assert identity(model) != before


def test_the_record_has_every_choice() -> None:
    """What decides which units go is in the recipe that reports and plans keep; of the budgets the one that was given."""
    options = StructuredOptions(macs=0.5, allocate="uniform", criterion="pagerank")
    choices = {one.field for one in declared_of(StructuredOptions) if one.option.section == SELECT}
    assert choices - set(decide._recipe(options, AnalysedAs("channel"))) == {"ratio", "params", "latency"}
