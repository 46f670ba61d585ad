"""`prune run`: what a recipe may say, what is refused and where, what runs and what is left of it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import numpy as np
import onnx
import pytest

import prunecli
from prunecli.cli.app import COMMANDS, command_named
from prunecli.cli.commands import Entry, schema_of
from prunecli.cli.terminal import WorkBegins, checking
from prunecli.options import Option
from prunecli.options.declare import declared_of
from prunecli.options.groups import Reporting, Written
from prunecli.recipe.result import StepFailed, StepGateFailed
from prunecli.report.document import Document
from tests.cli.conftest import ROOT, SAMPLES, Prune

MODEL, DATA = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-test.npz"
GOOD = f"""model = "{MODEL}"
[data]
test = "{DATA}"
[[step]]
name = "zeros"
command = "magnitude"
sparsity = 0.5
[[step]]
command = "evaluate"
baseline = "original"
data = "test"
no-latency = true
fail-if = [
  "accuracy<0.5",
  "accuracy.drop>90%",
]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "r.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


# a change of the good recipe -> line:column, a piece of the error, a piece of the hint
MISTAKES = [
    ("sparsity = 0.5", "sparsty = 0.5", "7:1", "magnitude has no option 'sparsty'", "did you mean sparsity"),
    ("no-latency", "no_latency", "12:1", "evaluate has no option 'no_latency'", "did you mean no-latency"),
    ("sparsity = 0.5", 'sparsity = "half"', "7:12", "sparsity: 'half' is not a number", "50%"),
    ("sparsity = 0.5", "sparsity = 1.5", "7:12", "outside 0 to 1", "%"),
    ("sparsity = 0.5", "sparsity = [0.5]", "7:12", "takes one value", "brackets"),
    ("sparsity = 0.5", "sparsity = true", "7:12", "takes a value", "sparsity = ..."),
    ("sparsity = 0.5", "sparsity = {a = 1}", "7:12", "not a text, a number", "command line"),
    ("sparsity = 0.5", "sparsity = 1979-05-27", "7:12", "not a text, a number", "command line"),
    ("sparsity = 0.5", "sparsity = 50%", "7:14", "not valid TOML", "quoted"),
    ("sparsity = 0.5", "sparsity = 0.5\nthreshold = 0.1", "8:13", "magnitude", ""),
    ("sparsity = 0.5", 'sparsity = 0.5\npattern = "2x"', "8:11", "2x", ""),
    ("sparsity = 0.5", 'sparsity = 0.5\nscope = "glob"', "8:9", "'glob' is unknown", "choose from layer, row, global"),
    ("sparsity = 0.5", 'sparsity = 0.5\ncriterion = "taylr"', "8:13", "taylr", ""),
    ("sparsity = 0.5", 'sparsity = 0.5\nsteps = 2', "8:9", "--data and --steps are of training", "--finetune-epochs"),
    ("sparsity = 0.5", "", "4:1", "magnitude", ""),
    ("no-latency = true", 'no-latency = "yes"', "12:14", "is a switch", "no-latency = true"),
    ("no-latency = true", "latency-runs = 1", "12:16", "latency-runs: 1 is out of its range", "at least 2"),
    ("no-latency = true", 'format = "json"', "12:1", "format is of the whole run", "before the first table"),
    ("no-latency = true", "verbose = true", "12:1", "evaluate has no option 'verbose'", ""),
    ("no-latency = true", "print-recipe = true", "12:1", "has no option 'print-recipe'", ""),
    ('"accuracy.drop>90%"', '"acuracy.drop>90%"', "15:3", "no figure named acuracy.drop", "accuracy.drop"),
    ('"accuracy<0.5"', '"accuracy<"', "14:3", "not NAME OP NUMBER", "accuracy.drop>1%"),
    ('"accuracy<0.5"', "0.5", "14:3", "not NAME OP NUMBER", "accuracy.drop>1%"),
    ('command = "magnitude"', 'command = "magnitud"', "6:11", "no such command: magnitud", "did you mean magnitude"),
    ('command = "magnitude"', 'command = "run"', "6:11", "cannot run recipes", "steps"),
    ('command = "magnitude"', "", "4:1", "a step without a command", "command ="),
    ('name = "zeros"', 'name = "previous"', "5:8", "cannot be a step's name", "previous"),
    ('name = "zeros"', 'name = "../x"', "5:8", "cannot be a step's name", "letters"),
    ('"original"', '"zeroes"', "10:12", "there is no file zeroes", "did you mean zeros"),
    ('"original"', '"evaluate"', "10:12", "the step evaluate runs no earlier", "./evaluate"),
    ("sparsity = 0.5", "dry-run = true\nsparsity = 0.5", "9:1", "", ""),
    ('data = "test"', 'data = "tset"', "11:8", "there is no tset", "did you mean test"),
    ('data = "test"', 'data = "gone.py:load"', "11:8", "there is no gone.py", "relative"),
    ("digits-test.npz", "gone.npz", "3:8", "gone.npz", "relative"),
    ("digits-mlp.onnx", "gone.onnx", "1:9", "gone.onnx", "relative"),
    ("[data]\ntest = ", "[data]\ntest = 3 #", "3:8", "names data", ""),
    ("[data]", "[dta]", "2:1", "a recipe has no 'dta'", "did you mean data"),
    ("model = ", "sparsity = 1\nmodel = ", "1:1", "a recipe has no 'sparsity'", "[[step]]"),
    ("[data]", "format = 'xml'\n[data]", "2:10", "'xml' is unknown", "choose from table"),
    ("[data]", "report = 'r.pdf'\n[data]", "2:10", "r.pdf", "end it in .json"),
    ("[data]", "[defaults]\nmomentum = 3\n[data]", "3:1", "no step here has an option 'momentum'", "evaluate, magnitude"),
    ("[data]", "[defaults]\nsed = 3\n[data]", "3:1", "no step here has an option 'sed'", "did you mean seed"),
    ("sparsity = 0.5", 'sparsity = 0.5\noutput = "no/x.onnx"', "8:10", "there is no folder no", "make it"),
    ("sparsity = 0.5", 'sparsity = 0.5\noutput = "r.toml"', "8:10", "r.toml exists", "force = true"),
    ("[data]", "[[data]]", "2:1", "data is a table", "[data]"),
    ("[[step]]", "[step]", "8:", "not valid TOML", ""),
    ('"accuracy.drop>90%"', '"acuracy.drop>90%"', "15:3", "no figure named acuracy.drop", "accuracy.drop"),
]  # fmt: skip


