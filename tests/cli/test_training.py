"""`prune magnitude|structured --finetune-epochs`, and what `prune finetune` says of unusable data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import SAMPLES, Prune

CNN, MLP, TRAIN = SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-train.npz"


def arrays(count: int = 60) -> dict[str, Any]:
    with np.load(TRAIN) as file:
        return {name: file[name][:count] for name in ("image", "labels")}


@pytest.mark.parametrize(
    ("command", "amount"),
    [("magnitude", ("--sparsity", "80%")), ("gradient", ("--sparsity", "80%")), ("structured", ("--ratio", "0.4"))],
)
def test_pruning_and_training_in_one_command(
    command: str, amount: tuple[str, str], prune: Prune, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    options = (
        "--data",
        TRAIN,
        "--finetune-epochs",
        "1",
        "--steps",
        "2",
        "--lr",
        "0.02",
        "--optimizer",
        "sgd",
        "--augment",
        "shift",
    )
    done = prune(command, MLP, *amount, *options, "-o", out, "--format", "json")
    assert done.code == 0, done.err
    told = done.json
    recipe = told["training"]["recipe"]
    assert told["command"] == command and len(told["training"]["steps"]) == 2 and out.exists()
    assert recipe["learning_rate"] == 0.02 and recipe["augment"] == ["shift"] and recipe["teacher"] == str(MLP)
    table = prune(command, MLP, *amount, *options, "-o", out, "--force").out
    assert "Training" in table and "What was cut stayed cut" in table and "proved" in table


REFUSED = [
    (("--lr", "0.1"), "--lr is of training", "add --finetune-epochs"),
    (("--teacher", "none"), "--teacher is of training", "add --finetune-epochs"),
    (("--train-data", TRAIN), "--train-data is of training", "add --finetune-epochs"),
    (("--finetune-epochs", "1"), "--finetune-epochs needs data", "--train-data"),
    (("--finetune-epochs", "1", "--data", TRAIN, "--lr", "0"), "is no positive number", "--lr"),
    (("--finetune-epochs", "1", "--data", TRAIN, "--augment", "spin"), "no augmentation 'spin'", "flip"),
    (("--finetune-epochs", "1", "--data", TRAIN, "--teacher", "gone.onnx"), "gone.onnx", ""),
]


@pytest.mark.parametrize(("options", "message", "hint"), REFUSED, ids=[" ".join(map(str, r[0])) for r in REFUSED])
@pytest.mark.parametrize("command", ["magnitude", "gradient", "structured"])
def test_refusals(
    command: str, options: tuple[Any, ...], message: str, hint: str, prune: Prune, tmp_path: Path
) -> None:
    amount = ("--ratio", "0.5") if command == "structured" else ("--sparsity", "0.5")
    done = prune(command, MLP, *amount, *options, "-o", tmp_path / "out.onnx")
    assert done.code == 2 and message in done.err and hint in done.err and done.out == ""
    assert not list(tmp_path.iterdir())


def test_steps_and_data_of_magnitude_are_of_training(prune: Prune) -> None:
    done = prune("magnitude", MLP, "--sparsity", "0.5", "--steps", "3")
    assert done.code == 2 and "--data and --steps are of training" in done.err


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("a class that is not", {"labels": np.full(60, 10)}, "the class 10, logits has 0 to 9"),
    ("a negative class", {"labels": np.full(60, -3)}, "the class -3, logits has 0 to 9"),
    ("too few labels", {"labels": np.zeros(50, np.int64)}, "50 labels for 60 samples"),
    ("fractions", {"labels": np.full(60, 1.5)}, "labels with fractions, of shape (54,)"),
    ("not a number", {"labels": np.full(60, np.nan)}, "NaN or infinite labels"),
    ("other width", {"labels": np.eye(7)[np.arange(60) % 7]}, "fit no output of the model"),
    ("no samples", {"image": np.zeros((0, 1, 8, 8)), "labels": np.zeros(0, np.int64)}, "holds no samples"),
    ("one sample", {"image": np.zeros((1, 1, 8, 8)), "labels": np.zeros(1, np.int64)}, "leaves 1 sample to train on"),
    ("inputs not numbers", {"image": np.full((60, 1, 8, 8), np.nan)}, "NaN"),
    ("other images", {"image": np.zeros((60, 3, 8, 8))}, "3"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_unusable_data(name: str, changes: dict[str, Any], message: str, prune: Prune, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **(arrays() | changes))
    done = prune("finetune", CNN, "--data", tmp_path / "bad.npz", "--epochs", "1", "-o", tmp_path / "out.onnx")
    assert done.code == 2 and message in done.err and "hint: " in done.err and done.err.count("\n") == 2
    assert not (tmp_path / "out.onnx").exists()


def test_an_output_that_is_not_there_is_answered_with_those_that_are(prune: Prune, tmp_path: Path) -> None:
    done = prune("finetune", CNN, "--data", TRAIN, "--output-name", "logit", "-o", tmp_path / "out.onnx")
    assert done.code == 2 and "no output named logit" in done.err and "hint: it has logits" in done.err


@pytest.mark.parametrize("rate", ["1e3", "1e6"])
@pytest.mark.parametrize("model", [CNN, MLP], ids=["cnn", "mlp"])
@pytest.mark.parametrize("clip", ["1", "0"])
def test_a_huge_learning_rate_stops_with_step_rate_and_hint(
    model: Path, rate: str, clip: str, prune: Prune, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    done = prune("finetune", model, "--data", TRAIN, "--epochs", "2", "--lr", rate, "--clip", clip, "-o", out)
    assert done.code == 2 and "training diverged at step" in done.err and f"(--lr {float(rate):g})" in done.err
    assert "hint: try --lr " in done.err and not out.exists()


def test_training_that_only_harms_exits_with_1(prune: Prune, tmp_path: Path) -> None:
    wrong = arrays(1000) | {"labels": (arrays(1000)["labels"] + 1) % 10}
    np.savez(tmp_path / "wrong.npz", **wrong)
    out = tmp_path / "out.onnx"
    options = ("--val-data", TRAIN, "--epochs", "2", "--optimizer", "adam", "--lr", "0.01")
    done = prune("finetune", MLP, "--data", tmp_path / "wrong.npz", *options, "-o", out)
    assert done.code == 1 and "training improved nothing" in done.err and "hint: try --lr" in done.err
    assert "no epoch improved" in done.out and not out.exists()
    out.write_bytes(b"mine")
    assert prune("finetune", MLP, "--data", tmp_path / "wrong.npz", *options, "-o", out, "--force").code == 1
    assert out.read_bytes() == b"mine"
