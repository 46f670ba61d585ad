"""`[tool.prune]` in pyproject.toml: which applies where, who wins, what is refused, and where a value is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import SAMPLES, Prune

MODEL = SAMPLES / "digits-mlp.onnx"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    return tmp_path


def project(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)


ZEROS = ["magnitude", MODEL, "--dry-run", "--format", "json"]

# pyproject.toml, more of the command line -> the sparsity reached
APPLIES = [
    ("[tool.prune]\nsparsity = 0.25", [], 0.25),
    ("[tool.prune]\nsparsity = '25%'", [], 0.25),
    ("[tool.prune.magnitude]\nsparsity = 0.25", [], 0.25),
    ("[tool.prune]\nsparsity = 0.75\n[tool.prune.magnitude]\nsparsity = 0.25", [], 0.25),
    ("[tool.prune]\nsparsity = 0.75", ["--sparsity", "0.25"], 0.25),
    ("[tool.prune]\nsparsity = 0.75\n[tool.prune.magnitude]\nsparsity = false", ["--sparsity", "0.25"], 0.25),
    ("[tool.prune.gradient]\nsparsity = 0.75", ["--sparsity", "0.25"], 0.25),
    ("[tool.prune]\nepochs = 3\nlatency-runs = 9", ["--sparsity", "0.25"], 0.25),
    ("[tool.prune]\nepochs = 3\nlr = 0.1\nseed = 5", ["--sparsity", "0.25"], 0.25),
    ("[tool.prune]\nthreshold = 0.1\n[tool.prune.magnitude]\nthreshold = false\nsparsity = 0.25", [], 0.25),
    ("[tool.other]\nprune = 1", ["--sparsity", "0.25"], 0.25),
    ("not TOML, but it does not speak of the tool either", ["--sparsity", "0.25"], 0.25),
]


@pytest.mark.parametrize(("text", "words", "sparsity"), APPLIES, ids=range(len(APPLIES)))
def test_which_apply(text: str, words: list[str], sparsity: float, folder: Path, prune: Prune) -> None:
    project(folder, text)
    done = prune(*ZEROS, *words)
    assert done.code == 0, done.err
    assert done.json["sparsity"] == pytest.approx(sparsity, abs=1e-4)


def test_switches_lists_and_choices(folder: Path, prune: Prune) -> None:
    project(
        folder, '[tool.prune]\ndry-run = true\nexclude = ["*"]\nformat = "json"\n[tool.prune.magnitude]\nexclude = []\n'
    )
    done = prune("magnitude", MODEL, "--sparsity", "0.5")
    assert done.code == 0, done.err
    assert done.json["output"] is None
    project(folder, "[tool.prune]\nexclude = '*'")
    assert prune(*ZEROS, "--sparsity", "0.5").code == 2


def test_paths_are_relative_to_the_file(folder: Path, prune: Prune) -> None:
    project(folder, "[tool.prune]\nreport = 'r.json'\n")
    assert prune("inspect", MODEL).code == 0
    assert json.loads((folder / "r.json").read_text())["command"] == "inspect"


def test_the_nearest_file_counts_alone(folder: Path, prune: Prune) -> None:
    project(folder, "[tool.prune]\nformat = 'json'\nreport = 'r.json'")
    project(folder / "sub", "[tool.prune]\nformat = 'markdown'\n")
    assert prune("inspect", MODEL).out.startswith("## ")
    assert not (folder / "r.json").exists()


@pytest.mark.parametrize("words", [["-v", "inspect", MODEL], ["inspect", MODEL, "-v"]])
def test_verbose_says_where_a_value_is_from(words: list[object], folder: Path, prune: Prune) -> None:
    project(
        folder, "[tool.prune]\nformat = 'json'\nseed = 3\n\n[tool.prune.inspect]\nhistogram = true\ndim = ['batch=1']\n"
    )
    done = prune(*words)
    assert done.err.splitlines() == [
        "note: format = json (from ../pyproject.toml:2:10)",
        "note: histogram = true (from ../pyproject.toml:6:13)",
        "note: dim = batch=1 (from ../pyproject.toml:7:7)",
    ]
    assert prune("inspect", MODEL).err == ""
    assert "format" not in prune(*words, "--format", "table").err


WRITES = [
    ("force = true", "note: force = true (from ../pyproject.toml:2:9)"),
    ("output = 'o.onnx'", "note: output = o.onnx (from ../pyproject.toml:2:10)"),
    ("report = 'r.json'", "note: report = r.json (from ../pyproject.toml:2:10)"),
    ("seed = 3", ""),
]


@pytest.mark.parametrize(("text", "told"), WRITES)
def test_what_is_written_by_a_file_above_is_said(text: str, told: str, folder: Path, prune: Prune) -> None:
    project(folder, f"[tool.prune]\n{text}\n")
    line = ("magnitude", MODEL, "--sparsity", "0.5", *([] if "output" in text else ["-o", "m.onnx"]))
    assert (done := prune(*line)).code == 0, done.err
    assert done.err.splitlines()[:1] == ([told] if told else [])
    assert prune("-q", *line, "--force").err == ""
    project(folder / "sub", f"[tool.prune]\n{text}\n")
    assert "pyproject" not in prune(*line, "--force").err


@pytest.mark.parametrize("words", [["--isolated", "inspect", MODEL], ["inspect", MODEL, "--isolated"]])
def test_isolated_ignores_the_file(words: list[object], folder: Path, prune: Prune) -> None:
    project(folder, "[tool.prune]\nformt = 'json'\n")
    assert prune("inspect", MODEL).code == 2
    done = prune(*words)
    assert (done.code, done.err) == (0, "")
    assert prune("inspect", MODEL).code == 2  # for that command line only


# pyproject.toml, command line -> line:column, a piece of the error, a piece of the hint
REFUSED = [
    ("[tool.prune]\nsparsty = 0.5", ZEROS, "2:1", "no command has an option 'sparsty'", "did you mean sparsity"),
    ("[tool.prune.magnitude]\nfreeze = ['w']", ZEROS, "2:1", "magnitude has no option 'freeze'", ""),
    ("[tool.prune.magnitud]\nseed = 5", ZEROS, "1:1", "no such command: magnitud", "did you mean magnitude"),
    ("[tool.prune]\nsparsity = 'half'", ZEROS, "2:12", "sparsity: 'half' is not a number", "--isolated"),
    ("[tool.prune]\nsparsity = [1]", ZEROS, "2:12", "takes one value", ""),
    ("[tool.prune]\nforce = 1", ZEROS, "2:9", "is a switch", "force = true"),
    ("[tool.prune]\nseed = {a = {}}", ZEROS, "2:1", "no such command: seed", ""),
    ("[tool.prune]\nverbose = true", ZEROS, "2:1", "no command has an option 'verbose'", ""),
    ("[tool.prune]\nmodel = 'm.onnx'", ZEROS, "2:9", "is an argument", "command line"),
    ("[tool.prune]\ndata = 'load.py:batches'", ZEROS, "2:8", "runs code", "command line"),
    ("[tool.prune.evaluate]\ndata = 'pack.age:batches'", ZEROS, "2:8", "runs code", "command line"),
    ("[tool.prune]\nmetric = 'own.py:f'", ZEROS, "2:10", "metric that runs code", "command line"),
    ("[tool.prune.adaptive]\nmetric = 'lower:pack.age:f'", ZEROS, "2:10", "metric that runs code", "command line"),
    ("[tool.prune]\nseed = 1\n[x", ZEROS, "3:3", "not valid TOML", ""),
]


@pytest.mark.parametrize(("text", "words", "place", "error", "hint"), REFUSED, ids=[r[3] for r in REFUSED])
def test_mistakes_are_named_with_their_place(
    text: str, words: list[str], place: str, error: str, hint: str, folder: Path, prune: Prune
) -> None:
    project(folder, text)
    done = prune(*words)
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    assert first.startswith(f"error: ../pyproject.toml:{place}: ")
    assert error in first
    assert hint in second


def test_a_default_that_does_not_go_with_the_command_line_is_named(folder: Path, prune: Prune) -> None:
    project(folder, "[tool.prune]\nseed = 1\nthreshold = 0.1\n")
    done = prune(*ZEROS, "--sparsity", "0.5")
    assert done.code == 2
    assert "--threshold and --sparsity" in done.err
    assert "a default is from ../pyproject.toml:3:13, and `prune --isolated` ignores that file" in done.err


def test_what_is_of_data_is_left_out_where_there_are_none(folder: Path, prune: Prune) -> None:
    project(folder, "[tool.prune]\nmean = '0.5'\naverage = 'macro'\nbatch-axis = ['x=0']\n")
    assert prune("evaluate", MODEL, "--no-latency").code == 0
    own = prune("evaluate", MODEL, "--no-latency", "--per-class")
    assert own.code == 2 and "--per-class was given without data" in own.err


def test_help_does_not_need_a_good_file(folder: Path, prune: Prune) -> None:
    project(folder, "[tool.prune]\nsparsty = 1")
    assert prune("--help").code == 0


def test_steps_of_a_recipe_take_the_defaults_beside_it(folder: Path, prune: Prune) -> None:
    """step > [defaults] > [tool.prune.COMMAND] > [tool.prune], of the recipe's folder; --set wins over all."""
    there = folder / "there"
    there.mkdir()
    project(folder / "sub", "[tool.prune]\nseed = 99\nlimit = 99\n")
    project(there, "[tool.prune]\nseed = 1\nlimit = 1\nthreads = 1\nbatch-size = 1\ndata = 'd.npz'\n"
                   "[tool.prune.evaluate]\nlimit = 2\nthreads = 2\nbatch-size = 2\n")  # fmt: skip
    (there / "d.npz").touch()
    (there / "r.toml").write_text(
        f"model = '{MODEL}'\n[defaults]\nthreads = 3\nbatch-size = 3\n[[step]]\ncommand = 'evaluate'\nbatch-size = 4\n"
    )
    options = prune("run", "../there/r.toml", "--dry-run", "--format", "json").json["steps"][0]["options"]
    assert {key: option["value"] for key, option in options.items()} == {
        "model": "original", "data": "d.npz", "seed": "1", "limit": "2", "threads": "3", "batch-size": "4",
    }  # fmt: skip
    assert options["limit"]["from"] == "../there/pyproject.toml:8:9"
    last = prune("run", "../there/r.toml", "--dry-run", "--format", "json", "--set", "batch-size=5").json
    assert last["steps"][0]["options"]["batch-size"] == {"value": "5", "from": "--set batch-size"}
    alone = prune("--isolated", "run", "../there/r.toml", "--dry-run", "--format", "json").json
    assert set(alone["steps"][0]["options"]) == {"model", "threads", "batch-size"}