def test_a_byte_order_mark_is_no_mistake(folder: Path, prune: Prune) -> None:
    Path("r.toml").write_text(GOOD, encoding="utf-8-sig")
    assert prune("run", "r.toml", "--dry-run").code == 0


@pytest.mark.parametrize(("old", "new", "place", "error", "hint"), MISTAKES, ids=[m[1][:40] for m in MISTAKES])
def test_a_mistake_is_named_with_its_place_and_nothing_runs(
    old: str, new: str, place: str, error: str, hint: str, folder: Path, prune: Prune
) -> None:
    assert GOOD.count(old) >= 1
    write(GOOD.replace(old, new, 1))
    if new.startswith("dry-run"):  # the first step then writes nothing that evaluate could work on
        write(Path("r.toml").read_text().replace(f'model = "{MODEL}"\n', "").replace('baseline = "original"\n', ""))
        place, error = "3:1", "zeros (magnitude) has no model"
    done = prune("run", "r.toml", "--no-progress")
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    assert first.startswith(f"error: r.toml:{place}")
    assert error in first
    assert hint in second
    assert list(folder.iterdir()) == [folder / "r.toml"]


# a whole recipe -> line:column, a piece of the error
WHOLE = [
    ("", "", "has no steps"),
    ("data = 3\n[[step]]\ncommand='inspect'", "1:1", "data is a table"),
    (f"model='{MODEL}'\n[[step]]\ncommand='inspect'\nname='a'\n[[step]]\ncommand='inspect'\nname='a'", "7:6", "two steps are called a"),
    ("step = 3", "1:1", "steps are a list"),
    ('[step]\ncommand = "inspect"', "1:1", "steps are a list"),
    ("[[step]]\ncommand = 'inspect'\n" * 101, "201:1", "more than 100 steps"),
    ("model = 3\n[[step]]\ncommand='inspect'", "1:9", "not a path"),
    ("[[step]]\ncommand='inspect'", "1:1", "inspect has no model"),
    ("[[step]]\ncommand='inspect'\nmodel='original'", "3:7", "the recipe names no model"),
    ("[[step]]\ncommand='inspect'\nmodel='previous'", "3:7", "no step before this one writes a model"),
    (f"model='{MODEL}'\n[[step]]\ncommand='inspect'\n[[step]]\ncommand='inspect'\nmodel='inspect'", "6:7", "writes no model"),
    (f"model='{MODEL}'\n[[step]]\ncommand='compare'\na='original'", "2:1", "compare needs b"),
    (f"model='{MODEL}'\n[[step]]\ncommand='magnitude'\nsparsity=0.5\n[[step]]\ncommand='magnitude'\nsparsity=0.6", "5:1", "would be lost"),
    (f"model='{MODEL}'\n[[step]]\ncommand='structured'\nmacs=0.5\ncriterion='l3'", "5:11", "--criterion 'l3' is unknown"),
    (f"model='{MODEL}'\n[[step]]\ncommand='structured'\nmacs=0.5\ngranularity='chanel'", "5:13", "chanel"),
    (f"model='{MODEL}'\n[[step]]\ncommand='structured'\nmacs=0.5\nparams=0.5", "4:6", "give only one of"),
    (f"model='{MODEL}'\n[[step]]\ncommand='magnitude'\nsparsity=0.5\noutput='a.onnx'\n[[step]]\ncommand='magnitude'\nsparsity=0.6\noutput='./a.onnx'", "9:8", "writes a.onnx too"),
    (f"model='{MODEL}'\n[[step]]\ncommand='magnitude'\nsparsity=0.5\noutput='a.onnx'\nreport='r.json'\n[[step]]\ncommand='inspect'\nmodel='magnitude'\nreport='./r.json'", "10:8", "the step magnitude writes r.json too"),
    (f"model='{MODEL}'\n[[step]]\ncommand='magnitude'\nsparsity=0.5\noutput='r.toml'\nforce=true", "5:8", "is what the recipe reads"),
    (f"model='{MODEL}'\n[data]\nd='r.toml'\n[[step]]\ncommand='sensitivity'\ndata='d'\nstate='s'\n[[step]]\ncommand='magnitude'\nsparsity=0.5\noutput='s'", "11:8", "the step sensitivity writes s too"),
    (f"model='{MODEL}'\n[[step]]\ncommand='finetune'", "2:1", "training needs data"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "error"), WHOLE, ids=[error for _, _, error in WHOLE])
