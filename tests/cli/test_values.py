"""A value that an option cannot have is refused for the same reason wherever it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli.commands import COMMANDS
from prunecli.errors import InvalidValue, PruneError
from prunecli.options.declare import declared_of
from tests.cli.conftest import SAMPLES, Prune

MODEL, DATA = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-calib.npz"

# command, option, value as a caller of the library gives it, the reason
INVALID = [
    ("magnitude", "sparsity", "x", "'x' is not a number"),
    ("magnitude", "sparsity", 2, "'2' is outside 0 to 1"),
    ("magnitude", "sparsity", -0.5, "'-0.5' is outside 0 to 1"),
    ("magnitude", "threshold", -1.0, "-1 is out of its range"),
    ("magnitude", "threshold", float("inf"), "inf is not a number"),
    ("magnitude", "scope", "everywhere", "'everywhere' is unknown"),
    ("magnitude", "seed", 1.5, "1.5 is not a whole number"),
    ("oneshot", "memory", -1, "not a number of bytes"),
    ("oneshot", "memory", "2ms", "not a number of bytes"),
    ("structured", "damping", -1, "'-1' is outside 0 to 1"),
    ("structured", "max_ratio", 1.5, "'1.5' is outside 0 to 1"),
    ("structured", "round_to", 0, "'0' is no number of channels"),
    ("quantize", "keep_float", -0.1, "'-0.1' is outside 0 to 1"),
    ("pack", "min_saving", 7, "'7' is outside 0 to 1"),
    ("sensitivity", "levels", -1, "'-1' is outside 0 to 1"),
    ("finetune", "rate", float("nan"), "nan is not a number"),
    ("finetune", "weight_decay", float("inf"), "inf is not a number"),
    ("finetune", "augment", "flop", "no augmentation 'flop'"),
    ("inspect", "nm", "4:2", "'4:2' is not an N:M pattern"),
    ("inspect", "report", "r.txt", "cannot tell the report's format from 'r.txt'"),
    ("evaluate", "latency_runs", 1, "1 is out of its range"),
    ("evaluate", "gates", "accuracy", "'accuracy' is not NAME OP NUMBER"),
]


@pytest.mark.parametrize(("command", "field", "value", "reason"), INVALID, ids=[f"{r[1]} {r[2]}" for r in INVALID])
def test_the_reason_is_the_same_wherever_it_is_written(
    command: str, field: str, value: Any, reason: str, tmp_path: Path, prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = COMMANDS[command].options_class
    name = next(one.name for one in declared_of(kind) if one.field == field)
    with pytest.raises(InvalidValue, match=f"invalid value for '--{name}'") as refused:
        kind(**{field: value})
    assert reason in refused.value.reason
    text = json.dumps(str(value))
    with pytest.raises(InvalidValue) as written:
        kind(**{field: str(value)})
    assert written.value.hint == refused.value.hint
    told = written.value.reason
    Path("r.toml").write_text(f'model = "{MODEL}"\n[[step]]\ncommand = "{command}"\n{name} = {text}\n')
    given = prune(command, MODEL, f"--{name}={value}")
    step = prune("run", "r.toml")
    Path("pyproject.toml").write_text(f"[tool.prune.{command}]\n{name} = {text}\n")
    default = prune(command, MODEL)
    assert [done.code for done in (given, step, default)] == [2, 2, 2]
    assert given.err.splitlines() == [
        f"error: invalid value for '--{name}': {told}",
        f"hint: {refused.value.hint}",
    ]
    assert step.err.splitlines()[0].endswith(f": {name}: {told}") and step.err.startswith("error: r.toml:4:")
    assert default.err.splitlines()[0].endswith(f": {name}: {told}") and "error: pyproject.toml:2:" in default.err
    assert refused.value.hint in step.err and refused.value.hint in default.err


# command, option, values that mean the same, beside what the command needs
SAME: list[tuple[str, str, list[Any], dict[str, Any]]] = [
    ("magnitude", "sparsity", [0.5, "0.5", "50%"], {}),
    ("structured", "macs", [0.5, "0.5"], {}),
    ("structured", "max_ratio", [0.5, "50%"], {"macs": 0.5}),
    ("oneshot", "memory", [1 << 20, 1048576.0, "1048576"], {"data": DATA, "sparsity": 0.5}),
    ("adaptive", "max_drop", [0.01, "0.01"], {"data": DATA}),
    ("sensitivity", "levels", [0.5, [0.5], "0.5", ["50%"]], {"data": DATA}),
    ("inspect", "nm", [(2, 4), [2, 4], "2:4"], {}),
    ("finetune", "augment", [["flip", "shift"], "flip,shift", ("flip,shift",)], {"data": DATA}),
]


@pytest.mark.parametrize(("command", "field", "values", "others"), SAME, ids=[row[1] for row in SAME])
def test_numbers_and_texts_mean_the_same(command: str, field: str, values: list[Any], others: dict[str, Any]) -> None:
    made = [COMMANDS[command].options_class.of(**{field: value}, **others) for value in values]
    assert all(one == made[0] for one in made)


# command, options: what they ask for is refused without the model, a piece of the error
EARLY: list[tuple[str, dict[str, Any], str]] = [
    ("structured", {"macs": 0.5, "criterion": "taylor"}, "--criterion taylor needs data"),
    ("structured", {"macs": 0.5, "recover": "lstsq"}, "--recover lstsq needs data"),
    ("structured", {"macs": 0.5, "max_ratio": 0}, "nothing may be removed"),
    ("structured", {"latency": 0.5, "steps": 3, "finetune_epochs": 1, "data": DATA}, "in one go"),
    ("structured", {"macs": 0.5, "steps": 3, "finetune_epochs": 1, "data": DATA, "save_plan": "p"}, "holds one cut"),
    ("gradient", {"sparsity": 0.5}, "measured on data"),
    ("magnitude", {"sparsity": 0.5, "also": "all"}, "'all' is unknown"),
    ("adaptive", {"criterion": "l7"}, "--criterion 'l7' is unknown for elements"),
    ("adaptive", {"criterion": "wanda", "granularity": "channel"}, "--criterion 'wanda' is unknown for structures"),
    ("adaptive", {"metric": "acuracy"}, "there is no metric acuracy"),
    ("adaptive", {"granularity": "chanel"}, "no granularity 'chanel'"),
    ("adaptive", {"pattern": "2:4"}, "fixes how many weights go"),
    ("sensitivity", {"predicted": True, "data": None, "criterion": "taylor"}, "--criterion taylor needs data"),
    ("evaluate", {"robustness": True}, "--robustness needs data"),
    ("evaluate", {"gates": "accuracy<0.5"}, "needs labelled data"),
    ("evaluate", {"gates": "latency.median>1", "latency": False}, "needs latency"),
    ("evaluate", {"gates": "robustness.drop>1", "data": DATA}, "needs robustness"),
    ("evaluate", {"gates": "accuracy.drop>1%", "data": DATA}, "needs a model to compare with"),
    ("finetune", {"data": DATA, "resume": True}, "--resume needs --checkpoint"),
]


@pytest.mark.parametrize(("command", "given", "message"), EARLY, ids=[f"{row[0]} {row[2]}" for row in EARLY])
def test_what_needs_no_model_to_be_judged_is_refused_with_the_options(
    command: str, given: dict[str, Any], message: str
) -> None:
    needed = {"adaptive": {"data": DATA, "max_drop": 0.01}, "sensitivity": {"data": DATA}}.get(command, {})
    with pytest.raises(PruneError, match=message):
        COMMANDS[command].options_class.of(**needed | given)