def test_print_recipe_writes_the_defaults_out(folder: Path, prune: Prune) -> None:
    project(folder, "[tool.prune]\nseed = 3\ndata = 'd.npz'\nsave-plan = 'p.json'\nexclude = ['a', 'b']\n")
    out = prune("magnitude", MODEL, "--sparsity", "0.5", "--print-recipe").out
    assert 'data = "../d.npz"  # from ../pyproject.toml:3:8' in out
    assert "seed = 3  # from" in out and 'save-plan = "../p.json"' in out and 'exclude = ["a", "b"]  # from' in out


# text of a metric, what a recipe in /r makes of it
METRICS = [("accuracy", "accuracy"), ("own.py:f", "/r/own.py:f"), ("lower:own.py:f", "lower:/r/own.py:f"),
           ("lower:/a/own.py:f", "lower:/a/own.py:f"), ("sklearn.metrics:f1_score", "sklearn.metrics:f1_score")]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), METRICS)
def test_functions_are_beside_the_file_that_names_them(text: str, wanted: str) -> None:
    from prunecli.cli.commands import schema_of
    from prunecli.cli.settings import resolved

    for command in ("evaluate", "adaptive", "sensitivity"):
        assert resolved(text, schema_of(command)["metric"], Path("/r")) == wanted


def test_training_options_for_a_command_that_does_not_train_are_refused_where_they_are_for_it(
    folder: Path, prune: Prune
) -> None:
    project(folder, "[tool.prune.magnitude]\nepochs = 5")
    done = prune(*ZEROS, "--sparsity", "0.5")
    assert done.code == 2
    assert "--epochs is of training" in done.err
    assert "a default is from ../pyproject.toml:2:10" in done.err