def test_whole_recipes_that_are_refused(text: str, place: str, error: str, folder: Path, prune: Prune) -> None:
    write(text)
    done = prune("run", "r.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: r.toml:{place}" if place else "error: r.toml")
    assert error in done.err.splitlines()[0]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"run"}))
def test_every_command_can_be_checked_without_its_files(name: str, folder: Path) -> None:
    """Some minimal command line of every command gets as far as where its work begins, its files not there."""
    tries = [
        [],
        ["sparsity=0.5"],
        ["macs=0.5"],
        ["data=x.npz"],
        ["data=x.npz", "sparsity=0.5"],
        ["data=x.npz", "max-drop=1%"],
    ]
    arguments = [f"{slot.key}.onnx" for slot in schema_of(name).values() if slot.argument]
    reached = []
    for words in tries:
        if all(word.split("=")[0] in schema_of(name) for word in words):
            command = command_named(name)
            with checking():
                try:
                    context = command.make_context(name, ["--isolated", *(f"--{word}" for word in words), *arguments])
                    command.invoke(context)
                except WorkBegins:
                    reached.append(words)
                except prunecli.errors.PruneError:
                    pass
    assert reached, f"{name} opens its model before it calls progress_for"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_key_of_its_own(name: str) -> None:
    params = [p for p in command_named(name).params if p.param_type_name == "option"]
    schema = schema_of(name)
    assert not {"command", "name"} & set(schema)
    assert len({slot.name for slot in schema.values()}) == len(schema)
    assert all(f"--{key}" in {o for p in params for o in p.opts} for key, slot in schema.items() if not slot.argument)
    for declared in declared_of(COMMANDS[name].options_class):
        # what looks like a path is one, so that recipes know what it is relative to
        assert declared.metavar not in ("PATH", "DIR", "FILE") or declared.kind is Path


