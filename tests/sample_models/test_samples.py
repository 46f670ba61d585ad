"""The sample models do what their README says, and the script that made them makes them again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

FOLDER = Path(__file__).parents[2] / "sample_models"
MODELS = {"digits-mlp": "digits", "digits-cnn": "digits", "cancer-mlp": "cancer", "diabetes-mlp": "diabetes"}


def quality(folder: Path, model: str, split: str = "test") -> float:
    """Accuracy, or R² for the regressor, by onnxruntime and numpy alone."""
    data = np.load(FOLDER / f"{MODELS[model]}-{split}.npz")
    session = onnxruntime.InferenceSession(str(folder / f"{model}.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    output: Any = session.run(None, {name: data[name].astype(np.float32)})[0]
    labels = data["labels"]
    if model == "diabetes-mlp":
        return float(1 - np.mean((output[:, 0] - labels) ** 2) / labels.var())
    return float(np.mean(output.argmax(1) == labels))


@pytest.mark.parametrize("model", MODELS)
def test_readme_states_the_measured_quality(model: str) -> None:
    row = re.search(rf"^\| `{model}\.onnx` \|.*\| ([\d.]+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert row is not None
    # one sample of the smallest classification test set is 0.006: another CPU's rounding may flip one
    assert quality(FOLDER, model) == pytest.approx(float(row[1]), abs=0.007)


@pytest.mark.parametrize("data", sorted(set(MODELS.values())))
def test_splits_do_not_overlap(data: str) -> None:
    parts = [np.load(FOLDER / f"{data}-{split}.npz") for split in ("train", "calib", "test")]
    key = next(name for name in parts[0].files if name != "labels")
    rows = [row.tobytes() for part in parts for row in part[key]]
    assert len(rows) == len(set(rows))


def test_the_csv_is_the_test_split() -> None:
    lines = (FOLDER / "cancer-test.csv").read_text().splitlines()
    table = np.array([line.split(",") for line in lines[1:]], dtype=np.float32)
    data = np.load(FOLDER / "cancer-test.npz")
    np.testing.assert_array_equal(table[:, :-1], data["features"])
    np.testing.assert_array_equal(table[:, -1], data["labels"])
    assert lines[0].split(",")[-1] == "benign"


def test_everything_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1_000_000


@pytest.mark.slow
def test_the_script_makes_them_again(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "train.py"), "--output", str(tmp_path)]
    subprocess.run(command, check=True, timeout=600)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {p.name for p in FOLDER.iterdir() if p.suffix in (".onnx", ".npz", ".csv")}
    for name in made:
        if name.endswith(".npz"):
            old, new = np.load(FOLDER / name), np.load(tmp_path / name)
            assert all(np.array_equal(old[key], new[key]) for key in old.files)
        elif name.endswith(".onnx"):
            assert _skeleton(tmp_path / name) == _skeleton(FOLDER / name)
    for model in MODELS:
        # other CPUs sum in another order; training amplifies that to a few samples
        assert quality(tmp_path, model) == pytest.approx(quality(FOLDER, model), abs=0.02)


def _skeleton(path: Path) -> bytes:
    """The model without the values of its weights."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
    return proto.SerializeToString(deterministic=True)
