"""`--data synthetic`: where it works, what it says, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import SAMPLES, Prune

CNN, MLP, CALIB = (SAMPLES / name for name in ("digits-cnn.onnx", "digits-mlp.onnx", "digits-calib.npz"))


MADE = [
    # command, model, what the report says of the inputs
    ("oneshot", MLP, "follow no statistics"),
    ("gradient", CNN, "fitted to the statistics of 6 BatchNormalizations"),
]


@pytest.mark.parametrize(("command", "model", "told"), MADE)
def test_a_model_is_pruned_without_data(command: str, model: Path, told: str, prune: Prune, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    asked = (command, model, "--data", "synthetic", "--sparsity", "0.5", "--limit", "24", "-o", out, "--format", "json")
    done = prune(*asked, "--no-progress")
    assert done.code == 0, done.err
    found = done.json
    assert found["recipe"]["data"] == "synthetic" and found["recipe"]["samples"] == 24
    assert found["recipe"]["data_notes"] == found["notes"][-2:]
    assert any("synthetic, not real" in note for note in found["notes"])
    assert any(told in note for note in found["notes"])
    assert found["verification"]["kind"] == "exact" and out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("asked", [(), ("--criterion", "taylor"), ("--criterion", "l2-in")])
def test_structures_are_cut_without_data(asked: tuple[str, ...], prune: Prune, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = prune("structured", CNN, "--macs", "0.7", "--data", "synthetic", "--limit", "24", "-o", out, *asked,
                 "--format", "json", "--no-timing")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["recipe"]["data"] == "synthetic" and out.exists()
    assert any("synthetic, not real" in note for note in done.json["notes"])
    assert any("fitted to the statistics" in note for note in done.json["notes"])


@pytest.mark.parametrize(("model", "criterion"), [(CNN, "obs"), (MLP, "l2-in")])
def test_the_criterion_follows_what_the_inputs_were_fitted_to(model: Path, criterion: str, prune: Prune) -> None:
    done = prune("structured", model, "--macs", "0.7", "--data", "synthetic", "--limit", "24", "--dry-run", "--format",
                 "json", "--no-timing")  # fmt: skip
    assert done.code == 0 and done.json["recipe"]["criterion"] == criterion, done.err


REFUSED = [
    ("evaluate {model} --data synthetic", "real data"),
    ("structured {model} --ratio 0.3 --data synthetic --finetune-epochs 1", "training needs real data"),
    ("finetune {model} --data synthetic --epochs 1", "real data"),
    ("oneshot {model} --sparsity 0.5 --data synthetic --label-column y", "--label-column"),
    ("oneshot {model} --sparsity 0.5 --data synthetic --labels {calib}", "--labels"),
    ("oneshot {model} --sparsity 0.5 --data synthetic --finetune-epochs 1", "training needs real data"),
    ("gradient {model} --sparsity 0.5 --data synthetic --loss labels", "no labels"),
]


@pytest.mark.parametrize(("line", "error"), REFUSED)
def test_refusals(line: str, error: str, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = prune(*line.format(model=CNN, calib=CALIB).split())
    lines = done.err.splitlines()
    assert done.code == 2 and error in lines[0] and lines[1].startswith("hint: "), done.err
    assert not list(tmp_path.iterdir())


def test_recipes_take_the_word(prune: Prune, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'model = "{CNN}"\n[[step]]\ncommand = "oneshot"\nsparsity = 0.5\ndata = "synthetic"\nlimit = 9\n'
    )
    done = prune("run", recipe, "--dry-run")
    assert done.code == 0, done.err