def test_a_dry_run_shows_the_plan_and_opens_nothing(folder: Path, prune: Prune) -> None:
    Path("m.onnx").write_text("not a model")
    Path("load.py").write_text("raise SystemExit('ran')\n")
    write(GOOD.replace(str(MODEL), "m.onnx").replace(f'"{DATA}"', '"load.py:batches"'))
    done = prune("run", "r.toml", "--dry-run", "--format", "json")
    assert (done.code, done.err) == (0, "")
    steps = done.json["steps"]
    assert [(s["name"], s["command"], s["line"], s["status"], s["writes"]) for s in steps] == [
        ("zeros", "magnitude", 4, "planned", "temporary"),
        ("evaluate", "evaluate", 8, "planned", None),
    ]
    assert steps[0]["options"]["sparsity"] == {"value": "0.5", "from": "r.toml:7:12"}
    assert (done.json["passed"], done.json["dry_run"]) == (None, True)
    table = prune("run", "r.toml", "--dry-run").out
    assert "Plan of r.toml" in table and "zeros (magnitude)" in table and "Nothing was run" in table
    assert {p.name for p in folder.iterdir()} == {"m.onnx", "load.py", "r.toml"}


def test_steps_run_and_one_report_tells_of_all(folder: Path, prune: Prune) -> None:
    write(GOOD)
    done = prune("run", "r.toml", "--format", "json", "--report", "r.html")
    assert done.code == 0
    assert done.err.splitlines() == [
        "note: step 1 of 2: zeros (magnitude)",
        "note: step 2 of 2: evaluate",
    ]
    assert done.json["schema"] == "prunecli/1" and done.json["command"] == "run" and done.json["passed"] is True
    assert [step["result"]["command"] for step in done.json["steps"]] == ["magnitude", "evaluate"]
    assert done.json["steps"][0]["result"]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert [(g["step"], g["passed"], g["from"]) for g in done.json["gates"]] == [
        ("evaluate", True, "r.toml:14:3"), ("evaluate", True, "r.toml:15:3")]  # fmt: skip
    page = Path("r.html").read_text()
    assert "zeros: Size" in page and "evaluate: Quality" in page and "Step zeros (magnitude)" in page
    assert "zeros: What was zeroed: |w| in each weight" in page  # what only a report with charts makes steps measure
    assert {p.name for p in folder.iterdir()} == {"r.toml", "r.html"}  # the model was temporary


def test_a_failed_gate_is_named_with_its_line_and_ends_the_run(folder: Path, prune: Prune) -> None:
    write(GOOD.replace("accuracy<0.5", "accuracy<0.999") + '[[step]]\ncommand = "inspect"\n')
    done = prune("run", "r.toml", "--format", "json", "--report", "r.md")
    assert done.code == 1
    error, hint = done.err.splitlines()[-2:]
    assert re.fullmatch(r"error: r\.toml:14:3: evaluate: gate failed: accuracy<0\.999 \(it is 0\.\d+\)", error)
    assert hint.startswith("hint: ")
    assert [step["status"] for step in done.json["steps"]] == ["done", "failed", "not run"]
    assert [gate["passed"] for gate in done.json["gates"]] == [False, True]
    assert done.json["passed"] is False
    assert "r.toml:14:3" in Path("r.md").read_text()


def test_a_step_that_refuses_leaves_the_report_of_what_was_done(folder: Path, prune: Prune) -> None:
    write(GOOD.replace("no-latency = true", 'no-latency = true\noutput-name = "nothing"'))
    done = prune("run", "r.toml", "--format", "json")
    assert done.code == 2
    assert "error: r.toml:13:15: evaluate:" in done.err or "error: r.toml:8:1: evaluate:" in done.err
    assert [step["status"] for step in done.json["steps"]] == ["done", "failed"]
    assert "nothing" in done.json["steps"][1]["error"]


