"""The command: exit codes, files, JSON, recipes, and the last step of other commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import prunecli
from prunecli.cli.app import run
from prunecli.model import load
from tests.dependency.net import Net
from tests.shrinking.nets import largest_difference, rows, saved
from tests.shrinking.test_units import dead, mlp
from tests.tiny import ROOT

DIGITS = ROOT / "sample_models"


@pytest.fixture
def surplus(tmp_path: Path) -> Path:
    net = mlp(Net())
    dead(net, [1, 2])
    return saved(net, tmp_path / "m.onnx")


def cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run([*words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_what_went_is_told(surplus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "shrink", str(surplus))
    assert code == 0 and "proved" in out and "always zero" in out
    assert (surplus.parent / "m.shrunk.onnx").is_file()
    code, _, err = cli(capsys, "shrink", str(surplus))
    assert code == 2 and "already exists" in err


def test_nothing_to_remove_is_no_error_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(mlp(Net()), tmp_path / "m.onnx")
    code, out, _ = cli(capsys, "shrink", str(path))
    assert code == 0 and "nothing to remove" in out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.onnx"]


def test_the_json(surplus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "shrink", str(surplus), "--format", "json", "--dry-run")
    found = json.loads(out)
    assert code == 0 and found["command"] == "shrink" and found["output"] is None and found["dry_run"]
    assert found["removed"]["units"] == [
        {"name": "W", "kind": "channel", "before": 8, "removed": 2, "reasons": {"zero": 2}}
    ]
    assert found["verification"]["kind"] == "exact" and found["verification"]["samples"] == 3
    assert [row["shape_after"] for row in found["layers"] if row["weight"] == "V"] == [[3, 6]]
    assert not (surplus.parent / "m.shrunk.onnx").exists()


# options, a piece of the message
WRONG = [
    (["--tolerance", "0"], "--tolerance is of the values on --data"),
    (["--tolerance", "-1", "--data", "d.npy"], "is out of its range"),
    (["--tokenizer", "t.json"], "--tokenizer is of a vocabulary that is cut"),
    (["--remap", "graph"], "--remap is of a vocabulary that is cut"),
    (["--vocabulary", "v.txt", "--remap", "tokenizer"], "--remap tokenizer has no tokenizer to rewrite"),
    (["--outputs", ","], "',' names no output"),
    (["--outputs", "nothing"], "the model has no output 'nothing'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_what_does_not_go_together(
    options: list[str], message: str, surplus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = cli(capsys, "shrink", str(surplus), *options)
    assert code == 2 and message in " ".join(err.split())


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = cli(capsys, "shrink", "--help")
    assert out.count("  prune shrink ") == 2


def test_a_recipe_can_shrink(surplus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(surplus.parent)
    Path("r.toml").write_text('model = "m.onnx"\n[[step]]\ncommand = "shrink"\noutput = "small.onnx"\n')
    assert "shrink" in json.dumps(prunecli.run("r.toml").to_json()) and Path("small.onnx").is_file()


def test_a_model_with_external_data_stays_in_two_files(surplus: Path) -> None:
    prunecli.shrink(surplus, output=surplus.with_name("a.onnx"), external_data="always")
    assert load(surplus.with_name("a.onnx")).ir.graph.initializers["V"].shape == [3, 6]


def test_pruning_shrinking_and_packing_at_once(tmp_path: Path) -> None:
    found = prunecli.magnitude(DIGITS / "digits-cnn.onnx", sparsity=0.8, pattern="row", shrink=True, pack=True,
                               output=tmp_path / "o.onnx")  # fmt: skip
    assert found.shrunk is not None and found.packed is not None and (tmp_path / "o.onnx").is_file()
    assert not found.shrunk.removed.nothing and found.shrunk.verification.kind == "exact"


def test_a_dry_run_of_the_last_step_writes_nothing(tmp_path: Path) -> None:
    found = prunecli.magnitude(DIGITS / "digits-cnn.onnx", sparsity=0.8, pattern="row", shrink=True, dry_run=True,
                               output=tmp_path / "o.onnx")  # fmt: skip
    assert found.output is None and found.dry_run and list(tmp_path.iterdir()) == []


def test_zeros_without_an_empty_unit_are_written_as_they_are(tmp_path: Path) -> None:
    found = prunecli.magnitude(DIGITS / "digits-cnn.onnx", sparsity=0.3, shrink=True, output=tmp_path / "o.onnx")
    assert found.shrunk is not None and found.shrunk.removed.nothing and found.output is not None
    assert (tmp_path / "o.onnx").is_file() and found.to_json()["shrunk"]["nothing"]


def test_training_ends_with_it(tmp_path: Path) -> None:
    net = mlp(Net(), width=16)
    dead(net, [3, 4])
    rows(net, "V", [3, 4, 9], axis=1)
    path = saved(net, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x0=x, labels=(x[:, 0] > 0).astype(np.int64))
    found = prunecli.finetune(path, data=tmp_path / "d.npz", epochs=1, shrink=True, keep_start="always",
                              output=tmp_path / "o.onnx")  # fmt: skip
    assert found.shrunk is not None and sum(row.removed for row in found.shrunk.removed.units) >= 2
    assert load(tmp_path / "o.onnx").ir.graph.initializers["V"].shape[1] <= 14


def test_one_shot_and_gradient_take_it(tmp_path: Path) -> None:
    net = mlp(Net(), width=16)
    path = saved(net, tmp_path / "m.onnx")
    np.save(tmp_path / "d.npy", np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32))
    for number, command in enumerate((prunecli.gradient, prunecli.oneshot)):
        place = tmp_path / f"{number}.onnx"
        found = command(path, data=tmp_path / "d.npy", sparsity=0.5, pattern="row", shrink=True, output=place)
        assert found.shrunk is not None and found.output is not None
        assert largest_difference(path, place, net.shapes) >= 0


def test_steps_after_one_that_had_nothing_to_remove_take_the_model_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(mlp(Net()), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    steps = '[[step]]\ncommand = "shrink"\n[[step]]\ncommand = "magnitude"\nsparsity = 0.5\noutput = "o.onnx"\n'
    Path("r.toml").write_text('model = "m.onnx"\n' + steps)
    prunecli.run("r.toml")
    assert Path("o.onnx").is_file()
