"""Folders of images on the command line, in every command that reads data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer

from prunecli.cli.app import COMMANDS, app
from tests.cli.conftest import SAMPLES, Prune
from tests.tiny import few

Images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
CNN = SAMPLES / "digits-cnn.onnx"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images as PNG files, in folders named by number; pixels 0 to 16 become 0 to 240."""
    root = tmp_path_factory.mktemp("digits")
    with np.load(SAMPLES / "digits-test.npz") as data:
        images, labels = data["image"], data["labels"]
    bytes_ = np.rint(images[:, 0] * 240).astype(np.uint8)
    for i, (image, label) in enumerate(zip(bytes_, labels, strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        Images.fromarray(image).save(root / str(label) / f"{i:04}.png")
    return root


def test_images_are_judged_as_the_arrays_they_came_from(digits: Path, prune: Prune) -> None:
    arrays = prune("evaluate", CNN, "--data", SAMPLES / "digits-test.npz", "--no-latency", "--format", "json").json
    found = prune("evaluate", CNN, "--data", digits, "--scale", "1/240", "--no-latency", "--per-class", "--format", "json",
                  "--fail-if", "top1<0.9", "--fail-if", "top5<0.9")  # fmt: skip
    assert found.code == 0, found.err
    assert found.json["models"][0]["metrics"] == pytest.approx(
        arrays["models"][0]["metrics"], rel=1e-5
    )  # float32 inputs
    assert [gate["passed"] for gate in found.json["gates"]] == [True, True]
    assert found.json["data"]["classes"] == [{"number": i, "name": str(i)} for i in range(10)]
    assert [row["class"] for row in found.json["models"][0]["per_class"]] == [str(i) for i in range(10)]


def test_top_gates_against_a_baseline(digits: Path, prune: Prune) -> None:
    done = prune("evaluate", CNN, "--baseline", CNN, "--data", digits, "--scale", "1/240", "--no-latency",
                 "--fail-if", "top1.drop>1%", "--fail-if", "top5.drop>1%", "--fail-if", "baseline.top1<0.99999")  # fmt: skip
    assert done.code == 1
    assert "1 of 3 gates failed: baseline.top1<0.99999" in done.err


def test_the_table_tells_preparation_and_classes(digits: Path, prune: Prune) -> None:
    out = prune("-v", "evaluate", CNN, "--data", digits, "--limit", "20", "--no-latency").out
    assert "Images: grey, (x * 0.003922 - 0) / 1." in out
    assert "Classes: 0 0, 1 1, 2 2" in out


def test_some_of_the_classes_need_their_numbers(digits: Path, tmp_path: Path, prune: Prune) -> None:
    """Three folders sorted would be classes 0, 1 and 2, whatever they are called."""
    for number in (3, 7, 9):
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / NAMES[number]).symlink_to(digits / str(number), target_is_directory=True)
    args = ("evaluate", CNN, "--data", tmp_path / "some", "--scale", "1/240", "--no-latency", "--format", "json")
    refused = prune(*args)
    assert refused.code == 2
    assert "the data has 3 classes" in refused.err
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert prune(*args, "--classes", tmp_path / "names.txt").json["models"][0]["metrics"]["accuracy"] > 0.9


def test_options_of_every_command_with_data() -> None:
    group = typer.main.get_command(app)
    context = typer.Context(group)
    for name in COMMANDS:
        options = {text for param in group.get_command(context, name).params for text in param.opts}
        if "--data" in options:
            assert {
                "--preset",
                "--mean",
                "--std",
                "--scale",
                "--layout",
                "--resize",
                "--crop",
                "--classes",
            } <= options, name


COMMANDS_WITH_IMAGES = [
    ("gradient", "--sparsity", "0.5", "--criterion", "taylor", "--limit", "32"),
    ("oneshot", "--sparsity", "0.5", "--limit", "32"),
    ("structured", "--ratio", "0.2", "--criterion", "taylor", "--limit", "32"),
    ("finetune", "--epochs", "1", "--limit", "64"),
    ("magnitude", "--sparsity", "0.5", "--finetune-epochs", "1", "--limit", "64"),
    ("compare", "--limit", "32"),
    ("sensitivity", "--levels", "0.5", "--limit", "32", "--jobs", "1"),
    ("adaptive", "--max-drop", "20%", "--criterion", "l1", "--strategy", "feedback", "--limit", "200", "--jobs", "1"),
]


@pytest.mark.parametrize("command", few(COMMANDS_WITH_IMAGES, (0, 5, 7)), ids=[c[0] for c in COMMANDS_WITH_IMAGES])
def test_commands_read_images(command: tuple[str, ...], digits: Path, tmp_path: Path, prune: Prune) -> None:
    name, *rest = command
    models = [CNN, CNN] if name == "compare" else [CNN]
    output = () if name in ("compare", "sensitivity") else ("-o", tmp_path / "out.onnx", "--force")
    done = prune(name, *models, "--data", digits, "--scale", "1/240", *rest, *output, "--format", "json")
    assert done.code == 0, done.err
    assert done.json["command"] == name
    wrong = prune(name, *models, "--data", digits, "--resize", "9x9", *rest, *output, "--format", "json")
    assert wrong.code == 2
    assert "images of 9x9 do not fit" in wrong.err


def test_options_of_images_without_any_are_refused(prune: Prune) -> None:
    done = prune("evaluate", CNN, "--mean", "1")
    assert done.code == 2
    assert "--mean was given without data" in done.err


def test_training_and_validation_images_are_prepared_alike(digits: Path, tmp_path: Path, prune: Prune) -> None:
    for place, last in (("train", "1"), ("val", "2")):
        for number in range(10):
            (tmp_path / place / str(number)).mkdir(parents=True)
            for file in (f for f in sorted((digits / str(number)).iterdir()) if f.stem.endswith(last)):
                (tmp_path / place / str(number) / file.name).symlink_to(file)
    done = prune("magnitude", CNN, "--sparsity", "0.5", "--finetune-epochs", "1", "--train-data", tmp_path / "train",
                 "--val-data", tmp_path / "val", "--scale", "1/240", "-o", tmp_path / "out.onnx", "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["training"]["validation_samples"] == len(list((tmp_path / "val").glob("*/*.png")))
    assert done.json["training"]["score"]["after"] > 0.5  # a hundred images, one epoch; chance is 0.1
    assert done.json["training"]["recipe"]["images"] == {"scale": 1 / 240}


@pytest.mark.parametrize(
    ("args", "message"),
    [(("--mean", "x"), "--mean 'x' is not a number"), (("--preset", "resnet"), "--preset 'resnet' is unknown")],
)
def test_bad_words_are_refused_at_once(args: tuple[str, ...], message: str, digits: Path, prune: Prune) -> None:
    done = prune("evaluate", CNN, "--data", digits, *args)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 2