def test_outputs_references_and_paths(folder: Path, prune: Prune) -> None:
    """Named outputs stay, beside the recipe; a later step refers to any earlier one, by name or by path."""
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "m.onnx").write_bytes(MODEL.read_bytes())
    write(
        """model = "../m.onnx"
[[step]]
name = "a"
command = "magnitude"
sparsity = 0.5
output = "a.onnx"
[[step]]
name = "b"
command = "magnitude"
sparsity = 0.9
model = "original"
[[step]]
command = "compare"
a = "a.onnx"
b = "a"
fail-if = "max_abs>0"
[[step]]
command = "compare"
a = "previous"
b = "b"
fail-if = "max_abs>0"
report = "same.json"
[[step]]
command = "compare"
a = "../m.onnx"
b = "original"
fail-if = "max_abs>0"
[[step]]
name = "last"
command = "magnitude"
model = "a"
sparsity = 0.6
""",
        "sub/deep/r.toml",
    )
    done = prune("run", "sub/deep/r.toml", "--format", "json")
    assert done.code == 0, done.err
    assert [step["name"] for step in done.json["steps"]] == ["a", "b", "compare", "compare-2", "compare-3", "last"]
    assert [step["writes"] for step in done.json["steps"]] == [
        "sub/deep/a.onnx", "temporary", None, None, None, "beside the model"]  # fmt: skip
    kept = {p.name for p in (folder / "sub" / "deep").iterdir()}
    assert kept == {"a.onnx", "same.json", "a.pruned.onnx", "r.toml"}
    assert json.loads((folder / "sub/deep/same.json").read_text())["command"] == "compare"
    onnx.checker.check_model(str(folder / "sub/deep/a.onnx"))


def test_outputs_of_different_kinds_are_told_apart(folder: Path, prune: Prune) -> None:
    """The model that evaluate works on really is what the step before wrote."""
    write(GOOD.replace("sparsity = 0.5", "sparsity = 0.98"))
    done = prune("run", "r.toml", "--format", "json")
    figures = {model["role"]: model for model in done.json["steps"][1]["result"]["models"]}
    assert figures["baseline"]["sparsity"] < 0.1 < 0.9 < figures["model"]["sparsity"]


# --set -> exit code, a piece of stderr
SETS = [
    ("zeros.sparsity=0.3", 0, ""),
    ("sparsity=30%", 0, ""),
    ("evaluate.fail-if=accuracy<0.999", 1, "--set evaluate.fail-if: evaluate: gate failed: accuracy<0.999"),
    ('evaluate.fail-if=["accuracy<0.1", "f1<0.1"]', 0, ""),
    ("evaluate.fail-if=false", 0, ""),
    (f"model={SAMPLES / 'digits-cnn.onnx'}", 0, ""),
    ("model=gone.onnx", 2, "--set model: model: there is no file gone.onnx"),
    ("zeros.sparsty=0.3", 2, "--set zeros.sparsty: magnitude has no option 'sparsty'"),
    ("zero.sparsity=0.3", 2, "--set zero.sparsity: no step is called zero"),
    ("freeze=w", 2, "--set freeze: no step has an option 'freeze'"),
    ("epochs=3", 0, ""),
    ("zeros.epochs=3", 2, "--epochs is of training, which was not asked for"),
    ("zeros.sparsity=x", 2, "--set zeros.sparsity: sparsity: 'x' is not a number"),
    ("sparsity", 2, "--set 'sparsity' is not [STEP.]OPTION=VALUE"),
]


@pytest.mark.parametrize(("text", "code", "error"), SETS, ids=[text[:30] for text, _, _ in SETS])
def test_the_command_line_wins_over_the_recipe(text: str, code: int, error: str, folder: Path, prune: Prune) -> None:
    write(GOOD)
    done = prune("run", "r.toml", "--set", text, "--format", "json")
    assert done.code == code, done.err
    assert error in done.err
    if "sparsity=" in text and code == 0:
        assert done.json["steps"][0]["result"]["sparsity"] == pytest.approx(0.3, abs=1e-3)


def test_defaults_of_the_recipe_reach_the_steps_that_have_them(folder: Path, prune: Prune) -> None:
    write(
        GOOD.replace("[data]", "[defaults]\nseed = 7\naverage = 'macro'\n[data]").replace("name =", "seed = 8\nname =")
    )
    steps = prune("run", "r.toml", "--dry-run", "--format", "json").json["steps"]
    assert [step["options"]["seed"]["value"] for step in steps] == ["8", "7"]
    assert "average" not in steps[0]["options"] and steps[1]["options"]["average"]["value"] == "macro"


