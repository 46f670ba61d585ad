"""`--print-recipe` of every command and every option: the recipe means what the command line meant."""

from __future__ import annotations

import contextlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli.app import COMMANDS, command_named
from prunecli.cli.commands import schema_of
from prunecli.cli.recipes.plan import plan
from prunecli.cli.recipes.read import read_recipe
from prunecli.cli.settings import Defaults
from prunecli.cli.terminal import terminal
from prunecli.errors import PruneError
from prunecli.options.declare import Declared, declared_of
from tests.cli.conftest import SAMPLES, Prune

GLOBAL = {"help", "version", "quiet", "verbose", "color", "isolated", "print_recipe"}
"""Options about the terminal and about this command line, which no file can set."""

STEPS = sorted(set(COMMANDS) - {"run"})
TRIED = ["2", "0.5", "50%", "1e-3", "1", "0", "2:4", "flip,shift"]
AWKWARD = "a b # ' \" \\ = ] é\t\x7f"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with files for what must exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("m.onnx", "other.onnx", "d.npz"):
        (tmp_path / name).touch()
    return tmp_path


def texts_for(declared: Declared) -> list[str]:
    """Values that an option takes, by its type: an option that is added later gets some too."""
    given, *others = declared.metavar.split("|")
    plain = declared.kind in (str, object) and declared.option.read is None
    if given == "ORIGINAL" or (given == "D" and plain):
        return ["d.npz" if given == "D" else "m.onnx", *others]
    if declared.metavar == "'NAME OP NUMBER'":
        return ["accuracy<0.5", "f1.drop > 1%"]
    if declared.choices:
        return list(declared.choices)
    if declared.kind is Path:
        return [f"{declared.name}.json"]  # files that are written must differ
    return [AWKWARD, "-x", "0.50", "true"] if plain else taken(declared)


def taken(declared: Declared) -> list[str]:
    found = []
    for text in TRIED:
        with contextlib.suppress(PruneError):
            declared.single(text)
            found.append(text)
    return found


def command_lines(name: str) -> list[list[str]]:
    """One per value of every option, and one with all options at once."""
    arguments = ["m.onnx", "other.onnx"][: len(COMMANDS[name].arguments)]
    lines: list[list[str]] = [arguments]
    everything: list[str] = []
    for declared in declared_of(COMMANDS[name].options_class):
        option = f"--{declared.name}"
        if declared.kind is bool:
            own = [[option]]
        else:
            values = texts_for(declared)
            assert values, f"{name} {option}: say in texts_for what it takes"
            own = [[f"{option}={value}"] for value in values]
            own += [[f"{option}={value}" for value in values]] if declared.many else []
        lines += [[*arguments, *words] for words in own]
        everything += own[0]
    return [*lines, [*everything, *arguments]]


def parsed(name: str, words: list[str]) -> dict[str, Any]:
    params = command_named(name).make_context(name, ["--isolated", *words]).params
    return {key: value for key, value in params.items() if key != "format" or isinstance(value, list | tuple)}


@pytest.mark.parametrize(
    "name", [name if name in ("compare", "pack") else pytest.param(name, marks=pytest.mark.slow)
             for name in STEPS],
)  # fmt: skip
def test_every_option_of_every_command_survives(name: str, folder: Path, prune: Prune) -> None:
    lines = command_lines(name)
    assert len(lines) > len(command_named(name).params) - len(GLOBAL)
    for words in lines:
        done = prune(name, *words, "--print-recipe")
        assert (done.code, done.err) == (0, ""), words
        Path("r.toml").write_text(done.out)
        recipe = read_recipe(Path("r.toml"), Defaults())
        (planned,) = plan(recipe, folder).steps
        assert parsed(name, list(planned.words)) == parsed(name, words), done.out
        keys = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
        shown = {key for key in keys if schema_of(name)[key].display}
        assert set(recipe.shown) == shown


@pytest.mark.parametrize("name", STEPS)
def test_nothing_is_opened_and_nothing_written(name: str, folder: Path, prune: Prune) -> None:
    done = prune(name, "no.onnx", *(["no.onnx"] if name == "compare" else []), "--print-recipe")
    assert done.code == 0
    assert tomllib.loads(done.out)["step"][0]["command"] == name
    assert {path.name for path in folder.iterdir()} == {"m.onnx", "other.onnx", "d.npz"}


def test_it_is_written_for_people(folder: Path, prune: Prune) -> None:
    line = [
        "structured",
        "m.onnx",
        "--macs",
        "50%",
        "--exclude",
        "a\n[[x]]",
        "--exclude",
        "b*",
        "--force",
        "--seed",
        "3",
    ]
    assert prune(*line, "--no-progress", "--print-recipe").out == (
        "# prune structured m.onnx --macs 50% --exclude 'a\\n[[x]]' --exclude 'b*' --force --seed 3 --no-progress\n"
        "# Run it with `prune run FILE`. Paths are relative to the folder that FILE is in: save it in this one.\n\n"
        'model = "m.onnx"\nno-progress = true\n\n'
        '[[step]]\ncommand = "structured"\nmacs = "50%"\nexclude = ["a\\n[[x]]", "b*"]\nseed = 3\n'
        "force = true\n"
    )