def test_false_leaves_a_default_out(folder: Path, prune: Prune) -> None:
    write(
        GOOD.replace("[data]", "[defaults]\nlimit = 5\n[data]")
        .replace("no-latency = true", "no-latency = true\nlimit = false")
        .replace("sparsity", "limit = false\nsparsity")
    )
    steps = prune("run", "r.toml", "--dry-run", "--format", "json").json["steps"]
    assert all("limit" not in step["options"] for step in steps)


def test_the_report_can_be_named_in_the_recipe_and_the_command_line_wins(folder: Path, prune: Prune) -> None:
    write('report = "own.json"\nformat = "json"\nno-progress = true\n' + GOOD)
    assert prune("run", "r.toml").json["passed"] is True
    assert json.loads(Path("own.json").read_text())["passed"] is True
    assert prune("run", "r.toml", "--format", "markdown", "--report", "other.md").out.startswith("## Recipe r.toml")
    assert Path("other.md").exists()


def test_data_that_is_code_runs_only_when_the_recipe_runs(folder: Path, prune: Prune) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "load_it.py").write_text(
        "import numpy as np, pathlib\npathlib.Path('ran').touch()\n"
        "def batches():\n    yield {'image': np.zeros((4, 1, 8, 8), np.float32)}, np.zeros(4, np.int64)\n"
    )
    write(GOOD.replace(f'"{DATA}"', '"load_it.py:batches"').replace("accuracy<0.5", "params<1"), "sub/r.toml")
    assert prune("run", "sub/r.toml", "--dry-run").code == 0
    assert not Path("ran").exists()
    assert prune("run", "sub/r.toml").code == 0
    assert Path("ran").exists()


def test_the_library_function(folder: Path) -> None:
    path = write(GOOD)
    assert [step.status for step in prunecli.run(path, dry_run=True).steps] == ["planned", "planned"]
    result = prunecli.run(path, changes={"zeros.sparsity": 0.25})
    assert result.passed
    assert result.to_json()["steps"][0]["result"]["sparsity"] == pytest.approx(0.25, abs=1e-3)
    other = prunecli.run(
        path, changes={"zeros.sparsity": np.float64(0.25), "model": path.parent / MODEL}, isolated=True
    )
    assert other.to_json()["steps"][0]["result"]["sparsity"] == result.to_json()["steps"][0]["result"]["sparsity"]
    with pytest.raises(prunecli.errors.PruneError, match=r"--set zeros\.sparsity: sparsity: not a text"):
        prunecli.run(path, changes={"zeros.sparsity": {}})
    with pytest.raises(StepGateFailed) as failed:
        prunecli.run(path, changes={"evaluate.fail-if": ["accuracy<0.999"]})
    assert failed.value.exit_code == 1
    assert [step.status for step in failed.value.result.steps] == ["done", "failed"]
    with pytest.raises(StepFailed) as refused:
        prunecli.run(path, changes={"evaluate.output-name": "nothing"})
    assert refused.value.exit_code == 2


def test_nothing_temporary_is_left_behind(folder: Path, prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    scratch = folder / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    write(GOOD)
    assert prune("run", "r.toml").code == 0
    assert prune("run", "r.toml", "--set", "evaluate.output-name=x").code == 2
    assert list(scratch.iterdir()) == []


@dataclass(frozen=True, kw_only=True)
class SqueezeOptions(Written, Reporting):
    """Copy."""

    by: Annotated[float, Option("how much", metavar="F", least=0, most=1)] = 0.5
    table: Annotated[Path | None, Option("where", metavar="PATH")] = None
    data: Annotated[str | None, Option("data", metavar="D")] = None
    drop: Annotated[float, Option("a number, not data", metavar="D", read=float)] = 0.0
    names: Annotated[str, Option("a word or a file", metavar="sorted|FILE")] = "sorted"
    format: Annotated[tuple[str, ...], Option("of its own, repeatable")] = ()  # type: ignore[assignment]


class Squeezed(NamedTuple):
    """What the made-up command returns."""

    def to_json(self) -> dict[str, Any]:
        return {"models": []}

    def to_document(self) -> Document:
        return Document("squeezed", [])


def squeeze(model: Path, options: SqueezeOptions, progress: Any) -> Squeezed:
    assert options.output is not None and options.table is not None
    options.output.write_bytes(model.read_bytes())
    options.table.write_text(f"{options.by} {options.data} {options.drop} {options.names} {list(options.format)}")
    return Squeezed()


def test_a_command_that_is_added_is_known_to_recipes_at_once(
    folder: Path, prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("prunecli.squeezing.options")
    module.SqueezeOptions = SqueezeOptions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prunecli.squeezing.options", module)
    monkeypatch.setitem(COMMANDS, "squeeze", Entry("a test", "squeezing:SqueezeOptions"))
    monkeypatch.setattr(prunecli, "squeeze", squeeze, raising=False)
    (folder / "sub").mkdir()
    steps = '[[step]]\ncommand = "squeeze"\nby = 0.25\ntable = "t.txt"\ndata = "test"\n'
    steps += 'drop = 1\nformat = ["x"]\n[[step]]\ncommand = "evaluate"\n'
    write(GOOD[: GOOD.index("[[step]]")] + steps + "no-latency = true\n", "sub/r.toml")
    assert prune("run", "sub/r.toml").code == 0
    assert Path("sub/t.txt").read_text() == f"0.25 {DATA} 1.0 sorted ['x']"
    assert prune("run", "sub/r.toml", "--set", "squeeze.names=n.txt").code == 0
    assert Path("sub/t.txt").read_text().split()[3] == "n.txt"  # given here, so relative to here
    write(Path("sub/r.toml").read_text().replace("drop = 1", "drop = 1\nnames = 'n.txt'"), "sub/r.toml")
    assert prune("run", "sub/r.toml").code == 0
    assert Path("sub/t.txt").read_text().split()[3] == "sub/n.txt"
    write(Path("sub/r.toml").read_text().replace("by = 0.25", "by = 2"), "sub/r.toml")
    assert prune("run", "sub/r.toml").err.startswith("error: sub/r.toml:6:6: by: 2 is out of its range")
    out = prune("squeeze", MODEL, "--by", "0.5", "--table", "x.txt", "--print-recipe").out
    assert "by = 0.5" in out and 'table = "x.txt"' in out


def test_ctrl_c_ends_with_130_and_the_report_of_what_was_done(
    folder: Path, prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunecli.evaluation.evaluate.evaluate", stop)
    write(GOOD)
    done = prune("run", "r.toml", "--format", "json")
    assert done.code == 130
    assert [step["status"] for step in done.json["steps"]] == ["done", "failed"]
    assert "error: r.toml:8:1: evaluate: interrupted" in done.err


WORKED = sorted((SAMPLES / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", WORKED, ids=[path.stem for path in WORKED])
def test_the_documentation_shows_the_worked_recipes(recipe: Path) -> None:
    assert f"```toml\n{recipe.read_text().rstrip()}\n```" in (ROOT / "docs" / "recipes.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", WORKED, ids=[path.stem for path in WORKED])
def test_the_worked_recipes_keep_what_they_promise(recipe: Path, folder: Path, prune: Prune) -> None:
    (folder / "recipes").mkdir()
    for path in SAMPLES.glob("digits-*"):
        (folder / path.name).symlink_to(path)
    copy = write(recipe.read_text(), f"recipes/{recipe.name}")
    done = prune("run", copy, "--format", "json", "--no-progress")
    assert done.code == 0, done.err
    assert done.json["gates"] and all(gate["passed"] for gate in done.json["gates"])
    evaluation = done.json["steps"][-1]["result"]["models"][0]
    if recipe.stem == "half-macs":
        assert evaluation["macs"] <= 0.5 * 1_512_000 and (folder / "recipes" / "half.pruned.onnx").exists()
    if recipe.stem == "tensorrt-2-4":
        assert evaluation["sparsity"] > 0.45 and (folder / "recipes" / "digits-2-4.pruned.onnx").exists()
    if recipe.stem == "ci-gate":
        assert [path.name for path in (folder / "recipes").iterdir()] == [recipe.name]
        gates = "evaluate.fail-if=accuracy.drop>-50%"
        assert prune("run", copy, "--set", gates, "--set", "small.finetune-epochs=1", "--no-progress").code == 1


def test_there_are_three_worked_recipes() -> None:
    assert len(WORKED) == 3