def test_a_step_that_is_added_can_call_the_model_original(folder: Path, prune: Prune) -> None:
    (folder / "m.onnx").touch()
    text = prune("structured", "m.onnx", "--macs", "0.5", "--print-recipe").out
    added = '\n[[step]]\ncommand = "evaluate"\nbaseline = "original"\ndata = "d.npz"\n'
    (folder / "d.npz").touch()
    (folder / "r.toml").write_text(text + added)
    plan = json.loads(prune("run", "r.toml", "--dry-run", "--format", "json").out)
    assert [step["name"] for step in plan["steps"]] == ["structured", "evaluate"]


def test_a_file_called_like_a_reference_stays_a_file(folder: Path, prune: Prune) -> None:
    (folder / "previous").touch()
    assert tomllib.loads(prune("inspect", "previous", "--print-recipe").out)["model"] == "./previous"


def test_a_bad_command_line_prints_no_recipe(folder: Path, prune: Prune) -> None:
    done = prune("inspect", "m.onnx", "--histgram", "--print-recipe")
    assert (done.code, done.out) == (2, "")


RUNS = [
    ("magnitude", ["--sparsity", "60%", "--scope", "global"]),
    ("magnitude", ["--pattern", "2:4", "--exclude", "*bias*", "--finetune-epochs", "1", "--data", "train.npz"]),
    ("gradient", ["--sparsity", "0.5", "--data", "train.npz", "--limit", "32", "--seed", "5"]),
    ("structured", ["--macs", "0.6", "--data", "train.npz", "--limit", "64", "--round-to", "4"]),
    (
        "adaptive",
        ["--data", "train.npz", "--max-drop", "10%", "--strategy", "feedback", "--criterion", "l1", "--jobs", "1"],
    ),
    ("finetune", ["--data", "train.npz", "--epochs", "1", "--teacher", "m.onnx", "--lr", "1e-2", "--val-split", "0"]),
]


@pytest.mark.parametrize(("name", "words"), RUNS, ids=[f"{name} {words[0]}" for name, words in RUNS])
def test_the_recipe_writes_the_same_bytes(name: str, words: list[str], folder: Path, prune: Prune) -> None:
    (folder / "m.onnx").write_bytes((SAMPLES / "digits-mlp.onnx").read_bytes())
    (folder / "train.npz").write_bytes((SAMPLES / "digits-calib.npz").read_bytes())
    printed = prune(name, "m.onnx", *words, "--print-recipe").out
    Path("r.toml").write_text(printed)
    assert prune(name, "m.onnx", *words).code == 0
    direct = (folder / "m.pruned.onnx").read_bytes()
    (folder / "m.pruned.onnx").unlink()
    done = prune("run", "r.toml")
    assert done.code == 0, done.err
    assert (folder / "m.pruned.onnx").read_bytes() == direct


def test_a_recipe_prints_itself_with_everything_settled(folder: Path, prune: Prune) -> None:
    (folder / "sub").mkdir()
    (folder / "pyproject.toml").write_text("[tool.prune]\nthreads = 1\n")
    Path("sub/r.toml").write_text(
        'model = "../m.onnx"\nformat = "json"\n[data]\n"a set" = "../d.npz"\n[defaults]\nseed = 2\n'
        '[[step]]\nname = "half"\ncommand = "structured"\nmacs = 0.5\ndata = "a set"\nlabels = "l.npy"\n'
        '[[step]]\ncommand = "finetune"\nteacher = "none"\ndata = "../d.npz"\noutput = "t.onnx"\n'
        '[[step]]\ncommand = "evaluate"\nbaseline = "half"\nfail-if = "accuracy<0.1"\ndata = "a set"\n'
    )
    words = ["run", "sub/r.toml", "--set", "half.macs=40%", "--print-recipe"]
    first = prune(*words)
    assert first.code == 0, first.err
    found = tomllib.loads(first.out)
    assert found["model"] == "sub/../m.onnx" and found["data"] == {"a set": "sub/../d.npz"}
    assert found["step"][0] == {
        "command": "structured", "name": "half", "model": "original", "macs": "40%", "data": "a set",
        "labels": "sub/l.npy", "seed": 2, "threads": 1,
    }  # fmt: skip
    assert (found["step"][1]["teacher"], found["step"][1]["output"]) == ("none", "sub/t.onnx")
    assert found["step"][2]["baseline"] == "half" and found["format"] == "json"
    Path("again.toml").write_text(first.out)
    (folder / "pyproject.toml").unlink()
    second = prune("run", "again.toml", "--print-recipe")
    assert tomllib.loads(second.out) == found
    plans = [prune("run", *args, "--dry-run", "--format", "json").json for args in (words[1:-1], ["again.toml"])]
    without, again = ([set(step["options"]) for step in found["steps"]] for found in plans)
    assert [{*options, "threads"} for options in without] == again  # what pyproject.toml gave is written out
    assert not terminal.isolated
